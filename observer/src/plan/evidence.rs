//! Which evidence makes a dependency, by the protocol that the proxy handles the connection as.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::graph::{Evidence, PortUse, WorkloadNode};
use crate::model::mesh::{Mesh, PortProtocol, Service, ServiceKind};
use crate::model::names::{Host, Namespace};

/// What evidence has to be looked up with.
#[derive(Debug)]
pub(super) struct Registry<'a> {
    services: BTreeMap<(&'a Host, &'a Namespace), &'a Service>,
    aliases: BTreeMap<&'a Host, &'a Host>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(mesh: &'a Mesh) -> Self {
        let services = mesh.services.iter();
        Self {
            services: services.clone().map(|s| ((&s.host, &s.namespace), s)).collect(),
            aliases: services
                .filter_map(|service| match &service.kind {
                    ServiceKind::ExternalName(target) => Some((&service.host, target)),
                    _ => None,
                })
                .collect(),
        }
    }

    /// How many hosts a proxy without a Sidecar is sent.
    pub(super) fn host_count(&self) -> usize {
        let hosts: BTreeSet<_> = self.services.keys().map(|(host, _)| host).collect();
        hosts.len()
    }

    /// Adds the hosts that the workload's Sidecar must have.
    pub(super) fn hosts_of(&self, node: &WorkloadNode, hosts: &mut BTreeSet<Host>) {
        for dependency in &node.dependencies {
            let service = self.services.get(&(&dependency.host, &dependency.namespace));
            // A service that has gone since is taken for one with an address: the stricter rule.
            let addressed = service.is_none_or(|service| !service.addresses.is_empty());
            if dependency.ports.values().any(|port| counts(port, addressed)) {
                self.add_with_target(&dependency.host, hosts);
            }
        }
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
