//! Through which time each workload was really watched. What was not seen in a time that nobody watched may have been there all the
//! same, and a Sidecar made from it would cut it off; so this never tells of more than there was, whatever comes late, again or not at
//! all. Pure.
//!
//! Of each workload there is one *frontier*: what was before it is decided, and part of a sum. It moves on to where the reports about
//! each of the workload's pods reach. Between two reports on a pod it was not watched; a time counts if the workload had pods then, and
//! all of them were watched without loss. So a pod on a node without an agent stops the frontier for as long as it lives. Behind the
//! frontier nothing is kept of pods, before it a few times of each.

use std::collections::HashMap;
use std::sync::Arc;

use crate::model::dependencies;
use crate::model::names::{PodUid, WorkloadRef};
use crate::model::stamp::{Seconds, Timestamp};
use crate::model::time::Time;

/// Most times of one pod that are kept before the frontier. Where the pod was watched in more, the first are forgotten.
const MAX_STRETCHES: usize = 4;
/// Most pods of one workload that are remembered after their end because others stop the frontier. Then it moves on without them.
const MAX_ENDED: usize = 256;
/// So long the frontier waits for the last report on a pod that has ended. Agents that cannot reach the aggregator report late.
const LATE_MS: i64 = 15 * 60_000;

/// Through which time all workloads were watched.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Pods that had ended by then are not known, and may not have been watched.
    known_since: Time,
    workloads: HashMap<Arc<WorkloadRef>, Watched>,
    pods: HashMap<PodUid, Arc<WorkloadRef>>,
}

/// From the first up to the second.
type Stretch = (Time, Time);

#[derive(Clone, Debug, Default)]
struct Watched {
    frontier: Time,
    /// Nothing was counted here between this and an earlier frontier.
    since: Time,
    covered_ms: i64,
    /// The end of the last time before the frontier that does not count.
    interrupted: Option<Time>,
    /// What was counted until then, or more.
    covered_when_interrupted_ms: i64,
    pods: HashMap<PodUid, Pod>,
}

#[derive(Clone, Debug)]
struct Pod {
    from: Time,
    until: Option<Time>,
    /// The end of the last report.
    reported: Time,
    /// When it was watched without loss, in order and apart from each other.
    stretches: Vec<Stretch>,
    /// The last time in which something was lost. Nothing before its end is taken for watched any more.
    lossy: Stretch,
}

impl Coverage {
    /// Nothing counts before `known_since`, when the pods were listed: others may have been there and gone.
    pub fn new(known_since: Time) -> Self {
        Self { known_since, ..Self::default() }
    }

    /// Takes over what an earlier life of this program has decided. Before that, nothing may be told of the workload's pods.
    pub fn load(&mut self, workload: &WorkloadRef, stored: &dependencies::Coverage) {
        let Some(through) = stored.through.map(Timestamp::time) else { return };
        let watched = self.workloads.entry(Arc::new(workload.clone())).or_default();
        watched.skip_to(through.max(self.known_since));
        watched.covered_ms = watched.covered_ms.max(stored.covered.millis());
        watched.covered_when_interrupted_ms = stored.covered_when_interrupted.millis();
        watched.interrupted = watched.interrupted.max(stored.interrupted.map(Timestamp::time));
    }

    /// The pods were listed anew at `time`, because it is not known which have come and gone before.
    pub fn relisted(&mut self, time: Time) {
        self.known_since = self.known_since.max(time);
        for watched in self.workloads.values_mut().filter(|watched| watched.frontier < time) {
            watched.skip_to(time);
            watched.interrupt(time);
        }
    }

    /// A pod of the workload is there, and may have connected from then on. To be told once of each, and again of one that was taken for
    /// ended and is not.
    pub fn start(&mut self, pod: &PodUid, workload: &WorkloadRef, from: Time) {
        let workload = match self.workloads.get_key_value(workload) {
            Some((workload, _)) => Arc::clone(workload),
            None => Arc::new(workload.clone()),
        };
        let begin = from.max(self.known_since);
        let new = || Watched { frontier: begin, since: begin, ..Watched::default() };
        if let Some(other) =
            self.pods.insert(pod.clone(), Arc::clone(&workload)).filter(|other| *other != workload)
        {
            // It was taken for another workload's.
            if let Some(other) = self.workloads.get_mut(&other) {
                other.pods.remove(pod);
            }
        }
        let watched = self.workloads.entry(Arc::clone(&workload)).or_insert_with(new);
        // It was there already while others were taken for all.
        watched.take_back(from, watched.frontier);
        let lossy = (Time(i64::MIN), Time(i64::MIN));
        let new = Pod { from, until: None, reported: from, stretches: Vec::new(), lossy };
        watched.pods.entry(pod.clone()).and_modify(|known| known.until = None).or_insert(new);
    }

