//! From what was seen of the workloads and the configuration of the mesh to Sidecars, and to a verdict on every workload. Pure: what is
//! there, what users want and what time it is are given.
//!
//! [`Planner`] holds what does not depend on what was seen: selectors, routes, risks. It decides on one workload in microseconds, and on
//! all by doing that for each.

mod change;
mod demand;
mod doubt;
mod fact;
mod learning;
mod naming;
mod pods;
mod policy;
mod risk;
mod scope;
mod selector;
mod services;
mod shadow;
mod size;
mod unit;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::config::ObjectRef;
use crate::model::dependencies::MAX_DESTINATIONS;
use crate::model::graph::{Graph, Pods};
use crate::model::mesh::Mesh;
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::policy::Mode;
use crate::model::sidecar::Sidecar;
use crate::model::stamp::Seconds;
use crate::model::time::Time;
pub use change::{Change, Current, Effect, Key, What};
use change::{Wanted, step};
pub use demand::{Demand, Once, Recorded, Seen};
pub use doubt::Doubt;
pub use fact::{Fact, RiskFact};
use learning::Learnt;
pub use policy::{Basis, Effective, problem};
use scope::{Always, Scope};
pub use size::{Pushes, Size};
pub use unit::Planner;
use unit::{Group, Unit};

/// What to write, and why there is nothing to write for the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Sidecars of all workloads that are ready, in the order of their namespaces and names; not those of which policy wants none.
    pub sidecars: Vec<Sidecar>,
    /// What is to be done now, widening first.
    pub changes: Vec<Change>,
    /// How many changes have to wait until these are done.
    pub deferred: usize,
    /// One verdict for each Sidecar, and for each workload that gets none; in the order of namespaces and names.
    pub verdicts: Vec<WorkloadVerdict>,
    /// By host: for how many proxies a change of it means a push.
    pub pushes: BTreeMap<Host, Pushes>,
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
    pub verdict: Verdict,
    /// How far policy lets Sidescope go; `None`: that cannot be told.
    pub mode: Option<Mode>,
    /// Name of its Sidecar, if it has or may have one.
    pub sidecar: String,
    /// Hosts that are in scope although nobody was seen to call them: without them, istiod would have their connections go to a
    /// service without an address on the same port.
    pub sharing: BTreeSet<Host>,
    /// Of what was watched once: why there may be more that the workload calls.
    pub doubts: Vec<Doubt>,
    /// Risks that are taken, by policy or because it is for a reader to judge.
    pub taken: Vec<RiskFact>,
    /// The default Sidecar in whose place ours comes, and which of its fields are copied.
    pub inherits: Option<(ObjectRef, Vec<&'static str>)>,
    /// What its proxies are sent without our Sidecar.
    pub before: Size,
    /// And with what was decided.
    pub after: Size,
}

