//! `sidescope agent`: watches one node for as long as it runs. Its programs stay in the kernel when it ends, and the next agent goes
//! on with them. What it learns it tells an aggregator, or prints it.

mod pods;
mod printing;
mod purge;
mod reporting;
mod takeover;

use std::collections::BTreeMap;
use std::mem;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tracing::{info, warn};

use crate::cgroup::{self, Cgroup};
use crate::cli::Agent;
use crate::model::names::ObjectName;
use crate::node_pods::Known;
use crate::older::Older;
use crate::probes::pins::{self, Layout, Mark, Other, PinError, Pins, Taken};
use crate::probes::{ProbeError, Probes, Settings, now_ns};
use crate::report::remedy;
use crate::scan::By;
use crate::transport::client::Config;
use crate::watch::{Failure, Step, Stop, Watch, collect};
use pods::PodWatch;
use printing::Printer;
use purge::purge;
use reporting::Reporter;
use takeover::{drain, warn_of_foreign, warn_of_kill};

/// How long to wait for another agent, which may be about to end.
const OTHER_AGENT: Duration = Duration::from_secs(10);
/// How long the end may take, of the 5 s that an agent has.
const END: Duration = Duration::from_millis(4_500);
/// How long the last scan may take of that.
const LAST_SCAN: Duration = Duration::from_secs(2);
/// How often to look whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long programs of another layout stay attached for connections that were not listed yet. A scan of 10,000 takes 2 s.
const LISTED_WITHIN: Duration = Duration::from_secs(30);

/// Watches until a signal comes, or purges.
///
/// # Errors
/// See [`Failure`]. Programs that were attached before stay attached.
pub async fn run(args: &Agent) -> Result<(), Failure> {
    if args.purge {
        return purge(&args.bpffs);
    }
    let setup = |err| Failure::Setup(err);
    let mut stop = Stop::new().map_err(Failure::Setup)?;
    let cgroup = cgroup::open(args.kernel.cgroup.as_deref()).map_err(|err| setup(err.into()))?;
    let node = pods::node(args.node.as_ref()).map_err(Failure::Setup)?;
    let settings =
        Settings { edges: args.kernel.edges, ring_bytes: args.kernel.ring_bytes, ..Settings::default() };
    let pins = tokio::select! {
        () = stop.told() => return Ok(()),
        pins = hold(&args.bpffs) => pins.map_err(|err| setup(err.into()))?,
    };
    cgroup.warn_if_empty();
    let taken = pins.take_over(&cgroup.dir, &settings).map_err(|err| setup(err.into()))?;
    let by = args.scanner.clone().unwrap_or(By::ThisProcess);
    let aggregator = args.report_to.config(now_ns);
    let mut agent = Running::start(taken, &pins, cgroup, &settings, by, aggregator).map_err(Failure::Run)?;
    if let Some(node) = node {
        agent.watch_pods(node).await;
    }
    watch(agent, &mut stop).await.map_err(Failure::Run)
}

