//! The configuration of the mesh as far as plans are made from it: which routes lead elsewhere, who refuses plain text or callers that it
//! cannot tell, what becomes of a call that leaves a Sidecar's scope, and which Sidecars there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::model::mesh::Labels;
use crate::model::names::{Host, Namespace};
use crate::model::policy::Policies;
use crate::model::time::Time;

/// All of it. The default is a mesh as Istio installs it, without any rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// What holds for the whole mesh.
    pub mesh: MeshSettings,
    /// Namespaces that are known.
    pub namespaces: BTreeMap<Namespace, NamespaceSettings>,
    /// VirtualServices, and routes of the Gateway API whose parent is a Service.
    pub routes: Vec<Arc<Routes>>,
    /// How connections to a host are opened, where a DestinationRule says so.
    pub rules: Vec<Arc<HostRule>>,
    /// All Sidecars, ours too.
    pub sidecars: Vec<Arc<ExistingSidecar>>,
    /// Who refuses plain text.
    pub peers: Vec<Arc<PeerRule>>,
    /// Who refuses callers.
    pub authorization: Vec<Arc<AuthorizationRule>>,
    /// Which providers are used beside the mesh's defaults.
    pub telemetry: Vec<Arc<TelemetryRule>>,
    /// Selectors of Istio's Gateways: the pods that have these labels are no sidecars.
    pub gateways: Vec<Labels>,
    /// What the users of Sidescope want.
    pub policies: Policies,
}

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// Namespace whose rules without a selector hold for the whole mesh.
    pub root: Namespace,
    /// What a proxy does with a connection to what it was not told of.
    pub outbound: OutboundMode,
    /// Whether proxies answer the DNS queries of their programs.
    pub captures_dns: bool,
    /// Services of all providers, by the provider's name.
    pub providers: BTreeMap<String, BTreeSet<Host>>,
    /// Providers that are used where no rule says otherwise.
    pub default_providers: BTreeSet<String>,
    /// Services that proxies send to whatever the rules say, such as the tracer of the proxies' own configuration.
    pub always: BTreeSet<Host>,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            root: Namespace::new("istio-system").expect("a DNS label"),
            outbound: OutboundMode::AllowAny,
            captures_dns: false,
            providers: BTreeMap::new(),
            default_providers: BTreeSet::new(),
            always: BTreeSet::new(),
        }
    }
}

/// What a namespace says of its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSettings {
    /// Whether its pods without a proxy of their own belong to an ambient mesh.
    pub is_ambient: bool,
    /// Whether istiod does not look at it at all.
    pub is_undiscovered: bool,
}

/// An object that has a say in a plan, for people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// Routes of some hosts: a VirtualService, or a route of the Gateway API. Names are in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// The object.
    pub object: ObjectRef,
    /// Hosts that are routed; none in a delegate.
    pub hosts: Vec<HostPattern>,
    /// To whom it is visible.
    pub visible: Visibility,
    /// Whether sidecars obey it, and not only gateways.
    pub for_mesh: bool,
    /// Whether a wildcard host of it takes only names below, as of the Gateway API; a VirtualService's is matched either way.
    pub is_strict: bool,
    /// Where requests are sent.
    pub routes: Vec<Route>,
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Names of a TLS handshake that it takes; none where it is no such route.
    pub sni: Vec<HostPattern>,
    /// Where it sends to, mirrors too.
    pub to: BTreeSet<Host>,
    /// The VirtualService that has the rest of it: namespace and name.
    pub delegate: Option<(Namespace, String)>,
}

/// To whom an object is visible.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// To all.
    #[default]
    All,
    /// To these namespaces.
    Only(BTreeSet<Namespace>),
}

impl Visibility {
    /// Whether it is visible in `namespace`.
    pub fn is_in(&self, namespace: &Namespace) -> bool {
        match self {
            Self::All => true,
            Self::Only(namespaces) => namespaces.contains(namespace),
        }
    }
}

/// A DestinationRule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRule {
    /// The object.
    pub object: ObjectRef,
    /// The host, in full, or a wildcard.
    pub host: HostPattern,
    /// To whom it is visible.
    pub visible: Visibility,
    /// Whether the caller's proxy makes TLS of its own, other than Istio's.
    pub originates_tls: bool,
    /// How many subsets it makes of the host.
    pub subsets: usize,
}

/// A Sidecar that is in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ExistingSidecar {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
    /// Whether Sidescope made it.
    pub is_ours: bool,
    /// When it was made.
    pub created: Option<Time>,
    /// The labels of the pods that it selects; `None`: it is the default of its namespace, or of the mesh.
    pub selector: Option<Labels>,
    /// Its egress listeners; none at all stands for every host.
    pub egress: Vec<ExistingEgress>,
    /// As it was written.
    pub ingress: Option<Value>,
    /// As it was written.
    pub inbound_connection_pool: Option<Value>,
    /// As it was written.
    pub outbound_traffic_policy: Option<Value>,
    /// What that says.
    pub outbound: Option<OutboundMode>,
}

/// An egress listener of a Sidecar that is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExistingEgress {
    /// `namespace/dnsName`, as they were written.
    pub hosts: Vec<String>,
    /// Whether it has a port, an address or a mode of its own.
    pub is_special: bool,
}

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerRule {
    /// The object.
    pub object: ObjectRef,
    /// The pods that it selects; `None`: all of its namespace, or of the mesh.
    pub selector: Option<Labels>,
    /// What it says.
    pub mode: MtlsMode,
    /// Whether it is strict for a port.
    pub is_strict_on_port: bool,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationRule {
    /// The object.
    pub object: ObjectRef,
    /// Whether it asks who the caller is.
    pub asks_for_identity: bool,
    /// The provider that it asks.
    pub provider: Option<String>,
}

/// A Telemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryRule {
    /// The object.
    pub object: ObjectRef,
    /// All providers that it names.
    pub providers: BTreeSet<String>,
}

/// A host of a route: a name or wildcard; `*` alone; or an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub enum HostPattern {
    /// `*`.
    Any,
    /// A name or wildcard.
    Name(Host),
    /// An address.
    Address(IpAddr),
}

impl TryFrom<String> for HostPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        Host::new(&text).map(Self::Name).map_err(|err| format!("{text:?} {err}"))
    }
}

/// What a proxy does with a connection to what it was not told of. The default of the field is not the default of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Closes it, or answers 502.
    #[default]
    RegistryOnly,
    /// Passes it through as it is.
    AllowAny,
}

/// What a server's proxy takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MtlsMode {
    /// What is above says it: namespace, mesh.
    #[default]
    Unset,
    /// Plain text only.
    Disable,
    /// Both.
    Permissive,
    /// Plain text is refused.
    Strict,
}
