//! One stream of one agent, from its first message to its end.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};
use tracing::debug;

use super::counts::{Counts, Reason};
use super::limits;
use super::listener::InUse;
use super::metered::Charges;
use super::nodes::{Charge, Node};
use super::server::not_leader;
use crate::election::Leader;
use crate::model::time::Time;
use crate::trust::tokens::Reporter;
use crate::wire::proto::{Ack, Answer, FromAgent, Refusal, ToAgent, from_agent, to_agent};
use crate::wire::{Batch, Epoch};

/// A batch for who keeps them.
#[derive(Debug)]
pub struct Delivery {
    /// Whose token it came with.
    pub reporter: Arc<Reporter>,
    /// What it tells.
    pub batch: Batch,
    /// To say when it is durable.
    pub receipt: Receipt,
}

/// What is owed for a batch: word that it is durable. Dropped without, it ends the stream, and the agent sends the batch again.
#[derive(Debug)]
pub struct Receipt {
    sequence: u64,
    outcome: Option<mpsc::OwnedPermit<Outcome>>,
    _charge: Option<Charge>,
    _in_flight: OwnedSemaphorePermit,
    /// The node's bounds, which hold over all its streams, live for as long as something is held of it.
    _node: Arc<Node>,
}

#[derive(Debug)]
struct Outcome {
    sequence: u64,
    /// `None`: it was dropped.
    refusals: Option<Vec<Refusal>>,
}

impl Receipt {
    /// The batch is durable, except for what of it was refused. The agent hears of it when those before it are, too.
    pub fn acknowledge(mut self, refusals: Vec<Refusal>) {
        self.tell(Some(refusals));
    }

    fn tell(&mut self, refusals: Option<Vec<Refusal>>) {
        if let Some(outcome) = self.outcome.take() {
            outcome.send(Outcome { sequence: self.sequence, refusals });
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.tell(None);
    }
}

/// What a stream needs.
pub(super) struct Session {
    pub(super) reporter: Arc<Reporter>,
    pub(super) node: Arc<Node>,
    pub(super) charges: Charges,
    pub(super) counts: Arc<Counts>,
    pub(super) deliveries: mpsc::Sender<Delivery>,
    pub(super) leader: watch::Receiver<Leader>,
    pub(super) stopping: watch::Receiver<bool>,
    pub(super) clock: fn() -> Time,
    pub(super) replaced: oneshot::Receiver<()>,
    pub(super) _in_use: InUse,
}

/// Answers to an agent.
pub(super) type Answers = mpsc::Sender<Result<ToAgent, Status>>;

impl Session {
    /// Runs until the stream ends, and tells the agent why it does.
    pub(super) async fn run(mut self, messages: Streaming<FromAgent>, answers: Answers) {
        let (mut leader, mut stopping) = (self.leader.clone(), self.stopping.clone());
        let (_never, mut replaced) = oneshot::channel();
        std::mem::swap(&mut replaced, &mut self.replaced);
        let end = tokio::select! {
            biased;
            () = until(&mut stopping, |stopping| *stopping) => Err(ended()),
            () = until(&mut leader, |leader| *leader != Leader::Me) => Err(not_leader(*self.leader.borrow())),
            Ok(()) = replaced => {
                self.counts.add(Reason::Replaced);
                Err(Status::aborted("a newer stream of this node took the place of this one"))
            }
            () = answers.closed() => Ok(()),
            end = self.exchange(messages, &answers) => end,
        };
        if let Err(status) = end {
            debug!(node = %self.reporter.node, code = ?status.code(), why = status.message(), "a stream ends");
            // A peer that does not read learns of it by the end of its connection.
            drop(answers.try_send(Err(status)));
        }
    }

    fn refuse(&self, reason: Reason, status: Status) -> Status {
        self.counts.add(reason);
        status
    }

