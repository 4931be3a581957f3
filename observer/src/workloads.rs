//! Which workload a pod belongs to, and what the workload's pods have in common, the same for objects from a file and from watches.
//! Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::interned::Interned;
use crate::model::mesh::{Labels, StaticHosts, Workload};
use crate::model::names::WorkloadRef;
use crate::model::time::Time;
use crate::objects::labels::{without_added_labels, without_controller_labels};
use crate::objects::{ControllerSpec, Meta};

const TEMPLATE_HASH: &str = "pod-template-hash";

/// The controllers that are known.
#[derive(Clone, Debug, Default)]
pub struct Controllers {
    known: HashMap<WorkloadRef, Controller>,
    /// Of the ReplicaSets of one workload most say the same.
    workloads: Interned<Workload>,
}

/// What the object of a controller says.
#[derive(Clone, Debug)]
struct Controller {
    /// The controller of the controller, such as the Deployment of a ReplicaSet.
    owner: Option<WorkloadRef>,
    workload: Arc<Workload>,
    /// Since when it is gone.
    gone: Option<Time>,
}

/// Which workload a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Belongs {
    /// To this one.
    To(WorkloadRef),
    /// To whatever made this ReplicaSet or Job, whose object is not known.
    ToOwnerOf(WorkloadRef),
}

impl Controllers {
    /// Takes over the object of a controller, for a CronJob with the spec of its Jobs.
    pub fn add(&mut self, kind: &str, meta: &Meta, spec: &ControllerSpec) {
        let owner = is_made_by_another(kind).then(|| controller_of(meta)).flatten();
        let workload = self.workloads.get(Workload {
            template_labels: without_controller_labels(spec.template.metadata.labels.to_labels()),
            match_labels: without_controller_labels(spec.selector.match_labels.to_labels()),
            static_hosts: meta
                .annotations
                .static_hosts
                .as_deref()
                .map(StaticHosts::parse)
                .unwrap_or_default(),
        });
        let key = reference_of(kind, meta);
        self.known.insert(key, Controller { owner, workload, gone: None });
    }

    /// The controller is gone since `now`; pods that it made may become known later.
    pub fn remove(&mut self, controller: &WorkloadRef, now: Time) {
        if let Some(known) = self.known.get_mut(controller) {
            known.gone.get_or_insert(now);
        }
    }

    /// Forgets controllers that were gone before `time`.
    pub fn forget(&mut self, time: Time) {
        self.known.retain(|_, controller| controller.gone.is_none_or(|gone| gone >= time));
        self.workloads.sweep();
    }

    /// Those of a kind that are there.
    pub fn of_kind(&self, kind: &str) -> impl Iterator<Item = &WorkloadRef> {
        let there = self.known.iter().filter(move |(key, known)| key.kind == kind && known.gone.is_none());
        there.map(|(key, _)| key)
    }

    /// The workloads that have a controller which is there.
    pub fn living(&self) -> impl Iterator<Item = &WorkloadRef> {
        let there = self.known.iter().filter(|(_, controller)| controller.gone.is_none());
        there.map(|(key, controller)| controller.owner.as_ref().unwrap_or(key))
    }

    /// The workload that the pods of a controller belong to.
    pub fn workload_of(&self, direct: WorkloadRef) -> Belongs {
        match self.known.get(&direct) {
            Some(Controller { owner: Some(owner), .. }) => Belongs::To(owner.clone()),
            Some(_) => Belongs::To(direct),
            None if is_made_by_another(&direct.kind) => Belongs::ToOwnerOf(direct),
            None => Belongs::To(direct),
        }
    }

    /// All workloads: of the controllers, and of the pods that are given with their labels.
    pub fn workloads<'a>(
        &self,
        pods: impl Iterator<Item = (&'a WorkloadRef, &'a Labels)>,
    ) -> BTreeMap<WorkloadRef, Workload> {
        let mut workloads = BTreeMap::new();
        let mut derived: BTreeMap<WorkloadRef, Workload> = BTreeMap::new();
        for (key, controller) in self.known.iter().filter(|(_, controller)| controller.gone.is_none()) {
            match &controller.owner {
                None => drop(workloads.insert(key.clone(), Workload::clone(&controller.workload))),
                Some(owner) => merge(&mut derived, owner, &controller.workload),
            }
        }
        let mut from_pods: BTreeMap<WorkloadRef, Workload> = BTreeMap::new();
        for (workload, labels) in pods {
            let template = Workload { template_labels: without_added_labels(labels), ..Workload::default() };
            merge(&mut from_pods, workload, &template);
        }
        // The nearer to the template, the better: the controller itself, then what it made, then the pods alone.
        for (key, workload) in derived.into_iter().chain(from_pods) {
            workloads.entry(key).or_insert(workload);
        }
        workloads
    }
}

/// Only these two are made by another controller as a matter of course; a Deployment that some operator made is still what people know
/// the workload by.
fn is_made_by_another(kind: &str) -> bool {
    matches!(kind, "ReplicaSet" | "Job")
}

/// The controller that a pod names, or the pod itself: it is bare, or static, which is "owned" by its Node.
pub fn direct_controller(pod: &Meta) -> WorkloadRef {
    let owner = controller_of(pod).filter(|owner| owner.kind != "Node");
    owner.unwrap_or_else(|| reference(pod, "Pod", pod.name.as_str()))
}

/// The workload of a pod whose ReplicaSet or Job cannot be had. The Deployment controller names a ReplicaSet after itself and the
/// hash, which the pod repeats.
pub fn by_template_hash(direct: &WorkloadRef, labels: &Labels) -> WorkloadRef {
    if direct.kind == "ReplicaSet"
        && let Some(hash) = labels.get(TEMPLATE_HASH).filter(|hash| !hash.is_empty())
        && let Some(name) = direct.name.strip_suffix(hash.as_str())
        && let Some(name) = name.strip_suffix('-').filter(|name| !name.is_empty())
    {
        return WorkloadRef { kind: "Deployment".to_owned(), name: name.to_owned(), ..direct.clone() };
    }
    direct.clone()
}

fn controller_of(meta: &Meta) -> Option<WorkloadRef> {
    meta.controller().map(|owner| reference(meta, &owner.kind.0, owner.name.as_str()))
}

/// A controller by its kind and what its metadata says.
pub fn reference_of(kind: &str, meta: &Meta) -> WorkloadRef {
    reference(meta, kind, meta.name.as_str())
}

fn reference(meta: &Meta, kind: &str, name: &str) -> WorkloadRef {
    WorkloadRef { namespace: meta.namespace(), kind: kind.to_owned(), name: name.to_owned() }
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
