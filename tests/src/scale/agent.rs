//! One agent as the aggregator sees it: what it has to tell, on a clock of its own. What sends it is the client that real agents have.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use nix::time::{ClockId, clock_gettime};
use sidescope::clock::{Exchange, Offset};
use sidescope::transport::client::Outbox;
use sidescope::transport::limits::UNACKNOWLEDGED;
use sidescope::wire::proto::{Ack, Batch, Coverage, Edge, Source};
use sidescope::wire::{MAX_EDGES, MAX_SOURCES, address_bytes};

use crate::bed::lock;

/// The machine's monotonic clock.
pub(super) fn clock_ns() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    time.tv_sec().unsigned_abs() * 1_000_000_000 + time.tv_nsec().unsigned_abs()
}

/// A clock that is off, and drifts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Skewed {
    pub(super) ahead_ns: i64,
    pub(super) drift_ppm: i64,
    /// When it was off by no more than that.
    pub(super) since_ns: u64,
}

impl Skewed {
    fn at(&self, ns: u64) -> u64 {
        let elapsed = ns.cast_signed() - self.since_ns.cast_signed();
        (ns.cast_signed() + self.ahead_ns + elapsed / 1_000_000 * self.drift_ppm).unsigned_abs()
    }
}

/// A pod as its agent knows it.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    pub(super) netns: u64,
    /// `None`: the agent does not know it, and tells the address only.
    pub(super) uid: Option<Arc<str>>,
    pub(super) address: IpAddr,
}

/// A connect.
#[derive(Clone, Debug)]
pub(super) struct Connect {
    pub(super) from: Arc<Caller>,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// On the machine's clock.
    pub(super) at_ns: u64,
}

/// What has become of all that all agents told.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Streams that were begun.
    pub(super) streams: AtomicU64,
    /// Edges that were acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// When the last of them was.
    pub(super) last_ns: AtomicU64,
    /// What of batches was refused. So many are listed at most.
    pub(super) refused: Mutex<Vec<Refused>>,
    /// Of the connects that were told, how inexact the agents took their clocks to be: the largest error, in milliseconds.
    pub(super) clock_error_ms: AtomicU64,
}

/// What the aggregator says that it cannot put down.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) reason: String,
    pub(super) count: u64,
    /// The connects of which so many are meant: from a pod that was told by this address only, to this address and port.
    pub(super) among: Vec<(IpAddr, IpAddr, u16)>,
}

/// Most refusals that are listed.
const MOST_REFUSED: usize = 100_000;

/// What one agent has still to tell.
#[derive(Debug)]
pub(super) struct Agent {
    clock: Skewed,
    offset: Offset,
    epoch: [u8; 16],
    sequence: u64,
    /// News.
    connects: VecDeque<Connect>,
    /// The pods of which it tells that they were watched.
    watched: Vec<Arc<Caller>>,
    watched_since_ns: u64,
    tell_watched: bool,
    /// All that its pods call, and how often it is to be told again.
    known: Vec<(Arc<Caller>, IpAddr, u16)>,
    repeats: u32,
    under_way: VecDeque<(Batch, u64)>,
    /// How many of those were sent in this stream.
    sent: usize,
    tally: Arc<Tally>,
}

/// Rounds that wait at most; who does not keep up is asked for no more.
const MOST_REPEATS: u32 = 2;

impl Agent {
    /// It has watched these pods since now, and has nothing to tell.
    pub(super) fn new(clock: Skewed, watched: Vec<Arc<Caller>>, tally: Arc<Tally>) -> Self {
        Self {
            clock,
            offset: Offset::default(),
            epoch: fastrand::u128(..).to_le_bytes(),
            sequence: 0,
            connects: VecDeque::new(),
            watched,
            watched_since_ns: clock_ns(),
            tell_watched: false,
            known: Vec::new(),
            repeats: 0,
            under_way: VecDeque::new(),
            sent: 0,
            tally,
        }
    }

    pub(super) fn tell(&mut self, connects: impl IntoIterator<Item = Connect>) {
        self.connects.extend(connects);
    }

