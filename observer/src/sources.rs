//! Whose connection it is: from a network namespace to the workload of its pod, and from edges to flows. Pure.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
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

/// Most network namespaces of which addresses are kept: those that live, and those that are gone and not forgotten yet.
pub const MAX_NAMESPACES: usize = 65_536;

/// What is known of the network namespaces of this machine, by their cookies.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Addresses as the last scan that found the namespace has listed them.
    scanned: HashMap<u64, BTreeSet<IpAddr>>,
    /// Local addresses of first connections, for namespaces that no scan has found.
    local: HashMap<u64, BTreeSet<IpAddr>>,
    /// The same by the cgroup of a program that connected.
    by_home: HashMap<u64, BTreeSet<IpAddr>>,
    /// Where the kernel does not tell cookies: by cgroup, the number of the namespace in which its processes live.
    homes: HashMap<u64, u64>,
    /// The same, of the scan under way.
    new_homes: HashMap<u64, u64>,
    /// Namespaces that were looked at, and whether the uids of their user namespace are known, without which their proxy is not.
    looked_at: HashMap<u64, bool>,
    /// Namespaces in which a process of the watched cgroup has been found.
    watched: HashSet<u64>,
}

/// The number by which a scan calls a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// Its cookie, that no other namespace ever has.
    Cookie(u64),
    /// Another number, that the next one may have when this one is gone.
    Reused(u64),
}

impl Sources {
    /// What a scan says of a namespace, once in each scan. False: there are too many namespaces to keep it.
    #[must_use]
    pub fn scanned(&mut self, name: Name, addresses: BTreeSet<IpAddr>, watched: bool) -> bool {
        let (Name::Cookie(netns) | Name::Reused(netns)) = name;
        if self.scanned.len() >= MAX_NAMESPACES && !self.scanned.contains_key(&netns) {
            return false;
        }
        let known = self.scanned.entry(netns).or_default();
        // Without an address it is about to end, and still the one that it was; by another number it may be the next one.
        if !addresses.is_empty() || matches!(name, Name::Reused(_)) {
            *known = addresses;
        }
        if watched {
            self.watched.insert(netns);
        } else if matches!(name, Name::Reused(_)) {
            self.watched.remove(&netns);
        }
        true
    }

    /// The local address of a connection from a namespace.
    pub fn add_local(&mut self, netns: u64, address: IpAddr) {
        self.local.entry(netns).or_default().insert(address);
    }

    /// Notes that a scan has looked at the namespace, once in each scan. `users` are the uids of its own user namespace, if that was told, none of them as
    /// long as they are not known.
    pub fn look_at(&mut self, netns: u64, users: Option<&UidMap>) {
        match users {
            // Where it had users of its own before, they could not be told this time.
            None => drop(self.looked_at.entry(netns).or_insert(true)),
            Some(users) => drop(self.looked_at.insert(netns, !users.is_empty())),
        }
    }

    /// Whether a look at the namespace might tell what is not known of it.
    pub fn lacks(&self, netns: u64) -> bool {
        !self.knows(netns) || !self.knows_users(netns)
    }

    /// Whether a scan has told whose users the namespace has.
    pub fn knows_users(&self, netns: u64) -> bool {
        self.looked_at.get(&netns) == Some(&true)
    }

    /// The scan under way says in which namespace the processes of a cgroup live, where its cookie is not known. False: there are too
    /// many to keep it.
    #[must_use]
    pub fn add_home(&mut self, cgroup: u64, namespace: u64) -> bool {
        let fits = self.new_homes.len() < MAX_NAMESPACES || self.new_homes.contains_key(&cgroup);
        if fits {
            self.new_homes.insert(cgroup, namespace);
        }
        fits
    }

    /// A scan ended; `whole` if it has found all that there is.
    pub fn end_scan(&mut self, whole: bool) {
        let homes = mem::take(&mut self.new_homes);
        if whole {
            self.homes = homes;
            return;
        }
        for (cgroup, namespace) in homes {
            if self.homes.len() < MAX_NAMESPACES || self.homes.contains_key(&cgroup) {
                self.homes.insert(cgroup, namespace);
            }
        }
    }

    /// Whether there are namespaces whose cookie is not known.
    pub fn has_homes(&self) -> bool {
        !self.homes.is_empty()
    }

