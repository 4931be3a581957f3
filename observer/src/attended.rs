//! Through which time each pod of this node was watched: since the programs are attached, as long as its cgroup lies below theirs,
//! whether an agent runs or not. Never more than that, and without the times in which something was lost of it. Pure.
//!
//! Times are nanoseconds of CLOCK_MONOTONIC.

use std::collections::{BTreeSet, HashMap};

use crate::losses::{CauseNames, Hit};
use crate::model::names::PodUid;
use crate::outbox::{MAX_PODS, Watched};

/// So long a pod whose cgroup is gone counts as watched, since whoever asks for the time up to its end may know of a later end.
pub const AFTER_END_NS: u64 = 120 * 1_000_000_000;

/// By so much the times of an agent and the next one overlap.
const OVERLAP_NS: u64 = 5 * 1_000_000_000;

/// From when on the programs have seen the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Since {
    /// They are attached since then, and all before was told if agents have told anything.
    pub from_ns: u64,
    /// Pods whose cgroup has a larger number were made after that: none of their connections is older than the programs.
    pub newest_cgroup: u64,
    /// When all connections had been listed that are older; `None`: they were not.
    pub listed_ns: Option<u64>,
}

/// The pods of this node.
#[derive(Clone, Debug)]
pub struct Attended {
    since: Since,
    /// As many as the node has, and those that have ended not long ago.
    pods: HashMap<PodUid, Pod>,
    /// Up to then all that was seen is told.
    until_ns: u64,
    /// Up to then something may have been lost.
    lossy_ns: u64,
}

#[derive(Clone, Debug)]
struct Pod {
    /// Nothing was lost of it since then.
    from_ns: u64,
    /// It may have connections that are older than the programs.
    older: bool,
    /// Since when its cgroup is gone.
    ended_ns: Option<u64>,
}

impl Attended {
    /// No pod is known yet.
    pub fn new(since: Since) -> Self {
        Self { since, pods: HashMap::new(), until_ns: since.from_ns, lossy_ns: since.from_ns }
    }

    /// The cgroups of pods that are there at `now_ns`, with their numbers.
    pub fn found(&mut self, cgroups: &HashMap<PodUid, u64>, now_ns: u64) {
        for (uid, number) in cgroups {
            if self.pods.len() >= MAX_PODS && !self.pods.contains_key(uid) {
                continue;
            }
            let older = *number <= self.since.newest_cgroup;
            let new = Pod { from_ns: self.since.from_ns, older, ended_ns: None };
            self.pods.entry(uid.clone()).or_insert(new).ended_ns = None;
        }
        self.pods.retain(|uid, pod| {
            if cgroups.contains_key(uid) {
                return true;
            }
            let ended = pod.ended_ns.get_or_insert(now_ns);
            now_ns.saturating_sub(*ended) < AFTER_END_NS
        });
    }

    /// All connections that are older than the programs have been listed by then.
    pub fn listed(&mut self, at_ns: u64) {
        self.since.listed_ns.get_or_insert(at_ns);
    }

    /// What was lost since this was last told of it, and before `now_ns`. `pod` says whose namespace it is; what is nobody's may be
    /// anybody's. Returns the times that this ends.
    pub fn lost<'p>(
        &mut self,
        hit: &Hit,
        pod: impl Fn(u64) -> Option<&'p PodUid>,
        now_ns: u64,
    ) -> Vec<Watched> {
        let mut everyone: BTreeSet<String> = names(hit.everywhere());
        let mut of: HashMap<&PodUid, BTreeSet<String>> = HashMap::new();
        for (netns, causes) in hit.namespaces() {
            match pod(*netns).filter(|pod| self.pods.contains_key(pod)) {
                Some(pod) => of.entry(pod).or_default().extend(names(causes)),
                None => everyone.extend(names(causes)),
            }
        }
        let mut ended = Vec::new();
        if everyone.is_empty() && of.is_empty() {
            return ended;
        }
        for (uid, pod) in &mut self.pods {
            let mut losses = of.remove(uid).unwrap_or_default();
            losses.extend(everyone.iter().cloned());
            if losses.is_empty() {
                continue;
            }
            if let Some(from_ns) = pod.watched_from(&self.since) {
                let time =
                    |from_ns, until_ns, losses| Watched { pod: uid.clone(), from_ns, until_ns, losses };
                if from_ns < self.until_ns {
                    ended.push(time(from_ns, self.until_ns, BTreeSet::new()));
                }
                ended.push(time(from_ns.max(self.until_ns).min(now_ns), now_ns, losses));
            }
            pod.from_ns = now_ns;
        }
        self.lossy_ns = now_ns;
        if !everyone.is_empty() {
            // Of pods that were there and not found yet, too.
            self.since.from_ns = now_ns;
        }
        ended
    }

    /// All that was seen up to then is told, and what was lost.
    pub fn seen_until(&mut self, until_ns: u64) {
        self.until_ns = self.until_ns.max(until_ns);
    }

    /// The times through which all of it was seen, up to then.
    pub fn watched(&self) -> impl Iterator<Item = Watched> {
        self.pods.iter().filter_map(|(uid, pod)| {
            let from_ns = pod.watched_from(&self.since)?;
            let until_ns = self.until_ns;
            let watched = Watched { pod: uid.clone(), from_ns, until_ns, losses: BTreeSet::new() };
            (from_ns < until_ns).then_some(watched)
        })
    }

    /// From when on the next agent has to tell if all this was: a little before the end, because clocks are not certain, unless
    /// something was lost there.
    pub fn told_ns(&self) -> u64 {
        self.until_ns.saturating_sub(OVERLAP_NS).max(self.lossy_ns.min(self.until_ns))
    }
}