    /// Has it tell, with its next batch, that its pods were watched until then.
    pub(super) fn tell_watched(&mut self) {
        self.tell_watched = true;
    }

    /// What it tells in a round of repeats.
    pub(super) fn set_known(&mut self, known: Vec<(Arc<Caller>, IpAddr, u16)>) {
        self.known = known;
    }

    /// Has it tell all that it knows once more, unless it is behind with that.
    pub(super) fn repeat(&mut self) {
        self.repeats = (self.repeats + 1).min(MOST_REPEATS);
    }

    fn note_refused(&self, ack: &Ack) {
        if ack.refusals.is_empty() {
            return;
        }
        let batches = self.under_way.iter().filter(|(batch, _)| batch.sequence <= ack.sequence);
        let sources =
            batches.flat_map(|(batch, _)| &batch.sources).filter(|source| source.pod_uid.is_empty());
        let among: Vec<_> = sources
            .flat_map(|source| {
                let from = source.addresses.first().and_then(|bytes| address_of(bytes));
                source.edges.iter().filter_map(move |edge| {
                    Some((from?, address_of(&edge.address)?, u16::try_from(edge.port).ok()?))
                })
            })
            .collect();
        let mut refused = lock(&self.tally.refused);
        for refusal in &ack.refusals {
            if refused.len() < MOST_REFUSED {
                let (reason, count) = (refusal.reason.clone(), refusal.count);
                refused.push(Refused { reason, count, among: among.clone() });
            }
        }
    }

    fn make(&mut self) -> Option<(Batch, u64)> {
        self.offset.on_aggregator(0)?;
        let mut batch = Making { clock: &self.clock, offset: &self.offset, error: 0, sources: Vec::new() };
        let mut edges = 0;
        if !self.connects.is_empty() {
            while let Some(connect) = self.connects.front()
                && edges < MAX_EDGES as u64
                && batch.sources.len() < MAX_SOURCES
            {
                batch.add(&connect.from, connect.address, connect.port, connect.at_ns);
                edges += 1;
                self.connects.pop_front();
            }
        } else if self.repeats > 0 {
            self.repeats -= 1;
            let now = clock_ns();
            for (from, address, port) in &self.known {
                batch.add(from, *address, *port, now);
                edges += 1;
            }
        } else if self.tell_watched {
            self.tell_watched = false;
            let now = clock_ns();
            for caller in &self.watched {
                batch.cover(caller, self.watched_since_ns, now);
            }
        }
        let Making { error, sources, .. } = batch;
        if sources.is_empty() {
            return None;
        }
        self.sequence += 1;
        let clock_error_ms = u32::try_from(error).unwrap_or(u32::MAX);
        self.tally.clock_error_ms.fetch_max(u64::from(clock_error_ms), Relaxed);
        let batch = Batch { epoch: self.epoch.to_vec(), sequence: self.sequence, clock_error_ms, sources };
        Some((batch, edges))
    }
}

impl Outbox for Agent {
    fn next(&mut self) -> Option<Batch> {
        if self.sent == self.under_way.len() {
            if self.under_way.len() == UNACKNOWLEDGED {
                return None;
            }
            let made = self.make()?;
            self.under_way.push_back(made);
        }
        let (batch, _) = self.under_way.get(self.sent)?;
        self.sent += 1;
        Some(batch.clone())
    }

    fn restart(&mut self) {
        self.sent = 0;
        // Another process may have another clock.
        self.offset = Offset::default();
        self.tally.streams.fetch_add(1, Relaxed);
    }

    fn acknowledge(&mut self, ack: &Ack) {
        self.note_refused(ack);
        while let Some((_, edges)) = self.under_way.pop_front_if(|(batch, _)| batch.sequence <= ack.sequence)
        {
            self.sent = self.sent.saturating_sub(1);
            if edges > 0 {
                self.tally.acknowledged.fetch_add(edges, Relaxed);
                self.tally.last_ns.fetch_max(clock_ns(), Relaxed);
            }
        }
    }

    fn measure(&mut self, exchange: &Exchange) {
        self.offset.measure(&Exchange {
            asked_ns: self.clock.at(exchange.asked_ns),
            answered_ns: self.clock.at(exchange.answered_ns),
            ..*exchange
        });
    }