    async fn exchange(&self, mut messages: Streaming<FromAgent>, answers: &Answers) -> Result<(), Status> {
        let (outcomes, mut told) = mpsc::channel::<Outcome>(limits::UNACKNOWLEDGED);
        let mut unacknowledged = Unacknowledged::default();
        let mut waiting: VecDeque<(Batch, Option<Charge>)> = VecDeque::new();
        // Kept from round to round, so that it does not lose its place among the others'.
        let mut place: Option<Pin<Box<dyn Future<Output = Option<Place>> + Send>>> = None;
        loop {
            if place.is_none() && !waiting.is_empty() {
                place = Some(Box::pin(find_place(Arc::clone(&self.node), self.deliveries.clone())));
            }
            tokio::select! {
                message = messages.message() => {
                    let received = (self.clock)();
                    let message = message.map_err(|status| self.bad_message(status))?;
                    let Some(message) = message else { return Ok(()) };
                    let charge = self.charges.next();
                    match message.message {
                        Some(from_agent::Message::Ask(ask)) => {
                            let answer = Answer { asked_ns: ask.asked_ns, received: received.0, replied: (self.clock)().0 };
                            self.answer(answers, to_agent::Message::Answer(answer)).await?;
                        }
                        Some(from_agent::Message::Batch(batch)) => {
                            let batch = Batch::try_from(batch).map_err(|err| {
                                self.refuse(Reason::MessageMalformed, Status::invalid_argument(err.to_string()))
                            })?;
                            unacknowledged.add(&batch).map_err(|(reason, status)| self.refuse(reason, status))?;
                            waiting.push_back((batch, charge));
                        }
                        None => {
                            let status = Status::invalid_argument("the message is neither a question nor a batch");
                            return Err(self.refuse(Reason::MessageMalformed, status));
                        }
                    }
                }
                Some(outcome) = told.recv() => {
                    let Some(refusals) = outcome.refusals else {
                        let status = Status::unavailable("a batch could not be kept; send it again");
                        return Err(self.refuse(Reason::BatchDropped, status));
                    };
                    if let Some(ack) = unacknowledged.durable(outcome.sequence, refusals) {
                        self.answer(answers, to_agent::Message::Ack(ack)).await?;
                    }
                }
                found = async { place.as_mut().expect("there is one where the condition holds").await }, if place.is_some() => {
                    place = None;
                    let (Some(found), Some((batch, charge))) = (found, waiting.pop_front()) else { return Err(ended()) };
                    let outcome = outcomes.clone().try_reserve_owned();
                    let receipt = Receipt {
                        sequence: batch.sequence,
                        outcome: Some(outcome.expect("it has room for all that may be unacknowledged")),
                        _charge: charge,
                        _in_flight: found.in_flight,
                        _node: Arc::clone(&self.node),
                    };
                    found.delivery.send(Delivery { reporter: Arc::clone(&self.reporter), batch, receipt });
                }
            }
        }
    }

    async fn answer(&self, answers: &Answers, message: to_agent::Message) -> Result<(), Status> {
        match timeout(limits::READ, answers.send(Ok(ToAgent { message: Some(message) }))).await {
            // Nobody reads any more: the stream is about to end.
            Ok(_) => Ok(()),
            Err(_) => Err(self.refuse(
                Reason::SlowReader,
                Status::deadline_exceeded(format!("answers were not read within {:?}", limits::READ)),
            )),
        }
    }

