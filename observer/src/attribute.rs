//! From connections to the dependency graph: what each of them says about whom its workload calls.
//!
//! A connection gives evidence of two kinds, the address that it went to and the hosts that its requests named. They may name
//! different services (an HTTP proxy routes by host, whatever the address). Both are recorded, each on the service that it
//! names; which of them counts is the planner's business.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::mesh_index::MeshIndex;
use crate::model::graph::{
    Dependency, DirectCall, Evidence, GRAPH_VERSION, Graph, Pods, PortUse, Unattributed, Unresolved,
    UnresolvedReason, WorkloadNode,
};
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::service_index::{Destination, Lookup, Target};

/// What was seen of the connections from one workload to one address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The workload that connected.
    pub source: WorkloadRef,
    /// Destination as the program asked for it.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Hosts that requests named, without the port.
    pub hosts: BTreeSet<Host>,
    /// Names for which a DNS server had given this address to the workload.
    pub names: BTreeSet<Host>,
    /// How many connects.
    pub connects: u64,
    /// A request was seen whose host could not be read.
    pub host_unknown: bool,
    /// No connect was seen, but a connection that was open since before the watch.
    pub existing: bool,
    /// Beside those that named the hosts, there was a connection or a request that named none, or an address.
    pub unnamed: bool,
}

impl Flow {
    /// Takes over what another flow from the same source to the same destination says.
    pub fn merge(&mut self, other: &Self) {
        // Put together, the hosts no longer tell that one of the two had none.
        self.unnamed |= other.unnamed || self.hosts.is_empty() || other.hosts.is_empty();
        self.hosts.extend(other.hosts.iter().cloned());
        self.names.extend(other.names.iter().cloned());
        self.connects = self.connects.saturating_add(other.connects);
        self.host_unknown |= other.host_unknown;
        self.existing |= other.existing;
    }
}

/// Makes the graph: of the workloads that were `watched` (with how many pods), and of the sources of flows. The order of
/// `flows` does not matter, nor how the connections of a workload are spread over them.
pub fn attribute(index: &MeshIndex<'_>, flows: &[Flow], watched: &BTreeMap<WorkloadRef, usize>) -> Graph {
    let mut merged: BTreeMap<(&WorkloadRef, IpAddr, u16), Flow> = BTreeMap::new();
    for flow in flows {
        match merged.entry((&flow.source, flow.address.to_canonical(), flow.port)) {
            Entry::Vacant(free) => drop(free.insert(flow.clone())),
            Entry::Occupied(mut known) => known.get_mut().merge(flow),
        }
    }
    let mut collected: BTreeMap<&WorkloadRef, Collected> =
        watched.keys().map(|workload| (workload, Collected::default())).collect();
    for ((source, ..), flow) in &merged {
        collected.entry(source).or_default().add(index, flow);
    }
    let mut graph = Graph {
        version: GRAPH_VERSION,
        workloads: Vec::new(),
        unresolved: Vec::new(),
        losses: BTreeMap::new(),
        unattributed: Unattributed::default(),
    };
    let known = index.mesh().live_pods();
    for (workload, collected) in collected {
        graph.unresolved.extend(collected.unresolved_of(workload));
        let pods = Pods {
            watched: watched.get(workload).copied().unwrap_or(0),
            known: known.get(workload).copied().unwrap_or(0),
        };
        graph.workloads.push(collected.into_node(workload.clone(), pods));
    }
    graph
}

/// What is known of one workload.
#[derive(Default)]
struct Collected {
    dependencies: BTreeMap<(Host, Namespace), BTreeMap<u16, PortUse>>,
    direct: BTreeMap<(WorkloadRef, IpAddr, u16), DirectCall>,
    unresolved: BTreeMap<(IpAddr, u16, UnresolvedReason), NoPlace>,
}

/// What is known of a destination that has no place in the mesh.
#[derive(Default)]
struct NoPlace {
    hosts: BTreeSet<Host>,
    host_unknown: bool,
    connects: u64,
}

/// Uses of services, by host, namespace and port.
pub type Uses<'m> = BTreeMap<(&'m Host, &'m Namespace, u16), PortUse>;

/// What one flow says.
#[derive(Clone, Debug, Default)]
pub struct Finding<'m> {
    /// Which services it went to, or named.
    pub uses: Uses<'m>,
    /// The call straight to a pod that it is.
    pub direct: Option<DirectCall>,
    /// Why its destination has no place in the mesh, where that leaves open what was meant.
    pub unresolved: Option<UnresolvedReason>,
    /// Hosts that it named and that nothing in the mesh has.
    pub unknown_hosts: BTreeSet<Host>,
}

