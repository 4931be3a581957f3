//! The record of one workload: what it was seen to call, and through which time it was watched. This is the status of a
//! `WorkloadDependencies` object, and nothing of it may be forgotten: what it does not hold, a Sidecar would leave out.
//!
//! Every list is bounded, so that the largest record stays well below what the API server takes (1.5 MiB). What a full list cannot
//! hold leaves a mark.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

use crate::model::graph::{Evidence, UnresolvedReason};
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, ObjectName, WorkloadRef};
use crate::model::stamp::{Seconds, Timestamp};

/// Most services of one record. A workload that calls more is broad.
pub const MAX_DESTINATIONS: usize = 200;
/// Most ports of one service that are kept apart.
pub const MAX_PORTS: usize = 8;
/// Most workloads and ports that are called by a pod's address.
pub const MAX_DIRECT: usize = 100;
/// Most hosts that nothing in the mesh has.
pub const MAX_UNKNOWN_HOSTS: usize = 100;
/// Most destinations that are not attributed.
pub const MAX_UNRESOLVED: usize = 100;
/// Most causes of loss.
pub const MAX_LOSSES: usize = 32;
/// Longest text of a verdict, in bytes.
pub const MAX_VERDICT: usize = 4096;
/// Where counting ends: the largest number that every reader of JSON can hold.
pub const MAX_CONNECTS: u64 = (1 << 53) - 1;
/// Stands for all ports of a service beyond [`MAX_PORTS`].
pub const OTHER_PORTS: u16 = 0;
/// Stands for all causes of loss beyond [`MAX_LOSSES`].
pub const OTHER_CAUSES: &str = "other";

/// What is known of one workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Record {
    /// How many services it calls.
    #[schemars(range(min = 0, max = 200))]
    pub hosts: u16,
    /// When it was last seen to call any of them, to the hour or better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_seen: Option<Timestamp>,
    /// Whether its Sidecar may be narrowed, and what stands in the way.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = MAX_VERDICT))]
    pub verdict: String,
    /// Since when its pods are gone, and nothing that could make new ones is left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gone: Option<Timestamp>,
    /// Since when it is known to call more services than are listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broad: Option<Timestamp>,
    /// Through which time it was watched.
    pub coverage: Coverage,
    /// The services, in the order of their hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DESTINATIONS))]
    pub dependencies: Vec<Dependency>,
    /// Calls straight to a pod's address where no headless service stands for it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_DIRECT))]
    pub direct: Vec<Direct>,
    /// When there was a direct call that is not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_direct: Option<Timestamp>,
    /// Hosts that requests named and that nothing in the mesh has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_UNKNOWN_HOSTS))]
    pub unknown_hosts: Vec<UnknownHost>,
    /// When there was one that is not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_unknown_hosts: Option<Timestamp>,
    /// Destinations that nothing in the mesh has, or several objects.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_UNRESOLVED))]
    pub unresolved: Vec<Unresolved>,
    /// When there was one that is not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub more_unresolved: Option<Timestamp>,
    /// What was lost of its pods, by cause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_LOSSES))]
    pub losses: Vec<Loss>,
}

/// Through which time a workload was watched. Never more than it really was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Coverage {
    /// The sum of all times through which it had pods and each of them was watched without loss.
    pub covered: Seconds,
    /// What was later than this is not part of the sum yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<Timestamp>,
    /// Until then at least one of its pods was not watched, or not without loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<Timestamp>,
    /// What `covered` was then: the rest of it is without a gap.
    #[serde(skip_serializing_if = "is_none")]
    pub covered_when_interrupted: Seconds,
    /// Its pods that are watched.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub watched_pods: u32,
    /// All its pods.
    #[schemars(range(min = 0, max = 2_147_483_647))]
    pub pods: u32,
}

impl Coverage {
    /// How much of the sum is without a gap up to now.
    pub fn since_interruption(&self) -> Seconds {
        Seconds(self.covered.0.saturating_sub(self.covered_when_interrupted.0))
    }
}

fn is_none(length: &Seconds) -> bool {
    length.0 == 0
}

