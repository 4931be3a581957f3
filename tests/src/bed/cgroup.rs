//! The bed's branch of the cgroup2 tree: what `sidescope` is attached to, and the list of all that has to be killed.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// Where cgroup2 is mounted: /sys/fs/cgroup, or /sys/fs/cgroup/unified where the first version is in use beside it.
pub(crate) fn mount() -> Result<PathBuf> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    find_mount(&text).ok_or_else(|| anyhow!("no cgroup2 is mounted here ({path}); the test bed needs one"))
}

fn find_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        (back.split(' ').next()? == "cgroup2").then(|| front.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// The cgroup of the bed with this id.
pub(crate) fn of_bed(mount: &Path, id: &str) -> PathBuf {
    mount.join(format!("sidescope-bed-{id}"))
}

/// Kills all that is in a cgroup and below, and removes it.
pub(crate) fn remove(root: &Path) -> Result<()> {
    let what = format!("processes in {} to end", root.display());
    wait_for(&what, Duration::from_secs(10), || {
        let pids = pids(root)?;
        for pid in &pids {
            // It may have ended since we looked; the next look tells.
            kill(Pid::from_raw(*pid), Signal::SIGKILL).ok();
        }
        Ok(pids.is_empty().then_some(()))
    })?;
    let mut folders = tree(root)?;
    folders.reverse();
    for folder in folders {
        // The kernel says "busy" for a moment after the last process has left.
        wait_for(
            &format!("removal of {}", folder.display()),
            Duration::from_secs(5),
            || match fs::remove_dir(&folder) {
                Ok(()) => Ok(Some(())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(())),
                Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(None),
                Err(error) => Err(error.into()),
            },
        )?;
    }
    Ok(())
}

fn pids(root: &Path) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for folder in tree(root)? {
        let path = folder.join("cgroup.procs");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        for line in text.lines() {
            let pid: i32 = line.parse().with_context(|| format!("`{line}` in {}", path.display()))?;
            // 0 stands for a process that our own pid namespace does not show; to `kill` it would mean ourselves.
            if pid > 0 {
                pids.push(pid);
            }
        }
    }
    Ok(pids)
}

/// The folder and those below it, each before its children. Nothing if it does not exist.
fn tree(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            entries => entries.with_context(|| format!("cannot list {}", folder.display()))?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            }
        }
        found.push(folder);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_beside_the_first_version() {
        let text = "30 23 0:26 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu\n\
                    31 23 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(find_mount(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_mount(""), None);
    }
}
