//! `sidescope observe`: the whole pipeline in one process, on one machine, over a file of Kubernetes objects.

use std::collections::{BTreeMap, HashMap};
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidescope_common::Counter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use crate::attribute::{Flow, attribute};
use crate::cgroup;
use crate::cli::{Format, Observe};
use crate::collect::{Collector, address};
use crate::input::read_inventory;
use crate::inventory::Inventory;
use crate::mesh_index::MeshIndex;
use crate::model::graph::{Graph, Unattributed};
use crate::namespaces;
use crate::output::{self, Results};
use crate::plan::{Plan, plan};
use crate::probes::{Event, ProbeError, Probes, Settings};
use crate::progress::{Progress, Snapshot};
use crate::render;
use crate::report::{Style, tree};
use crate::sources::Sources;

/// How often the edge set is swept and the network namespaces are looked at again.
const TICK: Duration = Duration::from_secs(1);
/// Records that are taken before timers and signals get a turn.
const DRAIN_LIMIT: usize = 4096;

/// Why `observe` ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something that the user gave, or the machine, does not allow it: nothing was watched.
    #[error(transparent)]
    Setup(anyhow::Error),
    /// It failed while it watched, or when it wrote the results.
    #[error(transparent)]
    Run(anyhow::Error),
}

/// Watches until the time is over or a signal comes, then writes and prints the results.
///
/// # Errors
/// See [`Failure`]. Earlier results in the output directory are whole after every error.
pub async fn run(args: &Observe) -> Result<(), Failure> {
    let setup = |err| Failure::Setup(err);
    let inventory = read_inventory(&args.inventory).map_err(|err| setup(err.into()))?;
    report_inventory(&inventory);
    let index = MeshIndex::new(&inventory.mesh);
    let cgroup = cgroup::open(args.cgroup.as_deref()).map_err(|err| setup(err.into()))?;
    let probes = Probes::attach(&cgroup.dir, &Settings::default()).map_err(|err| setup(err.into()))?;
    output::check(&args.out).map_err(|err| setup(err.into()))?;
    info!(cgroup = %cgroup.path.display(), "watching");

    let mut watch =
        Watch { probes, collector: Collector::default(), sources: Sources::default(), index: &index };
    watch.until_told(args.duration).await.map_err(Failure::Run)?;
    let graph = watch.finish().map_err(Failure::Run)?;
    let plan = plan(&graph, &inventory.mesh);
    write_results(args, &graph, &plan).map_err(Failure::Run)?;
    print_report(&graph, &plan).map_err(Failure::Run)
}

fn report_inventory(inventory: &Inventory) {
    info!(
        objects = inventory.objects,
        workloads = inventory.mesh.workloads.len(),
        pods = inventory.mesh.pods.len(),
        services = inventory.mesh.services.len(),
        "inventory read"
    );
    for (kind, count) in &inventory.skipped {
        warn!(%kind, count, "objects of a kind that is not used were skipped");
    }
    for (ignored, count) in &inventory.ignored {
        warn!(
            kind = ignored.kind(),
            count,
            consequence = ignored.consequence(),
            "objects that matter were not read"
        );
    }
}

/// What is needed while watching.
struct Watch<'m> {
    probes: Probes,
    collector: Collector,
    sources: Sources,
    index: &'m MeshIndex<'m>,
}

