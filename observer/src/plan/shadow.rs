//! The default Sidecar of a namespace or of the mesh, in the place of which ours comes. istiod merges nothing, so what it says besides
//! egress is copied.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::selector::LabelIndex;
use super::services::is_below;
use crate::model::config::{Config, ExistingSidecar, ObjectRef, OutboundMode};
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::sidecar::Inherited;

/// Sidecars that Sidescope did not make.
#[derive(Debug)]
pub(super) struct Shadows<'a> {
    config: &'a Config,
    mesh_config: ObjectRef,
    defaults: BTreeMap<&'a Namespace, &'a ExistingSidecar>,
    selecting: HashMap<&'a WorkloadRef, &'a ExistingSidecar>,
}

impl<'a> Shadows<'a> {
    pub(super) fn new(config: &'a Config, labels: &LabelIndex<'a>, all: &[&'a WorkloadRef]) -> Self {
        let mut defaults: BTreeMap<&Namespace, &ExistingSidecar> = BTreeMap::new();
        let mut selecting = HashMap::new();
        for sidecar in config.sidecars.iter().filter(|sidecar| !sidecar.is_ours) {
            match &sidecar.selector {
                None => {
                    let oldest = defaults.entry(&sidecar.namespace).or_insert(sidecar);
                    if age(sidecar) < age(oldest) {
                        *oldest = sidecar;
                    }
                }
                // It selects all, and goes before the defaults.
                Some(selector) if selector.is_empty() => {
                    let of_namespace = all.iter().filter(|workload| workload.namespace == sidecar.namespace);
                    selecting.extend(of_namespace.map(|workload| (*workload, &**sidecar)));
                }
                Some(selector) => {
                    let hit = labels.hits(&sidecar.namespace, selector);
                    selecting.extend(hit.into_iter().map(|workload| (workload, &**sidecar)));
                }
            }
        }
        let mesh_config =
            ObjectRef { kind: "ConfigMap", namespace: config.mesh.root.clone(), name: "istio".to_owned() };
        Self { config, mesh_config, defaults, selecting }
    }

    /// The Sidecar of somebody else that selects the workload's pods.
    pub(super) fn selecting(&self, workload: &WorkloadRef) -> Option<ObjectRef> {
        self.selecting.get(workload).map(|sidecar| reference(sidecar))
    }

    /// The one that a Sidecar in `namespace` takes the place of.
    pub(super) fn default_of(&self, namespace: &Namespace) -> Option<&'a ExistingSidecar> {
        let root = &self.config.mesh.root;
        self.defaults.get(namespace).or_else(|| self.defaults.get(root)).copied()
    }

    /// What a proxy does with what it is not told of, and the object that says so.
    pub(super) fn outbound(&self, namespace: &Namespace) -> (OutboundMode, ObjectRef) {
        let own =
            self.default_of(namespace).and_then(|sidecar| Some((sidecar.outbound?, reference(sidecar))));
        own.unwrap_or_else(|| (self.config.mesh.outbound, self.mesh_config.clone()))
    }
}

/// What is copied of it.
pub(super) fn inherited(sidecar: &ExistingSidecar) -> Inherited {
    Inherited {
        ingress: sidecar.ingress.clone(),
        inbound_connection_pool: sidecar.inbound_connection_pool.clone(),
        outbound_traffic_policy: sidecar.outbound_traffic_policy.clone(),
    }
}

/// Of several istiod takes the oldest.
fn age(sidecar: &ExistingSidecar) -> (i64, &str) {
    (sidecar.created.map_or(i64::MAX, |created| created.0), &sidecar.name)
}

/// It, for people.
pub(super) fn reference(sidecar: &ExistingSidecar) -> ObjectRef {
    ObjectRef { kind: "Sidecar", namespace: sidecar.namespace.clone(), name: sidecar.name.clone() }
}

/// Whether a service is in the scope of a Sidecar that is in the cluster, for workloads of `namespace`.
pub(super) fn has(
    sidecar: &ExistingSidecar,
    namespace: &Namespace,
    host: &Host,
    of: &BTreeSet<&Namespace>,
) -> bool {
    sidecar.egress.is_empty()
        || sidecar.egress.iter().flat_map(|listener| &listener.hosts).any(|text| {
            let Some((place, name)) = text.split_once('/') else { return false };
            let is_there = match place {
                "*" => true,
                "." => of.contains(namespace),
                "~" => false,
                place => of.iter().any(|namespace| namespace.as_str() == place),
            };
            let is_named = match name.strip_prefix("*.") {
                Some(suffix) => is_below(host.as_str(), suffix) || host.as_str() == name,
                None => name == "*" || host.as_str() == name,
            };
            is_there && is_named
        })
}
