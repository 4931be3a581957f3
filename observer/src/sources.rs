//! Whose connection it is: from a network namespace to the workload of its pod, and from edges to flows. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use sidescope_common::EdgeKey;

use crate::attribute::Flow;
use crate::collect::{Observed, address};
use crate::mesh_index::{MeshIndex, PodAt};
use crate::model::names::WorkloadRef;

/// Edges without a workload, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unattributed {
    /// No address of the namespace is known (yet).
    pub unknown: usize,
    /// Addresses of the namespace belong to several workloads.
    pub ambiguous: usize,
    /// The namespace has addresses, but none of a pod in the inventory: the node itself, or something outside the mesh.
    pub foreign: usize,
}

/// Addresses by the cookie of the network namespace.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    addresses: HashMap<u64, BTreeSet<IpAddr>>,
}

impl Sources {
    /// Takes over addresses of one namespace; what was known before stays.
    pub fn add(&mut self, netns: u64, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.entry(netns).or_default().extend(addresses);
    }

    /// Whether an address of the namespace is known.
    pub fn knows(&self, netns: u64) -> bool {
        self.addresses.get(&netns).is_some_and(|addresses| !addresses.is_empty())
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Edges of workloads as flows, in a stable order, and how many edges have no workload.
    pub fn flows(
        &self,
        index: &MeshIndex<'_>,
        edges: &HashMap<EdgeKey, Observed>,
    ) -> (Vec<Flow>, Unattributed) {
        let mut unattributed = Unattributed::default();
        let mut flows: BTreeMap<(WorkloadRef, IpAddr, u16), Flow> = BTreeMap::new();
        for (key, observed) in edges {
            let workload = match self.workload(index, key.netns) {
                Owner::Workload(workload) => workload,
                Owner::Unknown => {
                    unattributed.unknown += 1;
                    continue;
                }
                Owner::Ambiguous => {
                    unattributed.ambiguous += 1;
                    continue;
                }
                Owner::Foreign => {
                    unattributed.foreign += 1;
                    continue;
                }
            };
            let address = address(key.addr);
            let flow = flows.entry((workload.clone(), address, key.port)).or_insert_with(|| Flow {
                source: workload.clone(),
                address,
                port: key.port,
                hosts: BTreeSet::new(),
                names: BTreeSet::new(),
                connects: 0,
                host_unknown: false,
            });
            flow.hosts.extend(observed.hosts.iter().cloned());
            flow.names.extend(observed.names.iter().cloned());
            flow.connects += observed.connects;
            flow.host_unknown |= observed.host_unknown;
        }
        (flows.into_values().collect(), unattributed)
    }

    fn workload<'a>(&self, index: &MeshIndex<'a>, netns: u64) -> Owner<'a> {
        let Some(addresses) = self.addresses.get(&netns).filter(|addresses| !addresses.is_empty()) else {
            return Owner::Unknown;
        };
        let mut owners = BTreeSet::new();
        for address in addresses {
            match index.pod_at(*address) {
                PodAt::Pod(_, pod) => {
                    owners.insert(&pod.workload);
                }
                PodAt::Ambiguous => return Owner::Ambiguous,
                PodAt::None => {}
            }
        }
        match owners.len() {
            0 => Owner::Foreign,
            1 => owners.pop_first().map_or(Owner::Foreign, Owner::Workload),
            _ => Owner::Ambiguous,
        }
    }
}

enum Owner<'a> {
    Workload(&'a WorkloadRef),
    Unknown,
    Ambiguous,
    Foreign,
}
