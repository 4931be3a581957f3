//! Services, their endpoints, and ServiceEntries.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::objects::{Address, ClusterIp, EndpointSlice, ServiceEntrySpec, ServiceEntryStatus};
use super::objects::{ServiceSpec, ServiceStatus};
use super::{Object, namespace_of, objects, protocol};
use crate::model::mesh::{AddressRange, Service, ServiceKind, ServicePort};
use crate::model::names::{Host, Namespace};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A field that types alone do not check.
pub(super) struct WrongField {
    pub(super) field: String,
    pub(super) problem: String,
}

/// Checks what depends on the kind: names that become host names, addresses that may also be something else.
pub(super) fn check(object: &Object) -> Result<(), WrongField> {
    let wrong = |field: &str, problem: String| WrongField { field: field.to_owned(), problem };
    match object {
        Object::Service(service) => {
            let namespace = namespace_of(&service.metadata);
            Host::of_service(service.metadata.name.as_str(), &namespace)
                .map_err(|err| wrong("metadata.name", err.to_string()))?;
            if service.spec.kind == "ExternalName" {
                let name = service.spec.external_name.as_deref().unwrap_or_default();
                Host::new(name)
                    .map_err(|err| wrong("spec.externalName", format!("{name:?} {err}")))
                    .map(drop)?;
            }
        }
        Object::EndpointSlice(slice) if slice.address_type != "FQDN" => {
            for (at, endpoint) in slice.endpoints.iter().enumerate() {
                for (nth, address) in endpoint.addresses.iter().enumerate() {
                    Address::try_from(address.clone())
                        .map_err(|problem| wrong(&format!("endpoints[{at}].addresses[{nth}]"), problem))?;
                }
            }
        }
        Object::ServiceEntry(entry) if entry.spec.hosts.is_empty() => {
            return Err(wrong("spec.hosts", "is empty".to_owned()));
        }
        _ => {}
    }
    Ok(())
}

#[derive(Default)]
pub(super) struct Collector {
    services: Vec<Service>,
    slices: BTreeMap<(Namespace, String), Endpoints>,
}

#[derive(Default)]
struct Endpoints {
    addresses: BTreeSet<IpAddr>,
    /// Port's name -> ports of the endpoints: slices of one service may differ.
    ports: BTreeMap<String, BTreeSet<u16>>,
}

impl Collector {
    pub(super) fn add_service(&mut self, object: objects::Object<ServiceSpec, ServiceStatus>) {
        let namespace = namespace_of(&object.metadata);
        let name = object.metadata.name.as_str().to_owned();
        let spec = object.spec;
        let cluster_ips = || spec.cluster_ips.iter().chain(&spec.cluster_ip);
        let kind = if spec.kind == "ExternalName" {
            let target = spec.external_name.as_deref().unwrap_or_default();
            ServiceKind::ExternalName(Host::new(target).expect("checked when it was added"))
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
        let ports = spec
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.port.0,
                node_port: (port.node_port != 0).then_some(port.node_port),
                name: port.name.0.clone(),
                protocol: protocol::of_service_port(
                    port.port.0,
                    &port.name.0,
                    port.protocol.as_deref().unwrap_or("TCP"),
                    port.app_protocol.as_deref(),
                ),
            })
            .collect();
        self.services.push(Service {
            host: Host::of_service(&name, &namespace).expect("checked when it was added"),
            namespace,
            name,
            kind,
            addresses,
            endpoints: BTreeSet::new(),
            endpoint_ports: BTreeMap::new(),
            ports,
        });
    }

    pub(super) fn add_slice(&mut self, slice: &EndpointSlice) {
        // A slice without the label belongs to no Service; istiod passes over it as well.
        let Some(service) = slice.metadata.labels.get(SERVICE_NAME_LABEL) else {
            return;
        };
        let key = (namespace_of(&slice.metadata), service.to_owned());
        let endpoints = self.slices.entry(key).or_default();
        for address in slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
            // Slices of type FQDN hold names.
            if let Ok(Address(Some(address))) = Address::try_from(address.clone()) {
                endpoints.addresses.insert(address);
            }
        }
        for port in &slice.ports {
            if let Some(number) = port.port
                && port.protocol.as_deref() != Some("UDP")
            {
                endpoints.ports.entry(port.name.0.clone()).or_default().insert(number.0);
            }
        }
    }

    pub(super) fn add_entry(&mut self, object: objects::Object<ServiceEntrySpec, ServiceEntryStatus>) {
        let namespace = namespace_of(&object.metadata);
        let spec = object.spec;
        let ports: Vec<ServicePort> = spec
            .ports
            .iter()
            .map(|port| ServicePort {
                port: port.number.0,
                node_port: None,
                name: port.name.0.clone(),
                protocol: protocol::by_name(&port.protocol),
            })
            .collect();
        let mut endpoint_ports = BTreeMap::new();
        for port in &spec.ports {
            // In the order in which Istio lets one override the other: the endpoint's own, the target, the number.
            let own = spec.endpoints.iter().filter_map(|e| e.ports.get(&port.name.0));
            let targets = own.map(|own| own.0).chain(port.target_port.filter(|target| *target != 0));
            for target in targets {
                endpoint_ports.entry(target).or_insert(port.number.0);
            }
        }
        let endpoints: BTreeSet<IpAddr> = spec
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.address.parse().ok())
            .map(|address: IpAddr| address.to_canonical())
            .collect();
        let hosts: BTreeSet<&Host> = spec.hosts.iter().collect();
        for host in hosts {
            let allocated = object
                .status
                .addresses
                .iter()
                .filter(|allocated| allocated.host.is_empty() || allocated.host == host.as_str())
                .filter_map(|allocated| allocated.value?.0)
                .map(AddressRange::single);
            self.services.push(Service {
                host: host.clone(),
                namespace: namespace.clone(),
                name: object.metadata.name.as_str().to_owned(),
                kind: ServiceKind::ServiceEntry,
                addresses: spec.addresses.iter().map(|range| range.0).chain(allocated).collect(),
                endpoints: endpoints.clone(),
                endpoint_ports: endpoint_ports.clone(),
                ports: ports.clone(),
            });
        }
    }

    /// Joins services and endpoints.
    pub(super) fn finish(self) -> Vec<Service> {
        let Self { mut services, mut slices } = self;
        for service in &mut services {
            if service.kind == ServiceKind::ServiceEntry {
                continue;
            }
            let key = (service.namespace.clone(), service.name.clone());
            let Some(endpoints) = slices.remove(&key) else {
                continue;
            };
            service.endpoints = endpoints.addresses;
            for port in &service.ports {
                for target in endpoints.ports.get(&port.name).into_iter().flatten() {
                    service.endpoint_ports.entry(*target).or_insert(port.port);
                }
            }
        }
        services.sort_by(|a, b| (&a.host, &a.namespace, &a.name).cmp(&(&b.host, &b.namespace, &b.name)));
        services
    }
}
