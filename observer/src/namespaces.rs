//! Looks into every network namespace of this machine: which addresses it has, which connections its programs have opened, and how
//! the uids of its own user namespace are those of the machine.
//!
//! Entering a namespace changes the thread that does it, so [`look`] wants a thread of its own that ends afterwards. It takes
//! two capabilities: SYS_ADMIN to enter, SYS_PTRACE to reach the namespaces of processes that run as another user or with
//! rights that this one lacks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::net::{IpAddr, UdpSocket};
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::{io, mem};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::model::names::PodUid;
use crate::probes::netns_cookie;
use crate::sock_diag::outgoing_sockets;
use crate::sockets::Socket;
use crate::uid_map::UidMap;

mod users;

use users::Users;

/// Where `ip netns` and container runtimes keep namespaces that no process need live in.
const NAMED: &str = "/run/netns";
/// The node's own namespaces are those of its first process. In a container this needs the host's process namespace, as all of
/// this does.
const NODE: &str = "/proc/1/ns";
/// Where that one is protected from all others: the kernel's own threads always live in the machine's first namespaces.
const KERNEL_THREAD: (&str, &str) = ("/proc/2/comm", "/proc/2/ns");
/// Stands in a number that is no cookie but an inode: the two number ranges never meet.
const NO_COOKIE: u64 = 1 << 63;

/// Most addresses that are told of one namespace.
pub const MAX_ADDRESSES: usize = 1024;
/// Most pods that are told of one namespace; from two on it is not known whose it is.
pub const MAX_PODS: usize = 4;
/// Most sockets of one [`Part`].
pub const PART_SOCKETS: usize = 4096;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Addresses.
    Addresses,
    /// Addresses, and the sockets of the watched processes' namespaces.
    Sockets,
}

/// What is known of one namespace. One with many sockets comes in several parts, of which the first has the addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Part {
    /// Cookie of the namespace, or another number of its own where the kernel (before 5.14) does not tell cookies.
    pub netns: u64,
    /// A process of the watched cgroup lives in it.
    pub watched: bool,
    /// Its addresses, without loopback and link-local ones.
    pub addresses: BTreeSet<IpAddr>,
    /// Its outgoing sockets, at most [`PART_SOCKETS`].
    pub sockets: Vec<Socket>,
    /// Not all its sockets could be listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unlisted: bool,
    /// Where the kernel does not tell cookies: ids of the cgroups whose processes live in this namespace and in no other.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub cgroups: BTreeSet<u64>,
    /// The pods in whose cgroups its watched processes are: normally one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub pods: BTreeSet<PodUid>,
    /// Where another user namespace than the node's owns it: the uids there, or none if they are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<UidMap>,
}

impl Part {
    /// The cookie of the namespace, if the kernel tells it.
    pub fn cookie(&self) -> Option<u64> {
        (self.netns & NO_COOKIE == 0).then_some(self.netns)
    }
}

/// What a whole scan came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// Namespaces that were looked into.
    pub namespaces: u64,
    /// Sockets that were found and told.
    pub sockets: u64,
    /// Sockets over [`MAX_SOCKETS`](crate::sock_diag::MAX_SOCKETS) in a namespace.
    pub sockets_beyond: u64,
    /// Addresses over [`MAX_ADDRESSES`] in a namespace.
    pub addresses_beyond: u64,
    /// Namespaces, or watched processes whose namespace cannot be told, that could not be looked into.
    pub failed: u64,
    /// Why not, of the first of them.
    pub first_failure: Option<String>,
}

impl Summary {
    fn fail(&mut self, path: &Path, action: &str, reason: &dyn std::error::Error) {
        self.failed += 1;
        self.first_failure.get_or_insert_with(|| {
            let cause = reason.source().map_or_else(String::new, |cause| format!(": {cause}"));
            format!("cannot {action} {}: {reason}{cause}", path.display())
        });
    }
}

