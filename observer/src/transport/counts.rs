//! What was refused or given up, by reason. The set of reasons is fixed, so nothing that a peer sends can make it grow.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident = $label:literal,)*) => {
        /// Why something was refused or given up.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $reason,)* }

        impl Reason {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$reason,)*];

            /// As a metric's label has it.
            pub fn label(self) -> &'static str {
                match self { $(Self::$reason => $label,)* }
            }
        }
    };
}

reasons! {
    /// A connection: there were as many as may be.
    ConnectionsFull = "connectionsFull",
    /// What came was no TLS 1.3 handshake.
    HandshakeFailed = "handshakeFailed",
    /// The handshake took too long.
    HandshakeSlow = "handshakeSlow",
    /// A connection that ended without a stream of an agent: garbage within TLS, a scanner, an agent that was refused.
    NoSession = "noSession",
    /// A connection with a stream that was silent for too long.
    Silent = "silent",
    /// A request for something else than to report.
    UnknownMethod = "unknownMethod",
    /// A request while this replica did not lead.
    NotLeader = "notLeader",
    /// A request without a bearer token.
    TokenMissing = "tokenMissing",
    /// A token that the API server does not know, or no longer.
    TokenInvalid = "tokenInvalid",
    /// A token for another audience.
    TokenAudience = "tokenAudience",
    /// A token of another service account.
    TokenAccount = "tokenAccount",
    /// A token that names no node, or no pod.
    TokenWithoutNode = "tokenWithoutNode",
    /// The API server could not be asked.
    TokenUnchecked = "tokenUnchecked",
    /// A message that is larger than any may be.
    MessageTooLarge = "messageTooLarge",
    /// A message that no agent of ours sends.
    MessageMalformed = "messageMalformed",
    /// A message that began and did not end in time.
    MessageSlow = "messageSlow",
    /// A batch out of order.
    BatchOutOfOrder = "batchOutOfOrder",
    /// More batches than may be unacknowledged.
    TooManyUnacknowledged = "tooManyUnacknowledged",
    /// A peer that does not read its answers.
    SlowReader = "slowReader",
    /// A stream that gave way to a newer one of its node.
    Replaced = "replaced",
    /// A stream that ended because a batch of it could not be kept.
    BatchDropped = "batchDropped",
}

/// How often, by reason.
#[derive(Debug, Default)]
pub struct Counts {
    counts: [AtomicU64; Reason::ALL.len()],
}

impl Counts {
    /// Once more.
    pub fn add(&self, reason: Reason) {
        self.counts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often so far, of those that have happened, by label.
    pub fn labelled(&self) -> BTreeMap<&'static str, u64> {
        let all = Reason::ALL.iter().map(|reason| (reason.label(), self.get(*reason)));
        all.filter(|(_, count)| *count > 0).collect()
    }

    /// How often so far.
    pub fn get(&self, reason: Reason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }
}
