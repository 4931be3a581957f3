//! From Kubernetes Services, EndpointSlices and ServiceEntries to the services of the mesh, the same for objects from a file and from
//! watches. Pure.

mod protocol;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::config::{HostPattern, Visibility};
use crate::model::mesh::{AddressRange, Service, ServiceKind, ServicePort};
use crate::model::names::{Host, Namespace};
use crate::objects::istio::{ExportTo, GatewayRef, VirtualServiceSpec};
use crate::objects::{
    Address, ClusterIp, EndpointSlice, Object, ServiceEntrySpec, ServiceEntryStatus, ServiceSpec,
    ServiceStatus, WorkloadEntrySpec,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A field that types alone do not check.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("field {field}: {problem}")]
pub struct WrongField {
    /// Its path.
    pub field: String,
    /// What is wrong with it.
    pub problem: String,
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> WrongField {
    WrongField { field: field.into(), problem: problem.into() }
}

/// The service that a Kubernetes Service is, without its endpoints.
///
/// # Errors
/// When its name makes no host name, or it is an alias of what is none.
pub fn of_service(object: &Object<ServiceSpec, ServiceStatus>) -> Result<Service, WrongField> {
    let namespace = object.metadata.namespace();
    let name = object.metadata.name.as_str().to_owned();
    let spec = &object.spec;
    let cluster_ips = || spec.cluster_ips.iter().chain(&spec.cluster_ip);
    let kind = if spec.kind == "ExternalName" {
        let target = spec.external_name.as_deref().unwrap_or_default();
        let host = Host::new(target);
        ServiceKind::ExternalName(
            host.map_err(|err| wrong("spec.externalName", format!("{target:?} {err}")))?,
        )
    } else if cluster_ips().any(|ip| matches!(ip, ClusterIp::Headless)) {
        ServiceKind::Headless
    } else {
        ServiceKind::Virtual
    };
    let ingress = object.status.load_balancer.ingress.iter();
    let addresses = cluster_ips()
        .filter_map(|ip| match ip {
            ClusterIp::Address(address) => Some(*address),
            ClusterIp::Headless => None,
        })
        .chain(spec.external_ips.iter().copied())
        .chain(ingress.filter_map(|ingress| ingress.ip))
        .filter_map(|address| address.0)
        .map(AddressRange::single)
        .collect();
    let ports = spec.ports.iter();
    let ports = ports.map(|port| ServicePort {
        port: port.port.0,
        node_port: (port.node_port != 0).then_some(port.node_port),
        name: port.name.0.clone(),
        protocol: protocol::of_service_port(
            port.port.0,
            &port.name.0,
            port.protocol.as_deref().unwrap_or("TCP"),
            port.app_protocol.as_deref(),
        ),
    });
    Ok(Service {
        host: Host::of_service(&name, &namespace).map_err(|err| wrong("metadata.name", err.to_string()))?,
        namespace,
        name,
        kind,
        addresses,
        endpoints: BTreeSet::new(),
        endpoint_ports: BTreeMap::new(),
        ports: ports.collect(),
    })
}

/// The services that a ServiceEntry makes, one for each of its hosts. `selected` are the WorkloadEntries that its selector matches.
///
/// # Errors
/// When it has no host.
pub fn of_entry<'a>(
    object: &'a Object<ServiceEntrySpec, ServiceEntryStatus>,
    selected: impl Iterator<Item = &'a WorkloadEntrySpec> + Clone,
) -> Result<Vec<Service>, WrongField> {
    let spec = &object.spec;
    if spec.hosts.is_empty() {
        return Err(wrong("spec.hosts", "is empty"));
    }
    let ports = spec.ports.iter();
    let ports: Vec<ServicePort> = ports
        .map(|port| ServicePort {
            port: port.number.0,
            node_port: None,
            name: port.name.0.clone(),
            protocol: protocol::by_name(&port.protocol),
        })
        .collect();
    let entries = || spec.endpoints.iter().chain(selected.clone());
    let mut endpoint_ports = BTreeMap::new();
    for port in &spec.ports {
        // In the order in which Istio lets one override the other: the endpoint's own, the target, the number.
        let own = entries().filter_map(|entry| entry.ports.get(&port.name.0));
        let targets = own.map(|own| own.0).chain(port.target_port.filter(|target| *target != 0));
        for target in targets {
            endpoint_ports.entry(target).or_insert(port.number.0);
        }
    }
    let endpoints: BTreeSet<IpAddr> = entries()
        .filter_map(|endpoint| endpoint.address.parse().ok())
        .map(|address: IpAddr| address.to_canonical())
        .collect();
    let hosts: BTreeSet<&Host> = spec.hosts.iter().collect();
    let services = hosts.into_iter().map(|host| Service {
        host: host.clone(),
        namespace: object.metadata.namespace(),
        name: object.metadata.name.as_str().to_owned(),
        kind: ServiceKind::ServiceEntry,
        addresses: spec
            .addresses
            .iter()
            .map(|range| range.0)
            .chain(allocated(&object.status, host))
            .collect(),
        endpoints: endpoints.clone(),
        endpoint_ports: endpoint_ports.clone(),
        ports: ports.clone(),
    });
    Ok(services.collect())
}

