//! From what agents tell to the records of workloads: a batch comes in, waits until it must be known whose its addresses were, is
//! resolved with what was true then, and is acknowledged when all that it says is durable. Pure: whoever owns this gives it the
//! registry and the time, hands over batches, writes what the ledger says, and sends acknowledgements.
//!
//! It is there while its replica leads, and begins anew with the records that are stored: nothing is acknowledged that is not among
//! them, so nothing is lost with it.

mod agents;
mod open;
mod resolve;
mod tally;

use std::collections::HashMap;
use std::sync::Arc;

pub use tally::{Counts, Listed, Reason, Tally};

use crate::coverage::Coverage;
use crate::held::Held;
use crate::ledger::{Ledger, Outcome, Write};
use crate::model::names::{ObjectName, WorkloadRef};
use crate::model::time::{Span, Time};
use crate::registry::{HOLD, RETENTION, Registry, Stay};
use crate::wire::proto::Refusal;
use crate::wire::{Batch, Edge, Source};
use agents::{Agents, Arrival};
use open::{Durable, Open};
use resolve::{Books, Part};

/// A pod that was not reported on for so many milliseconds is not taken for watched.
const RECENT: i64 = 180_000;
/// How often the frontiers of coverage are moved on, in milliseconds.
const ADVANCE: i64 = 1_000;
/// How often records take over what changes all the time, in milliseconds.
const UPKEEP: i64 = 60_000;

/// What its owner calls a batch.
pub type BatchId = u64;

/// What became of a batch that came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It will be acknowledged.
    Waits,
    /// It is here already and will be acknowledged; nobody asks any more for the one that had this id.
    InsteadOf(BatchId),
    /// It was here, and is durable.
    Durable,
}

/// A batch that can be acknowledged.
#[derive(Clone, Debug, PartialEq)]
pub struct Acknowledged {
    /// Which one.
    pub id: BatchId,
    /// What of it is in no record.
    pub refusals: Vec<Refusal>,
}

/// All of it.
#[derive(Debug)]
pub struct Desk {
    books: Books,
    agents: Agents,
    held: Held<Part>,
    acknowledged: Vec<Acknowledged>,
    /// When the pods were listed, as of the last look at the registry.
    listed: Option<Time>,
    advanced: Option<Time>,
    kept_up: Option<Time>,
}

impl Desk {
    /// Begins with the records that are stored.
    pub fn new(ledger: Ledger, registry: &mut Registry, now: Time) -> Self {
        // All of them are looked at here.
        drop(registry.changed_stays());
        let listed = registry.pods_listed();
        // Of pods that went, the registry knows no longer than this.
        let mut coverage = Coverage::new(listed.unwrap_or(now).max(now.plus(-RETENTION)));
        for (workload, record) in ledger.records() {
            coverage.load(workload, &record.coverage);
        }
        for stay in registry.stays() {
            follow(&mut coverage, &stay);
        }
        Self {
            books: Books { ledger, coverage, open: Open::default(), tally: Tally::default() },
            agents: Agents::default(),
            held: Held::default(),
            acknowledged: Vec::new(),
            listed,
            advanced: None,
            kept_up: None,
        }
    }

    /// A batch has come in with the token of `node`.
    pub fn take(&mut self, node: &ObjectName, batch: Batch, id: BatchId, now: Time) -> Taken {
        let Batch { epoch, sequence, sources } = batch;
        let edges = sources.iter().map(|source| source.edges.len()).sum();
        let Books { open, tally, .. } = &mut self.books;
        let (node, wait) = match self.agents.arrive(node, (epoch, sequence), edges, now) {
            Arrival::New { node, wait } => (node, wait),
            Arrival::OnWay(key) => {
                tally.counts.again += 1;
                return open.replace(key, id).map_or(Taken::Waits, Taken::InsteadOf);
            }
            Arrival::Durable => {
                tally.counts.again += 1;
                return Taken::Durable;
            }
        };
        tally.counts.batches += 1;
        tally.counts.too_fast += u64::from(wait > 0);
        let key = open.add(id, Arc::clone(&node), sequence, sources.len().max(1));
        self.agents.took(&node, sequence, key);
        if sources.is_empty() {
            self.decided(key);
        }
        for mut source in sources {
            let latest = not_later_than(&mut source, now);
            let due = latest.plus(HOLD).max(now.plus(wait));
            self.held.hold(Part { batch: key, node: Arc::clone(&node), source }, due);
        }
        Taken::Waits
    }

