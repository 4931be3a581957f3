//! `sidescope observe`: the whole pipeline in one process, on one machine, over a file of Kubernetes objects.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidescope_common::Counter;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use crate::attribute::{Flow, attribute};
use crate::cgroup;
use crate::cli::{Format, Observe};
use crate::collect::{Collector, address};
use crate::input::read_inventory;
use crate::inventory::Inventory;
use crate::mesh_index::MeshIndex;
use crate::model::graph::{Graph, Unattributed};
use crate::namespaces::{Part, Summary};
use crate::older::Older;
use crate::output::{self, Results};
use crate::plan::{Plan, plan};
use crate::probes::{Event, Malformed, ProbeError, Probes, Settings};
use crate::progress::{Progress, Snapshot};
use crate::render;
use crate::report::{Style, tree};
use crate::scan::{Found, ScanError, What};
use crate::sockets::Socket;
use crate::sources::Sources;

mod scans;

use scans::Scans;

/// How often it is looked whether events were lost, or namespaces came that are not known.
const TICK: Duration = Duration::from_secs(1);
/// How often the whole edge set is read, even if no event was lost.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// How long the last scan may take before the results are written without it.
const LAST_SCAN: Duration = Duration::from_secs(5);
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
    // Before anybody is told that they may signal.
    let mut stop = Stop::new().map_err(Failure::Setup)?;
    let settings = Settings { edges: args.edges, ring_bytes: args.ring_bytes, ..Settings::default() };
    let probes = Probes::attach(&cgroup.dir, &settings).map_err(|err| setup(err.into()))?;
    output::check(&args.out).map_err(|err| setup(err.into()))?;
    info!(cgroup = %cgroup.path.display(), "watching");

    let mut watch = Watch {
        probes,
        proxy_uids: settings.proxy_uids,
        scans: Scans::new(cgroup.path.clone(), Instant::now()),
        cgroup: cgroup.path,
        collector: Collector::default(),
        sources: Sources::default(),
        older: Older::default(),
        unannounced: 0,
        swept: Instant::now(),
        index: &index,
    };
    watch.until_told(&mut stop, args.duration).await.map_err(Failure::Run)?;
    let graph = watch.finish().await.map_err(Failure::Run)?;
    let plan = plan(&graph, &inventory.mesh);
    let written = write_results(args, &graph, &plan);
    // What was learnt in hours is shown even where it cannot be written.
    print_report(&graph, &plan).map_err(Failure::Run)?;
    written.map_err(Failure::Run)
}

/// The signals that end the watch.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
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
    proxy_uids: Vec<u32>,
    scans: Scans,
    cgroup: PathBuf,
    collector: Collector,
    sources: Sources,
    older: Older,
    /// Edges without an event at the last sweep.
    unannounced: u64,
    /// When the last sweep was.
    swept: Instant,
    index: &'m MeshIndex<'m>,
}

