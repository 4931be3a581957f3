//! The services and routes of the mesh, looked up by host.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::config::{HostPattern, Routes};
use crate::model::mesh::{AddressRange, Mesh, PortProtocol, Service, ServiceKind};
use crate::model::names::{CLUSTER_DOMAIN, Host, Namespace};

/// All objects that have one host.
#[derive(Debug, Default)]
pub(super) struct Entry<'a> {
    pub(super) services: Vec<&'a Service>,
    /// What the host is an alias of.
    pub(super) target: Option<&'a Host>,
    /// Ports on which every connection without another listener is taken.
    pub(super) whole_ports: BTreeSet<u16>,
}

/// What is asked of services and routes.
#[derive(Debug)]
pub(super) struct Services<'a> {
    hosts: HashMap<&'a str, Entry<'a>>,
    /// Whether every object that has the host in the namespace has an address.
    addressed: HashMap<(&'a Host, &'a Namespace), bool>,
    /// Hosts with an address, by their ports that are not routed by a host.
    by_port: BTreeMap<u16, Vec<&'a Host>>,
    routes: Vec<&'a Routes>,
    delegates: HashMap<(&'a Namespace, &'a str), usize>,
    /// Routes by their exact hosts, by what follows `*.`, and those of every host.
    exact: HashMap<&'a str, Vec<usize>>,
    wildcards: HashMap<&'a str, Vec<usize>>,
    any: Vec<usize>,
    /// Routes of hosts below, or above, the wildcards that services have.
    around: HashMap<&'a str, BTreeSet<usize>>,
    /// Routes to a host that have hosts that no service has.
    to: HashMap<&'a Host, Vec<usize>>,
    /// Names by which a TLS connection is routed, whatever its address.
    sni: HashSet<&'a str>,
    sni_wildcards: HashSet<&'a str>,
}

impl<'a> Services<'a> {
    pub(super) fn new(mesh: &'a Mesh) -> Self {
        let mut index = Self {
            hosts: HashMap::new(),
            addressed: HashMap::new(),
            by_port: BTreeMap::new(),
            routes: mesh.config.routes.iter().map(Arc::as_ref).collect(),
            delegates: HashMap::new(),
            exact: HashMap::new(),
            wildcards: HashMap::new(),
            any: Vec::new(),
            around: HashMap::new(),
            to: HashMap::new(),
            sni: HashSet::new(),
            sni_wildcards: HashSet::new(),
        };
        for service in &mesh.services {
            index.add_service(service, mesh.config.mesh.captures_dns);
        }
        for hosts in index.by_port.values_mut() {
            hosts.sort_unstable();
            hosts.dedup();
        }
        for at in 0..index.routes.len() {
            index.add_routes(at);
        }
        let wildcards = mesh.services.iter().filter_map(|service| service.host.wildcard_suffix());
        let around: HashMap<_, _> = wildcards.map(|suffix| (suffix, index.routes_around(suffix))).collect();
        index.around = around;
        index
    }

    fn add_service(&mut self, service: &'a Service, captures_dns: bool) {
        // Proxies listen on addresses that istiod made up only where they answer DNS queries with them.
        let has_address = service.addresses.iter().any(|range| !is_made_up(range));
        let listens = has_address || (captures_dns && !service.addresses.is_empty());
        *self.addressed.entry((&service.host, &service.namespace)).or_insert(true) &= has_address;
        let entry = self.hosts.entry(service.host.as_str()).or_default();
        entry.services.push(service);
        match &service.kind {
            ServiceKind::ExternalName(target) => {
                entry.target = Some(target);
                entry.whole_ports.extend(opaque_ports(service));
            }
            ServiceKind::ServiceEntry if !listens => entry.whole_ports.extend(opaque_ports(service)),
            // A headless service's listeners are bound to the addresses of its pods.
            ServiceKind::ServiceEntry
            | ServiceKind::Headless
            | ServiceKind::Virtual
            | ServiceKind::Routed => {}
        }
        if listens {
            for port in opaque_ports(service) {
                self.by_port.entry(port).or_default().push(&service.host);
            }
        }
    }

