//! What the users of Sidescope want of it, per cluster, namespace and workload: `ScopePolicy` objects.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::mesh::Labels;
use crate::model::names::{Host, Namespace};
use crate::model::stamp::Seconds;

/// Most hosts that one object adds.
pub const MAX_STATIC_HOSTS: usize = 200;
/// Most namespaces that are left out.
pub const MAX_EXCLUDED: usize = 1_000;
/// Most labels of a selector.
pub const MAX_LABELS: usize = 64;

/// How far Sidescope may go.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    /// Not at all.
    Off,
    /// It records what workloads call.
    #[default]
    Observe,
    /// It says which Sidecar it would write.
    Recommend,
    /// It writes the Sidecar.
    Enforce,
}

/// A fact of the mesh that makes a dependency that was missed harmful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Risk {
    /// Servers outside the scope refuse plain text.
    Strict,
    /// The proxy refuses what is outside the scope.
    RegistryOnly,
    /// Servers outside the scope refuse callers that they cannot tell.
    Authorization,
    /// The proxy makes TLS of what is outside the scope.
    TlsOrigination,
    /// Names outside the scope are known to the proxy's DNS only.
    Dns,
    /// Addresses outside the scope lead nowhere.
    AutoAllocated,
}

/// What an object says; what it leaves out is said by the one above.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PolicySpec {
    /// The workloads of the namespace that it is for, by the labels of their pod templates. Without it the object is for the whole
    /// namespace, and in Istio's root namespace for the whole mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// How far Sidescope may go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// How long a workload is watched without a gap before its Sidecar is narrowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_window: Option<Seconds>,
    /// How long a dependency may be out of use, in covered time, before it is taken out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expire_after: Option<Seconds>,
    /// Risks in spite of which a workload is narrowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 6))]
    pub accept: Option<BTreeSet<Risk>>,
    /// The learning window of workloads that are narrowed in spite of such a risk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accept_after: Option<Seconds>,
    /// Hosts that are always in scope, beside those that objects above name.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = MAX_STATIC_HOSTS))]
    pub static_hosts: BTreeSet<Host>,
    /// Most hosts of a Sidecar; a workload that needs more gets none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub max_hosts: Option<u16>,
    /// Namespaces in which nothing is done; of the mesh's object only.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    #[schemars(length(max = MAX_EXCLUDED))]
    pub excluded_namespaces: BTreeSet<Namespace>,
}

/// Selects pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Selector {
    /// Labels that the template has.
    #[serde(default)]
    #[schemars(extend("maxProperties" = MAX_LABELS))]
    pub match_labels: Labels,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// What it says, or why that cannot be told. Nothing is narrowed or taken out where it cannot.
    pub spec: Result<PolicySpec, String>,
}

/// All objects, in the order of their namespaces and names.
pub type Policies = Vec<Policy>;
