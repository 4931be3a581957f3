//! Batches that were taken and are not durable yet, and what each of them waits for.

use std::collections::HashMap;
use std::sync::Arc;

use super::BatchId;
use super::tally::Reason;
use crate::ledger::Version;
use crate::model::names::{ObjectName, WorkloadRef};

/// Number of a batch here; given once.
pub(super) type Key = u64;

/// Those that are on their way.
#[derive(Debug, Default)]
pub(super) struct Open {
    next: Key,
    batches: HashMap<Key, Batch>,
    /// Those of which all is decided, each with one of the workloads whose records it waits for.
    waiting: HashMap<Arc<WorkloadRef>, Vec<Key>>,
}

#[derive(Debug)]
struct Batch {
    id: BatchId,
    node: Arc<ObjectName>,
    sequence: u64,
    /// Parts of which something is not decided.
    parts: usize,
    awaited: Vec<(Arc<WorkloadRef>, Version)>,
    refused: Vec<(Reason, u64)>,
}

/// A batch of which all is durable, but for what was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Durable {
    pub(super) key: Key,
    pub(super) id: BatchId,
    pub(super) node: Arc<ObjectName>,
    pub(super) sequence: u64,
    pub(super) refused: Vec<(Reason, u64)>,
}

impl Open {
    pub(super) fn add(&mut self, id: BatchId, node: Arc<ObjectName>, sequence: u64, parts: usize) -> Key {
        let key = self.next;
        self.next += 1;
        let batch = Batch { id, node, sequence, parts, awaited: Vec::new(), refused: Vec::new() };
        self.batches.insert(key, batch);
        key
    }

    /// It came again: from now on it bears this id. Returns the one before.
    pub(super) fn replace(&mut self, key: Key, id: BatchId) -> Option<BatchId> {
        self.batches.get_mut(&key).map(|batch| std::mem::replace(&mut batch.id, id))
    }

    /// Something in it is durable with this version.
    pub(super) fn wait_for(&mut self, key: Key, workload: &Arc<WorkloadRef>, version: Option<Version>) {
        let (Some(version), Some(batch)) = (version, self.batches.get_mut(&key)) else { return };
        // What follows each other is mostly one workload's.
        match batch.awaited.last_mut() {
            Some((last, known)) if last == workload => *known = version.max(*known),
            _ => batch.awaited.push((Arc::clone(workload), version)),
        }
    }

    /// Something in it was refused or given up.
    pub(super) fn refuse(&mut self, key: Key, reason: Reason, count: u64) {
        let Some(batch) = self.batches.get_mut(&key) else { return };
        match batch.refused.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, known)) => *known += count,
            None => batch.refused.push((reason, count)),
        }
    }

    /// One of its parts is decided. Returns the batch if that makes it durable.
    pub(super) fn decided(
        &mut self,
        key: Key,
        is_durable: impl Fn(&WorkloadRef, Version) -> bool,
    ) -> Option<Durable> {
        let batch = self.batches.get_mut(&key)?;
        batch.parts = batch.parts.saturating_sub(1);
        if batch.parts > 0 {
            return None;
        }
        batch.awaited.sort_unstable();
        // Of each workload the last.
        batch.awaited.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0;
            if is_same {
                kept.1 = kept.1.max(later.1);
            }
            is_same
        });
        batch.awaited.shrink_to_fit();
        self.look(key, &is_durable)
    }

    /// A write of the workload's record has ended. Returns the batches that are durable now.
    pub(super) fn written(
        &mut self,
        workload: &WorkloadRef,
        is_durable: impl Fn(&WorkloadRef, Version) -> bool,
    ) -> Vec<Durable> {
        let waiting = self.waiting.remove(workload).unwrap_or_default();
        waiting.into_iter().filter_map(|key| self.look(key, &is_durable)).collect()
    }

    fn look(&mut self, key: Key, is_durable: &impl Fn(&WorkloadRef, Version) -> bool) -> Option<Durable> {
        let batch = self.batches.get_mut(&key)?;
        while batch.awaited.pop_if(|(workload, version)| is_durable(workload, *version)).is_some() {}
        if let Some((workload, _)) = batch.awaited.last() {
            self.waiting.entry(Arc::clone(workload)).or_default().push(key);
            return None;
        }
        let Batch { id, node, sequence, refused, .. } = self.batches.remove(&key)?;
        Some(Durable { key, id, node, sequence, refused })
    }

    pub(super) fn len(&self) -> usize {
        self.batches.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::workload;

    #[test]
    fn a_batch_is_durable_when_all_its_parts_are_decided_and_all_that_they_say_is_written() {
        let mut open = Open::default();
        let node = Arc::new(ObjectName::new("n").unwrap());
        let [x, y] = ["default/Deployment/x", "default/Deployment/y"].map(|text| Arc::new(workload(text)));
        let key = open.add(7, node, 3, 2);
        open.wait_for(key, &x, Some(5));
        open.wait_for(key, &y, Some(6));
        open.wait_for(key, &x, Some(8));
        open.wait_for(key, &x, None);
        open.refuse(key, Reason::NoPod, 2);
        open.refuse(key, Reason::NoPod, 1);
        let none = |_: &WorkloadRef, _| false;
        assert_eq!(open.decided(key, none), None);
        assert_eq!(open.written(&x, none), [], "a part is not decided yet");
        assert_eq!(open.decided(key, none), None);
        assert_eq!(open.replace(key, 9), Some(7));
        // In any order, and only when the last version is written.
        assert_eq!(open.written(&y, |w, version| *w == *y && version <= 6), []);
        assert_eq!(open.written(&x, |w, version| *w == *y || version <= 7), []);
        let durable = open.written(&x, |_, _| true);
        assert_eq!(
            (durable[0].id, durable[0].sequence, &durable[0].refused[..]),
            (9, 3, &[(Reason::NoPod, 3)][..])
        );
        assert_eq!((open.len(), open.waiting.len()), (0, 0));
        let next = open.add(1, durable[0].node.clone(), 4, 1);
        assert!(open.decided(next, none).is_some(), "there is nothing that it waits for");
    }
}
