//! Where the API server has the objects of each kind.

use crate::registry::Kind;

/// Where istiod and its configuration are.
const ISTIO_NAMESPACE: &str = "istio-system";

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Empty: the core group.
    pub(super) group: &'static str,
    /// Versions that we can read, the best first: an older cluster may not have it.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
    /// The only namespace that is looked at.
    pub(super) namespace: Option<&'static str>,
}

impl Resource {
    pub(super) fn path(&self, version: usize) -> String {
        let Self { group, versions, plural, .. } = self;
        let version = versions.get(version).copied().unwrap_or(versions[0]);
        let api =
            if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        match self.namespace {
            Some(namespace) => format!("{api}/namespaces/{namespace}/{plural}"),
            None => format!("{api}/{plural}"),
        }
    }

    /// Its name as roles have it.
    pub(super) fn name(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

const fn resource(
    kind: Kind,
    group: &'static str,
    versions: &'static [&'static str],
    plural: &'static str,
) -> Resource {
    Resource { kind, group, versions, plural, namespace: None }
}

/// Where the objects of `kind` are.
pub(super) fn resource_of(kind: Kind) -> &'static Resource {
    const NETWORKING: &str = "networking.istio.io";
    const SECURITY: &str = "security.istio.io";
    const GATEWAY_API: &str = "gateway.networking.k8s.io";
    const V1: &[&str] = &["v1"];
    const ISTIO: &[&str] = &["v1", "v1beta1"];
    const EXPERIMENTAL: &[&str] = &["v1", "v1alpha3", "v1alpha2"];
    static NAMESPACES: Resource = resource(Kind::Namespace, "", V1, "namespaces");
    static PODS: Resource = resource(Kind::Pod, "", V1, "pods");
    static REPLICA_SETS: Resource = resource(Kind::ReplicaSet, "apps", V1, "replicasets");
    static JOBS: Resource = resource(Kind::Job, "batch", V1, "jobs");
    static DEPLOYMENTS: Resource = resource(Kind::Deployment, "apps", V1, "deployments");
    static STATEFUL_SETS: Resource = resource(Kind::StatefulSet, "apps", V1, "statefulsets");
    static DAEMON_SETS: Resource = resource(Kind::DaemonSet, "apps", V1, "daemonsets");
    static CRON_JOBS: Resource = resource(Kind::CronJob, "batch", V1, "cronjobs");
    static SERVICES: Resource = resource(Kind::Service, "", V1, "services");
    static ENDPOINT_SLICES: Resource =
        resource(Kind::EndpointSlice, "discovery.k8s.io", V1, "endpointslices");
    static SERVICE_ENTRIES: Resource = resource(Kind::ServiceEntry, NETWORKING, ISTIO, "serviceentries");
    static WORKLOAD_ENTRIES: Resource = resource(Kind::WorkloadEntry, NETWORKING, ISTIO, "workloadentries");
    static VIRTUAL_SERVICES: Resource = resource(Kind::VirtualService, NETWORKING, ISTIO, "virtualservices");
    static HTTP_ROUTES: Resource = resource(Kind::HttpRoute, GATEWAY_API, &["v1", "v1beta1"], "httproutes");
    static GRPC_ROUTES: Resource = resource(Kind::GrpcRoute, GATEWAY_API, &["v1", "v1alpha2"], "grpcroutes");
    static TCP_ROUTES: Resource = resource(Kind::TcpRoute, GATEWAY_API, EXPERIMENTAL, "tcproutes");
    static TLS_ROUTES: Resource = resource(Kind::TlsRoute, GATEWAY_API, EXPERIMENTAL, "tlsroutes");
    static DESTINATION_RULES: Resource =
        resource(Kind::DestinationRule, NETWORKING, ISTIO, "destinationrules");
    static SIDECARS: Resource = resource(Kind::Sidecar, NETWORKING, ISTIO, "sidecars");
    static GATEWAYS: Resource = resource(Kind::Gateway, NETWORKING, ISTIO, "gateways");
    static PEER_AUTHENTICATIONS: Resource =
        resource(Kind::PeerAuthentication, SECURITY, ISTIO, "peerauthentications");
    static AUTHORIZATION_POLICIES: Resource =
        resource(Kind::AuthorizationPolicy, SECURITY, ISTIO, "authorizationpolicies");
    static TELEMETRIES: Resource =
        resource(Kind::Telemetry, "telemetry.istio.io", &["v1", "v1alpha1"], "telemetries");
    // No selector tells the names of revisions beforehand, and a label may be missing on what was made by hand.
    static MESH_CONFIGS: Resource =
        Resource { namespace: Some(ISTIO_NAMESPACE), ..resource(Kind::MeshConfig, "", V1, "configmaps") };
    match kind {
        Kind::Namespace => &NAMESPACES,
        Kind::Pod => &PODS,
        Kind::ReplicaSet => &REPLICA_SETS,
        Kind::Job => &JOBS,
        Kind::Deployment => &DEPLOYMENTS,
        Kind::StatefulSet => &STATEFUL_SETS,
        Kind::DaemonSet => &DAEMON_SETS,
        Kind::CronJob => &CRON_JOBS,
        Kind::Service => &SERVICES,
        Kind::EndpointSlice => &ENDPOINT_SLICES,
        Kind::ServiceEntry => &SERVICE_ENTRIES,
        Kind::WorkloadEntry => &WORKLOAD_ENTRIES,
        Kind::VirtualService => &VIRTUAL_SERVICES,
        Kind::HttpRoute => &HTTP_ROUTES,
        Kind::GrpcRoute => &GRPC_ROUTES,
        Kind::TcpRoute => &TCP_ROUTES,
        Kind::TlsRoute => &TLS_ROUTES,
        Kind::DestinationRule => &DESTINATION_RULES,
        Kind::Sidecar => &SIDECARS,
        Kind::Gateway => &GATEWAYS,
        Kind::PeerAuthentication => &PEER_AUTHENTICATIONS,
        Kind::AuthorizationPolicy => &AUTHORIZATION_POLICIES,
        Kind::Telemetry => &TELEMETRIES,
        Kind::MeshConfig => &MESH_CONFIGS,
    }
}
