//! What a part of a batch says: which pod connected, to what, and in whose record that belongs.

use std::collections::BTreeSet;
use std::mem;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::open::{Key, Open};
use super::tally::{Listed, Reason, Tally};
use crate::attribute::{Finding, Flow, find};
use crate::coverage::Coverage;
use crate::ledger::{Account, Ledger, Seen};
use crate::model::dependencies::SeenBy;
use crate::model::graph::{Unresolved, UnresolvedReason};
use crate::model::names::{ObjectName, PodUid, WorkloadRef};
use crate::model::time::{Span, Time};
use crate::registry::{NoSource, Registry};
use crate::service_index::{Destination, Lookup as _};
use crate::wire::{Coverage as Watched, Edge, Source};

/// What a batch tells of one network namespace, or what of that is not decided yet.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) batch: Key,
    /// The node of the agent.
    pub(super) node: Arc<ObjectName>,
    pub(super) source: Source,
}

/// Where it is put down.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) ledger: Ledger,
    pub(super) coverage: Coverage,
    pub(super) open: Open,
    pub(super) tally: Tally,
}

/// Why something cannot be put down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cannot {
    /// Not yet, for this reason.
    NotYet(Reason),
    /// Never.
    Never(Reason),
}

/// How it is looked at.
#[derive(Clone, Copy)]
struct Look<'r> {
    registry: &'r Registry,
    now: Time,
    /// What cannot be told now is given up.
    is_last: bool,
}

impl Books {
    /// Puts down what can be told of a part, and leaves the rest in it. Returns whether nothing is left, which `is_last` sees to.
    pub(super) fn look(&mut self, part: &mut Part, registry: &Registry, now: Time, is_last: bool) -> bool {
        let look = Look { registry, now, is_last };
        // A pod that is named is the same at any time; one that is found by its addresses is not.
        let named = part.source.pod.is_some().then(|| caller(registry, part, Span::at(now)));
        let mut flow =
            named.as_ref().and_then(|named| named.as_ref().ok()).map(|caller| flow_of(caller.workload));
        let mut edges = mem::take(&mut part.source.edges);
        edges.retain_mut(|edge| {
            let result = match (&named, &mut flow) {
                (Some(Ok(caller)), Some(flow)) => self.put_down(part, caller, flow, edge, look),
                (Some(Err(cannot)), _) => Err(*cannot),
                _ => caller(registry, part, edge.last).and_then(|caller| {
                    self.put_down(part, &caller, &mut flow_of(caller.workload), edge, look)
                }),
            };
            let waits = self.waits(part, Some(edge), result, look);
            self.tally.counts.edges += u64::from(!waits);
            waits
        });
        part.source.edges = edges;
        // Not before its edges: who hears that a time was watched takes what he did not hear of for not there.
        if part.source.edges.is_empty() {
            let mut coverage = mem::take(&mut part.source.coverage);
            coverage.retain(|watched| {
                let caller = caller(registry, part, Span::at(watched.until));
                let result = caller.map(|caller| self.watched(part.batch, &caller, watched, now));
                self.waits(part, None, result, look)
            });
            part.source.coverage = coverage;
        }
        part.source.edges.is_empty() && part.source.coverage.is_empty()
    }

    /// Whether it is to be tried again. What is not, and could not be put down, is counted.
    fn waits(
        &mut self,
        part: &Part,
        edge: Option<&Edge>,
        result: Result<(), Cannot>,
        look: Look<'_>,
    ) -> bool {
        let reason = match result {
            Ok(()) => return false,
            Err(Cannot::NotYet(_)) if !look.is_last => return true,
            Err(Cannot::NotYet(reason) | Cannot::Never(reason)) => reason,
        };
        self.open.refuse(part.batch, reason, 1);
        let (node, pod) = (Arc::clone(&part.node), part.source.pod.clone());
        let to = edge.map(|edge| (edge.address, edge.port));
        self.tally.add(Listed { at: look.now, node, pod, to, reason }, 1);
        false
    }

    /// An edge of a caller who is known. `flow` is one of his, and becomes that of the edge.
    fn put_down(
        &mut self,
        part: &Part,
        caller: &Caller<'_>,
        flow: &mut Flow,
        edge: &mut Edge,
        look: Look<'_>,
    ) -> Result<(), Cannot> {
        become_that_of(flow, edge);
        let registry = look.registry;
        let (first, last) = (registry.view(edge.first), registry.view(edge.last));
        let found_last = find(&last, flow);
        let is_one = edge.first == edge.last || edge.connects == 1;
        let found_first = (!is_one).then(|| find(&first, flow));
        let first_may_pass = found_first.as_ref().and_then(|found| look.may_pass(found, edge.first));
        if let Some(reason) = look.may_pass(&found_last, edge.last).or(first_may_pass) {
            drop((found_last, found_first));
            give_back(edge, flow);
            return Err(Cannot::NotYet(reason.into()));
        }
        let seen = |first, last| Seen { first, last, by: caller.seen_by.as_ref() };
        let whole = seen(edge.first, edge.last);
        let Some(found_first) = found_first else {
            self.note(part, caller, flow, &found_last, &whole, look.now);
            return Ok(());
        };
        if found_first.says_the_same(&found_last) {
            self.note(part, caller, flow, &found_last, &whole, look.now);
        } else {
            self.note(part, caller, flow, &found_first, &seen(edge.first, edge.first), look.now);
            self.note(part, caller, flow, &found_last, &seen(edge.last, edge.last), look.now);
        }
        // In between it may have gone to others.
        let through = registry.view(Span::between(edge.first.earliest(), edge.last.latest()));
        if edge.connects != 2
            && matches!(through.destination(flow.address, flow.port), Destination::Ambiguous)
            && let Some(reason @ UnresolvedReason::AmbiguousAddress) = find(&through, flow).unresolved
        {
            let unresolved = Finding { unresolved: Some(reason), ..Finding::default() };
            self.note(part, caller, flow, &unresolved, &whole, look.now);
        }
        Ok(())
    }

