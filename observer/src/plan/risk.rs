//! What would become of a call to a service that is not in scope: for which services it would be harmed, and by which object.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::fact::RiskFact;
use super::pods::Proxies;
use super::services::{Services, is_below, is_made_up};
use crate::model::config::{Config, HostPattern, MtlsMode, ObjectRef, OutboundMode, PeerRule};
use crate::model::mesh::{Service, ServiceKind};
use crate::model::names::{Host, Namespace};
use crate::model::policy::Risk;

/// Services for which there is a risk, in the order of their hosts, with the object that causes it.
type Endangered<'a> = Vec<(&'a Host, Option<&'a ObjectRef>)>;

/// All services for which there is a risk.
#[derive(Debug)]
pub(super) struct Risks<'a>(Vec<(Risk, Endangered<'a>)>);

impl<'a> Risks<'a> {
    pub(super) fn new(config: &'a Config, services: &Services<'a>, proxies: &Proxies<'_>) -> Self {
        let strict = strict_namespaces(config);
        let everywhere = strict_mesh(config);
        let identity = identity_namespaces(config);
        let root = &config.mesh.root;
        let mut lists: BTreeMap<Risk, Endangered<'a>> = BTreeMap::new();
        let mut add = |risk, host, object| lists.entry(risk).or_default().push((host, object));
        let tls = originating(config);
        for (host, entry) in services.hosts() {
            let in_cluster = entry.services.iter().find(|service| is_in_cluster(service));
            if let Some(namespace) = in_cluster.map(|service| &service.namespace)
                && proxies.any_in(namespace)
            {
                if let Some(object) = strict.get(namespace).copied().unwrap_or(everywhere) {
                    add(Risk::Strict, host, Some(object));
                }
                if let Some(object) = identity.get(namespace).or_else(|| identity.get(root)) {
                    add(Risk::Authorization, host, Some(*object));
                }
            }
            if let Some(object) = tls.of(host) {
                add(Risk::TlsOrigination, host, Some(object));
            }
            let is_entry = entry.services.iter().any(|service| service.kind == ServiceKind::ServiceEntry);
            if is_entry && config.mesh.captures_dns {
                add(Risk::Dns, host, None);
            }
            if is_entry && entry.services.iter().any(|service| service.addresses.iter().any(is_made_up)) {
                add(Risk::AutoAllocated, host, None);
            }
        }
        let mut lists: Vec<_> = lists.into_iter().collect();
        lists.iter_mut().for_each(|(_, list)| list.sort_unstable());
        Self(lists)
    }

    /// The risks of a scope. `outbound` is what the proxy does with what it is not told of, and the object that says so.
    pub(super) fn of(&self, hosts: &BTreeSet<Host>, outbound: (OutboundMode, &ObjectRef)) -> Vec<RiskFact> {
        let mut facts = Vec::new();
        if outbound.0 == OutboundMode::RegistryOnly {
            let object = Some(outbound.1.clone());
            facts.push(RiskFact { risk: Risk::RegistryOnly, object, service: None, others: 0 });
        }
        for (risk, list) in &self.0 {
            // At most as many as are in scope are passed over.
            let Some((service, object)) = list.iter().find(|(host, _)| !hosts.contains(*host)) else {
                continue;
            };
            let is_listed = |host: &&Host| list.binary_search_by_key(host, |(listed, _)| *listed).is_ok();
            let outside = list.len() - hosts.iter().filter(is_listed).count();
            facts.push(RiskFact {
                risk: *risk,
                object: object.cloned(),
                service: Some((*service).clone()),
                others: outside.saturating_sub(1),
            });
        }
        facts.sort();
        facts
    }
}

fn is_in_cluster(service: &Service) -> bool {
    matches!(service.kind, ServiceKind::Virtual | ServiceKind::Headless)
}

/// For each namespace that has a say, the object by which servers there refuse plain text; `None`: they take it. Where only some
/// servers of a namespace do, which of them a service selects is not looked up: all are taken for strict.
fn strict_namespaces(config: &Config) -> HashMap<&Namespace, Option<&ObjectRef>> {
    let mut found: HashMap<&Namespace, Option<&ObjectRef>> = HashMap::new();
    for rule in &config.peers {
        let namespace = &rule.object.namespace;
        let is_strict = rule.mode == MtlsMode::Strict || rule.is_strict_on_port;
        if is_strict {
            found.entry(namespace).or_default().get_or_insert(&rule.object);
        } else if rule.selector.is_none() && rule.mode != MtlsMode::Unset {
            // What is above does not count any more.
            found.entry(namespace).or_default();
        }
    }
    found
}

/// The object by which servers everywhere refuse plain text, unless their namespace says otherwise.
fn strict_mesh(config: &Config) -> Option<&ObjectRef> {
    let of_mesh = |rule: &&Arc<PeerRule>| {
        rule.object.namespace == config.mesh.root && rule.selector.is_none() && rule.mode == MtlsMode::Strict
    };
    config.peers.iter().find(of_mesh).map(|rule| &rule.object)
}

fn identity_namespaces(config: &Config) -> HashMap<&Namespace, &ObjectRef> {
    let mut found = HashMap::new();
    for rule in config.authorization.iter().filter(|rule| rule.asks_for_identity) {
        found.entry(&rule.object.namespace).or_insert(&rule.object);
    }
    found
}

/// Hosts for which the caller's proxy makes TLS.
struct Originating<'a> {
    exact: HashMap<&'a str, &'a ObjectRef>,
    wildcards: Vec<(&'a str, &'a ObjectRef)>,
    any: Option<&'a ObjectRef>,
}

fn originating(config: &Config) -> Originating<'_> {
    let mut found = Originating { exact: HashMap::new(), wildcards: Vec::new(), any: None };
    for rule in config.rules.iter().filter(|rule| rule.originates_tls) {
        match &rule.host {
            HostPattern::Any | HostPattern::Address(_) => found.any = found.any.or(Some(&rule.object)),
            HostPattern::Name(host) => match host.wildcard_suffix() {
                Some(suffix) => found.wildcards.push((suffix, &rule.object)),
                None => drop(found.exact.entry(host.as_str()).or_insert(&rule.object)),
            },
        }
    }
    found
}

impl<'a> Originating<'a> {
    fn of(&self, host: &Host) -> Option<&'a ObjectRef> {
        let exact = self.exact.get(host.as_str()).copied();
        let below = || {
            let found = self.wildcards.iter().find(|(suffix, _)| is_below(host.as_str(), suffix));
            found.map(|(_, object)| *object)
        };
        exact.or_else(below).or(self.any)
    }
}
