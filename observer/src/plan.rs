//! From the dependency graph to Sidecars, and to a verdict on every workload that was watched.

mod evidence;
mod naming;
mod selector;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::graph::{Graph, WorkloadNode};
use crate::model::mesh::{Labels, Mesh};
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::sidecar::{
    API_VERSION, Egress, EgressHost, KIND, MANAGED_BY, Metadata, Sidecar, Spec, WorkloadSelector,
};
use evidence::Registry;
use selector::{LabelIndex, Owner, Selected};

/// What to write, and why there is nothing to write for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sidecars in the order of their namespaces and names.
    pub sidecars: Vec<Sidecar>,
    /// One verdict for each Sidecar, and for each workload that gets none; in the order of namespaces and names.
    pub verdicts: Vec<WorkloadVerdict>,
}

/// What was decided on a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadVerdict {
    /// Namespace of the workload.
    pub namespace: Namespace,
    /// Its canonical name, as Istio and Kiali show it.
    pub name: String,
    /// The controllers that it stands for, such as the Deployments of three versions.
    pub workloads: Vec<WorkloadRef>,
    /// What was decided.
    pub decision: Decision,
    /// How many services its proxies are sent.
    pub scope: ScopeCount,
}

/// Whether there is a Sidecar, or what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A Sidecar of this name selects it.
    Sidecar(String),
    /// No service was seen that it depends on. What happens to such a workload is policy.
    NothingObserved,
    /// Its pods have no label that a selector could be made from.
    NoLabels,
    /// Its labels select pods of other workloads as well.
    Overlap {
        /// The selector that it would need.
        selector: Labels,
        /// The other workloads that have these labels, at least one.
        others: Vec<WorkloadRef>,
    },
}

/// Services and ServiceEntry hosts that a workload's proxies are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScopeCount {
    /// Without our Sidecar.
    pub before: usize,
    /// With what was decided.
    pub after: usize,
}

impl WorkloadVerdict {
    /// The decision and its reason, for people.
    pub fn reason(&self) -> String {
        self.decision.to_string()
    }
}

impl fmt::Display for WorkloadVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}", self.namespace, self.name, self.decision)
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar(name) => write!(f, "Sidecar {name}"),
            Self::NothingObserved => f.write_str(
                "no Sidecar: nothing observed that it calls (what happens to such a workload is policy)",
            ),
            Self::NoLabels => f.write_str(
                "no Sidecar: its pods have no label that could select them; give its pod template one",
            ),
            Self::Overlap { selector, others } => {
                f.write_str("no Sidecar: its labels ")?;
                for (at, (key, value)) in selector.iter().enumerate() {
                    write!(f, "{}{key}={value}", if at > 0 { "," } else { "" })?;
                }
                f.write_str(" select pods of ")?;
                for (at, other) in others.iter().enumerate() {
                    write!(f, "{}{other}", if at > 0 { ", " } else { "" })?;
                }
                f.write_str(" as well; give them labels that tell them apart")
            }
        }
    }
}

/// Decides on every workload of `graph`. Workloads of `mesh` that were not watched only matter where a selector could hit them.
pub fn plan(graph: &Graph, mesh: &Mesh) -> Plan {
    let registry = Registry::new(mesh);
    let labels = LabelIndex::new(mesh);
    let nodes: BTreeMap<&WorkloadRef, &WorkloadNode> =
        graph.workloads.iter().map(|node| (&node.workload, node)).collect();

    let mut drafts = Vec::new();
    for ((namespace, name), group) in selector::groups(mesh, nodes.keys().copied()) {
        let watched: Vec<_> = group.iter().filter_map(|owner| nodes.get(owner.workload)).collect();
        if watched.is_empty() {
            continue;
        }
        let mut hosts = BTreeSet::new();
        for node in watched {
            registry.hosts_of(node, &mut hosts);
        }
        draft(&mut drafts, &labels, &namespace, &name, &group, &hosts);
    }
    finish(drafts, registry.host_count())
}

/// A verdict that lacks only the name of its Sidecar.
struct Draft {
    namespace: Namespace,
    name: String,
    workloads: Vec<WorkloadRef>,
    outcome: Result<(Labels, BTreeSet<Host>), Decision>,
}

/// Decides on one canonical workload. All owners of it get what any of them was seen to need, so that a new version starts
/// with what the old one was learnt to call.
fn draft(
    drafts: &mut Vec<Draft>,
    index: &LabelIndex<'_>,
    namespace: &Namespace,
    name: &str,
    group: &[Owner<'_>],
    hosts: &BTreeSet<Host>,
) {
    let mut add = |name: &str, owners: &[Owner<'_>], outcome| {
        drafts.push(Draft {
            namespace: namespace.clone(),
            name: name.to_owned(),
            workloads: owners.iter().map(|owner| owner.workload.clone()).collect(),
            outcome,
        });
    };
    if hosts.is_empty() {
        return add(name, group, Err(Decision::NothingObserved));
    }
    if let Some(labels) = selector::shared(index, name, group) {
        return add(name, group, Ok((labels, hosts.clone())));
    }
    for owner in group {
        let outcome = match selector::own(index, owner) {
            Selected::Only(labels) => Ok((labels, hosts.clone())),
            Selected::NoLabels => Err(Decision::NoLabels),
            Selected::Overlap { selector, others } => Err(Decision::Overlap { selector, others }),
        };
        let name = if group.len() == 1 { name } else { &owner.workload.name };
        add(name, std::slice::from_ref(owner), outcome);
    }
}

fn finish(mut drafts: Vec<Draft>, before: usize) -> Plan {
    drafts.sort_by(|a, b| (&a.namespace, &a.name, &a.workloads).cmp(&(&b.namespace, &b.name, &b.workloads)));
    let names =
        naming::names(drafts.iter().filter(|draft| draft.outcome.is_ok()).map(|draft| naming::Wanted {
            namespace: &draft.namespace,
            name: &draft.name,
            kind: draft.workloads.first().map_or("", |workload| workload.kind.as_str()),
        }));
    let mut names = names.into_iter();
    let mut plan = Plan::default();
    for draft in drafts {
        let (decision, after) = match draft.outcome {
            Err(decision) => (decision, before),
            Ok((labels, hosts)) => {
                let name = names.next().expect("one name for each draft with a Sidecar");
                let after = hosts.len();
                plan.sidecars.push(sidecar(name.clone(), draft.namespace.clone(), labels, hosts));
                (Decision::Sidecar(name), after)
            }
        };
        plan.verdicts.push(WorkloadVerdict {
            namespace: draft.namespace,
            name: draft.name,
            workloads: draft.workloads,
            decision,
            scope: ScopeCount { before, after },
        });
    }
    plan.sidecars.sort_by(|a, b| {
        (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
    });
    plan
}

fn sidecar(name: String, namespace: Namespace, labels: Labels, hosts: BTreeSet<Host>) -> Sidecar {
    let (key, value) = MANAGED_BY;
    Sidecar {
        api_version: API_VERSION.to_owned(),
        kind: KIND.to_owned(),
        metadata: Metadata { name, namespace, labels: Labels::from([(key.to_owned(), value.to_owned())]) },
        spec: Spec {
            workload_selector: WorkloadSelector { labels },
            egress: vec![Egress { hosts: hosts.into_iter().map(EgressHost::everywhere).collect() }],
        },
    }
}
