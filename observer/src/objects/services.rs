//! Services, their endpoints, and Istio's ServiceEntries and WorkloadEntries.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::labels::CheckedLabels;
use super::{Address, Ip, Meta, nullable};
use crate::model::mesh::AddressRange;
use crate::model::names::{Host, PodUid};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    #[serde(default, rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(default, rename = "clusterIP")]
    pub cluster_ip: Option<ClusterIp>,
    #[serde(default, rename = "clusterIPs", deserialize_with = "nullable")]
    pub cluster_ips: Vec<ClusterIp>,
    #[serde(default, rename = "externalIPs", deserialize_with = "nullable")]
    pub external_ips: Vec<Address>,
    #[serde(default)]
    pub external_name: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ServicePortSpec>,
}

/// A ClusterIP: an address, `None`, or nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub enum ClusterIp {
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
pub struct ServicePortSpec {
    pub port: Port,
    #[serde(default, deserialize_with = "nullable")]
    pub name: PortName,
    #[serde(default)]
    pub protocol: Option<String>,
    #[serde(default)]
    pub app_protocol: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub node_port: u16,
}

/// A port number that can be connected to: 1 to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct Port(pub u16);

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
pub struct PortName(pub String);

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
pub struct ServiceStatus {
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct LoadBalancer {
    #[serde(default, deserialize_with = "nullable")]
    pub ingress: Vec<Ip>,
}

/// An EndpointSlice keeps its fields at the top.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    pub metadata: Meta,
    #[serde(default, deserialize_with = "nullable")]
    pub address_type: String,
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<EndpointPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    #[serde(default, deserialize_with = "nullable")]
    pub target_ref: ObjectReference,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ObjectReference {
    #[serde(default, deserialize_with = "nullable")]
    pub kind: String,
    #[serde(default)]
    pub uid: Option<PodUid>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct EndpointPort {
    #[serde(default, deserialize_with = "nullable")]
    pub name: PortName,
    #[serde(default)]
    pub port: Option<Port>,
    #[serde(default)]
    pub protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntrySpec {
    #[serde(default, deserialize_with = "nullable")]
    pub hosts: Vec<Host>,
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<Range>,
    #[serde(default, deserialize_with = "nullable")]
    pub ports: Vec<ServiceEntryPort>,
    #[serde(default, deserialize_with = "nullable")]
    pub endpoints: Vec<WorkloadEntrySpec>,
    #[serde(default)]
    pub workload_selector: Option<WorkloadSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct WorkloadSelector {
    #[serde(default, deserialize_with = "nullable")]
    pub labels: CheckedLabels,
}

/// An address or a CIDR range.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(try_from = "String")]
pub struct Range(pub AddressRange);

impl TryFrom<String> for Range {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        AddressRange::parse(&text).map(Self).ok_or_else(|| format!("{text:?} is no IP address or CIDR range"))
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntryPort {
    pub number: Port,
    #[serde(default, deserialize_with = "nullable")]
    pub name: PortName,
    #[serde(default, deserialize_with = "nullable")]
    pub protocol: String,
    #[serde(default)]
    pub target_port: Option<u16>,
}

/// An endpoint of a ServiceEntry, in it or by itself; the address may also be a DNS name or a socket's path.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct WorkloadEntrySpec {
    #[serde(default, deserialize_with = "nullable")]
    pub address: String,
    #[serde(default, deserialize_with = "nullable")]
    pub labels: CheckedLabels,
    #[serde(default, deserialize_with = "nullable")]
    pub ports: BTreeMap<String, Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ServiceEntryStatus {
    /// What istiod allocated for hosts without an address.
    #[serde(default, deserialize_with = "nullable")]
    pub addresses: Vec<AllocatedAddress>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct AllocatedAddress {
    #[serde(default)]
    pub value: Option<Address>,
    /// Empty: for every host of the ServiceEntry.
    #[serde(default, deserialize_with = "nullable")]
    pub host: String,
}
