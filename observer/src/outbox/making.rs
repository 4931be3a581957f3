//! A batch that is being made: within the bounds of a message, its times on the aggregator's clock.

use std::collections::BTreeSet;

use super::{Seen, Told, Watched, Whose};
use crate::clock::Offset;
use crate::collect::address;
use crate::model::names::Host;
use crate::model::time::Span;
use crate::wire::{MAX_ADDRESSES, MAX_EDGES, MAX_NAMES, MAX_SOURCES, address_bytes, proto};

/// How uncertain the times of an edge are, in steps of four times each. All times of a batch are as uncertain as the worst of them, so
/// those of one step go together: what happened long ago would blur what happens now.
pub(super) fn blur(clock: &Offset, edge: &Seen<'_>) -> u32 {
    let error = |ns| clock.on_aggregator(ns).map_or(0, error);
    let error = error(edge.first_ns).max(error(edge.last_ns)).unsigned_abs();
    (u64::BITS - (error / 16).leading_zeros()).div_ceil(2)
}

/// In milliseconds.
fn error(span: Span) -> i64 {
    span.latest().since(span.earliest()) / 2
}

/// A batch that is being made.
pub(super) struct Making<'c> {
    clock: &'c Offset,
    /// Up to then all was told by agents before this one.
    told_ns: u64,
    /// In milliseconds, the largest of all its edges' times.
    error: i64,
    sources: Vec<proto::Source>,
    edges: usize,
    names: usize,
}

impl<'c> Making<'c> {
    pub(super) fn new(clock: &'c Offset, told_ns: u64) -> Self {
        Self { clock, told_ns, error: 0, sources: Vec::new(), edges: 0, names: 0 }
    }

    pub(super) fn has_room_for(&self, edge: &Seen<'_>) -> bool {
        self.edges < MAX_EDGES
            && self.names + edge.hosts.len() + edge.names.len() <= MAX_NAMES
            && (self.has_room_for_source()
                || self.sources.iter().any(|source| source.netns == edge.key.netns))
    }

    pub(super) fn has_room_for_source(&self) -> bool {
        self.sources.len() < MAX_SOURCES
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

    fn span(&self, ns: u64) -> Span {
        self.clock.on_aggregator(ns).expect("it was measured when the batch was begun")
    }

    /// Milliseconds on the aggregator's clock.
    fn time(&mut self, ns: u64) -> i64 {
        let span = self.span(ns);
        self.error = self.error.max(error(span));
        span.earliest().0 + error(span)
    }

    pub(super) fn add(&mut self, edge: &Seen<'_>, told: Option<&Told>, whose: impl Fn(u64) -> Whose) {
        self.edges += 1;
        self.names += edge.hosts.len() + edge.names.len();
        let texts = |hosts: &BTreeSet<Host>| hosts.iter().map(|host| host.as_str().to_owned()).collect();
        let connects = edge.connects.saturating_sub(told.map_or(0, |told| told.connects));
        // Of what was used since it was last told, only the last use is known; with just one, it is the first, too.
        let first_ns = match told {
            None if edge.first_ns > self.told_ns => edge.first_ns,
            None => edge.last_ns,
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

    /// The times through which a pod was watched. As far as the clock is uncertain, less than that is told, and more of those in which
    /// something was lost.
    pub(super) fn add_watched(&mut self, times: &[Watched]) {
        let mut coverage = Vec::new();
        for Watched { from_ns, until_ns, losses, .. } in times {
            let (from, until) = (self.span(*from_ns), self.span(*until_ns));
            let (from, until) = match losses.is_empty() {
                true => (from.latest(), until.earliest()),
                false => (from.earliest(), until.latest()),
            };
            if from <= until {
                let losses = losses.iter().cloned().collect();
                coverage.push(proto::Coverage { from: from.0, until: until.0, losses });
            }
        }
        if let Some(first) = times.first().filter(|_| !coverage.is_empty()) {
            let pod_uid = first.pod.as_str().to_owned();
            self.sources.push(proto::Source { pod_uid, coverage, ..proto::Source::default() });
        }
    }

    /// `None`: it is empty.
    pub(super) fn finish(self) -> Option<(u32, Vec<proto::Source>)> {
        let error = u32::try_from(self.error).unwrap_or(u32::MAX);
        (!self.sources.is_empty()).then_some((error, self.sources))
    }
}
