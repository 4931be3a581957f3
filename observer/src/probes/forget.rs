//! Entries that are of no use any more: they go, so that there is room for others.

use std::collections::BTreeSet;

use aya::maps::{HashMap, MapData};
use nix::errno::Errno;
use sidescope_common::{EdgeKey, SourceKey, names};

use super::kernel::errno;
use super::{ProbeError, Probes, entries, map_error};

impl Probes {
    /// Removes edges from the set. The next connect of such an edge makes it anew, with an id of its own, so that its hosts are announced
    /// anew, too. Requests on its connections that are open count as over the budget if they name a host that is not known.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn forget_edges(&mut self, edges: &[EdgeKey]) -> Result<(), ProbeError> {
        edges.iter().try_for_each(|key| remove(&mut self.edges, key, names::EDGES))
    }

    /// Removes all but edges that is kept of network namespaces.
    ///
    /// # Errors
    /// When the kernel refuses to read or write the maps.
    pub fn forget_namespaces(&mut self, gone: &BTreeSet<u64>) -> Result<(), ProbeError> {
        for netns in gone {
            for family in [4, 6] {
                let key = SourceKey { netns: *netns, family, reserved: 0 };
                remove(&mut self.sources, &key, names::SOURCES)?;
            }
            remove(&mut self.cgroups, netns, names::CGROUPS)?;
            remove(&mut self.losses, netns, names::LOSSES)?;
            self.earlier_losses.remove(netns);
        }
        for (uid, netns) in entries(&self.proxy_uids, names::PROXY_UIDS)? {
            if gone.contains(&netns) {
                remove(&mut self.proxy_uids, &uid, names::PROXY_UIDS)?;
            }
        }
        Ok(())
    }
}

/// Removes an entry. One that is not there is as good as removed.
pub(super) fn remove<K: aya::Pod, V: aya::Pod>(
    map: &mut HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<(), ProbeError> {
    match map.remove(key) {
        Err(err) if errno(&err) != Some(Errno::ENOENT) => Err(map_error(name)(err)),
        _ => Ok(()),
    }
}
