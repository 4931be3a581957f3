//! Lookups over a [`Mesh`]: whose address is this, and which service does this host name?
//!
//! An address that could be one of several's says so. Of several objects with one host, the one that istiod would take is
//! found; nothing here picks one because it came first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::mesh::{AddressRange, Mesh, Pod, PodRef, PortProtocol, Service, ServiceKind};
use crate::model::names::{CLUSTER_DOMAIN, Host, Namespace};

/// A [`Mesh`] with its addresses and hosts sorted for lookups.
#[derive(Debug)]
pub struct MeshIndex<'m> {
    mesh: &'m Mesh,
    /// Single addresses that stand for services as such.
    singles: BTreeMap<IpAddr, Vec<&'m Service>>,
    /// Ranges of ServiceEntries, longest prefix first.
    ranges: Vec<(AddressRange, &'m Service)>,
    /// Addresses of endpoints, where they stand for the service.
    endpoints: BTreeMap<IpAddr, Vec<&'m Service>>,
    node_ports: BTreeMap<u16, Vec<(&'m Service, u16)>>,
    hosts: BTreeMap<&'m str, Vec<&'m Service>>,
    /// Addresses of pods that have a network namespace of their own.
    pods: BTreeMap<IpAddr, Vec<(&'m PodRef, &'m Pod)>>,
}

/// A service and the port of it that is meant.
#[derive(Clone, Copy, Debug)]
pub struct Target<'m> {
    /// The service.
    pub service: &'m Service,
    /// Port of the service; the port that was called where the service does not list it.
    pub port: u16,
    /// Protocol of that port; unknown where the service does not list it.
    pub protocol: PortProtocol,
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

/// Whose an address and port are.
#[derive(Clone, Debug)]
pub enum Destination<'m> {
    /// Services: one, or all headless services that have the endpoint.
    Services(Vec<Target<'m>>),
    /// A pod that no headless service has as an endpoint.
    Pod(&'m PodRef, &'m Pod),
    /// Several services claim address and port.
    AmbiguousServices(Vec<Target<'m>>),
    /// Several live pods claim the address.
    AmbiguousPods,
    /// Nothing in the mesh has this address.
    Unknown,
}

impl<'m> MeshIndex<'m> {
    /// Builds the index.
    pub fn new(mesh: &'m Mesh) -> Self {
        let mut index = Self {
            mesh,
            singles: BTreeMap::new(),
            ranges: Vec::new(),
            endpoints: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            hosts: BTreeMap::new(),
            pods: BTreeMap::new(),
        };
        for service in &mesh.services {
            index.add_service(service);
        }
        index.ranges.sort_by_key(|(range, service)| (std::cmp::Reverse(range.prefix()), key(service)));
        let lists = index.singles.values_mut().chain(index.endpoints.values_mut());
        for services in lists.chain(index.hosts.values_mut()) {
            services.sort_by_key(key);
        }
        for (name, pod) in mesh.pods.iter().filter(|(_, pod)| !pod.host_network) {
            for address in &pod.addresses {
                let claims = index.pods.entry(address.to_canonical()).or_default();
                claims.push((name, pod));
            }
        }
        index
    }

    fn add_service(&mut self, service: &'m Service) {
        for range in &service.addresses {
            match range.as_single() {
                Some(address) => self.singles.entry(address).or_default().push(service),
                None => self.ranges.push((*range, service)),
            }
        }
        if endpoints_stand_for(service) {
            for address in &service.endpoints {
                self.endpoints.entry(address.to_canonical()).or_default().push(service);
            }
        }
        for port in service.ports.iter().filter(|port| port.protocol != PortProtocol::Udp) {
            if let Some(node_port) = port.node_port {
                self.node_ports.entry(node_port).or_default().push((service, port.port));
            }
        }
        self.hosts.entry(service.host.as_str()).or_default().push(service);
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
        match self.pods.get(&address).map(Vec::as_slice) {
            None | Some([]) => PodAt::None,
            Some([(name, pod)]) => PodAt::Pod(name, pod),
            Some(_) => PodAt::Ambiguous,
        }
    }

    /// Whose `address` and `port` are, in the order in which the proxy's listeners match: an address of a service, an endpoint
    /// of a headless one, a range of a ServiceEntry; then what is no service's address: a pod, a node port.
    pub fn destination(&self, address: IpAddr, port: u16) -> Destination<'m> {
        let address = address.to_canonical();
        let singles = self.singles.get(&address).map_or(&[][..], Vec::as_slice);
        if let Some(found) = one_of(singles.iter().filter_map(|service| by_port(service, port))) {
            return found;
        }
        let endpoints = self.endpoints.get(&address).map_or(&[][..], Vec::as_slice);
        let headless: Vec<_> =
            endpoints.iter().filter_map(|service| by_endpoint_port(service, port)).collect();
        if !headless.is_empty() {
            return Destination::Services(headless);
        }
        if let Some(found) = self.by_range(address, port) {
            return found;
        }
        match self.pods.get(&address).map(Vec::as_slice) {
            Some([(name, pod)]) => return Destination::Pod(name, pod),
            Some([]) | None => {}
            Some(_) => return Destination::AmbiguousPods,
        }
        if self.mesh.node_addresses.contains(&address)
            && let Some(services) = self.node_ports.get(&port)
            && let Some(found) = one_of(services.iter().filter_map(|(service, port)| by_port(service, *port)))
        {
            return found;
        }
        // Nobody lists the port. The address still tells whose it is, unless several claim it.
        one_of(singles.iter().map(|service| unlisted(service, port))).unwrap_or(Destination::Unknown)
    }

    fn by_range(&self, address: IpAddr, port: u16) -> Option<Destination<'m>> {
        let mut matching = self
            .ranges
            .iter()
            .filter(|(range, _)| range.contains(address))
            .filter_map(|(range, service)| Some((range.prefix(), by_port(service, port)?)))
            .peekable();
        let longest = matching.peek()?.0;
        one_of(matching.take_while(|(prefix, _)| *prefix == longest).map(|(_, target)| target))
    }

    /// The service that `host` names for a caller in `namespace`, with `port` if the service lists it.
    ///
    /// A short name is expanded as the search list of Kubernetes' resolver does it (`reviews`, `reviews.ns`,
    /// `reviews.ns.svc`), which are the names under which istiod makes the service known to a proxy as well (istio
    /// `pilot/pkg/networking/core/httproute.go`). An exact host goes before a wildcard, the longest wildcard before others.
    pub fn service_named(&self, host: &Host, namespace: &Namespace, port: u16) -> Option<Target<'m>> {
        let host_text = host.as_str();
        // Not built as a `Host`: what is too long for one is no service's name, and so not found.
        let expanded = [
            format!("{host_text}.{namespace}.svc.{CLUSTER_DOMAIN}"),
            format!("{host_text}.svc.{CLUSTER_DOMAIN}"),
            format!("{host_text}.{CLUSTER_DOMAIN}"),
            host_text.to_owned(),
        ];
        let exact = expanded.iter().find_map(|name| self.hosts.get(name.as_str()));
        let services = exact.or_else(|| self.longest_wildcard(host_text))?;
        // One host in several objects: istiod prefers a Kubernetes Service, then what is in the caller's namespace.
        let best = services.iter().min_by_key(|service| {
            (
                listed(service, port).is_none(),
                service.kind == ServiceKind::ServiceEntry,
                service.namespace != *namespace,
                key(service),
            )
        })?;
        Some(by_port(best, port).unwrap_or_else(|| unlisted(best, port)))
    }

    fn longest_wildcard(&self, host: &str) -> Option<&Vec<&'m Service>> {
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(found) = self.hosts.get(format!("*.{suffix}").as_str()) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