/// The names and wildcards that a VirtualService routes for sidecars, each as a service without an address, and to whom it is visible.
/// Those that are also a service's are among them. An address is no name, and `*` is one that istiod does not take for sidecars.
pub fn of_virtual_service(object: &Object<VirtualServiceSpec>) -> (Vec<Service>, Visibility) {
    let spec = &object.spec;
    let namespace = object.metadata.namespace();
    let for_sidecars = spec.gateways.is_empty() || spec.gateways.contains(&GatewayRef::Mesh);
    let patterns = spec.hosts.iter().filter(|_| for_sidecars);
    let hosts: BTreeSet<Host> = patterns
        .filter_map(|pattern| match pattern {
            // A name without a dot is one in the namespace of the object; every other is complete.
            HostPattern::Name(host) if !host.as_str().contains('.') => {
                Host::of_service(host.as_str(), &namespace).ok()
            }
            HostPattern::Name(host) => Some(host.clone()),
            HostPattern::Any | HostPattern::Address(_) => None,
        })
        .collect();
    let services = hosts.into_iter().map(|host| Service {
        host,
        namespace: namespace.clone(),
        name: object.metadata.name.as_str().to_owned(),
        kind: ServiceKind::Routed,
        addresses: BTreeSet::new(),
        endpoints: BTreeSet::new(),
        endpoint_ports: BTreeMap::new(),
        ports: Vec::new(),
    });
    (services.collect(), visibility(&spec.export_to, &namespace))
}

/// Where nothing is said, it is taken for visible to all: the mesh may say otherwise, and a dependency too many does no harm.
fn visibility(export_to: &[ExportTo], namespace: &Namespace) -> Visibility {
    if export_to.is_empty() || export_to.contains(&ExportTo::All) {
        return Visibility::All;
    }
    let namespaces = export_to.iter().filter_map(|to| match to {
        ExportTo::Own => Some(namespace.clone()),
        ExportTo::Namespace(other) => Some(other.clone()),
        ExportTo::All | ExportTo::None => None,
    });
    Visibility::Only(namespaces.collect())
}

/// What istiod allocated for a host without an address of its own.
fn allocated(status: &ServiceEntryStatus, host: &Host) -> impl Iterator<Item = AddressRange> {
    let of_host =
        status.addresses.iter().filter(|status| status.host.is_empty() || status.host == host.as_str());
    of_host.filter_map(|allocated| allocated.value?.0).map(AddressRange::single)
}

/// The Service that a slice belongs to. One without the label belongs to none; istiod passes over it as well.
pub fn service_of(slice: &EndpointSlice) -> Option<(Namespace, String)> {
    let name = slice.metadata.labels.get(SERVICE_NAME_LABEL)?;
    Some((slice.metadata.namespace(), name.to_owned()))
}

/// Checks the addresses of a slice, which may also be names.
///
/// # Errors
/// When one is neither.
pub fn check_slice(slice: &EndpointSlice) -> Result<(), WrongField> {
    if slice.address_type == "FQDN" {
        return Ok(());
    }
    for (at, endpoint) in slice.endpoints.iter().enumerate() {
        for (nth, address) in endpoint.addresses.iter().enumerate() {
            Address::try_from(address.clone())
                .map_err(|problem| wrong(format!("endpoints[{at}].addresses[{nth}]"), problem))?;
        }
    }
    Ok(())
}

/// An address of a slice; `None` for the names that slices of type FQDN hold.
pub fn endpoint_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// What the slices of one Service say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Their addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Port's name -> ports of the endpoints: slices of one service may differ.
    pub ports: EndpointPorts,
}

/// Port's name -> ports of the endpoints.
pub type EndpointPorts = BTreeMap<String, BTreeSet<u16>>;

impl Endpoints {
    /// Takes over what a slice says.
    pub fn add(&mut self, slice: &EndpointSlice) {
        let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        self.addresses.extend(addresses.filter_map(|address| endpoint_address(address)));
        add_ports(&mut self.ports, slice);
    }

    /// Fills them in. The endpoints of a ServiceEntry are its own.
    pub fn join(&self, service: &mut Service) {
        if service.kind != ServiceKind::ServiceEntry {
            service.endpoints.clone_from(&self.addresses);
            join_ports(&self.ports, service);
        }
    }
}

/// Takes over the ports of a slice.
pub fn add_ports(ports: &mut EndpointPorts, slice: &EndpointSlice) {
    for port in &slice.ports {
        if let Some(number) = port.port
            && port.protocol.as_deref() != Some("UDP")
        {
            ports.entry(port.name.0.clone()).or_default().insert(number.0);
        }
    }
}

/// Fills in on which ports the endpoints listen.
pub fn join_ports(ports: &EndpointPorts, service: &mut Service) {
    for port in &service.ports {
        for target in ports.get(&port.name).into_iter().flatten() {
            service.endpoint_ports.entry(*target).or_insert(port.port);
        }
    }
}

/// Services in the order in which a mesh holds them.
pub fn sorted(mut services: Vec<Service>) -> Vec<Arc<Service>> {
    services.sort_by(|a, b| (&a.host, &a.namespace, &a.name).cmp(&(&b.host, &b.namespace, &b.name)));
    services.into_iter().map(Arc::new).collect()
}
