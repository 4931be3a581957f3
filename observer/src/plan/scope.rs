//! Which hosts must be in a workload's scope, so that what it was seen to call is routed as it is without a Sidecar.

use std::collections::BTreeSet;

use super::demand::{Demand, Use};
use super::services::Services;
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace};
use crate::model::stamp::Seconds;

/// The hosts of a Sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) hosts: BTreeSet<Host>,
    /// Those that nobody called and that must not be left out all the same: connections on a port of a service without an address
    /// would go astray.
    pub(super) sharing: BTreeSet<Host>,
    /// Whether any of them was called.
    pub(super) is_called: bool,
}

/// What is in scope beside what was called.
#[derive(Clone, Copy, Debug)]
pub(super) struct Always<'a> {
    /// Hosts that a user wants.
    pub(super) stated: &'a BTreeSet<Host>,
    /// Services that the proxy itself calls.
    pub(super) providers: &'a BTreeSet<Host>,
}

/// Finds the scope of a workload in `namespace`. What was out of use for longer than `expire_after` does not count.
pub(super) fn of(
    services: &Services<'_>,
    demand: &Demand<'_>,
    namespace: &Namespace,
    always: Always<'_>,
    expire_after: Option<Seconds>,
) -> Scope {
    let is_in_use = |one: &Use<'_>| expire_after.is_none_or(|most| one.idle <= most);
    let mut called = BTreeSet::new();
    for one in demand.uses.iter().filter(|one| is_in_use(one)) {
        if counts(services, one) && !called.contains(one.host) {
            called.insert(one.host.clone());
        }
    }
    called.extend(demand.unknown_hosts.iter().filter_map(|name| services.named(name, namespace)));
    // Without these, a call by a name that only a route has and that could not be read would miss the route.
    let virtual_hosts: Vec<Host> =
        called.iter().flat_map(|host| services.virtual_hosts_to(host, namespace)).cloned().collect();
    let is_called = !called.is_empty();
    let mut scope = Scope { is_called, ..Scope::default() };
    if !is_called && always.stated.is_empty() {
        return scope;
    }
    let stated = always.stated.iter().cloned();
    follow(
        services,
        namespace,
        called.into_iter().chain(virtual_hosts).chain(stated).collect(),
        &mut scope.hosts,
    );
    scope.hosts.extend(always.providers.iter().cloned());
    loop {
        let sharing = sharing(services, &scope.hosts);
        if sharing.is_empty() {
            break;
        }
        scope.sharing.extend(sharing.iter().cloned());
        follow(services, namespace, sharing, &mut scope.hosts);
    }
    // istiod takes no name without a dot.
    scope.hosts.retain(|host| host.as_str().contains('.'));
    scope
}

/// Adds the hosts, what they are aliases of, and where routes of any of them lead. An alias works only while both it and what it
/// stands for are in scope (measured).
fn follow(services: &Services<'_>, namespace: &Namespace, mut next: Vec<Host>, hosts: &mut BTreeSet<Host>) {
    let mut followed = BTreeSet::new();
    while let Some(host) = next.pop() {
        if !hosts.insert(host.clone()) {
            continue;
        }
        if let Some(target) = services.entry(&host).and_then(|entry| entry.target) {
            next.push(target.clone());
        }
        for at in services.routes_of(&host, namespace) {
            if followed.insert(at) {
                next.extend(services.destinations(at).cloned());
            }
        }
    }
}

/// Hosts that are missing beside these. istiod binds a service without an address to `0.0.0.0:port`, unless the port is HTTP. That
/// listener takes every connection to the port for which there is no other one, and sends it to the wrong service.
fn sharing(services: &Services<'_>, hosts: &BTreeSet<Host>) -> Vec<Host> {
    let entries = hosts.iter().filter_map(|host| services.entry(host));
    let bound: BTreeSet<u16> = entries.flat_map(|entry| entry.whole_ports.iter().copied()).collect();
    let all: BTreeSet<&Host> = bound.into_iter().flat_map(|port| services.sharing(port)).copied().collect();
    all.into_iter().filter(|host| !hosts.contains(*host)).cloned().collect()
}

/// istiod makes an HTTP listener route by host; TCP and TLS listeners of a service with an address match that address
/// (measured: a Service's TLS port does not look at SNI), unless a VirtualService's `tls` route has the name. A service without an
/// address is matched by host or SNI, and what istiod was told nothing about is sniffed and may go either way.
fn counts(services: &Services<'_>, one: &Use<'_>) -> bool {
    let by_name = || one.by_host && !services.has_address(one.host, one.namespace);
    match one.protocol {
        PortProtocol::Http => one.by_host || (one.by_address && one.address_only),
        PortProtocol::Tls => {
            one.by_address || by_name() || (one.by_host && services.is_routed_by_sni(one.host))
        }
        PortProtocol::Tcp => one.by_address || by_name(),
        PortProtocol::Unknown => one.by_address || one.by_host,
        PortProtocol::Udp => false,
    }
}
