//! Which network namespaces live, as scans tell it: whose edges wait for a scan before they are told, and whose may be forgotten. Pure.
//!
//! Times are nanoseconds of CLOCK_MONOTONIC, as in the kernel's records.

use std::collections::{BTreeSet, HashMap, HashSet};

use sidescope_common::{Addr, EdgeKey, EdgeState, HEAD_WINDOW_NS};

use crate::collect::Observed;
use crate::sources::{MAX_NAMESPACES, Name};

/// How long edges of a namespace wait for the scan that looks at it, where scans fail or do not tell its users.
pub const HOLD_NS: u64 = 10_000_000_000;
/// An edge that was not used for so long may be forgotten where it cannot be known which namespaces live, or where the set is nearly
/// full.
pub const IDLE_NS: u64 = 3_600_000_000_000;
/// How long it holds what a whole scan has told.
const FRESH_NS: u64 = 600_000_000_000;
/// The kernel notes the time of a connect up to a tick of its clock early: 10 ms at most, and some.
const EARLY_NS: u64 = 20_000_000;

/// The namespaces that are known. As many as edges and scans tell of.
#[derive(Debug, Default)]
pub struct Living {
    known: HashMap<u64, Known>,
    scan: Option<Scan>,
    /// Namespaces that a whole scan has not found, and when it began.
    gone: HashMap<u64, u64>,
    /// When the last scan began that has found all that live.
    whole: Option<u64>,
}

#[derive(Debug)]
struct Known {
    since: u64,
    /// When a scan last found it.
    found: u64,
    /// By another number than its cookie.
    reused: bool,
    /// A whole scan that began later has not found it: there is nothing to wait for.
    missed: bool,
}

/// The scan under way.
#[derive(Debug)]
struct Scan {
    began: u64,
    known: HashSet<u64>,
    found: HashSet<u64>,
    /// One with a process of the watched cgroup was among them.
    watched: bool,
    /// The kernel tells no cookies.
    reused: bool,
}

/// What may be forgotten now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forgettable {
    /// Edges.
    pub edges: Vec<EdgeKey>,
    /// Namespaces of which no edge is left.
    pub namespaces: BTreeSet<u64>,
}

impl Living {
    /// There are edges, or other things, of this namespace.
    pub fn notice(&mut self, netns: u64, now: u64) {
        self.known.entry(netns).or_insert(Known { since: now, found: 0, reused: false, missed: false });
    }

    /// A scan begins.
    pub fn begin(&mut self, now: u64) {
        let known = self.known.keys().copied().collect();
        let found = HashSet::new();
        self.scan = Some(Scan { began: now, known, found, watched: false, reused: false });
    }

    /// The scan has found a namespace; `watched`: with a process of the watched cgroup. True for the first time in this scan.
    pub fn found(&mut self, name: Name, watched: bool, now: u64) -> bool {
        let (Name::Cookie(netns) | Name::Reused(netns)) = name;
        let reused = matches!(name, Name::Reused(_));
        // What is beyond that is counted where its addresses have no room.
        if self.known.len() < MAX_NAMESPACES {
            self.notice(netns, now);
        }
        self.known.entry(netns).and_modify(|known| (known.found, known.reused) = (now, reused));
        let Some(scan) = &mut self.scan else { return true };
        scan.watched |= watched;
        scan.reused |= reused;
        scan.found.insert(netns)
    }

    /// The scan ended; `whole` if nothing has failed. What was known before it began, and is not among what it has found, is gone.
    ///
    /// A scan that finds nobody who is watched may be one that cannot see the pods at all, so it says nothing of who lives. Where the
    /// kernel does not tell cookies, only the namespaces with another number can be missed.
    pub fn end(&mut self, whole: bool) {
        let Some(scan) = self.scan.take().filter(|_| whole) else { return };
        if scan.watched && !scan.reused {
            self.whole = Some(scan.began);
        }
        self.gone.retain(|netns, _| !scan.found.contains(netns));
        for netns in scan.known.difference(&scan.found) {
            let Some(known) = self.known.get_mut(netns) else { continue };
            known.missed = true;
            if scan.watched && (known.reused || !scan.reused) {
                self.gone.insert(*netns, scan.began);
            }
        }
    }

    /// Namespaces that are gone, as far as it is known.
    pub fn gone(&self) -> impl Iterator<Item = u64> {
        self.gone.keys().copied()
    }

