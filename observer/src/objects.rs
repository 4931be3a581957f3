//! The fields of Kubernetes and Istio objects that we read, and nothing else of them: of 20,000 pods, what is not read is most.
//! They are the same whether the objects come from a file or from watches.
#![allow(
    missing_docs,
    reason = "types and fields bear the names of Kubernetes and Istio, whose reference tells what they are"
)]

pub mod istio;
pub mod labels;
pub mod services;

use std::net::IpAddr;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Deserializer};

use crate::model::names::{Namespace, ObjectName, PodUid};
use crate::model::time::Time;
use labels::CheckedLabels;
pub use services::{
    AllocatedAddress, ClusterIp, EndpointSlice, LoadBalancer, Port, PortName, Range, ServiceEntrySpec,
    ServiceEntryStatus, ServiceSpec, ServiceStatus, WorkloadEntrySpec,
};

/// Takes `null` for a field that was left out, as Kubernetes does.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// An object with one of the specs below. A spec may be missing: kubectl would print the object all the same.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(bound(deserialize = "S: Default + Deserialize<'de>, T: Default + Deserialize<'de>"))]
pub struct Object<S, T = Nothing> {
    pub metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub spec: S,
    #[serde(default, deserialize_with = "nullable")]
    pub status: T,
}

/// A part that is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Nothing {}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Meta {
    pub name: ObjectName,
    #[serde(default)]
    pub namespace: Option<Namespace>,
    #[serde(default)]
    pub uid: Option<PodUid>,
    #[serde(default, deserialize_with = "nullable")]
    pub creation_timestamp: When,
    #[serde(default, deserialize_with = "nullable")]
    pub deletion_timestamp: When,
    #[serde(default, deserialize_with = "nullable")]
    pub labels: CheckedLabels,
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: Annotations,
    #[serde(default, deserialize_with = "nullable")]
    pub owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// An object without a namespace is in the one that kubectl takes by default.
    pub fn namespace(&self) -> Namespace {
        self.namespace.clone().unwrap_or_else(|| Namespace::new("default").expect("a DNS label"))
    }

    /// The owner that controls the object; there is at most one.
    pub fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

/// The one annotation that is read: under which uid the kubelet runs a static pod, whose object in the API has another.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Annotations {
    #[serde(default, rename = "kubernetes.io/config.hash")]
    pub static_uid: Option<String>,
}

/// When something happened to an object, in whole seconds of the clock of whoever wrote it. It is no part of what the object is: two
/// listings of the same may differ in it.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "String")]
pub struct When(pub Option<Time>);

impl PartialEq for When {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl TryFrom<String> for When {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let problem = || format!("{text:?} is no time such as 2026-01-31T12:00:00Z");
        let time = humantime::parse_rfc3339(&text).map_err(|_| problem())?;
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| problem())?;
        i64::try_from(since.as_millis()).map(|millis| Self(Some(Time(millis)))).map_err(|_| problem())
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OwnerReference {
    pub kind: OwnerKind,
    pub name: ObjectName,
    #[serde(default, deserialize_with = "nullable")]
    pub controller: bool,
}

/// Kind of an owner: at most the 63 bytes that Kubernetes allows, letters and digits only, so that it can be printed and
/// made part of a name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct OwnerKind(pub String);

impl TryFrom<String> for OwnerKind {
    type Error = String;

    fn try_from(kind: String) -> Result<Self, String> {
        if (1..=63).contains(&kind.len()) && kind.chars().all(|c| c.is_ascii_alphanumeric()) {
            Ok(Self(kind))
        } else {
            Err(format!("{kind:?} is no kind"))
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub host_network: bool,
    #[serde(default, deserialize_with = "nullable")]
    pub node_name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub phase: String,
    #[serde(default, deserialize_with = "nullable")]
    pub container_statuses: Vec<ContainerStatus>,
    #[serde(default, deserialize_with = "nullable")]
    pub init_container_statuses: Vec<ContainerStatus>,
    #[serde(default, rename = "podIP")]
    pub pod_ip: Option<Address>,
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<Ip>,
    #[serde(default, rename = "hostIP")]
    pub host_ip: Option<Address>,
    #[serde(default, rename = "hostIPs", deserialize_with = "nullable")]
    pub host_ips: Vec<Ip>,
}

impl PodStatus {
    /// Whether the pod has ended: its address may be another pod's already.
    pub fn is_terminal(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The addresses that the status names, whatever the phase.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.pod_ips.iter().filter_map(|ip| ip.ip).chain(self.pod_ip).filter_map(|address| address.0)
    }

    /// Addresses of the pod's node.
    pub fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.host_ips.iter().filter_map(|ip| ip.ip).chain(self.host_ip).filter_map(|address| address.0)
    }

    /// When the first of the containers started that run, or last ran, in the pod's present network namespace.
    pub fn started(&self) -> Option<Time> {
        let all = self.container_statuses.iter().chain(&self.init_container_statuses);
        all.filter_map(|status| status.state.running.started_at.0.or(status.state.terminated.started_at.0))
            .min()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct ContainerStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub state: ContainerState,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct ContainerState {
    #[serde(default, deserialize_with = "nullable")]
    pub running: Started,
    #[serde(default, deserialize_with = "nullable")]
    pub terminated: Started,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    #[serde(default, deserialize_with = "nullable")]
    pub started_at: When,
}

/// An address, or the empty text that stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Address(pub Option<IpAddr>);

impl TryFrom<String> for Address {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(None));
        }
        let parsed: Result<IpAddr, _> = text.parse();
        parsed
            .map(|address| Self(Some(address.to_canonical())))
            .map_err(|_| format!("{text:?} is no IP address"))
    }
}

/// `{ip: ...}`; a load balancer may have a host name instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Ip {
    #[serde(default)]
    pub ip: Option<Address>,
}

/// A ReplicaSet, Deployment, StatefulSet, DaemonSet or Job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ControllerSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub selector: Selector,
    #[serde(default, deserialize_with = "nullable")]
    pub template: Template,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    #[serde(default, deserialize_with = "nullable")]
    pub match_labels: CheckedLabels,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Template {
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: TemplateMeta,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct TemplateMeta {
    #[serde(default, deserialize_with = "nullable")]
    pub labels: CheckedLabels,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CronJobSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub job_template: JobTemplate,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct JobTemplate {
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ControllerSpec,
}
