//! Who owns which bed, so that what an owner could not clean up (SIGKILL, power of the out-of-memory killer) goes with the next bed.
//!
//! /run/sidescope-bed/ID/owner holds pid and start time of the owner (a pid alone may belong to someone else by now). It is
//! written before the first thing is made and removed after the last, under one lock for all.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use crate::cmd::Cmd;
use crate::wait::wait_for;

const STATE: &str = "/run/sidescope-bed";
/// Where in a bed's state directory its BPF file system is.
const BPFFS: &str = "bpffs";

/// The process that a bed or a cluster belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id.
    pub pid: i32,
    /// When it started, in the kernel's clock ticks: tells it from a later process of the same id.
    pub start: u64,
}

impl Owner {
    /// This process.
    pub(crate) fn current() -> Result<Self> {
        Self::of(Pid::this().as_raw()).context("cannot read when this process started")
    }

    /// The process of this id, if it runs.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start: start_time(pid)? })
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        start_time(self.pid) == Some(self.start)
    }

    /// As [`Self::parse`] reads it.
    pub(crate) fn record(self) -> String {
        format!("{} {}\n", self.pid, self.start)
    }

    /// Nothing, where a record was not finished.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, start) = text.trim().split_once(' ')?;
        Some(Self { pid: pid.parse().ok()?, start: start.parse().ok()? })
    }
}

/// What all namespaces of a bed begin with.
pub(crate) fn prefix(id: &str) -> String {
    format!("ss-{id}-")
}

/// Sweeps what is ownerless and takes an id and a state directory for a new bed.
pub(crate) fn claim(mount: &Path) -> Result<(String, PathBuf)> {
    let _held = hold()?;
    for (id, owner) in read_all()? {
        if !owner.is_some_and(Owner::is_alive) {
            // It may be stuck for good (a process that cannot be killed); that must not keep every later bed from being made.
            if let Err(error) = remove(&id, &cgroup::of_bed(mount, &id)) {
                eprintln!("cannot sweep the ownerless test bed {id}: {error:#}");
            }
        }
    }
    loop {
        // A hasher of the standard library is seeded at random, which is all that is asked of a name.
        let id = format!("{:05x}", RandomState::new().hash_one(0) & 0xf_ffff);
        let dir = Path::new(STATE).join(&id);
        match fs::create_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made.with_context(|| format!("cannot make {}", dir.display()))?,
        }
        let owner = Owner::current()?;
        let path = dir.join("owner");
        fs::write(&path, owner.record()).with_context(|| format!("cannot write {}", path.display()))?;
        return Ok((id, dir));
    }
}

/// Removes all that bears a bed's name; what is gone already is no error.
pub(crate) fn remove(id: &str, cgroup: &Path) -> Result<()> {
    cgroup::remove(cgroup)?;
    for netns in netns_of(id)? {
        Cmd::new("ip").args(["netns", "delete", &netns]).run()?;
    }
    let dir = Path::new(STATE).join(id);
    // Before anything in it is removed: pins go with the mount, and a mount cannot be removed.
    match umount2(&dir.join(BPFFS), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::ENOENT | Errno::EINVAL) => {}
        Err(errno) => {
            return Err(errno).with_context(|| format!("cannot unmount what is in {}", dir.display()));
        }
    }
    match fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Mounts a BPF file system below a bed's state directory, unless there is one.
pub(crate) fn make_bpffs(dir: &Path) -> Result<PathBuf> {
    let path = dir.join(BPFFS);
    match fs::create_dir(&path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(path),
        made => made.with_context(|| format!("cannot make {}", path.display()))?,
    }
    mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
        .context("cannot mount a BPF file system")?;
    Ok(path)
}

/// The beds of this machine and who owns them; no owner means that the record cannot be read.
pub fn list() -> Result<Vec<(String, Option<Owner>)>> {
    let _held = hold()?;
    read_all()
}

/// Ends the bed of another process: asks its owner to, or sweeps it if there is none any more.
pub fn end(id: &str) -> Result<()> {
    let Some((_, owner)) = list()?.into_iter().find(|(known, _)| known == id) else {
        bail!("there is no bed `{id}` (`testbed list` shows them)");
    };
    match owner.filter(|owner| owner.is_alive()) {
        Some(owner) => {
            kill(Pid::from_raw(owner.pid), Signal::SIGTERM)
                .with_context(|| format!("cannot end process {}, the owner of the bed", owner.pid))?;
            let dir = Path::new(STATE).join(id);
            wait_for(&format!("the end of bed {id}"), Duration::from_secs(20), || {
                Ok((!dir.exists()).then_some(()))
            })
        }
        None => {
            let _held = hold()?;
            remove(id, &cgroup::of_bed(&cgroup::mount()?, id))
        }
    }
}

fn hold() -> Result<Flock<File>> {
    fs::create_dir_all(STATE).with_context(|| format!("cannot make {STATE} (is this root?)"))?;
    let path = Path::new(STATE).join("lock");
    let file = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .with_context(|| format!("cannot lock {}", path.display()))
}

fn read_all() -> Result<Vec<(String, Option<Owner>)>> {
    let mut beds = Vec::new();
    for entry in fs::read_dir(STATE).with_context(|| format!("cannot list {STATE}"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != "lock" {
            let text = fs::read_to_string(entry.path().join("owner")).unwrap_or_default();
            beds.push((name, Owner::parse(&text)));
        }
    }
    beds.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(beds)
}

fn netns_of(id: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir("/run/netns") {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("cannot list /run/netns")?,
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    names
        .filter(|name: &Result<String>| !matches!(name, Ok(name) if !name.starts_with(&prefix(id))))
        .collect()
}

/// Field 22 of /proc/PID/stat, counted from behind the command's name, which may hold anything. A zombie counts as gone.
fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_from_a_later_process_of_the_same_id() {
        let owner = Owner::current().unwrap();
        assert!(owner.is_alive());
        assert!(!Owner { start: owner.start + 1, ..owner }.is_alive());
    }

    #[test]
    fn a_record_that_was_not_finished_has_no_owner() {
        assert_eq!(Owner::parse("12 345\n"), Some(Owner { pid: 12, start: 345 }));
        assert_eq!(Owner::parse(""), None);
        assert_eq!(Owner::parse("12"), None);
    }
}