/// Enters every network namespace of the machine once and hands on what is there. Ends early when `emit` breaks.
///
/// Sockets are listed in the namespaces of the processes of `cgroup` only, and never in the node's own.
///
/// # Errors
/// When it cannot be told which namespaces to look into. What is wrong with a single one is in [`Summary::failed`].
pub fn look(cgroup: &Path, what: What, mut emit: impl FnMut(Part) -> ControlFlow<()>) -> io::Result<Summary> {
    let watched = Watched::of(cgroup)?;
    let mut users = Users::new(&watched.pids)?;
    let mut summary = Summary::default();
    let mut seen = BTreeSet::new();
    let mut cgroups = None;
    for (pid, path) in candidates() {
        let inode = match fs::metadata(&path) {
            Ok(meta) => meta.ino(),
            Err(err) if is_gone(&err) => continue,
            // A process that is protected from all others is no pod's.
            Err(_) if pid.is_some_and(|pid| !watched.pids.contains(&pid)) => continue,
            Err(err) => {
                summary.fail(&path, "look at", &err);
                continue;
            }
        };
        if !seen.insert(inode) {
            continue;
        }
        let file = match open(&path, inode) {
            Ok(Some(file)) => file,
            Ok(None) => {
                seen.remove(&inode);
                continue;
            }
            Err(err) if is_gone(&err) => {
                seen.remove(&inode);
                continue;
            }
            Err(err) => {
                summary.fail(&path, "open", &err);
                continue;
            }
        };
        let mut part = match enter(&file, inode) {
            Ok(netns) => {
                let pods = watched.namespaces.get(&inode);
                Part {
                    netns,
                    watched: pods.is_some(),
                    pods: pods.cloned().unwrap_or_default(),
                    ..Part::default()
                }
            }
            Err(err) => {
                summary.fail(&path, "enter", &err);
                continue;
            }
        };
        summary.namespaces += 1;
        if part.cookie().is_none() {
            part.cgroups =
                cgroups.get_or_insert_with(cgroups_by_namespace).remove(&inode).unwrap_or_default();
        }
        match users.of(&file) {
            Ok(map) => part.users = map,
            Err(err) => summary.fail(&path, "tell the users of", &err),
        }
        match addresses() {
            Ok(mut all) => {
                summary.addresses_beyond += all.len().saturating_sub(MAX_ADDRESSES) as u64;
                while all.len() > MAX_ADDRESSES {
                    all.pop_last();
                }
                part.addresses = all;
            }
            Err(err) => summary.fail(&path, "list the addresses of", &err),
        }
        let mut sockets = Vec::new();
        if what == What::Sockets && part.watched {
            match outgoing_sockets() {
                Ok(found) => {
                    summary.sockets_beyond += found.beyond;
                    part.unlisted = found.beyond > 0;
                    sockets = found.sockets;
                }
                Err(err) => {
                    part.unlisted = true;
                    summary.fail(&path, "list the sockets of", &err);
                }
            }
        }
        summary.sockets += sockets.len() as u64;
        if hand_on(part, sockets, &mut emit).is_break() {
            break;
        }
    }
    Ok(summary)
}

fn hand_on(
    mut part: Part,
    sockets: Vec<Socket>,
    emit: &mut impl FnMut(Part) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let (netns, watched) = (part.netns, part.watched);
    for socket in sockets {
        part.sockets.push(socket);
        if part.sockets.len() == PART_SOCKETS {
            emit(mem::replace(&mut part, Part { netns, watched, ..Part::default() }))?;
        }
    }
    emit(part)
}

/// The processes of a cgroup.
struct Watched {
    pids: HashSet<u32>,
    /// By the inodes of the namespaces that they live in, the pods that they are of; without the node's own: pods on the host's network
    /// have no sidecar.
    namespaces: HashMap<u64, BTreeSet<PodUid>>,
}

impl Watched {
    fn of(cgroup: &Path) -> io::Result<Self> {
        let node = of_node("net")?;
        let processes = cgroup::processes_of_pods(cgroup).map_err(|err| naming(cgroup, &err))?;
        let mut namespaces: HashMap<u64, BTreeSet<PodUid>> = HashMap::new();
        for (pid, pod) in &processes {
            // What cannot be looked at here is told when the scan itself comes to it.
            let Ok(meta) = fs::metadata(format!("/proc/{pid}/ns/net")) else { continue };
            if meta.ino() != node {
                let pods = namespaces.entry(meta.ino()).or_default();
                if pods.len() < MAX_PODS {
                    pods.extend(pod.clone());
                }
            }
        }
        Ok(Self { pids: processes.into_iter().map(|(pid, _)| pid).collect(), namespaces })
    }
}

fn naming(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("cannot look at {}: {err}", path.display()))
}

/// Inode of the node's own namespace of a kind, by its name in /proc/PID/ns.
fn of_node(kind: &str) -> io::Result<u64> {
    let (comm, namespaces) = KERNEL_THREAD;
    let path = Path::new(NODE).join(kind);
    let node = match fs::metadata(&path) {
        Err(err)
            if err.kind() == io::ErrorKind::PermissionDenied
                && fs::read_to_string(comm).is_ok_and(|name| name == "kthreadd\n") =>
        {
            fs::metadata(Path::new(namespaces).join(kind)).map_err(|_| err)
        }
        other => other,
    };
    node.map(|meta| meta.ino()).map_err(|err| naming(&path, &err))
}

