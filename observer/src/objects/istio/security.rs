//! Who refuses what: PeerAuthentication refuses plain text, AuthorizationPolicy callers.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::names::ProviderName;
use super::{TargetRef, WorkloadSelector};
use crate::model::config::MtlsMode;
use crate::objects::nullable;

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PeerAuthenticationSpec {
    #[serde(default)]
    pub selector: Option<WorkloadSelector>,
    #[serde(default, deserialize_with = "nullable")]
    pub mtls: Mtls,
    /// By port of the pod.
    #[serde(default, deserialize_with = "nullable")]
    pub port_level_mtls: BTreeMap<u16, Mtls>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Mtls {
    #[serde(default, deserialize_with = "nullable")]
    pub mode: MtlsMode,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    #[serde(default)]
    pub selector: Option<WorkloadSelector>,
    #[serde(default)]
    pub target_ref: Option<TargetRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub target_refs: Vec<TargetRef>,
    #[serde(default, deserialize_with = "nullable")]
    pub action: AuthorizationAction,
    #[serde(default, deserialize_with = "nullable")]
    pub rules: Vec<AuthorizationRule>,
    #[serde(default)]
    pub provider: Option<AuthorizationProvider>,
}

impl AuthorizationPolicySpec {
    /// Whether it is for waypoints, so not for sidecars.
    pub fn is_attached(&self) -> bool {
        self.target_ref.is_some() || !self.target_refs.is_empty()
    }

    /// Whether any rule asks who the caller is, which needs mTLS.
    pub fn asks_for_identity(&self) -> bool {
        self.rules.iter().any(|rule| {
            rule.from.iter().any(|from| from.source.is_identity())
                || rule.when.iter().any(|condition| condition.is_identity())
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AuthorizationAction {
    #[default]
    Allow,
    Deny,
    Audit,
    /// Asks an ext_authz provider.
    Custom,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AuthorizationProvider {
    #[serde(default, deserialize_with = "nullable")]
    pub name: ProviderName,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct AuthorizationRule {
    #[serde(default, deserialize_with = "nullable")]
    pub from: Vec<Caller>,
    #[serde(default, deserialize_with = "nullable")]
    pub when: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Caller {
    #[serde(default, deserialize_with = "nullable")]
    pub source: Source,
}

/// How many entries of each kind there are; which does not matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    #[serde(default, deserialize_with = "nullable")]
    pub principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_principals: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub namespaces: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_namespaces: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub service_accounts: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub not_service_accounts: Vec<String>,
}

impl Source {
    fn is_identity(&self) -> bool {
        let all = [
            &self.principals,
            &self.not_principals,
            &self.namespaces,
            &self.not_namespaces,
            &self.service_accounts,
            &self.not_service_accounts,
        ];
        all.iter().any(|list| !list.is_empty())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Condition {
    #[serde(default, deserialize_with = "nullable")]
    pub key: String,
}

impl Condition {
    fn is_identity(&self) -> bool {
        matches!(self.key.as_str(), "source.principal" | "source.namespace" | "source.serviceAccount")
    }
}
