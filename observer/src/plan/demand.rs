//! What the members of a canonical workload were seen to need, and what says that there may be more: from a graph that was made once, or
//! from the records that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::doubt::{Doubt, Doubts};
use crate::model::dependencies::{Coverage, EvidenceKind, Record};
use crate::model::graph::{Evidence, Graph, UnresolvedReason, WorkloadNode};
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, ObjectName, WorkloadRef};
use crate::model::stamp::{Seconds, Timestamp};

/// What was seen of a canonical workload.
#[derive(Clone, Debug, Default)]
pub struct Demand<'a> {
    /// Services that it calls, or names.
    pub(super) uses: Vec<Use<'a>>,
    /// Hosts that it names and that no service had when they were seen.
    pub(super) unknown_hosts: BTreeSet<&'a Host>,
    /// It calls what could not be attributed.
    pub(super) calls_unresolved: bool,
    /// It calls pods at their own addresses.
    pub(super) calls_pods: bool,
    /// It calls more services than a record holds.
    pub(super) is_broad: bool,
    /// Why there may be more.
    pub(super) doubts: Vec<Doubt>,
    /// Through which time its members were watched; none where nobody keeps account of it.
    pub(super) members: Vec<Member<'a>>,
}

/// One port of a service that is called, or named.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'a> {
    pub(super) host: &'a Host,
    pub(super) namespace: &'a Namespace,
    pub(super) protocol: PortProtocol,
    pub(super) by_address: bool,
    pub(super) by_host: bool,
    pub(super) address_only: bool,
    /// How much time was covered since it was last seen.
    pub(super) idle: Seconds,
}

/// A member of which a record is kept.
#[derive(Clone, Debug)]
pub(super) struct Member<'a> {
    pub(super) workload: &'a WorkloadRef,
    pub(super) coverage: &'a Coverage,
    /// Causes of losses, with the last time of each.
    pub(super) losses: Vec<(&'a str, Timestamp)>,
    /// Nodes with a pod of it that nobody watches.
    pub(super) unwatched: BTreeSet<ObjectName>,
    /// What could not be seen, and when that was last.
    pub(super) unseen: Vec<(Doubt, Timestamp)>,
}

/// Where demands come from.
pub trait Seen {
    /// What was seen of these workloads together; `None`: nothing was watched of any.
    fn demand<'s>(&'s self, members: &[&'s WorkloadRef]) -> Option<Demand<'s>>;
    /// Workloads of which something is known, in no order.
    fn workloads(&self) -> impl Iterator<Item = &WorkloadRef>;
}

/// A graph that was made once: nobody kept account of what was watched, so all of it counts.
pub struct Once<'a> {
    nodes: BTreeMap<&'a WorkloadRef, &'a WorkloadNode>,
    doubts: Doubts<'a>,
}

impl<'a> Once<'a> {
    /// What `graph` says.
    pub fn new(graph: &'a Graph) -> Self {
        let nodes = graph.workloads.iter().map(|node| (&node.workload, node)).collect();
        Self { nodes, doubts: Doubts::new(graph) }
    }

    /// How many pods of these were watched.
    pub(super) fn watched(&self, members: &[&WorkloadRef]) -> usize {
        members.iter().filter_map(|member| self.nodes.get(member)).map(|node| node.pods.watched).sum()
    }
}