    fn is_empty(&self) -> bool {
        self.under_way.is_empty() && self.connects.is_empty() && self.repeats == 0
    }
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from)
}

/// A batch that is being made, as `sidescope::outbox` makes one of what the kernel says.
struct Making<'a> {
    clock: &'a Skewed,
    offset: &'a Offset,
    error: i64,
    sources: Vec<Source>,
}

impl Making<'_> {
    /// On the aggregator's clock, as far as the agent can tell.
    fn time(&mut self, ns: u64) -> i64 {
        let span = self.offset.on_aggregator(self.clock.at(ns)).expect("it was measured before");
        let error = span.latest().since(span.earliest()) / 2;
        self.error = self.error.max(error);
        span.earliest().0 + error
    }

    fn source(&mut self, caller: &Caller) -> &mut Source {
        if self.sources.last().is_none_or(|last| last.netns != caller.netns) {
            self.sources.push(Source {
                netns: caller.netns,
                pod_uid: caller.uid.as_deref().unwrap_or_default().to_owned(),
                addresses: vec![address_bytes(caller.address)],
                ..Source::default()
            });
        }
        self.sources.last_mut().expect("one was put there")
    }

    fn add(&mut self, from: &Caller, address: IpAddr, port: u16, at_ns: u64) {
        let at = self.time(at_ns);
        self.source(from).edges.push(Edge {
            address: address_bytes(address),
            port: u32::from(port),
            first: at,
            last: at,
            connects: 1,
            ..Edge::default()
        });
    }

    fn cover(&mut self, caller: &Caller, from_ns: u64, until_ns: u64) {
        let (from, until) = (self.time(from_ns), self.time(until_ns));
        let covered = Coverage { from: from.min(until), until, losses: Vec::new() };
        self.source(caller).coverage.push(covered);
    }
}

#[cfg(test)]
mod tests {
    use sidescope::model::time::Time;
    use sidescope::wire::proto::Refusal;

    use super::*;

    #[test]
    fn times_are_told_on_the_aggregator_s_clock_however_wrong_the_agent_s_is() {
        for ahead_ns in [-500_000_000, 0, 500_000_000] {
            let start = clock_ns();
            let clock = Skewed { ahead_ns, drift_ppm: 50, since_ns: start };
            let tally = Arc::new(Tally::default());
            let caller = Arc::new(Caller { netns: 1, uid: None, address: IpAddr::from([10, 0, 0, 1]) });
            let mut agent = Agent::new(clock, vec![Arc::clone(&caller)], Arc::clone(&tally));
            let connect =
                Connect { from: caller, address: IpAddr::from([10, 0, 0, 2]), port: 80, at_ns: start };
            agent.tell([connect]);
            assert_eq!(agent.next(), None, "not before the clocks were compared");
            // Its clock says 1,000,000 when ours starts.
            let there = |ns: u64| Time(1_000_000 + (ns - start).cast_signed() / 1_000_000);
            let exchange = Exchange {
                asked_ns: start,
                received: there(start + 1_000_000),
                replied: there(start + 1_000_000),
                answered_ns: start + 2_000_000,
            };
            agent.measure(&exchange);
            let batch = agent.next().unwrap();
            let told = batch.sources[0].edges[0].first;
            assert!((told - 1_000_000).abs() <= i64::from(batch.clock_error_ms), "{told} {batch:?}");
            assert!(batch.clock_error_ms < 10 && !agent.is_empty());
            // Again after a new stream, and done with when it is acknowledged.
            agent.restart();
            assert_eq!(agent.next(), Some(batch));
            let refusals = vec![Refusal { reason: "ambiguousPod".to_owned(), count: 1 }];
            agent.acknowledge(&Ack { sequence: 1, refusals });
            let refused = lock(&tally.refused);
            assert_eq!(refused[0].among, [(IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]), 80)]);
            assert!(agent.is_empty() && agent.next().is_none());
            assert_eq!((tally.acknowledged.load(Relaxed), tally.streams.load(Relaxed)), (1, 1));
        }
    }
}