/// Order of services where an order is needed; their host and object make it total.
fn key<'m>(service: &&'m Service) -> (&'m Host, &'m Namespace, &'m str) {
    (&service.host, &service.namespace, &service.name)
}

/// Callers of a headless service connect to its endpoints; so do those of a ServiceEntry that has no address itself.
fn endpoints_stand_for(service: &Service) -> bool {
    match service.kind {
        ServiceKind::Headless => true,
        ServiceKind::ServiceEntry => service.addresses.is_empty(),
        ServiceKind::Virtual | ServiceKind::ExternalName(_) => false,
    }
}

/// One service, or several that cannot be told apart. The same host twice is one service.
fn one_of<'m>(targets: impl Iterator<Item = Target<'m>>) -> Option<Destination<'m>> {
    let mut hosts = BTreeSet::new();
    let targets: Vec<_> = targets.filter(|target| hosts.insert(&target.service.host)).collect();
    match targets.len() {
        0 => None,
        1 => Some(Destination::Services(targets)),
        _ => Some(Destination::AmbiguousServices(targets)),
    }
}

/// Protocol of `port` if the service lists it for TCP. A DNS service lists 53 twice, once for UDP.
fn listed(service: &Service, port: u16) -> Option<PortProtocol> {
    let mut ports = service.ports.iter();
    ports
        .find(|listed| listed.port == port && listed.protocol != PortProtocol::Udp)
        .map(|listed| listed.protocol)
}

fn by_port<'m>(service: &'m Service, port: u16) -> Option<Target<'m>> {
    listed(service, port).map(|protocol| Target { service, port, protocol })
}

/// An endpoint listens on the target port, and callers of a headless service connect to that one.
fn by_endpoint_port<'m>(service: &'m Service, port: u16) -> Option<Target<'m>> {
    if service.ports.is_empty() {
        return Some(unlisted(service, port));
    }
    let of_endpoint = service.endpoint_ports.get(&port);
    of_endpoint.and_then(|port| by_port(service, *port)).or_else(|| by_port(service, port))
}

fn unlisted<'m>(service: &'m Service, port: u16) -> Target<'m> {
    Target { service, port, protocol: PortProtocol::Unknown }
}

#[cfg(test)]
mod tests;
