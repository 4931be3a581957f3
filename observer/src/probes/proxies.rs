//! Proxies that become known while the programs run.

use aya::maps::{HashMap, MapData};
use nix::errno::Errno;
use sidescope_common::names;

use super::kernel::errno;
use super::{ProbeError, Probes, entries, map_error};

impl Probes {
    /// Proxies that the programs were told of while they ran: the cookie of the network namespace, none for all of them, and the user.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn proxies(&self) -> Result<Vec<(Option<u64>, u32)>, ProbeError> {
        in_map(&self.proxy_uids)
    }

    /// One more user whose connections are a proxy's own, from now on: in the network namespace with this cookie, or in all of
    /// them. One namespace a user: uids are given out again when a pod has ended. False: the map is full.
    ///
    /// # Errors
    /// When the kernel refuses otherwise.
    pub fn add_proxy_uid(&mut self, netns: Option<u64>, uid: u32) -> Result<bool, ProbeError> {
        let everywhere = self.proxy_uids.get(&uid, 0).is_ok_and(|netns| netns == 0);
        if everywhere {
            return Ok(true);
        }
        match self.proxy_uids.insert(uid, netns.unwrap_or(0), 0) {
            Ok(()) => Ok(true),
            Err(err) if errno(&err) == Some(Errno::E2BIG) => Ok(false),
            Err(err) => Err(map_error(names::PROXY_UIDS)(err)),
        }
    }
}

/// What is in a map of proxies.
pub(super) fn in_map(uids: &HashMap<MapData, u32, u64>) -> Result<Vec<(Option<u64>, u32)>, ProbeError> {
    let proxies = entries(uids, names::PROXY_UIDS)?.into_iter();
    Ok(proxies.map(|(uid, netns)| ((netns != 0).then_some(netns), uid)).collect())
}