/// A service that the workload depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Host of the service in Istio's registry.
    pub host: Host,
    /// Namespace of the service.
    pub namespace: Namespace,
    /// Of the pods that were seen to call it, the one that was seen first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_by: Option<SeenBy>,
    /// In the order of their numbers.
    #[schemars(length(max = MAX_PORTS + 1))]
    pub ports: Vec<Port>,
}

/// Who was seen, and from where.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeenBy {
    /// Name of the pod.
    pub pod: ObjectName,
    /// Name of its node.
    pub node: ObjectName,
}

/// One port of a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Its number; 0 stands for all that have no entry of their own.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: u16,
    /// Protocol that the caller's proxy handles the connections as; two answers make it unknown.
    pub protocol: PortProtocol,
    /// How it was learnt.
    #[schemars(with = "Vec<EvidenceKind>", length(max = 3))]
    pub seen: EvidenceKinds,
    /// A connection or request came without a readable host that names a service: the address alone tells what was meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub address_only: bool,
    /// It was learnt, or learnt too, from a connection that was open since before the watch.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// When a request was last seen whose host could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_unknown: Option<Timestamp>,
    /// When it was first seen.
    pub first_seen: Timestamp,
    /// When it was last seen, to the hour or better.
    pub last_seen: Timestamp,
    /// What `coverage.covered` was then, at most: the time that was covered since is what it has grown by.
    #[serde(default)]
    pub covered_when_last_seen: Seconds,
}

/// How a dependency was learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EvidenceKind {
    /// The socket's destination is an address of the service.
    Address,
    /// A request named a host of it.
    Host,
    /// The workload had asked a DNS server for its name and been given the address.
    DnsName,
}

/// Kinds of evidence; a list in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<EvidenceKind>", into = "Vec<EvidenceKind>")]
pub struct EvidenceKinds(u8);

impl EvidenceKinds {
    const ALL: [EvidenceKind; 3] = [EvidenceKind::Address, EvidenceKind::Host, EvidenceKind::DnsName];

    /// Whether it is among them.
    pub fn contains(self, kind: EvidenceKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// These and those.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromIterator<EvidenceKind> for EvidenceKinds {
    fn from_iter<I: IntoIterator<Item = EvidenceKind>>(kinds: I) -> Self {
        Self(kinds.into_iter().fold(0, |bits, kind| bits | 1 << kind as u8))
    }
}

impl From<Vec<EvidenceKind>> for EvidenceKinds {
    fn from(kinds: Vec<EvidenceKind>) -> Self {
        kinds.into_iter().collect()
    }
}

impl From<EvidenceKinds> for Vec<EvidenceKind> {
    fn from(kinds: EvidenceKinds) -> Self {
        EvidenceKinds::ALL.into_iter().filter(|kind| kinds.contains(*kind)).collect()
    }
}

impl From<&Evidence> for EvidenceKind {
    fn from(evidence: &Evidence) -> Self {
        match evidence {
            Evidence::Address(_) => Self::Address,
            Evidence::Host(_) => Self::Host,
            Evidence::DnsName(_) => Self::DnsName,
        }
    }
}

/// Calls straight to the pods of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Direct {
    /// The workload of those pods.
    pub workload: WorkloadRef,
    /// Destination port.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: u16,
    /// When a request was last seen whose host could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_unknown: Option<Timestamp>,
    /// When it was last seen.
    pub last_seen: Timestamp,
}

/// A host that nothing in the mesh has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UnknownHost {
    /// The host.
    pub host: Host,
    /// Host of the service to whose address the request went, where it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Host>,
    /// When it was last seen.
    pub last_seen: Timestamp,
}

/// A destination that could not be attributed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Unresolved {
    /// Its address.
    #[schemars(with = "String", length(max = 45))]
    pub address: IpAddr,
    /// Its port.
    #[schemars(range(min = 0, max = 65_535))]
    pub port: u16,
    /// Why.
    pub reason: UnresolvedReason,
    /// How many connects, about: those that were told twice count twice.
    #[schemars(range(min = 0, max = MAX_CONNECTS))]
    pub connects: u64,
    /// When it was last seen.
    pub last_seen: Timestamp,
}

/// Something that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Loss {
    /// Why.
    #[schemars(length(max = 64))]
    pub cause: String,
    /// When that was last.
    pub last: Timestamp,
}
