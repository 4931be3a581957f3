//! From Istio's objects to the configuration that plans are made from, the same for objects from a file and from watches: names in full,
//! as istiod reads them. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::config::{
    AuthorizationRule, Config, ExistingEgress, ExistingSidecar, HostPattern, HostRule, MeshSettings,
    MtlsMode, NamespaceSettings, ObjectRef, PeerRule, Route, Routes, TelemetryRule, Visibility,
};
use crate::model::mesh::Labels;
use crate::model::names::{CLUSTER_DOMAIN, Host, Namespace};
use crate::model::policy::Policy;
use crate::model::sidecar::MANAGED_BY;
use crate::objects::istio::{
    AuthorizationAction, AuthorizationPolicySpec, BackendRef, Destination, DestinationRuleSpec,
    DiscoverySelector, ExportTo, GatewayRef, GatewayRouteSpec, GatewaySpec, HttpMatch, L4Match, L4Route,
    MeshConfig, Operator, ParentRef, PeerAuthenticationSpec, RouteFilter, SidecarSpec, TelemetrySpec,
    TlsMode, VirtualServiceSpec, WorkloadSelector,
};
use crate::objects::{Meta, Object};

const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// What of the mesh's configuration decides how objects are read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Defaults {
    virtual_services: Vec<ExportTo>,
    destination_rules: Vec<ExportTo>,
}

impl From<&MeshConfig> for Defaults {
    fn from(mesh: &MeshConfig) -> Self {
        Self {
            virtual_services: mesh.default_virtual_service_export_to.clone(),
            destination_rules: mesh.default_destination_rule_export_to.clone(),
        }
    }
}

/// What holds for the whole mesh.
pub fn settings(mesh: &MeshConfig) -> MeshSettings {
    let mut providers: BTreeMap<String, BTreeSet<Host>> = BTreeMap::new();
    for provider in &mesh.extension_providers {
        let services = provider.services().map(|service| service.host.clone());
        providers.entry(provider.name.0.clone()).or_default().extend(services);
    }
    let defaults = &mesh.default_providers;
    let defaults = defaults.tracing.iter().chain(&defaults.metrics).chain(&defaults.access_logging);
    MeshSettings {
        root: mesh.root(),
        outbound: mesh.outbound_mode(),
        captures_dns: mesh.default_config.captures_dns(),
        providers,
        default_providers: defaults.map(|provider| provider.0.clone()).collect(),
        always: mesh.default_config.addresses().flat_map(hosts_of_address).collect(),
    }
}

/// What the host of `host:port` may be, with the cluster's domain where it may have been left out; nothing for an address.
fn hosts_of_address(text: &str) -> Vec<Host> {
    let host = text.rsplit_once(':').map_or(text, |(host, _)| host);
    if host.parse::<std::net::IpAddr>().is_ok() || host.contains([':', '[', ']']) {
        return Vec::new();
    }
    let parts: Vec<&str> = host.split('.').collect();
    let names = match parts[..] {
        [_] => Vec::new(),
        [_, _] => vec![format!("{host}.svc.{CLUSTER_DOMAIN}"), host.to_owned()],
        [_, _, "svc"] => vec![format!("{host}.{CLUSTER_DOMAIN}")],
        _ => vec![host.to_owned()],
    };
    names.iter().filter_map(|name| Host::new(name).ok()).collect()
}

/// What a Namespace says.
pub fn namespace(labels: &Labels, mesh: &MeshConfig) -> NamespaceSettings {
    let selectors = &mesh.discovery_selectors;
    NamespaceSettings {
        is_ambient: labels.get(AMBIENT.0).is_some_and(|mode| mode == AMBIENT.1),
        is_undiscovered: !selectors.is_empty()
            && !selectors.iter().any(|selector| discovers(selector, labels)),
    }
}

