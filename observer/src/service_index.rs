//! Which service does an address, a port or a host name stand for? The rules of matching, for meshes that are given once and for those
//! in which objects come and go.
//!
//! An address that could be one of several's says so. Of several objects with one host, the one that istiod would take is
//! found; nothing here picks one because it came first. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::config::Visibility;
use crate::model::mesh::{AddressRange, PortProtocol, Service, ServiceKind};
use crate::model::names::{CLUSTER_DOMAIN, Host, Namespace, WorkloadRef};
use crate::model::time::{Life, Presence, Span};

/// A service, and when it was as it is known.
#[derive(Clone, Debug)]
pub struct Known {
    /// The service.
    pub service: Arc<Service>,
    /// When.
    pub life: Life,
}

/// A host that a VirtualService routes.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The host as a service, and when it was as it is known.
    pub known: Known,
    /// To whom it is visible.
    pub visible: Arc<Visibility>,
}

/// Services with their addresses and hosts sorted for lookups.
#[derive(Clone, Debug, Default)]
pub struct ServiceIndex {
    /// Single addresses that stand for services as such.
    singles: HashMap<IpAddr, Vec<Arc<Known>>>,
    /// Ranges of ServiceEntries, longest prefix first.
    ranges: BTreeMap<Reverse<u8>, HashMap<AddressRange, Vec<Arc<Known>>>>,
    /// Addresses of endpoints, where they stand for the service.
    endpoints: HashMap<IpAddr, Vec<Arc<Known>>>,
    /// With the port of the service.
    node_ports: HashMap<u16, Vec<(Arc<Known>, u16)>>,
    hosts: HashMap<Box<str>, Vec<Arc<Known>>>,
    /// Hosts of VirtualServices. They count where no service has the host.
    routed: HashMap<Box<str>, Vec<Routed>>,
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

/// Whose an address and port are.
#[derive(Clone, Debug)]
pub enum Destination<'m> {
    /// Services: one, or all headless services that have the endpoint.
    Services(Vec<Target<'m>>),
    /// A pod of this workload that no headless service has as an endpoint.
    Pod(&'m WorkloadRef),
    /// Several services claim address and port.
    AmbiguousServices(Vec<Target<'m>>),
    /// Several claim the address, or had it around that time; which of them it was cannot be told.
    Ambiguous,
    /// Nothing in the mesh has this address.
    Unknown,
    /// It is from before anything was known of the address, or what is known is not enough yet.
    NotKnown,
}

/// Which workload's pod has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'m> {
    /// None's.
    Nobody,
    /// A pod of this workload.
    Workload(&'m WorkloadRef),
    /// Pods of several claim it, or had it around that time.
    Ambiguous,
    /// It is from before anything was known of the address, or the workload is not known yet.
    NotKnown,
}

/// The headless services that have an address as an endpoint.
#[derive(Clone, Debug)]
pub enum Headless<'m> {
    /// All of these, or none.
    Services(Vec<&'m Known>),
    /// It was one of several pods, whose services differ.
    Ambiguous,
}

/// What the rules ask of pods.
pub trait Pods {
    /// Whose `address` is, in a network namespace of its own.
    fn at(&self, address: IpAddr) -> Whose<'_>;
    /// The headless services of whose endpoints it is one, beyond those that the index of services knows.
    fn headless(&self, address: IpAddr) -> Headless<'_>;
    /// Whether it is an address of a node.
    fn is_node(&self, address: IpAddr) -> bool;
}

/// What connections are resolved with.
pub trait Lookup {
    /// Whose `address` and `port` are.
    fn destination(&self, address: IpAddr, port: u16) -> Destination<'_>;
    /// The service that `host` names for a caller in `namespace`, with `port` if the service lists it.
    fn service_named(&self, host: &Host, namespace: &Namespace, port: u16) -> Option<Target<'_>>;
}

/// Those that have a host, and whether each had it for sure.
type Found<'a> = Vec<(&'a Known, bool)>;

impl ServiceIndex {
    /// Builds the index.
    pub fn new(services: impl IntoIterator<Item = Known>, routed: impl IntoIterator<Item = Routed>) -> Self {
        let mut index = Self::default();
        for routed in routed {
            index.routed.entry(routed.known.service.host.as_str().into()).or_default().push(routed);
        }
        let mut services: Vec<_> = services.into_iter().map(Arc::new).collect();
        // Of several versions of one, the latest goes first.
        services
            .sort_by(|a, b| order(a).cmp(&order(b)).then(b.life.from.latest().cmp(&a.life.from.latest())));
        for known in &services {
            index.add(known);
        }
        index
    }

    fn add(&mut self, known: &Arc<Known>) {
        let service = &known.service;
        for range in &service.addresses {
            let list = match range.as_single() {
                Some(address) => self.singles.entry(address).or_default(),
                None => self.ranges.entry(Reverse(range.prefix())).or_default().entry(*range).or_default(),
            };
            list.push(known.clone());
        }
        if endpoints_stand_for(service) {
            for address in &service.endpoints {
                self.endpoints.entry(address.to_canonical()).or_default().push(known.clone());
            }
        }
        for port in service.ports.iter().filter(|port| port.protocol != PortProtocol::Udp) {
            if let Some(node_port) = port.node_port {
                self.node_ports.entry(node_port).or_default().push((known.clone(), port.port));
            }
        }
        self.hosts.entry(service.host.as_str().into()).or_default().push(known.clone());
    }

    /// Whose `address` and `port` were at `when`, in the order in which the proxy's listeners match: an address of a service, an
    /// endpoint of a headless one, a range of a ServiceEntry; then what is no service's address: a pod, a node port.
    pub fn destination<'a>(
        &'a self,
        pods: &'a impl Pods,
        address: IpAddr,
        port: u16,
        when: Span,
    ) -> Destination<'a> {
        let address = address.to_canonical();
        let singles = || present(self.singles.get(&address), when);
        let by_listed = |(known, sure): (&'a Known, bool)| Some((by_port(&known.service, port)?, sure));
        if let Some(found) = one_of(singles().filter_map(by_listed)) {
            return found;
        }
        let Headless::Services(of_pod) = pods.headless(address) else { return Destination::Ambiguous };
        let endpoints = present(self.endpoints.get(&address), when).map(|(known, _)| known);
        let headless = by_endpoint(endpoints.chain(of_pod), port);
        if !headless.is_empty() {
            return Destination::Services(headless);
        }
        let ranges = self.ranges.iter().filter_map(|(Reverse(prefix), ranges)| {
            let known = ranges.get(&AddressRange::around(address, *prefix)?);
            one_of(present(known, when).filter_map(by_listed))
        });
        if let Some(found) = { ranges }.next() {
            return found;
        }
        let whose = pods.at(address);
        match whose {
            Whose::Workload(workload) => return Destination::Pod(workload),
            Whose::Ambiguous => return Destination::Ambiguous,
            Whose::Nobody | Whose::NotKnown => {}
        }
        if pods.is_node(address)
            && let Some(services) = self.node_ports.get(&port)
            && let Some(found) = one_of(services.iter().filter_map(|(known, port)| {
                let presence = known.life.at(when);
                let target = by_port(&known.service, *port)?;
                (presence != Presence::No).then_some((target, presence == Presence::Yes))
            }))
        {
            return found;
        }
        // Nobody lists the port. The address still tells whose it is, unless several claim it.
        let by_address = one_of(singles().map(|(known, sure)| (unlisted(&known.service, port), sure)));
        by_address.unwrap_or(match whose {
            Whose::NotKnown => Destination::NotKnown,
            _ => Destination::Unknown,
        })
    }

    /// The service that `host` named at `when` for a caller in `namespace`, with `port` if the service lists it.
    ///
    /// A short name is expanded as the search list of Kubernetes' resolver does it (`reviews`, `reviews.ns`,
    /// `reviews.ns.svc`), which are the names under which istiod makes the service known to a proxy as well (istio
    /// `pilot/pkg/networking/core/httproute.go`). An exact host goes before a wildcard, the longest wildcard before others. A host that
    /// only a VirtualService has goes before a name that is one only by expansion, as no service is given a name that is another's host.
    pub fn service_named<'a>(
        &'a self,
        host: &Host,
        namespace: &Namespace,
        port: u16,
        when: Span,
    ) -> Option<Target<'a>> {
        let host_text = host.as_str();
        // Not built as a `Host`: what is too long for one is no service's name, and so not found.
        let mut name = String::with_capacity(2 * Host::MAX_LEN);
        let expansions: [&[&str]; 4] = [
            &[host_text, ".", namespace.as_str(), ".svc.", CLUSTER_DOMAIN],
            &[host_text, ".svc.", CLUSTER_DOMAIN],
            &[host_text, ".", CLUSTER_DOMAIN],
            &[host_text],
        ];
        let mut expanded = |find: &mut dyn FnMut(&str) -> Option<Found<'a>>| {
            expansions.iter().find_map(|parts| {
                name.clear();
                name.extend(parts.iter().copied());
                find(&name)
            })
        };
        let routed = |host: &str| self.routed_host(host, namespace, when);
        let has_service = || self.with_host(host_text, when).is_some();
        let services = routed(host_text)
            .filter(|_| !has_service())
            .or_else(|| expanded(&mut |host| self.with_host(host, when)))
            .or_else(|| expanded(&mut |host| routed(host)))
            .or_else(|| self.longest_wildcard(host_text, namespace, when))?;
        // One host in several objects: istiod prefers a Kubernetes Service, then what is in the caller's namespace.
        let (best, _) = services.into_iter().min_by_key(|(known, sure)| {
            let service = &known.service;
            (
                listed(service, port).is_none(),
                service.kind == ServiceKind::ServiceEntry,
                service.namespace != *namespace,
                !sure,
                order(known),
            )
        })?;
        Some(by_port(&best.service, port).unwrap_or_else(|| unlisted(&best.service, port)))
    }

    fn with_host(&self, host: &str, when: Span) -> Option<Found<'_>> {
        let found: Vec<_> = present(self.hosts.get(host), when).collect();
        (!found.is_empty()).then_some(found)
    }

    /// Those who route the host and are visible in `namespace`.
    fn routed_host(&self, host: &str, namespace: &Namespace, when: Span) -> Option<Found<'_>> {
        let all = self.routed.get(host)?.iter();
        let visible = all.filter(|routed| routed.visible.is_in(namespace));
        let found: Vec<_> = visible.filter_map(|routed| seen_at(&routed.known, when)).collect();
        (!found.is_empty()).then_some(found)
    }

    fn longest_wildcard(&self, host: &str, namespace: &Namespace, when: Span) -> Option<Found<'_>> {
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            let wildcard = format!("*.{suffix}");
            let services = self.with_host(&wildcard, when);
            if let Some(found) = services.or_else(|| self.routed_host(&wildcard, namespace, when)) {
                return Some(found);
            }
            rest = suffix;
        }
        None
    }
}