    /// The pod has ended, and has not connected any more after `until`.
    pub fn end(&mut self, pod: &PodUid, until: Time) {
        if let Some(pod) = self.workload_of(pod).and_then(|watched| watched.pods.get_mut(pod)) {
            pod.until = pod.until.max(Some(until));
        }
    }

    /// An agent has watched the pod from `from` to `until`, and has lost something within that unless it `is_complete`. The time may
    /// begin before the pod did and end after it. False: no such pod is known.
    pub fn report(&mut self, pod: &PodUid, from: Time, until: Time, is_complete: bool, now: Time) -> bool {
        let Some(watched) = self.workload_of(pod) else { return false };
        let frontier = watched.frontier;
        let Some(known) = watched.pods.get_mut(pod) else { return false };
        // Nobody has watched what is still to come, whatever the clocks say.
        let until = until.min(now);
        if is_complete {
            let (from, is_before) = (from.max(known.lossy.1), until <= frontier);
            if from < until && !is_before {
                add(&mut known.stretches, (from, until));
                if known.stretches.len() > MAX_STRETCHES {
                    known.stretches.remove(0);
                }
            }
        } else {
            let lossy = (from, until.max(from.plus(1)));
            cut(&mut known.stretches, lossy);
            if known.lossy != lossy {
                let counted = (lossy.0.max(known.from), lossy.1);
                if lossy.1 > known.lossy.1 {
                    known.lossy = lossy;
                }
                watched.take_back(counted.0, counted.1);
            }
        }
        if let Some(known) = watched.pods.get_mut(pod) {
            known.reported = known.reported.max(until);
        }
        true
    }

    /// Moves the frontiers on. All pods that may have connected before `known_through` have been told of.
    pub fn advance(&mut self, known_through: Time) {
        for watched in self.workloads.values_mut().filter(|watched| !watched.pods.is_empty()) {
            watched.advance(known_through);
            let frontier = watched.frontier;
            watched.pods.retain(|uid, pod| {
                let is_over = pod.until.is_some_and(|until| until <= frontier);
                if is_over {
                    self.pods.remove(uid);
                }
                !is_over
            });
        }
    }

    /// What is known of the workload, rounded so that it is never more than there was. Pods that were reported on since `recent` are
    /// taken for watched.
    pub fn of(&self, workload: &WorkloadRef, recent: Time) -> Option<dependencies::Coverage> {
        self.workloads.get(workload).map(|watched| watched.stored(recent))
    }

    /// The same of all workloads, in no order.
    pub fn all(&self, recent: Time) -> impl Iterator<Item = (&WorkloadRef, dependencies::Coverage)> {
        self.workloads.iter().map(move |(workload, watched)| (&**workload, watched.stored(recent)))
    }

    /// The workload's pods that are there and were not reported on since `recent`, in no order.
    pub fn behind(&self, workload: &WorkloadRef, recent: Time) -> impl Iterator<Item = &PodUid> {
        let pods = self.workloads.get(workload).into_iter().flat_map(|watched| &watched.pods);
        pods.filter(move |(_, pod)| pod.until.is_none() && !pod.is_watched(recent)).map(|(uid, _)| uid)
    }

    /// Forgets a workload whose record is gone. While it has pods it stays.
    pub fn forget(&mut self, workload: &WorkloadRef) {
        if self.workloads.get(workload).is_some_and(|watched| watched.pods.is_empty()) {
            self.workloads.remove(workload);
        }
    }

    fn workload_of(&mut self, pod: &PodUid) -> Option<&mut Watched> {
        self.workloads.get_mut(self.pods.get(pod)?)
    }
}

impl Pod {
    fn is_watched(&self, recent: Time) -> bool {
        self.reported > self.from && self.reported >= recent
    }

    /// So far it is known when it was watched.
    fn decided(&self, known_through: Time) -> Time {
        match self.until {
            Some(until) if self.reported >= until || known_through >= until.plus(LATE_MS) => Time(i64::MAX),
            _ => self.reported,
        }
    }
}

impl Watched {
    /// What was counted of this time counts no more. How much that was is not known, so all of it might have been.
    fn take_back(&mut self, from: Time, until: Time) {
        let from = from.max(self.since);
        let length = until.min(self.frontier).since(from);
        if length > 0 {
            self.covered_ms = (self.covered_ms - length).max(0);
            self.interrupt(until.min(self.frontier));
        }
    }

