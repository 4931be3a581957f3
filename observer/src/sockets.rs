//! TCP sockets as netlink's `sock_diag` shows them, and which of them are connections that their program opened. Pure.
//!
//! The socket keeps the destination that the program asked for: iptables (REDIRECT, DNAT) rewrites packets, not sockets. Only a
//! load balancer that rewrites in `connect()` itself leaves nothing but the endpoint that it chose.

use std::collections::HashSet;
use std::net::IpAddr;

use netlink_packet_core::{NlaBuffer, NlasIterator, Parseable as _};
use netlink_packet_sock_diag::constants::{
    TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LISTEN, TCP_SYN_SENT,
};
use netlink_packet_sock_diag::inet::{InetResponseHeader, StateFlags};
use serde::{Deserialize, Serialize};

/// Most listening sockets that one namespace may have. They have to be known all, or accepted sockets would count as outgoing.
pub const MAX_LISTENERS: usize = 65_536;

/// Length of the fixed part of a socket in the kernel's answer.
const HEADER: usize = 72;
/// The attribute that says whether a listening IPv6 socket leaves IPv4 alone.
const V6_ONLY: u16 = 11;

/// A state in which a program still holds the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum State {
    /// Open in both directions.
    Established,
    /// The other side has not answered yet.
    SynSent,
    /// Closed by us, or half of it; not acknowledged yet.
    FinWait1,
    /// Closed by us, or half of it.
    FinWait2,
    /// Closed by the other side.
    CloseWait,
}

impl State {
    /// All of them, as the kernel is asked for them.
    pub fn all() -> StateFlags {
        StateFlags::ESTABLISHED
            | StateFlags::SYN_SENT
            | StateFlags::FIN_WAIT1
            | StateFlags::FIN_WAIT2
            | StateFlags::CLOSE_WAIT
    }
}

/// A connection that its program opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Socket {
    /// User id of the owner, in the user namespace of who asked.
    pub uid: u32,
    /// Destination as the program asked for it; v4-mapped ones as IPv4.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// The kernel's number of the socket, the same as in the records of the kernel programs.
    pub cookie: u64,
    /// Its state.
    pub state: State,
}

/// One socket of the kernel's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It listens.
    Listener(Listener),
    /// It is connected, or is being connected.
    Connected {
        /// Local address and port.
        local: (IpAddr, u16),
        /// The socket as if it were outgoing.
        socket: Socket,
    },
    /// No program holds it: closed and only waiting for the other side, or not accepted yet.
    Orphan,
    /// A state that was not asked for.
    Other,
}

/// A listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Listener {
    /// Its address; v4-mapped ones as IPv4.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// An IPv6 socket that takes no IPv4.
    pub v6_only: bool,
}

/// A socket of the kernel's answer that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's answer about a socket makes no sense")]
pub struct Malformed;

/// Reads one socket of the kernel's answer.
///
/// # Errors
/// When it is cut short or of another family than IPv4 and IPv6.
pub fn decode(payload: &[u8]) -> Result<Entry, Malformed> {
    let (head, attributes) = payload.split_at_checked(HEADER).ok_or(Malformed)?;
    let header = InetResponseHeader::parse(head).map_err(|_| Malformed)?;
    let id = &header.socket_id;
    let local = (id.source_address.to_canonical(), id.source_port);
    let state = match header.state {
        TCP_ESTABLISHED => State::Established,
        TCP_SYN_SENT => State::SynSent,
        TCP_FIN_WAIT1 => State::FinWait1,
        TCP_FIN_WAIT2 => State::FinWait2,
        TCP_CLOSE_WAIT => State::CloseWait,
        TCP_LISTEN => {
            let v6_only = v6_only(attributes)?;
            return Ok(Entry::Listener(Listener { address: local.0, port: local.1, v6_only }));
        }
        _ => return Ok(Entry::Other),
    };
    if header.inode == 0 {
        return Ok(Entry::Orphan);
    }
    let socket = Socket {
        uid: header.uid,
        address: id.destination_address.to_canonical(),
        port: id.destination_port,
        cookie: u64::from_ne_bytes(id.cookie),
        state,
    };
    Ok(Entry::Connected { local, socket })
}

fn v6_only(attributes: &[u8]) -> Result<bool, Malformed> {
    for attribute in NlasIterator::new(attributes) {
        let attribute: NlaBuffer<_> = attribute.map_err(|_| Malformed)?;
        if attribute.kind() == V6_ONLY {
            return Ok(attribute.value().first().is_some_and(|value| *value != 0));
        }
    }
    Ok(false)
}

/// The listening sockets of a namespace.
#[derive(Clone, Debug, Default)]
pub struct Listeners(HashSet<Listener>);

impl Listeners {
    /// One more; false if there are too many to know them all.
    pub fn add(&mut self, listener: Listener) -> bool {
        self.0.insert(listener);
        self.0.len() <= MAX_LISTENERS
    }

    /// Whether a connection with this local address was accepted by one of them.
    ///
    /// An outgoing connection that its program bound to the port of a listener (which takes SO_REUSEPORT, or listening on a
    /// port that is connected already) cannot be told from an accepted one and counts as such. The kernel never chooses such a port
    /// itself.
    pub fn accepted(&self, local: (IpAddr, u16)) -> bool {
        let (address, port) = local;
        let bound = |address, v6_only| self.0.contains(&Listener { address, port, v6_only });
        let any4 = IpAddr::from([0; 4]);
        let any6 = IpAddr::from([0; 16]);
        bound(address, false)
            || bound(address, true)
            || bound(any6, false)
            || match address {
                IpAddr::V4(_) => bound(any4, false),
                IpAddr::V6(_) => bound(any6, true),
            }
    }
}

/// The socket, if its program opened it to somewhere else than its own namespace's loopback.
pub fn outgoing(local: (IpAddr, u16), socket: Socket, listeners: &Listeners) -> Option<Socket> {
    let elsewhere = !socket.address.is_loopback() && !socket.address.is_unspecified();
    (elsewhere && !listeners.accepted(local)).then_some(socket)
}

#[cfg(test)]
mod tests;
