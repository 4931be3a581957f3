//! Watching the kernel: what `observe` and `agent` have in common. Holds the loop; decides nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sidescope_common::Counter;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::collect::{Collector, address};
use crate::losses::Hit;
use crate::namespaces::{Part, Summary};
use crate::older::{Older, Sight};
use crate::probes::{Event, Malformed, ProbeError, Probes, Settings};
use crate::scan::{Found, ScanError, What};
use crate::sockets::Socket;
use crate::sources::Sources;

mod scans;

use scans::Scans;

/// How often it is looked whether events were lost, or namespaces came that are not known.
const TICK: Duration = Duration::from_secs(1);
/// How often the whole edge set is read, even if no event was lost.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Records that are taken before timers and signals get a turn.
const DRAIN_LIMIT: usize = 4096;

/// Why a command ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something that the user gave, or the machine, does not allow it: nothing was watched.
    #[error(transparent)]
    Setup(anyhow::Error),
    /// It failed while it watched, or when it told the results.
    #[error(transparent)]
    Run(anyhow::Error),
}

/// The signals that end the watch.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From here on these signals no longer end the process.
    ///
    /// # Errors
    /// When the system does not let it listen.
    pub fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one of them.
    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A second is over, and the edge set was looked at.
    Tick,
    /// Records or a part of a scan were taken.
    Taken,
}

/// What is needed while watching.
pub struct Watch {
    /// The kernel's side.
    pub probes: Probes,
    /// What has come from there.
    pub collector: Collector,
    /// Whose network namespaces they are.
    pub sources: Sources,
    /// Connections from before the programs.
    pub older: Older,
    /// The cgroup that is watched.
    pub cgroup: PathBuf,
    proxy_uids: Vec<u32>,
    scans: Scans,
    tick: Interval,
    /// Edges without an event at the last sweep.
    unannounced: u64,
    /// When the last sweep was.
    swept: Instant,
}

