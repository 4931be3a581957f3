//! Tells an aggregator what is learnt: decides when, and connects the watch with the outbox. What is told is decided there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sidescope_common::EdgeKey;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant as Deadline, timeout_at};
use tracing::{debug, warn};

use super::Which;
use crate::attended::{Attended, Since};
use crate::cgroup;
use crate::clock::{Exchange, Offset};
use crate::collect::{Changed, Observed};
use crate::losses::Hit;
use crate::model::names::PodUid;
use crate::outbox::{Outbox, Seen};
use crate::probes::{Times, now_ns};
use crate::transport::client::{self, Config, Shared};
use crate::watch::Watch;
use crate::wire::Epoch;
use crate::wire::proto::{Ack, Batch};

/// What comes within this time goes out together.
const COALESCE: Duration = Duration::from_millis(50);
/// How often it is told that pods were watched, in nanoseconds; what was lost is told at once.
const COVER_EVERY_NS: u64 = 30 * 1_000_000_000;
/// The kernel notes times a little early, and a program that runs may not have told yet what it has seen.
const MARGIN_NS: u64 = 100_000_000;

/// What the client sees of the outbox.
struct Reports {
    outbox: Outbox,
    clock: Offset,
    /// The last batch that was sent in this stream.
    sent: u64,
    /// Every batch up to this one is durable.
    durable: u64,
    /// How often something came from the aggregator.
    heard: u64,
}

impl client::Outbox for Reports {
    fn next(&mut self) -> Option<Batch> {
        let batch = self.outbox.after(self.sent)?.clone();
        self.sent = batch.sequence;
        Some(batch)
    }

    fn restart(&mut self) {
        self.sent = 0;
    }

    fn acknowledge(&mut self, ack: &Ack) {
        self.outbox.acknowledged(ack.sequence);
        self.durable = self.durable.max(ack.sequence.min(self.outbox.last()));
        self.heard += 1;
    }

    fn measure(&mut self, exchange: &Exchange) {
        self.clock.measure(exchange);
        self.heard += 1;
    }

    fn is_empty(&self) -> bool {
        self.outbox.under_way().next().is_none()
    }
}

/// Tells what is learnt, and remembers what was told.
pub(super) struct Reporter {
    shared: Arc<Shared<Reports>>,
    client: JoinHandle<()>,
    stop: oneshot::Sender<()>,
    attended: Attended,
    /// Edges that have changed and are not told.
    changed: Changed,
    flushed: Instant,
    /// Not all that is new is in a batch.
    behind: bool,
    /// What was lost and is not told, and up to when it is known what was.
    hit: Hit,
    hit_ns: u64,
    /// When it was last told that pods were watched.
    covered_ns: u64,
    /// With which batch all up to a time is told.
    mark: Option<(u64, u64)>,
    /// How often something had come from the aggregator when this was last looked at.
    heard: u64,
    /// Something was acknowledged since edges were last forgotten.
    may_forget: bool,
    /// The cgroups of pods could not be listed, and this was said.
    unlisted: bool,
    dropped: u64,
}

impl Reporter {
    /// Begins to look for the aggregator. `times` are those of the programs.
    pub(super) fn start(config: Config, times: &Times) -> Self {
        let since = Since {
            from_ns: times.attached_ns.max(times.told_ns),
            newest_cgroup: times.newest_cgroup,
            listed_ns: (times.listed_ns > 0).then_some(times.listed_ns),
        };
        let epoch = Epoch(fastrand::u128(..).to_be_bytes());
        let outbox = Outbox::new(epoch, times.told_ns);
        let shared = Shared::new(Reports { outbox, clock: Offset::default(), sent: 0, durable: 0, heard: 0 });
        let (stop, stopped) = oneshot::channel::<()>();
        let client = tokio::spawn(client::run(config, Arc::clone(&shared), async move {
            // That nobody is left who could say so is the end, too.
            drop(stopped.await);
        }));
        Self {
            shared,
            client,
            stop,
            attended: Attended::new(since),
            changed: Changed::default(),
            flushed: Instant::now(),
            behind: true,
            hit: Hit::default(),
            hit_ns: since.from_ns,
            covered_ns: 0,
            mark: None,
            heard: 0,
            may_forget: true,
            unlisted: false,
            dropped: 0,
        }
    }

