//! Puts the pieces together that the kernel hands on of HTTP/1 heads, TLS hellos and split names, and reads the hosts in them.
//!
//! Only a head whose host has not come yet is kept, and its bytes are wiped as soon as it has, or when there is no more hope.

use std::collections::{HashMap, VecDeque};

use sidescope_common::{EdgeKey, HEAD_BYTES, HeadEvent, head_format};
use zeroize::Zeroizing;

use crate::authority::{HeadError, RequestHost, host_of_bytes};
use crate::hpack;
use crate::http1::request_host;
use crate::model::names::Host;
use crate::tls::{ServerName, TlsError, server_name};

/// Heads that wait for their next piece at the same time, at most; 1 MiB of bytes.
const MAX_PARTIAL: usize = 256;

/// What a piece led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The request names this host.
    Host(Host),
    /// The request names no host, or an address.
    NoName,
    /// It is no request, but another protocol.
    NoRequest,
    /// The next piece may tell.
    Waiting,
    /// The host of a request cannot be told.
    Unreadable(Unreadable),
}

/// Why the host of a request cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unreadable {
    /// A piece before this one is missing.
    MissingPiece,
    /// No host within [`HEAD_BYTES`].
    TooLong,
    /// It began like a request and is none, or its host is no DNS name.
    Malformed,
    /// Too many heads were waiting; the oldest was given up.
    Crowded,
}

/// The heads that wait for their next piece.
#[derive(Debug, Default)]
pub struct Heads {
    partial: HashMap<u64, Partial>,
    /// Sockets by age. May hold some that are no longer in `partial`.
    order: VecDeque<(u64, u32)>,
}

#[derive(Debug)]
struct Partial {
    request: u32,
    key: EdgeKey,
    bytes: Zeroizing<Vec<u8>>,
}

impl Heads {
    /// Takes one piece. `evicted` is told the edge of a head that had to be given up for this one.
    pub fn feed(&mut self, event: &HeadEvent, piece: &[u8], mut evicted: impl FnMut(EdgeKey)) -> Outcome {
        if event.offset == 0 {
            if let Some(partial) = self.partial.remove(&event.socket)
                && partial.request != event.request
            {
                // The head before this one will never be complete. The socket may have had another destination then.
                evicted(partial.key);
            }
            let outcome = outcome(event, piece);
            if outcome == Outcome::Waiting {
                self.keep(event, piece, &mut evicted);
            }
            return outcome;
        }
        let Some(partial) = self.partial.get_mut(&event.socket) else {
            // The host was found in an earlier piece, or that piece was lost: then the kernel counted it and marked the edge.
            return Outcome::NoName;
        };
        if partial.request != event.request || partial.bytes.len() != usize::from(event.offset) {
            self.partial.remove(&event.socket);
            return Outcome::Unreadable(Unreadable::MissingPiece);
        }
        let room = HEAD_BYTES.saturating_sub(partial.bytes.len());
        partial.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        let outcome = outcome(event, &partial.bytes);
        if outcome != Outcome::Waiting {
            self.partial.remove(&event.socket);
        }
        outcome
    }

    /// Gives up those that wait and are `of` such an edge, and returns their edges: their hosts will not be told any more.
    pub fn give_up(&mut self, of: impl Fn(&EdgeKey) -> bool) -> Vec<EdgeKey> {
        self.partial.extract_if(|_, partial| of(&partial.key)).map(|(_, partial)| partial.key).collect()
    }

    fn keep(&mut self, event: &HeadEvent, piece: &[u8], evicted: &mut impl FnMut(EdgeKey)) {
        while self.partial.len() >= MAX_PARTIAL {
            let Some((socket, request)) = self.order.pop_front() else {
                break;
            };
            if self.partial.get(&socket).is_some_and(|partial| partial.request == request) {
                evicted(self.partial.remove(&socket).expect("looked up just now").key);
            }
        }
        if self.order.len() >= 2 * MAX_PARTIAL {
            let partial = &self.partial;
            self.order.retain(|(socket, request)| partial.get(socket).is_some_and(|p| p.request == *request));
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEAD_BYTES));
        bytes.extend_from_slice(piece);
        self.order.push_back((event.socket, event.request));
        self.partial.insert(event.socket, Partial { request: event.request, key: event.key, bytes });
    }
}

fn outcome(event: &HeadEvent, bytes: &[u8]) -> Outcome {
    match read(event, bytes) {
        Ok(RequestHost::Name(host)) => Outcome::Host(host),
        Ok(RequestHost::Address(_) | RequestHost::None) => Outcome::NoName,
        Err(HeadError::Incomplete) if bytes.len() < HEAD_BYTES => Outcome::Waiting,
        Err(HeadError::Incomplete) => Outcome::Unreadable(Unreadable::TooLong),
        Err(HeadError::OtherProtocol) => Outcome::NoRequest,
        Err(HeadError::NotHttp | HeadError::BadHost) => Outcome::Unreadable(Unreadable::Malformed),
    }
}

