//! Whether a workload was watched for long enough, and what was not seen of it.

use std::collections::BTreeSet;

use super::demand::{Demand, Member};
use super::fact::Fact;
use crate::model::stamp::{Seconds, Timestamp};
use crate::model::time::Time;

/// Agents report every minute, and the frontier waits for the late ones; what is older than this is not late.
const STALE_MS: i64 = 30 * 60_000;
/// Losses are told of as being in the last report before the end of a gap.
const NEAR_MS: i64 = 10 * 60_000;
/// Of what could not be seen, so much is told.
const MAX_UNSEEN: usize = 10;

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Learnt {
    Enough,
    /// So much is covered.
    Learning(Seconds),
    /// What was not seen.
    NotObserved(Vec<Fact>),
}

/// Judges what is known of the members against a window of covered time.
pub(super) fn of(demand: &Demand<'_>, window: Seconds, now: Time) -> Learnt {
    let mut facts = not_watched(demand).into_iter().collect::<Vec<_>>();
    let present = || demand.members.iter().filter(|member| has_pods(member));
    let through = present().filter_map(|member| member.coverage.through).min();
    facts.extend(through.filter(|through| now.since(through.time()) > STALE_MS).map(Fact::Behind));
    facts.extend(present().filter_map(|member| interrupted(member, window)));
    let unseen: BTreeSet<Fact> = present().flat_map(|member| unseen(member, window)).collect();
    facts.extend(unseen.into_iter().take(MAX_UNSEEN));
    if !facts.is_empty() {
        return Learnt::NotObserved(facts);
    }
    // A new version inherits what the others were watched for.
    let covered = demand.members.iter().map(|member| member.coverage.since_interruption()).max();
    match covered.unwrap_or_default() {
        covered if covered < window => Learnt::Learning(covered),
        _ => Learnt::Enough,
    }
}

/// Whether the member calls, or will call again: the pods of a Job come and go.
fn has_pods(member: &Member<'_>) -> bool {
    member.coverage.pods > 0 || matches!(member.workload.kind.as_str(), "Job" | "CronJob")
}

fn not_watched(demand: &Demand<'_>) -> Option<Fact> {
    let all = demand.members.iter();
    let (watched, pods) = all.fold((0_u32, 0_u32), |(watched, pods), member| {
        let coverage = member.coverage;
        (watched.saturating_add(coverage.watched_pods.min(coverage.pods)), pods.saturating_add(coverage.pods))
    });
    let nodes: BTreeSet<_> =
        demand.members.iter().flat_map(|member| member.unwatched.iter().cloned()).collect();
    (watched < pods || !nodes.is_empty()).then_some(Fact::NotWatched { watched, pods, nodes })
}

/// Before anything was covered there is no gap, but a beginning.
fn interrupted(member: &Member<'_>, window: Seconds) -> Option<Fact> {
    let coverage = member.coverage;
    let until = coverage.interrupted.filter(|_| coverage.covered_when_interrupted.0 > 0)?;
    let since = coverage.since_interruption();
    let near = until.time().plus(-NEAR_MS);
    let causes = member.losses.iter().filter(|(_, last)| last.time() >= near);
    (since < window).then(|| Fact::Interrupted {
        workload: member.workload.clone(),
        until,
        causes: causes.map(|(cause, _)| (*cause).to_owned()).collect(),
        since,
        window,
    })
}

fn unseen(member: &Member<'_>, window: Seconds) -> impl Iterator<Item = Fact> {
    let all = member.unseen.iter().map(|(what, last)| (what, *last, covered_since(member, *last)));
    all.filter(move |(_, _, since)| *since < window).map(move |(what, last, since)| Fact::Unseen {
        what: what.clone(),
        last,
        since,
        window,
    })
}

/// How much was covered since `time`, at most. A sum without its times does not tell it of a workload whose pods come and go.
fn covered_since(member: &Member<'_>, time: Timestamp) -> Seconds {
    let coverage = member.coverage;
    let through = coverage.through.unwrap_or_default();
    let from = coverage.interrupted.map_or(time, |interrupted| interrupted.max(time));
    Seconds::floor(through.time().since(from.time())).min(coverage.since_interruption())
}
