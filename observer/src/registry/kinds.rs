//! What is watched, and its objects.

use serde::de::DeserializeSeed;
use serde::{Deserialize, Deserializer};

use crate::model::names::Namespace;
use crate::objects::istio::{
    AuthorizationPolicySpec, ConfigMap, DestinationRuleSpec, GatewayRouteSpec, GatewaySpec, MESH_KEY,
    PeerAuthenticationSpec, SidecarSpec, TelemetrySpec, VirtualServiceSpec,
};
use crate::objects::{
    ControllerSpec, CronJobSpec, EndpointSlice, Meta, Nothing, Object, PodSpec, PodStatus, ServiceEntrySpec,
    ServiceEntryStatus, ServiceSpec, ServiceStatus, WorkloadEntrySpec,
};

/// A kind of object that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the names of the kinds")]
pub enum Kind {
    Namespace,
    Pod,
    ReplicaSet,
    Job,
    Deployment,
    StatefulSet,
    DaemonSet,
    CronJob,
    Service,
    EndpointSlice,
    ServiceEntry,
    WorkloadEntry,
    VirtualService,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    DestinationRule,
    Sidecar,
    Gateway,
    PeerAuthentication,
    AuthorizationPolicy,
    Telemetry,
    /// The ConfigMaps in which istiod's revisions have their configuration.
    MeshConfig,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 24] = [
        Self::Namespace,
        Self::Pod,
        Self::ReplicaSet,
        Self::Job,
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::CronJob,
        Self::Service,
        Self::EndpointSlice,
        Self::ServiceEntry,
        Self::WorkloadEntry,
        Self::VirtualService,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::DestinationRule,
        Self::Sidecar,
        Self::Gateway,
        Self::PeerAuthentication,
        Self::AuthorizationPolicy,
        Self::Telemetry,
        Self::MeshConfig,
    ];

    /// Its name in Kubernetes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CronJob => "CronJob",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::ServiceEntry => "ServiceEntry",
            Self::WorkloadEntry => "WorkloadEntry",
            Self::VirtualService => "VirtualService",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::DestinationRule => "DestinationRule",
            Self::Sidecar => "Sidecar",
            Self::Gateway => "Gateway",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::Telemetry => "Telemetry",
            Self::MeshConfig => "ConfigMap",
        }
    }

    /// Whether who calls whom depends on it. The others only bear on what is planned.
    pub fn bears_on_attribution(self) -> bool {
        match self {
            Self::Namespace
            | Self::Pod
            | Self::ReplicaSet
            | Self::Job
            | Self::Deployment
            | Self::StatefulSet
            | Self::DaemonSet
            | Self::CronJob
            | Self::Service
            | Self::EndpointSlice
            | Self::ServiceEntry
            | Self::WorkloadEntry
            | Self::VirtualService => true,
            // What a route of the Gateway API routes for sidecars is the host of its parent, which is a service.
            Self::HttpRoute
            | Self::GrpcRoute
            | Self::TcpRoute
            | Self::TlsRoute
            | Self::DestinationRule
            | Self::Sidecar
            | Self::Gateway
            | Self::PeerAuthentication
            | Self::AuthorizationPolicy
            | Self::Telemetry
            | Self::MeshConfig => false,
        }
    }
}

/// An object as a watch gives it.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names of the kinds")]
pub enum Watched {
    Namespace(Object<Nothing>),
    Pod(Object<PodSpec, PodStatus>),
    /// A ReplicaSet, Job, Deployment, StatefulSet or DaemonSet.
    Controller(Kind, Object<ControllerSpec>),
    CronJob(Object<CronJobSpec>),
    Service(Object<ServiceSpec, ServiceStatus>),
    EndpointSlice(EndpointSlice),
    ServiceEntry(Object<ServiceEntrySpec, ServiceEntryStatus>),
    WorkloadEntry(Object<WorkloadEntrySpec>),
    VirtualService(Object<VirtualServiceSpec>),
    /// An HTTPRoute, GRPCRoute, TCPRoute or TLSRoute.
    Route(Kind, Object<GatewayRouteSpec>),
    DestinationRule(Object<DestinationRuleSpec>),
    Sidecar(Object<SidecarSpec>),
    Gateway(Object<GatewaySpec>),
    PeerAuthentication(Object<PeerAuthenticationSpec>),
    AuthorizationPolicy(Object<AuthorizationPolicySpec>),
    Telemetry(Object<TelemetrySpec>),
    /// Of its data nothing but the configuration is kept.
    MeshConfig(ConfigMap),
}

