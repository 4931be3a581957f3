//! What the cluster of the bench is: how many of everything, names and addresses, and who calls whom. Pure.
//!
//! A mix-up has to show. Restless workloads are those whose pods take turns with an address. No two of them call the same service, and no
//! workload calls two of them: what is attributed to the owner before or after the right one is an edge that nobody made.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use sidescope::model::names::{Host, Namespace, WorkloadRef};

use super::truth::{Destination, Edge};

/// Namespaces over which workloads are spread.
pub(super) const NAMESPACES: usize = 20;
/// The port of every service, and of every container.
pub(super) const PORT: u16 = 80;
pub(super) const TARGET_PORT: u16 = 8080;
/// The hash of every ReplicaSet's pod template.
pub(super) const TEMPLATE_HASH: &str = "5d4f8c7b9d";
/// The smallest part of the full size that still has all kinds of everything.
pub(super) const SMALLEST: f64 = 0.02;

/// How many there are of everything.
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    pub(super) nodes: usize,
    /// All pods that are there at once, but for the agents'.
    pub(super) pods: usize,
    pub(super) services: usize,
    pub(super) workloads: usize,
    /// Services that each workload calls.
    pub(super) calls: usize,
    /// Workloads of which the pods come and go.
    pub(super) restless: usize,
    /// Addresses that their pods take turns with.
    pub(super) shared: usize,
    /// Pods that are made, and as many removed, in a second.
    pub(super) churn_per_s: f64,
    /// For how long.
    pub(super) churn: Duration,
}

/// A pod that stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) workload: usize,
    pub(super) nth: usize,
    pub(super) node: usize,
    pub(super) address: IpAddr,
}

impl World {
    pub(super) const FULL: Self = Self {
        nodes: 1_000,
        pods: 20_000,
        services: 2_000,
        workloads: 2_000,
        calls: 10,
        restless: 100,
        shared: 450,
        churn_per_s: 50.0,
        churn: Duration::from_secs(210),
    };

    /// A part of the full size, to try the bench itself.
    ///
    /// # Errors
    /// When it is so small that something would be missing, or larger than the whole.
    pub(super) fn scaled(part: f64) -> Result<Self> {
        ensure!((SMALLEST..=1.0).contains(&part), "a part of the full size is from {SMALLEST} to 1");
        let full = Self::FULL;
        let of = |count: usize| (count as f64 * part).ceil() as usize;
        Ok(Self {
            nodes: of(full.nodes),
            pods: of(full.pods),
            services: of(full.services),
            workloads: of(full.workloads),
            // Every other one has a headless service.
            restless: of(full.restless).next_multiple_of(2),
            shared: of(full.shared),
            churn_per_s: full.churn_per_s * part,
            churn: if part < 1.0 { full.churn / 4 } else { full.churn },
            ..full
        })
    }

    /// For how long nothing new happens.
    pub(super) fn idle(&self) -> Duration {
        self.churn / 3
    }

    /// Workloads whose pods stay. They come first.
    pub(super) fn calm(&self) -> usize {
        self.workloads - self.restless
    }

    /// Services with a ClusterIP. They come first; the others are headless, each for a restless workload.
    pub(super) fn virtual_services(&self) -> usize {
        self.services - self.restless / 2
    }

    /// The headless service of a restless workload; every other one has none.
    pub(super) fn headless_of(&self, workload: usize) -> Option<usize> {
        let nth = workload.checked_sub(self.calm())?;
        nth.is_multiple_of(2).then(|| self.virtual_services() + nth / 2)
    }

    /// The workload whose pods are the endpoints of a service.
    pub(super) fn selected_by(&self, service: usize) -> usize {
        match service.checked_sub(self.virtual_services()) {
            None => service % self.calm(),
            Some(nth) => self.calm() + 2 * nth,
        }
    }

    /// The services that a workload calls.
    pub(super) fn called_by(&self, workload: usize) -> impl Iterator<Item = usize> + use<> {
        let first = workload.checked_sub(self.calm()).unwrap_or(workload) * self.calls;
        let all = self.virtual_services();
        (first..first + self.calls).map(move |service| service % all)
    }

    /// The calm workloads that call the pods of a restless one.
    pub(super) fn callers_of(&self, restless: usize) -> impl Iterator<Item = usize> + use<> {
        (restless - self.calm()..self.calm()).step_by(self.restless)
    }

    /// The pods that stay.
    pub(super) fn calm_pods(&self) -> impl Iterator<Item = Pod> {
        (0..self.pods - self.shared).map(|pod| self.calm_pod(pod))
    }

    fn calm_pod(&self, pod: usize) -> Pod {
        let node = pod % self.nodes;
        let address = self.address(node, 2 + pod / self.nodes);
        Pod { workload: pod % self.calm(), nth: pod / self.calm(), node, address }
    }

