//! Whose connection it is: from a network namespace to the workload of its pod, and from edges to flows. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use sidescope_common::EdgeKey;

use crate::attribute::Flow;
use crate::collect::{Observed, address};
use crate::losses::{CauseNames, Hit};
use crate::mesh_index::{MeshIndex, PodAt};
use crate::model::graph::Unattributed;
use crate::model::mesh::PodRef;
use crate::model::names::WorkloadRef;
use crate::uid_map::UidMap;

/// Addresses by the cookie of the network namespace.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    addresses: HashMap<u64, BTreeSet<IpAddr>>,
    /// Where the kernel does not tell cookies: by cgroup, the number of the namespace in which its processes live.
    homes: HashMap<u64, u64>,
    /// Namespaces that were looked at, and whether the uids of their user namespace are known, without which their proxy is not.
    looked_at: HashMap<u64, bool>,
}

impl Sources {
    /// Takes over addresses of one namespace; what was known before stays.
    pub fn add(&mut self, netns: u64, addresses: impl IntoIterator<Item = IpAddr>) {
        self.addresses.entry(netns).or_default().extend(addresses);
    }

    /// Notes that the namespace was looked at. `users` are the uids of its own user namespace, if that was told, none of them as
    /// long as they are not known.
    pub fn look_at(&mut self, netns: u64, users: Option<&UidMap>) {
        match users {
            None => drop(self.looked_at.entry(netns).or_insert(true)),
            Some(users) => drop(self.looked_at.insert(netns, !users.is_empty())),
        }
    }