    /// Nobody watched until then. How much of what was counted was later is not known, so none of it is taken for it.
    fn interrupt(&mut self, until: Time) {
        self.interrupted = self.interrupted.max(Some(until));
        self.covered_when_interrupted_ms = self.covered_ms;
    }

    fn advance(&mut self, known_through: Time) {
        let decided = self.pods.values().map(|pod| pod.decided(known_through)).min();
        let mut to = decided.unwrap_or(known_through).min(known_through);
        let mut ends: Vec<Time> = self.pods.values().filter_map(|pod| pod.until).collect();
        if ends.len() > MAX_ENDED {
            // Whoever stops the frontier was not watched, so little is lost.
            ends.sort_unstable();
            to = to.max(ends[ends.len() - MAX_ENDED / 2].min(known_through));
        }
        if to <= self.frontier {
            return;
        }
        let (mut alive, mut unwatched) = (Vec::new(), Vec::new());
        for pod in self.pods.values_mut() {
            let from = pod.from.max(self.frontier);
            let until = pod.until.unwrap_or(to).min(to);
            if from < until {
                alive.push((from, until));
                let mut at = from;
                for (begin, end) in &pod.stretches {
                    if *begin > at {
                        unwatched.push((at, until.min(*begin)));
                    }
                    at = at.max(*end);
                    if at >= until {
                        break;
                    }
                }
                if at < until {
                    unwatched.push((at, until));
                }
            }
            cut(&mut pod.stretches, (Time(i64::MIN), to));
        }
        let alive = length(&mut alive);
        let lost = length(&mut unwatched);
        self.covered_ms += alive - lost;
        if let Some(until) = unwatched.iter().map(|(_, until)| *until).max() {
            self.interrupt(until);
        }
        self.frontier = to;
    }

    /// Moves on without counting anything.
    fn skip_to(&mut self, time: Time) {
        self.frontier = self.frontier.max(time);
        self.since = self.frontier;
        for pod in self.pods.values_mut() {
            cut(&mut pod.stretches, (Time(i64::MIN), self.frontier));
        }
    }

    fn stored(&self, recent: Time) -> dependencies::Coverage {
        let there = || self.pods.values().filter(|pod| pod.until.is_none());
        let count = |pods: usize| u32::try_from(pods).unwrap_or(u32::MAX);
        dependencies::Coverage {
            covered: Seconds::floor(self.covered_ms),
            // What lies between this and the frontier would count twice if it were rounded the other way.
            through: Some(Timestamp::ceil(self.frontier)),
            interrupted: self.interrupted.map(Timestamp::ceil),
            covered_when_interrupted: Seconds::ceil(self.covered_when_interrupted_ms),
            watched_pods: count(there().filter(|pod| pod.is_watched(recent)).count()),
            pods: count(there().count()),
        }
    }
}

/// Adds a stretch; those that touch become one.
fn add(stretches: &mut Vec<Stretch>, (from, until): Stretch) {
    let first = stretches.partition_point(|stretch| stretch.1 < from);
    let after = stretches.partition_point(|stretch| stretch.0 <= until);
    if first == after {
        stretches.insert(first, (from, until));
        return;
    }
    let joined = (from.min(stretches[first].0), until.max(stretches[after - 1].1));
    stretches[first] = joined;
    stretches.drain(first + 1..after);
}

/// Takes out what lies in this one.
fn cut(stretches: &mut Vec<Stretch>, (from, until): Stretch) {
    if let Some(at) = stretches.iter().position(|stretch| stretch.0 < from && until < stretch.1) {
        let end = stretches[at].1;
        stretches[at].1 = from;
        stretches.insert(at + 1, (until, end));
        if stretches.len() > MAX_STRETCHES {
            stretches.remove(0);
        }
        return;
    }
    for stretch in stretches.iter_mut() {
        if stretch.0 < from {
            stretch.1 = stretch.1.min(from);
        } else {
            stretch.0 = stretch.0.max(until);
        }
    }
    stretches.retain(|stretch| stretch.0 < stretch.1);
}

/// How long all of them together are; where several overlap, that counts once.
fn length(stretches: &mut [Stretch]) -> i64 {
    stretches.sort_unstable();
    let mut sum = 0;
    let mut at = Time(i64::MIN);
    for (from, until) in stretches {
        let from = at.max(*from);
        sum += until.since(from).max(0);
        at = at.max(*until);
    }
    sum
}

#[cfg(test)]
mod tests;
