//! A client, a server, and agents that watch them one after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use sidescope_tests::{Bed, Cmd, Host, Proc, wait_for};

use crate::fixture::{TESTBED, dial, port_80, sidescope};
use crate::pinned::Bpffs;

/// Emulated processors are slow.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Programs that are attached.
pub(crate) const HOOKS: usize = 6;

pub(crate) struct Scene {
    pub(crate) bed: Bed,
    pub(crate) client: Host,
    pub(crate) server: Host,
    pub(crate) bpffs: Bpffs,
}

impl Scene {
    /// The server swallows what it is sent on port 80.
    pub(crate) fn new() -> Result<Self> {
        Self::of("client", "server")
    }

    /// The same with other names, by which their cgroups are called.
    pub(crate) fn of(client: &str, server: &str) -> Result<Self> {
        let bed = Bed::new()?;
        let bpffs = Bpffs::of(&bed)?;
        let (client, server) = (bed.add_pod(client)?, bed.add_pod(server)?);
        // Refused at once and on the spot, however many there are.
        for pod in [&client, &server] {
            pod.unroute("203.0.113.0/24")?;
        }
        let sink = server.spawn(&Cmd::new(TESTBED).args(["sink", "80"]))?;
        server.wait_listening(80, &sink, SOON)?;
        Ok(Self { bed, client, server, bpffs })
    }

    /// An agent that need not come to watch.
    pub(crate) fn start(&self, more: &[&str]) -> Result<Agent> {
        self.start_on(&self.bed.pods_cgroup(), more)
    }

    pub(crate) fn start_on(&self, cgroup: &Path, more: &[&str]) -> Result<Agent> {
        let agent = Cmd::new(sidescope()?).args(["agent", "--bpffs"]).arg(self.bpffs.path());
        let agent = agent.arg("--cgroup").arg(cgroup).args(more);
        Ok(Agent { process: self.bed.spawn_on_machine(&agent)? })
    }

    /// Started by another program, which takes the command as its last arguments.
    pub(crate) fn start_as(&self, by: &[&str], more: &[&str]) -> Result<Agent> {
        let agent = Cmd::new(by[0]).args(&by[1..]).arg(sidescope()?).args(["agent", "--bpffs"]);
        let agent = agent.arg(self.bpffs.path()).arg("--cgroup").arg(self.bed.pods_cgroup()).args(more);
        Ok(Agent { process: self.bed.spawn_on_machine(&agent)? })
    }

    /// One that may not enter network namespaces, and so cannot list the connections that are open.
    pub(crate) fn start_without_listing(&self, more: &[&str]) -> Result<Agent> {
        let rights = "-all,+bpf,+perfmon,+net_admin,+sys_resource";
        self.start_as(&["setpriv", "--bounding-set", rights, "--"], more)
    }

    /// An agent that watches.
    pub(crate) fn agent(&self, more: &[&str]) -> Result<Agent> {
        let agent = self.start(more)?;
        agent.process.wait_for_log(" watching ", SOON)?;
        Ok(agent)
    }

    /// A purge, whatever comes of it.
    pub(crate) fn purge(&self) -> Result<(Option<i32>, String)> {
        self.purge_in(self.bpffs.path())
    }

    pub(crate) fn purge_in(&self, bpffs: &Path) -> Result<(Option<i32>, String)> {
        let purge = Cmd::new(sidescope()?).args(["agent", "--purge", "--bpffs"]).arg(bpffs);
        let process = self.bed.spawn_on_machine(&purge)?;
        Ok((process.wait(SOON)?.code(), process.log()?))
    }

    /// A connect that comes to nothing, to a destination of its own.
    pub(crate) fn connect(&self, number: u8) -> Result<SocketAddr> {
        self.connect_from(&self.client, number)
    }

    pub(crate) fn connect_from(&self, host: &Host, number: u8) -> Result<SocketAddr> {
        let address = Ipv4Addr::new(203, 0, 113, number);
        assert_eq!(dial(host, "blocking", address)?, "EHOSTUNREACH");
        Ok(port_80(address))
    }

    /// A connection to the server with a request for this host.
    pub(crate) fn request(&self, host: &str) -> Result<Output> {
        let cmd = Cmd::new(TESTBED).args(["send", &port_80(self.server.v4()).to_string()]);
        self.client.run(&cmd.stdin(get(host)))
    }

    /// A connection to the server with two requests, of which the second waits for something to be written to the FIFO `go` in this folder.
    pub(crate) fn requests(&self, first: &str, second: &str, folder: &Path) -> Result<Proc> {
        let first = get(first);
        let bytes = folder.join("bytes");
        fs::write(&bytes, [&first[..], &get(second)].concat())?;
        let go = folder.join("go");
        mkfifo(&go, Mode::S_IRWXU)?;
        let cmd = Cmd::new(TESTBED).args(["send", &self.server_edge().to_string()]);
        let cmd = cmd.args(["--cuts", &first.len().to_string()]).arg("--input").arg(bytes);
        let process = self.client.spawn(&cmd.arg("--pause").arg(go))?;
        process.wait_for_log("paused", SOON)?;
        Ok(process)
    }