    fn bad_message(&self, status: Status) -> Status {
        match status.code() {
            Code::OutOfRange | Code::ResourceExhausted => self.counts.add(Reason::MessageTooLarge),
            Code::InvalidArgument | Code::Unimplemented | Code::Internal => {
                self.counts.add(Reason::MessageMalformed);
            }
            Code::DeadlineExceeded => self.counts.add(Reason::MessageSlow),
            // The connection broke, or the agent gave up.
            _ => {}
        }
        status
    }
}

/// Also ends when nobody is left who could change the value.
async fn until<T>(value: &mut watch::Receiver<T>, holds: impl FnMut(&T) -> bool) {
    drop(value.wait_for(holds).await);
}

/// Room for a batch with its owner.
struct Place {
    delivery: mpsc::OwnedPermit<Delivery>,
    in_flight: OwnedSemaphorePermit,
}

/// `None`: the owner is gone.
async fn find_place(node: Arc<Node>, deliveries: mpsc::Sender<Delivery>) -> Option<Place> {
    let in_flight = Arc::clone(&node.batches).acquire_owned().await.ok()?;
    Some(Place { delivery: deliveries.reserve_owned().await.ok()?, in_flight })
}

fn ended() -> Status {
    Status::unavailable("this aggregator ends; another one takes over")
}

/// The batches of a stream that were not acknowledged yet, in their order.
#[derive(Debug, Default)]
struct Unacknowledged {
    last: Option<(Epoch, u64)>,
    batches: VecDeque<(u64, Option<Vec<Refusal>>)>,
}

impl Unacknowledged {
    fn add(&mut self, batch: &Batch) -> Result<(), (Reason, Status)> {
        if let Some((epoch, sequence)) = self.last
            && (epoch != batch.epoch || batch.sequence <= sequence)
        {
            let what = "a stream's batches are of one epoch, each with a larger sequence than those before";
            return Err((Reason::BatchOutOfOrder, Status::invalid_argument(what)));
        }
        if self.batches.len() == limits::UNACKNOWLEDGED {
            let what = format!("more than {} batches that were not acknowledged", limits::UNACKNOWLEDGED);
            return Err((Reason::TooManyUnacknowledged, Status::resource_exhausted(what)));
        }
        self.last = Some((batch.epoch, batch.sequence));
        self.batches.push_back((batch.sequence, None));
        Ok(())
    }

    /// A batch is durable; what to say if all before it are.
    fn durable(&mut self, sequence: u64, refusals: Vec<Refusal>) -> Option<Ack> {
        let (_, told) = self.batches.iter_mut().find(|(of, _)| *of == sequence)?;
        *told = Some(refusals);
        let mut ack = None::<Ack>;
        while let Some((sequence, told @ Some(_))) = self.batches.front_mut() {
            let ack = ack.get_or_insert_default();
            ack.sequence = *sequence;
            for refusal in told.take().into_iter().flatten() {
                match ack.refusals.iter_mut().find(|other| other.reason == refusal.reason) {
                    Some(other) => other.count = other.count.saturating_add(refusal.count),
                    None => ack.refusals.push(refusal),
                }
            }
            self.batches.pop_front();
        }
        ack
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: u8, sequence: u64) -> Batch {
        Batch { epoch: Epoch([epoch; 16]), sequence, sources: vec![] }
    }

    fn refusal(reason: &str, count: u64) -> Refusal {
        Refusal { reason: reason.to_owned(), count }
    }

    #[test]
    fn what_is_durable_is_told_when_all_before_it_is() {
        let mut unacknowledged = Unacknowledged::default();
        for sequence in [3, 4, 7] {
            unacknowledged.add(&batch(1, sequence)).unwrap();
        }
        assert_eq!(unacknowledged.durable(4, vec![refusal("a", 1)]), None);
        assert_eq!(unacknowledged.durable(9, vec![]), None);
        assert_eq!(
            unacknowledged.durable(3, vec![refusal("a", 2), refusal("b", 1)]),
            Some(Ack { sequence: 4, refusals: vec![refusal("a", 3), refusal("b", 1)] })
        );
        assert_eq!(unacknowledged.durable(7, vec![]), Some(Ack { sequence: 7, refusals: vec![] }));
    }

    #[test]
    fn batches_out_of_order_and_too_many_are_refused() {
        let mut unacknowledged = Unacknowledged::default();
        unacknowledged.add(&batch(1, 5)).unwrap();
        for (epoch, sequence) in [(1, 5), (1, 4), (2, 6)] {
            assert_eq!(unacknowledged.add(&batch(epoch, sequence)).unwrap_err().0, Reason::BatchOutOfOrder);
        }
        for sequence in 6..9 {
            unacknowledged.add(&batch(1, sequence)).unwrap();
        }
        assert_eq!(unacknowledged.add(&batch(1, 9)).unwrap_err().0, Reason::TooManyUnacknowledged);
        assert!(unacknowledged.durable(5, vec![]).is_some());
        unacknowledged.add(&batch(1, 9)).unwrap();
    }
}
