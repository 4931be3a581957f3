//! What keeps programs from being pinned, in words for who started them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::folder::mount_point;
use crate::probes::ProbeError;

/// Why nothing can be pinned, or what is pinned not be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is nothing at this path, or no directory.
    #[error(
        "there is no directory {path}: name the one where the BPF file system is mounted (--bpffs), or make it and mount one there \
         (mount -t bpf bpf {path}); in Kubernetes it is a hostPath volume of /sys/fs/bpf"
    )]
    NoDirectory {
        /// Where.
        path: PathBuf,
    },
    /// It lies on another file system.
    #[error(
        "there is no BPF file system at {path}, in which the programs are kept: mount one (mount -t bpf bpf {path}), in Kubernetes \
         as a hostPath volume of /sys/fs/bpf, or name another place with --bpffs"
    )]
    NoBpffs {
        /// Where.
        path: PathBuf,
    },
    /// It is mounted read-only.
    #[error(
        "the BPF file system at {path} is read-only: mount it writable (mount -o remount,rw {path}), in Kubernetes by a volume mount \
         without readOnly"
    )]
    ReadOnly {
        /// Where it is mounted.
        path: PathBuf,
    },
    /// Others may exchange what is in it.
    #[error(
        "other users may replace what an agent keeps in {path} ({wrong}), and so lead it to maps of their own: give it to root alone \
         (chown root {path}; chmod 700 {path}), or mount the BPF file system with -o mode=700"
    )]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Whose it is, or its mode.
        wrong: String,
    },
    /// No agent of this user made this folder, or not alone.
    #[error(
        "{path} {wrong}: no agent of this user made it so, and whoever did can lead one to maps of their own. See whose it is, remove \
         it (rm -r {path}), and let nobody else write there: mount the BPF file system with -o mode=700"
    )]
    NotOurs {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        wrong: String,
    },
    /// Somebody has removed pins, or put other folders in their place.
    #[error(
        "somebody has removed pins in {path} while this agent ran: its programs are no longer attached, or not found by the next \
         agent; start it again"
    )]
    Gone {
        /// The folder of the layout.
        path: PathBuf,
    },
    /// This user may not.
    #[error(
        "no permission to {action} {path}: run as root, or as a user who may write there and has the capabilities BPF and NET_ADMIN"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
    },
    /// Another process holds the folder.
    #[error(
        "another agent uses {path}, and only one may: one that was started by hand, or a pod that is still terminating; end it (or \
         wait for its end) first"
    )]
    Held {
        /// The folder.
        path: PathBuf,
    },
    /// The file system does not do what it should.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        reason: io::Error,
    },
    /// The programs or their maps.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// What a failure means for who started this.
pub(in crate::probes) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    let path = path.to_owned();
    move |reason| match reason.kind() {
        ErrorKind::ReadOnlyFilesystem => PinError::ReadOnly { path: mount_point(&path) },
        ErrorKind::PermissionDenied => PinError::NotPermitted { action, path },
        _ => PinError::Io { action, path, reason },
    }
}
