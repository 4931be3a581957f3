//! What is watched, and its objects.

use serde::de::DeserializeSeed;
use serde::{Deserialize, Deserializer};

use crate::model::names::Namespace;
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
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 12] = [
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
        })
    }
}

impl Watched {
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
