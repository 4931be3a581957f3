//! What a proxy is sent, counted and weighed, and how often it is sent anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::services::{Entry, Services};
use crate::model::config::{Config, HostPattern};
use crate::model::mesh::{PortProtocol, Service, ServiceKind};
use crate::model::names::Host;

/// Memory of an Envoy that is told of no service (measured: 65 MB of Envoy 1.40).
const EMPTY_KB: u64 = 65_000;
/// Memory that one more cluster takes with what comes with it: endpoints, a route or a listener (measured: 170 kB for two clusters with
/// three endpoints each, a virtual host and a listener).
const CLUSTER_KB: u64 = 85;

/// What a proxy is sent of the services in its scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Hosts of services.
    pub services: usize,
    /// Clusters: one for each port, and for each subset of it.
    pub clusters: usize,
    /// Listeners: for addresses and ports.
    pub listeners: usize,
    /// Endpoints of all clusters.
    pub endpoints: usize,
}

impl Size {
    /// Roughly the memory of the proxy that was started with it, in MB. One that is narrowed while it runs keeps what it had from the
    /// system until its pod restarts.
    pub fn megabytes(&self) -> u64 {
        (EMPTY_KB + CLUSTER_KB * self.clusters as u64).div_ceil(1000)
    }
}

/// For how many proxies a change of a service means a push.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pushes {
    /// Without our Sidecars.
    pub before: usize,
    /// With those that were decided on.
    pub after: usize,
}

/// What one host adds.
#[derive(Debug, Default)]
struct Part {
    clusters: usize,
    endpoints: usize,
    /// Listeners of its own.
    listeners: usize,
    /// Ports of which all hosts share one listener.
    shared: Vec<u16>,
}

/// What all hosts add.
#[derive(Debug)]
pub(super) struct Sizes<'a> {
    parts: HashMap<&'a Host, Part>,
    pub(super) all: Size,
}

impl<'a> Sizes<'a> {
    pub(super) fn new(config: &Config, services: &Services<'a>) -> Self {
        let mut subsets: HashMap<&str, usize> = HashMap::new();
        for rule in config.rules.iter().filter(|rule| rule.subsets > 0) {
            if let HostPattern::Name(host) = &rule.host {
                *subsets.entry(host.as_str()).or_default() += rule.subsets;
            }
        }
        let parts: HashMap<&Host, Part> = services
            .hosts()
            .map(|(host, entry)| (host, part(entry, subsets.get(host.as_str()).copied().unwrap_or(0))))
            .collect();
        let mut sizes = Self { parts, all: Size::default() };
        sizes.all = sizes.of(sizes.parts.keys().copied());
        sizes
    }

    pub(super) fn of<'h>(&self, hosts: impl Iterator<Item = &'h Host>) -> Size {
        let mut size = Size::default();
        let mut shared: BTreeSet<u16> = BTreeSet::new();
        for host in hosts {
            size.services += 1;
            let Some(part) = self.parts.get(host) else { continue };
            size.clusters += part.clusters;
            size.endpoints += part.endpoints;
            size.listeners += part.listeners;
            shared.extend(&part.shared);
        }
        size.listeners += shared.len();
        size
    }
}

fn part(entry: &Entry<'_>, subsets: usize) -> Part {
    let mut part = Part::default();
    // Several objects of one host make one service.
    let ports: BTreeMap<u16, (&Service, PortProtocol)> = entry
        .services
        .iter()
        .flat_map(|service| service.ports.iter().map(move |port| (port.port, (*service, port.protocol))))
        .filter(|(_, (_, protocol))| *protocol != PortProtocol::Udp)
        .collect();
    for (port, (service, protocol)) in ports {
        // An alias is a name of its target's cluster.
        if !matches!(service.kind, ServiceKind::ExternalName(_)) {
            part.clusters += 1 + subsets;
            part.endpoints += service.endpoints.len() * (1 + subsets);
        }
        let addresses = match service.kind {
            ServiceKind::Headless => service.endpoints.len(),
            _ => service.addresses.len(),
        };
        if protocol == PortProtocol::Http || addresses == 0 {
            part.shared.push(port);
        } else {
            part.listeners += addresses;
        }
    }
    part
}
