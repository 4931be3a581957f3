//! `sidescope observe`: the whole pipeline in one process, on one machine, over a file of Kubernetes objects.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidescope_common::Counter;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::attribute::{Flow, attribute};
use crate::cgroup;
use crate::cli::{Format, Observe};
use crate::input::read_inventory;
use crate::inventory::Inventory;
use crate::mesh_index::MeshIndex;
use crate::model::graph::{Graph, Unattributed};
use crate::model::names::WorkloadRef;
use crate::older::Older;
use crate::output::{self, Results};
use crate::plan::{Plan, propose};
use crate::probes::{ProbeError, Probes, Settings};
use crate::progress::{Progress, Snapshot};
use crate::render;
use crate::report::{Style, remedy, tree};
use crate::scan::By;
use crate::watch::{Failure, Step, Stop, Watch};

/// How long the last scan may take before the results are written without it.
const LAST_SCAN: Duration = Duration::from_secs(5);

/// Watches until the time is over or a signal comes, then writes and prints the results.
///
/// # Errors
/// See [`Failure`]. Earlier results in the output directory are whole after every error.
pub async fn run(args: &Observe) -> Result<(), Failure> {
    let setup = |err| Failure::Setup(err);
    let inventory = read_inventory(&args.inventory).map_err(|err| setup(err.into()))?;
    report_inventory(&inventory);
    let index = MeshIndex::new(&inventory.mesh);
    let cgroup = cgroup::open(args.kernel.cgroup.as_deref()).map_err(|err| setup(err.into()))?;
    // Before anybody is told that they may signal.
    let mut stop = Stop::new().map_err(Failure::Setup)?;
    let settings =
        Settings { edges: args.kernel.edges, ring_bytes: args.kernel.ring_bytes, ..Settings::default() };
    let probes = Probes::attach(&cgroup.dir, &settings).map_err(|err| setup(err.into()))?;
    output::check(&args.out).map_err(|err| setup(err.into()))?;
    info!(cgroup = %cgroup.path.display(), "watching");
    cgroup.warn_if_empty();

    let watch = Watch::new(probes, &settings, cgroup.path, Older::default(), By::ThisProcess);
    let mut observing = Observing { watch, index: &index };
    observing.until_told(&mut stop, args.duration).await.map_err(Failure::Run)?;
    let graph = observing.finish().await.map_err(Failure::Run)?;
    let plan = propose(&graph, &inventory.mesh);
    let written = write_results(args, &graph, &plan);
    // What was learnt in hours is shown even where it cannot be written.
    print_report(&graph, &plan).map_err(Failure::Run)?;
    written.map_err(Failure::Run)
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
}

/// The watch, and what its edges lead to.
struct Observing<'m> {
    watch: Watch,
    index: &'m MeshIndex<'m>,
}

impl Observing<'_> {
    async fn until_told(&mut self, stop: &mut Stop, duration: Option<Duration>) -> anyhow::Result<()> {
        let started = Instant::now();
        // An end that lies beyond what timers can hold is as good as none.
        let end = sleep(duration.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        let mut progress = Progress::start();
        loop {
            tokio::select! {
                () = &mut end => return Ok(()),
                () = stop.told() => return Ok(()),
                step = self.watch.step() => if step? == Step::Tick {
                    progress.show(|| self.snapshot(started.elapsed()))?;
                },
            }
        }
    }

    fn flows(&self) -> (Vec<Flow>, Unattributed) {
        self.watch.sources.flows(self.index, self.watch.collector.edges())
    }

    fn watched(&self) -> BTreeMap<WorkloadRef, usize> {
        self.watch.sources.watched(self.index, self.watch.collector.edges())
    }

    fn snapshot(&self, elapsed: Duration) -> Result<Snapshot, ProbeError> {
        let (flows, unattributed) = self.flows();
        let graph = attribute(self.index, &flows, &self.watched());
        Ok(Snapshot {
            elapsed,
            connections: self.watch.probes.counter(Counter::Connects)?,
            edges: self.watch.collector.edges().len(),
            hosts: self.watch.collector.hosts(),
            unresolved: graph.unresolved.len() + unattributed.unknown + unattributed.ambiguous,
        })
    }

    async fn finish(&mut self) -> anyhow::Result<Graph> {
        self.watch.probes.detach();
        self.watch.take_all()?;
        match timeout(LAST_SCAN, self.watch.last_scan()).await {
            Ok(result) => result?,
            Err(_) => warn!("network namespaces could not be looked at in time"),
        }
        self.watch.collector.finish();
        let (flows, unattributed) = self.flows();
        let mut graph = attribute(self.index, &flows, &self.watched());
        graph.unattributed = unattributed;
        graph.losses = self.watch.losses()?;
        let (mut losses, anyone) = self.watch.sources.losses(self.index, &self.watch.hit()?);
        for node in &mut graph.workloads {
            node.losses = losses.remove(&node.workload).unwrap_or_default();
            node.losses.extend(anyone.iter().cloned());
        }
        let cgroup = self.watch.cgroup.display();
        if graph.workloads.is_empty() {
            warn!(
                %cgroup,
                "no pod of the inventory was watched: name a cgroup with pods of this machine in --cgroup, or leave it out, and make the \
                 inventory of the cluster that this machine belongs to"
            );
        } else if self.watch.collector.edges().is_empty() {
            warn!(%cgroup, "no connection of a workload was seen");
        }
        for (cause, count) in &graph.losses {
            let remedy = remedy(cause);
            warn!(
                %cause, count, remedy,
                "not all could be seen: graph.json counts it, and marks the workloads and edges that it has hit"
            );
        }
        Ok(graph)
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