impl Watch<'_> {
    async fn until_told(&mut self, duration: Option<Duration>) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = Instant::now();
        // An end that lies beyond what timers can hold is as good as none.
        let end = sleep(duration.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        let mut progress = Progress::start();
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = tick.tick() => {
                    self.look_at_set()?;
                    progress.show(|| self.snapshot(started.elapsed()))?;
                }
                readable = self.probes.readable() => {
                    readable?;
                    while self.drain() == DRAIN_LIMIT {
                        tokio::task::yield_now().await;
                    }
                }
            }
        }
    }

    /// Takes records out of the ring; returns how many.
    fn drain(&mut self) -> usize {
        let collector = &mut self.collector;
        self.probes.drain(DRAIN_LIMIT, |record| match record {
            Ok(Event::Edge(event)) => collector.edge(&event),
            Ok(Event::Head(event, bytes)) => collector.head(&event, bytes),
            Ok(Event::Dns(event, bytes)) => collector.dns(&event, bytes),
            Err(_) => collector.malformed_record(),
        })
    }

    /// Edges whose event was lost, counts, and the addresses of namespaces that are not known yet.
    fn look_at_set(&mut self) -> Result<(), ProbeError> {
        self.collector.sweep(self.probes.edges()?);
        let all_known = self.collector.edges().keys().all(|key| self.sources.knows(key.netns));
        if !all_known || self.sources.is_empty() {
            self.look_at_namespaces()?;
        }
        Ok(())
    }

    fn look_at_namespaces(&mut self) -> Result<(), ProbeError> {
        let mut by_cgroup = HashMap::new();
        match namespaces::scan() {
            Ok(scan) => {
                for (netns, addresses) in scan.addresses {
                    self.sources.add(netns, addresses);
                }
                if let Some((count, reason)) = scan.failed {
                    warn!(count, %reason, "network namespaces could not be entered; their pods are told by the connections' own address");
                }
                by_cgroup = scan.by_cgroup;
            }
            Err(reason) => warn!(%reason, "network namespaces could not be looked at"),
        }
        for (source, local) in self.probes.sources()? {
            self.sources.add(source.netns, [address(local.addr)]);
        }
        if by_cgroup.is_empty() {
            return Ok(());
        }
        // Last, because a program may have left its cgroup since it connected.
        for (netns, cgroup) in self.probes.cgroups()? {
            if let (false, Some(addresses)) = (self.sources.knows(netns), by_cgroup.get(&cgroup)) {
                self.sources.add(netns, addresses.iter().copied());
            }
        }
        Ok(())
    }

    fn flows(&self) -> (Vec<Flow>, Unattributed) {
        self.sources.flows(self.index, self.collector.edges())
    }

    fn snapshot(&self, elapsed: Duration) -> Result<Snapshot, ProbeError> {
        let (flows, unattributed) = self.flows();
        let graph = attribute(self.index, &flows, &self.sources.watched(self.index));
        Ok(Snapshot {
            elapsed,
            connections: self.probes.counter(Counter::Connects)?,
            edges: self.collector.edges().len(),
            hosts: self.collector.hosts(),
            unresolved: graph.unresolved.len() + unattributed.unknown + unattributed.ambiguous,
        })
    }

    fn finish(&mut self) -> anyhow::Result<Graph> {
        while self.drain() > 0 {}
        self.collector.sweep(self.probes.edges()?);
        self.look_at_namespaces()?;
        self.collector.finish();
        let (flows, unattributed) = self.flows();
        let mut graph = attribute(self.index, &flows, &self.sources.watched(self.index));
        graph.unattributed = unattributed;
        graph.losses = self.losses()?;
        for (cause, count) in &graph.losses {
            warn!(%cause, count, "lost; the affected edges are marked in graph.json");
        }
        Ok(graph)
    }

    /// What was lost, in the kernel and here; only causes that occurred.
    fn losses(&self) -> Result<BTreeMap<String, u64>, ProbeError> {
        let mut losses: BTreeMap<String, u64> =
            self.collector.losses().iter().map(|(loss, count)| (loss.name().to_owned(), *count)).collect();
        for counter in Counter::ALL.into_iter().filter(|counter| counter.is_loss()) {
            let count = self.probes.counter(counter)?;
            if count > 0 {
                losses.insert(counter.name().to_owned(), count);
            }
        }
        Ok(losses)
    }
}

fn write_results(args: &Observe, graph: &Graph, plan: &Plan) -> anyhow::Result<()> {
    let mut graph = serde_json::to_string_pretty(graph).context("cannot write the graph as JSON")?;
    graph.push('\n');
    let mut sidecars = BTreeMap::new();
    for sidecar in &plan.sidecars {
        let (text, extension) = match args.format {
            Format::Yaml => (render::yaml(sidecar), "yaml"),
            Format::Json => (render::json(sidecar), "json"),
        };
        let text =
            text.with_context(|| format!("cannot write the Sidecar {} as text", sidecar.metadata.name))?;
        let name = format!("{}.{extension}", sidecar.metadata.name);
        sidecars.insert(PathBuf::from(sidecar.metadata.namespace.as_str()).join(name), text);
    }
    output::write(&args.out, &Results { graph, sidecars })?;
    info!(out = %args.out.display(), sidecars = plan.sidecars.len(), "results written");
    Ok(())
}

fn print_report(graph: &Graph, plan: &Plan) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout();
    let style = if stdout.is_terminal() { Style::coloured() } else { Style::plain() };
    let text = tree(graph, plan, style);
    stdout.write_all(text.as_bytes()).context("cannot print the report")
}