    pub(crate) fn links(&self) -> Result<BTreeSet<u32>> {
        self.bpffs.links_on(&self.bed.pods_cgroup())
    }

    /// Waits until one layout is left, that of this agent.
    pub(crate) fn drained(&self, agent: &Agent) -> Result<PathBuf> {
        let one = wait_for("the end of other layouts", SOON, || {
            agent.process.must_run()?;
            Ok(self.bpffs.layout().ok())
        });
        one.with_context(|| agent.process.log().unwrap_or_default())
    }

    pub(crate) fn server_edge(&self) -> SocketAddr {
        port_80(self.server.v4())
    }
}

fn get(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

pub(crate) struct Agent {
    pub(crate) process: Proc,
}

impl Agent {
    pub(crate) fn lines(&self) -> Result<Vec<Value>> {
        let log = self.process.log()?;
        // The last line may be half there.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).context(line.to_owned()))
            .collect()
    }

    /// What it has printed last of each edge, by destination.
    pub(crate) fn edges(&self) -> Result<BTreeMap<SocketAddr, Value>> {
        Ok(self.edge_lines()?.into_iter().collect())
    }

    fn edge_lines(&self) -> Result<Vec<(SocketAddr, Value)>> {
        let mut edges = Vec::new();
        for line in self.lines()? {
            let Some(address) = line["address"].as_str() else { continue };
            let port = line["port"].as_u64().context("no port")?;
            edges.push((SocketAddr::new(address.parse()?, u16::try_from(port)?), line));
        }
        Ok(edges)
    }

    /// What it has printed last of losses.
    pub(crate) fn losses(&self) -> Result<Value> {
        let last = self.lines()?.into_iter().rev().find_map(|line| line.get("losses").cloned());
        Ok(last.unwrap_or_default())
    }

    /// Waits until its losses are these.
    pub(crate) fn tells_losses(&self, wanted: &Value) -> Result<()> {
        let told = wait_for("the losses", SOON, || {
            self.process.must_run()?;
            Ok((self.losses()? == *wanted).then_some(()))
        });
        told.with_context(|| format!("{wanted}; it says: {}", self.process.log().unwrap_or_default()))
    }

    /// Whether each of its lines adds to the earlier ones of the same edge, of which it was seen to connect.
    pub(crate) fn never_takes_back(&self, edges: &[SocketAddr]) -> Result<()> {
        let mut told: BTreeMap<SocketAddr, BTreeSet<String>> = BTreeMap::new();
        for (edge, line) in self.edge_lines()? {
            anyhow::ensure!(!edges.contains(&edge) || line.get("existing").is_none(), "{line}");
            let mut now = BTreeSet::new();
            for key in ["hosts", "names"] {
                now.extend(line[key].as_array().into_iter().flatten().map(|name| format!("{key} {name}")));
            }
            now.extend(line.get("hostUnknown").map(|_| "unknown".to_owned()));
            let before = told.insert(edge, now.clone()).unwrap_or_default();
            anyhow::ensure!(before.is_subset(&now), "{line} takes back some of {before:?}");
        }
        Ok(())
    }

    /// Waits until it has told all of these edges.
    pub(crate) fn tells(&self, wanted: &[SocketAddr]) -> Result<()> {
        let told = wait_for("the edges", SOON, || {
            self.process.must_run()?;
            let edges = self.edges()?;
            Ok(wanted.iter().all(|wanted| edges.contains_key(wanted)).then_some(()))
        });
        told.with_context(|| format!("of {wanted:?}; it says: {}", self.process.log().unwrap_or_default()))
    }

    /// Waits until it has told this host of an edge.
    pub(crate) fn tells_host(&self, edge: SocketAddr, host: &str) -> Result<()> {
        let told = wait_for("the host", SOON, || {
            self.process.must_run()?;
            Ok(self.has_host(edge, host)?.then_some(()))
        });
        told.with_context(|| format!("{host}; it says: {}", self.process.log().unwrap_or_default()))
    }

    pub(crate) fn has_host(&self, edge: SocketAddr, host: &str) -> Result<bool> {
        let edges = self.edges()?;
        let hosts = edges.get(&edge).and_then(|edge| edge["hosts"].as_array());
        Ok(hosts.is_some_and(|hosts| hosts.iter().any(|known| known == host)))
    }

    /// Ends it as a supervisor does, within the time that it has.
    pub(crate) fn terminate(&self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.success(Duration::from_secs(5))
    }
}
