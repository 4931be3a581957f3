//! Proxies that become known while the programs run.

use nix::errno::Errno;
use sidescope_common::names;

use super::kernel::{BPF_NOEXIST, errno};
use super::{ProbeError, Probes};

impl Probes {
    /// One more user whose connections are a proxy's own, from now on: in the network namespace with this cookie, or in all of
    /// them. False: the map is full, or this user is a proxy in another namespace.
    ///
    /// # Errors
    /// When the kernel refuses otherwise.
    pub fn add_proxy_uid(&mut self, netns: Option<u64>, uid: u32) -> Result<bool, ProbeError> {
        // An entry that is there already stays as it is: the programs rely on it.
        let refusal = match self.proxy_uids.insert(uid, netns.unwrap_or(0), BPF_NOEXIST) {
            Ok(()) => return Ok(true),
            Err(refusal) => refusal,
        };
        match errno(&refusal) {
            Some(Errno::EEXIST) => {
                Ok(self.proxy_uids.get(&uid, 0).is_ok_and(|at| at == 0 || Some(at) == netns))
            }
            Some(Errno::E2BIG) => Ok(false),
            _ => Err(ProbeError::Map { map: names::PROXY_UIDS, source: Box::new(refusal) }),
        }
    }
}
