//! What an agent has still to tell the aggregator. Nothing is queued here while the aggregator is away: the edges themselves are the
//! queue, and a batch is made of what differs from what was told. Only batches that are under way are kept, to be sent again. Pure.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use sidescope_common::EdgeKey;

use crate::clock::Offset;
use crate::collect::address;
use crate::model::names::{Host, PodUid};
use crate::wire::proto;
use crate::wire::{Epoch, MAX_ADDRESSES, MAX_EDGES, MAX_NAMES, MAX_SOURCES, address_bytes};

/// Batches that may be under way.
pub const MAX_UNDER_WAY: usize = 4;
/// How often an edge is told again of which nothing is new but its last use; nanoseconds. The aggregator keeps that by the hour.
pub const REFRESH_NS: u64 = 300 * 1_000_000_000;

/// An edge as it is known now. Times are nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Whose, and where to.
    pub key: EdgeKey,
    /// When it was first seen.
    pub first_ns: u64,
    /// When it was last used, as far as is known.
    pub last_ns: u64,
    /// How many connects.
    pub connects: u64,
    /// Hosts that its requests named.
    pub hosts: &'a BTreeSet<Host>,
    /// Names under which its address had been looked up.
    pub names: &'a BTreeSet<Host>,
    /// There was a request whose host is not known.
    pub host_unknown: bool,
    /// There was a request that named no host.
    pub unnamed: bool,
}

/// Whose network namespace it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whose {
    /// The pod, where it is known.
    pub pod: Option<PodUid>,
    /// Addresses of the namespace.
    pub addresses: Vec<IpAddr>,
}

/// A time through which a network namespace was watched; nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Its cookie.
    pub netns: u64,
    /// From then on.
    pub from_ns: u64,
    /// Until then.
    pub until_ns: u64,
    /// What was lost within it.
    pub losses: BTreeSet<String>,
}

/// What was told of an edge. Its sets only grow, so their sizes tell whether they have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Told {
    hosts: usize,
    names: usize,
    host_unknown: bool,
    unnamed: bool,
    connects: u64,
    last_ns: u64,
}

/// What is under way, and what was told.
#[derive(Debug)]
pub struct Outbox {
    epoch: Epoch,
    /// Sequence of the last batch that was made.
    last: u64,
    under_way: VecDeque<proto::Batch>,
    /// Bounded as the edges are.
    told: HashMap<EdgeKey, Told>,
    /// Times that are not in a batch yet, one for each namespace.
    watched: HashMap<u64, Watched>,
    /// Namespaces that are gone. Bounded as the edges are.
    closed: HashSet<u64>,
}

impl Outbox {
    /// Nothing was told in this epoch.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            last: 0,
            under_way: VecDeque::new(),
            told: HashMap::new(),
            watched: HashMap::new(),
            closed: HashSet::new(),
        }
    }

    /// Takes over that a namespace was watched. Of one that still waits to be told of, the time becomes longer: what is between the two
    /// was not watched, and makes them two only where it can still be told apart, so the earlier one is given up for the later if
    /// they do not meet.
    pub fn watched(&mut self, more: Watched) {
        match self.watched.get_mut(&more.netns) {
            Some(known) if more.from_ns <= known.until_ns => {
                known.until_ns = known.until_ns.max(more.until_ns);
                known.losses.extend(more.losses);
            }
            _ => drop(self.watched.insert(more.netns, more)),
        }
    }

    /// Makes batches of what is new, as far as there is room for them under way. Without a measurement of the clock nothing is made.
    pub fn fill<'a>(
        &mut self,
        seen: impl IntoIterator<Item = Seen<'a>>,
        whose: impl Fn(u64) -> Whose,
        clock: &Offset,
    ) {
        if self.under_way.len() == MAX_UNDER_WAY || clock.on_aggregator(0).is_none() {
            return;
        }
        let mut news: Vec<Seen<'a>> = seen.into_iter().filter(|edge| self.is_news(edge)).collect();
        news.sort_unstable_by_key(|edge| edge.key);
        let mut news = news.into_iter().peekable();
        while self.under_way.len() < MAX_UNDER_WAY {
            let mut batch = Making::new(clock);
            while let Some(edge) = news.next_if(|edge| batch.has_room_for(edge)) {
                let told = self.told.insert(edge.key, told_of(&edge));
                batch.add(&edge, told.as_ref(), &whose);
            }
            // Not before all that was seen in that time: who hears that it was watched takes the rest for not there.
            let waiting: Vec<u64> =
                if news.peek().is_none() { self.watched.keys().copied().collect() } else { Vec::new() };
            for netns in waiting {
                if !batch.has_room_for_source(netns) {
                    break;
                }
                let watched = self.watched.remove(&netns).expect("its key was just there");
                batch.add_watched(&watched, &whose);
            }
            let Some((clock_error_ms, sources)) = batch.finish() else { return };
            self.last += 1;
            self.under_way.push_back(proto::Batch {
                epoch: self.epoch.0.to_vec(),
                sequence: self.last,
                clock_error_ms,
                sources,
            });
        }
    }

    fn is_news(&self, edge: &Seen<'_>) -> bool {
        let Some(told) = self.told.get(&edge.key) else { return true };
        let now = told_of(edge);
        let used = Told { connects: told.connects, last_ns: told.last_ns, ..now };
        used != *told
            || now.last_ns.saturating_sub(told.last_ns) >= REFRESH_NS
            || now != *told && self.closed.contains(&edge.key.netns)
    }

    /// All batches that are not acknowledged, in their order.
    pub fn under_way(&self) -> impl Iterator<Item = &proto::Batch> {
        self.under_way.iter()
    }

    /// The first batch after this one that is not acknowledged; 0 for the first of all.
    pub fn after(&self, sequence: u64) -> Option<&proto::Batch> {
        self.under_way.iter().find(|batch| batch.sequence > sequence)
    }

    /// All batches up to this one are durable. Returns whether there was one among them that was not acknowledged before.
    pub fn acknowledged(&mut self, sequence: u64) -> bool {
        let before = self.under_way.len();
        self.under_way.retain(|batch| batch.sequence > sequence);
        self.under_way.len() < before
    }

    /// Of these namespaces, those of which all that is known is durable at the aggregator.
    pub fn durable(&self, namespaces: &HashSet<u64>, edges: &[Seen<'_>]) -> HashSet<u64> {
        let mut durable = namespaces.clone();
        for source in self.under_way.iter().flat_map(|batch| &batch.sources) {
            durable.remove(&source.netns);
        }
        for edge in edges {
            if self.told.get(&edge.key) != Some(&told_of(edge)) {
                durable.remove(&edge.key.netns);
            }
        }
        durable.retain(|netns| !self.watched.contains_key(netns));
        durable
    }

    /// These namespaces are gone: whatever was not told of their edges, if only their last use, is told now.
    pub fn close(&mut self, gone: &HashSet<u64>) {
        self.closed.extend(gone);
    }

    /// Forgets what was told of namespaces that are gone.
    pub fn forget(&mut self, gone: &HashSet<u64>) {
        self.closed.retain(|netns| !gone.contains(netns));
        self.told.retain(|key, _| !gone.contains(&key.netns));
        self.watched.retain(|netns, _| !gone.contains(netns));
    }
}