    fn add_routes(&mut self, at: usize) {
        let routes = self.routes[at];
        if routes.hosts.is_empty() {
            self.delegates.insert((&routes.object.namespace, routes.object.name.as_str()), at);
        }
        if !routes.for_mesh {
            return;
        }
        for pattern in &routes.hosts {
            match pattern {
                HostPattern::Any => self.any.push(at),
                HostPattern::Address(_) => {}
                HostPattern::Name(host) => match host.wildcard_suffix() {
                    Some(suffix) => self.wildcards.entry(suffix).or_default().push(at),
                    None => self.exact.entry(host.as_str()).or_default().push(at),
                },
            }
        }
        if self.virtual_hosts(routes).next().is_some() {
            let to: BTreeSet<&Host> = routes.routes.iter().flat_map(|route| &route.to).collect();
            for host in to {
                self.to.entry(host).or_default().push(at);
            }
        }
        for pattern in routes.routes.iter().flat_map(|route| &route.sni) {
            if let HostPattern::Name(host) = pattern {
                match host.wildcard_suffix() {
                    Some(suffix) => self.sni_wildcards.insert(suffix),
                    None => self.sni.insert(host.as_str()),
                };
            }
        }
    }

    /// Exact hosts of routes that no service has.
    fn virtual_hosts(&self, routes: &'a Routes) -> impl Iterator<Item = &'a Host> {
        routes
            .hosts
            .iter()
            .filter_map(|pattern| match pattern {
                HostPattern::Name(host) if host.wildcard_suffix().is_none() => Some(host),
                _ => None,
            })
            .filter(|host| !self.hosts.contains_key(host.as_str()))
    }

    /// All objects that have this host.
    pub(super) fn entry(&self, host: &Host) -> Option<&Entry<'a>> {
        self.hosts.get(host.as_str())
    }

    /// All hosts, in no order.
    pub(super) fn hosts(&self) -> impl Iterator<Item = (&'a Host, &Entry<'a>)> {
        self.hosts.values().filter_map(|entry| Some((&entry.services.first()?.host, entry)))
    }

    /// Whether connections to the service go by its address. One that has gone since is taken for one with an address: the stricter
    /// rule.
    pub(super) fn has_address(&self, host: &Host, namespace: &Namespace) -> bool {
        self.addressed.get(&(host, namespace)).copied().unwrap_or(true)
    }

    /// Whether a TLS connection that names this host is routed by the name.
    pub(super) fn is_routed_by_sni(&self, host: &Host) -> bool {
        self.sni.contains(host.as_str()) || suffixes(host).any(|suffix| self.sni_wildcards.contains(suffix))
    }

    /// Hosts with an address that have this port and are not routed by a host on it.
    pub(super) fn sharing(&self, port: u16) -> &[&'a Host] {
        self.by_port.get(&port).map_or(&[], Vec::as_slice)
    }

    /// Routes that a proxy in `namespace` is sent once `host` is in its scope.
    pub(super) fn routes_of(&self, host: &Host, namespace: &Namespace) -> BTreeSet<usize> {
        let mut found: BTreeSet<usize> = self.any.iter().copied().collect();
        match host.wildcard_suffix().map(|suffix| (suffix, self.around.get(suffix))) {
            Some((_, Some(around))) => found.extend(around),
            Some((suffix, None)) => found.extend(self.routes_around(suffix)),
            None => {
                found.extend(self.exact.get(host.as_str()).into_iter().flatten());
                found.extend(suffixes(host).filter_map(|suffix| self.wildcards.get(suffix)).flatten());
            }
        }
        found.retain(|at| self.routes[*at].visible.is_in(namespace));
        found
    }

    /// Routes of hosts below `*.suffix`, of the same, or of a wildcard that has it below.
    fn routes_around(&self, suffix: &str) -> BTreeSet<usize> {
        let touches = |pattern: &HostPattern| match pattern {
            HostPattern::Name(name) => {
                let name = name.wildcard_suffix().unwrap_or(name.as_str());
                name == suffix || is_below(name, suffix) || is_below(suffix, name)
            }
            HostPattern::Any | HostPattern::Address(_) => false,
        };
        let routes = self.routes.iter().enumerate();
        let found = routes.filter(|(_, routes)| routes.for_mesh && routes.hosts.iter().any(touches));
        found.map(|(at, _)| at).collect()
    }

