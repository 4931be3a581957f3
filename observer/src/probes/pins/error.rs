//! What keeps programs from being pinned, in words for who started them.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::probes::ProbeError;

/// Why nothing can be pinned, or what is pinned not be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// There is no such directory, or it lies on another file system.
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
        "the BPF file system is read-only at {path}: mount it writable (mount -o remount,rw {path}), in Kubernetes by a volume mount \
         without readOnly"
    )]
    ReadOnly {
        /// Where.
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
        ErrorKind::ReadOnlyFilesystem => PinError::ReadOnly { path },
        ErrorKind::PermissionDenied => PinError::NotPermitted { action, path },
        _ => PinError::Io { action, path, reason },
    }
}
