//! Which evidence makes a dependency, by the protocol that the proxy handles the connection as.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::graph::{Evidence, PortUse, WorkloadNode};
use crate::model::mesh::{Mesh, PortProtocol, Service, ServiceKind};
use crate::model::names::{Host, Namespace};

/// What evidence has to be looked up with.
#[derive(Debug)]
pub(super) struct Registry<'a> {
    services: &'a [Arc<Service>],
    /// Whether every object that has the host in the namespace has an address.
    addressed: BTreeMap<(&'a Host, &'a Namespace), bool>,
    aliases: BTreeMap<&'a Host, &'a Host>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(mesh: &'a Mesh) -> Self {
        let mut addressed = BTreeMap::new();
        for service in &mesh.services {
            *addressed.entry((&service.host, &service.namespace)).or_insert(true) &=
                !service.addresses.is_empty();
        }
        Self {
            services: &mesh.services,
            addressed,
            aliases: mesh
                .services
                .iter()
                .filter_map(|service| match &service.kind {
                    ServiceKind::ExternalName(target) => Some((&service.host, target)),
                    _ => None,
                })
                .collect(),
        }
    }

    /// How many hosts a proxy without a Sidecar is sent.
    pub(super) fn host_count(&self) -> usize {
        let hosts: BTreeSet<_> = self.addressed.keys().map(|(host, _)| host).collect();
        hosts.len()
    }

    /// Adds the hosts that the workload's Sidecar must have.
    pub(super) fn hosts_of(&self, node: &WorkloadNode, hosts: &mut BTreeSet<Host>) {
        for dependency in &node.dependencies {
            let addressed = self.addressed.get(&(&dependency.host, &dependency.namespace));
            // A service that has gone since is taken for one with an address: the stricter rule.
            let addressed = addressed.is_none_or(|addressed| *addressed);
            if dependency.ports.values().any(|port| counts(port, addressed)) {
                self.add_with_target(&dependency.host, hosts);
            }
        }
    }

    /// Adds the hosts that nobody called and that must not be left out all the same; returns them.
    ///
    /// istiod binds a service without an address to `0.0.0.0:port`, unless the port is HTTP. That listener takes every
    /// connection to the port for which there is no other one, and sends it to the wrong service.
    pub(super) fn add_sharing(&self, hosts: &mut BTreeSet<Host>) -> BTreeSet<Host> {
        let bound: BTreeSet<u16> = self
            .services
            .iter()
            .filter(|service| takes_whole_port(service) && hosts.contains(&service.host))
            .flat_map(|service| opaque_ports(service))
            .collect();
        let mut sharing = BTreeSet::new();
        for service in self.services.iter().filter(|service| !service.addresses.is_empty()) {
            if !hosts.contains(&service.host) && opaque_ports(service).any(|port| bound.contains(&port)) {
                sharing.insert(service.host.clone());
            }
        }
        hosts.extend(sharing.iter().cloned());
        sharing
    }

    /// An alias works only while both it and what it stands for are in scope (measured). An alias may name another one; a
    /// circle of them ends where it began.
    fn add_with_target(&self, host: &Host, hosts: &mut BTreeSet<Host>) {
        let mut seen = BTreeSet::new();
        let mut next = Some(host);
        while let Some(host) = next.filter(|host| seen.insert(*host)) {
            hosts.insert(host.clone());
            next = self.aliases.get(host).copied();
        }
    }
}

fn takes_whole_port(service: &Service) -> bool {
    match service.kind {
        ServiceKind::ExternalName(_) => true,
        ServiceKind::ServiceEntry => service.addresses.is_empty(),
        // Its listeners are bound to the addresses of its pods.
        ServiceKind::Headless | ServiceKind::Virtual | ServiceKind::Routed => false,
    }
}

/// Ports that a proxy does not route by an HTTP host, or perhaps does not.
fn opaque_ports(service: &Service) -> impl Iterator<Item = u16> {
    let opaque = |protocol| matches!(protocol, PortProtocol::Tcp | PortProtocol::Tls | PortProtocol::Unknown);
    service.ports.iter().filter(move |port| opaque(port.protocol)).map(|port| port.port)
}

/// istiod makes an HTTP listener route by host; TCP and TLS listeners of a service with an address match that address
/// (measured: a Service's TLS port does not look at SNI). A service without an address is matched by host or SNI, and what
/// istiod was told nothing about is sniffed and may go either way.
fn counts(port: &PortUse, addressed: bool) -> bool {
    let by_address = port.seen.iter().any(|e| matches!(e, Evidence::Address(_)));
    let by_host = port.seen.iter().any(|e| matches!(e, Evidence::Host(_)));
    match port.protocol {
        PortProtocol::Http => by_host || (by_address && port.address_only),
        PortProtocol::Tcp | PortProtocol::Tls => by_address || (by_host && !addressed),
        PortProtocol::Unknown => by_address || by_host,
        PortProtocol::Udp => false,
    }
}
