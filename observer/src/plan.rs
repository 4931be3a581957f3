//! From the dependency graph to Sidecars, and to a verdict on every workload that was watched.

mod evidence;
mod incomplete;
mod naming;
mod selector;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::graph::{Graph, Pods, WorkloadNode};
use crate::model::mesh::{Labels, Mesh};
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::sidecar::{
    API_VERSION, Egress, EgressHost, KIND, MANAGED_BY, Metadata, Sidecar, Spec, WorkloadSelector,
};
use evidence::Registry;
use incomplete::Doubts;
pub use incomplete::Incomplete;
use selector::{LabelIndex, Owner, Selected};

/// What to write, and why there is nothing to write for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sidecars in the order of their namespaces and names.
    pub sidecars: Vec<Sidecar>,
    /// One verdict for each Sidecar, and for each workload that gets none; in the order of namespaces and names.
    pub verdicts: Vec<WorkloadVerdict>,
    /// Workloads that were not judged, because no pod of them was watched.
    pub not_judged: usize,
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
    /// Their pods.
    pub pods: Pods,
    /// What was decided.
    pub decision: Decision,
    /// How many services its proxies are sent.
    pub scope: ScopeCount,
}

/// Whether there is a Sidecar, or what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// A Sidecar selects it.
    Sidecar {
        /// Its name.
        name: String,
        /// Hosts that are in it although nobody was seen to call them: without them, istiod would have their connections go
        /// to a service without an address on the same port.
        sharing: BTreeSet<Host>,
        /// Why there may be more that the workload calls.
        incomplete: Vec<Incomplete>,
    },
    /// It was not seen to call anything. What happens to such a workload is policy.
    NothingObserved,
    /// It calls, but nothing of that could be attributed to a service.
    OnlyUnresolved,
    /// It calls pods at their own addresses, and nothing else.
    OnlyDirect,
    /// What was seen names services and does not show that the proxy sends anything to them.
    NothingCounts,
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

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sidecar { name, .. } => write!(f, "Sidecar {name}"),
            Self::NothingObserved => f.write_str(
                "no Sidecar: nothing observed that it calls (what happens to such a workload is policy)",
            ),
            Self::OnlyUnresolved => f.write_str(
                "no Sidecar: it calls what could not be attributed to a service, and no other (complete the inventory)",
            ),
            Self::OnlyDirect => f.write_str(
                "no Sidecar: it calls pods at their own addresses only, which a Sidecar does not bear on",
            ),
            Self::NothingCounts => f.write_str(
                "no Sidecar: nothing shows that its proxy sends anything to the services that it names (their ports are routed by address)",
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
    // Their pods have no sidecar.
    let on_node_network: BTreeSet<_> =
        mesh.pods.values().filter(|pod| pod.host_network).map(|pod| &pod.workload).collect();
    let nodes: BTreeMap<&WorkloadRef, &WorkloadNode> =
        graph.workloads.iter().map(|node| (&node.workload, node)).collect();

    let doubts = Doubts::new(graph);
    let known = mesh.live_pods();

    let mut drafts = Vec::new();
    let mut not_judged = 0;
    for ((namespace, name), owners) in selector::groups(mesh, nodes.keys().copied()) {
        let watched: Vec<_> = owners.iter().filter_map(|owner| nodes.get(owner.workload).copied()).collect();
        if watched.is_empty() {
            not_judged += owners.iter().filter(|owner| !on_node_network.contains(owner.workload)).count();
            continue;
        }
        let mut hosts = BTreeSet::new();
        for node in &watched {
            registry.hosts_of(node, &mut hosts);
        }
        let group = Group {
            pods: Pods {
                watched: watched.iter().map(|node| node.pods.watched).sum(),
                known: owners.iter().filter_map(|owner| known.get(owner.workload)).sum(),
            },
            none: nothing(&watched, &doubts),
            sharing: registry.add_sharing(&mut hosts),
            incomplete: doubts.of(&watched),
            namespace,
            name,
            owners,
            hosts,
        };
        group.draft(&mut drafts, &labels);
    }
    Plan { not_judged, ..finish(drafts, registry.host_count()) }
}

/// Why there is no host.
fn nothing(watched: &[&WorkloadNode], doubts: &Doubts<'_>) -> Decision {
    if doubts.any_unresolved(watched) {
        Decision::OnlyUnresolved
    } else if watched.iter().any(|node| !node.dependencies.is_empty()) {
        Decision::NothingCounts
    } else if watched.iter().any(|node| !node.direct.is_empty()) {
        Decision::OnlyDirect
    } else {
        Decision::NothingObserved
    }
}

/// A canonical workload. All owners of it get what any of them was seen to need, so that a new version starts with what the
/// old one was learnt to call.
struct Group<'a> {
    namespace: Namespace,
    name: String,
    owners: Vec<Owner<'a>>,
    pods: Pods,
    hosts: BTreeSet<Host>,
    sharing: BTreeSet<Host>,
    incomplete: Vec<Incomplete>,
    /// The decision where there are no hosts.
    none: Decision,
}

/// A verdict that lacks only the name of its Sidecar.
struct Draft {
    namespace: Namespace,
    name: String,
    workloads: Vec<WorkloadRef>,
    pods: Pods,
    outcome: Result<Wanted, Decision>,
}

/// What a Sidecar is made of.
struct Wanted {
    labels: Labels,
    hosts: BTreeSet<Host>,
    sharing: BTreeSet<Host>,
    incomplete: Vec<Incomplete>,
}

impl Group<'_> {
    fn draft(&self, drafts: &mut Vec<Draft>, index: &LabelIndex<'_>) {
        let mut add = |name: &str, owners: &[Owner<'_>], outcome: Result<Labels, Decision>| {
            drafts.push(Draft {
                namespace: self.namespace.clone(),
                name: name.to_owned(),
                workloads: owners.iter().map(|owner| owner.workload.clone()).collect(),
                pods: self.pods,
                outcome: outcome.map(|labels| Wanted {
                    labels,
                    hosts: self.hosts.clone(),
                    sharing: self.sharing.clone(),
                    incomplete: self.incomplete.clone(),
                }),
            });
        };
        if self.hosts.is_empty() {
            return add(&self.name, &self.owners, Err(self.none.clone()));
        }
        if let Some(labels) = selector::shared(index, &self.name, &self.owners) {
            return add(&self.name, &self.owners, Ok(labels));
        }
        for owner in &self.owners {
            let outcome = match selector::own(index, owner) {
                Selected::Only(labels) => Ok(labels),
                Selected::NoLabels => Err(Decision::NoLabels),
                Selected::Overlap { selector, others } => Err(Decision::Overlap { selector, others }),
            };
            let name = if self.owners.len() == 1 { &self.name } else { &owner.workload.name };
            add(name, std::slice::from_ref(owner), outcome);
        }
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
            Ok(Wanted { labels, hosts, sharing, incomplete }) => {
                let name = names.next().expect("one name for each draft with a Sidecar");
                let after = hosts.len();
                plan.sidecars.push(sidecar(name.clone(), draft.namespace.clone(), labels, hosts));
                (Decision::Sidecar { name, sharing, incomplete }, after)
            }
        };
        plan.verdicts.push(WorkloadVerdict {
            namespace: draft.namespace,
            name: draft.name,
            workloads: draft.workloads,
            pods: draft.pods,
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
