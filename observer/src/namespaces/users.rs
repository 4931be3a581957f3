//! User namespaces: which of them own a network namespace, and how their uids are those of the machine.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;

use super::of_node;
use crate::probes::user_namespace;
use crate::uid_map::{Malformed, UidMap};

/// The user namespaces of the watched processes; looked at when the first of them is needed.
pub(super) struct Users<'a> {
    pids: &'a HashSet<u32>,
    /// Inode of the node's own.
    node: u64,
    /// By inode.
    maps: Option<HashMap<u64, Result<UidMap, Malformed>>>,
}

impl<'a> Users<'a> {
    pub(super) fn new(pids: &'a HashSet<u32>) -> io::Result<Self> {
        Ok(Self { pids, node: of_node("user")?, maps: None })
    }

    /// The uids of the user namespace that owns a network namespace: none where it is the node's own.
    ///
    /// The owner and not the namespace that a process is in, because any program may make one of those for itself, and say in
    /// it that it is the proxy. Where nobody in it is watched, its uids are not known.
    pub(super) fn of(&mut self, netns: &File) -> io::Result<Option<UidMap>> {
        let owner = user_namespace(netns)?.metadata()?.ino();
        if owner == self.node {
            return Ok(None);
        }
        let (node, pids) = (self.node, self.pids);
        let maps = self.maps.get_or_insert_with(|| maps(pids, node));
        let map = maps.get(&owner).cloned().unwrap_or_else(|| Ok(UidMap::default()));
        map.map(Some).map_err(|malformed| io::Error::new(io::ErrorKind::InvalidData, malformed))
    }
}

/// The maps of all user namespaces of these processes but one, each read once.
fn maps(pids: &HashSet<u32>, node: u64) -> HashMap<u64, Result<UidMap, Malformed>> {
    let mut maps = HashMap::new();
    for pid in pids {
        let inode = || fs::metadata(format!("/proc/{pid}/ns/user")).map(|meta| meta.ino());
        let Some(namespace) = inode().ok().filter(|inode| *inode != node && !maps.contains_key(inode)) else {
            continue;
        };
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/uid_map")) else { continue };
        // It may have moved on meanwhile, then this is the map of another one. An empty map is not written yet: nothing is known.
        if !text.is_empty() && inode().is_ok_and(|now| now == namespace) {
            maps.insert(namespace, UidMap::parse(&text));
        }
    }
    maps
}