impl Watch {
    /// Goes on with programs that are attached to `cgroup`.
    pub fn new(probes: Probes, settings: &Settings, cgroup: PathBuf, older: Older) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            probes,
            collector: Collector::default(),
            sources: Sources::default(),
            older,
            proxy_uids: settings.proxy_uids.clone(),
            scans: Scans::new(cgroup.clone(), Instant::now()),
            cgroup,
            tick,
            unannounced: 0,
            swept: Instant::now(),
        }
    }

    /// Waits for what happens next, and takes it in. Nothing is lost when this is dropped while it waits.
    ///
    /// # Errors
    /// When the kernel refuses what it has to do, or when the cgroup is gone.
    pub async fn step(&mut self) -> anyhow::Result<Step> {
        let collector = &mut self.collector;
        tokio::select! {
            _ = self.tick.tick() => {
                anyhow::ensure!(
                    self.cgroup.exists(),
                    "the cgroup {} was removed while it was watched: nothing more can be seen there",
                    self.cgroup.display()
                );
                self.look_at_set()?;
                return Ok(Step::Tick);
            }
            (what, found) = self.scans.next() => self.take(what, found)?,
            taken = self.probes.next(DRAIN_LIMIT, |record| collect(collector, record)) => drop(taken?),
        }
        Ok(Step::Taken)
    }

    /// Takes all that is in the ring, and after it the whole edge set.
    ///
    /// # Errors
    /// When the kernel refuses to read the set.
    pub fn take_all(&mut self) -> Result<(), ProbeError> {
        let collector = &mut self.collector;
        self.probes.drain(|record| collect(collector, record));
        self.sweep()
    }

    fn sweep(&mut self) -> Result<(), ProbeError> {
        self.swept = Instant::now();
        self.collector.sweep(self.probes.edges()?);
        Ok(())
    }

    /// Edges whose event was lost, counts, and what is not known yet of the namespaces.
    fn look_at_set(&mut self) -> Result<(), ProbeError> {
        // The whole set costs two calls an edge, so only where an event was lost, and now and then for names of addresses that
        // changed.
        let unannounced = self.probes.counter(Counter::EdgeRingFull)?;
        if self.unannounced != unannounced || self.swept.elapsed() >= SWEEP_EVERY {
            self.unannounced = unannounced;
            self.sweep()?;
        }
        let namespaces = self.collector.edges().keys().map(|key| key.netns);
        let news = self.scans.are_news(namespaces.filter(|netns| self.sources.lacks(*netns)));
        self.scan_if_due(news || self.sources.is_empty())
    }

    /// Lists sockets so often from here on, and once at once. For tests.
    pub fn list_sockets_every(&mut self, interval: Duration) {
        self.scans.list_sockets_every(interval, Instant::now());
    }

    fn scan_if_due(&mut self, addresses: bool) -> Result<(), ProbeError> {
        // Which edges have connections without a search must be known when the sockets come.
        if self.scans.are_sockets_due(Instant::now()) {
            self.sweep()?;
        }
        if let Err(reason) = self.scans.start_if_due(addresses, Instant::now()) {
            warn!(%reason, "network namespaces could not be looked at");
        }
        Ok(())
    }

    /// Takes over what a scan found.
    fn take(&mut self, what: What, found: Result<Found, ScanError>) -> Result<(), ProbeError> {
        match found {
            Ok(Found::Part(part)) => self.take_part(what, part)?,
            Ok(Found::End(summary)) => {
                self.collector.unlisted(summary.sockets_beyond);
                if what == What::Sockets {
                    let closed = self.older.end(summary.failed > 0);
                    self.probes.forget_older(&closed)?;
                }
                report_scan(&summary);
            }
            Err(reason) => {
                if what == What::Sockets {
                    self.older.cut_short();
                }
                warn!(%reason, "network namespaces could not be looked at");
            }
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

    fn take_part(&mut self, what: What, part: Part) -> Result<(), ProbeError> {
        let cookie = part.cookie();
        let Part { netns, addresses, sockets, unlisted, cgroups, users } = part;
        for cgroup in cgroups {
            self.sources.add_home(cgroup, netns);
        }
        self.sources.add(netns, addresses);
        if what == What::Sockets {
            self.older.namespace(netns, !unlisted);
        }
        self.sources.look_at(netns, users.as_ref());
        // Before the sockets, some of which are the proxy's.
        for uid in users.unwrap_or_default().of_pod(&self.proxy_uids) {
            if self.collector.leave_out(cookie, uid) && !self.probes.add_proxy_uid(cookie, uid)? {
                self.collector.too_many_proxies(cookie);
            }
        }
        for socket in &sockets {
            self.take_existing(netns, cookie, socket)?;
        }
        Ok(())
    }

    /// Takes over a connection that is open now.
    fn take_existing(&mut self, netns: u64, cookie: Option<u64>, socket: &Socket) -> Result<(), ProbeError> {
        if self.proxy_uids.contains(&socket.uid) {
            return Ok(());
        }
        let Some(edge) = self.collector.existing(netns, socket) else { return Ok(()) };
        match self.older.sight(netns, socket.cookie, self.collector.is_unsearched(cookie, &edge)) {
            Sight::Fine => return Ok(()),
            Sight::Tell if self.probes.add_older(socket.cookie, &edge)? => {
                self.older.told(netns, socket.cookie);
                return Ok(());
            }
            Sight::Tell | Sight::NoRoom => {}
        }
        if self.older.refused(netns, socket.cookie) {
            self.collector.unwatched(&edge);
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
    ///
    /// # Errors
    /// When the kernel refuses to write its maps.
    pub async fn last_scan(&mut self) -> Result<(), ProbeError> {
        self.end_scan().await?;
        self.scan_if_due(true)?;
        self.end_scan().await
    }

    /// Which network namespaces the losses have hit.
    ///
    /// # Errors
    /// When the kernel refuses to read its map.
    pub fn hit(&self) -> Result<Hit, ProbeError> {
        let mut hit = self.collector.hit().clone();
        for (netns, causes) in self.probes.losses()? {
            hit.note_causes(netns, &causes);
        }
        Ok(hit)
    }

    /// What was lost, in the kernel and here; only causes that occurred.
    ///
    /// # Errors
    /// When the kernel refuses to read its counters.
    pub fn losses(&self) -> Result<BTreeMap<String, u64>, ProbeError> {
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

/// Hands a record to whom it concerns.
pub(crate) fn collect(collector: &mut Collector, record: Result<Event<'_>, Malformed>) {
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
