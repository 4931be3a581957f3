//! What is known of an edge, and of which edges something is new.

use std::collections::{BTreeSet, HashSet};

use sidescope_common::EdgeKey;

use crate::model::names::Host;

/// Most edges that are known to have changed since somebody asked.
pub const MAX_CHANGED: usize = 8_192;

/// What is known of one edge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Connects.
    pub connects: u64,
    /// Time of the first connect, or when a connection that is older was first listed; nanoseconds of CLOCK_MONOTONIC.
    pub first_ns: u64,
    /// Time of the last connect that is known; the same clock.
    pub last_ns: u64,
    /// Those of them that are not in the kernel's own set, but in that of other programs.
    pub elsewhere: u64,
    /// Hosts that its requests named.
    pub hosts: BTreeSet<Host>,
    /// There was a request whose host is not known.
    pub host_unknown: bool,
    /// There was a request that named no host, or an address in its place.
    pub unnamed: bool,
    /// Names by which a DNS server had told the namespace this address when it was connected to.
    pub names: BTreeSet<Host>,
    /// Time of the last connect that was looked up in DNS answers; nanoseconds of CLOCK_MONOTONIC.
    pub looked_up: u64,
    /// When a connection of it was last among the open ones; the same clock.
    pub listed: u64,
    /// A connection of it was open when the sockets were last listed and it was among them. Without a connect this connection is
    /// older than the watch.
    pub existing: bool,
    /// Some connection of it has no search for hosts in the kernel, unless that was told of it.
    pub unsearched: bool,
}

impl Observed {
    /// There was a connect, or a connection is open, at this time.
    pub(super) fn used_at(&mut self, first_ns: u64, last_ns: u64) {
        self.first_ns = if self.first_ns == 0 { first_ns } else { self.first_ns.min(first_ns) };
        self.last_ns = self.last_ns.max(last_ns);
    }
}

/// Edges of which something is new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// These.
    pub edges: HashSet<EdgeKey>,
    /// There were more than [`MAX_CHANGED`]: any may be one.
    pub beyond: bool,
}

impl Changed {
    /// One more.
    pub fn add(&mut self, key: EdgeKey) {
        if self.edges.len() < MAX_CHANGED || self.edges.contains(&key) {
            self.edges.insert(key);
        } else {
            self.beyond = true;
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty() && !self.beyond
    }
}
