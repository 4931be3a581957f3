//! What the bench measures on: one namespace with nothing but its loopback, a server and a load generator in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidescope::collect::Collector;
use sidescope::probes::{Event, Malformed, Probes};
use sidescope_common::{EdgeKey, EdgeState, names};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixListener;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::load::{ACCEPT, KEEP, SINK, Work, destination, pin};
use super::wire::Form;
use crate::bed::{Bed, Host, Proc};
use crate::cmd::Cmd;
use crate::inventory::{self, Deployment};
use crate::usage;
use crate::wait::wait_for;

/// Patience with what takes about a second on an idle machine.
const SOON: Duration = Duration::from_secs(60);
/// The most that a single order may take.
const ORDER: Duration = Duration::from_secs(120);

/// The name of the one workload.
const POD: &str = "bench";

/// A bed with one pod, and the load generator in it.
pub(super) struct Rig {
    bed: Bed,
    pod: Host,
    /// The pods' cgroup, open.
    pub(super) cgroup: File,
    lines: Lines<BufReader<OwnedReadHalf>>,
    orders: OwnedWriteHalf,
    _folder: TempDir,
}

impl Rig {
    /// Makes it. The server and the generator share the last CPU, everything else stays off it.
    pub(super) async fn new(testbed: &Path) -> Result<Self> {
        let cpus = thread::available_parallelism()?.get();
        ensure!(cpus > 1, "the bench needs two CPUs, one for the load and one for what watches it");
        pin(0..cpus - 1)?;
        let cpu = (cpus - 1).to_string();
        let bed = Bed::without_node()?;
        let pod = bed.add_lone(POD)?;
        let server = pod.spawn(&Cmd::new(testbed).args(["bench-serve", &cpu]))?;
        pod.wait_listening(SINK, &server, SOON)?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("orders");
        let listener = UnixListener::bind(&path)?;
        let load = pod.spawn(&Cmd::new(testbed).arg("bench-load").arg(&path).arg(&cpu))?;
        let accepted = timeout(SOON, listener.accept()).await;
        load.must_run()?;
        let (stream, _) = accepted.context("the load generator does not come")??;
        let (reader, orders) = stream.into_split();
        let cgroup = File::open(bed.pods_cgroup())?;
        Ok(Self { bed, pod, cgroup, lines: BufReader::new(reader).lines(), orders, _folder: folder })
    }

    /// Has the generator do something, while nobody or an agent of its own watches.
    pub(super) async fn order(&mut self, words: &[u64]) -> Result<Vec<u64>> {
        self.send(words).await?;
        let line = timeout(ORDER, self.lines.next_line()).await.context("the load generator hangs")?;
        numbers(line?)
    }

    /// The same, while these probes are read as the agent reads them.
    pub(super) async fn order_read(
        &mut self,
        words: &[u64],
        probes: &mut Probes,
        sink: &mut Collector,
    ) -> Result<Vec<u64>> {
        self.send(words).await?;
        let end = tokio::time::sleep(ORDER);
        tokio::pin!(end);
        loop {
            tokio::select! {
                () = &mut end => anyhow::bail!("the load generator hangs"),
                line = self.lines.next_line() => return numbers(line?),
                taken = probes.next(4096, |record| take(sink, record)) => drop(taken?),
            }
        }
    }

    async fn send(&mut self, words: &[u64]) -> Result<()> {
        let words: Vec<String> = words.iter().map(u64::to_string).collect();
        Ok(self.orders.write_all(format!("{}\n", words.join(" ")).as_bytes()).await?)
    }

    /// Starts the ordinary binary on this pod and waits until it watches.
    pub(super) fn observe(&self, sidescope: &Path, services: Vec<Value>, more: &[&str]) -> Result<Observer> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("inventory.json");
        let deployment = Deployment {
            namespace: "default".to_owned(),
            name: POD.to_owned(),
            labels: vec![("app".to_owned(), POD.to_owned())],
            container: POD.to_owned(),
            port: ACCEPT,
            pods: vec![self.pod.clone()],
        };
        let mut items = vec![inventory::namespace("default", true)];
        items.extend(deployment.objects());
        items.extend(services);
        fs::write(&file, json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string())?;
        let out = folder.path().join("out");
        let cmd = Cmd::new(sidescope).args(["observe", "--inventory"]).arg(&file).arg("--out").arg(&out);
        let process =
            self.bed.spawn_on_machine(&cmd.arg("--cgroup").arg(self.bed.pods_cgroup()).args(more))?;
        process.wait_for_log("watching", SOON)?;
        Ok(Observer { process: Watcher(process), out, _folder: folder })
    }

    /// Opens so many connections, all of one edge, and keeps them.
    pub(super) fn keep(&self, testbed: &Path, count: u32) -> Result<()> {
        let keep = || {
            let files = format!("--nofile={}", count + 100);
            Cmd::new("prlimit").arg(files).arg(testbed).arg("keep")
        };
        let server = self.pod.spawn(&keep().args(["--listen", &KEEP.to_string()]))?;
        self.pod.wait_listening(KEEP, &server, SOON)?;
        let edge = format!("{}:{KEEP}", destination(0));
        let client = self.pod.spawn(&keep().args(["--each", &count.to_string(), &edge]))?;
        client.wait_for_log(&format!("{count} open\n"), ORDER)
    }

    /// Starts an agent on this pod, and waits until it has told the programs of so many connections from before it.
    pub(super) fn agent(&self, sidescope: &Path, older: usize) -> Result<Agent> {
        let bpffs = self.bed.bpffs()?;
        let cmd = Cmd::new(sidescope).args(["agent", "--bpffs"]).arg(&bpffs);
        let process = self.bed.spawn_on_machine(&cmd.arg("--cgroup").arg(self.bed.pods_cgroup()))?;
        process.wait_for_log(" watching ", SOON)?;
        let agent = Agent { process: Watcher(process), sidescope: sidescope.to_owned(), bpffs };
        let full = wait_for("the end of the first list of sockets", SOON, || {
            Ok(Some(()).filter(|()| agent.older().is_ok_and(|known| known >= older)))
        });
        full.with_context(|| format!("it knows of {:?}", agent.older()))?;
        Ok(agent)
    }

    /// Ends it, and says what could not be cleaned up.
    pub(super) fn end(self) -> Result<()> {
        self.bed.end()
    }
}

