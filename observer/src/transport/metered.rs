//! A request's body that charges each message before it lets it through.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use http_body::{Frame, SizeHint};
use prost::bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::lengths::Lengths;
use super::limits;
use super::nodes::{Charge, Node};
use crate::wire::MAX_MESSAGE_BYTES;

/// The charges of the messages that were let through, in their order; the session takes one for each message.
#[derive(Clone, Debug, Default)]
pub(super) struct Charges(Arc<Mutex<VecDeque<Charge>>>);

impl Charges {
    pub(super) fn next(&self) -> Option<Charge> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    fn add(&self, charges: Vec<Charge>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(charges);
    }
}

type Charging = Pin<Box<dyn Future<Output = Vec<Charge>> + Send>>;

pub(super) struct Metered {
    body: Body,
    node: Arc<Node>,
    all: Arc<Semaphore>,
    charges: Charges,
    lengths: Lengths,
    /// Bytes that wait for their charge.
    waiting: Option<(Bytes, Charging)>,
    /// When the message that has begun must have ended.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Metered {
    pub(super) fn new(body: Body, node: Arc<Node>, all: Arc<Semaphore>, charges: Charges) -> Self {
        Self { body, node, all, charges, lengths: Lengths::default(), waiting: None, deadline: None }
    }

    fn through(&mut self, data: Bytes, new_message: bool) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.lengths.within_message() {
            self.deadline = None;
        } else if new_message || self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep(limits::MESSAGE)));
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some((data, mut charging)) = this.waiting.take() {
                let Poll::Ready(charges) = charging.as_mut().poll(cx) else {
                    this.waiting = Some((data, charging));
                    return Poll::Pending;
                };
                this.charges.add(charges);
                return this.through(data, true);
            }
            if let Some(deadline) = &mut this.deadline
                && deadline.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(Some(Err(Status::deadline_exceeded(format!(
                    "the rest of a message did not come within {:?}",
                    limits::MESSAGE
                )))));
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            };
            let begun = this.lengths.feed(&data);
            if begun.is_empty() {
                return this.through(data, false);
            }
            let (node, all) = (Arc::clone(&this.node), Arc::clone(&this.all));
            let charging = async move {
                let mut charges = Vec::with_capacity(begun.len());
                for bytes in begun {
                    // A larger one is refused as soon as its header is read.
                    let bytes = bytes.min(MAX_MESSAGE_BYTES);
                    charges.push(Arc::clone(&node).charge(Arc::clone(&all), bytes).await);
                }
                charges
            };
            this.waiting = Some((data, Box::pin(charging)));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
