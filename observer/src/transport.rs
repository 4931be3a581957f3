//! The way from agent to aggregator: gRPC over TLS, with limits on whatever a peer can make the aggregator hold.
//!
//! What a peer may cost before it has shown a token of an agent: a connection for [`limits::WITHOUT_SESSION`], its TLS and HTTP/2 state,
//! and none of its messages, which are not read before. What an agent may cost: [`limits::NODE_BYTES`] of messages, over all its
//! streams, old and new. What all may cost: [`limits::ALL_BYTES`]. A message is charged before it is read, by the length that it
//! announces, until it is acknowledged; where there is no room it is left in the peer's hands by HTTP/2's flow control.

pub mod backoff;
pub mod client;
mod codec;
mod connect;
pub mod counts;
mod lengths;
mod listener;
mod metered;
mod nodes;
pub mod server;
mod session;

pub use codec::Codec;
pub use session::{Delivery, Receipt};

#[cfg(test)]
mod tests;

/// Metadata of an answer that tells where the leader is, as `address:port`.
pub const LEADER: &str = "sidescope-leader";

/// Bounds of what a peer can cost.
pub mod limits {
    use std::time::Duration;

    use crate::wire::MAX_MESSAGE_BYTES;

    /// Most connections.
    pub const CONNECTIONS: usize = 8_192;
    /// Most TLS handshakes at a time; more wait in the kernel's queue.
    pub const HANDSHAKES: usize = 128;
    /// How long a handshake may take.
    pub const HANDSHAKE: Duration = Duration::from_secs(10);
    /// How long a connection may be without a stream of an agent whose token was found good.
    pub const WITHOUT_SESSION: Duration = Duration::from_secs(15);
    /// How long a connection may be silent. Peers answer pings.
    pub const SILENCE: Duration = Duration::from_secs(40);
    /// How often a peer is sent a ping, and how long it may take to answer.
    pub const PING: Duration = Duration::from_secs(10);
    /// Streams of one connection: one, and what is left of one that it gave up.
    pub const STREAMS: u32 = 4;
    /// Bytes of a request's headers; a token has one to two thousand.
    pub const HEADER_BYTES: u32 = 16 << 10;
    /// What a peer may send without being asked for more: held for it, so it stays at HTTP/2's smallest for a connection.
    pub const WINDOW_BYTES: u32 = 65_535;
    /// Batches of one stream that are not acknowledged yet.
    pub const UNACKNOWLEDGED: usize = 4;
    /// Bytes of messages of one node, over all its streams.
    pub const NODE_BYTES: usize = 2 * MAX_MESSAGE_BYTES;
    /// Bytes of messages over all nodes.
    pub const ALL_BYTES: usize = 48 << 20;
    /// How long the rest of a message may take that has begun to come in.
    pub const MESSAGE: Duration = Duration::from_secs(30);
    /// How long a peer may take to read what it is sent.
    pub const READ: Duration = Duration::from_secs(30);
    /// How long it may take to find a token good.
    pub const AUTHENTICATION: Duration = Duration::from_secs(10);
    /// How long streams may take to end when the server does.
    pub const SHUTDOWN: Duration = Duration::from_secs(3);
}
