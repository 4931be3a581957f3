//! The configuration of the whole mesh: the YAML text under `mesh` in the ConfigMap `istio` of istiod's namespace.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::names::{ExportTo, ProviderName, ServiceHost};
use super::traffic::OutboundTrafficPolicy;
use crate::model::config::OutboundMode;
use crate::model::names::Namespace;
use crate::objects::labels::CheckedLabels;
use crate::objects::nullable;

/// Name of istiod's ConfigMap; that of a revision is followed by a dash and its name.
pub const CONFIG_MAP: &str = "istio";
/// The key that has the configuration.
pub const KEY: &str = "mesh";

/// Why a text is no configuration of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadMeshConfig {
    /// It is no YAML.
    #[error("is no YAML: {0}")]
    Syntax(String),
    /// A field does not hold what it should.
    #[error("field {field}: {problem}")]
    Field {
        /// Its path.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// What is read of it. Of an empty text this is the mesh as Istio installs it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Where rules are that hold for the whole mesh; `istio-system` unless told otherwise.
    pub root_namespace: Option<Namespace>,
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Namespaces that istiod knows; none at all stands for every one.
    #[serde(deserialize_with = "nullable")]
    pub discovery_selectors: Vec<DiscoverySelector>,
    #[serde(deserialize_with = "nullable")]
    pub default_providers: DefaultProviders,
    #[serde(deserialize_with = "nullable")]
    pub extension_providers: Vec<ExtensionProvider>,
    #[serde(deserialize_with = "nullable")]
    pub default_config: ProxyConfig,
    #[serde(deserialize_with = "nullable")]
    pub default_service_export_to: Vec<ExportTo>,
    #[serde(deserialize_with = "nullable")]
    pub default_virtual_service_export_to: Vec<ExportTo>,
    #[serde(deserialize_with = "nullable")]
    pub default_destination_rule_export_to: Vec<ExportTo>,
    #[serde(deserialize_with = "nullable")]
    pub trust_domain: String,
    pub enable_auto_mtls: Option<bool>,
    pub enable_tracing: Option<bool>,
}

impl MeshConfig {
    /// Reads the text.
    ///
    /// # Errors
    /// When it is no YAML, or a field that is read holds something else.
    pub fn parse(text: &str) -> Result<Self, BadMeshConfig> {
        let printable = |text: String| -> String { text.chars().filter(|c| !c.is_control()).collect() };
        let value: Option<Value> =
            serde_saphyr::from_str(text).map_err(|err| BadMeshConfig::Syntax(printable(err.to_string())))?;
        serde_path_to_error::deserialize(
            value.filter(|value| !value.is_null()).unwrap_or_else(|| Value::Object(Default::default())),
        )
        .map_err(|err| BadMeshConfig::Field {
            field: printable(err.path().to_string()),
            problem: printable(err.inner().to_string()),
        })
    }

    /// What a proxy does with a connection to what it was not told of, unless its Sidecar says otherwise.
    pub fn outbound_mode(&self) -> OutboundMode {
        self.outbound_traffic_policy.map_or(OutboundMode::AllowAny, |policy| policy.mode)
    }

    /// Where rules are that hold for the whole mesh.
    pub fn root(&self) -> Namespace {
        self.root_namespace.clone().unwrap_or_else(|| Namespace::new("istio-system").expect("a DNS label"))
    }
}

/// Selects namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DiscoverySelector {
    #[serde(deserialize_with = "nullable")]
    pub match_labels: CheckedLabels,
    #[serde(deserialize_with = "nullable")]
    pub match_expressions: Vec<LabelExpression>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LabelExpression {
    pub key: String,
    pub operator: Operator,
    #[serde(deserialize_with = "nullable")]
    pub values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Operator {
    #[default]
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

/// Providers that are used where no Telemetry says otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProviders {
    #[serde(deserialize_with = "nullable")]
    pub tracing: Vec<ProviderName>,
    #[serde(deserialize_with = "nullable")]
    pub metrics: Vec<ProviderName>,
    #[serde(deserialize_with = "nullable")]
    pub access_logging: Vec<ProviderName>,
}

/// A provider: a name, and under the name of its kind what it needs; of that, only the service.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ExtensionProvider {
    #[serde(default, deserialize_with = "nullable")]
    pub name: ProviderName,
    #[serde(flatten)]
    pub kinds: BTreeMap<String, ProviderKind>,
}

impl ExtensionProvider {
    /// The services that a proxy has to know to reach the provider.
    pub fn services(&self) -> impl Iterator<Item = &ServiceHost> {
        self.kinds.values().filter_map(|kind| kind.service.as_ref())
    }
}

/// What a provider of some kind needs. Some kinds have no service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub struct ProviderKind {
    pub service: Option<ServiceHost>,
}

impl TryFrom<Value> for ProviderKind {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        match value.get("service") {
            None | Some(Value::Null) => Ok(Self::default()),
            Some(Value::String(text)) => {
                let service = ServiceHost::try_from(text.clone());
                service
                    .map(|service| Self { service: Some(service) })
                    .map_err(|err| format!("service: {err}"))
            }
            Some(_) => Err("service: is no text".to_owned()),
        }
    }
}

/// What of `defaultConfig` names a service or decides on names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    #[serde(deserialize_with = "nullable")]
    pub tracing: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    pub envoy_access_log_service: RemoteService,
    #[serde(deserialize_with = "nullable")]
    pub envoy_metrics_service: RemoteService,
    #[serde(deserialize_with = "nullable")]
    pub proxy_metadata: BTreeMap<String, Value>,
}

impl ProxyConfig {
    /// `host:port` of the tracer and of other services that are named as such.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let of_tracers = self.tracing.values().filter_map(|tracer| tracer.get("address")?.as_str());
        let services = [&self.envoy_access_log_service, &self.envoy_metrics_service];
        of_tracers
            .chain(services.into_iter().map(|service| service.address.as_str()))
            .filter(|text| !text.is_empty())
    }

    /// Whether the proxy answers DNS queries of the program.
    pub fn captures_dns(&self) -> bool {
        self.proxy_metadata.get("ISTIO_META_DNS_CAPTURE").is_some_and(|value| {
            value
                .as_bool()
                .unwrap_or_else(|| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true")))
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct RemoteService {
    #[serde(deserialize_with = "nullable")]
    pub address: String,
}