impl Seen for Once<'_> {
    fn demand<'s>(&'s self, members: &[&'s WorkloadRef]) -> Option<Demand<'s>> {
        let nodes: Vec<&WorkloadNode> = members.iter().filter_map(|m| self.nodes.get(m).copied()).collect();
        if nodes.is_empty() {
            return None;
        }
        let mut demand = Demand {
            calls_unresolved: self.doubts.any_unresolved(&nodes),
            calls_pods: nodes.iter().any(|node| !node.direct.is_empty()),
            doubts: self.doubts.of(&nodes),
            ..Demand::default()
        };
        for dependency in nodes.iter().flat_map(|node| &node.dependencies) {
            for port in dependency.ports.values() {
                demand.unknown_hosts.extend(&port.unknown_hosts);
                demand.uses.push(Use {
                    host: &dependency.host,
                    namespace: &dependency.namespace,
                    protocol: port.protocol,
                    by_address: port.seen.iter().any(|e| matches!(e, Evidence::Address(_))),
                    by_host: port.seen.iter().any(|e| matches!(e, Evidence::Host(_))),
                    address_only: port.address_only,
                    idle: Seconds(0),
                });
            }
        }
        demand
            .unknown_hosts
            .extend(nodes.iter().flat_map(|node| &node.direct).flat_map(|d| &d.unknown_hosts));
        demand.unknown_hosts.extend(self.doubts.unknown_hosts(&nodes));
        Some(demand)
    }

    fn workloads(&self) -> impl Iterator<Item = &WorkloadRef> {
        self.nodes.keys().copied()
    }
}

/// Records that are kept, with the nodes on which nobody watches a workload's pods.
#[derive(Clone, Debug, Default)]
pub struct Recorded<'a> {
    /// By workload.
    pub records: BTreeMap<&'a WorkloadRef, &'a Record>,
    /// Nodes with a pod of the workload that no agent tells of.
    pub unwatched: BTreeMap<&'a WorkloadRef, BTreeSet<ObjectName>>,
}

impl Seen for Recorded<'_> {
    fn demand<'s>(&'s self, members: &[&'s WorkloadRef]) -> Option<Demand<'s>> {
        let mut demand = Demand::default();
        for member in members {
            let Some((workload, record)) = self.records.get_key_value(member) else { continue };
            let unwatched = self.unwatched.get(member).cloned().unwrap_or_default();
            demand.add(workload, record, unwatched);
        }
        (!demand.members.is_empty()).then_some(demand)
    }

    fn workloads(&self) -> impl Iterator<Item = &WorkloadRef> {
        self.records.keys().copied()
    }
}

impl<'a> Demand<'a> {
    /// Adds what the record of a member says. `unwatched` are nodes with a pod of it that nobody watches.
    pub fn add(&mut self, workload: &'a WorkloadRef, record: &'a Record, unwatched: BTreeSet<ObjectName>) {
        let covered = record.coverage.covered;
        let mut unseen = Vec::new();
        for dependency in &record.dependencies {
            for port in &dependency.ports {
                if let Some(last) = port.host_unknown {
                    unseen.push((Doubt::HostUnknown(dependency.host.clone(), port.port), last));
                }
                self.uses.push(Use {
                    host: &dependency.host,
                    namespace: &dependency.namespace,
                    protocol: port.protocol,
                    by_address: port.seen.contains(EvidenceKind::Address),
                    by_host: port.seen.contains(EvidenceKind::Host),
                    address_only: port.address_only,
                    idle: Seconds(covered.0.saturating_sub(port.covered_when_last_seen.0)),
                });
            }
        }
        for direct in &record.direct {
            if let Some(last) = direct.host_unknown {
                unseen.push((Doubt::DirectHostUnknownOf(direct.workload.clone(), direct.port), last));
            }
        }
        for edge in record.unresolved.iter().filter(|edge| edge.reason != UnresolvedReason::UnknownAddress) {
            let socket = SocketAddr::new(edge.address, edge.port);
            unseen.push((Doubt::NotTold(socket), edge.last_seen));
        }
        let more = [record.more_unknown_hosts, record.more_unresolved];
        unseen.extend(more.into_iter().flatten().map(|last| (Doubt::More, last)));
        self.unknown_hosts.extend(record.unknown_hosts.iter().map(|unknown| &unknown.host));
        self.calls_unresolved |= !record.unresolved.is_empty();
        self.calls_pods |= !record.direct.is_empty();
        self.is_broad |= record.broad.is_some();
        self.members.push(Member {
            workload,
            coverage: &record.coverage,
            losses: record.losses.iter().map(|loss| (loss.cause.as_str(), loss.last)).collect(),
            unwatched,
            unseen,
        });
    }
}