    /// One of the pods of a calm workload.
    pub(super) fn pod_of(&self, workload: usize, any: usize) -> Pod {
        let count = (self.pods - self.shared - workload).div_ceil(self.calm());
        self.calm_pod(workload + any % count * self.calm())
    }

    /// The node of an address that restless pods take turns with, and the address.
    pub(super) fn shared(&self, nth: usize) -> (usize, IpAddr) {
        let node = nth % self.nodes;
        (node, self.address(node, 200 + nth / self.nodes))
    }

    fn address(&self, node: usize, host: usize) -> IpAddr {
        ipv4((10 << 24) + (128 << 16) + (node << 8) + host)
    }

    pub(super) fn node_address(&self, node: usize) -> IpAddr {
        ipv4((172 << 24 | 18 << 16) + 1 + node)
    }

    /// Of a service that is not headless.
    pub(super) fn cluster_ip(&self, service: usize) -> IpAddr {
        ipv4((10 << 24 | 96 << 16) + 256 + service)
    }

    pub(super) fn node_name(node: usize) -> String {
        format!("node-{node:04}")
    }

    pub(super) fn workload_name(workload: usize) -> String {
        format!("w{workload:04}")
    }

    pub(super) fn service_name(service: usize) -> String {
        format!("s{service:04}")
    }

    pub(super) fn namespace_of(workload: usize) -> String {
        format!("team-{:02}", workload % NAMESPACES)
    }

    pub(super) fn workload(workload: usize) -> WorkloadRef {
        WorkloadRef {
            namespace: Namespace::new(Self::namespace_of(workload)).expect("a DNS label"),
            kind: "Deployment".to_owned(),
            name: Self::workload_name(workload),
        }
    }

    /// A service is in the namespace of the workload that it selects.
    pub(super) fn to_service(self, service: usize, port: u16) -> Destination {
        let namespace = Namespace::new(Self::namespace_of(self.selected_by(service))).expect("a DNS label");
        let host = Host::of_service(&Self::service_name(service), &namespace).expect("a DNS name");
        Destination::Service { host, port }
    }

    /// What a call of a restless workload's pod is.
    pub(super) fn to_pod(self, restless: usize) -> Destination {
        match self.headless_of(restless) {
            Some(service) => self.to_service(service, TARGET_PORT),
            None => Destination::Pods { of: Self::workload(restless), port: TARGET_PORT },
        }
    }

    /// What calm workloads call from the start.
    pub(super) fn first_edges(&self) -> impl Iterator<Item = Edge> {
        (0..self.calm()).flat_map(move |workload| {
            let to = self.called_by(workload).map(|service| self.to_service(service, PORT));
            to.map(move |to| Edge { from: Self::workload(workload), to }).collect::<Vec<_>>()
        })
    }
}

fn ipv4(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(number).expect("fewer of everything than addresses")))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn every_pod_has_its_address_and_those_of_a_workload_are_on_many_nodes() {
        for world in [World::FULL, World::scaled(SMALLEST).unwrap()] {
            let pods: Vec<Pod> = world.calm_pods().collect();
            let mut addresses: BTreeSet<IpAddr> = pods.iter().map(|pod| pod.address).collect();
            addresses.extend((0..world.shared).map(|nth| world.shared(nth).1));
            addresses.extend((0..world.nodes).map(|node| world.node_address(node)));
            addresses.extend((0..world.virtual_services()).map(|service| world.cluster_ip(service)));
            assert_eq!(addresses.len(), world.pods + world.nodes + world.virtual_services());
            let mut nodes: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
            for pod in &pods {
                nodes.entry(pod.workload).or_default().insert(pod.node);
            }
            assert_eq!(nodes.len(), world.calm());
            assert!(nodes.values().all(|nodes| nodes.len() >= world.pods / world.workloads - 1));
            for workload in [0, world.calm() - 1] {
                let all: BTreeSet<usize> = (0..50).map(|any| world.pod_of(workload, any).node).collect();
                assert_eq!(all, nodes[&workload]);
            }
        }
    }

    #[test]
    fn a_mix_up_of_restless_workloads_shows() {
        for world in [World::FULL, World::scaled(SMALLEST).unwrap()] {
            let restless = || world.calm()..world.workloads;
            let called: Vec<usize> = restless().flat_map(|workload| world.called_by(workload)).collect();
            assert_eq!(called.len(), called.iter().collect::<BTreeSet<_>>().len());
            let callers: Vec<usize> = restless().flat_map(|workload| world.callers_of(workload)).collect();
            assert_eq!(callers.len(), callers.iter().collect::<BTreeSet<_>>().len());
            for workload in restless() {
                assert!(world.callers_of(workload).count() > 0);
                if let Some(service) = world.headless_of(workload) {
                    assert_eq!(world.selected_by(service), workload);
                }
            }
        }
    }
}
