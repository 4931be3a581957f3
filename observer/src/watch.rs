//! Watching the kernel: what `observe` and `agent` have in common. Holds the loop; decides nothing.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use sidescope_common::{Counter, EdgeKey, EdgeState};
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::binding::Bindings;
use crate::collect::Collector;
use crate::living::Living;
use crate::namespaces::Part;
use crate::older::{Older, Sight};
use crate::probes::{Event, Malformed, ProbeError, Probes, Settings, now_ns};
use crate::scan::{By, Found, ScanError, What};
use crate::sockets::Socket;
use crate::sources::{Name, Sources};

mod gone;
mod losses;
mod proxies;
mod scans;
mod stop;
mod whose;

use proxies::Pods;
use scans::Scans;
pub use stop::{Failure, Stop};

/// How often it is looked whether events were lost, or namespaces came that are not known.
const TICK: Duration = Duration::from_secs(1);
/// How often the whole edge set is read, even if no event was lost.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Records that are taken before timers and signals get a turn.
const DRAIN_LIMIT: usize = 4096;

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
    /// Which pods these are.
    pub bindings: Bindings,
    /// Connections from before the programs.
    pub older: Older,
    /// The cgroup that is watched.
    pub cgroup: PathBuf,
    proxy_uids: Vec<u32>,
    /// Edges that the kernel's set holds.
    room: usize,
    living: Living,
    scans: Scans,
    tick: Interval,
    /// When the set was last looked at, nanoseconds of CLOCK_MONOTONIC: what came before is in the ring, or in the collector.
    looked_ns: u64,
    /// Edges without an event at the last sweep.
    unannounced: u64,
    /// When the last sweep was.
    swept: Instant,
    /// When it was last looked for edges that nobody uses.
    idle_looked_for: Option<Instant>,
    /// Connects that found the set full, at the last scan for that, and when it was.
    beyond: u64,
    full_scanned: Option<Instant>,
    /// What Kubernetes says of the pods.
    pods: Pods,
    /// The scan under way has told of proxies whose edges are still in the kernel's set.
    proxies_are_news: bool,
}

impl Watch {
    /// Goes on with programs that are attached to `cgroup`; `by` says who enters the network namespaces.
    pub fn new(probes: Probes, settings: &Settings, cgroup: PathBuf, older: Older, by: By) -> Self {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            probes,
            collector: Collector::default(),
            sources: Sources::default(),
            bindings: Bindings::default(),
            older,
            proxy_uids: settings.proxy_uids.clone(),
            room: settings.edges as usize,
            living: Living::default(),
            scans: Scans::new(by, cgroup.clone(), Instant::now()),
            cgroup,
            tick,
            looked_ns: 0,
            unannounced: 0,
            swept: Instant::now(),
            idle_looked_for: None,
            beyond: 0,
            full_scanned: None,
            pods: Pods::default(),
            proxies_are_news: false,
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
                    self.cgroup.try_exists().unwrap_or(true),
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
        self.looked_ns = now_ns();
        self.drain();
        self.sweep().map(drop)
    }

    /// Takes what is in the ring.
    pub fn drain(&mut self) {
        let collector = &mut self.collector;
        self.probes.drain(|record| collect(collector, record));
    }

    /// Reads the edge set, and returns it without what is a proxy's, which is removed from it.
    fn sweep(&mut self) -> Result<Vec<(EdgeKey, EdgeState)>, ProbeError> {
        self.swept = Instant::now();
        let set = self.probes.edges()?;
        let left_out = self.collector.sweep(set.iter().copied());
        self.probes.forget_edges(&left_out)?;
        self.notice_namespaces();
        Ok(set)
    }

    fn notice_namespaces(&mut self) {
        let now = now_ns();
        for key in self.collector.edges().keys() {
            self.living.notice(key.netns, now);
        }
    }

    /// Leaves out what the programs, or `others`, know to be a proxy's: an agent before this one has told them.
    ///
    /// # Errors
    /// When the kernel refuses to read its map.
    pub fn leave_out_known(
        &mut self,
        others: impl IntoIterator<Item = (Option<u64>, u32)>,
    ) -> Result<(), ProbeError> {
        let now = now_ns();
        for (netns, uid) in self.probes.proxies()?.into_iter().chain(others) {
            if netns.is_none() && self.proxy_uids.contains(&uid) {
                continue;
            }
            self.collector.leave_out(netns, uid);
            if let Some(netns) = netns {
                self.living.notice(netns, now);
            }
        }
        Ok(())
    }