/// Waits for the folder of pins until whoever has it has had time to end.
async fn hold(bpffs: &Path) -> Result<Pins, PinError> {
    let end = Instant::now() + OTHER_AGENT;
    let mut told = false;
    loop {
        if let Some(pins) = Pins::hold(bpffs)? {
            return Ok(pins);
        }
        if Instant::now() >= end {
            return Err(PinError::Held { path: bpffs.join(pins::FOLDER) });
        }
        if !told {
            info!(bpffs = %bpffs.display(), seconds = OTHER_AGENT.as_secs(), "another agent runs: waiting for its end");
            told = true;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// From the first edge to the last. Whatever ends it, what was read until then is reported.
async fn watch(mut agent: Running<'_>, stop: &mut Stop) -> anyhow::Result<()> {
    let watched = agent.until_told(stop).await;
    let ended = agent.end().await;
    let Err(failure) = watched else { return ended };
    if let Err(reason) = ended {
        warn!(reason = %format!("{reason:#}"), "not all that was seen could be reported before the end");
    }
    Err(failure)
}

/// Which edges are told.
#[derive(Clone, Copy)]
enum Which {
    /// Those that are not held back: see [`Watch::tellable`].
    Tellable,
    /// All: nobody comes who knows more.
    All,
}

/// Who is told.
enum Told {
    /// Whoever reads the output.
    Printed(Printer),
    /// An aggregator.
    Reported(Reporter),
}

/// An agent that watches.
struct Running<'p> {
    watch: Watch,
    pins: &'p Pins,
    layout: Layout,
    /// Other layouts, until the own programs see all that theirs do.
    others: Vec<Other>,
    adopted: bool,
    started: Instant,
    /// The next agent knows that all older connections were listed.
    listed: bool,
    told: Told,
    /// None where nobody watches them.
    node_pods: Option<PodWatch>,
    losses: BTreeMap<String, u64>,
}

impl<'p> Running<'p> {
    fn start(
        taken: Taken,
        pins: &'p Pins,
        cgroup: Cgroup,
        settings: &Settings,
        by: By,
        aggregator: Option<Config>,
    ) -> anyhow::Result<Self> {
        let Taken { mut probes, layout, adopted, others, foreign, refused } = taken;
        if let Some(reason) = refused {
            warn!(%reason, "what an agent of this version has left is not whole: programs were attached anew");
        }
        warn_of_foreign(foreign);
        note_cgroups(&mut probes, &cgroup.path)?;
        let older = match adopted {
            Some(adopted) => Older::adopted(probes.older()?, adopted.listed),
            None => Older::default(),
        };
        let killed = adopted.is_some_and(|adopted| !adopted.reported);
        layout.unmark(Mark::Reported)?;
        if killed {
            // What it had read, the programs would not tell again.
            probes.forget_hosts()?;
        }
        let mut watch = Watch::new(probes, settings, cgroup.path, older, by);
        for _ in 0..usize::from(killed) + others.iter().filter(|other| other.killed).count() {
            warn_of_kill();
            watch.collector.agent_killed();
        }
        for other in others.iter().filter(|other| other.killed) {
            // From here on it is this agent that may be killed.
            other.mark_reported()?;
        }
        let told = match aggregator {
            None => Told::Printed(Printer::default()),
            Some(aggregator) => Told::Reported(Reporter::start(aggregator, &watch.probes.times()?)),
        };
        let listed = watch.older.is_complete();
        let (adopted, losses) = (adopted.is_some(), BTreeMap::new());
        let started = Instant::now();
        Ok(Self { watch, pins, layout, others, adopted, started, listed, told, node_pods: None, losses })
    }

    /// Watches the pods of this node in Kubernetes, if it can.
    async fn watch_pods(&mut self, node: ObjectName) {
        self.node_pods = PodWatch::start(node).await;
        if self.node_pods.is_some() {
            self.watch.expect_pods();
        }
    }

    async fn until_told(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        self.take_all()?;
        let edges = self.watch.collector.edges().len();
        let (cgroup, layout) = (self.watch.cgroup.display(), &self.layout.name);
        info!(%cgroup, %layout, adopted = self.adopted, edges, "watching");
        loop {
            tokio::select! {
                () = stop.told() => return Ok(()),
                step = self.watch.step() => match step? {
                    Step::Tick => self.tick()?,
                    Step::Taken => if let Told::Reported(reporter) = &mut self.told {
                        reporter.flush(&mut self.watch)?;
                    },
                },
                Some(pods) = news_of(&mut self.node_pods) => self.watch.take_pods(pods)?,
            }
        }
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.pins.check(&self.layout)?;
        self.read_rings();
        self.drain_if_due()?;
        if !self.listed && self.watch.older.is_complete() {
            let now = now_ns();
            self.watch.probes.keep_listed(now)?;
            self.layout.mark(Mark::Listed)?;
            self.listed = true;
            if let Told::Reported(reporter) = &mut self.told {
                reporter.listed(now);
            }
        }
        self.report(Which::Tellable)?;
        self.forget()
    }

    /// Reads what other layouts have recorded. Their programs stay attached.
    fn read_rings(&mut self) {
        let collector = &mut self.watch.collector;
        for other in &self.others {
            other.read_ring(|record| collect(collector, record));
        }
    }

    /// Reads all that there is.
    fn take_all(&mut self) -> Result<(), ProbeError> {
        self.read_rings();
        let known = self.others.iter().flat_map(Other::proxies);
        self.watch.leave_out_known(known)?;
        if !self.others.is_empty() {
            self.watch.collector.elsewhere(self.others.iter().flat_map(Other::edges));
        }
        self.watch.take_all()
    }

    /// Gives other layouts up when the own programs know the connections that were open before them: until then only the others see
    /// the requests on these.
    fn drain_if_due(&mut self) -> anyhow::Result<()> {
        if self.others.is_empty() {
            return Ok(());
        }
        if !self.listed {
            if self.started.elapsed() < LISTED_WITHIN {
                return Ok(());
            }
            warn!(
                seconds = LISTED_WITHIN.as_secs(),
                "not all open connections could be listed, and the programs of another layout are taken off nevertheless: requests on \
                 connections that are not listed can be missed"
            );
            self.watch.collector.unlisted_at_change();
        }
        let mut kept = Vec::new();
        for other in &self.others {
            kept.append(&mut drain(other, &mut self.watch)?);
        }
        self.watch.leave_out_known([])?;
        self.watch.collector.elsewhere(kept);
        self.watch.take_all()?;
        // Once it is removed, nobody else can tell.
        self.report(Which::All)?;
        for other in mem::take(&mut self.others) {
            self.pins.remove(&other)?;
        }
        Ok(())
    }

    /// Forgets what was told of pods that are gone. Other layouts would only bring it back.
    fn forget(&mut self) -> anyhow::Result<()> {
        if !self.others.is_empty() {
            return Ok(());
        }
        match &mut self.told {
            Told::Printed(printer) => printer.forget(&mut self.watch),
            Told::Reported(reporter) => reporter.forget(&mut self.watch),
        }
    }

    /// Reads and reports what is left, as far as it can.
    async fn end(mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + END;
        let mut taken = self.take_all();
        if self.watch.holds_any() {
            match timeout_at((Instant::now() + LAST_SCAN).min(deadline), self.watch.last_scan()).await {
                Ok(scanned) => taken = taken.and(scanned),
                Err(_) => warn!("network namespaces could not be looked at in time"),
            }
        }
        self.watch.collector.finish();
        let reported = self.report(Which::All);
        // What another has put in the place of the programs watches nothing for this agent.
        let lasting = taken.is_ok() && self.pins.check(&self.layout).is_ok();
        let all_told = match self.told {
            Told::Printed(printer) => printer.end(&mut self.watch),
            Told::Reported(reporter) => reporter.end(&mut self.watch, lasting, deadline).await,
        };
        reported?;
        taken?;
        // Another agent's marks are its own.
        if all_told? && self.pins.holds(&self.layout)? {
            self.layout.mark(Mark::Reported)?;
            info!(
                "ended; the programs stay attached and record for the next agent (`sidescope agent --purge` removes them)"
            );
        }
        Ok(())
    }

    /// Tells what is new.
    fn report(&mut self, which: Which) -> anyhow::Result<()> {
        let losses = self.watch.losses();
        let known = losses.as_ref().map_or_else(|_| self.losses.clone(), Clone::clone);
        for cause in known.keys().filter(|cause| !self.losses.contains_key(*cause)) {
            if let Some(remedy) = remedy(cause) {
                warn!(%cause, remedy, "not all can be recorded");
            }
        }
        let are_news = known != self.losses;
        self.losses = known;
        match &mut self.told {
            Told::Printed(printer) => printer.tell(&mut self.watch, &self.losses, which)?,
            Told::Reported(reporter) => match which {
                Which::Tellable => reporter.tell(&mut self.watch)?,
                Which::All => reporter.tell_edges(&mut self.watch, which)?,
            },
        }
        if are_news {
            self.watch.probes.mark_told(&self.losses)?;
        }
        losses?;
        Ok(())
    }
}

/// What is new of the pods; waits for ever where nobody watches them.
async fn news_of(pods: &mut Option<PodWatch>) -> Known {
    match pods {
        Some(pods) => pods.next().await,
        None => std::future::pending().await,
    }
}

/// Keeps which cgroups there were when the programs were attached, for all agents that go on with these.
fn note_cgroups(probes: &mut Probes, cgroup: &Path) -> anyhow::Result<()> {
    if probes.times()?.newest_cgroup == u64::MAX
        // Where they cannot be listed, it may have been any.
        && let Ok(pods) = cgroup::of_pods(cgroup)
    {
        probes.keep_newest_cgroup(pods.into_values().max().unwrap_or(0))?;
    }
    Ok(())
}
