//! The task that owns all that is known.

use std::sync::Arc;
use std::time::Duration;

use kube::{Client, Error};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, error, info, warn};

use super::leading::Leading;
use super::now;
use crate::desk::{Counts, Listed, Tally};
use crate::election::Leader;
use crate::ledger::{Ledger, Settings};
use crate::model::time::Time;
use crate::registry::{Registry, Told, take};
use crate::store::{Loaded, Store};
use crate::transport::Delivery;
use crate::transport::counts::Counts as Refused;

/// How often the desk works at most. All that it does not do by itself waits for so long.
const TURN: Duration = Duration::from_millis(50);
/// How often it is said what there is, if that has changed, and what is gone is forgotten; milliseconds.
const MINUTE: i64 = 60_000;
/// When records that could not be read are tried again.
const AGAIN: Duration = Duration::from_secs(5);
/// What is taken over from the watches at once.
const AT_ONCE: usize = 1_024;
/// Edges that are named in the log in a second.
const NAMED: usize = 10;

/// From whom the core hears.
pub(super) struct Queues {
    pub(super) told: mpsc::Receiver<Told>,
    pub(super) deliveries: mpsc::Receiver<Delivery>,
    pub(super) leader: watch::Receiver<Leader>,
}

/// All that is known.
pub(super) struct Core {
    client: Client,
    settings: Settings,
    registry: Registry,
    role: Role,
    since: Time,
    is_ready: bool,
    /// What desks before the present one have decided.
    decided: Counts,
    refused: Arc<Refused>,
    /// What was said last, and when.
    said: (String, Time),
    /// Edges that were listed and named in the log.
    named: u64,
    named_at: Time,
}

/// What this replica does.
enum Role {
    /// Another one leads, or nobody.
    Follows,
    /// It begins to lead.
    Loads(JoinHandle<(Ledger, Loaded)>),
    /// It leads.
    Leads(Box<Leading>),
}

/// Something that has happened.
enum Event {
    Told,
    Leader(Leader),
    Loaded(Box<(Ledger, Loaded)>),
    Delivery(Option<Box<Delivery>>),
    Written((Arc<crate::model::names::WorkloadRef>, crate::ledger::Outcome)),
    Time,
}

impl Core {
    pub(super) fn new(client: Client, settings: Settings, refused: Arc<Refused>, now: Time) -> Self {
        Self {
            client,
            settings,
            registry: Registry::new(now),
            role: Role::Follows,
            since: now,
            is_ready: false,
            decided: Counts::default(),
            refused,
            said: (String::new(), now),
            named: 0,
            named_at: now,
        }
    }

    /// Runs until nobody delivers any more.
    pub(super) async fn run(mut self, mut queues: Queues) -> Counts {
        let mut told = Vec::new();
        let mut turn = Instant::now();
        loop {
            let event = tokio::select! {
                Ok(()) = queues.leader.changed() => Event::Leader(*queues.leader.borrow_and_update()),
                _ = queues.told.recv_many(&mut told, AT_ONCE), if !queues.told.is_closed() => Event::Told,
                () = sleep_until(turn) => Event::Time,
                event = self.role.event() => event,
                delivery = queues.deliveries.recv(), if !matches!(self.role, Role::Loads(_)) => {
                    Event::Delivery(delivery.map(Box::new))
                }
            };
            match event {
                Event::Told => {}
                Event::Leader(leader) => self.lead(leader == Leader::Me),
                Event::Loaded(loaded) => self.loaded(*loaded),
                Event::Delivery(None) => break,
                Event::Delivery(Some(delivery)) => {
                    if let Role::Leads(leading) = &mut self.role {
                        leading.take(*delivery, now());
                    }
                    // Without a desk its receipt is dropped, and the agent keeps it for the next leader.
                }
                Event::Written(written) => {
                    if let Role::Leads(leading) = &mut self.role {
                        leading.written(written, now());
                    }
                }
                Event::Time => {
                    // All that was told before is to be known before something is looked up.
                    while let Ok(more) = queues.told.try_recv() {
                        told.push(more);
                    }
                    self.take_over(&mut told);
                    turn = if self.turn() { Instant::now() } else { Instant::now() + TURN };
                    yield_now().await;
                    continue;
                }
            }
            self.take_over(&mut told);
        }
        self.lead(false);
        self.decided
    }

    fn take_over(&mut self, told: &mut Vec<Told>) {
        for told in told.drain(..) {
            if let Err(unreadable) = take(&mut self.registry, told) {
                warn!("{unreadable}");
            }
        }
    }

