//! Routes that send a request to another service than the one that it named: VirtualServices, and routes of the Gateway API.

use serde::Deserialize;

use super::names::{ExportTo, GatewayRef};
use crate::model::config::HostPattern;
use crate::model::names::{Host, Namespace, ObjectName};
use crate::objects::labels::CheckedLabels;
use crate::objects::{Port, nullable};

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VirtualServiceSpec {
    /// None in a delegate.
    #[serde(default, deserialize_with = "nullable")]
    pub hosts: Vec<HostPattern>,
    #[serde(default, deserialize_with = "nullable")]
    pub gateways: Vec<GatewayRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub export_to: Vec<ExportTo>,
    #[serde(default, deserialize_with = "nullable")]
    pub http: Vec<HttpRoute>,
    #[serde(default, deserialize_with = "nullable")]
    pub tcp: Vec<L4Route>,
    #[serde(default, deserialize_with = "nullable")]
    pub tls: Vec<L4Route>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    #[serde(default, rename = "match", deserialize_with = "nullable")]
    pub matches: Vec<HttpMatch>,
    #[serde(default, deserialize_with = "nullable")]
    pub route: Vec<RouteDestination>,
    #[serde(default)]
    pub mirror: Option<Destination>,
    #[serde(default, deserialize_with = "nullable")]
    pub mirrors: Vec<MirrorPolicy>,
    #[serde(default)]
    pub delegate: Option<Delegate>,
}

/// To whom a route applies; what of the request it looks at does not matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    #[serde(default, deserialize_with = "nullable")]
    pub gateways: Vec<GatewayRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub source_labels: CheckedLabels,
    #[serde(default, deserialize_with = "nullable")]
    pub source_namespace: String,
    #[serde(default)]
    pub port: Option<Port>,
}

/// A `tcp` or `tls` route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct L4Route {
    #[serde(default, rename = "match", deserialize_with = "nullable")]
    pub matches: Vec<L4Match>,
    #[serde(default, deserialize_with = "nullable")]
    pub route: Vec<RouteDestination>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct L4Match {
    /// Of a `tls` route only.
    #[serde(default, deserialize_with = "nullable")]
    pub sni_hosts: Vec<HostPattern>,
    #[serde(default, deserialize_with = "nullable")]
    pub gateways: Vec<GatewayRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub source_labels: CheckedLabels,
    #[serde(default, deserialize_with = "nullable")]
    pub source_namespace: String,
    #[serde(default)]
    pub port: Option<Port>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RouteDestination {
    pub destination: Destination,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Destination {
    /// Short names are of the namespace of the object.
    pub host: Host,
    #[serde(default)]
    pub subset: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub port: PortSelector,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PortSelector {
    #[serde(default)]
    pub number: Option<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct MirrorPolicy {
    #[serde(default)]
    pub destination: Option<Destination>,
}

/// The VirtualService that has the rest of a route.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Delegate {
    pub name: ObjectName,
    /// Empty: that of the object.
    #[serde(default)]
    pub namespace: Option<Namespace>,
}

/// An HTTPRoute, GRPCRoute, TCPRoute or TLSRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRouteSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub parent_refs: Vec<ParentRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub rules: Vec<GatewayRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ParentRef {
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub namespace: Option<Namespace>,
    pub name: ObjectName,
    #[serde(default)]
    pub port: Option<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayRule {
    #[serde(default, deserialize_with = "nullable")]
    pub backend_refs: Vec<BackendRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub filters: Vec<RouteFilter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct BackendRef {
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub kind: Option<String>,
    #[serde(default)]
    pub namespace: Option<Namespace>,
    /// Of a Service; of Istio's kind `Hostname` a host.
    pub name: ObjectName,
    #[serde(default)]
    pub port: Option<Port>,
    #[serde(default, deserialize_with = "nullable")]
    pub filters: Vec<RouteFilter>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteFilter {
    #[serde(default)]
    pub request_mirror: Option<RequestMirror>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    pub backend_ref: BackendRef,
}
