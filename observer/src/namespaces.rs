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

use crate::probes::netns_cookie;

/// Where `ip netns` and container runtimes keep namespaces that no process need live in.
const NAMED: &str = "/run/netns";

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// Addresses by the cookie of the namespace, without loopback and link-local ones.
    pub addresses: HashMap<u64, BTreeSet<IpAddr>>,
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
    let mut seen = BTreeSet::new();
    for path in candidates() {
        // A process may have ended since.
        let Ok(file) = File::open(&path) else { continue };
        let Ok(inode) = file.metadata().map(|meta| meta.ino()) else {
            continue;
        };
        if !seen.insert(inode) {
            continue;
        }
        match look_into(&file) {
            Ok((cookie, addresses)) => {
                scan.addresses.insert(cookie, addresses);
            }
            Err(err) => {
                let earlier = scan.failed.take();
                scan.failed = Some(earlier.map_or((1, err), |(count, first)| (count + 1, first)));
            }
        }
    }
    scan
}

fn candidates() -> impl Iterator<Item = PathBuf> {
    let of_processes = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .map(|entry| entry.path().join("ns/net"));
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| entry.path());
    of_processes.chain(named)
}

fn look_into(namespace: &File) -> io::Result<(u64, BTreeSet<IpAddr>)> {
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