/// Reads an object of this kind, and of that only what is needed, whatever its text has besides.
impl<'de> DeserializeSeed<'de> for Kind {
    type Value = Watched;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Watched, D::Error> {
        Ok(match self {
            Self::Namespace => Watched::Namespace(Object::deserialize(deserializer)?),
            Self::Pod => Watched::Pod(Object::deserialize(deserializer)?),
            Self::ReplicaSet | Self::Job | Self::Deployment | Self::StatefulSet | Self::DaemonSet => {
                Watched::Controller(self, Object::deserialize(deserializer)?)
            }
            Self::CronJob => Watched::CronJob(Object::deserialize(deserializer)?),
            Self::Service => Watched::Service(Object::deserialize(deserializer)?),
            Self::EndpointSlice => Watched::EndpointSlice(EndpointSlice::deserialize(deserializer)?),
            Self::ServiceEntry => Watched::ServiceEntry(Object::deserialize(deserializer)?),
            Self::WorkloadEntry => Watched::WorkloadEntry(Object::deserialize(deserializer)?),
            Self::VirtualService => Watched::VirtualService(Object::deserialize(deserializer)?),
            Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute => {
                Watched::Route(self, Object::deserialize(deserializer)?)
            }
            Self::DestinationRule => Watched::DestinationRule(Object::deserialize(deserializer)?),
            Self::Sidecar => Watched::Sidecar(Object::deserialize(deserializer)?),
            Self::Gateway => Watched::Gateway(Object::deserialize(deserializer)?),
            Self::PeerAuthentication => Watched::PeerAuthentication(Object::deserialize(deserializer)?),
            Self::AuthorizationPolicy => Watched::AuthorizationPolicy(Object::deserialize(deserializer)?),
            Self::Telemetry => Watched::Telemetry(Object::deserialize(deserializer)?),
            Self::MeshConfig => {
                let mut object = ConfigMap::deserialize(deserializer)?;
                object.data.retain(|key, _| key == MESH_KEY);
                Watched::MeshConfig(object)
            }
        })
    }
}

impl Watched {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Pod(_) => Kind::Pod,
            Self::Controller(kind, _) | Self::Route(kind, _) => *kind,
            Self::CronJob(_) => Kind::CronJob,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceEntry(_) => Kind::ServiceEntry,
            Self::WorkloadEntry(_) => Kind::WorkloadEntry,
            Self::VirtualService(_) => Kind::VirtualService,
            Self::DestinationRule(_) => Kind::DestinationRule,
            Self::Sidecar(_) => Kind::Sidecar,
            Self::Gateway(_) => Kind::Gateway,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::Telemetry(_) => Kind::Telemetry,
            Self::MeshConfig(_) => Kind::MeshConfig,
        }
    }

    /// What every object has.
    pub fn metadata(&self) -> &Meta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Controller(_, object) => &object.metadata,
            Self::CronJob(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::WorkloadEntry(object) => &object.metadata,
            Self::VirtualService(object) => &object.metadata,
            Self::Route(_, object) => &object.metadata,
            Self::DestinationRule(object) => &object.metadata,
            Self::Sidecar(object) => &object.metadata,
            Self::Gateway(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::Telemetry(object) => &object.metadata,
            Self::MeshConfig(object) => &object.metadata,
        }
    }
}

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// That of the object with this metadata.
    pub fn of(meta: &Meta) -> Self {
        Self { namespace: meta.namespace(), name: meta.name.as_str().to_owned() }
    }
}