/// The order to do one work for so long.
pub(super) fn block(work: Work, time: Duration) -> [u64; 3] {
    let index = Work::ALL.iter().position(|other| *other == work).unwrap_or_default();
    [0, index as u64, time.as_millis() as u64]
}

/// The order to name so many hosts.
pub(super) fn hosts(form: Form, count: u64) -> [u64; 3] {
    let index = Form::ALL.iter().position(|other| *other == form).unwrap_or_default();
    [2, index as u64, count]
}

/// A Service with the address of a destination.
pub(super) fn service(number: u32, port_name: &str) -> Value {
    let ports = json!([{ "name": port_name, "port": SINK, "targetPort": SINK, "protocol": "TCP" }]);
    let address = destination(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": format!("s{number}"), "namespace": "default" },
        "spec": { "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports },
    })
}

/// Takes all records out of the ring.
pub(super) fn drain(probes: &mut Probes, sink: &mut Collector) {
    probes.drain(|record| take(sink, record));
}

fn take(sink: &mut Collector, record: Result<Event<'_>, Malformed>) {
    match record {
        Ok(Event::Edge(event)) => sink.edge(&event),
        Ok(Event::Head(event, bytes)) => sink.head(&event, bytes),
        Ok(Event::Dns(event, bytes)) => sink.dns(&event, bytes),
        Err(Malformed) => sink.malformed_record(),
    }
}

fn numbers(line: Option<String>) -> Result<Vec<u64>> {
    let line = line.context("the load generator has ended")?;
    line.split(' ').map(|word| word.parse().with_context(|| format!("`{line}`"))).collect()
}

/// `sidescope agent` while it watches.
pub(super) struct Agent {
    pub(super) process: Watcher,
    sidescope: PathBuf,
    bpffs: PathBuf,
}

impl Agent {
    /// Connections from before it of which the programs know.
    pub(super) fn older(&self) -> Result<usize> {
        let mut layouts = fs::read_dir(self.bpffs.join("sidescope"))?;
        let layout = layouts.next().context("nothing is pinned")??;
        let map = Map::from_map_data(MapData::from_pin(layout.path().join(names::OLDER))?)?;
        let map: HashMap<_, u64, EdgeKey> = map.try_into()?;
        Ok(map.keys().count())
    }

    /// Asks it to end, and removes what it leaves.
    pub(super) fn stop(self) -> Result<()> {
        self.process.end(Signal::SIGTERM)?;
        Cmd::new(&self.sidescope).args(["agent", "--purge", "--bpffs"]).arg(&self.bpffs).run().map(drop)
    }
}

/// `sidescope observe` while it watches.
pub(super) struct Observer {
    pub(super) process: Watcher,
    out: PathBuf,
    _folder: TempDir,
}

impl Observer {
    /// Asks it to end; its graph.
    pub(super) fn stop(self) -> Result<Value> {
        self.process.end(Signal::SIGINT)?;
        let graph = fs::read(self.out.join("graph.json"))?;
        serde_json::from_slice(&graph).context("graph.json is no JSON")
    }
}

/// What watches, and what it takes of the machine.
pub(super) struct Watcher(Proc);

impl Watcher {
    fn end(&self, signal: Signal) -> Result<()> {
        self.0.must_run()?;
        self.0.signal(signal)?;
        self.0.success(ORDER)
    }

    /// Resident memory in MiB.
    pub(super) fn rss_mib(&self) -> Result<f64> {
        usage::memory_mib(self.0.pid(), "VmRSS")
    }

    /// CPU time since its start.
    pub(super) fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.0.pid())
    }

    /// Memory of its maps in MiB as the kernel charges it: of all of them, and of the edge set.
    pub(super) fn maps_mib(&self) -> Result<(f64, f64)> {
        let (mut all, mut edges) = (Vec::new(), 0.0);
        for entry in fs::read_dir(format!("/proc/{}/fdinfo", self.0.pid()))? {
            // A descriptor may be closed while we look.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            let (Some(id), Some(bytes)) = (field(&text, "map_id:"), field(&text, "memlock:")) else {
                continue;
            };
            if all.iter().all(|(other, _)| *other != id) {
                all.push((id, bytes));
            }
            // No other map is a hash from and to so many bytes.
            let (key, value) = (size_of::<EdgeKey>() as f64, size_of::<EdgeState>() as f64);
            if [("map_type:", 1.0), ("key_size:", key), ("value_size:", value)]
                .iter()
                .all(|(name, value)| field(&text, name) == Some(*value))
            {
                edges = bytes;
            }
        }
        const MIB: f64 = 1024.0 * 1024.0;
        Ok((all.iter().map(|(_, bytes)| bytes).sum::<f64>() / MIB, edges / MIB))
    }
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}
