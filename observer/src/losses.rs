//! What user space could not make use of, and which network namespaces losses have hit, by cause. Pure; bounded by [`MAX_HIT`]
//! namespaces.

use std::collections::{BTreeMap, BTreeSet};

use sidescope_common::{ALL_NAMESPACES, Causes, Counter, MAX_HIT};

use crate::heads::Unreadable;

/// What user space could not make use of, by cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loss {
    /// A request head; see [`Unreadable`].
    Head(Unreadable),
    /// A host beyond [`MAX_HOSTS_PER_EDGE`](crate::collect::MAX_HOSTS_PER_EDGE).
    TooManyHosts,
    /// A record of the kernel that user space does not understand.
    MalformedRecord,
    /// DNS answers that could not be read, or not be kept.
    DnsAnswer,
    /// A connection that was open before, beyond [`MAX_EXISTING`](crate::collect::MAX_EXISTING) or beyond what is listed of one namespace.
    TooManyExisting,
    /// A connection of which the kernel programs could not be told: open before, or open for long and perhaps without a search.
    UnwatchedExisting,
    /// A proxy in a user namespace of its own, beyond what the kernel's map holds (its connections take room in the edge set) or
    /// beyond [`MAX_PROXIES`](crate::collect::MAX_PROXIES) (they count as its workload's).
    TooManyProxies,
    /// A network namespace, or a cgroup, beyond [`MAX_NAMESPACES`](crate::sources::MAX_NAMESPACES): its pod is not known.
    TooManyNamespaces,
    /// The agent before this one was killed: hosts and names that it had read and not reported are gone, unless they come again.
    AgentKilled,
    /// What an agent of another version had recorded cannot be read.
    UnreadableLayout,
    /// Another layout's programs came off before all open connections were listed: requests on those that were not may be missed.
    UnlistedAtChange,
}

impl Loss {
    /// Its name in `graph.json` and in logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Head(Unreadable::MissingPiece) => "headMissingPiece",
            Self::Head(Unreadable::TooLong) => "headTooLong",
            Self::Head(Unreadable::Malformed) => "headMalformed",
            Self::Head(Unreadable::Crowded) => "headsCrowded",
            Self::TooManyHosts => "tooManyHosts",
            Self::MalformedRecord => "malformedRecord",
            Self::DnsAnswer => "dnsAnswer",
            Self::TooManyExisting => "tooManyExisting",
            Self::UnwatchedExisting => "unwatchedExisting",
            Self::TooManyProxies => "tooManyProxies",
            Self::TooManyNamespaces => "tooManyNamespaces",
            Self::AgentKilled => "agentKilled",
            Self::UnreadableLayout => "unreadableLayout",
            Self::UnlistedAtChange => "unlistedAtChange",
        }
    }
}

/// Names of causes, as `graph.json` and logs have them.
pub type CauseNames = BTreeSet<&'static str>;

/// Causes by network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hit {
    namespaces: BTreeMap<u64, CauseNames>,
    everywhere: CauseNames,
}

impl Hit {
    /// A loss has hit this namespace; `None` if it may have hit any. Where there are too many namespaces, it counts for all.
    pub fn note(&mut self, netns: Option<u64>, cause: &'static str) {
        let Some(netns) = netns.filter(|netns| *netns != ALL_NAMESPACES) else {
            self.everywhere.insert(cause);
            return;
        };
        if self.namespaces.contains_key(&netns) || self.namespaces.len() < MAX_HIT as usize {
            self.namespaces.entry(netns).or_default().insert(cause);
        } else {
            self.everywhere.insert(cause);
        }
    }

    /// What the kernel noted of a namespace, from some time of [`loss_time`](sidescope_common::loss_time) on.
    pub fn note_causes(&mut self, netns: u64, causes: &Causes, since: u32) {
        let lost = |counter: &Counter| counter.is_loss() && causes[*counter as usize] >= since.max(1);
        for counter in Counter::ALL.iter().filter(|counter| lost(counter)) {
            self.note(Some(netns), counter.name());
        }
    }

    /// A namespace is gone: there is room for another one.
    pub fn forget(&mut self, netns: u64) {
        self.namespaces.remove(&netns);
    }

    /// Both together.
    pub fn add(&mut self, more: &Self) {
        for (netns, causes) in &more.namespaces {
            causes.iter().for_each(|cause| self.note(Some(*netns), cause));
        }
        self.everywhere.extend(&more.everywhere);
    }

    /// Takes out what has hit these namespaces, or may have hit any.
    #[must_use]
    pub fn take(&mut self, of: impl Fn(u64) -> bool) -> Self {
        let namespaces = self.namespaces.extract_if(.., |netns, _| of(*netns)).collect();
        Self { namespaces, everywhere: std::mem::take(&mut self.everywhere) }
    }

    /// Namespaces that are known to have been hit.
    pub fn namespaces(&self) -> &BTreeMap<u64, CauseNames> {
        &self.namespaces
    }

    /// Causes that may have hit any namespace.
    pub fn everywhere(&self) -> &CauseNames {
        &self.everywhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_counts_for_its_namespace_or_for_all() {
        let mut hit = Hit::default();
        let mut causes = Causes::default();
        causes[Counter::EdgesFull as usize] = 7;
        // No loss.
        causes[Counter::Connects as usize] = 7;
        causes[Counter::HeadBudget as usize] = 6;
        hit.note_causes(5, &causes, 7);
        hit.note(Some(5), "tooManyHosts");
        assert_eq!(hit.namespaces(), &BTreeMap::from([(5, CauseNames::from(["edgesFull", "tooManyHosts"]))]));
        assert!(hit.everywhere().is_empty());
        hit.note_causes(ALL_NAMESPACES, &causes, 0);
        hit.note(None, "agentKilled");
        assert_eq!(hit.everywhere(), &CauseNames::from(["agentKilled", "edgesFull", "headBudget"]));
        assert_eq!(hit.namespaces().len(), 1);
    }

    #[test]
    fn what_is_taken_out_is_there_no_longer() {
        let (mut hit, mut more) = (Hit::default(), Hit::default());
        hit.note(Some(5), "a");
        hit.note(None, "b");
        more.note(Some(5), "c");
        more.note(Some(6), "a");
        hit.add(&more);
        let taken = hit.take(|netns| netns == 5);
        assert_eq!(taken.namespaces(), &BTreeMap::from([(5, CauseNames::from(["a", "c"]))]));
        assert_eq!(taken.everywhere(), &CauseNames::from(["b"]));
        assert_eq!(hit.namespaces(), &BTreeMap::from([(6, CauseNames::from(["a"]))]));
        assert!(hit.everywhere().is_empty());
    }

    #[test]
    fn namespaces_beyond_the_bound_make_it_count_for_all() {
        let mut hit = Hit::default();
        for netns in 1..=u64::from(MAX_HIT) {
            hit.note(Some(netns), "a");
        }
        assert!(hit.everywhere().is_empty());
        hit.note(Some(1), "b");
        assert!(hit.everywhere().is_empty(), "it has a place");
        hit.note(Some(u64::from(MAX_HIT) + 1), "c");
        assert_eq!((hit.namespaces().len(), hit.everywhere()), (MAX_HIT as usize, &CauseNames::from(["c"])));
    }
}