fn told_of(edge: &Seen<'_>) -> Told {
    Told {
        hosts: edge.hosts.len(),
        names: edge.names.len(),
        host_unknown: edge.host_unknown,
        unnamed: edge.unnamed,
        connects: edge.connects,
        last_ns: edge.last_ns,
    }
}

/// A batch that is being made.
struct Making<'c> {
    clock: &'c Offset,
    /// In milliseconds, the largest of all its times.
    error: i64,
    sources: Vec<proto::Source>,
    edges: usize,
    names: usize,
}

impl<'c> Making<'c> {
    fn new(clock: &'c Offset) -> Self {
        Self { clock, error: 0, sources: Vec::new(), edges: 0, names: 0 }
    }

    fn has_room_for(&self, edge: &Seen<'_>) -> bool {
        self.edges < MAX_EDGES
            && self.names + edge.hosts.len() + edge.names.len() <= MAX_NAMES
            && self.has_room_for_source(edge.key.netns)
    }

    fn has_room_for_source(&self, netns: u64) -> bool {
        self.sources.len() < MAX_SOURCES || self.sources.iter().any(|source| source.netns == netns)
    }

    fn source(&mut self, netns: u64, whose: impl Fn(u64) -> Whose) -> &mut proto::Source {
        // Edges come in the order of their namespaces.
        let known = self.sources.iter().rposition(|source| source.netns == netns);
        let at = known.unwrap_or_else(|| {
            let Whose { pod, addresses } = whose(netns);
            let addresses = addresses.into_iter().take(MAX_ADDRESSES).map(address_bytes).collect();
            let pod_uid = pod.map(String::from).unwrap_or_default();
            self.sources.push(proto::Source { netns, pod_uid, addresses, ..proto::Source::default() });
            self.sources.len() - 1
        });
        &mut self.sources[at]
    }

    /// Milliseconds on the aggregator's clock.
    fn time(&mut self, ns: u64) -> i64 {
        let span = self.clock.on_aggregator(ns).expect("it was measured when the batch was begun");
        let error = span.latest().since(span.earliest()) / 2;
        self.error = self.error.max(error);
        span.earliest().0 + error
    }

    fn add(&mut self, edge: &Seen<'_>, told: Option<&Told>, whose: impl Fn(u64) -> Whose) {
        self.edges += 1;
        self.names += edge.hosts.len() + edge.names.len();
        let texts = |hosts: &BTreeSet<Host>| hosts.iter().map(|host| host.as_str().to_owned()).collect();
        let connects = edge.connects.saturating_sub(told.map_or(0, |told| told.connects));
        // Of what was used since it was last told, only the last use is known; with just one, it is the first, too.
        let first_ns = match told {
            None => edge.first_ns,
            Some(_) if connects <= 1 => edge.last_ns,
            Some(told) => told.last_ns,
        };
        let (first, last) = (self.time(first_ns.min(edge.last_ns)), self.time(edge.last_ns));
        let made = proto::Edge {
            address: address_bytes(address(edge.key.addr)),
            port: u32::from(edge.key.port),
            first: first.min(last),
            last,
            connects,
            hosts: texts(edge.hosts),
            names: texts(edge.names),
            host_unknown: edge.host_unknown,
            unnamed: edge.unnamed,
        };
        self.source(edge.key.netns, whose).edges.push(made);
    }

    fn add_watched(&mut self, watched: &Watched, whose: impl Fn(u64) -> Whose) {
        let (from, until) = (self.time(watched.from_ns), self.time(watched.until_ns));
        let losses = watched.losses.iter().cloned().collect();
        let coverage = proto::Coverage { from: from.min(until), until, losses };
        self.source(watched.netns, whose).coverage.push(coverage);
    }

    fn finish(self) -> Option<(u32, Vec<proto::Source>)> {
        let error = u32::try_from(self.error).unwrap_or(u32::MAX);
        (!self.sources.is_empty()).then_some((error, self.sources))
    }
}

#[cfg(test)]
mod tests;
