//! The configuration that decides what a proxy is sent, and what becomes of a call that leaves a Sidecar's scope: Istio's objects and
//! routes of the Gateway API, as far as plans are made from them.

mod mesh_config;
mod names;
mod routes;
mod security;
mod telemetry;
#[cfg(test)]
mod tests;
mod traffic;

use std::collections::BTreeMap;

use serde::Deserialize;

use super::labels::CheckedLabels;
use super::nullable;
pub use mesh_config::{
    BadMeshConfig, CONFIG_MAP, DefaultProviders, DiscoverySelector, ExtensionProvider, KEY as MESH_KEY,
    LabelExpression, MeshConfig, Operator, ProviderKind, ProxyConfig, RemoteService,
};
pub use names::{ExportTo, GatewayRef, ProviderName, ServiceHost};
pub use routes::{
    BackendRef, Delegate, Destination, GatewayRouteSpec, GatewayRule, HttpMatch, HttpRoute, L4Match, L4Route,
    MirrorPolicy, ParentRef, PortSelector, RequestMirror, RouteDestination, RouteFilter, VirtualServiceSpec,
};
pub use security::{
    AuthorizationAction, AuthorizationPolicySpec, AuthorizationProvider, AuthorizationRule, Caller,
    Condition, Mtls, PeerAuthenticationSpec, Source,
};
pub use telemetry::{ProviderRef, TelemetryFeature, TelemetrySpec};
pub use traffic::{
    DestinationRuleSpec, EgressListener, EgressText, GatewaySpec, OutboundTrafficPolicy, PortNumber,
    PortPolicy, SidecarSpec, Subset, Tls, TlsMode, TrafficPolicy,
};

/// How the API server serves a kind. All of these are namespaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Api {
    /// Its group.
    pub group: &'static str,
    /// A version of it that every supported Istio serves.
    pub version: &'static str,
    /// Its kind.
    pub kind: &'static str,
    /// Its name in paths of the API.
    pub plural: &'static str,
}

const fn api(group: &'static str, version: &'static str, kind: &'static str, plural: &'static str) -> Api {
    Api { group, version, kind, plural }
}

/// Group of Istio's traffic rules.
pub const NETWORKING: &str = "networking.istio.io";
/// Group of Istio's security rules.
pub const SECURITY: &str = "security.istio.io";
/// Group of Istio's telemetry rules.
pub const TELEMETRY_GROUP: &str = "telemetry.istio.io";
/// Group of the Gateway API.
pub const GATEWAY_API: &str = "gateway.networking.k8s.io";

/// [`VirtualServiceSpec`].
pub const VIRTUAL_SERVICE: Api = api(NETWORKING, "v1", "VirtualService", "virtualservices");
/// [`DestinationRuleSpec`].
pub const DESTINATION_RULE: Api = api(NETWORKING, "v1", "DestinationRule", "destinationrules");
/// [`SidecarSpec`].
pub const SIDECAR: Api = api(NETWORKING, "v1", "Sidecar", "sidecars");
/// [`GatewaySpec`].
pub const GATEWAY: Api = api(NETWORKING, "v1", "Gateway", "gateways");
/// [`PeerAuthenticationSpec`].
pub const PEER_AUTHENTICATION: Api = api(SECURITY, "v1", "PeerAuthentication", "peerauthentications");
/// [`AuthorizationPolicySpec`].
pub const AUTHORIZATION_POLICY: Api = api(SECURITY, "v1", "AuthorizationPolicy", "authorizationpolicies");
/// [`TelemetrySpec`].
pub const TELEMETRY: Api = api(TELEMETRY_GROUP, "v1", "Telemetry", "telemetries");
/// [`GatewayRouteSpec`].
pub const HTTP_ROUTE: Api = api(GATEWAY_API, "v1", "HTTPRoute", "httproutes");
/// [`GatewayRouteSpec`].
pub const GRPC_ROUTE: Api = api(GATEWAY_API, "v1", "GRPCRoute", "grpcroutes");
/// [`GatewayRouteSpec`]; of the experimental channel, so a cluster may not have it.
pub const TCP_ROUTE: Api = api(GATEWAY_API, "v1alpha2", "TCPRoute", "tcproutes");
/// [`GatewayRouteSpec`]; of the experimental channel, so a cluster may not have it.
pub const TLS_ROUTE: Api = api(GATEWAY_API, "v1alpha2", "TLSRoute", "tlsroutes");

/// All kinds of this module that a watch is made for. The mesh's own configuration is a ConfigMap, see [`MeshConfig`].
pub const ALL: [Api; 11] = [
    VIRTUAL_SERVICE,
    DESTINATION_RULE,
    SIDECAR,
    GATEWAY,
    PEER_AUTHENTICATION,
    AUTHORIZATION_POLICY,
    TELEMETRY,
    HTTP_ROUTE,
    GRPC_ROUTE,
    TCP_ROUTE,
    TLS_ROUTE,
];

/// Selects pods: `matchLabels` in security and telemetry rules, `labels` in traffic rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    #[serde(default, alias = "labels", deserialize_with = "nullable")]
    pub match_labels: CheckedLabels,
}

/// What a rule of Istio's is attached to in place of a selector: a waypoint, or a service behind one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TargetRef {
    #[serde(default, deserialize_with = "nullable")]
    pub group: String,
    #[serde(default, deserialize_with = "nullable")]
    pub kind: String,
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
}

/// A ConfigMap: Istio's has its configuration under `mesh`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ConfigMap {
    pub metadata: super::Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub data: BTreeMap<String, String>,
}
