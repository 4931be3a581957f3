//! The command line.

mod report_to;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sidescope_common::{DEFAULT_EDGES, DEFAULT_RING_BYTES};

use crate::model::names::{Namespace, ObjectName};
use crate::scan::By;
use crate::scanner::Client;
pub use report_to::ReportTo;

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
    /// Watch this machine's workloads for as long as it runs, and record what they connect to even while it does not.
    ///
    /// Reports to an aggregator with `--aggregator`. Without it this prints JSON lines: one for each edge (network namespace, user, destination) that is new or has changed, once a second, and the
    /// losses by cause when they change: those since the last such line of the agent before it. Kernel programs and maps are pinned in a BPF file system: they stay when this ends, by SIGTERM,
    /// SIGINT or otherwise, and the next agent goes on with them. `--purge` removes them.
    ///
    /// Needs root, Linux 5.10 or later, a cgroup2 hierarchy and a BPF file system.
    Agent(Agent),
    /// Collect what the agents of a cluster tell, and keep it in a WorkloadDependencies object for each workload.
    ///
    /// Watches the whole cluster, to tell whose an address was when something connected to it. Of several replicas one leads; the others
    /// are ready to take over. Needs the custom resource of deploy/crds. Reaches the API server as a pod does, or by KUBECONFIG.
    Aggregator(Box<Aggregator>),
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
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Format of the Sidecars
    #[arg(long, value_enum, default_value_t = Format::Yaml)]
    pub format: Format,
    /// What to watch, and with which sizes
    #[command(flatten)]
    pub kernel: Kernel,
}

/// The kernel side, as far as a user can set it.
#[derive(Debug, Args)]
pub struct Kernel {
    /// Cgroup (of a cgroup2 hierarchy) whose processes to watch; without it the kubelet's kubepods or kubepods.slice, else all
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Most edges (network namespace, user, destination) that the kernel keeps; 136 bytes of memory each
    #[arg(long, value_name = "N", default_value_t = DEFAULT_EDGES, value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    pub edges: u32,
    /// Bytes of the ring buffer in which the kernel reports: a power of two, and whole pages
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RING_BYTES, value_parser = ring_bytes)]
    pub ring_bytes: u32,
}

/// Options of `sidescope agent`.
#[derive(Debug, Args)]
pub struct Agent {
    /// BPF file system in which programs and maps are kept from one agent to the next; its folder there must be this user's alone
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Instead of watching, remove all that agents have left in the kernel: programs, maps and folders, of every version. Where there is
    /// no BPF file system, that is an error: it may be elsewhere
    #[arg(long, conflicts_with_all = ["cgroup", "edges", "ring_bytes", "scanner", "aggregator", "node"])]
    pub purge: bool,
    /// Who enters the network namespaces of the pods, which takes SYS_ADMIN and SYS_PTRACE: the `sidescope scanner` at this socket, or
    /// with `none` nobody (connections from before the programs are missing then, pods are known by their connections' own
    /// address, and what the proxy of a pod with `hostUsers: false` does counts as its workload's); without it this process
    #[arg(long, value_name = "PATH|none", value_parser = by)]
    pub scanner: Option<By>,
    /// Whom to tell what is learnt
    #[command(flatten)]
    pub report_to: ReportTo,
    /// Name of this node in Kubernetes: watch its pods there, to know which are on the host's network and which user their proxy is where
    /// that is not 1337. Without it the variable NODE_NAME tells; if nothing does, pods are not watched
    #[arg(long, value_name = "NAME")]
    pub node: Option<ObjectName>,
    /// What to watch, and with which sizes
    #[command(flatten)]
    pub kernel: Kernel,
}

/// Options of `sidescope aggregator`.
#[derive(Debug, Args)]
pub struct Aggregator {
    /// Where agents connect to
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:15443")]
    pub listen: SocketAddr,
    /// Namespace of the aggregator and of its agents; without it POD_NAMESPACE, else that of its service account, else that of the
    /// kubeconfig
    #[arg(long, value_name = "NAME")]
    pub namespace: Option<Namespace>,
    /// Name of this replica, which no other has; without it POD_NAME, else the name of the machine
    #[arg(long, value_name = "NAME")]
    pub pod_name: Option<ObjectName>,
    /// Address at which agents reach this replica; without it POD_IP, else that of --listen
    #[arg(long, value_name = "ADDRESS")]
    pub pod_ip: Option<IpAddr>,
    /// Name of the Service under which agents look for it. Its Lease is named so, too, its Secret and ConfigMap after it: NAME-tls holds
    /// certificates, and NAME-ca the authorities that agents are to trust
    #[arg(long, value_name = "NAME", default_value = "sidescope-aggregator")]
    pub service: ObjectName,
    /// Service account of the agents, in the same namespace
    #[arg(long, value_name = "NAME", default_value = "sidescope-agent")]
    pub agent_service_account: ObjectName,
    /// File with a certificate for the Service's DNS name, and those between it and its authority, in PEM form; without it the
    /// aggregator makes its own
    #[arg(long, value_name = "FILE", requires = "key")]
    pub certificate: Option<PathBuf>,
    /// File with the certificate's key
    #[arg(long, value_name = "FILE", requires = "certificate")]
    pub key: Option<PathBuf>,
    /// How long the record of a workload is kept that is gone
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    pub retention: Duration,
    /// Most services that are recorded of a workload; one that calls more is marked as broad
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=200))]
    pub max_destinations: u16,
}

