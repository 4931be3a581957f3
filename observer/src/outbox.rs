//! What an agent has still to tell the aggregator. Nothing is queued here while the aggregator is away: the edges themselves are the
//! queue, and a batch is made of what differs from what was told. Only batches that are under way are kept, to be sent again. Pure.

mod making;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::net::IpAddr;

use sidescope_common::EdgeKey;

use crate::clock::Offset;
use crate::collect::Observed;
use crate::model::names::{Host, PodUid};
use crate::wire::{Epoch, MAX_COVERAGE, proto};

use making::{Making, blur};

/// Batches that may be under way.
pub const MAX_UNDER_WAY: usize = 4;
/// How often an edge is told again of which nothing is new but its last use; nanoseconds. The aggregator keeps that by the hour.
pub const REFRESH_NS: u64 = 300 * 1_000_000_000;
/// Pods whose times may wait to be told. Those beyond count as not watched.
pub const MAX_PODS: usize = 16_384;

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

impl<'a> Seen<'a> {
    /// What is known of an edge; `None` as long as no time of its use is, which the next look at the set tells.
    pub fn of(key: &EdgeKey, observed: &'a Observed) -> Option<Self> {
        (observed.first_ns > 0).then(|| Self {
            key: *key,
            first_ns: observed.first_ns,
            last_ns: observed.last_ns.max(observed.listed).max(observed.first_ns),
            connects: observed.connects,
            hosts: &observed.hosts,
            names: &observed.names,
            host_unknown: observed.host_unknown,
            unnamed: observed.unnamed,
        })
    }
}

/// Whose network namespace it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Whose {
    /// The pod, where it is known.
    pub pod: Option<PodUid>,
    /// Addresses of the namespace.
    pub addresses: Vec<IpAddr>,
}

/// A time through which a pod was watched; nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watched {
    /// Whose connects.
    pub pod: PodUid,
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
    /// Up to then agents before this one have told all.
    told_ns: u64,
    /// Times that are not in a batch yet, in their order.
    watched: BTreeMap<PodUid, Vec<Watched>>,
    /// Times for which there was no room.
    dropped: u64,
    /// Namespaces that are gone.
    closed: HashSet<u64>,
}

impl Outbox {
    /// Nothing was told in this epoch, but all up to `told_ns` in earlier ones.
    pub fn new(epoch: Epoch, told_ns: u64) -> Self {
        Self {
            epoch,
            last: 0,
            under_way: VecDeque::new(),
            told: HashMap::new(),
            told_ns,
            watched: BTreeMap::new(),
            dropped: 0,
            closed: HashSet::new(),
        }
    }

    /// Takes over that a pod was watched. Times of it that meet and have lost the same are one. Where too many wait to be told, those
    /// after the first become one in which something was lost: that is never more than there was.
    pub fn watched(&mut self, more: Watched) {
        let is_full = self.watched.len() >= MAX_PODS;
        let times = match self.watched.entry(more.pod.clone()) {
            Entry::Vacant(_) if is_full => {
                self.dropped += 1;
                return;
            }
            Entry::Vacant(new) => new.insert(Vec::new()),
            Entry::Occupied(known) => known.into_mut(),
        };
        match times.last_mut() {
            Some(last) if more.losses == last.losses && more.from_ns <= last.until_ns => {
                last.until_ns = last.until_ns.max(more.until_ns);
            }
            _ => times.push(more),
        }
        if times.len() > MAX_COVERAGE {
            let mut rest = times.drain(1..);
            if let Some(mut one) = rest.next() {
                for time in rest {
                    one.until_ns = one.until_ns.max(time.until_ns);
                    one.losses.extend(time.losses);
                }
                times.push(one);
            }
        }
    }

    /// How many times had no room to wait: their pods count as not watched then.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Makes batches of what is new among these edges, as far as there is room for them under way, and of the times that wait. Says
    /// whether all of it is in a batch now. Without room, and without a measurement of the clock, nothing is looked at.
    pub fn fill<'a>(
        &mut self,
        seen: impl IntoIterator<Item = Seen<'a>>,
        whose: impl Fn(u64) -> Whose,
        clock: &Offset,
    ) -> bool {
        if self.under_way.len() == MAX_UNDER_WAY || clock.on_aggregator(0).is_none() {
            return false;
        }
        let news = seen.into_iter().filter(|edge| self.is_news(edge));
        let mut news: Vec<(u32, Seen<'a>)> = news.map(|edge| (blur(clock, &edge), edge)).collect();
        news.sort_unstable_by_key(|(blur, edge)| (*blur, edge.key));
        let mut news = news.into_iter().peekable();
        while self.under_way.len() < MAX_UNDER_WAY {
            let mut batch = Making::new(clock, self.told_ns);
            let together = news.peek().map(|(blur, _)| *blur);
            let fits = |batch: &Making<'_>, (blur, edge): &(u32, Seen<'a>)| {
                Some(*blur) == together && batch.has_room_for(edge)
            };
            while let Some((_, edge)) = news.next_if(|next| fits(&batch, next)) {
                let told = self.told.insert(edge.key, told_of(&edge));
                batch.add(&edge, told.as_ref(), &whose);
            }
            // Not before all that was seen in that time: who hears that it was watched takes the rest for not there.
            while news.peek().is_none() && batch.has_room_for_source() {
                let Some((_, times)) = self.watched.pop_first() else { break };
                batch.add_watched(&times);
            }
            let Some((clock_error_ms, sources)) = batch.finish() else { break };
            self.last += 1;
            self.under_way.push_back(proto::Batch {
                epoch: self.epoch.0.to_vec(),
                sequence: self.last,
                clock_error_ms,
                sources,
            });
        }
        news.peek().is_none() && self.watched.is_empty()
    }

    fn is_news(&self, edge: &Seen<'_>) -> bool {
        let Some(told) = self.told.get(&edge.key) else { return true };
        let now = told_of(edge);
        let used = Told { connects: told.connects, last_ns: told.last_ns, ..now };
        used != *told
            || now.last_ns.saturating_sub(told.last_ns) >= REFRESH_NS
            || now != *told && self.closed.contains(&edge.key.netns)
    }

    /// Sequence of the last batch that was made; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
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

    /// Tells of edges whether all that is to be told of them is durable at the aggregator.
    pub fn durable(&self) -> impl Fn(&Seen<'_>) -> bool {
        let sources = self.under_way.iter().flat_map(|batch| &batch.sources);
        let under_way: HashSet<u64> = sources.map(|source| source.netns).collect();
        move |edge| !under_way.contains(&edge.key.netns) && !self.is_news(edge)
    }

    /// These namespaces, and no others, are gone: whatever was not told of their edges, if only their last use, is told now.
    pub fn close(&mut self, gone: impl IntoIterator<Item = u64>) {
        self.closed.clear();
        self.closed.extend(gone);
    }

    /// Forgets what was told of these edges. What comes of them again is new.
    pub fn forget(&mut self, edges: &[EdgeKey]) {
        for key in edges {
            self.told.remove(key);
        }
    }

    /// Forgets what was told of edges that are no longer known otherwise (a proxy's), so that there are never more than those.
    pub fn keep(&mut self, known: &HashMap<EdgeKey, Observed>) {
        if self.told.len() > known.len() {
            self.told.retain(|key, _| known.contains_key(key));
        }
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

#[cfg(test)]
mod tests;
