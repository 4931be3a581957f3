//! `sidescope agent`: watches one node for as long as it runs. Its programs stay in the kernel when it ends, and the next agent goes
//! on with them. Until there is an aggregator to report to, it prints what it learns.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};
use std::mem;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use sidescope_common::{EdgeKey, EdgeState};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::cgroup::{self, Cgroup};
use crate::changes::{Change, Changes};
use crate::cli::Agent;
use crate::losses::Hit;
use crate::older::Older;
use crate::probes::pins::{self, Layout, Mark, Other, PinError, Pins, Taken};
use crate::probes::{ProbeError, Settings};
use crate::report::remedy;
use crate::scan::By;
use crate::watch::{Failure, Step, Stop, Watch, collect};

/// How long to wait for another agent, which may be about to end.
const OTHER_AGENT: Duration = Duration::from_secs(10);
/// How long the last scan may take, of the time that an agent has to end.
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
    let settings =
        Settings { edges: args.kernel.edges, ring_bytes: args.kernel.ring_bytes, ..Settings::default() };
    let pins = tokio::select! {
        () = stop.told() => return Ok(()),
        pins = hold(&args.bpffs) => pins.map_err(|err| setup(err.into()))?,
    };
    cgroup.warn_if_empty();
    let taken = pins.take_over(&cgroup.dir, &settings).map_err(|err| setup(err.into()))?;
    let by = args.scanner.clone().unwrap_or(By::ThisProcess);
    watch(taken, &pins, cgroup, &settings, by, &mut stop).await.map_err(Failure::Run)
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
async fn watch(
    taken: Taken,
    pins: &Pins,
    cgroup: Cgroup,
    settings: &Settings,
    by: By,
    stop: &mut Stop,
) -> anyhow::Result<()> {
    let mut agent = Running::start(taken, pins, cgroup, settings, by)?;
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
    changes: Changes,
    losses: BTreeMap<String, u64>,
    hit: Hit,
    /// Something could not be printed, and will not be: it counts as told.
    unprinted: bool,
}

impl<'p> Running<'p> {
    fn start(
        taken: Taken,
        pins: &'p Pins,
        cgroup: Cgroup,
        settings: &Settings,
        by: By,
    ) -> anyhow::Result<Self> {
        let Taken { mut probes, layout, adopted, others, foreign, refused } = taken;
        if let Some(reason) = refused {
            warn!(%reason, "what an agent of this version has left is not whole: programs were attached anew");
        }
        warn_of_foreign(foreign);
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
        let listed = watch.older.is_complete();
        let adopted = adopted.is_some();
        let (changes, losses) = (Changes::default(), BTreeMap::new());
        let started = Instant::now();
        Ok(Self {
            watch,
            pins,
            layout,
            others,
            adopted,
            started,
            listed,
            changes,
            losses,
            hit: Hit::default(),
            unprinted: false,
        })
    }

    async fn until_told(&mut self, stop: &mut Stop) -> anyhow::Result<()> {
        self.take_all()?;
        let edges = self.watch.collector.edges().len();
        let (cgroup, layout) = (self.watch.cgroup.display(), &self.layout.name);
        info!(%cgroup, %layout, adopted = self.adopted, edges, "watching");
        loop {
            tokio::select! {
                () = stop.told() => return Ok(()),
                step = self.watch.step() => if step? == Step::Tick {
                    self.tick()?;
                },
            }
        }
    }

    fn tick(&mut self) -> anyhow::Result<()> {
        self.pins.check(&self.layout)?;
        self.read_rings();
        self.drain_if_due()?;
        self.report(Which::Tellable)?;
        self.forget()?;
        if !self.listed && self.watch.older.is_complete() {
            self.layout.mark(Mark::Listed)?;
            self.listed = true;
        }
        Ok(())
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
        if self.others.is_empty() {
            let forgotten = self.watch.forget(|key, observed| self.changes.is_told(key, observed))?;
            self.changes.forget(&forgotten);
            self.changes.keep(self.watch.collector.edges());
        }
        Ok(())
    }