fn discovers(selector: &DiscoverySelector, labels: &Labels) -> bool {
    let wanted = selector.match_labels.to_labels();
    let has_all = wanted.iter().all(|(key, value)| labels.get(key) == Some(value));
    has_all
        && selector.match_expressions.iter().all(|expression| {
            let value = labels.get(&expression.key);
            let is_in = value.is_some_and(|value| expression.values.contains(value));
            match expression.operator {
                Operator::In => is_in,
                Operator::NotIn => !is_in,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
}

/// What a VirtualService does.
pub fn virtual_service(object: &Object<VirtualServiceSpec>, defaults: &Defaults) -> Routes {
    let (meta, spec) = (&object.metadata, &object.spec);
    let namespace = meta.namespace();
    let full = |host: &Host| in_full(host, &namespace);
    let of_destination = |to: &Destination| full(&to.host);
    let mut routes = Vec::new();
    for http in spec.http.iter().filter(|http| for_mesh(&http.matches, |m: &HttpMatch| &m.gateways)) {
        let mirrors = http.mirrors.iter().filter_map(|mirror| mirror.destination.as_ref());
        let all = http.route.iter().map(|to| &to.destination).chain(&http.mirror).chain(mirrors);
        let delegate = http.delegate.as_ref().map(|delegate| {
            let namespace = delegate.namespace.clone().unwrap_or_else(|| namespace.clone());
            (namespace, delegate.name.as_str().to_owned())
        });
        routes.push(Route { sni: Vec::new(), to: all.map(of_destination).collect(), delegate });
    }
    let layer_4 = |route: &L4Route| {
        let matches = route.matches.iter().filter(|m| is_of_mesh(&m.gateways));
        Route {
            sni: matches.flat_map(|m| m.sni_hosts.iter().cloned()).collect(),
            to: route.route.iter().map(|to| of_destination(&to.destination)).collect(),
            delegate: None,
        }
    };
    let all = spec.tls.iter().chain(&spec.tcp);
    routes.extend(all.filter(|route| for_mesh(&route.matches, |m: &L4Match| &m.gateways)).map(layer_4));
    Routes {
        object: reference("VirtualService", meta),
        hosts: spec.hosts.iter().map(|host| pattern_in_full(host, &namespace)).collect(),
        visible: visibility(&spec.export_to, &defaults.virtual_services, &namespace),
        for_mesh: is_of_mesh(&spec.gateways),
        is_strict: false,
        routes,
    }
}

/// Whether any of the matches is for sidecars; no match at all is for all.
fn for_mesh<M>(matches: &[M], gateways: impl Fn(&M) -> &Vec<GatewayRef>) -> bool {
    matches.is_empty() || matches.iter().any(|one| is_of_mesh(gateways(one)))
}

fn is_of_mesh(gateways: &[GatewayRef]) -> bool {
    gateways.is_empty() || gateways.contains(&GatewayRef::Mesh)
}

/// What a route of the Gateway API does for sidecars; `None`: nothing, as no Service is its parent.
pub fn gateway_route(kind: &'static str, object: &Object<GatewayRouteSpec>) -> Option<Routes> {
    let (meta, spec) = (&object.metadata, &object.spec);
    let namespace = meta.namespace();
    let mut hosts = BTreeSet::new();
    // A route beside its Service is everybody's, another only that of its own namespace.
    let mut is_for_all = false;
    for parent in spec.parent_refs.iter().filter(|parent| is_service(parent)) {
        let of_parent = parent.namespace.as_ref().unwrap_or(&namespace);
        if let Ok(host) = Host::of_service(parent.name.as_str(), of_parent) {
            is_for_all |= *of_parent == namespace;
            hosts.insert(host);
        }
    }
    if hosts.is_empty() {
        return None;
    }
    let mut to = BTreeSet::new();
    for rule in &spec.rules {
        let of_backends = rule.backend_refs.iter().flat_map(|backend| &backend.filters);
        let mirrors = rule.filters.iter().chain(of_backends).filter_map(mirror);
        to.extend(
            rule.backend_refs.iter().chain(mirrors).filter_map(|backend| backend_host(backend, &namespace)),
        );
    }
    let own = BTreeSet::from([namespace]);
    Some(Routes {
        object: reference(kind, meta),
        hosts: hosts.into_iter().map(HostPattern::Name).collect(),
        visible: if is_for_all { Visibility::All } else { Visibility::Only(own) },
        for_mesh: true,
        is_strict: true,
        routes: vec![Route { sni: Vec::new(), to, delegate: None }],
    })
}

fn is_service(parent: &ParentRef) -> bool {
    let group = parent.group.as_deref().unwrap_or(crate::objects::istio::GATEWAY_API);
    matches!(group, "" | "core") && parent.kind.as_deref() == Some("Service")
}

fn mirror(filter: &RouteFilter) -> Option<&BackendRef> {
    filter.request_mirror.as_ref().map(|mirror| &mirror.backend_ref)
}

fn backend_host(backend: &BackendRef, namespace: &Namespace) -> Option<Host> {
    match backend.kind.as_deref().unwrap_or("Service") {
        "Service" => {
            let namespace = backend.namespace.as_ref().unwrap_or(namespace);
            Host::of_service(backend.name.as_str(), namespace).ok()
        }
        "Hostname" => Host::new(backend.name.as_str()).ok(),
        _ => None,
    }
}

/// What a DestinationRule does; `None`: it has no host.
pub fn destination_rule(object: &Object<DestinationRuleSpec>, defaults: &Defaults) -> Option<HostRule> {
    let (meta, spec) = (&object.metadata, &object.spec);
    let namespace = meta.namespace();
    let policies =
        std::iter::once(&spec.traffic_policy).chain(spec.subsets.iter().map(|subset| &subset.traffic_policy));
    let mut modes = policies.flat_map(|policy| {
        let of_ports = policy.port_level_settings.iter().filter_map(|port| port.tls);
        policy.tls.into_iter().chain(of_ports).map(|tls| tls.mode)
    });
    Some(HostRule {
        object: reference("DestinationRule", meta),
        host: HostPattern::Name(in_full(spec.host.as_ref()?, &namespace)),
        visible: visibility(&spec.export_to, &defaults.destination_rules, &namespace),
        originates_tls: modes.any(|mode| matches!(mode, TlsMode::Simple | TlsMode::Mutual)),
        subsets: spec.subsets.len(),
    })
}

/// A Sidecar of the cluster.
pub fn sidecar(object: &Object<SidecarSpec>) -> ExistingSidecar {
    let (meta, spec) = (&object.metadata, &object.spec);
    let egress = spec.egress.iter().map(|listener| ExistingEgress {
        hosts: listener.hosts.iter().map(|host| host.0.clone()).collect(),
        is_special: listener.port.is_some() || listener.bind.is_some() || listener.capture_mode.is_some(),
    });
    ExistingSidecar {
        namespace: meta.namespace(),
        name: meta.name.as_str().to_owned(),
        is_ours: meta.labels.get(MANAGED_BY.0) == Some(MANAGED_BY.1),
        created: meta.creation_timestamp.0,
        // One without labels selects every pod of the namespace, and goes before its default.
        selector: spec.workload_selector.as_ref().map(labels_of),
        egress: egress.collect(),
        ingress: spec.ingress.clone(),
        inbound_connection_pool: spec.inbound_connection_pool.clone(),
        outbound_traffic_policy: spec.outbound_traffic_policy.clone(),
        outbound: spec.outbound_mode(),
    }
}

/// What a PeerAuthentication says.
pub fn peer_authentication(object: &Object<PeerAuthenticationSpec>) -> PeerRule {
    let spec = &object.spec;
    PeerRule {
        object: reference("PeerAuthentication", &object.metadata),
        // An empty selector is none.
        selector: spec.selector.as_ref().map(labels_of).filter(|labels| !labels.is_empty()),
        mode: spec.mtls.mode,
        is_strict_on_port: spec.port_level_mtls.values().any(|mtls| mtls.mode == MtlsMode::Strict),
    }
}

/// What an AuthorizationPolicy says; `None`: it is for waypoints.
pub fn authorization_policy(object: &Object<AuthorizationPolicySpec>) -> Option<AuthorizationRule> {
    let spec = &object.spec;
    let is_custom = spec.action == AuthorizationAction::Custom;
    (!spec.is_attached()).then(|| AuthorizationRule {
        object: reference("AuthorizationPolicy", &object.metadata),
        asks_for_identity: spec.action != AuthorizationAction::Audit && spec.asks_for_identity(),
        provider: spec.provider.as_ref().filter(|_| is_custom).map(|provider| provider.name.0.clone()),
    })
}

/// What a Telemetry says; `None`: it is for waypoints.
pub fn telemetry(object: &Object<TelemetrySpec>) -> Option<TelemetryRule> {
    (!object.spec.is_attached()).then(|| TelemetryRule {
        object: reference("Telemetry", &object.metadata),
        providers: object.spec.providers().map(|provider| provider.0.clone()).collect(),
    })
}

/// The pods that are a gateway; `None`: those of no selector in particular.
pub fn gateway(object: &Object<GatewaySpec>) -> Option<Labels> {
    Some(object.spec.selector.to_labels()).filter(|labels| !labels.is_empty())
}

/// What a user wants.
pub fn policy(meta: &Meta, spec: serde_json::Value) -> Policy {
    let spec = if spec.is_null() { serde_json::Value::Object(serde_json::Map::new()) } else { spec };
    let read = serde_path_to_error::deserialize(spec);
    Policy {
        namespace: meta.namespace(),
        name: meta.name.as_str().to_owned(),
        spec: read.map_err(|err| {
            let text = format!("field spec.{}: {}", err.path(), err.inner());
            text.chars().filter(|c| !c.is_control()).take(512).collect()
        }),
    }
}

/// Puts everything into the one order that does not depend on how it came.
pub fn sort(config: &mut Config) {
    config.routes.sort_by(|a, b| a.object.cmp(&b.object));
    config.rules.sort_by(|a, b| a.object.cmp(&b.object));
    config.sidecars.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    config.peers.sort_by(|a, b| a.object.cmp(&b.object));
    config.authorization.sort_by(|a, b| a.object.cmp(&b.object));
    config.telemetry.sort_by(|a, b| a.object.cmp(&b.object));
    config.gateways.sort();
    config.gateways.dedup();
    config.policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
}

fn labels_of(selector: &WorkloadSelector) -> Labels {
    selector.match_labels.to_labels()
}

fn reference(kind: &'static str, meta: &Meta) -> ObjectRef {
    ObjectRef { kind, namespace: meta.namespace(), name: meta.name.as_str().to_owned() }
}

fn visibility(own: &[ExportTo], defaults: &[ExportTo], namespace: &Namespace) -> Visibility {
    let listed = if own.is_empty() { defaults } else { own };
    if listed.is_empty() || listed.contains(&ExportTo::All) {
        return Visibility::All;
    }
    let namespaces = listed.iter().filter_map(|to| match to {
        ExportTo::Own => Some(namespace.clone()),
        ExportTo::Namespace(namespace) => Some(namespace.clone()),
        ExportTo::All | ExportTo::None => None,
    });
    Visibility::Only(namespaces.collect())
}

/// A name without a dot is a Service of the object's namespace (istio `ResolveShortnameToFQDN`).
fn in_full(host: &Host, namespace: &Namespace) -> Host {
    let text = host.as_str();
    if text.contains('.') {
        return host.clone();
    }
    Host::new(&format!("{text}.{namespace}.svc.{CLUSTER_DOMAIN}")).unwrap_or_else(|_| host.clone())
}

fn pattern_in_full(pattern: &HostPattern, namespace: &Namespace) -> HostPattern {
    match pattern {
        HostPattern::Name(host) => HostPattern::Name(in_full(host, namespace)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests;