/// Those that were there at `when`, or may have been, and whether they were for sure.
fn present(known: Option<&Vec<Arc<Known>>>, when: Span) -> impl Iterator<Item = (&Known, bool)> + Clone {
    let all = known.map_or(&[][..], Vec::as_slice).iter();
    all.filter_map(move |known| seen_at(known, when))
}

fn seen_at(known: &Known, when: Span) -> Option<(&Known, bool)> {
    match known.life.at(when) {
        Presence::No => None,
        Presence::Maybe => Some((known, false)),
        Presence::Yes => Some((known, true)),
    }
}

/// Order of services where an order is needed; their host and object make it total.
fn order(known: &Known) -> (&Host, &Namespace, &str) {
    (&known.service.host, &known.service.namespace, &known.service.name)
}

/// Callers of a headless service connect to its endpoints; so do those of a ServiceEntry that has no address itself.
pub fn endpoints_stand_for(service: &Service) -> bool {
    match service.kind {
        ServiceKind::Headless => true,
        ServiceKind::ServiceEntry => service.addresses.is_empty(),
        ServiceKind::Virtual | ServiceKind::ExternalName(_) | ServiceKind::Routed => false,
    }
}

/// One service, or several that cannot be told apart. The same host twice is one service, for which the word of whom was there for
/// sure counts. Several claim an address only if all of them were there for sure; else it went from one to another, and nothing is to
/// be said of either.
fn one_of<'m>(targets: impl Iterator<Item = (Target<'m>, bool)>) -> Option<Destination<'m>> {
    let mut found: Vec<(Target<'m>, bool)> = Vec::new();
    for (target, sure) in targets {
        match found.iter_mut().find(|(known, _)| known.service.host == target.service.host) {
            None => found.push((target, sure)),
            Some(known) if sure && !known.1 => *known = (target, sure),
            Some(_) => {}
        }
    }
    let all_sure = found.iter().all(|(_, sure)| *sure);
    let mut targets = found.into_iter().map(|(target, _)| target);
    match (targets.len(), all_sure) {
        (0, _) => None,
        (1, _) => Some(Destination::Services(targets.by_ref().collect())),
        (_, true) => Some(Destination::AmbiguousServices(targets.collect())),
        (_, false) => Some(Destination::Ambiguous),
    }
}

