//! The objects that decide what a proxy is sent: Istio's, those of the Gateway API, and what Sidescope's users want.

use std::sync::Arc;

use serde_json::Value;

use super::{Context, InventoryError, WrongField};
use crate::configure::{self, Defaults};
use crate::model::config::Config;
use crate::model::mesh::Labels;
use crate::model::names::Namespace;
use crate::objects::istio::{
    self, AuthorizationPolicySpec, CONFIG_MAP, ConfigMap, DestinationRuleSpec, GatewayRouteSpec, GatewaySpec,
    MESH_KEY, MeshConfig, PeerAuthenticationSpec, SidecarSpec, TelemetrySpec, VirtualServiceSpec,
};
use crate::objects::{Meta, Object};

/// Group and kind of what users want.
const POLICY: (&str, &str) = ("sidescope.io", "ScopePolicy");

#[derive(Debug, PartialEq)]
pub(super) enum Rule {
    VirtualService(Object<VirtualServiceSpec>),
    Destination(Object<DestinationRuleSpec>),
    Sidecar(Object<SidecarSpec>),
    Gateway(Object<GatewaySpec>),
    PeerAuthentication(Object<PeerAuthenticationSpec>),
    AuthorizationPolicy(Object<AuthorizationPolicySpec>),
    Telemetry(Object<TelemetrySpec>),
    Route(&'static str, Object<GatewayRouteSpec>),
    MeshConfig(ConfigMap),
    Policy(Object<Value>),
}

impl Rule {
    /// Reads an object; `None`: it is no rule.
    pub(super) fn read(
        context: &Context<'_>,
        group: &str,
        kind: &str,
        body: &Value,
    ) -> Option<Result<Self, InventoryError>> {
        let route = [istio::HTTP_ROUTE, istio::GRPC_ROUTE, istio::TCP_ROUTE, istio::TLS_ROUTE]
            .into_iter()
            .find(|api| (api.group, api.kind) == (group, kind));
        if let Some(api) = route {
            return Some(context.read(body).map(|object| Self::Route(api.kind, object)));
        }
        Some(match (group, kind) {
            (istio::NETWORKING, "VirtualService") => context.read(body).map(Self::VirtualService),
            (istio::NETWORKING, "DestinationRule") => context.read(body).map(Self::Destination),
            (istio::NETWORKING, "Sidecar") => context.read(body).map(Self::Sidecar),
            (istio::NETWORKING, "Gateway") => context.read(body).map(Self::Gateway),
            (istio::SECURITY, "PeerAuthentication") => context.read(body).map(Self::PeerAuthentication),
            (istio::SECURITY, "AuthorizationPolicy") => context.read(body).map(Self::AuthorizationPolicy),
            (istio::TELEMETRY_GROUP, "Telemetry") => context.read(body).map(Self::Telemetry),
            ("", "ConfigMap") if is_mesh_config(body) => context.read(body).map(Self::MeshConfig),
            POLICY => context.read(body).map(Self::Policy),
            _ => return None,
        })
    }

    pub(super) fn meta(&self) -> &Meta {
        match self {
            Self::VirtualService(object) => &object.metadata,
            Self::Destination(object) => &object.metadata,
            Self::Sidecar(object) => &object.metadata,
            Self::Gateway(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::Telemetry(object) => &object.metadata,
            Self::Route(_, object) => &object.metadata,
            Self::MeshConfig(object) => &object.metadata,
            Self::Policy(object) => &object.metadata,
        }
    }

    /// Checks what is text in the object.
    pub(super) fn check(&self) -> Result<(), WrongField> {
        let wrong = |field: &str, problem: String| WrongField { field: field.to_owned(), problem };
        match self {
            Self::MeshConfig(object) => {
                mesh_config(object).map(drop).map_err(|err| wrong("data.mesh", err.to_string()))
            }
            Self::Policy(object) => {
                let policy = configure::policy(&object.metadata, object.spec.clone());
                policy.spec.map(drop).map_err(|problem| wrong("spec", problem))
            }
            _ => Ok(()),
        }
    }
}

/// Only istiod's own ConfigMaps have this key.
fn is_mesh_config(body: &Value) -> bool {
    let name = body["metadata"]["name"].as_str().unwrap_or_default();
    let is_named = name.strip_prefix(CONFIG_MAP).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'));
    is_named && body["data"][MESH_KEY].is_string()
}

fn mesh_config(object: &ConfigMap) -> Result<MeshConfig, istio::BadMeshConfig> {
    MeshConfig::parse(object.data.get(MESH_KEY).map_or("", String::as_str))
}

/// Puts them together, with the labels of namespaces. Of several revisions' configurations that of the default one counts.
pub(super) fn config(rules: Vec<Rule>, namespaces: Vec<(Namespace, Labels)>) -> Config {
    let maps = rules.iter().filter_map(|rule| match rule {
        Rule::MeshConfig(object) => Some(object),
        _ => None,
    });
    let map = maps.min_by_key(|object| (object.metadata.name.as_str(), object.metadata.namespace()));
    let mesh = map.and_then(|object| mesh_config(object).ok()).unwrap_or_default();
    let defaults = Defaults::from(&mesh);
    let mut config = Config { mesh: configure::settings(&mesh), ..Config::default() };
    for (namespace, labels) in namespaces {
        config.namespaces.insert(namespace, configure::namespace(&labels, &mesh));
    }
    for rule in &rules {
        match rule {
            Rule::VirtualService(object) => {
                config.routes.push(Arc::new(configure::virtual_service(object, &defaults)));
            }
            Rule::Route(kind, object) => {
                config.routes.extend(configure::gateway_route(kind, object).map(Arc::new));
            }
            Rule::Destination(object) => {
                config.rules.extend(configure::destination_rule(object, &defaults).map(Arc::new));
            }
            Rule::Sidecar(object) => config.sidecars.push(Arc::new(configure::sidecar(object))),
            Rule::Gateway(object) => config.gateways.extend(configure::gateway(object)),
            Rule::PeerAuthentication(object) => {
                config.peers.push(Arc::new(configure::peer_authentication(object)));
            }
            Rule::AuthorizationPolicy(object) => {
                config.authorization.extend(configure::authorization_policy(object).map(Arc::new));
            }
            Rule::Telemetry(object) => config.telemetry.extend(configure::telemetry(object).map(Arc::new)),
            Rule::Policy(object) => {
                config.policies.push(configure::policy(&object.metadata, object.spec.clone()));
            }
            Rule::MeshConfig(_) => {}
        }
    }
    configure::sort(&mut config);
    config
}
