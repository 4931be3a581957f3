//! What there is while this replica leads.

use std::collections::HashMap;
use std::sync::Arc;

use kube::Client;

use crate::desk::{Acknowledged, BatchId, Desk, Taken};
use crate::ledger::{Ledger, Outcome};
use crate::model::names::WorkloadRef;
use crate::model::time::Time;
use crate::registry::Registry;
use crate::store::Store;
use crate::transport::{Delivery, Receipt};

/// Writes that go on at the same time.
const WRITES: usize = 32;
/// Edges that are looked at in one turn; some milliseconds.
const EDGES: usize = 2_000;

/// The desk with its way to agents and to the stored records. When it is dropped, the streams of all agents whose batches are not
/// acknowledged end, and the writes that go on.
pub(super) struct Leading {
    pub(super) desk: Desk,
    store: Store,
    receipts: HashMap<BatchId, Receipt>,
    next: BatchId,
}

impl Leading {
    pub(super) fn new(client: Client, ledger: Ledger, registry: &mut Registry, now: Time) -> Self {
        let desk = Desk::new(ledger, registry, now);
        Self { desk, store: Store::new(client), receipts: HashMap::new(), next: 0 }
    }

    pub(super) fn take(&mut self, delivery: Delivery, now: Time) {
        let Delivery { reporter, batch, receipt } = delivery;
        let id = self.next;
        self.next += 1;
        match self.desk.take(&reporter.node, batch, id, now) {
            Taken::Waits => drop(self.receipts.insert(id, receipt)),
            Taken::InsteadOf(before) => {
                self.receipts.insert(id, receipt);
                // Of a stream that has ended.
                self.receipts.remove(&before);
            }
            Taken::Durable => receipt.acknowledge(Vec::new()),
        }
        self.pass_on(now);
    }

    /// Returns whether more is to be done at once.
    pub(super) fn work(&mut self, registry: &mut Registry, now: Time) -> bool {
        let more = self.desk.work(registry, now, EDGES);
        self.pass_on(now);
        more
    }

    /// Waits for the end of a write; never ends where none goes on. May be dropped at any time.
    pub(super) async fn finished(&mut self) -> (Arc<WorkloadRef>, Outcome) {
        match self.store.finished().await {
            Some(finished) => finished,
            None => std::future::pending().await,
        }
    }

    pub(super) fn written(&mut self, (workload, outcome): (Arc<WorkloadRef>, Outcome), now: Time) {
        self.desk.written(&workload, outcome, now);
        self.pass_on(now);
    }

    /// Starts what is to be written, and acknowledges what is durable.
    fn pass_on(&mut self, now: Time) {
        self.store.start(self.desk.writes(now, WRITES));
        for Acknowledged { id, refusals } in self.desk.acknowledged() {
            if let Some(receipt) = self.receipts.remove(&id) {
                receipt.acknowledge(refusals);
            }
        }
    }
}
