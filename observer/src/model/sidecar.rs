//! Istio's `Sidecar` (networking.istio.io/v1), as far as Sidescope writes it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::mesh::Labels;
use crate::model::names::{Host, Namespace};

/// API group and version that Sidescope writes; served by Istio since 1.22.
pub const API_VERSION: &str = "networking.istio.io/v1";

/// The kind.
pub const KIND: &str = "Sidecar";

/// The label that tells our Sidecars from others'. It must not hold `istio.io`: istiod pushes to every proxy in scope when
/// such a label changes.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "sidescope");

/// A Sidecar resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sidecar {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `Sidecar`.
    pub kind: String,
    /// Name, namespace and labels.
    pub metadata: Metadata,
    /// Selector and hosts.
    pub spec: Spec,
}

/// Metadata of a [`Sidecar`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name of the Sidecar: that of the canonical workload.
    pub name: String,
    /// Namespace of the workload.
    pub namespace: Namespace,
    /// Labels of the Sidecar itself.
    pub labels: Labels,
}

/// Spec of a [`Sidecar`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Which pods it applies to.
    pub workload_selector: WorkloadSelector,
    /// Always one listener without a port.
    pub egress: Vec<Egress>,
    /// What is not ours to say, and would be lost if it were left out.
    #[serde(flatten)]
    pub inherited: Inherited,
}

/// Fields that are copied from the Sidecar that ours takes the place of, as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Inherited {
    /// How connections to the workload are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Value>,
    /// How many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbound_connection_pool: Option<Value>,
    /// What becomes of calls to what is not in scope. Left out, it is what the mesh says; empty, it means REGISTRY_ONLY.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<Value>,
}

impl Inherited {
    /// Names of the fields that are there.
    pub fn fields(&self) -> impl Iterator<Item = &'static str> {
        let all = [
            ("ingress", &self.ingress),
            ("inboundConnectionPool", &self.inbound_connection_pool),
            ("outboundTrafficPolicy", &self.outbound_traffic_policy),
        ];
        all.into_iter().filter(|(_, value)| value.is_some()).map(|(name, _)| name)
    }
}

/// Selects pods by their labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a pod must have, at least one.
    pub labels: Labels,
}

/// An egress listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Egress {
    /// Hosts in scope, sorted.
    pub hosts: Vec<EgressHost>,
}

/// An egress host in Istio's form `namespace/dnsName`; the namespace is always `*`.
///
/// `*/fqdn` and not `ns/fqdn`: istiod selects a VirtualService by its own namespace against this list, so that `ns/fqdn`
/// silently drops one that lives in another namespace (istio `pilot/pkg/model/virtualservice.go`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct EgressHost(Host);

impl EgressHost {
    /// `*/host`.
    pub fn everywhere(host: Host) -> Self {
        Self(host)
    }

    /// The DNS name behind `*/`.
    pub fn host(&self) -> &Host {
        &self.0
    }
}

impl From<EgressHost> for String {
    fn from(host: EgressHost) -> Self {
        format!("*/{}", host.0)
    }
}

impl TryFrom<String> for EgressHost {
    type Error = String;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let name = text.strip_prefix("*/").ok_or_else(|| format!("{text:?} does not start with \"*/\""))?;
        Host::new(name).map(Self).map_err(|err| format!("{name:?} {err}"))
    }
}
