//! Mesh objects in the form that decisions need, however they were read (files today, watches tomorrow).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::config::Config;
use crate::model::names::{Host, Namespace, WorkloadRef};

/// Labels of an object, sorted.
pub type Labels = BTreeMap<String, String>;

/// Everything that is known of the mesh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    /// Workloads, those without pods too.
    pub workloads: BTreeMap<WorkloadRef, Workload>,
    /// Pods that can have addresses, by namespace and name.
    pub pods: BTreeMap<PodRef, Pod>,
    /// Services and the hosts of ServiceEntries. A ServiceEntry with three hosts makes three.
    pub services: Vec<Arc<Service>>,
    /// Addresses of nodes, as far as pods tell them. Node ports are reached there.
    pub node_addresses: BTreeSet<IpAddr>,
    /// What Istio's and Sidescope's own objects say.
    pub config: Config,
}

impl Mesh {
    /// How many pods of each workload can be seen to connect: those with an address in a network namespace of their own.
    pub fn live_pods(&self) -> BTreeMap<&WorkloadRef, usize> {
        let mut counts = BTreeMap::new();
        for pod in self.pods.values().filter(|pod| !pod.host_network && !pod.addresses.is_empty()) {
            *counts.entry(&pod.workload).or_default() += 1;
        }
        counts
    }
}

/// Namespace and name of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: String,
}

/// A workload: what one Sidecar's selector is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Labels of the pod template, without any that the injector adds.
    pub template_labels: Labels,
    /// The controller's own `spec.selector.matchLabels`; empty for a bare pod.
    pub match_labels: Labels,
    /// Hosts that the controller's annotation [`STATIC_HOSTS`] names.
    pub static_hosts: StaticHosts,
}

/// The annotation of a Deployment or another controller that names hosts, with commas between them, that its pods need in any case.
pub const STATIC_HOSTS: &str = "sidescope.io/static-hosts";

/// What the annotation says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StaticHosts {
    /// These hosts.
    Hosts(BTreeSet<Host>),
    /// Something that is no host, which is told here.
    Wrong(String),
}

impl Default for StaticHosts {
    fn default() -> Self {
        Self::Hosts(BTreeSet::new())
    }
}

impl StaticHosts {
    /// Reads the annotation.
    pub fn parse(text: &str) -> Self {
        let mut hosts = BTreeSet::new();
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match Host::new(name) {
                Ok(host) if host.as_str().contains('.') => drop(hosts.insert(host)),
                Ok(_) => return Self::Wrong(format!("{name:?} has no dot; write the name in full")),
                Err(err) => return Self::Wrong(format!("{name:?} {err}")),
            }
        }
        Self::Hosts(hosts)
    }
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The workload that it belongs to.
    pub workload: WorkloadRef,
    /// All its labels, those of the injector too.
    pub labels: Arc<Labels>,
    /// Its addresses; empty while it has none and where it ended.
    pub addresses: BTreeSet<IpAddr>,
    /// Whether it lives in the node's own network namespace. Such a pod has no sidecar.
    pub host_network: bool,
}

/// Something that a workload can depend on and that Istio's registry holds under one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// The host in Istio's registry.
    pub host: Host,
    /// Namespace of the object.
    pub namespace: Namespace,
    /// Name of the object.
    pub name: String,
    /// What kind of service it is.
    pub kind: ServiceKind,
    /// Addresses that stand for the service as such: ClusterIPs, external and load balancer addresses, addresses of a
    /// ServiceEntry.
    pub addresses: BTreeSet<AddressRange>,
    /// Addresses of the endpoints (ready or not). They stand for the service only if it is headless.
    pub endpoints: BTreeSet<IpAddr>,
    /// Port that the endpoints listen on (`targetPort`) -> port of the service.
    pub endpoint_ports: BTreeMap<u16, u16>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
}

/// What kind of service it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// Has an address of its own.
    Virtual,
    /// `clusterIP: None`: callers connect to the endpoints.
    Headless,
    /// An alias of another host.
    ExternalName(Host),
    /// A host of a ServiceEntry.
    ServiceEntry,
    /// A host that a VirtualService routes. It is no service of the registry: what has it leads elsewhere.
    Routed,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port number that callers use.
    pub port: u16,
    /// Node port, where the service has one.
    pub node_port: Option<u16>,
    /// Name; may be empty.
    pub name: String,
    /// Protocol as istiod reads it.
    pub protocol: PortProtocol,
}

/// Protocol of a port as istiod reads it from `appProtocol` and the name's prefix.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum PortProtocol {
    /// HTTP/1, HTTP/2, gRPC: routed by host.
    Http,
    /// TLS or HTTPS: routed by address or SNI.
    Tls,
    /// Opaque bytes: routed by address.
    Tcp,
    /// UDP: no part of this product.
    Udp,
    /// Not said: istiod looks at the bytes.
    Unknown,
}

/// One address or a CIDR range of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AddressRange {
    base: IpAddr,
    prefix: u8,
}

impl AddressRange {
    /// The range of one address.
    pub fn single(address: IpAddr) -> Self {
        Self { base: address.to_canonical(), prefix: max_prefix(address.to_canonical()) }
    }

    /// Parses `10.0.0.1` or `10.0.0.0/8`; bits below the prefix are cleared.
    pub fn parse(text: &str) -> Option<Self> {
        let Some((address, prefix)) = text.split_once('/') else {
            return text.parse().ok().map(Self::single);
        };
        let address: IpAddr = address.parse().ok()?;
        let prefix: u8 = prefix.parse().ok()?;
        (prefix <= max_prefix(address)).then(|| Self { base: mask(address, prefix), prefix })
    }

    /// The range of all addresses that share the first `prefix` bits with `address`; `None` where that has fewer.
    pub fn around(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = address.to_canonical();
        (prefix <= max_prefix(address)).then(|| Self { base: mask(address, prefix), prefix })
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.base.is_ipv4() && mask(address, self.prefix) == self.base
    }

    /// The address if the range holds just one.
    pub fn as_single(&self) -> Option<IpAddr> {
        (self.prefix == max_prefix(self.base)).then_some(self.base)
    }

    /// Number of leading bits that are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }
}

fn max_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_hold_what_their_prefix_says() {
        for (range, address, inside) in [
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.2", false),
            ("10.1.2.3/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "203.0.113.9", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("10.0.0.1", "::ffff:10.0.0.1", true),
        ] {
            let parsed = AddressRange::parse(range).unwrap();
            assert_eq!(parsed.contains(address.parse().unwrap()), inside, "{range} {address}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "a.example", "::1/129", "/8"] {
            assert_eq!(AddressRange::parse(bad), None, "{bad:?}");
        }
    }
}