/// Whether a workload's Sidecar may be narrowed, and what stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Ready,
    /// It is watched, and has to be for longer.
    Learning {
        /// So much is covered.
        covered: Seconds,
        /// Of so much.
        window: Seconds,
    },
    /// These facts stand in the way; at least one.
    Blocked(Vec<Fact>),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Learning { covered, window } => {
                write!(f, "learning ({} of {} covered)", fact::Short(*covered), fact::Short(*window))
            }
            Self::Blocked(facts) => {
                f.write_str("blocked: ")?;
                for (at, fact) in facts.iter().enumerate() {
                    write!(f, "{}{fact}", if at > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// What was decided on one workload, after what was seen of it has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replan {
    /// The verdicts on its canonical workload; none where nothing of it was watched.
    pub verdicts: Vec<WorkloadVerdict>,
    /// What is to be done now.
    pub changes: Vec<Change>,
    /// How many changes have to wait until these are done.
    pub deferred: usize,
}

/// Decides on every workload of a graph that was made once, for a reader to judge. Workloads of `mesh` that were not watched only matter
/// where a selector could hit them.
pub fn propose(graph: &Graph, mesh: &Mesh) -> Plan {
    let seen = Once::new(graph);
    let planner = Planner::new(mesh, seen.workloads(), Basis::Once);
    let mut plan = planner.plan(&seen, &Current::default(), Time(0));
    for verdict in &mut plan.verdicts {
        let members: Vec<_> = planner.members_beside(&verdict.workloads);
        verdict.pods.watched = seen.watched(&members);
    }
    plan.changes.clear();
    plan
}

/// What a group of workloads came to.
struct Judged {
    verdict: Verdict,
    mode: Option<Mode>,
    scope: Scope,
    taken: Vec<RiskFact>,
    doubts: Vec<Doubt>,
    watched: usize,
    wish: Wish,
}

/// What is to become of the group's Sidecars.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    /// There are to be none.
    None,
    /// What is there stays, and is widened at most.
    Keep,
    /// They are to be exactly this.
    Exactly,
}

impl<'a> Planner<'a> {
    /// Decides on every workload.
    pub fn plan(&self, seen: &impl Seen, current: &Current, now: Time) -> Plan {
        let mut plan = Plan::default();
        let mut wanted: BTreeMap<Key, Option<Wanted>> = BTreeMap::new();
        let mut tally = self.tally();
        for group in self.groups() {
            let Some(judged) = self.judge(group, seen, now) else {
                plan.not_judged += self.not_judged(group);
                wanted.extend(group.units.iter().map(|unit| (unit.key(group), kept(group, unit))));
                continue;
            };
            for unit in &group.units {
                let verdict = self.verdict(group, unit, &judged);
                let (want, proposed) = self.want(group, unit, &judged);
                if let Some(hosts) = proposed {
                    tally.narrowed(group, unit, &hosts.hosts);
                    plan.sidecars.push(change::sidecar(&unit.key(group), &hosts));
                }
                wanted.insert(unit.key(group), want);
                plan.verdicts.push(verdict);
            }
        }
        plan.verdicts.sort_by(|a, b| {
            (&a.namespace, &a.name, &a.workloads).cmp(&(&b.namespace, &b.name, &b.workloads))
        });
        plan.sidecars.sort_by(|a, b| {
            (&a.metadata.namespace, &a.metadata.name).cmp(&(&b.metadata.namespace, &b.metadata.name))
        });
        // What is nobody's any more.
        let gone: Vec<Key> = current.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        let all = wanted.iter().map(|(key, wanted)| (key, wanted.as_ref()));
        let step = step(all.chain(gone.iter().map(|key| (key, None))), current, self.labels());
        (plan.changes, plan.deferred) = (step.changes, step.deferred);
        plan.pushes = tally.finish();
        plan
    }

    /// Decides on the canonical workload that `workload` belongs to; `None`: the planner does not know it, and has to be made anew.
    pub fn replan(
        &self,
        workload: &WorkloadRef,
        seen: &impl Seen,
        current: &Current,
        now: Time,
    ) -> Option<Replan> {
        let group = self.group_of(workload)?;
        let Some(judged) = self.judge(group, seen, now) else { return Some(Replan::default()) };
        let mut wanted = BTreeMap::new();
        let mut verdicts = Vec::new();
        for unit in &group.units {
            verdicts.push(self.verdict(group, unit, &judged));
            wanted.insert(unit.key(group), self.want(group, unit, &judged).0);
        }
        let step = step(wanted.iter().map(|(key, wanted)| (key, wanted.as_ref())), current, self.labels());
        Some(Replan { verdicts, changes: step.changes, deferred: step.deferred })
    }

    fn judge(&self, group: &Group<'a>, seen: &impl Seen, now: Time) -> Option<Judged> {
        let members: Vec<&WorkloadRef> = group.owners.iter().map(|owner| owner.workload).collect();
        let demand = seen.demand(&members)?;
        let mut facts: Vec<Fact> = group.obstacle.iter().cloned().collect();
        let base = Effective::default();
        let effective = match &group.wishes {
            Ok(effective) => effective,
            Err(fact) => {
                facts.push(fact.clone());
                &base
            }
        };
        let always = Always { stated: &effective.static_hosts, providers: self.providers(group.namespace) };
        let scope = scope::of(self.services(), &demand, group.namespace, always, effective.expire_after);
        if scope.hosts.is_empty() {
            facts.push(nothing(&demand));
        }
        if demand.is_broad {
            facts.push(Fact::TooBroad { hosts: None, most: MAX_DESTINATIONS });
        } else if scope.hosts.len() > effective.max_hosts {
            facts.push(Fact::TooBroad { hosts: Some(scope.hosts.len()), most: effective.max_hosts });
        }
        let risks = self.risks().of(&scope.hosts, (group.outbound.0, &group.outbound.1));
        let (taken, refused): (Vec<_>, Vec<_>) =
            risks.into_iter().partition(|fact| effective.accept.contains(&fact.risk));
        facts.extend(refused.into_iter().map(Fact::Risk));
        let least = if taken.is_empty() { Seconds(0) } else { effective.accept_after };
        let window = effective.learning_window.map(|window| window.max(least));
        let learnt = window.map_or(Learnt::Enough, |window| learning::of(&demand, window, now));
        let verdict = match (learnt, window) {
            (Learnt::NotObserved(more), _) => {
                facts.extend(more);
                Verdict::Blocked(facts)
            }
            (Learnt::Learning(covered), Some(window)) if facts.is_empty() => {
                Verdict::Learning { covered, window }
            }
            _ if facts.is_empty() => Verdict::Ready,
            _ => Verdict::Blocked(facts),
        };
        let mode = group.wishes.as_ref().ok().map(|effective| effective.mode);
        let watched = demand.members.iter().map(|member| member.coverage.watched_pods as usize).sum();
        Some(Judged {
            wish: wish(&verdict, mode),
            verdict,
            mode,
            scope,
            taken,
            doubts: demand.doubts,
            watched,
        })
    }

    /// What is wanted of the Sidecar of a unit, and what it would be if policy allowed everything.
    fn want(&self, group: &Group<'a>, unit: &Unit<'a>, judged: &Judged) -> (Option<Wanted>, Option<Wanted>) {
        let Ok(labels) = &unit.selector else { return (None, None) };
        if unit.foreign.is_some() {
            return (None, None);
        }
        let wanted = |may_narrow| Wanted {
            labels: labels.clone(),
            hosts: judged.scope.hosts.clone(),
            inherited: group.inherited(),
            may_narrow,
        };
        let is_proposed = judged.verdict == Verdict::Ready && judged.mode >= Some(Mode::Recommend);
        let want = match judged.wish {
            Wish::None => None,
            Wish::Keep => Some(wanted(false)),
            Wish::Exactly => Some(wanted(true)),
        };
        (want, is_proposed.then(|| wanted(true)))
    }

    fn verdict(&self, group: &Group<'a>, unit: &Unit<'a>, judged: &Judged) -> WorkloadVerdict {
        let own =
            unit.selector.as_ref().err().cloned().or_else(|| unit.foreign.clone().map(Fact::OwnSidecar));
        let verdict = match (own, &judged.verdict) {
            (None, verdict) => verdict.clone(),
            // Where there is nothing to select for, how does not matter.
            (Some(_), Verdict::Blocked(facts)) if judged.scope.hosts.is_empty() => {
                Verdict::Blocked(facts.clone())
            }
            (Some(own), Verdict::Blocked(facts)) => {
                Verdict::Blocked(std::iter::once(own).chain(facts.iter().cloned()).collect())
            }
            (Some(own), _) => Verdict::Blocked(vec![own]),
        };
        let before = self.before(group);
        let is_ready = verdict == Verdict::Ready;
        WorkloadVerdict {
            namespace: group.namespace.clone(),
            name: unit.shown.clone(),
            workloads: unit.owners.iter().map(|owner| owner.workload.clone()).collect(),
            pods: Pods { watched: judged.watched, known: group.pods },
            mode: judged.mode,
            sidecar: unit.name.clone(),
            sharing: judged.scope.sharing.clone(),
            doubts: judged.doubts.clone(),
            taken: judged.taken.clone(),
            inherits: group.inherits(),
            before,
            after: if is_ready { self.sizes().of(judged.scope.hosts.iter()) } else { before },
            verdict,
        }
    }
}

/// What is wanted of a Sidecar while nothing is known of its workload: that it stays as it is, if it may.
fn kept(group: &Group<'_>, unit: &Unit<'_>) -> Option<Wanted> {
    let facts: Vec<Fact> = group.obstacle.iter().chain(group.wishes.as_ref().err()).cloned().collect();
    let mode = group.wishes.as_ref().ok().map(|effective| effective.mode);
    let labels = unit.selector.as_ref().ok().filter(|_| unit.foreign.is_none())?;
    (wish(&Verdict::Blocked(facts), mode) == Wish::Keep).then(|| Wanted {
        labels: labels.clone(),
        hosts: BTreeSet::new(),
        inherited: group.inherited(),
        may_narrow: false,
    })
}

/// Why there is no host.
fn nothing(demand: &Demand<'_>) -> Fact {
    if demand.calls_unresolved {
        Fact::OnlyUnresolved
    } else if !demand.uses.is_empty() {
        Fact::NothingCounts
    } else if demand.calls_pods {
        Fact::OnlyDirect
    } else {
        Fact::NothingObserved
    }
}

/// Where it cannot be told what a user wants, what is there stays.
fn wish(verdict: &Verdict, mode: Option<Mode>) -> Wish {
    let is_enforced = mode.is_none_or(|mode| mode == Mode::Enforce);
    match verdict {
        Verdict::Ready if is_enforced => Wish::Exactly,
        Verdict::Learning { .. } if is_enforced => Wish::Keep,
        Verdict::Blocked(facts) if is_enforced && facts.iter().all(Fact::holds) => Wish::Keep,
        _ => Wish::None,
    }
}