fn read(event: &HeadEvent, bytes: &[u8]) -> Result<RequestHost, HeadError> {
    match event.format {
        head_format::HTTP1 => request_host(bytes),
        head_format::TLS => match server_name(bytes) {
            Ok(ServerName::Name(host)) => Ok(RequestHost::Name(host)),
            Ok(ServerName::None) => Ok(RequestHost::None),
            Err(TlsError::Incomplete) => Err(HeadError::Incomplete),
            // It began like a hello; a name that is none counts as malformed, anything else was not TLS.
            Err(_) => Err(HeadError::NotHttp),
        },
        _ if bytes.len() < usize::from(event.total) => Err(HeadError::Incomplete),
        head_format::HUFFMAN => hpack::authority(bytes, true),
        _ => host_of_bytes(bytes.trim_ascii()),
    }
}

#[cfg(test)]
mod tests {
    use sidescope_common::event_kind;

    use super::*;

    fn event(socket: u64, request: u32, offset: usize) -> HeadEvent {
        let key = EdgeKey { netns: socket, addr: [0; 16], uid: 0, port: 80, reserved: 0 };
        HeadEvent {
            kind: event_kind::HEAD,
            len: 0,
            format: head_format::HTTP1,
            socket,
            offset: offset as u16,
            total: 0,
            request,
            host: 0,
            key,
        }
    }

    fn no_eviction(key: EdgeKey) {
        panic!("{key:?} was given up");
    }

    #[test]
    fn a_head_in_any_two_pieces_gives_its_host() {
        let head = b"GET / HTTP/1.1\r\nCookie: a=b\r\nHost: reviews:9080\r\n\r\n";
        for cut in 1..head.len() {
            let mut heads = Heads::default();
            let first = heads.feed(&event(1, 1, 0), &head[..cut], no_eviction);
            let second = heads.feed(&event(1, 1, cut), &head[cut..], no_eviction);
            let hosts = [first, second].into_iter().filter(|o| matches!(o, Outcome::Host(_))).count();
            assert_eq!(hosts, 1, "cut at {cut}");
            assert!(heads.partial.is_empty(), "cut at {cut}: bytes are kept");
        }
    }

    #[test]
    fn pieces_that_do_not_fit_are_not_put_together() {
        let mut heads = Heads::default();
        assert_eq!(heads.feed(&event(1, 1, 0), b"GET / HT", no_eviction), Outcome::Waiting);
        assert_eq!(
            heads.feed(&event(1, 1, 9), b"TP/1.1\r\nHost: a\r\n\r\n", no_eviction),
            Outcome::Unreadable(Unreadable::MissingPiece)
        );
        assert_eq!(heads.feed(&event(1, 1, 0), b"GET / HT", no_eviction), Outcome::Waiting);
        assert_eq!(
            heads.feed(&event(1, 2, 8), b"TP/1.1\r\nHost: a\r\n\r\n", no_eviction),
            Outcome::Unreadable(Unreadable::MissingPiece)
        );
    }

    #[test]
    fn a_head_that_another_one_cuts_off_is_given_up_for_its_own_edge() {
        let mut heads = Heads::default();
        assert_eq!(heads.feed(&event(1, 1, 0), b"GET / HT", no_eviction), Outcome::Waiting);
        let later = HeadEvent { key: EdgeKey { port: 81, ..event(1, 2, 0).key }, ..event(1, 2, 0) };
        let mut gone = Vec::new();
        heads.feed(&later, b"GET / HT", |key| gone.push(key.port));
        assert_eq!(gone, [80]);
    }

    #[test]
    fn another_protocol_is_no_request_that_could_not_be_read() {
        let mut heads = Heads::default();
        for bytes in [&b"CONNECT {\"verbose\":false}\r\nPING\r\n"[..], b"CAPA\r\n"] {
            assert_eq!(heads.feed(&event(1, 1, 0), bytes, no_eviction), Outcome::NoRequest);
        }
        assert!(heads.partial.is_empty());
    }

    #[test]
    fn a_head_without_a_host_in_reach_is_unreadable() {
        let mut heads = Heads::default();
        let line = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'x'; HEAD_BYTES]].concat();
        assert_eq!(
            heads.feed(&event(1, 1, 0), &line[..HEAD_BYTES], no_eviction),
            Outcome::Unreadable(Unreadable::TooLong)
        );
    }

    #[test]
    fn waiting_heads_are_bounded_and_the_oldest_goes_first() {
        let mut heads = Heads::default();
        let mut gone = Vec::new();
        for socket in 0..MAX_PARTIAL as u64 * 10 {
            heads.feed(&event(socket, 1, 0), b"GET / HT", |key| gone.push(key.netns));
            if socket % 3 == 0 {
                heads.feed(&event(socket, 1, 8), b"TP/1.1\r\nHost: a\r\n", |_| {});
            }
        }
        assert!(heads.partial.len() <= MAX_PARTIAL);
        assert!(heads.order.len() <= 2 * MAX_PARTIAL);
        assert!(gone.is_sorted(), "not by age: {gone:?}");
        assert_eq!(
            gone.len() + heads.give_up(|_| true).len(),
            MAX_PARTIAL * 10 * 2 / 3,
            "some were forgotten"
        );
    }
}
