//! Proxies that become known while the programs run.

use aya::maps::MapError;
use nix::errno::Errno;
use sidescope_common::names;

use super::{ProbeError, Probes};

/// Flag of an update that leaves an entry alone if it is there.
const BPF_NOEXIST: u64 = 1;

impl Probes {
    /// One more user whose connections are a proxy's own, from now on. False: the map is full.
    ///
    /// # Errors
    /// When the kernel refuses otherwise.
    pub fn add_proxy_uid(&mut self, uid: u32) -> Result<bool, ProbeError> {
        // An entry that is there already stays as it is: the programs rely on it.
        let refusal = match self.proxy_uids.insert(uid, 1, BPF_NOEXIST) {
            Ok(()) => return Ok(true),
            Err(refusal) => refusal,
        };
        match errno(&refusal) {
            Some(Errno::EEXIST) => Ok(true),
            Some(Errno::E2BIG) => Ok(false),
            _ => Err(ProbeError::Map { map: names::PROXY_UIDS, source: Box::new(refusal) }),
        }
    }
}

fn errno(refusal: &MapError) -> Option<Errno> {
    match refusal {
        MapError::SyscallError(err) => err.io_error.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}
