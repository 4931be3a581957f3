//! The cluster-wide watches: for each kind, lists what there is and tells what changes, as [`crate::registry`] takes it.
//!
//! How far they can be trusted: a watch lasts for 30 s and is then opened anew, so one that died without a word (its connection is gone
//! and nobody has said so) is taken for a working one for at most 35 s. What breaks with a word, the end of its connection or an error,
//! is told as interrupted at once. A kind that the API server does not know counts as one without objects, and is looked for
//! every 30 s; one that it knew must be unknown to it for 10 s. An object that cannot be read is told as such; all others of its kind
//! are told.
//!
//! Objects are decoded a page of at most 500 at a time, four pages at the same time, into no more than what is read of them.

mod api;
mod machine;
mod resources;

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_stream::StreamExt;
use tracing::{Instrument, error, info, info_span, warn};

use crate::model::time::Time;
use crate::registry::{Kind, Told};
use crate::transport::backoff::delay;
use api::{Api, Changes, Failure};
use machine::{Machine, Step};
use resources::resource_of;

/// How long a page, or any other answer, may take.
const ANSWER: Duration = Duration::from_secs(30);
/// Pages that are read at the same time over all kinds; each may take some megabytes.
const PAGES: usize = 4;
/// How often a kind is looked for that the API server does not know.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// What is to be watched, and who is to know.
pub struct Config {
    /// Way to the API server. It should not try again by itself (`default_retry` of its configuration), as an interruption is to be
    /// told at once.
    pub client: Client,
    /// Which kinds.
    pub kinds: Vec<Kind>,
    /// Takes what the watches tell. They wait while it is full; that it is empty most of the time is what makes them up to date.
    pub told: mpsc::Sender<Told>,
    /// The aggregator's clock.
    pub clock: fn() -> Time,
}

/// Watches until `shutdown`, or until nobody takes what is told any more.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) {
    let Config { client, kinds, told, clock } = config;
    let pages = Arc::new(Semaphore::new(PAGES));
    let mut watches = JoinSet::new();
    for kind in kinds {
        let resource = resource_of(kind);
        let watch = Watch {
            api: Api { client: client.clone(), resource },
            machine: Machine::new(kind, resource.versions.len()),
            changes: None,
            pages: Arc::clone(&pages),
            told: told.clone(),
            clock,
            reported: None,
        };
        watches.spawn(watch.run().instrument(info_span!("watch", kind = kind.name())));
    }
    drop(told);
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            ended = watches.join_next() => match ended {
                Some(Err(err)) if err.is_panic() => resume_unwind(err.into_panic()),
                Some(_) => {}
                None => break,
            },
        }
    }
    watches.shutdown().await;
}

/// The watch of one kind.
struct Watch {
    api: Api,
    machine: Machine,
    /// What the watch tells, while it is open.
    changes: Option<Changes>,
    pages: Arc<Semaphore>,
    told: mpsc::Sender<Told>,
    clock: fn() -> Time,
    /// The failure that was reported last, while it lasts.
    reported: Option<Failure>,
}

impl Watch {
    /// Ends when nobody takes what is told.
    async fn run(mut self) {
        let mut out = Vec::new();
        loop {
            if let Err(failure) = self.step(&mut out).await {
                self.report(failure.clone());
                self.machine.failed(&failure, (self.clock)(), &mut out);
            }
            for told in out.drain(..) {
                if self.told.send(told).await.is_err() {
                    return;
                }
            }
            if self.machine.is_up_to_date() && self.reported.take().is_some() {
                info!("it is watched again");
            }
        }
    }

    async fn step(&mut self, out: &mut Vec<Told>) -> Result<(), Failure> {
        let Self { api, machine, changes, clock, .. } = self;
        match machine.step(clock()) {
            Step::List { version, next } => {
                *changes = None;
                let _turn = self.pages.acquire().await;
                let asked = clock();
                let page = within(ANSWER, api.page(version, next)).await?;
                machine.listed(page, asked, clock(), out);
            }
            Step::Open { version, from, within: patience } => {
                *changes = None;
                *changes = Some(within(patience, api.changes(version, from)).await?);
                machine.opened(clock(), out);
            }
            Step::Compare { version } => {
                let current = within(ANSWER, api.current(version)).await?;
                machine.compared(&current);
            }
            Step::Read { within: patience } => {
                let Some(open) = changes else { return Err(Failure::other("the watch is not open")) };
                match timeout(patience, open.next()).await {
                    Ok(Some(change)) => machine.told(change?, clock(), out),
                    Ok(None) => machine.ended(clock(), out),
                    Err(_) => machine.silent(clock(), out),
                }
            }
            Step::Retry { failures, at_least } => {
                *changes = None;
                sleep(delay(failures.saturating_sub(1), fastrand::f64()).max(at_least)).await;
                machine.waited();
            }
            Step::LookAgain => {
                *changes = None;
                sleep(LOOK_AGAIN).await;
                machine.waited();
            }
        }
        Ok(())
    }

    /// Says what is wrong, once until it is something else.
    fn report(&mut self, failure: Failure) {
        if self.reported.as_ref() == Some(&failure) {
            return;
        }
        match &failure {
            // Both are a matter of course, and have their way.
            Failure::NotFound | Failure::Expired => return,
            Failure::Forbidden(problem) => {
                let resource = self.api.resource.name();
                error!(%resource, %problem, "it may not be watched, and nothing can be attributed; the aggregator's ClusterRole must allow get, list and watch");
            }
            Failure::Other { problem, .. } => {
                warn!(%problem, "it cannot be watched for now; what happens meanwhile waits, and is counted if it has to wait for too long");
            }
        }
        self.reported = Some(failure);
    }
}

/// What comes of a request that may take so long.
async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let late = || Failure::other(format!("the API server did not answer within {} s", patience.as_secs()));
    timeout(patience, answer).await.unwrap_or_else(|_| Err(late()))
}
