//! Finds the cgroup that the programs are attached to.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use procfs::process::Process;
use tracing::warn;

use crate::binding;
use crate::model::names::PodUid;

/// Where the kubelet puts pods, by cgroup driver. The programs go there rather than to the root, so that they run before those
/// that are attached at the root (a socket load balancer would show them the rewritten destination).
const POD_CGROUPS: [&str; 2] = ["kubepods", "kubepods.slice"];

/// Why there is no cgroup to attach to.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No cgroup2 hierarchy is mounted.
    #[error(
        "no cgroup2 hierarchy is mounted on this machine: mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or boot with \
         systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// The mounts cannot be read.
    #[error("cannot read the mounts of this machine")]
    Mounts(#[source] procfs::ProcError),
    /// The directory cannot be opened.
    #[error("cannot open the cgroup {path}: {reason}; leave --cgroup out to watch the pods of this machine")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// The directory lies on another file system.
    #[error(
        "{path} is no cgroup of a cgroup2 hierarchy: BPF programs can be attached only to those. Leave --cgroup out to watch the pods of \
         this machine, or name a directory below the mount of type cgroup2 (findmnt -t cgroup2 shows it)"
    )]
    NotCgroup2 {
        /// The directory.
        path: PathBuf,
    },
}

/// An open cgroup directory.
#[derive(Debug)]
pub struct Cgroup {
    /// Its path.
    pub path: PathBuf,
    /// The directory.
    pub dir: File,
}

impl Cgroup {
    /// Says so if there is nobody in it, which is no error: pods may come.
    pub fn warn_if_empty(&self) {
        if processes(&self.path).is_ok_and(|pids| pids.is_empty()) {
            warn!(
                cgroup = %self.path.display(),
                "no process is in the cgroup: nothing is seen until a pod starts there; leave --cgroup out to watch the pods of this machine"
            );
        }
    }
}

/// Opens `path`, or the pods' cgroup of this machine, or the root of its cgroup2 hierarchy.
///
/// # Errors
/// See [`CgroupError`].
pub fn open(path: Option<&Path>) -> Result<Cgroup, CgroupError> {
    let path = match path {
        Some(path) => path.to_owned(),
        None => {
            let root = cgroup2_root()?;
            POD_CGROUPS
                .iter()
                .map(|name| root.join(name))
                .find(|path| path.try_exists().unwrap_or(true))
                .unwrap_or(root)
        }
    };
    let open = |reason| CgroupError::Open { path: path.clone(), reason };
    let dir = File::open(&path).map_err(open)?;
    let kind = fstatfs(&dir).map_err(|errno| open(errno.into()))?.filesystem_type();
    if kind != CGROUP2_SUPER_MAGIC {
        return Err(CgroupError::NotCgroup2 { path });
    }
    Ok(Cgroup { path, dir })
}

/// The id of the cgroup that a process is in, as the kernel programs see it; `None` if the process or the cgroup is gone.
pub(crate) fn id_of(pid: u32, root: &Path) -> Option<u64> {
    let cgroups = Process::new(i32::try_from(pid).ok()?).ok()?.cgroups().ok()?;
    let own = cgroups.into_iter().find(|cgroup| cgroup.hierarchy == 0)?;
    // The kernel numbers cgroups by the inodes of their directories.
    Some(std::fs::metadata(root.join(own.pathname.trim_start_matches('/'))).ok()?.ino())
}

/// Ids of the cgroups of pods below `path`, the kubelet's cgroup, and of all below those. Cgroups that go away meanwhile are left out.
///
/// # Errors
/// When `path` itself cannot be read.
pub fn pods(path: &Path) -> io::Result<HashMap<u64, PodUid>> {
    let mut pods = HashMap::new();
    let mut below = vec![path.to_owned()];
    while let Some(dir) = below.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(err) if dir == path => return Err(err),
            Err(_) => continue,
            Ok(entries) => entries,
        };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            let child = entry.path();
            if let (Some(pod), Ok(meta)) =
                (binding::pod_of(child.strip_prefix(path).unwrap_or(&child)), entry.metadata())
            {
                pods.insert(meta.ino(), pod);
            }
            below.push(child);
        }
    }
    Ok(pods)
}

/// How deep below the watched cgroup the pods' own cgroups lie at most: below the kubelet's, and that of a class of service.
const POD_DEPTH: usize = 3;

