//! The agent's side: keeps a stream to the leader, and sends what the agent has to tell.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{debug, info, warn};

use super::backoff::delay;
use super::connect::{ConnectError, Stream, of_status, round};
use crate::clock::Exchange;
use crate::model::time::Time;
use crate::wire::proto::{Ack, Ask, Batch, FromAgent, from_agent, to_agent};

/// How often the clocks are compared.
const MEASURE: Duration = Duration::from_secs(60);
/// How long what is not acknowledged at the end is waited for.
const LAST: Duration = Duration::from_secs(4);
/// A stream that lived for so long was a good one.
const GOOD: Duration = Duration::from_secs(30);

/// Where the aggregator is, and how both know each other.
#[derive(Clone, Debug)]
pub struct Config {
    /// `name:port` of a headless Service, which stands for all replicas, or one address.
    pub address: String,
    /// Name that the certificate must be for.
    pub server_name: String,
    /// File with the authorities to trust, in PEM form.
    pub bundle: PathBuf,
    /// File with the agent's token.
    pub token: PathBuf,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub clock: fn() -> u64,
}

/// What an agent has to tell; a pure structure of the agent's own, of which this is the side that the sender sees.
pub trait Outbox: Send + 'static {
    /// The next batch that was not sent yet in this stream; `None` while there is nothing, or [`super::limits::UNACKNOWLEDGED`] batches
    /// are on their way. Sequences grow.
    fn next(&mut self) -> Option<Batch>;
    /// There is a new stream: what was not acknowledged is to be sent again, first and in its order.
    fn restart(&mut self);
    /// Everything up to this batch is durable.
    fn acknowledge(&mut self, ack: &Ack);
    /// The clocks were compared. The first comparison of a stream comes before its first batch.
    fn measure(&mut self, exchange: &Exchange);
    /// Whether everything that is to be told was acknowledged.
    fn is_empty(&self) -> bool;
}

/// An outbox that the agent fills and the client empties.
#[derive(Debug)]
pub struct Shared<O> {
    outbox: Mutex<O>,
    /// There may be something to send.
    news: Notify,
    /// Something came from the aggregator.
    heard: Notify,
}

impl<O: Outbox> Shared<O> {
    /// Puts the outbox between the two.
    pub fn new(outbox: O) -> Arc<Self> {
        Arc::new(Self { outbox: Mutex::new(outbox), news: Notify::new(), heard: Notify::new() })
    }

    /// Looks into the outbox or changes it; the client looks for something to send afterwards.
    pub fn with<T>(&self, change: impl FnOnce(&mut O) -> T) -> T {
        let result = change(&mut self.lock());
        self.news.notify_one();
        result
    }