    /// Whether a look at the namespace might tell what is not known of it.
    pub fn lacks(&self, netns: u64) -> bool {
        !self.knows(netns) || self.looked_at.get(&netns) != Some(&true)
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
            let flow = Flow {
                source: workload.clone(),
                address,
                port: key.port,
                hosts: observed.hosts.clone(),
                names: observed.names.clone(),
                connects: observed.connects,
                host_unknown: observed.host_unknown,
                unnamed: observed.unnamed,
                existing: observed.existing,
            };
            match flows.entry((workload.clone(), address, key.port)) {
                Entry::Vacant(free) => drop(free.insert(flow)),
                Entry::Occupied(mut known) => known.get_mut().merge(&flow),
            }
        }
        // Of those that were seen to connect, nothing is to be told.
        for flow in flows.values_mut() {
            flow.existing &= flow.connects == 0;
        }
        (flows.into_values().collect(), unattributed)
    }

    /// How many pods of each workload have a namespace whose addresses are known, so that a connection of theirs would have
    /// been seen and attributed.
    pub fn watched(&self, index: &MeshIndex<'_>) -> BTreeMap<WorkloadRef, usize> {
        let mut pods: BTreeMap<&WorkloadRef, BTreeSet<&PodRef>> = BTreeMap::new();
        for (netns, addresses) in &self.addresses {
            let Owner::Workload(workload) = self.workload(index, *netns) else {
                continue;
            };
            let known = pods.entry(workload).or_default();
            for address in addresses {
                if let PodAt::Pod(name, _) = index.pod_at(*address) {
                    known.insert(name);
                }
            }
        }
        pods.into_iter().map(|(workload, pods)| (workload.clone(), pods.len())).collect()
    }

    /// Which losses have hit each workload, and which may have hit any: those of a namespace that may be anybody's.
    pub fn losses(
        &self,
        index: &MeshIndex<'_>,
        hit: &Hit,
    ) -> (BTreeMap<WorkloadRef, BTreeSet<String>>, BTreeSet<String>) {
        let mut known: BTreeMap<WorkloadRef, BTreeSet<String>> = BTreeMap::new();
        let names = |causes: &CauseNames| causes.iter().map(|cause| (*cause).to_owned()).collect::<Vec<_>>();
        let mut anyone: BTreeSet<String> = names(hit.everywhere()).into_iter().collect();
        for (netns, causes) in hit.namespaces() {
            match self.workload(index, *netns) {
                Owner::Workload(workload) => {
                    known.entry(workload.clone()).or_default().extend(names(causes));
                }
                Owner::Unknown | Owner::Ambiguous => anyone.extend(names(causes)),
                Owner::Foreign => {}
            }
        }
        (known, anyone)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{bookinfo, deployment, host, mesh, workload};

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

    #[test]
    fn a_namespace_lacks_something_until_its_address_and_its_users_are_known() {
        let mut sources = Sources::default();
        for netns in [1, 2, 3] {
            assert!(sources.lacks(netns));
            sources.add(netns, ["10.0.0.1".parse().unwrap()]);
            assert!(sources.knows(netns) && sources.lacks(netns));
        }
        sources.look_at(2, None);
        sources.look_at(3, Some(&UidMap::default()));
        // More sockets of it, with which nothing is told of users.
        sources.look_at(3, None);
        assert_eq!([1, 2, 3].map(|netns| sources.lacks(netns)), [true, false, true]);
        sources.look_at(3, Some(&UidMap::parse("0 100000 65536\n").unwrap()));
        assert!(!sources.lacks(3));
    }

    #[test]
    fn only_pods_whose_namespace_is_known_were_watched() {
        let second = deployment("web", "v1", "10.0.0.2").replace("5f4-abc", "5f4-def");
        let objects = [
            deployment("web", "v1", "10.0.0.1"),
            second,
            deployment("api", "v1", "10.0.0.3"),
            deployment("far", "v1", "10.0.0.4"),
        ];
        let mesh = mesh(&objects.concat());
        let index = MeshIndex::new(&mesh);
        let mut sources = Sources::default();
        for (netns, addresses) in [
            (1, &["10.0.0.1", "fe80::1"][..]),
            // Again under another cookie: still the one pod.
            (2, &["10.0.0.1"]),
            (3, &["10.0.0.3"]),
            (4, &["198.51.100.1"]),
            (5, &[]),
            // Whose it is cannot be told.
            (6, &["10.0.0.2", "10.0.0.4"]),
        ] {
            sources.add(netns, addresses.iter().map(|address| address.parse().unwrap()));
        }
        assert_eq!(
            sources.watched(&index),
            BTreeMap::from([
                (workload("default/Deployment/api-v1"), 1),
                (workload("default/Deployment/web-v1"), 1)
            ])
        );
    }

    #[test]
    fn a_loss_is_that_of_the_workload_whose_namespace_it_has_hit() {
        let objects = [deployment("web", "v1", "10.0.0.1"), deployment("api", "v1", "10.0.0.2")];
        let mesh = mesh(&objects.concat());
        let mut sources = Sources::default();
        for (netns, address) in [(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "198.51.100.1")] {
            sources.add(netns, [address.parse().unwrap()]);
        }
        let mut hit = Hit::default();
        hit.note(Some(1), "edgesFull");
        hit.note(Some(3), "headBudget");
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let web = || workload("default/Deployment/web-v1");
        let known = BTreeMap::from([(web(), of(&["edgesFull"]))]);
        assert_eq!(sources.losses(&MeshIndex::new(&mesh), &hit), (known.clone(), of(&[])), "3 is nobody's");
        hit.note(Some(4), "dnsBudget");
        hit.note(None, "agentKilled");
        assert_eq!(sources.losses(&MeshIndex::new(&mesh), &hit), (known, of(&["agentKilled", "dnsBudget"])));
    }

    #[test]
    fn a_workload_s_edges_to_one_destination_are_one_flow_that_forgets_nothing() {
        let mesh = mesh(&deployment("web", "v1", "10.0.0.1"));
        let index = MeshIndex::new(&mesh);
        let mut sources = Sources::default();
        sources.add(1, ["10.0.0.1".parse().unwrap()]);
        let key = |uid| EdgeKey { netns: 1, addr: [0x20; 16], uid, port: 80, reserved: 0 };
        let seen = |connects, hosts: &[&str], unnamed| {
            let hosts = hosts.iter().map(|name| host(name)).collect();
            Observed { connects, hosts, unnamed, ..Observed::default() }
        };
        for (one, other, connects, unnamed) in [
            (seen(2, &["a"], false), seen(2, &["b"], false), 4, false),
            (seen(2, &["a"], false), seen(3, &[], false), 5, true),
            (seen(2, &["a"], true), seen(2, &["b"], false), 4, true),
        ] {
            let edges = HashMap::from([(key(1), one), (key(2), other)]);
            let (flows, unattributed) = sources.flows(&index, &edges);
            assert_eq!((flows.len(), unattributed), (1, Unattributed::default()));
            assert_eq!((flows[0].connects, flows[0].unnamed), (connects, unnamed), "{edges:?}");
        }
        let (flows, unattributed) =
            Sources::default().flows(&index, &HashMap::from([(key(1), seen(1, &[], false))]));
        assert_eq!((flows.len(), unattributed.unknown), (0, 1));
    }
}