    /// Whether the edges of a namespace are not to be told yet, because the next scan may say that they are a proxy's. `users`:
    /// it has said whose users they are.
    pub fn is_held(&self, netns: u64, users: bool, now: u64) -> bool {
        let waits =
            |known: &Known| !known.missed && now.saturating_sub(known.since) < HOLD_NS && !known.reused;
        !users && self.known.get(&netns).is_some_and(waits)
    }

    /// Since when a namespace is known.
    pub fn known_since(&self, netns: u64) -> Option<u64> {
        self.known.get(&netns).map(|known| known.since)
    }

    /// Whether it is not known which namespaces live.
    pub fn is_unknown(&self, now: u64) -> bool {
        self.whole.is_none_or(|whole| now.saturating_sub(whole) > FRESH_NS)
    }

    /// What of `edges` may be forgotten, if `told` says that all that is known of an edge was told: those of namespaces that are gone,
    /// and, with `idle`, those that were not used for [`IDLE_NS`]. A namespace with a connect since the scan that missed it began
    /// lives.
    pub fn forgettable(
        &mut self,
        set: &[(EdgeKey, EdgeState)],
        edges: &HashMap<EdgeKey, Observed>,
        told: impl Fn(&EdgeKey, &Observed) -> bool,
        idle: bool,
        now: u64,
    ) -> Forgettable {
        for (key, state) in set {
            if self.gone.get(&key.netns).is_some_and(|began| state.last_ns + EARLY_NS >= *began) {
                self.gone.remove(&key.netns);
            }
        }
        let used = if idle { self.used(set, edges, now) } else { Used::default() };
        let mut forgettable = Forgettable::default();
        let mut left = HashSet::new();
        for (key, observed) in edges {
            let is_over = self.gone.contains_key(&key.netns) || (idle && !used.is(key));
            if is_over && told(key, observed) {
                forgettable.edges.push(*key);
            } else {
                left.insert(key.netns);
            }
        }
        let mut over: BTreeSet<u64> = self.gone.keys().copied().collect();
        if idle && self.is_unknown(now) {
            let is_over = |known: &Known| now.saturating_sub(known.since.max(known.found)) >= IDLE_NS;
            over.extend(self.known.iter().filter(|(_, known)| is_over(known)).map(|(netns, _)| *netns));
        }
        forgettable.namespaces = &over - &left.into_iter().collect();
        forgettable
    }

    /// Nothing is known of this namespace any more.
    pub fn forget(&mut self, netns: u64) {
        self.known.remove(&netns);
        self.gone.remove(&netns);
    }

    /// Which edges were used within [`IDLE_NS`].
    fn used(&self, set: &[(EdgeKey, EdgeState)], edges: &HashMap<EdgeKey, Observed>, now: u64) -> Used {
        let is_recent = |time: u64| now.saturating_sub(time) < IDLE_NS;
        let mut used = Used::default();
        for (key, state) in set {
            let heads = u64::from(state.window) * HEAD_WINDOW_NS;
            if [state.first_ns, state.last_ns, heads].into_iter().any(is_recent) {
                used.edges.insert(*key);
            }
        }
        for (key, observed) in edges {
            let is_open = observed.existing && self.may_be_open(key.netns, observed.listed);
            if is_recent(observed.looked_up) || is_open {
                used.edges.insert(*key);
            }
            // Whose cookie it has cannot be told, so it keeps the edge of every namespace to that destination.
            if is_open && self.known.get(&key.netns).is_some_and(|known| known.reused) {
                used.connections.insert((key.addr, key.uid, key.port));
            }
        }
        used
    }

    /// Whether a connection that was listed may still be open: as long as scans do not come there, nobody knows of its end.
    fn may_be_open(&self, netns: u64, listed: u64) -> bool {
        let ended = |known: &Known| known.found.saturating_sub(listed.max(known.since)) >= IDLE_NS;
        !self.known.get(&netns).is_some_and(ended)
    }
}

/// Edges that were used not long ago.
#[derive(Default)]
struct Used {
    edges: HashSet<EdgeKey>,
    /// Open connections of namespaces whose cookie is not known.
    connections: HashSet<(Addr, u32, u16)>,
}

impl Used {
    fn is(&self, key: &EdgeKey) -> bool {
        self.edges.contains(key) || self.connections.contains(&(key.addr, key.uid, key.port))
    }
}

#[cfg(test)]
mod tests;