/// A socket of this name can be given as `./none`.
fn by(text: &str) -> Result<By, String> {
    match text {
        "" => Err("expected the path of a scanner's socket, or none".to_owned()),
        "none" => Ok(By::Nobody),
        path => Ok(By::Scanner(Client::new(path))),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration.is_zero() => Err("nothing can be seen in no time at all".to_owned()),
        Ok(duration) => Ok(duration),
        Err(err) => Err(format!("{err}; expected a time such as 30s, 10m or 2h")),
    }
}

fn ring_bytes(text: &str) -> Result<u32, String> {
    const MOST: u32 = 1 << 30;
    let bytes: u32 = text.parse().map_err(|_| format!("expected a number up to {MOST}"))?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|page| u32::try_from(page).ok()).unwrap_or(4096);
    if bytes.is_power_of_two() && (page..=MOST).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(format!("expected a power of two from {page} (a page) to {MOST}"))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(more: &[&str]) -> Result<Observe, clap::Error> {
        let line = ["sidescope", "observe", "--inventory", "a", "--out", "b"].iter().chain(more);
        Cli::try_parse_from(line).map(|cli| match cli.command {
            Command::Observe(observe) => observe,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn sizes_of_the_maps_are_those_of_the_kernel_programs_unless_given() {
        let defaults = observe(&[]).unwrap();
        assert_eq!((defaults.kernel.edges, defaults.kernel.ring_bytes), (DEFAULT_EDGES, DEFAULT_RING_BYTES));
        let given = observe(&["--edges", "5", "--ring-bytes", "1048576"]).unwrap();
        assert_eq!((given.kernel.edges, given.kernel.ring_bytes), (5, 1 << 20));
    }

    #[test]
    fn a_time_to_watch_is_needed_and_told_with_its_unit() {
        assert_eq!(observe(&["--for", "1m30s"]).unwrap().duration, Some(Duration::from_secs(90)));
        for bad in ["0s", "30", "soon", "-1s"] {
            assert!(observe(&[&format!("--for={bad}")]).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_commands_in_the_readme_are_ones_that_it_takes() {
        let texts = [include_str!("../../README.md"), include_str!("../../docs/aggregator.md")];
        let lines = texts
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| line.strip_prefix("sudo ").unwrap_or(line).strip_prefix("sidescope "));
        let mut kinds = std::collections::BTreeSet::new();
        for line in lines {
            let words =
                line.split('#').next().unwrap_or_default().split_whitespace().filter(|word| *word != "&");
            let parsed = Cli::try_parse_from(["sidescope"].into_iter().chain(words));
            kinds.insert(match parsed.unwrap_or_else(|err| panic!("{line}: {err}")).command {
                Command::Observe(_) => "observe",
                Command::Agent(_) => "agent",
                Command::Scanner(_) => "scanner",
                Command::Aggregator(_) => "aggregator",
            });
        }
        assert_eq!(kinds.into_iter().collect::<Vec<_>>(), ["agent", "aggregator", "observe", "scanner"]);
    }

    #[test]
    fn who_scans_is_a_socket_or_nobody_or_else_the_agent() {
        let agent = |more: &[&str]| {
            let cli = Cli::try_parse_from(["sidescope", "agent"].iter().chain(more));
            cli.map(|cli| match cli.command {
                Command::Agent(agent) => agent.scanner,
                other => panic!("{other:?}"),
            })
        };
        assert!(matches!(agent(&[]), Ok(None)));
        assert!(matches!(agent(&["--scanner", "none"]), Ok(Some(By::Nobody))));
        assert!(matches!(agent(&["--scanner", "./none"]), Ok(Some(By::Scanner(_)))));
        assert!(agent(&["--scanner", ""]).is_err());
        assert!(agent(&["--purge", "--scanner", "none"]).is_err());
    }

    #[test]
    fn sizes_that_the_kernel_would_not_take_are_refused_at_once() {
        for more in [
            ["--edges", "0"],
            ["--edges", "16777217"],
            ["--ring-bytes", "0"],
            ["--ring-bytes", "2048"],
            ["--ring-bytes", "5000"],
            ["--ring-bytes", "12288"],
            ["--ring-bytes", "2147483648"],
            ["--ring-bytes", "1M"],
        ] {
            assert!(observe(&more).is_err(), "{more:?}");
        }
    }
}