impl Watch<'_> {
    async fn until_told(&mut self, stop: &mut Stop, duration: Option<Duration>) -> anyhow::Result<()> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let started = Instant::now();
        // An end that lies beyond what timers can hold is as good as none.
        let end = sleep(duration.unwrap_or(Duration::MAX));
        tokio::pin!(end);
        let mut progress = Progress::start();
        loop {
            let collector = &mut self.collector;
            tokio::select! {
                () = &mut end => return Ok(()),
                () = stop.told() => return Ok(()),
                _ = tick.tick() => {
                    anyhow::ensure!(
                        self.cgroup.exists(),
                        "the cgroup {} was removed while it was watched: nothing more can be seen there",
                        self.cgroup.display()
                    );
                    self.look_at_set()?;
                    progress.show(|| self.snapshot(started.elapsed()))?;
                }
                (what, found) = self.scans.next() => self.take(what, found)?,
                taken = self.probes.next(DRAIN_LIMIT, |record| collect(collector, record)) => drop(taken?),
            }
        }
    }

    /// Edges whose event was lost, counts, and what is not known yet of the namespaces.
    fn look_at_set(&mut self) -> Result<(), ProbeError> {
        // The whole set costs two calls an edge, so only where an event was lost, and now and then for names of addresses that
        // changed.
        let unannounced = self.probes.counter(Counter::EdgeRingFull)?;
        if self.unannounced != unannounced || self.swept.elapsed() >= SWEEP_EVERY {
            self.unannounced = unannounced;
            self.swept = Instant::now();
            self.collector.sweep(self.probes.edges()?);
        }
        let namespaces = self.collector.edges().keys().map(|key| key.netns);
        let news = self.scans.are_news(namespaces.filter(|netns| self.sources.lacks(*netns)));
        self.scan_if_due(news || self.sources.is_empty());
        Ok(())
    }

    fn scan_if_due(&mut self, addresses: bool) {
        if let Err(reason) = self.scans.start_if_due(addresses, Instant::now()) {
            warn!(%reason, "network namespaces could not be looked at");
        }
    }

    /// Takes over what a scan found.
    fn take(&mut self, what: What, found: Result<Found, ScanError>) -> Result<(), ProbeError> {
        match found {
            Ok(Found::Part(part)) => self.take_part(part)?,
            Ok(Found::End(summary)) => {
                self.collector.unlisted(summary.sockets_beyond);
                if what == What::Sockets {
                    let closed = self.older.end(summary.failed == 0 && summary.sockets_beyond == 0);
                    self.probes.forget_older(&closed, self.older.any())?;
                }
                report_scan(&summary);
            }
            Err(reason) => warn!(%reason, "network namespaces could not be looked at"),
        }
        if !self.scans.under_way() {
            for (source, local) in self.probes.sources()? {
                self.sources.add(source.netns, [address(local.addr)]);
            }
            // Last, because a program may have left its cgroup since it connected.
            if self.sources.has_homes() {
                for (netns, cgroup) in self.probes.cgroups()? {
                    self.sources.add_by_home(netns, cgroup);
                }
            }
        }
        Ok(())
    }

    /// Takes over a connection that is open now.
    fn take_existing(&mut self, netns: u64, socket: &Socket) -> Result<(), ProbeError> {
        if self.proxy_uids.contains(&socket.uid) {
            return Ok(());
        }
        let Some(edge) = self.collector.existing(netns, socket) else { return Ok(()) };
        if !self.older.is_news(netns, socket.cookie) {
            return Ok(());
        }
        if self.probes.add_older(socket.cookie, &edge)? {
            self.older.told(socket.cookie);
        } else {
            self.collector.unwatched(&edge);
        }
        Ok(())
    }

    fn take_part(&mut self, part: Part) -> Result<(), ProbeError> {
        let cookie = part.cookie();
        let Part { netns, addresses, sockets, cgroups, users } = part;
        for cgroup in cgroups {
            self.sources.add_home(cgroup, netns);
        }
        self.sources.add(netns, addresses);
        self.older.namespace(netns);
        self.sources.look_at(netns, users.as_ref());
        // Before the sockets, some of which are the proxy's.
        for uid in users.unwrap_or_default().of_pod(&self.proxy_uids) {
            if self.collector.leave_out(cookie, uid) && !self.probes.add_proxy_uid(cookie, uid)? {
                self.collector.too_many_proxies();
            }
        }
        for socket in &sockets {
            self.take_existing(netns, socket)?;
        }
        Ok(())
    }

    /// Takes over all of the scan under way, if there is one.
    async fn end_scan(&mut self) -> Result<(), ProbeError> {
        while self.scans.under_way() {
            let (what, found) = self.scans.next().await;
            self.take(what, found)?;
        }
        Ok(())
    }

    /// Ends the scan under way, and looks once more for the addresses of namespaces that came late.
    async fn last_scan(&mut self) -> Result<(), ProbeError> {
        self.end_scan().await?;
        self.scan_if_due(true);
        self.end_scan().await
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

    async fn finish(&mut self) -> anyhow::Result<Graph> {
        let collector = &mut self.collector;
        self.probes.end(|record| collect(collector, record));
        self.collector.sweep(self.probes.edges()?);
        match timeout(LAST_SCAN, self.last_scan()).await {
            Ok(result) => result?,
            Err(_) => warn!("network namespaces could not be looked at in time"),
        }
        self.collector.finish();
        let (flows, unattributed) = self.flows();
        let mut graph = attribute(self.index, &flows, &self.sources.watched(self.index));
        graph.unattributed = unattributed;
        graph.losses = self.losses()?;
        if self.collector.edges().is_empty() {
            warn!(cgroup = %self.cgroup.display(), "no connection of a workload was seen");
        }
        for (cause, count) in &graph.losses {
            warn!(%cause, count, "not all could be seen: graph.json counts it, and marks the edges as far as they are known");
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

fn collect(collector: &mut Collector, record: Result<Event<'_>, Malformed>) {
    match record {
        Ok(Event::Edge(event)) => collector.edge(&event),
        Ok(Event::Head(event, bytes)) => collector.head(&event, bytes),
        Ok(Event::Dns(event, bytes)) => collector.dns(&event, bytes),
        Err(Malformed) => collector.malformed_record(),
    }
}

fn report_scan(summary: &Summary) {
    let Summary { namespaces, sockets, failed, .. } = summary;
    debug!(namespaces, sockets, "network namespaces looked at");
    if let Some(reason) = &summary.first_failure {
        warn!(
            failed,
            %reason,
            "network namespaces could not be looked at; their pods are told by the connections' own address, and connections \
             that were open before are missing"
        );
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
