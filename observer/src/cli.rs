//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Watches what the workloads of an Istio mesh connect to, and writes their Sidecar resources.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch this machine's workloads and write one Sidecar for each of them, without a cluster.
    ///
    /// Needs root, Linux 5.10 or later and a cgroup2 hierarchy. Changes nothing on the machine: when it ends, the kernel
    /// programs are gone.
    Observe(Observe),
    /// List the addresses and open connections of this machine's pods for an agent that may not enter their network namespaces.
    ///
    /// Needs the capabilities SYS_ADMIN and SYS_PTRACE, gives up all others, and in a container the host's process namespace
    /// (hostPID). Ends on SIGTERM or SIGINT and removes its socket.
    Scanner(Scanner),
}

/// Options of `sidescope observe`.
#[derive(Debug, Args)]
pub struct Observe {
    /// Kubernetes objects of the mesh: a file, or a directory with .yaml, .yml and .json files, as `kubectl get ... -A -o yaml`
    /// prints them
    #[arg(long, value_name = "FILE_OR_DIR")]
    pub inventory: PathBuf,
    /// Directory for sidecars/NAMESPACE/NAME.yaml and graph.json; both are replaced as a whole
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// How long to watch, for example 30s or 2h; without it until SIGINT or SIGTERM
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub duration: Option<Duration>,
    /// Format of the Sidecars
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    pub format: Format,
    /// Cgroup (of a cgroup2 hierarchy) whose processes to watch; without it the kubelet's kubepods or kubepods.slice, else all
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
}

/// Options of `sidescope scanner`.
#[derive(Debug, Args)]
pub struct Scanner {
    /// Unix socket to listen at; only its owner may connect
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Cgroup (of a cgroup2 hierarchy) whose processes' connections to list; without it the kubelet's kubepods or
    /// kubepods.slice, else all
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
}

/// Format of the Sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// As people write them.
    Yaml,
    /// One object per file.
    Json,
}