    /// All connections that are older than the programs are listed now.
    pub(super) fn listed(&mut self, at_ns: u64) {
        self.attended.listed(at_ns);
    }

    /// Tells what events have just told, without a look at all edges. To be called often.
    pub(super) fn flush(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        if self.flushed.elapsed() < COALESCE {
            return Ok(());
        }
        let new = watch.collector.take_changed();
        self.changed.beyond |= new.beyond;
        new.edges.into_iter().for_each(|key| self.changed.add(key));
        let has_heard = self.hear(watch)?;
        if self.changed.beyond || self.behind && has_heard {
            self.flushed = Instant::now();
            return self.tell_edges(watch, Which::Tellable);
        }
        if self.changed.edges.is_empty() {
            return Ok(());
        }
        self.flushed = Instant::now();
        watch.look_for(self.changed.edges.iter().copied())?;
        let edges = watch.tellable_of(&self.changed.edges);
        let told = fill(&self.shared, watch, edges);
        self.behind |= !told;
        self.changed.edges.retain(|key| watch.holds(key.netns));
        Ok(())
    }

    /// Tells all that is new: to be called when the edge set was looked at, and after it the pins, by which nothing was missed so far.
    pub(super) fn tell(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        self.tell_all(watch, Which::Tellable).map(drop)
    }

    /// Says whether it was told that pods were watched until now. Nothing may have been missed up to the last look at the set.
    fn tell_all(&mut self, watch: &mut Watch, which: Which) -> anyhow::Result<bool> {
        self.hear(watch)?;
        self.find_pods(watch);
        let until_ns = watch.looked_ns().saturating_sub(MARGIN_NS);
        watch.drain();
        let lost = self.lost(watch, which)?;
        self.tell_edges(watch, which)?;
        if self.behind {
            return Ok(false);
        }
        let until_ns = match which {
            Which::Tellable => {
                watch.holds_since().unwrap_or(u64::MAX).saturating_sub(MARGIN_NS).min(until_ns)
            }
            Which::All => until_ns,
        };
        self.attended.seen_until(until_ns);
        let is_due = until_ns.saturating_sub(self.covered_ns) >= COVER_EVERY_NS;
        let covers = is_due || lost || matches!(which, Which::All);
        if covers {
            self.cover(watch, until_ns);
        }
        Ok(covers)
    }

    /// Takes over what was lost; whose it was has to be known, or not to be known for a while. Says whether it was anything.
    fn lost(&mut self, watch: &mut Watch, which: Which) -> anyhow::Result<bool> {
        let looks_ns = now_ns();
        self.hit.add(&watch.hit_since(self.hit_ns)?);
        self.hit_ns = looks_ns;
        let held = |netns| matches!(which, Which::Tellable) && watch.holds(netns);
        let ready = self.hit.take(|netns| !held(netns));
        let ended = self.attended.lost(&ready, |netns| watch.bindings.pod(netns), now_ns());
        let lost = !ended.is_empty();
        self.shared.with(|reports| ended.into_iter().for_each(|time| reports.outbox.watched(time)));
        Ok(lost)
    }

    fn cover(&mut self, watch: &Watch, until_ns: u64) {
        self.covered_ns = until_ns;
        let times = self.attended.watched();
        let dropped = self.shared.with(|reports| {
            times.for_each(|time| reports.outbox.watched(time));
            reports.outbox.dropped()
        });
        if std::mem::replace(&mut self.dropped, dropped) == 0 && dropped > 0 {
            warn!(
                "the aggregator has been away for so long that times of pods which have ended are given up: they count as not watched"
            );
        }
        self.behind = !fill(&self.shared, watch, []);
        if !self.behind && self.mark.is_none() {
            let last = self.shared.with(|reports| reports.outbox.last());
            self.mark = Some((last, self.attended.told_ns()));
        }
    }