/// Where namespaces are, and of which process.
fn candidates() -> impl Iterator<Item = (Option<u32>, PathBuf)> {
    let of_processes = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        Some((Some(pid), entry.path().join("ns/net")))
    });
    let named = fs::read_dir(NAMED).into_iter().flatten().flatten().map(|entry| (None, entry.path()));
    of_processes.chain(named)
}

/// A process that ends between two looks is no failure.
fn is_gone(err: &io::Error) -> bool {
    err.kind() == io::ErrorKind::NotFound || err.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// Opens the namespace with this inode. `None` if something else is there: the process has ended or moved since, or somebody makes a
/// named namespace, or removes one. Its file is there before and after it, and is nobody's to read; so it is looked at without being
/// opened first, and what was looked at is opened, not what the path leads to by then.
fn open(path: &Path, inode: u64) -> io::Result<Option<File>> {
    let place = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
    if place.metadata()?.ino() != inode || fstatfs(&place)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    File::open(format!("/proc/self/fd/{}", place.as_raw_fd())).map(Some)
}

/// By the inode of a namespace, the cgroups that are at home there and nowhere else.
fn cgroups_by_namespace() -> HashMap<u64, BTreeSet<u64>> {
    // Without one there is nothing to attach to either.
    let Ok(root) = cgroup::cgroup2_root() else { return HashMap::new() };
    let mut homes: HashMap<u64, BTreeSet<u64>> = HashMap::new();
    for (pid, path) in candidates() {
        let namespace = fs::metadata(path).ok().map(|meta| meta.ino());
        if let (Some(namespace), Some(cgroup)) = (namespace, pid.and_then(|pid| cgroup::id_of(pid, &root))) {
            homes.entry(cgroup).or_default().insert(namespace);
        }
    }
    let mut cgroups: HashMap<u64, BTreeSet<u64>> = HashMap::new();
    for (cgroup, inodes) in homes {
        if let (1, Some(inode)) = (inodes.len(), inodes.first()) {
            cgroups.entry(*inode).or_default().insert(cgroup);
        }
    }
    cgroups
}

fn enter(namespace: &File, inode: u64) -> io::Result<u64> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    // Any socket has the cookie of the namespace that it was made in; this one never sends.
    identity(netns_cookie(&UdpSocket::bind("0.0.0.0:0")?), inode)
}

fn identity(cookie: io::Result<Option<u64>>, inode: u64) -> io::Result<u64> {
    Ok(cookie?.unwrap_or(NO_COOKIE | inode))
}

fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    Ok(getifaddrs()?
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .filter(|address| !address.is_loopback() && !is_link_local(address))
        .collect())
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::State;

    #[test]
    fn a_kernel_without_cookies_yields_a_number_all_the_same() {
        assert_eq!(identity(Ok(Some(5)), 4_026_532_000).unwrap(), 5);
        assert_eq!(identity(Ok(None), 4_026_532_000).unwrap(), (1 << 63) + 4_026_532_000);
        assert!(identity(Err(io::Error::from_raw_os_error(Errno::EBADF as i32)), 1).is_err());
    }

    #[test]
    fn many_sockets_come_in_parts_of_which_the_first_has_the_addresses() {
        let socket = Socket {
            uid: 0,
            address: IpAddr::from([10, 0, 0, 1]),
            port: 80,
            cookie: 1,
            state: State::Established,
        };
        let addresses = BTreeSet::from([IpAddr::from([10, 0, 0, 2])]);
        for (count, parts) in [
            (0, vec![0]),
            (PART_SOCKETS - 1, vec![PART_SOCKETS - 1]),
            (PART_SOCKETS * 2 + 1, vec![PART_SOCKETS, PART_SOCKETS, 1]),
        ] {
            let mut found = Vec::new();
            let part = Part { netns: 7, watched: true, addresses: addresses.clone(), ..Part::default() };
            let flow = hand_on(part, vec![socket.clone(); count], &mut |part: Part| {
                assert_eq!((part.netns, part.watched), (7, true));
                assert_eq!(part.addresses.is_empty(), !found.is_empty());
                found.push(part.sockets.len());
                ControlFlow::Continue(())
            });
            assert_eq!((flow, found), (ControlFlow::Continue(()), parts));
        }
    }

    #[test]
    fn the_first_failure_is_told_with_its_place() {
        let mut summary = Summary::default();
        for name in ["/a", "/b"] {
            summary.fail(Path::new(name), "enter", &io::Error::other("no"));
        }
        assert_eq!((summary.failed, summary.first_failure.as_deref()), (2, Some("cannot enter /a: no")));
    }
}
