//! Which providers get traces, access logs and metrics, and of whom.

use serde::Deserialize;

use super::names::ProviderName;
use super::{TargetRef, WorkloadSelector};
use crate::objects::nullable;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TelemetrySpec {
    #[serde(default)]
    pub selector: Option<WorkloadSelector>,
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub tracing: Vec<TelemetryFeature>,
    #[serde(default, deserialize_with = "nullable")]
    pub access_logging: Vec<TelemetryFeature>,
    #[serde(default, deserialize_with = "nullable")]
    pub metrics: Vec<TelemetryFeature>,
}

impl TelemetrySpec {
    /// Whether it is for waypoints, so not for sidecars.
    pub fn is_attached(&self) -> bool {
        self.target_ref.is_some() || !self.target_refs.is_empty()
    }

    /// All providers that it names.
    pub fn providers(&self) -> impl Iterator<Item = &ProviderName> {
        let features = self.tracing.iter().chain(&self.access_logging).chain(&self.metrics);
        features.flat_map(|feature| &feature.providers).map(|provider| &provider.name)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct TelemetryFeature {
    #[serde(default, deserialize_with = "nullable")]
    pub providers: Vec<ProviderRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct ProviderRef {
    #[serde(default, deserialize_with = "nullable")]
    pub name: ProviderName,
}