    /// Tells all edges of which something is new.
    pub(super) fn tell_edges(&mut self, watch: &mut Watch, which: Which) -> anyhow::Result<()> {
        let new = watch.collector.take_changed();
        self.shared.with(|reports| {
            reports.outbox.close(watch.gone());
            reports.outbox.keep(watch.collector.edges());
        });
        self.behind = !match which {
            Which::Tellable => fill(&self.shared, watch, watch.tellable()),
            Which::All => fill(&self.shared, watch, watch.collector.edges()),
        };
        // Those that are held go out as soon as they may.
        self.changed.beyond = false;
        new.edges.into_iter().for_each(|key| self.changed.add(key));
        self.changed.edges.retain(|key| watch.holds(key.netns));
        Ok(())
    }

    fn find_pods(&mut self, watch: &Watch) {
        match cgroup::of_pods(&watch.cgroup) {
            Ok(mut pods) => {
                // What those on the host's network do is not recorded.
                let on_host = |pod: &PodUid| {
                    watch.pods().and_then(|pods| pods.get(pod)).is_some_and(|pod| pod.host_network)
                };
                pods.retain(|pod, _| !on_host(pod));
                self.attended.found(&pods, now_ns());
                self.unlisted = false;
            }
            Err(reason) => {
                if !std::mem::replace(&mut self.unlisted, true) {
                    warn!(cgroup = %watch.cgroup.display(), %reason, "the cgroups of pods cannot be listed: pods that start count as not watched");
                }
            }
        }
    }

    /// Takes over what came from the aggregator. Says whether it was anything.
    fn hear(&mut self, watch: &mut Watch) -> anyhow::Result<bool> {
        let (heard, durable) = self.shared.with(|reports| (reports.heard, reports.durable));
        if heard == self.heard {
            return Ok(false);
        }
        self.heard = heard;
        self.may_forget = true;
        if let Some((_, told_ns)) = self.mark.take_if(|(batch, _)| *batch <= durable) {
            watch.probes.keep_told(told_ns)?;
        }
        Ok(true)
    }

    /// Forgets what is durable at the aggregator of pods that are gone.
    pub(super) fn forget(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        // As long as nothing is acknowledged, nothing more can be forgotten.
        if std::mem::take(&mut self.may_forget) {
            let forgotten = self.shared.with(|reports| {
                let durable = reports.outbox.durable();
                watch.forget(|key, observed| Seen::of(key, observed).is_some_and(|edge| durable(&edge)))
            })?;
            self.shared.with(|reports| reports.outbox.forget(&forgotten));
        }
        Ok(())
    }

    /// Tells what is left, until the deadline. Says whether all is durable at the aggregator.
    pub(super) async fn end(
        mut self,
        watch: &mut Watch,
        lasting: bool,
        deadline: Deadline,
    ) -> anyhow::Result<bool> {
        let all = async {
            let mut covered = !lasting;
            loop {
                if covered {
                    self.tell_edges(watch, Which::All)?;
                } else {
                    covered = self.tell_all(watch, Which::All)?;
                }
                if covered && !self.behind && self.shared.with(|reports| client::Outbox::is_empty(reports)) {
                    return anyhow::Ok(());
                }
                self.shared.heard().await;
            }
        };
        let all_told = match timeout_at(deadline, all).await {
            Ok(told) => {
                told?;
                true
            }
            Err(_) => {
                warn!(
                    "the aggregator did not acknowledge everything before the agent ended; the next agent tells what is left"
                );
                false
            }
        };
        self.hear(watch)?;
        // Nothing is under way, or there is no time left for it.
        drop(self.stop);
        self.client.abort();
        match self.client.await {
            Err(err) if err.is_panic() => warn!(%err, "what reports to the aggregator broke down"),
            _ => {}
        }
        Ok(all_told)
    }
}

/// Makes batches of what is new among these edges. Says whether all of it is in one.
fn fill<'a>(
    shared: &Shared<Reports>,
    watch: &Watch,
    edges: impl IntoIterator<Item = (&'a EdgeKey, &'a Observed)>,
) -> bool {
    let seen = edges.into_iter().filter_map(|(key, observed)| Seen::of(key, observed));
    shared.with(|Reports { outbox, clock, .. }| {
        let before = outbox.last();
        let all = outbox.fill(seen, |netns| watch.whose(netns), clock);
        if outbox.last() > before {
            debug!(batches = outbox.last() - before, all, "reporting");
        }
        all
    })
}
