//! What each node has in flight, and which of its streams counts.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::limits;
use crate::model::names::ObjectName;

/// Nodes with a stream or with batches in flight.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    nodes: Mutex<HashMap<ObjectName, Weak<Node>>>,
}

/// One node, over all its streams.
#[derive(Debug)]
pub(super) struct Node {
    /// A permit for each batch that the owner has and has not acknowledged.
    pub(super) batches: Arc<Semaphore>,
    /// A permit for each byte of messages.
    bytes: Arc<Semaphore>,
    /// Ends the stream that counts.
    stream: Mutex<Option<oneshot::Sender<()>>>,
}

/// Room for one message; held until the message is done with.
#[derive(Debug)]
pub(super) struct Charge {
    _node: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

impl Nodes {
    /// The node of this name.
    pub(super) fn get(&self, name: &ObjectName) -> Arc<Node> {
        let mut nodes = lock(&self.nodes);
        if let Some(node) = nodes.get(name).and_then(Weak::upgrade) {
            return node;
        }
        nodes.retain(|_, node| node.strong_count() > 0);
        let node = Arc::new(Node {
            batches: Arc::new(Semaphore::new(limits::UNACKNOWLEDGED)),
            bytes: Arc::new(Semaphore::new(limits::NODE_BYTES)),
            stream: Mutex::new(None),
        });
        nodes.insert(name.clone(), Arc::downgrade(&node));
        node
    }
}

impl Node {
    /// A new stream is the one that counts. What comes back is done when it gives way to another; the stream before was told so.
    pub(super) fn replace(&self) -> oneshot::Receiver<()> {
        let (ends, ended) = oneshot::channel();
        if let Some(before) = lock(&self.stream).replace(ends) {
            // An error: it has ended by itself.
            let _ = before.send(());
        }
        ended
    }

    /// Waits for room for a message of this many bytes.
    pub(super) async fn charge(self: Arc<Self>, all: Arc<Semaphore>, bytes: usize) -> Charge {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        const OPEN: &str = "these semaphores are never closed";
        Charge {
            _node: Arc::clone(&self.bytes).acquire_many_owned(permits).await.expect(OPEN),
            _all: all.acquire_many_owned(permits).await.expect(OPEN),
        }
    }
}

/// What these locks guard is whole after any line of code that holds them.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