impl Pod {
    fn watched_from(&self, since: &Since) -> Option<u64> {
        if self.older { since.listed_ns.map(|listed| listed.max(self.from_ns)) } else { Some(self.from_ns) }
    }
}

fn names(causes: &CauseNames) -> BTreeSet<String> {
    causes.iter().map(|cause| (*cause).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> PodUid {
        PodUid::new(name).unwrap()
    }

    fn attended(listed_ns: Option<u64>) -> Attended {
        let mut attended = Attended::new(Since { from_ns: 100, newest_cgroup: 10, listed_ns });
        attended.found(&HashMap::from([(uid("old"), 10), (uid("new"), 11)]), 200);
        attended
    }

    fn brief(times: impl IntoIterator<Item = Watched>) -> Vec<(String, u64, u64, Vec<String>)> {
        let mut brief: Vec<_> = times
            .into_iter()
            .map(|time| {
                let losses = time.losses.into_iter().collect();
                (String::from(time.pod), time.from_ns, time.until_ns, losses)
            })
            .collect();
        brief.sort();
        brief
    }

    fn clean(pod: &str, from: u64, until: u64) -> (String, u64, u64, Vec<String>) {
        (pod.to_owned(), from, until, vec![])
    }

    fn lossy(pod: &str, from: u64, until: u64, cause: &str) -> (String, u64, u64, Vec<String>) {
        (pod.to_owned(), from, until, vec![cause.to_owned()])
    }

    #[test]
    fn pods_are_watched_since_the_programs_are_attached_older_ones_since_their_connections_are_known() {
        let mut attended = attended(None);
        assert!(brief(attended.watched()).is_empty(), "nothing is told yet");
        attended.seen_until(300);
        assert_eq!(brief(attended.watched()), [clean("new", 100, 300)]);
        attended.listed(250);
        attended.listed(270);
        attended.seen_until(400);
        assert_eq!(brief(attended.watched()), [clean("new", 100, 400), clean("old", 250, 400)]);
    }

    #[test]
    fn a_loss_is_of_its_pod_and_lies_between_two_looks() {
        let mut attended = attended(Some(120));
        attended.seen_until(300);
        let (mut hit, new) = (Hit::default(), uid("new"));
        assert!(attended.lost(&hit, |_| None, 350).is_empty());
        hit.note(Some(7), "edgesFull");
        let ended = attended.lost(&hit, |netns| (netns == 7).then_some(&new), 400);
        assert_eq!(brief(ended), [clean("new", 100, 300), lossy("new", 300, 400, "edgesFull")]);
        attended.seen_until(390);
        assert_eq!(brief(attended.watched()), [clean("old", 120, 390)]);
        attended.seen_until(500);
        assert_eq!(brief(attended.watched()), [clean("new", 400, 500), clean("old", 120, 500)]);
    }

    #[test]
    fn what_may_have_hit_anybody_has_hit_all_also_those_that_are_found_later() {
        for netns in [None, Some(7)] {
            let mut attended = attended(Some(120));
            attended.seen_until(300);
            let mut hit = Hit::default();
            hit.note(netns, "agentKilled");
            let mut expected = Vec::new();
            for (pod, from) in [("new", 100), ("old", 120)] {
                expected.extend([clean(pod, from, 300), lossy(pod, 300, 400, "agentKilled")]);
            }
            assert_eq!(brief(attended.lost(&hit, |_| None, 400)), expected);
            attended.found(&HashMap::from([(uid("later"), 12)]), 450);
            attended.seen_until(500);
            let expected = ["later", "new", "old"].map(|pod| clean(pod, 400, 500));
            assert_eq!(brief(attended.watched()), expected);
        }
    }

    #[test]
    fn a_loss_before_anything_was_told_may_lie_anywhere_since_the_start() {
        let mut attended = attended(Some(120));
        let mut hit = Hit::default();
        hit.note(None, "agentKilled");
        let ended = attended.lost(&hit, |_| None, 300);
        assert_eq!(
            brief(ended),
            [lossy("new", 100, 300, "agentKilled"), lossy("old", 120, 300, "agentKilled")]
        );
    }

    #[test]
    fn a_pod_that_is_gone_counts_for_a_while_and_is_forgotten() {
        let mut attended = attended(Some(120));
        let old = HashMap::from([(uid("old"), 10)]);
        attended.found(&old, 1000);
        attended.seen_until(1000 + AFTER_END_NS / 2);
        assert_eq!(brief(attended.watched()).len(), 2);
        attended.found(&old, 1000 + AFTER_END_NS);
        assert_eq!(brief(attended.watched()), [clean("old", 120, 1000 + AFTER_END_NS / 2)]);
    }

    #[test]
    fn the_next_agent_tells_from_a_little_before_the_end_on_but_nothing_in_which_something_was_lost() {
        let second = 1_000_000_000;
        let mut attended = attended(Some(120));
        assert_eq!(attended.told_ns(), 100);
        attended.seen_until(60 * second);
        assert_eq!(attended.told_ns(), 55 * second);
        let mut hit = Hit::default();
        hit.note(Some(1), "edgesFull");
        attended.lost(&hit, |_| None, 61 * second);
        assert_eq!(attended.told_ns(), 60 * second, "what was lost is told up to there");
        for (until, told) in [(62, 61), (90, 85)] {
            attended.seen_until(until * second);
            assert_eq!(attended.told_ns(), told * second);
        }
    }
}