    /// Hosts that only routes have, of the routes to `host` that are visible in `namespace`.
    pub(super) fn virtual_hosts_to(
        &self,
        host: &Host,
        namespace: &Namespace,
    ) -> impl Iterator<Item = &'a Host> {
        let routes = self.to.get(host).into_iter().flatten().map(|at| self.routes[*at]);
        let namespace = namespace.clone();
        routes
            .filter(move |routes| routes.visible.is_in(&namespace))
            .flat_map(|routes| self.virtual_hosts(routes))
    }

    /// Where the routes send to, those of their delegates too. A delegate has none of its own (istio: one level).
    pub(super) fn destinations(&self, at: usize) -> impl Iterator<Item = &'a Host> {
        let routes = self.routes[at];
        let delegates = routes.routes.iter().filter_map(|route| {
            let (namespace, name) = route.delegate.as_ref()?;
            self.delegates.get(&(namespace, name.as_str())).map(|at| self.routes[*at])
        });
        std::iter::once(routes).chain(delegates).flat_map(|routes| &routes.routes).flat_map(|route| &route.to)
    }

    /// The host of a service or a route that `name` stands for in `namespace`, if there is one now. Names are expanded as the search
    /// list of Kubernetes' resolver does it; a pod of a headless service has a name below that of the service.
    pub(super) fn named(&self, name: &Host, namespace: &Namespace) -> Option<Host> {
        let text = name.as_str();
        let exact = self.service(text, namespace).or_else(|| {
            let (_, service) = text.split_once('.')?;
            let host = self.service(service, namespace)?;
            let is_headless = |service: &&Service| service.kind == ServiceKind::Headless;
            self.entry(host)?.services.iter().any(is_headless).then_some(host)
        });
        if let Some(host) = exact {
            return Some(host.clone());
        }
        let is_visible = |at: &usize| self.routes[*at].visible.is_in(namespace);
        let routed = expansions(text, namespace)
            .into_iter()
            .find(|full| self.exact.get(full.as_str()).is_some_and(|routes| routes.iter().any(is_visible)));
        if let Some(host) = routed {
            return Host::new(&host).ok();
        }
        for suffix in suffixes(name) {
            if let Some(host) =
                self.hosts.get(format!("*.{suffix}").as_str()).and_then(|e| e.services.first())
            {
                return Some(host.host.clone());
            }
            // The route comes with any name that it takes; its wildcard would bring services that nobody has called.
            if self.wildcards.get(suffix).is_some_and(|routes| routes.iter().any(is_visible)) {
                return Some(name.clone());
            }
        }
        None
    }

    fn service(&self, text: &str, namespace: &Namespace) -> Option<&'a Host> {
        let entry = expansions(text, namespace).into_iter().find_map(|full| self.hosts.get(full.as_str()));
        entry.and_then(|entry| entry.services.first()).map(|service| &service.host)
    }
}

fn expansions(text: &str, namespace: &Namespace) -> [String; 4] {
    [
        format!("{text}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        format!("{text}.svc.{CLUSTER_DOMAIN}"),
        format!("{text}.{CLUSTER_DOMAIN}"),
        text.to_owned(),
    ]
}

/// What stands behind each dot of a host, longest first.
fn suffixes(host: &Host) -> impl Iterator<Item = &str> {
    let text = host.as_str();
    text.match_indices('.').map(move |(at, _)| &text[at + 1..])
}

/// Whether `name` lies below `suffix`.
pub(super) fn is_below(name: &str, suffix: &str) -> bool {
    name.strip_suffix(suffix).is_some_and(|rest| rest.ends_with('.'))
}

/// Whether istiod made the address up (istio: 240.240.0.0/16 and 2001:2::/48): no packet to it arrives anywhere.
pub(super) fn is_made_up(range: &AddressRange) -> bool {
    match range.as_single() {
        Some(IpAddr::V4(address)) => address.octets()[..2] == [240, 240],
        Some(IpAddr::V6(address)) => address.segments()[..3] == [0x2001, 2, 0],
        None => false,
    }
}

/// Ports that a proxy does not route by an HTTP host, or perhaps does not.
fn opaque_ports(service: &Service) -> impl Iterator<Item = u16> {
    let opaque = |protocol| matches!(protocol, PortProtocol::Tcp | PortProtocol::Tls | PortProtocol::Unknown);
    service.ports.iter().filter(move |port| opaque(port.protocol)).map(|port| port.port)
}