    /// Reads and reports what is left, as far as it can.
    async fn end(&mut self) -> anyhow::Result<()> {
        let mut taken = self.take_all();
        if self.watch.holds_any() {
            match timeout(LAST_SCAN, self.watch.last_scan()).await {
                Ok(scanned) => taken = taken.and(scanned),
                Err(_) => warn!("network namespaces could not be looked at in time"),
            }
        }
        self.watch.collector.finish();
        self.report(Which::All)?;
        taken?;
        // Another agent's marks are its own.
        if !self.unprinted && self.pins.holds(&self.layout)? {
            self.layout.mark(Mark::Reported)?;
            info!(
                "ended; the programs stay attached and record for the next agent (`sidescope agent --purge` removes them)"
            );
        }
        Ok(())
    }

    /// Prints what is new.
    fn report(&mut self, which: Which) -> anyhow::Result<()> {
        let losses = self.watch.losses();
        if let Ok(losses) = &losses {
            self.losses.clone_from(losses);
        }
        let hit = self.watch.hit();
        if let Ok(hit) = &hit {
            self.hit.clone_from(hit);
        }
        for cause in self.losses.keys().filter(|cause| !self.changes.has_told_loss(cause)) {
            if let Some(remedy) = remedy(cause) {
                warn!(%cause, remedy, "not all can be recorded");
            }
        }
        let changes = match which {
            Which::Tellable => self.changes.tell(self.watch.tellable(), &self.hit, &self.losses),
            Which::All => self.changes.tell(self.watch.collector.edges(), &self.hit, &self.losses),
        };
        if !changes.is_empty() {
            debug!(lines = changes.len(), "reporting");
            let printed = print(&changes).context("cannot print what was seen");
            self.unprinted |= printed.is_err();
            printed?;
            self.watch.probes.mark_told(&self.losses)?;
        }
        losses?;
        hit?;
        Ok(())
    }
}

fn print(changes: &[Change<'_>]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for change in changes {
        serde_json::to_writer(&mut out, change)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Takes over what another layout knew, and takes its programs off. Returns the edges that did not come into the own set.
fn drain(other: &Other, watch: &mut Watch) -> Result<Vec<(EdgeKey, EdgeState)>, PinError> {
    let collector = &mut watch.collector;
    let drained = other.drain(&mut watch.probes, |record| collect(collector, record))?;
    for _ in 0..drained.proxies_beyond {
        collector.too_many_proxies(None);
    }
    info!(
        layout = other.name,
        moved = drained.moved,
        kept = drained.kept.len(),
        "took over from another layout"
    );
    if let Some(reason) = drained.lost {
        collector.unreadable_layout();
        warn!(
            layout = other.name,
            %reason,
            "edges of an agent of another version cannot be read and are lost, as far as it had not reported them; those of connections \
             that are open come again by themselves. Before the next such change, let the agent end by SIGTERM: it then reports all"
        );
    }
    Ok(drained.kept)
}

fn warn_of_kill() {
    warn!(
        "the agent before this one has not reported to its end (killed, or it failed): host names that it had read are known again \
         with the next request that names them"
    );
}

fn warn_of_foreign(foreign: io::Result<Vec<u32>>) {
    match foreign {
        Ok(programs) if programs.is_empty() => {}
        Ok(programs) => warn!(
            ?programs,
            "programs of Sidescope that this agent does not keep are attached to the cgroup: another agent (with another --bpffs) or \
             `sidescope observe` runs, or an agent has left them (`sidescope agent --purge --bpffs` with its path removes them). Both see \
             the same connections, and each costs as much"
        ),
        Err(reason) => debug!(%reason, "the programs of other agents cannot be looked for"),
    }
}

fn purge(bpffs: &Path) -> Result<(), Failure> {
    let elsewhere = |what, path: &Path| {
        Failure::Setup(anyhow!(
            "nothing was removed: there is no {what} {}, so no agent keeps anything there; name the place that the agent was given \
             (--bpffs)",
            path.display()
        ))
    };
    let removed = pins::purge(bpffs).map_err(|err| match err {
        err @ PinError::Io { .. } => Failure::Run(err.into()),
        // It may be kept elsewhere: to say that nothing is left would not be true.
        PinError::NoBpffs { path } => elsewhere("BPF file system at", &path),
        PinError::NoDirectory { path } => elsewhere("directory", &path),
        err => Failure::Setup(err.into()),
    })?;
    let mut text = String::new();
    for pins::Removed { dir, links, maps } in &removed {
        text += &format!("removed {}: {links} attached programs, {maps} maps\n", dir.display());
    }
    if removed.is_empty() {
        text = format!("nothing to remove in {}\n", bpffs.display());
    }
    io::stdout().write_all(text.as_bytes()).context("cannot print what was removed").map_err(Failure::Run)
}
