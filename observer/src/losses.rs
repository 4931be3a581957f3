//! Which network namespaces losses have hit, and by which cause. Pure; bounded by [`MAX_HIT`] namespaces.

use std::collections::{BTreeMap, BTreeSet};

use sidescope_common::{ALL_NAMESPACES, Causes, Counter, MAX_HIT};

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

    /// What the kernel noted of a namespace.
    pub fn note_causes(&mut self, netns: u64, causes: &Causes) {
        let lost = |counter: &Counter| counter.is_loss() && causes[*counter as usize] != 0;
        for counter in Counter::ALL.iter().filter(|counter| lost(counter)) {
            self.note(Some(netns), counter.name());
        }
    }

    /// A namespace is gone: there is room for another one.
    pub fn forget(&mut self, netns: u64) {
        self.namespaces.remove(&netns);
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
        causes[Counter::EdgesFull as usize] = 1;
        // No loss.
        causes[Counter::Connects as usize] = 1;
        hit.note_causes(5, &causes);
        hit.note(Some(5), "tooManyHosts");
        assert_eq!(hit.namespaces(), &BTreeMap::from([(5, CauseNames::from(["edgesFull", "tooManyHosts"]))]));
        assert!(hit.everywhere().is_empty());
        hit.note_causes(ALL_NAMESPACES, &causes);
        hit.note(None, "agentKilled");
        assert_eq!(hit.everywhere(), &CauseNames::from(["agentKilled", "edgesFull"]));
        assert_eq!(hit.namespaces().len(), 1);
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
