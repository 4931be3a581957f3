//! What keeps the kernel programs from running, in words for who started them.

use std::io;

use aya::EbpfError;
use aya::programs::ProgramError;

use super::MIN_KERNEL;

/// Why the programs cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel is older than [`MIN_KERNEL`].
    #[error(
        "this kernel is {found}, Sidescope needs {}.{} or later: its hooks lack the network namespace cookie and the socket \
         storage that the programs use",
        MIN_KERNEL.0, MIN_KERNEL.1
    )]
    KernelTooOld {
        /// Version of the running kernel.
        found: String,
    },
    /// The kernel refused for want of rights.
    #[error(
        "the kernel does not let this user {action}: run as root, or with the capabilities BPF and NET_ADMIN"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
    },
    /// The programs and maps could not be created.
    #[error("cannot create the kernel programs and maps")]
    Create(#[source] Box<EbpfError>),
    /// A program was refused, by the verifier for instance.
    #[error("kernel {kernel} refused the program {program}; please report this with the text below")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// Version of the running kernel.
        kernel: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach the program {program} to the cgroup")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// The kernel does not tell of a program that is loaded.
    #[error("cannot read what the kernel knows of the program {program}")]
    Info {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot access the map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A map or link could not be kept in the BPF file system.
    #[error("cannot pin {name}")]
    Pin {
        /// Name of the map, or of the program that the link holds.
        name: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The event loop cannot wait for the ring buffer.
    #[error("cannot wait for the ring buffer")]
    Wait(#[source] io::Error),
}
