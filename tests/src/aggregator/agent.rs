//! An agent that tells what a test wants, through the client that real agents use.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sidescope::clock::Exchange;
use sidescope::transport::client::{self, Config, Outbox, Shared};
use sidescope::transport::limits;
use sidescope::wire::address_bytes;
use sidescope::wire::proto::{Ack, Batch, Coverage, Edge, Source};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::SOON;
use crate::wait::wait_for;

/// One agent, in a runtime of its own.
pub struct Agent {
    shared: Arc<Shared<Tells>>,
    stop: Arc<Notify>,
    task: Option<JoinHandle<()>>,
    runtime: Runtime,
    epoch: [u8; 16],
    config: Config,
}

/// What it has to tell.
#[derive(Default)]
struct Tells {
    waiting: VecDeque<Batch>,
    sent: VecDeque<Batch>,
    last: u64,
    acknowledged: u64,
    refusals: BTreeMap<String, u64>,
}

impl Outbox for Tells {
    fn next(&mut self) -> Option<Batch> {
        if self.sent.len() == limits::UNACKNOWLEDGED {
            return None;
        }
        let batch = self.waiting.pop_front()?;
        self.sent.push_back(batch.clone());
        Some(batch)
    }

    fn restart(&mut self) {
        while let Some(batch) = self.sent.pop_back() {
            self.waiting.push_front(batch);
        }
    }

    fn acknowledge(&mut self, ack: &Ack) {
        self.sent.retain(|batch| batch.sequence > ack.sequence);
        self.acknowledged = self.acknowledged.max(ack.sequence);
        for refusal in &ack.refusals {
            *self.refusals.entry(refusal.reason.clone()).or_default() += refusal.count;
        }
    }

    fn measure(&mut self, _: &Exchange) {}

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.sent.is_empty()
    }
}

impl Agent {
    pub(super) fn start(config: Config) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("cannot start the asynchronous runtime")?;
        let shared = Shared::new(Tells::default());
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let task = runtime
            .spawn(client::run(config.clone(), Arc::clone(&shared), async move { stopped.notified().await }));
        // Different for each, like that of real ones.
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos().to_le_bytes();
        Ok(Self { shared, stop, task: Some(task), runtime, epoch, config })
    }

    /// Tells this as its next batch, and says which that is.
    pub fn tell(&self, sources: Vec<Source>) -> u64 {
        self.shared.with(|tells| {
            tells.last += 1;
            let batch =
                Batch { epoch: self.epoch.to_vec(), sequence: tells.last, clock_error_ms: 20, sources };
            tells.waiting.push_back(batch);
            tells.last
        })
    }

    /// Begins a stream anew, like an agent that has not heard of the acknowledgement of its last batch: tells that once more, and
    /// waits until it is acknowledged again.
    pub fn again(self, last: Vec<Source>) -> Result<Self> {
        let (epoch, sequence, config) =
            (self.epoch, self.shared.with(|tells| tells.last), self.config.clone());
        self.end();
        let mut again = Self::start(config)?;
        again.epoch = epoch;
        again.shared.with(|tells| tells.last = sequence - 1);
        again.tell_and_wait(last)?;
        Ok(again)
    }

    /// The last batch that was acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.shared.with(|tells| tells.acknowledged)
    }

    /// What was refused of its batches.
    pub fn refusals(&self) -> BTreeMap<String, u64> {
        self.shared.with(|tells| tells.refusals.clone())
    }

    /// Waits until a batch, and all before it, are acknowledged.
    pub fn wait_for_ack(&self, sequence: u64) -> Result<()> {
        let what = format!("batch {sequence} to be acknowledged");
        wait_for(&what, SOON, || Ok((self.acknowledged() >= sequence).then_some(())))
    }

    /// Tells this, and waits until it is acknowledged.
    pub fn tell_and_wait(&self, sources: Vec<Source>) -> Result<()> {
        self.wait_for_ack(self.tell(sources))
    }

    /// Ends as real ones do.
    pub fn end(mut self) {
        self.stop.notify_one();
        if let Some(task) = self.task.take() {
            // It ended, or not in time; what it had to tell is told by its next life.
            let ends = async { tokio::time::timeout(Duration::from_secs(8), task).await };
            drop(self.runtime.block_on(ends));
        }
        self.runtime.shutdown_background();
    }
}

/// One pod's part of a batch.
pub fn source(uid: &str, edges: Vec<Edge>) -> Source {
    Source { netns: 1, pod_uid: uid.to_owned(), edges, ..Source::default() }
}

/// A single connect to a port 80, at a time in milliseconds since the Unix epoch.
pub fn edge(address: &str, at: i64, hosts: &[&str]) -> Result<Edge> {
    let address = address.parse().with_context(|| format!("{address} is no address"))?;
    Ok(Edge {
        address: address_bytes(address),
        port: 80,
        first: at,
        last: at,
        connects: 1,
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        ..Edge::default()
    })
}

/// A time through which a pod was watched.
pub fn coverage(from: i64, until: i64, losses: &[&str]) -> Coverage {
    Coverage { from, until, losses: losses.iter().map(|cause| (*cause).to_owned()).collect() }
}

/// One batch's sources: a single pod.
pub fn batch(uid: &str, edges: Vec<Edge>) -> Vec<Source> {
    vec![source(uid, edges)]
}

/// Milliseconds since the Unix epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Nanoseconds of a clock that does not go back.
pub(super) fn monotonic() -> u64 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| Duration::from(time).as_nanos().try_into().unwrap_or(u64::MAX))
}