/// All services of which this is an endpoint that listens on the port, each object once.
fn by_endpoint<'m>(endpoints: impl Iterator<Item = &'m Known>, port: u16) -> Vec<Target<'m>> {
    let mut found: Vec<(_, Target<'m>)> = Vec::new();
    for known in endpoints {
        if let Some(target) = by_endpoint_port(&known.service, port)
            && !found.iter().any(|(object, _)| *object == order(known))
        {
            found.push((order(known), target));
        }
    }
    found.sort_by_key(|(object, _)| *object);
    found.into_iter().map(|(_, target)| target).collect()
}

/// Protocol of `port` if the service lists it for TCP. A DNS service lists 53 twice, once for UDP.
fn listed(service: &Service, port: u16) -> Option<PortProtocol> {
    let mut ports = service.ports.iter();
    ports
        .find(|listed| listed.port == port && listed.protocol != PortProtocol::Udp)
        .map(|listed| listed.protocol)
}

fn by_port(service: &Service, port: u16) -> Option<Target<'_>> {
    listed(service, port).map(|protocol| Target { service, port, protocol })
}

/// An endpoint listens on the target port, and callers of a headless service connect to that one.
fn by_endpoint_port(service: &Service, port: u16) -> Option<Target<'_>> {
    if service.ports.is_empty() {
        return Some(unlisted(service, port));
    }
    let of_endpoint = service.endpoint_ports.get(&port);
    of_endpoint.and_then(|port| by_port(service, *port)).or_else(|| by_port(service, port))
}

fn unlisted(service: &Service, port: u16) -> Target<'_> {
    Target { service, port, protocol: PortProtocol::Unknown }
}
