//! Lookups over a [`Mesh`] that is given once: whose address is this, and which service does this host name? Pure.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::model::mesh::{Mesh, Pod, PodRef};
use crate::model::names::{Host, Namespace};
use crate::model::time::{Life, Span, Time};
pub use crate::service_index::{Destination, Lookup, Target};
use crate::service_index::{Headless, Known, Pods, ServiceIndex, Whose};

/// A mesh that does not change is the same at any time.
const ANY_TIME: Time = Time(0);

/// A [`Mesh`] with its addresses and hosts sorted for lookups.
#[derive(Debug)]
pub struct MeshIndex<'m> {
    mesh: &'m Mesh,
    services: ServiceIndex,
    pods: MeshPods<'m>,
}

#[derive(Debug)]
struct MeshPods<'m> {
    mesh: &'m Mesh,
    /// Addresses of pods that have a network namespace of their own.
    by_address: HashMap<IpAddr, Vec<(&'m PodRef, &'m Pod)>>,
}

/// Which pod has an address of its own.
#[derive(Clone, Copy, Debug)]
pub enum PodAt<'m> {
    /// None in the mesh.
    None,
    /// This one.
    Pod(&'m PodRef, &'m Pod),
    /// Several live pods claim it; which one it is cannot be told.
    Ambiguous,
}

impl<'m> MeshIndex<'m> {
    /// Builds the index.
    pub fn new(mesh: &'m Mesh) -> Self {
        let mut by_address: HashMap<_, Vec<_>> = HashMap::new();
        for (name, pod) in mesh.pods.iter().filter(|(_, pod)| !pod.host_network) {
            for address in &pod.addresses {
                by_address.entry(address.to_canonical()).or_default().push((name, pod));
            }
        }
        let services = mesh.services.iter();
        let services = services.map(|service| Known { service: service.clone(), life: Life::ALWAYS });
        Self { mesh, services: ServiceIndex::new(services, []), pods: MeshPods { mesh, by_address } }
    }

    /// The mesh that this is an index of.
    pub fn mesh(&self) -> &'m Mesh {
        self.mesh
    }

    /// The pod that has `address` in a network namespace of its own. A pod in the node's namespace has no sidecar and is none.
    pub fn pod_at(&self, address: IpAddr) -> PodAt<'m> {
        let address = address.to_canonical();
        if self.mesh.node_addresses.contains(&address) {
            return PodAt::None;
        }
        match self.pods.claims(address) {
            [] => PodAt::None,
            [(name, pod)] => PodAt::Pod(name, pod),
            _ => PodAt::Ambiguous,
        }
    }
}

impl Lookup for MeshIndex<'_> {
    fn destination(&self, address: IpAddr, port: u16) -> Destination<'_> {
        self.services.destination(&self.pods, address, port, Span::at(ANY_TIME))
    }

    fn service_named(&self, host: &Host, namespace: &Namespace, port: u16) -> Option<Target<'_>> {
        self.services.service_named(host, namespace, port, Span::at(ANY_TIME))
    }
}

impl<'m> MeshPods<'m> {
    fn claims(&self, address: IpAddr) -> &[(&'m PodRef, &'m Pod)] {
        self.by_address.get(&address).map_or(&[], Vec::as_slice)
    }
}

impl Pods for MeshPods<'_> {
    fn at(&self, address: IpAddr) -> Whose<'_> {
        match self.claims(address) {
            [] => Whose::Nobody,
            [(_, pod)] => Whose::Workload(&pod.workload),
            _ => Whose::Ambiguous,
        }
    }

    fn headless(&self, _: IpAddr) -> Headless<'_> {
        // Services that are given once have all their endpoints with them.
        Headless::Services(Vec::new())
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.mesh.node_addresses.contains(&address)
    }
}

#[cfg(test)]
mod tests;