    /// For a namespace of which only the cgroup of a program that connected is known: takes the addresses of the namespace in
    /// which that cgroup lives. What was known of one whose cgroup is gone stays.
    pub fn add_by_home(&mut self, netns: u64, cgroup: u64) {
        let home = self.homes.get(&cgroup).and_then(|home| self.scanned.get(home));
        if let Some(addresses) = home.filter(|addresses| !addresses.is_empty()) {
            self.by_home.insert(netns, addresses.clone());
        }
    }

    /// Whether an address of the namespace is known.
    pub fn knows(&self, netns: u64) -> bool {
        self.addresses(netns).is_some()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.scanned.is_empty() && self.local.is_empty()
    }

    /// A namespace is gone, and nobody asks for it any more.
    pub fn forget(&mut self, netns: u64) {
        for known in [&mut self.scanned, &mut self.local, &mut self.by_home] {
            known.remove(&netns);
        }
        self.looked_at.remove(&netns);
        self.watched.remove(&netns);
        self.homes.retain(|_, home| *home != netns);
    }

    /// The addresses of a namespace: at least one, from who knows best.
    pub fn addresses(&self, netns: u64) -> Option<&BTreeSet<IpAddr>> {
        [&self.scanned, &self.local, &self.by_home]
            .into_iter()
            .filter_map(|known| known.get(&netns))
            .find(|addresses| !addresses.is_empty())
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

    /// How many pods of each workload were watched: a process of the watched cgroup was found in their namespace, or one of `edges` comes
    /// from there, and their addresses are known, so that a connection of theirs would have been seen and attributed.
    pub fn watched(
        &self,
        index: &MeshIndex<'_>,
        edges: &HashMap<EdgeKey, Observed>,
    ) -> BTreeMap<WorkloadRef, usize> {
        let namespaces: HashSet<u64> =
            self.watched.iter().copied().chain(edges.keys().map(|key| key.netns)).collect();
        let mut pods: BTreeMap<&WorkloadRef, BTreeSet<&PodRef>> = BTreeMap::new();
        for netns in namespaces {
            let Owner::Workload(workload) = self.workload(index, netns) else {
                continue;
            };
            let known = pods.entry(workload).or_default();
            for address in self.addresses(netns).into_iter().flatten() {
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
        let Some(addresses) = self.addresses(netns) else {
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

    fn scanned(sources: &mut Sources, netns: u64, addresses: impl IntoIterator<Item = IpAddr>) {
        assert!(sources.scanned(Name::Cookie(netns), addresses.into_iter().collect(), true));
    }

    #[test]
    fn a_connection_from_before_is_told_only_where_no_connect_was_seen() {
        let mesh = bookinfo();
        let mut sources = Sources::default();
        let mut edges = HashMap::new();
        for (netns, pod) in mesh.pods.values().enumerate() {
            scanned(&mut sources, netns as u64, pod.addresses.iter().copied());
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
            scanned(&mut sources, netns, ["10.0.0.1".parse().unwrap()]);
            assert!(sources.knows(netns) && sources.lacks(netns));
        }
        sources.look_at(2, None);
        sources.look_at(3, Some(&UidMap::default()));
        // A look that failed.
        sources.look_at(3, None);
        assert_eq!([1, 2, 3].map(|netns| sources.lacks(netns)), [true, false, true]);
        sources.look_at(3, Some(&UidMap::parse("0 100000 65536\n").unwrap()));
        assert!(!sources.lacks(3));
    }

    #[test]
    fn only_pods_whose_namespace_is_known_and_watched_were_watched() {
        let second = deployment("web", "v1", "10.0.0.2").replace("5f4-abc", "5f4-def");
        let objects = [
            deployment("web", "v1", "10.0.0.1"),
            second,
            deployment("api", "v1", "10.0.0.3"),
            deployment("far", "v1", "10.0.0.4"),
            deployment("other", "v1", "10.0.0.5"),
            deployment("caller", "v1", "10.0.0.6"),
        ];
        let mesh = mesh(&objects.concat());
        let index = MeshIndex::new(&mesh);
        let mut sources = Sources::default();
        for (netns, addresses, watched) in [
            (1, &["10.0.0.1", "fe80::1"][..], true),
            // Again under another cookie: still the one pod.
            (2, &["10.0.0.1"], true),
            (3, &["10.0.0.3"], true),
            (4, &["198.51.100.1"], true),
            (5, &[], true),
            // Whose it is cannot be told.
            (6, &["10.0.0.2", "10.0.0.4"], true),
            // On this machine, and not in the cgroup; the second was seen to connect all the same.
            (7, &["10.0.0.5"], false),
            (8, &["10.0.0.6"], false),
        ] {
            let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
            assert!(sources.scanned(Name::Cookie(netns), addresses, watched));
        }
        let key = EdgeKey { netns: 8, addr: [0x20; 16], uid: 0, port: 80, reserved: 0 };
        assert_eq!(
            sources.watched(&index, &HashMap::from([(key, Observed::default())])),
            BTreeMap::from([
                (workload("default/Deployment/api-v1"), 1),
                (workload("default/Deployment/caller-v1"), 1),
                (workload("default/Deployment/web-v1"), 1)
            ])
        );
    }

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses.iter().map(|address| address.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_those_of_the_last_scan_that_has_found_any() {
        let mut sources = Sources::default();
        let told = |sources: &Sources, netns| sources.addresses(netns).cloned().unwrap_or_default();
        sources.add_local(1, "10.0.0.1".parse().unwrap());
        assert_eq!(told(&sources, 1), set(&["10.0.0.1"]));
        for (name, netns, empty) in [(Name::Cookie(1), 1, &["10.0.0.3"][..]), (Name::Reused(2), 2, &[][..])] {
            for (scanned, known) in
                [(&["10.0.0.2"][..], &["10.0.0.2"][..]), (&["10.0.0.3"], &["10.0.0.3"]), (&[], empty)]
            {
                assert!(sources.scanned(name, set(scanned), true));
                assert_eq!(told(&sources, netns), set(known), "{name:?}");
            }
        }
        // One that no scan finds any more keeps what it had, until nobody asks.
        sources.end_scan(true);
        assert!(sources.knows(1));
        sources.look_at(1, None);
        sources.forget(1);
        assert!(!sources.knows(1) && sources.lacks(1) && sources.watched.contains(&2));
        assert!(!sources.watched.contains(&1));
    }

    #[test]
    fn a_number_that_is_given_out_again_stands_for_the_namespace_that_has_it_now() {
        let mut sources = Sources::default();
        let scan = |sources: &mut Sources, cgroup, address: &str, watched, whole| {
            assert!(sources.scanned(Name::Reused(100), set(&[address]), watched));
            assert!(sources.add_home(cgroup, 100));
            sources.end_scan(whole);
            for (netns, cgroup) in [(1, 11), (2, 22)] {
                sources.add_by_home(netns, cgroup);
            }
        };
        let told = |sources: &Sources, netns| sources.addresses(netns).cloned().unwrap_or_default();
        scan(&mut sources, 11, "10.0.0.1", true, true);
        assert_eq!(told(&sources, 1), set(&["10.0.0.1"]));
        // Another pod has the number: the first one keeps the address that it had.
        scan(&mut sources, 22, "10.0.0.2", false, true);
        assert_eq!((told(&sources, 1), told(&sources, 2)), (set(&["10.0.0.1"]), set(&["10.0.0.2"])));
        assert_eq!(told(&sources, 100), set(&["10.0.0.2"]));
        assert!(sources.watched.is_empty() && sources.homes.len() == 1);
        // What a scan with gaps has not told may still hold.
        scan(&mut sources, 33, "10.0.0.3", true, false);
        assert_eq!(sources.homes.len(), 2);
    }

    #[test]
    fn namespaces_are_bounded() {
        let mut sources = Sources::default();
        let taken = (0..MAX_NAMESPACES as u64 + 3)
            .filter(|netns| sources.scanned(Name::Cookie(*netns), BTreeSet::new(), false))
            .count();
        assert_eq!(taken, MAX_NAMESPACES);
        assert!(sources.scanned(Name::Cookie(0), BTreeSet::new(), false), "one that is known");
        let homes = (0..MAX_NAMESPACES as u64 + 3).filter(|cgroup| sources.add_home(*cgroup, 0)).count();
        assert_eq!(homes, MAX_NAMESPACES);
    }

    #[test]
    fn a_loss_is_that_of_the_workload_whose_namespace_it_has_hit() {
        let objects = [deployment("web", "v1", "10.0.0.1"), deployment("api", "v1", "10.0.0.2")];
        let mesh = mesh(&objects.concat());
        let mut sources = Sources::default();
        for (netns, address) in [(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "198.51.100.1")] {
            assert!(sources.scanned(Name::Cookie(netns), BTreeSet::from([address.parse().unwrap()]), true));
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
        scanned(&mut sources, 1, ["10.0.0.1".parse().unwrap()]);
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