    /// Edges whose event was lost, counts, and what is not known yet of the namespaces.
    fn look_at_set(&mut self) -> Result<(), ProbeError> {
        self.looked_ns = now_ns();
        // The whole set costs two calls an edge, so only where an event was lost, and now and then for names of addresses that
        // changed.
        let unannounced = self.probes.counter(Counter::EdgeRingFull)?;
        let sweep = self.unannounced != unannounced || self.swept.elapsed() >= SWEEP_EVERY;
        if sweep {
            self.unannounced = unannounced;
            self.sweep()?;
        }
        self.notice_namespaces();
        let namespaces = self.collector.edges().keys().map(|key| key.netns);
        let news = self.scans.are_news(namespaces.filter(|netns| self.sources.lacks(*netns)));
        if self.scans.are_done_by_nobody() {
            if news || sweep {
                self.take_sources()?;
            }
            return Ok(());
        }
        self.scan_if_due(news)
    }

    /// When the set was last looked at: what came before is known here as soon as the ring was taken after that. Nanoseconds of
    /// CLOCK_MONOTONIC.
    pub fn looked_ns(&self) -> u64 {
        self.looked_ns
    }

    /// Namespaces that are gone, as far as it is known.
    pub fn gone(&self) -> impl Iterator<Item = u64> {
        self.living.gone()
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
        let was_under_way = self.scans.under_way();
        self.scans.start_if_due(addresses, Instant::now());
        if !was_under_way && self.scans.under_way() {
            self.living.begin(now_ns());
        }
        Ok(())
    }

    /// Takes over what a scan found.
    fn take(&mut self, what: What, found: Result<Found, ScanError>) -> Result<(), ProbeError> {
        let whole = match found {
            Ok(Found::Part(part)) => return self.take_part(what, part),
            Ok(Found::End(summary)) => {
                self.collector.unlisted(summary.sockets_beyond);
                if what == What::Sockets {
                    let closed = self.older.end(summary.failed > 0);
                    self.probes.forget_older(&closed)?;
                }
                self.scans.ended(what, &summary);
                summary.failed == 0
            }
            Err(reason) => {
                if what == What::Sockets {
                    self.older.cut_short();
                }
                self.scans.failed(&reason, Instant::now());
                false
            }
        };
        self.living.end(whole);
        self.sources.end_scan(whole);
        self.collector.close(&self.living.gone().collect());
        self.take_sources()?;
        self.sweep_proxies()
    }

    fn take_part(&mut self, what: What, part: Part) -> Result<(), ProbeError> {
        let cookie = part.cookie();
        let Part { netns, watched, addresses, sockets, unlisted, cgroups, pods, users } = part;
        let name = cookie.map_or(Name::Reused(netns), Name::Cookie);
        let now = now_ns();
        // Later parts have more sockets and nothing else.
        let is_first = self.living.found(name, watched, now);
        if is_first {
            if self.sources.scanned(name, addresses, watched) {
                self.sources.look_at(netns, users.as_ref());
            } else {
                self.collector.too_many_namespaces();
            }
        }
        if cookie.is_some() {
            self.bindings.bind(netns, &pods);
        }
        for cgroup in cgroups {
            if !self.sources.add_home(cgroup, netns) {
                self.collector.too_many_namespaces();
            }
        }
        if what == What::Sockets {
            self.older.namespace(netns, !unlisted);
        }
        // Before the sockets, some of which are the proxy's.
        if is_first {
            self.look_for_proxies(netns, cookie, users)?;
        }
        for socket in &sockets {
            self.take_existing(netns, cookie, socket, now)?;
        }
        Ok(())
    }

    /// Takes over a connection that is open now.
    fn take_existing(
        &mut self,
        netns: u64,
        cookie: Option<u64>,
        socket: &Socket,
        now: u64,
    ) -> Result<(), ProbeError> {
        if self.proxy_uids.contains(&socket.uid) {
            return Ok(());
        }
        let Some(edge) = self.collector.existing(netns, socket, now) else { return Ok(()) };
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
