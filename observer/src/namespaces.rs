//! Which addresses the network namespaces of this machine have.
//!
//! Entering a namespace takes SYS_ADMIN and changes the thread that does it, so it happens on a thread of its own that ends
//! with the scan.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::{fs, io, thread};

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

use crate::cgroup;
use crate::probes::netns_cookie;

/// Where `ip netns` and container runtimes keep namespaces that no process need live in.
const NAMED: &str = "/run/netns";

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Addresses by the cookie of the namespace, without loopback and link-local ones.
    pub addresses: HashMap<u64, BTreeSet<IpAddr>>,
    /// Where the kernel does not tell cookies (before Linux 5.14): addresses by the id of the cgroup of a process in the namespace.
    /// Cgroups with processes in several namespaces are left out.
    pub by_cgroup: HashMap<u64, BTreeSet<IpAddr>>,
    /// Namespaces that could not be entered or asked, with the first reason.
    pub failed: Option<(usize, io::Error)>,
}

/// Enters every network namespace of the machine once and reads its addresses.
///
/// # Errors
/// When no thread can be started. What is wrong with a single namespace is in [`Scan::failed`].
pub fn scan() -> io::Result<Scan> {
    let scanner = thread::Builder::new().name("netns-scan".to_owned()).spawn(scan_here)?;
    scanner.join().map_err(|_| io::Error::other("the scan of the network namespaces panicked"))
}

fn scan_here() -> Scan {
    let mut scan = Scan::default();
    let mut without_cookie = HashMap::new();
    let mut seen = BTreeSet::new();
    for path in of_processes().into_iter().map(|(_, path)| path).chain(named()) {
        // A process may have ended since.
        let Ok(file) = File::open(&path) else { continue };
        let Some(inode) = inode(&file) else { continue };
        if !seen.insert(inode) {
            continue;
        }
        match look_into(&file) {
            Ok((Some(cookie), addresses)) => {
                scan.addresses.insert(cookie, addresses);
            }
            Ok((None, addresses)) => {
                without_cookie.insert(inode, addresses);
            }
            Err(err) => {
                let earlier = scan.failed.take();
                scan.failed = Some(earlier.map_or((1, err), |(count, first)| (count + 1, first)));
            }
        }
    }
    if !without_cookie.is_empty() {
        scan.by_cgroup = by_cgroup(&without_cookie);
    }
    scan
}

/// From addresses by the inode of the namespace to addresses by cgroup.
fn by_cgroup(namespaces: &HashMap<u64, BTreeSet<IpAddr>>) -> HashMap<u64, BTreeSet<IpAddr>> {
    // Without one there is nothing to attach to either.
    let Ok(root) = cgroup::cgroup2_root() else { return HashMap::new() };
    let mut homes: HashMap<u64, BTreeSet<u64>> = HashMap::new();
    for (pid, path) in of_processes() {
        let namespace = File::open(path).ok().and_then(|file| inode(&file));
        if let (Some(namespace), Some(cgroup)) = (namespace, cgroup::id_of(pid, &root)) {
            homes.entry(cgroup).or_default().insert(namespace);
        }
    }
    let only = |inodes: BTreeSet<u64>| (inodes.len() == 1).then(|| inodes.first().copied()).flatten();
    homes
        .into_iter()
        .filter_map(|(cgroup, inodes)| Some((cgroup, namespaces.get(&only(inodes)?)?.clone())))
        .collect()
}

fn inode(file: &File) -> Option<u64> {
    file.metadata().ok().map(|meta| meta.ino())
}

/// Every process and the file of its network namespace.
fn of_processes() -> Vec<(i32, PathBuf)> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("ns/net"))))
        .collect()
}

fn named() -> impl Iterator<Item = PathBuf> {
    fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn look_into(namespace: &File) -> io::Result<(Option<u64>, BTreeSet<IpAddr>)> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    // Any socket has the cookie of the namespace that it was made in; this one never sends.
    let cookie = netns_cookie(&UdpSocket::bind("0.0.0.0:0")?)?;
    let addresses = getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| !address.is_loopback() && !is_link_local(address))
        .collect();
    Ok((cookie, addresses))
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}
