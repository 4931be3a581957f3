//! The fields of Kubernetes and Istio objects that we read, and nothing else of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use super::labels::CheckedLabels;
use crate::model::mesh::AddressRange;
use crate::model::names::{Host, Namespace, ObjectName};

/// Takes `null` for a field that was left out, as Kubernetes does.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// An object with one of the specs below. A spec may be missing: kubectl would print the object all the same.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(bound(deserialize = "S: Default + Deserialize<'de>, T: Default + Deserialize<'de>"))]
pub(super) struct Object<S, T = Nothing> {
    pub(super) metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: S,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) status: T,
}

/// A part that is not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Nothing {}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: ObjectName,
    #[serde(default)]
    pub(super) namespace: Option<Namespace>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) labels: CheckedLabels,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) owner_references: Vec<OwnerReference>,
}

impl Meta {
    /// The owner that controls the object; there is at most one.
    pub(super) fn controller(&self) -> Option<&OwnerReference> {
        self.owner_references.iter().find(|owner| owner.controller)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct OwnerReference {
    pub(super) kind: OwnerKind,
    pub(super) name: ObjectName,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) controller: bool,
}

/// Kind of an owner: at most the 63 bytes that Kubernetes allows, letters and digits only, so that it can be printed and
/// made part of a name.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct OwnerKind(pub(super) String);

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
pub(super) struct PodSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct PodStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) phase: String,
    #[serde(default, rename = "podIP")]
    pub(super) pod_ip: Option<Address>,
    #[serde(default, rename = "podIPs", deserialize_with = "nullable")]
    pub(super) pod_ips: Vec<Ip>,
    #[serde(default, rename = "hostIP")]
    pub(super) host_ip: Option<Address>,
    #[serde(default, rename = "hostIPs", deserialize_with = "nullable")]
    pub(super) host_ips: Vec<Ip>,
}

/// An address, or the empty text that stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Address(pub(super) Option<IpAddr>);

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
pub(super) struct Ip {
    #[serde(default)]
    pub(super) ip: Option<Address>,
}

/// A ReplicaSet, Deployment, StatefulSet, DaemonSet or Job.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct ControllerSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) selector: Selector,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) template: Template,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Selector {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) match_labels: CheckedLabels,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Template {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) metadata: TemplateMeta,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct TemplateMeta {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) labels: CheckedLabels,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CronJobSpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) job_template: JobTemplate,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct JobTemplate {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) spec: ControllerSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSpec {
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(default, rename = "clusterIP")]
    pub(super) cluster_ip: Option<ClusterIp>,
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    pub(super) cluster_ips: Vec<ClusterIp>,
    #[serde(default, rename = "externalIPs", deserialize_with = "nullable")]
    pub(super) external_ips: Vec<Address>,
    #[serde(default)]
    pub(super) external_name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<ServicePortSpec>,
}

/// A ClusterIP: an address, `None`, or nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) enum ClusterIp {
    Address(Address),
    Headless,
}

impl TryFrom<String> for ClusterIp {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        if text == "None" { Ok(Self::Headless) } else { Address::try_from(text).map(Self::Address) }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServicePortSpec {
    pub(super) port: Port,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) name: PortName,
    #[serde(default)]
    pub(super) protocol: Option<String>,
    #[serde(default)]
    pub(super) app_protocol: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) node_port: u16,
}

/// A port number that can be connected to: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "i64")]
pub(super) struct Port(pub(super) u16);

impl TryFrom<i64> for Port {
    type Error = String;

    fn try_from(port: i64) -> Result<Self, String> {
        match u16::try_from(port) {
            Ok(port @ 1..) => Ok(Self(port)),
            _ => Err(format!("{port} is no port; expected 1 to 65535")),
        }
    }
}

/// Name of a port, or empty.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct PortName(pub(super) String);

impl TryFrom<String> for PortName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        // Istio's registry takes more than Kubernetes does, upper case for one; what matters is that it can be printed.
        if name.len() <= 255 && name.chars().all(|c| c.is_ascii_graphic()) {
            Ok(Self(name))
        } else {
            Err(format!("{name:?} is no port name"))
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct LoadBalancer {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ingress: Vec<Ip>,
}

/// An EndpointSlice keeps its fields at the top.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointSlice {
    pub(super) metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) address_type: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Endpoint {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct EndpointPort {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) name: PortName,
    #[serde(default)]
    pub(super) port: Option<Port>,
    #[serde(default)]
    pub(super) protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct ServiceEntrySpec {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) hosts: Vec<Host>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<Range>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: Vec<ServiceEntryPort>,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) endpoints: Vec<WorkloadEntry>,
}

/// An address or a CIDR range.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Range(pub(super) AddressRange);

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        AddressRange::parse(&text).map(Self).ok_or_else(|| format!("{text:?} is no IP address or CIDR range"))
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceEntryPort {
    pub(super) number: Port,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) name: PortName,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) protocol: String,
    #[serde(default)]
    pub(super) target_port: Option<u16>,
}

/// An endpoint of a ServiceEntry; the address may also be a DNS name or a socket's path.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct WorkloadEntry {
    #[serde(default, deserialize_with = "nullable")]
    pub(super) address: String,
    #[serde(default, deserialize_with = "nullable")]
    pub(super) ports: BTreeMap<String, Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct ServiceEntryStatus {
    /// What istiod allocated for hosts without an address.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) addresses: Vec<AllocatedAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct AllocatedAddress {
    #[serde(default)]
    pub(super) value: Option<Address>,
    /// Empty: for every host of the ServiceEntry.
    #[serde(default, deserialize_with = "nullable")]
    pub(super) host: String,
}