    /// Waits until something has come from the aggregator since this was last waited for: an acknowledgement, or a measurement. For one
    /// who waits; [`run`] does when it ends.
    pub async fn heard(&self) {
        self.heard.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, O> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sends until `shutdown`, and then for up to 4 s what is left.
pub async fn run<O: Outbox>(config: Config, shared: Arc<Shared<O>>, shutdown: impl Future<Output = ()>) {
    let finish = async {
        shutdown.await;
        let settled = async {
            // `notify_one` leaves a mark for who does not wait yet, so nothing is missed in between.
            while !shared.lock().is_empty() {
                shared.heard().await;
            }
        };
        if timeout(LAST, settled).await.is_err() {
            warn!(
                "the aggregator did not acknowledge everything before the agent ended; the agent's next life tells what is left"
            );
        }
    };
    tokio::select! {
        () = finish => {}
        () = send(&config, &shared) => {}
    }
}

/// Never ends.
async fn send<O: Outbox>(config: &Config, shared: &Shared<O>) {
    let mut failures = 0;
    let mut leader: Option<SocketAddr> = None;
    let mut told = Told::default();
    loop {
        match round(config, leader.take()).await {
            Ok(stream) => {
                let address = stream.address;
                info!(%address, "connected to the aggregator");
                told.connected();
                shared.lock().restart();
                let since = Instant::now();
                let mut acknowledged = false;
                let end = exchange(config.clock, shared, stream, &mut acknowledged).await;
                if acknowledged || since.elapsed() >= GOOD {
                    failures = 0;
                }
                if let ConnectError::NotLeader { leader: named } = &end {
                    leader = *named;
                }
                told.tell(&address.to_string(), &end);
            }
            Err(errors) => {
                for (address, err) in &errors {
                    told.tell(address, err);
                }
            }
        }
        sleep(delay(failures, fastrand::f64())).await;
        failures = failures.saturating_add(1);
    }
}

/// One stream, until it ends.
async fn exchange<O: Outbox>(
    clock: fn() -> u64,
    shared: &Shared<O>,
    stream: Stream,
    acknowledged: &mut bool,
) -> ConnectError {
    let Stream { out, mut answers, .. } = stream;
    let mut measure = interval(MEASURE);
    measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The question that waits for its answer, and whether one was answered.
    let (mut asked, mut measured) = (None, false);
    loop {
        let message = tokio::select! {
            answer = answers.message() => match answer {
                Ok(Some(answer)) => {
                    let answered_ns = clock();
                    match answer.message {
                        Some(to_agent::Message::Answer(answer)) if asked == Some(answer.asked_ns) => {
                            asked = None;
                            measured = true;
                            shared.lock().measure(&Exchange {
                                asked_ns: answer.asked_ns,
                                received: Time(answer.received),
                                replied: Time(answer.replied),
                                answered_ns,
                            });
                            shared.heard.notify_one();
                        }
                        Some(to_agent::Message::Ack(ack)) => {
                            *acknowledged = true;
                            for refusal in &ack.refusals {
                                debug!(reason = %refusal.reason.escape_debug(), count = refusal.count, "the aggregator refused a part of a batch");
                            }
                            shared.lock().acknowledge(&ack);
                            shared.heard.notify_one();
                        }
                        // An answer to nothing, or a message of a later version.
                        _ => {}
                    }
                    None
                }
                Ok(None) => return ConnectError::Refused { code: tonic::Code::Ok, message: "the aggregator ended the stream".to_owned() },
                Err(status) => return of_status(status),
            },
            _ = measure.tick(), if asked.is_none() => {
                let asked_ns = clock();
                asked = Some(asked_ns);
                Some(from_agent::Message::Ask(Ask { asked_ns }))
            }
            () = shared.news.notified() => None,
        };
        let batches = std::iter::from_fn(|| {
            // Without the clocks compared, times mean nothing there.
            let batch = if measured { shared.lock().next() } else { None };
            batch.map(from_agent::Message::Batch)
        });
        for message in message.into_iter().chain(batches) {
            match out.try_send(FromAgent { message: Some(message) }) {
                Ok(()) => {}
                // The stream has ended; why it did comes with the next answer.
                Err(TrySendError::Closed(_)) => break,
                Err(TrySendError::Full(_)) => {
                    let message = "more batches were to be sent than may be unacknowledged".to_owned();
                    return ConnectError::Refused { code: tonic::Code::Internal, message };
                }
            }
        }
    }
}

/// Errors are told once, not with each try; again after a stream in between.
#[derive(Debug, Default)]
struct Told {
    errors: HashMap<String, String>,
}

impl Told {
    /// Addresses whose errors are remembered; those of pods that are gone make room.
    const MOST: usize = 64;

    fn connected(&mut self) {
        self.errors.clear();
    }

    fn tell(&mut self, address: &str, err: &ConnectError) {
        if matches!(err, ConnectError::NotLeader { leader: Some(_) }) {
            debug!(%address, %err, "not the leader");
            return;
        }
        let text = err.to_string();
        if self.errors.get(address) == Some(&text) {
            debug!(%address, err = %text, "no stream to the aggregator, as before");
            return;
        }
        warn!(%address, err = %text, "no stream to the aggregator; it is tried again, and nothing is forgotten meanwhile");
        if self.errors.len() == Self::MOST {
            self.errors.clear();
        }
        self.errors.insert(address.to_owned(), text);
    }
}