/// The cgroups of pods below `path`, each with its number: it grows with every cgroup that is made.
///
/// # Errors
/// When `path` itself cannot be read.
pub fn of_pods(path: &Path) -> io::Result<HashMap<PodUid, u64>> {
    let mut pods = HashMap::new();
    let mut below = vec![(path.to_owned(), 1)];
    while let Some((dir, depth)) = below.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(err) if dir == path => return Err(err),
            Err(_) => continue,
            Ok(entries) => entries,
        };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            match binding::pod_of(Path::new(&entry.file_name())) {
                // Where there are two, as while it moves, it is as old as the older one.
                Some(pod) => drop(
                    pods.entry(pod)
                        .and_modify(|known: &mut u64| *known = entry.ino().min(*known))
                        .or_insert(entry.ino()),
                ),
                None if depth < POD_DEPTH => below.push((entry.path(), depth + 1)),
                None => {}
            }
        }
    }
    Ok(pods)
}

/// Where the cgroup2 hierarchy is mounted.
pub(crate) fn cgroup2_root() -> Result<PathBuf, CgroupError> {
    let mounts = Process::myself().and_then(|me| me.mountinfo()).map_err(CgroupError::Mounts)?;
    mounts
        .into_iter()
        .find(|mount| mount.fs_type == "cgroup2")
        .map(|mount| mount.mount_point)
        .ok_or(CgroupError::NoCgroup2)
}

/// The processes in `path` and the cgroups below it. Cgroups that go away meanwhile are left out.
///
/// # Errors
/// When `path` itself cannot be read.
pub fn processes(path: &Path) -> io::Result<Vec<u32>> {
    Ok(processes_of_pods(path)?.into_iter().map(|(pid, _)| pid).collect())
}

/// The same, each with the pod in whose cgroup it is.
///
/// # Errors
/// When `path` itself cannot be read.
pub fn processes_of_pods(path: &Path) -> io::Result<Vec<(u32, Option<PodUid>)>> {
    let mut pids = Vec::new();
    let mut below = vec![path.to_owned()];
    while let Some(dir) = below.pop() {
        let entries = match fs::read_dir(&dir) {
            Err(err) if dir == path => return Err(err),
            Err(_) => continue,
            Ok(entries) => entries,
        };
        let pod = binding::pod_of(dir.strip_prefix(path).unwrap_or(&dir));
        // A threaded cgroup does not tell; its domain above does.
        let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        pids.extend(procs.lines().filter_map(|line| Some((line.parse::<u32>().ok()?, pod.clone()))));
        let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        below.extend(dirs.map(|entry| entry.path()));
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_s_cgroup_and_all_below_it_are_the_pod_s() {
        let root = tempfile::tempdir().unwrap();
        let container = root.path().join("burstable/poda-1/c/inner");
        fs::create_dir_all(&container).unwrap();
        fs::create_dir_all(root.path().join("besteffort")).unwrap();
        let found = pods(root.path()).unwrap();
        let ino = |path: &Path| fs::metadata(path).unwrap().ino();
        let mine = [container.as_path(), container.parent().unwrap(), &root.path().join("burstable/poda-1")];
        assert_eq!(found.len(), mine.len());
        assert!(mine.iter().all(|path| found.get(&ino(path)).is_some_and(|pod| pod.as_str() == "a-1")));
        assert!(pods(&root.path().join("none")).is_err());
    }

    #[test]
    fn pods_are_found_with_the_number_of_their_own_cgroup() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["burstable/poda-1/c/podb-1", "podc-1", "kubepods.slice/x.slice/y.slice/podd-1"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        let ino = |dir: &str| fs::metadata(root.path().join(dir)).unwrap().ino();
        let uid = |name: &str| PodUid::new(name).unwrap();
        let expected = HashMap::from([(uid("a-1"), ino("burstable/poda-1")), (uid("c-1"), ino("podc-1"))]);
        assert_eq!(of_pods(root.path()).unwrap(), expected);
        assert!(of_pods(&root.path().join("none")).is_err());
    }

    #[test]
    fn processes_are_told_with_the_pod_in_whose_cgroup_they_are() {
        let root = tempfile::tempdir().unwrap();
        for (dir, pid) in
            [("", "1"), ("besteffort", "2"), ("besteffort/poda-1", "3"), ("besteffort/poda-1/c", "4")]
        {
            fs::create_dir_all(root.path().join(dir)).unwrap();
            fs::write(root.path().join(dir).join("cgroup.procs"), format!("{pid}\n")).unwrap();
        }
        let mut found = processes_of_pods(root.path()).unwrap();
        found.sort();
        let pod = || Some(PodUid::new("a-1").unwrap());
        assert_eq!(found, [(1, None), (2, None), (3, pod()), (4, pod())]);
    }
}
