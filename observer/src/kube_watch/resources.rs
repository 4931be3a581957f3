//! Where the API server has the objects of each kind.

use crate::registry::Kind;

/// The objects of a kind.
#[derive(Debug)]
pub(super) struct Resource {
    pub(super) kind: Kind,
    /// Empty: the core group.
    pub(super) group: &'static str,
    /// Versions that we can read, the best first: an older cluster may not have it.
    pub(super) versions: &'static [&'static str],
    pub(super) plural: &'static str,
}

impl Resource {
    pub(super) fn path(&self, version: usize) -> String {
        let Self { group, versions, plural, .. } = self;
        let version = versions.get(version).copied().unwrap_or(versions[0]);
        match *group {
            "" => format!("/api/{version}/{plural}"),
            group => format!("/apis/{group}/{version}/{plural}"),
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
    Resource { kind, group, versions, plural }
}

/// Where the objects of `kind` are.
pub(super) fn resource_of(kind: Kind) -> &'static Resource {
    const NETWORKING: &str = "networking.istio.io";
    const V1: &[&str] = &["v1"];
    const ISTIO: &[&str] = &["v1", "v1beta1"];
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
    }
}