impl Finding<'_> {
    /// Whether the other one, of the same flow at another time, says the same.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let called = |found: &Self| found.direct.as_ref().map(|call| call.workload.clone());
        self.unresolved == other.unresolved
            && called(self) == called(other)
            && self.uses.keys().eq(other.uses.keys())
    }
}

/// Finds what a flow says.
pub fn find<'m>(lookup: &'m impl Lookup, flow: &Flow) -> Finding<'m> {
    let address = flow.address.to_canonical();
    let destination = lookup.destination(address, flow.port);
    let (named, unknown_hosts) = name_services(lookup, flow, &destination);
    // Hosts that are all known say what was meant, even where the address does not.
    let by_host = !named.is_empty() && unknown_hosts.is_empty() && !flow.host_unknown && !flow.unnamed;
    let mut uses = Uses::new();
    let mut direct = None;

    let unresolved = match destination {
        Destination::Services(targets) => {
            // The listener that takes the connection decides whether hosts are looked at, and not the port of the
            // service that a host names.
            let listener = targets.iter().map(|t| t.protocol).reduce(joined);
            for target in targets {
                let port_use = entry(&mut uses, &target, target.protocol);
                port_use.seen.insert(Evidence::Address(address));
                port_use.address_only |= !by_host;
                port_use.unknown_hosts.extend(unknown_hosts.iter().cloned());
            }
            note_hosts(&mut uses, &named, listener);
            None
        }
        Destination::AmbiguousServices(targets) => {
            let claims = |host: &Host| targets.iter().any(|target| target.service.host == *host);
            let asked: BTreeMap<&Host, &Host> = asked_services(lookup, flow)
                .map(|(name, target)| (&target.service.host, name))
                .filter(|(host, _)| claims(host))
                .collect();
            let told = by_host && named.iter().all(|(_, target)| claims(&target.service.host));
            for target in &targets {
                let host = &target.service.host;
                let is_named = named.iter().any(|(_, named)| named.service.host == *host);
                // Where nothing tells which was meant, any may have been: too many in scope break no call.
                if (told || !asked.is_empty()) && !is_named && !asked.contains_key(host) {
                    continue;
                }
                let port_use = entry(&mut uses, target, target.protocol);
                port_use.seen.insert(Evidence::Address(address));
                port_use.seen.extend(asked.get(host).map(|name| Evidence::DnsName((*name).clone())));
                port_use.address_only |= !by_host;
                port_use.unknown_hosts.extend(unknown_hosts.iter().cloned());
            }
            note_hosts(&mut uses, &named, None);
            (!told && asked.is_empty()).then_some(UnresolvedReason::AmbiguousAddress)
        }
        Destination::Pod(workload) => {
            direct = Some(DirectCall {
                workload: workload.clone(),
                address,
                port: flow.port,
                connects: flow.connects,
                host_unknown: flow.host_unknown,
                unknown_hosts: unknown_hosts.clone(),
            });
            note_hosts(&mut uses, &named, None);
            None
        }
        Destination::Ambiguous => {
            note_hosts(&mut uses, &named, None);
            (!by_host).then_some(UnresolvedReason::AmbiguousAddress)
        }
        Destination::Unknown => {
            note_hosts(&mut uses, &named, None);
            let asked = note_names(&mut uses, lookup, flow, address);
            (!asked && !by_host).then_some(UnresolvedReason::UnknownAddress)
        }
        Destination::NotKnown => {
            // A name for which the address was given to the workload tells what it meant, whosever the address was.
            note_hosts(&mut uses, &named, None);
            let asked = note_names(&mut uses, lookup, flow, address);
            (!asked && !by_host).then_some(UnresolvedReason::NotKnown)
        }
    };

    for port_use in uses.values_mut() {
        port_use.connects = flow.connects;
        port_use.host_unknown = flow.host_unknown;
        port_use.existing = flow.existing && flow.connects == 0;
    }
    Finding { uses, direct, unresolved, unknown_hosts }
}

impl Collected {
    fn add(&mut self, index: &impl Lookup, flow: &Flow) {
        let found = find(index, flow);
        let address = flow.address.to_canonical();
        if let Some(call) = found.direct {
            self.direct.insert((call.workload.clone(), address, flow.port), call);
        }
        if let Some(reason) = found.unresolved {
            let key = (address, flow.port, reason);
            let known = self.unresolved.entry(key).or_default();
            known.hosts.extend(found.unknown_hosts);
            known.host_unknown |= flow.host_unknown;
            known.connects = known.connects.saturating_add(flow.connects);
        }
        for ((host, namespace, port), port_use) in found.uses {
            let key = (host.clone(), namespace.clone());
            let ports = self.dependencies.entry(key).or_default();
            match ports.get_mut(&port) {
                Some(known) => merge(known, port_use),
                None => drop(ports.insert(port, port_use)),
            }
        }
    }

