//! The dependency graph: who calls what, and how that was learnt. This is what `graph.json` holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, WorkloadRef};

/// Version of the format of `graph.json`; raised with every incompatible change.
pub const GRAPH_VERSION: u32 = 1;

/// The dependencies of every workload of which a pod was watched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Graph {
    /// [`GRAPH_VERSION`].
    pub version: u32,
    /// Workloads in the order of their names; those without a dependency too.
    pub workloads: Vec<WorkloadNode>,
    /// What was seen and could not be attributed, by workload and destination.
    pub unresolved: Vec<Unresolved>,
    /// What was seen and could not be made use of, by cause. Where the edge is known, it is marked as well, and so is the workload.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, u64>,
    /// Edges that belong to no workload of the graph.
    #[serde(default, skip_serializing_if = "Unattributed::is_none")]
    pub unattributed: Unattributed,
}

/// Edges without a workload, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Unattributed {
    /// No address of the network namespace is known (yet).
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown: usize,
    /// Addresses of the namespace belong to several workloads.
    #[serde(skip_serializing_if = "is_zero")]
    pub ambiguous: usize,
    /// The namespace has addresses, but none of a pod in the inventory: the node itself, or something outside the mesh.
    #[serde(skip_serializing_if = "is_zero")]
    pub foreign: usize,
}

impl Unattributed {
    /// Whether every edge has its workload.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// How many pods of a workload were watched, of those that the inventory has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pods {
    /// Pods on this machine.
    pub watched: usize,
    /// All pods that have an address of their own.
    pub known: usize,
}

/// One workload and what it calls.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadNode {
    /// The workload.
    pub workload: WorkloadRef,
    /// Its pods. What the others call, nobody saw here.
    pub pods: Pods,
    /// What it calls, in the order of their hosts.
    pub dependencies: Vec<Dependency>,
    /// Causes of losses that have hit its pods, or may have where it is not known whom they hit: there may be more that it calls.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub losses: BTreeSet<String>,
    /// Calls straight to a pod's address. They do not pass through the scope of a Sidecar, so none of them is emitted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub direct: Vec<DirectCall>,
}

/// A service that a workload depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dependency {
    /// Host of the service in Istio's registry.
    pub host: Host,
    /// Namespace of the service.
    pub namespace: Namespace,
    /// By port: how it was learnt and how often it was used.
    pub ports: BTreeMap<u16, PortUse>,
}

/// One port of a dependency.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortUse {
    /// Protocol that the caller's proxy handles the connections as. Two answers (a service reached through another one's
    /// port, too) make it unknown, so that evidence of either kind counts.
    pub protocol: PortProtocol,
    /// How it was learnt.
    pub seen: BTreeSet<Evidence>,
    /// A connection or a request to an address of the service came without a readable host that names a service, so that the
    /// address alone tells what was meant, whatever the protocol.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub address_only: bool,
    /// Connects of the edges that it was learnt from.
    pub connects: u64,
    /// A request on this port was seen whose host could not be read: there may be hosts that are not listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_unknown: bool,
    /// It was learnt, or learnt too, from a connection that was open since before the watch and was not seen to connect.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// Hosts that requests to an address of the service named and that nothing in the mesh has.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown_hosts: BTreeSet<Host>,
}

/// How a dependency was learnt.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Evidence {
    /// The socket's destination is an address of the service.
    Address(IpAddr),
    /// A request named this host: lower-case, without the port.
    Host(Host),
    /// The workload had asked a DNS server for this name and been given the address.
    DnsName(Host),
}

/// A call to a pod's address where no headless service stands for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DirectCall {
    /// The workload of that pod.
    pub workload: WorkloadRef,
    /// Destination address.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Connects.
    pub connects: u64,
    /// A request was seen whose host could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_unknown: bool,
    /// Hosts that requests named and that nothing in the mesh has.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unknown_hosts: BTreeSet<Host>,
}

/// An edge that could not be attributed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unresolved {
    /// The workload that called.
    pub workload: WorkloadRef,
    /// Destination address.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Hosts that were named and that nothing in the mesh has.
    pub hosts: BTreeSet<Host>,
    /// A request was seen whose host could not be read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub host_unknown: bool,
    /// Why.
    pub reason: UnresolvedReason,
    /// Connects.
    pub connects: u64,
}

/// Why an edge has no destination in the mesh.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum UnresolvedReason {
    /// No object has this address.
    UnknownAddress,
    /// Several objects have this address, or had it around that time; which one was meant cannot be told.
    AmbiguousAddress,
    /// It is from before anything was known of the address, or what is known is not enough to tell whose it was.
    NotKnown,
}
