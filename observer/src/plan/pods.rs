//! Which pods have a proxy of their own, as far as their labels tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::fact::Fact;
use super::selector::{Owner, selects};
use crate::model::mesh::{Labels, Mesh, Pod};
use crate::model::names::{Namespace, WorkloadRef};

/// Labels by which a gateway or waypoint is known that istiod made.
const GATEWAY_LABELS: [&str; 3] =
    ["gateway.networking.k8s.io/gateway-name", "istio.io/gateway-name", "gateway.istio.io/managed"];
const AMBIENT: (&str, &str) = ("istio.io/dataplane-mode", "ambient");

/// The pods of a workload.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    live: usize,
    injected: usize,
}

/// The pods of all workloads.
#[derive(Debug)]
pub(super) struct Proxies<'a> {
    mesh: &'a Mesh,
    counts: HashMap<&'a WorkloadRef, Counts>,
    /// Workloads with a pod in the node's network, and those that have others.
    on_node_network: BTreeSet<&'a WorkloadRef>,
    /// By namespace: whether any of its pods has a proxy.
    namespaces: BTreeMap<&'a Namespace, bool>,
    /// Whether labels tell at all: of an inventory without those of the injector nothing follows.
    is_told: bool,
}

impl<'a> Proxies<'a> {
    pub(super) fn new(mesh: &'a Mesh) -> Self {
        let mut proxies = Self {
            mesh,
            counts: HashMap::new(),
            on_node_network: BTreeSet::new(),
            namespaces: BTreeMap::new(),
            is_told: false,
        };
        for pod in mesh.pods.values() {
            if pod.host_network {
                proxies.on_node_network.insert(&pod.workload);
                continue;
            }
            let is_injected = is_injected(mesh, pod);
            proxies.is_told |= is_injected;
            let counts = proxies.counts.entry(&pod.workload).or_default();
            counts.live += usize::from(!pod.addresses.is_empty());
            counts.injected += usize::from(is_injected);
            *proxies.namespaces.entry(&pod.workload.namespace).or_default() |= is_injected;
        }
        proxies
    }

    /// Pods of the workload that have an address of their own.
    pub(super) fn live(&self, workload: &WorkloadRef) -> usize {
        self.counts.get(workload).map_or(0, |counts| counts.live)
    }

    /// Whether the workload has a pod in the node's network, which has no proxy.
    pub(super) fn is_on_node_network(&self, workload: &WorkloadRef) -> bool {
        self.on_node_network.contains(workload)
    }

    /// Whether servers of the namespace may have proxies, or belong to an ambient mesh.
    pub(super) fn any_in(&self, namespace: &Namespace) -> bool {
        let is_ambient = self.mesh.config.namespaces.get(namespace).is_some_and(|ns| ns.is_ambient);
        is_ambient || !self.is_told || self.namespaces.get(namespace).copied().unwrap_or(true)
    }

    /// Why a Sidecar would bear on none of these pods; `None`: it would.
    pub(super) fn obstacle(&self, namespace: &Namespace, members: &[Owner<'a>]) -> Option<Fact> {
        let config = &self.mesh.config;
        let settings = config.namespaces.get(namespace);
        if settings.is_some_and(|settings| settings.is_undiscovered) {
            return Some(Fact::NotDiscovered(namespace.clone()));
        }
        let is_gateway = |labels: &Labels| {
            GATEWAY_LABELS.iter().any(|label| labels.contains_key(*label))
                || config.gateways.iter().any(|selector| selects(selector, labels))
        };
        let mut templates = members.iter().filter_map(Owner::template);
        if templates.clone().any(is_gateway) {
            return Some(Fact::Gateway);
        }
        let counts = members.iter().filter_map(|member| self.counts.get(member.workload));
        let (live, injected) = counts.fold((0, 0), |(l, i), counts| (l + counts.live, i + counts.injected));
        if injected > 0 || live == 0 {
            return None;
        }
        let says_ambient = |labels: &Labels| labels.get(AMBIENT.0).is_some_and(|mode| mode == AMBIENT.1);
        if settings.is_some_and(|settings| settings.is_ambient) || templates.any(says_ambient) {
            return Some(Fact::Ambient(namespace.clone()));
        }
        self.is_told.then_some(Fact::NotInjected)
    }
}

/// The injector labels what it has injected.
fn is_injected(mesh: &Mesh, pod: &Pod) -> bool {
    let template = mesh.workloads.get(&pod.workload).map(|workload| &workload.template_labels);
    let adds =
        |key: &str| pod.labels.contains_key(key) && template.is_none_or(|labels| !labels.contains_key(key));
    pod.labels.contains_key("security.istio.io/tlsMode")
        || adds("service.istio.io/canonical-revision")
        || adds("service.istio.io/canonical-name")
}