    /// It leads from now on, or no longer.
    fn lead(&mut self, leads: bool) {
        match (&mut self.role, leads) {
            (Role::Follows, true) => {
                let (client, settings) = (self.client.clone(), self.settings);
                self.role = Role::Loads(tokio::spawn(load(client, settings)));
            }
            (Role::Follows, false) | (Role::Loads(_) | Role::Leads(_), true) => {}
            (Role::Loads(loading), false) => {
                loading.abort();
                self.role = Role::Follows;
            }
            (Role::Leads(leading), false) => {
                self.decided.add(&leading.desk.tally().counts);
                self.role = Role::Follows;
                info!("another replica may lead; it has what was acknowledged, and agents tell it the rest");
            }
        }
    }

    fn loaded(&mut self, (ledger, loaded): (Ledger, Loaded)) {
        let Loaded { records, foreign, unreadable } = loaded;
        info!(records, foreign, unreadable, "the records were read, and agents' batches are taken");
        let leading = Leading::new(self.client.clone(), ledger, &mut self.registry, now());
        (self.role, self.named) = (Role::Leads(Box::new(leading)), 0);
    }

    /// What is due. Returns whether more is.
    fn turn(&mut self) -> bool {
        let now = now();
        let more = match &mut self.role {
            Role::Leads(leading) => leading.work(&mut self.registry, now),
            Role::Follows | Role::Loads(_) => {
                self.registry.settle(now);
                // A desk begins with all of them.
                drop(self.registry.changed_stays());
                false
            }
        };
        if !self.is_ready && self.registry.is_synced() && !matches!(self.role, Role::Loads(_)) {
            self.is_ready = true;
            let leads = matches!(self.role, Role::Leads(_));
            let size = self.registry.size();
            info!(
                seconds = now.since(self.since) as f64 / 1000.0,
                leads,
                pods = size.pods,
                services = size.services,
                "ready"
            );
        }
        if now.since(self.named_at) >= 1_000 {
            self.named_at = now;
            if let Role::Leads(leading) = &self.role {
                self.named = name(leading.desk.tally(), self.named);
            }
        }
        if now.since(self.said.1) >= MINUTE {
            self.registry.forget(now);
            self.say(now);
        }
        more
    }

    /// Says what there is, if that has changed.
    fn say(&mut self, now: Time) {
        self.said.1 = now;
        let mut decided = self.decided.clone();
        let Role::Leads(leading) = &self.role else { return };
        decided.add(&leading.desk.tally().counts);
        let (decided, refused) = (json(&decided), json(&self.refused.labelled()));
        if self.said.0 != format!("{decided}{refused}") {
            self.said.0 = format!("{decided}{refused}");
            let (open, not_durable) = (leading.desk.open(), leading.desk.ledger().not_durable());
            info!(%decided, %refused, open, not_durable, "so far");
        }
    }
}

impl Role {
    /// Waits for what its own tasks bring. May be dropped at any time.
    async fn event(&mut self) -> Event {
        match self {
            Self::Follows => std::future::pending().await,
            Self::Loads(loading) => match loading.await {
                Ok(loaded) => Event::Loaded(Box::new(loaded)),
                Err(err) => std::panic::resume_unwind(err.into_panic()),
            },
            Self::Leads(leading) => Event::Written(leading.finished().await),
        }
    }
}

/// Reads all records, however long that takes.
async fn load(client: Client, settings: Settings) -> (Ledger, Loaded) {
    let store = Store::new(client);
    let mut told = String::new();
    loop {
        let mut ledger = Ledger::new(settings);
        match store.load(&mut ledger).await {
            Ok(loaded) => return (ledger, loaded),
            Err(err) => {
                let problem = match &err {
                    Error::Api(status) if status.code == 404 => {
                        "the API server does not know WorkloadDependencies: apply deploy/crds (kubectl apply -f deploy/crds); it is tried again".to_owned()
                    }
                    err => format!("the records cannot be read: {err}; it is tried again"),
                };
                if told != problem {
                    error!("{problem}");
                    told = problem;
                }
            }
        }
        sleep(AGAIN).await;
    }
}

/// Names edges in the log that were listed after the first `seen`, but not too many.
fn name(tally: &Tally, seen: u64) -> u64 {
    let (total, new) = tally.since(seen);
    for Listed { node, pod, to, reason, .. } in new.take(NAMED) {
        let pod = pod.as_ref().map(tracing::field::display);
        let to = to.map(|(address, port)| std::net::SocketAddr::new(address, port));
        debug!(%node, pod, to = to.map(tracing::field::display), reason = reason.label(), "not resolved");
    }
    total
}

/// As one field of a line in the log.
pub(super) fn json(counts: &impl Serialize) -> String {
    serde_json::to_string(counts).unwrap_or_else(|err| err.to_string())
}
