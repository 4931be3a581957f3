//! Which labels select a workload's pods, and no others.
//!
//! istiod does not merge Sidecars: of two that select a pod it takes the older one (istio `pilot/pkg/model/push_context.go`),
//! so a pod that matches two of ours would have the scope of another workload. Selectors are therefore made only of what
//! pod templates say, and checked against every template and every pod of the namespace.

use std::collections::{BTreeMap, BTreeSet};

use super::fact::Fact;
use crate::model::mesh::{Labels, Mesh, Workload};
use crate::model::names::{Namespace, WorkloadRef};

/// Labels that name the canonical workload, in Istio's order (istio `pkg/model/proxy.go`).
const CANONICAL: [&str; 3] = ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"];

/// A member of a canonical workload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Owner<'a> {
    pub(super) workload: &'a WorkloadRef,
    pub(super) labels: Option<&'a Workload>,
}

impl<'a> Owner<'a> {
    /// Labels of its pod template, where they are known.
    pub(super) fn template(&self) -> Option<&'a Labels> {
        self.labels.map(|labels| &labels.template_labels)
    }
}

/// All workloads by namespace and canonical name; those of the mesh and those that were watched.
pub(super) fn groups<'a>(
    mesh: &'a Mesh,
    watched: impl Iterator<Item = &'a WorkloadRef>,
) -> BTreeMap<(&'a Namespace, &'a str), Vec<Owner<'a>>> {
    let all: BTreeSet<&WorkloadRef> = mesh.workloads.keys().chain(watched).collect();
    let mut groups: BTreeMap<_, Vec<Owner<'_>>> = BTreeMap::new();
    for workload in all {
        let owner = Owner { workload, labels: mesh.workloads.get(workload) };
        let key = (&workload.namespace, canonical_name(&owner));
        groups.entry(key).or_default().push(owner);
    }
    groups
}

fn canonical_name<'a>(owner: &Owner<'a>) -> &'a str {
    let template = owner.labels.map(|labels| &labels.template_labels);
    template
        .and_then(|labels| CANONICAL.iter().find_map(|key| labels.get(*key)))
        .filter(|name| !name.is_empty())
        .map_or(owner.workload.name.as_str(), String::as_str)
}

/// The one label that selects the whole group and nothing else, if there is one.
pub(super) fn shared(index: &LabelIndex<'_>, name: &str, group: &[Owner<'_>]) -> Option<Labels> {
    let members: BTreeSet<_> = group.iter().map(|owner| owner.workload).collect();
    let namespace = &group.first()?.workload.namespace;
    CANONICAL.iter().map(|key| Labels::from([((*key).to_owned(), name.to_owned())])).find(|selector| {
        let on_all =
            group.iter().all(|owner| owner.labels.is_some_and(|l| selects(selector, &l.template_labels)));
        on_all && index.others(namespace, selector, &members).is_empty()
    })
}

/// All of one owner's labels.
///
/// # Errors
/// Why they do not select its pods and no others.
pub(super) fn own(index: &LabelIndex<'_>, owner: &Owner<'_>) -> Result<Labels, Fact> {
    let selector = owner
        .labels
        .map(|labels| match labels.match_labels.is_empty() {
            true => &labels.template_labels,
            false => &labels.match_labels,
        })
        .filter(|labels| !labels.is_empty());
    let Some(selector) = selector else {
        return Err(Fact::NoLabels);
    };
    let members = BTreeSet::from([owner.workload]);
    let others = index.others(&owner.workload.namespace, selector, &members);
    if others.is_empty() {
        Ok(selector.clone())
    } else {
        Err(Fact::Overlap { selector: selector.clone(), others: others.into_iter().cloned().collect() })
    }
}

/// Who has a label, by namespace, key and value: templates and pods.
#[derive(Debug)]
pub(super) struct LabelIndex<'a>(BTreeMap<(&'a Namespace, &'a str, &'a str), Vec<Holder<'a>>>);

type Holder<'a> = (&'a WorkloadRef, &'a Labels);

impl<'a> LabelIndex<'a> {
    pub(super) fn new(mesh: &'a Mesh) -> Self {
        let templates = mesh.workloads.iter().map(|(workload, labels)| (workload, &labels.template_labels));
        let pods = mesh.pods.values().map(|pod| (&pod.workload, &*pod.labels));
        let mut index: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (workload, labels) in templates.chain(pods) {
            for (key, value) in labels {
                let at = (&workload.namespace, key.as_str(), value.as_str());
                index.entry(at).or_default().push((workload, labels));
            }
        }
        Self(index)
    }

    /// Workloads besides `members` that `selector` hits, by their template or by one of their pods.
    fn others(
        &self,
        namespace: &Namespace,
        selector: &Labels,
        members: &BTreeSet<&WorkloadRef>,
    ) -> BTreeSet<&'a WorkloadRef> {
        let mut hit = self.hits(namespace, selector);
        hit.retain(|workload| !members.contains(workload));
        hit
    }

    /// Workloads that `selector` hits, by their template or by one of their pods. One without labels hits nothing here.
    pub(super) fn hits(&self, namespace: &Namespace, selector: &Labels) -> BTreeSet<&'a WorkloadRef> {
        // Whoever has all the labels has the rarest, too.
        let rarest = selector
            .iter()
            .map(|(key, value)| {
                let holders = self.0.get(&(namespace, key.as_str(), value.as_str()));
                holders.map_or(&[][..], Vec::as_slice)
            })
            .min_by_key(|holders| holders.len());
        let holders = rarest.into_iter().flatten();
        holders.filter(|(_, labels)| selects(selector, labels)).map(|(workload, _)| *workload).collect()
    }
}

/// Whether these labels are what a selector asks for.
pub(super) fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
