//! What came of the edges that agents told, by reason: a fixed set, so that nothing that is told can make it grow.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::model::graph::UnresolvedReason;
use crate::model::names::{ObjectName, PodUid};
use crate::model::time::Time;
use crate::registry::NoSource;

/// How many are listed.
const LISTED: usize = 1_000;

/// Why an edge is in no record, or without its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// The pod is on another node than the agent that told it.
    ForeignNode,
    /// The pod is in the network namespace of its node.
    HostNetwork,
    /// The agent named a pod that never became known.
    PodNotKnown,
    /// The pod's workload never became known.
    WorkloadNotKnown,
    /// No pod had the addresses of the network namespace.
    NoPod,
    /// Several pods may have had them.
    AmbiguousPod,
    /// It was before anything was known of the addresses.
    PodAddressNotKnown,
    /// Nothing in the mesh had the destination's address. It is in the record as unresolved, as the next two are.
    UnknownAddress,
    /// Several objects may have had it.
    AmbiguousAddress,
    /// It was before anything was known of the address, or what was known was not enough.
    AddressNotKnown,
}

impl Reason {
    /// As agents and people are told.
    pub fn label(self) -> &'static str {
        match self {
            Self::ForeignNode => "foreignNode",
            Self::HostNetwork => "hostNetwork",
            Self::PodNotKnown => "podNotKnown",
            Self::WorkloadNotKnown => "workloadNotKnown",
            Self::NoPod => "noPod",
            Self::AmbiguousPod => "ambiguousPod",
            Self::PodAddressNotKnown => "podAddressNotKnown",
            Self::UnknownAddress => "unknownAddress",
            Self::AmbiguousAddress => "ambiguousAddress",
            Self::AddressNotKnown => "addressNotKnown",
        }
    }
}

impl From<NoSource> for Reason {
    fn from(reason: NoSource) -> Self {
        match reason {
            NoSource::PodNotKnown => Self::PodNotKnown,
            NoSource::WorkloadNotKnown => Self::WorkloadNotKnown,
            NoSource::AddressNotKnown => Self::PodAddressNotKnown,
            NoSource::HostNetwork => Self::HostNetwork,
            NoSource::Nobody => Self::NoPod,
            NoSource::Ambiguous => Self::AmbiguousPod,
        }
    }
}

impl From<UnresolvedReason> for Reason {
    fn from(reason: UnresolvedReason) -> Self {
        match reason {
            UnresolvedReason::UnknownAddress => Self::UnknownAddress,
            UnresolvedReason::AmbiguousAddress => Self::AmbiguousAddress,
            UnresolvedReason::NotKnown => Self::AddressNotKnown,
        }
    }
}

/// One that was refused, given up or not resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// When that was decided.
    pub at: Time,
    /// Whose agent told it.
    pub node: Arc<ObjectName>,
    /// The pod that it named.
    pub pod: Option<PodUid>,
    /// Where it went; `None` where the agent told only that the pod was watched.
    pub to: Option<(IpAddr, u16)>,
    /// Why.
    pub reason: Reason,
}

/// Sums since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// Batches that were taken.
    pub batches: u64,
    /// Batches that came again.
    pub again: u64,
    /// Batches that had to wait because their agent tells too much.
    pub too_fast: u64,
    /// Edges of which it is decided what they say.
    pub edges: u64,
    /// Edges, and words on pods, with which something is not as it should be.
    pub reasons: BTreeMap<Reason, u64>,
}

impl Counts {
    /// Adds those of another desk.
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.again += other.again;
        self.too_fast += other.too_fast;
        self.edges += other.edges;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
    }
}

/// The sums, and the last of those with a reason.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Sums.
    pub counts: Counts,
    listed: VecDeque<Listed>,
    /// How many were listed since the start.
    total: u64,
}

impl Tally {
    /// Counts so many, and lists one.
    pub(super) fn add(&mut self, listed: Listed, count: u64) {
        *self.counts.reasons.entry(listed.reason).or_default() += count;
        if self.listed.len() == LISTED {
            self.listed.pop_front();
        }
        self.listed.push_back(listed);
        self.total += 1;
    }

    /// The last of those with a reason, the oldest first.
    pub fn listed(&self) -> impl Iterator<Item = &Listed> {
        self.listed.iter()
    }

    /// How many were listed since the start, and those of the last that came after the first `seen` of them.
    pub fn since(&self, seen: u64) -> (u64, impl Iterator<Item = &Listed>) {
        let new =
            usize::try_from(self.total.saturating_sub(seen)).unwrap_or(usize::MAX).min(self.listed.len());
        (self.total, self.listed.range(self.listed.len() - new..))
    }
}