    fn note(
        &mut self,
        part: &Part,
        caller: &Caller<'_>,
        flow: &Flow,
        found: &Finding<'_>,
        seen: &Seen<'_>,
        now: Time,
    ) {
        let unresolved = found.unresolved.map(|reason| Unresolved {
            workload: flow.source.clone(),
            address: flow.address,
            port: flow.port,
            hosts: found.unknown_hosts.clone(),
            reason,
            connects: flow.connects,
            host_unknown: flow.host_unknown,
        });
        let account =
            Account { uses: &found.uses, direct: found.direct.as_slice(), unresolved: unresolved.as_slice() };
        let merged = self.ledger.merge(caller.workload, account, seen, now);
        self.open.wait_for(part.batch, caller.workload, merged.wait_for);
        if let Some(reason) = found.unresolved {
            let to = Some((flow.address, flow.port));
            let (node, pod) = (Arc::clone(&part.node), Some(caller.pod.clone()));
            self.tally.add(Listed { at: now, node, pod, to, reason: reason.into() }, 1);
        }
    }

    fn watched(&mut self, batch: Key, caller: &Caller<'_>, watched: &Watched, now: Time) {
        let Watched { from, until, losses } = watched;
        self.coverage.report(caller.pod, *from, *until, losses.is_empty(), now);
        for cause in losses {
            let merged = self.ledger.lost(caller.workload, cause, *until, now);
            self.open.wait_for(batch, caller.workload, merged.wait_for);
        }
    }
}

impl Look<'_> {
    /// Why a finding leaves open what was meant, if that may become known. An address that nobody has does not get an owner later: who
    /// calls it has it from the API server. What was before anything was known stays so.
    fn may_pass(self, found: &Finding<'_>, when: Span) -> Option<UnresolvedReason> {
        let reason = found.unresolved.filter(|reason| *reason != UnresolvedReason::UnknownAddress)?;
        let is_known = self.registry.pods_listed().is_some_and(|listed| when.earliest() >= listed);
        (!self.is_last && is_known).then_some(reason)
    }
}

/// Who connected.
#[derive(Clone, Debug)]
struct Caller<'r> {
    pod: &'r PodUid,
    workload: &'r Arc<WorkloadRef>,
    seen_by: Option<SeenBy>,
}

/// Who connected, if that was a pod of the node whose agent tells it.
fn caller<'r>(registry: &'r Registry, part: &Part, when: Span) -> Result<Caller<'r>, Cannot> {
    let found = registry.view(when).source(part.source.pod.as_ref(), &part.source.addresses);
    let found = found.map_err(|reason| match reason.may_pass() {
        true => Cannot::NotYet(reason.into()),
        false => Cannot::Never(reason.into()),
    })?;
    match found.node {
        // Where it runs was not told yet.
        None => return Err(Cannot::NotYet(NoSource::PodNotKnown.into())),
        Some(node) if node != part.node.as_str() => return Err(Cannot::Never(Reason::ForeignNode)),
        Some(_) => {}
    }
    let pod_name = ObjectName::new(found.name).ok();
    let seen_by = pod_name.map(|pod| SeenBy { pod, node: ObjectName::clone(&part.node) });
    Ok(Caller { pod: found.pod, workload: found.workload, seen_by })
}

/// A flow of this workload to nowhere.
fn flow_of(source: &WorkloadRef) -> Flow {
    Flow {
        source: source.clone(),
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: 0,
        hosts: BTreeSet::new(),
        names: BTreeSet::new(),
        connects: 0,
        host_unknown: false,
        existing: false,
        unnamed: false,
    }
}

/// Says of the flow what the edge says, whose names are taken out of it.
fn become_that_of(flow: &mut Flow, edge: &mut Edge) {
    let is_bare = edge.hosts.is_empty() && edge.names.is_empty() && !edge.unnamed && !edge.host_unknown;
    flow.address = edge.address;
    flow.port = edge.port;
    flow.hosts = mem::take(&mut edge.hosts).into_iter().collect();
    flow.names = mem::take(&mut edge.names).into_iter().collect();
    flow.connects = edge.connects;
    flow.host_unknown = edge.host_unknown;
    // One that is told again because of a new host may have had its connects told before.
    flow.existing = edge.connects == 0 && is_bare;
    flow.unnamed = edge.unnamed;
}

fn give_back(edge: &mut Edge, flow: &mut Flow) {
    edge.hosts = mem::take(&mut flow.hosts).into_iter().collect();
    edge.names = mem::take(&mut flow.names).into_iter().collect();
}