    /// Does what is due, but looks at no more than about `most` edges. Returns whether more is due.
    pub fn work(&mut self, registry: &mut Registry, now: Time, most: usize) -> bool {
        registry.settle(now);
        self.follow(registry);
        let mut looked_at = 0;
        if let Some(through) = registry.settled_through(now) {
            while looked_at < most {
                let Some(mut due) = self.held.due(through.plus(HOLD)) else { break };
                looked_at += due.what.source.edges.len() + 1;
                let key = due.what.batch;
                if self.books.look(&mut due.what, registry, now, due.is_last) {
                    self.decided(key);
                } else {
                    self.held.again(due, now);
                }
            }
            if self.advanced.is_none_or(|last| now.since(last) >= ADVANCE) {
                self.advanced = Some(now);
                self.books.coverage.advance(through);
            }
        }
        if self.kept_up.is_none_or(|last| now.since(last) >= UPKEEP) {
            self.kept_up = Some(now);
            self.keep_up(registry, now);
        }
        looked_at >= most
    }

    /// Takes over which pods have come and gone.
    fn follow(&mut self, registry: &mut Registry) {
        let coverage = &mut self.books.coverage;
        for stay in registry.changed_stays() {
            follow(coverage, &stay);
        }
        if let Some(listed) = registry.pods_listed().filter(|listed| self.listed != Some(*listed)) {
            self.listed = Some(listed);
            coverage.relisted(listed);
        }
    }

    /// Brings the records up to date with what changes all the time. What they say of it is written when they are.
    fn keep_up(&mut self, registry: &Registry, now: Time) {
        let Books { ledger, coverage, .. } = &mut self.books;
        for (workload, covered) in coverage.all(now.plus(-RECENT)) {
            // Where no agent has ever watched there is nothing to tell.
            if covered.watched_pods > 0 || covered.covered.0 > 0 || ledger.record(workload).is_some() {
                ledger.cover(workload, covered, now);
            }
        }
        if registry.is_synced() {
            let present = registry.present();
            let changed: HashMap<WorkloadRef, bool> = ledger
                .records()
                .map(|(workload, record)| (workload, record.gone.is_none(), present.contains(workload)))
                .filter(|(_, was, is)| was != is)
                .map(|(workload, _, is)| (workload.clone(), is))
                .collect();
            for (workload, is_present) in changed {
                ledger.set_present(&workload, is_present, now);
            }
            ledger.retire(now);
        }
    }

    /// What is to be written now; see [`Ledger::due`].
    pub fn writes(&mut self, now: Time, most: usize) -> Vec<Write> {
        self.books.ledger.due(now, most)
    }

    /// A write has ended.
    pub fn written(&mut self, workload: &WorkloadRef, outcome: Outcome, now: Time) {
        let Books { ledger, coverage, open, .. } = &mut self.books;
        ledger.done(workload, outcome, now);
        if ledger.record(workload).is_none() {
            coverage.forget(workload);
        }
        let durable = open.written(workload, |workload, version| ledger.is_durable(workload, version));
        for batch in durable {
            self.acknowledge(batch);
        }
    }

    /// The batches that can be acknowledged since this was last asked.
    pub fn acknowledged(&mut self) -> Vec<Acknowledged> {
        std::mem::take(&mut self.acknowledged)
    }

    /// When something is to be done, if nothing else happens before.
    pub fn next_due(&self) -> Option<Time> {
        self.held.next_due().into_iter().chain(self.books.ledger.next_due()).min()
    }

    /// The records.
    pub fn ledger(&self) -> &Ledger {
        &self.books.ledger
    }

    /// What came of all.
    pub fn tally(&self) -> &Tally {
        &self.books.tally
    }

    /// Batches that are not acknowledged.
    pub fn open(&self) -> usize {
        self.books.open.len()
    }

    fn decided(&mut self, key: open::Key) {
        let Books { ledger, open, .. } = &mut self.books;
        if let Some(batch) = open.decided(key, |workload, version| ledger.is_durable(workload, version)) {
            self.acknowledge(batch);
        }
    }

    fn acknowledge(&mut self, batch: Durable) {
        let Durable { key, id, node, sequence, refused } = batch;
        self.agents.durable(&node, sequence, key);
        let refusal = |(reason, count): (Reason, u64)| Refusal { reason: reason.label().to_owned(), count };
        self.acknowledged.push(Acknowledged { id, refusals: refused.into_iter().map(refusal).collect() });
    }
}

fn follow(coverage: &mut Coverage, stay: &Stay<'_>) {
    coverage.start(stay.pod, stay.workload, stay.from);
    if let Some(until) = stay.until {
        coverage.end(stay.pod, until);
    }
}

/// Nothing that is told has happened later than now, whatever the clocks say. Returns when the last of it was.
fn not_later_than(source: &mut Source, now: Time) -> Time {
    let cut = |span: Span| Span::between(span.earliest().min(now), span.latest().min(now));
    let mut latest = Time(i64::MIN);
    for Edge { first, last, .. } in &mut source.edges {
        (*first, *last) = (cut(*first), cut(*last));
        latest = latest.max(last.latest());
    }
    for coverage in &mut source.coverage {
        (coverage.from, coverage.until) = (coverage.from.min(now), coverage.until.min(now));
        latest = latest.max(coverage.until);
    }
    latest
}

#[cfg(test)]
mod tests;
