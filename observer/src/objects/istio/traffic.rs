//! Rules about connections: how to open them (DestinationRule), which services a proxy is told of (Sidecar), and which pods are
//! gateways.

use serde::Deserialize;
use serde_json::Value;

use super::WorkloadSelector;
use super::names::ExportTo;
use crate::model::config::OutboundMode;
use crate::model::names::Host;
use crate::objects::labels::CheckedLabels;
use crate::objects::{Port, nullable};

#[derive(Clone, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DestinationRuleSpec {
    /// Short names are of the namespace of the object. istiod refuses an object without one.
    #[serde(default)]
    pub host: Option<Host>,
    #[serde(default, deserialize_with = "nullable")]
    pub export_to: Vec<ExportTo>,
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
    #[serde(default, deserialize_with = "nullable")]
    pub traffic_policy: TrafficPolicy,
    #[serde(default, deserialize_with = "nullable")]
    pub subsets: Vec<Subset>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficPolicy {
    #[serde(default)]
    pub tls: Option<Tls>,
    #[serde(default, deserialize_with = "nullable")]
    pub port_level_settings: Vec<PortPolicy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PortPolicy {
    #[serde(default, deserialize_with = "nullable")]
    pub port: PortNumber,
    #[serde(default)]
    pub tls: Option<Tls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PortNumber {
    #[serde(default)]
    pub number: Option<Port>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Tls {
    #[serde(default, deserialize_with = "nullable")]
    pub mode: TlsMode,
}

/// How the caller's proxy opens a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TlsMode {
    #[default]
    Disable,
    /// TLS in place of what the program sends.
    Simple,
    /// The same with a certificate of the client's.
    Mutual,
    /// With the certificate of the workload.
    IstioMutual,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    #[serde(default, deserialize_with = "nullable")]
    pub name: String,
    #[serde(default, deserialize_with = "nullable")]
    pub traffic_policy: TrafficPolicy,
}

/// A Sidecar, whoever made it. What may have to be copied stays as it was written.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SidecarSpec {
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
    /// None at all stands for every host.
    #[serde(default, deserialize_with = "nullable")]
    pub egress: Vec<EgressListener>,
    #[serde(default)]
    pub ingress: Option<Value>,
    #[serde(default)]
    pub inbound_connection_pool: Option<Value>,
    #[serde(default)]
    pub outbound_traffic_policy: Option<Value>,
}

impl SidecarSpec {
    /// What its `outboundTrafficPolicy` says; an empty one means REGISTRY_ONLY, as does a mode that is not known.
    pub fn outbound_mode(&self) -> Option<OutboundMode> {
        let policy = self.outbound_traffic_policy.as_ref()?;
        Some(
            OutboundTrafficPolicy::deserialize(policy)
                .map_or(OutboundMode::RegistryOnly, |policy| policy.mode),
        )
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EgressListener {
    #[serde(default, deserialize_with = "nullable")]
    pub hosts: Vec<EgressText>,
    #[serde(default)]
    pub port: Option<Value>,
    #[serde(default)]
    pub bind: Option<String>,
    #[serde(default)]
    pub capture_mode: Option<String>,
}

/// `namespace/dnsName` as somebody wrote it: printable ASCII, at most 320 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct EgressText(pub String);

impl TryFrom<String> for EgressText {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.len() <= 320 && text.chars().all(|c| c.is_ascii_graphic()) {
            Ok(Self(text))
        } else {
            Err(format!("{text:?} is no egress host"))
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct OutboundTrafficPolicy {
    #[serde(default, deserialize_with = "nullable")]
    pub mode: OutboundMode,
}

/// Istio's own Gateway: the pods that it selects, in any namespace, are gateways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct GatewaySpec {
    #[serde(default, deserialize_with = "nullable")]
    pub selector: CheckedLabels,
}
