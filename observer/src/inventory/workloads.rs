//! Pods, and the workloads that they belong to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::labels::{without_added_labels, without_controller_labels};
use super::namespace_of;
use super::objects::{ControllerSpec, CronJobSpec, Meta, Object, PodSpec, PodStatus};
use crate::model::mesh::{Labels, Mesh, Pod, PodRef, Workload};
use crate::model::names::{Namespace, WorkloadRef};

const TEMPLATE_HASH: &str = "pod-template-hash";

#[derive(Default)]
pub(super) struct Collector {
    pods: Vec<Object<PodSpec, PodStatus>>,
    controllers: BTreeMap<WorkloadRef, Controller>,
}

/// What the object of a controller says.
struct Controller {
    /// The controller of the controller, such as the Deployment of a ReplicaSet.
    owner: Option<WorkloadRef>,
    workload: Workload,
}

impl Collector {
    pub(super) fn add_pod(&mut self, pod: Object<PodSpec, PodStatus>) {
        self.pods.push(pod);
    }

    pub(super) fn add_controller(&mut self, kind: String, object: Object<ControllerSpec>) {
        self.add(kind, &object.metadata, &object.spec);
    }

    pub(super) fn add_cron_job(&mut self, object: Object<CronJobSpec>) {
        self.add("CronJob".to_owned(), &object.metadata, &object.spec.job_template.spec);
    }

    fn add(&mut self, kind: String, meta: &Meta, spec: &ControllerSpec) {
        let namespace = namespace_of(meta);
        // Only these two are made by another controller as a matter of course; a Deployment that some operator made is
        // still what people know the workload by.
        let owner =
            matches!(kind.as_str(), "ReplicaSet" | "Job").then(|| meta.controller()).flatten().map(|owner| {
                WorkloadRef {
                    namespace: namespace.clone(),
                    kind: owner.kind.0.clone(),
                    name: owner.name.as_str().to_owned(),
                }
            });
        let workload = Workload {
            template_labels: without_controller_labels(spec.template.metadata.labels.to_labels()),
            match_labels: without_controller_labels(spec.selector.match_labels.to_labels()),
        };
        let name = meta.name.as_str().to_owned();
        let key = WorkloadRef { namespace, kind, name };
        self.controllers.insert(key, Controller { owner, workload });
    }

    /// Finds the workload of each pod and fills in pods, workloads and node addresses.
    pub(super) fn finish(self, mesh: &mut Mesh) {
        let Self { pods, controllers } = self;
        let mut derived: BTreeMap<WorkloadRef, Workload> = BTreeMap::new();
        for (key, controller) in &controllers {
            match &controller.owner {
                None => {
                    mesh.workloads.insert(key.clone(), controller.workload.clone());
                }
                Some(owner) => merge(&mut derived, owner, &controller.workload),
            }
        }
        let mut from_pods: BTreeMap<WorkloadRef, Workload> = BTreeMap::new();
        for object in pods {
            let namespace = namespace_of(&object.metadata);
            let labels = object.metadata.labels.to_labels();
            let workload = workload_of(&object.metadata, &namespace, &labels, &controllers);
            let template =
                Workload { template_labels: without_added_labels(&labels), match_labels: Labels::new() };
            merge(&mut from_pods, &workload, &template);
            let addresses = addresses_of(&object.status);
            let nodes = object.status.host_ips.iter().filter_map(|ip| ip.ip);
            mesh.node_addresses.extend(nodes.chain(object.status.host_ip).filter_map(|address| address.0));
            if object.spec.host_network {
                mesh.node_addresses.extend(&addresses);
            }
            let pod = PodRef { namespace, name: object.metadata.name.as_str().to_owned() };
            mesh.pods
                .insert(pod, Pod { workload, labels, addresses, host_network: object.spec.host_network });
        }
        // The nearer to the template, the better: the controller itself, then what it made, then the pods alone.
        for (key, workload) in derived.into_iter().chain(from_pods) {
            mesh.workloads.entry(key).or_insert(workload);
        }
    }
}

/// Of several objects of one workload (ReplicaSets of a Rollout, pods of an unknown controller), what they have in common is
/// the template's; the rest differs from one to the next.
fn merge(known: &mut BTreeMap<WorkloadRef, Workload>, key: &WorkloadRef, more: &Workload) {
    match known.get_mut(key) {
        None => {
            known.insert(key.clone(), more.clone());
        }
        Some(workload) => {
            workload.template_labels.retain(|k, v| more.template_labels.get(k) == Some(v));
            workload.match_labels.retain(|k, v| more.match_labels.get(k) == Some(v));
        }
    }
}

fn workload_of(
    meta: &Meta,
    namespace: &Namespace,
    labels: &Labels,
    controllers: &BTreeMap<WorkloadRef, Controller>,
) -> WorkloadRef {
    let workload = |kind: &str, name: &str| WorkloadRef {
        namespace: namespace.clone(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    // A static pod is "owned" by its Node.
    let Some(owner) = meta.controller().filter(|owner| owner.kind.0 != "Node") else {
        return workload("Pod", meta.name.as_str());
    };
    let direct = workload(&owner.kind.0, owner.name.as_str());
    if let Some(controller) = controllers.get(&direct) {
        return controller.owner.clone().unwrap_or(direct);
    }
    // The ReplicaSet was not listed. The Deployment controller names it after itself and the hash, which the pod repeats.
    if direct.kind == "ReplicaSet"
        && let Some(hash) = labels.get(TEMPLATE_HASH).filter(|hash| !hash.is_empty())
        && let Some(name) = direct.name.strip_suffix(hash.as_str())
        && let Some(name) = name.strip_suffix('-').filter(|name| !name.is_empty())
    {
        return workload("Deployment", name);
    }
    direct
}

fn addresses_of(status: &PodStatus) -> BTreeSet<IpAddr> {
    // The address of a pod that ended may be another pod's already.
    if matches!(status.phase.as_str(), "Succeeded" | "Failed") {
        return BTreeSet::new();
    }
    let all = status.pod_ips.iter().filter_map(|ip| ip.ip);
    all.chain(status.pod_ip).filter_map(|address| address.0).collect()
}