    fn unresolved_of(&self, workload: &WorkloadRef) -> Vec<Unresolved> {
        let unresolved = self.unresolved.iter();
        unresolved
            .map(|((address, port, reason), known)| Unresolved {
                workload: workload.clone(),
                address: *address,
                port: *port,
                hosts: known.hosts.clone(),
                host_unknown: known.host_unknown,
                reason: *reason,
                connects: known.connects,
            })
            .collect()
    }

    fn into_node(self, workload: WorkloadRef, pods: Pods) -> WorkloadNode {
        let dependencies = self.dependencies.into_iter();
        WorkloadNode {
            workload,
            pods,
            losses: BTreeSet::new(),
            dependencies: dependencies
                .map(|((host, namespace), ports)| Dependency { host, namespace, ports })
                .collect(),
            direct: self.direct.into_values().collect(),
        }
    }
}

/// The services that the flow's hosts name, and the hosts that name none.
fn name_services<'f, 'm>(
    index: &'m impl Lookup,
    flow: &'f Flow,
    destination: &Destination<'m>,
) -> (Vec<(&'f Host, Target<'m>)>, BTreeSet<Host>) {
    let mut named = Vec::new();
    let mut unknown = BTreeSet::new();
    for host in &flow.hosts {
        // Through a node port or a headless service's target port, the port that was called is not the service's own.
        let same_service = |target: &&Target<'m>| {
            index
                .service_named(host, &flow.source.namespace, target.port)
                .is_some_and(|named| named.service.host == target.service.host)
        };
        let at_address = match destination {
            Destination::Services(targets) => targets.iter().find(same_service).copied(),
            _ => None,
        };
        let found = at_address.or_else(|| index.service_named(host, &flow.source.namespace, flow.port));
        match found {
            Some(target) => named.push((host, target)),
            None => drop(unknown.insert(host.clone())),
        }
    }
    (named, unknown)
}

/// Records the hosts on the services that they name.
fn note_hosts<'m>(uses: &mut Uses<'m>, named: &[(&Host, Target<'m>)], listener: Option<PortProtocol>) {
    for (host, target) in named {
        let protocol = listener.unwrap_or(target.protocol);
        let port_use = entry(uses, target, protocol);
        port_use.seen.insert(Evidence::Host((*host).clone()));
    }
}

/// Records an address that nothing in the mesh has on the services by whose names the workload had asked for it (a plain TCP
/// connection to an external database, say). False: there are none.
fn note_names<'m>(uses: &mut Uses<'m>, index: &'m impl Lookup, flow: &Flow, address: IpAddr) -> bool {
    let mut found = false;
    for (name, target) in asked_services(index, flow) {
        let port_use = entry(uses, &target, target.protocol);
        port_use.seen.insert(Evidence::Address(address));
        port_use.seen.insert(Evidence::DnsName(name.clone()));
        port_use.address_only = true;
        found = true;
    }
    found
}

/// The services by whose names the workload had asked for the address.
fn asked_services<'f, 'm>(
    index: &'m impl Lookup,
    flow: &'f Flow,
) -> impl Iterator<Item = (&'f Host, Target<'m>)> {
    flow.names.iter().filter_map(|name| {
        index.service_named(name, &flow.source.namespace, flow.port).map(|target| (name, target))
    })
}

fn entry<'s, 'm>(uses: &'s mut Uses<'m>, target: &Target<'m>, protocol: PortProtocol) -> &'s mut PortUse {
    let service = target.service;
    let key = (&service.host, &service.namespace, target.port);
    let port_use = uses.entry(key).or_insert_with(|| PortUse {
        protocol,
        seen: BTreeSet::new(),
        address_only: false,
        connects: 0,
        host_unknown: false,
        existing: false,
        unknown_hosts: BTreeSet::new(),
    });
    port_use.protocol = joined(port_use.protocol, protocol);
    port_use
}

/// Where two answers differ, none is known: then evidence of either kind counts, which is the safe side.
fn joined(a: PortProtocol, b: PortProtocol) -> PortProtocol {
    if a == b { a } else { PortProtocol::Unknown }
}

fn merge(known: &mut PortUse, more: PortUse) {
    known.protocol = joined(known.protocol, more.protocol);
    known.seen.extend(more.seen);
    known.address_only |= more.address_only;
    known.connects = known.connects.saturating_add(more.connects);
    known.host_unknown |= more.host_unknown;
    known.existing |= more.existing;
    known.unknown_hosts.extend(more.unknown_hosts);
}

#[cfg(test)]
mod tests;
