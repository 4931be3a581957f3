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
    /// Where the kernel does not tell cookies: by cgroup, the number of the namespace in which its processes live.
    homes: HashMap<u64, u64>,
}

impl Sources {
    /// Takes over addresses of one namespace; what was known before stays.
    pub fn add(&mut self, netns: u64, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.entry(netns).or_default().extend(addresses);
    }

    /// Notes in which namespace the processes of a cgroup live, where its cookie is not known.
    pub fn add_home(&mut self, cgroup: u64, namespace: u64) {
        self.homes.insert(cgroup, namespace);
    }

    /// Whether there are namespaces whose cookie is not known.
    pub fn has_homes(&self) -> bool {
        !self.homes.is_empty()
    }

    /// For a namespace of which only the cgroup of a program that connected is known: takes the addresses of the namespace in
    /// which that cgroup lives.
    pub fn add_by_home(&mut self, netns: u64, cgroup: u64) {
        if self.knows(netns) {
            return;
        }
        if let Some(addresses) = self.homes.get(&cgroup).and_then(|home| self.addresses.get(home)).cloned() {
            self.add(netns, addresses);
        }
    }

    /// Whether an address of the namespace is known.
    pub fn knows(&self, netns: u64) -> bool {
        self.addresses.get(&netns).is_some_and(|addresses| !addresses.is_empty())
    }

    /// Number of namespaces that are known.
    pub fn len(&self) -> usize {
        self.addresses.len()
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
                existing: false,
            });
            flow.hosts.extend(observed.hosts.iter().cloned());
            flow.names.extend(observed.names.iter().cloned());
            flow.connects += observed.connects;
            flow.host_unknown |= observed.host_unknown;
            flow.existing |= observed.existing;
        }
        // Of those that were seen to connect, nothing is to be told.
        for flow in flows.values_mut() {
            flow.existing &= flow.connects == 0;
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
                PodAt::Pod(pod) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::bookinfo;

    #[test]
    fn a_connection_from_before_is_told_only_where_no_connect_was_seen() {
        let mesh = bookinfo();
        let mut sources = Sources::default();
        let mut edges = HashMap::new();
        for (netns, pod) in mesh.pods.values().enumerate() {
            sources.add(netns as u64, pod.addresses.iter().copied());
            // Two users of one pod: one whose connect was seen in every other pod, one whose connection is older.
            for (uid, connects) in [(1, netns as u64 % 2), (2, 0)] {
                let addr = std::net::Ipv4Addr::new(10, 96, 0, 2).to_ipv6_mapped().octets();
                let key = EdgeKey { netns: netns as u64, addr, uid, port: 9080, reserved: 0 };
                edges.insert(key, Observed { connects, existing: true, ..Observed::default() });
            }
        }
        let (flows, unattributed) = sources.flows(&MeshIndex::new(&mesh), &edges);
        assert_eq!((flows.len(), unattributed), (mesh.pods.len(), Unattributed::default()));
        assert!(flows.iter().all(|flow| flow.existing == (flow.connects == 0)));
        assert!(flows.iter().any(|flow| flow.existing) && flows.iter().any(|flow| !flow.existing));
    }
}
