//! From the DNS messages that the kernel hands on to names of addresses, per network namespace. Pure.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use sidescope_common::{DnsEvent, HEAD_BYTES};

use crate::dns::{DnsError, answer, tcp_message};
use crate::dns_names::{DnsNames, Limits};
use crate::model::names::Host;

/// Protocol number of TCP.
const TCP: u32 = 6;
/// TCP connections to DNS servers whose messages are put together at the same time.
const MAX_STREAMS: usize = 64;
/// Bytes of an unfinished message that are kept: the longest there is, with its length.
const MAX_PENDING: usize = 2 + 0xffff;

/// Names of addresses, and what could not be read.
#[derive(Debug, Default)]
pub struct Answers {
    names: DnsNames,
    streams: HashMap<u64, Stream>,
    failures: BTreeMap<DnsError, u64>,
    streams_lost: u64,
}

/// The unfinished end of what came on a connection.
#[derive(Debug)]
struct Stream {
    netns: u64,
    next_seq: u32,
    last_ns: u64,
    pending: Vec<u8>,
}

impl Answers {
    /// An empty table.
    pub fn new() -> Self {
        Self { names: DnsNames::new(Limits::default()), ..Self::default() }
    }

    /// Takes a message, or a piece of a stream of them. Returns the network namespaces of which something was lost.
    pub fn take(&mut self, event: &DnsEvent, bytes: &[u8]) -> Vec<u64> {
        let before = self.losses();
        let mut others = Vec::new();
        self.read(event, bytes, &mut others);
        let own = (self.losses() - before) as usize > others.len();
        others.extend(own.then_some(event.netns));
        others
    }

    /// The same; leaves in `others` whose names or streams had to go for this one.
    fn read(&mut self, event: &DnsEvent, bytes: &[u8], others: &mut Vec<u64>) {
        if event.transport != TCP {
            return others.extend(self.message(event, bytes));
        }
        let Some(stream) = self.stream(event, others) else { return };
        // Sent again.
        if stream.next_seq.wrapping_sub(event.seq) as usize == bytes.len() {
            return;
        }
        // The kernel hands on at most so much of a segment.
        if stream.next_seq != event.seq || bytes.len() >= HEAD_BYTES || stream.pending.len() > MAX_PENDING {
            self.streams.remove(&event.socket);
            self.streams_lost += 1;
            return;
        }
        stream.next_seq = event.seq.wrapping_add(bytes.len() as u32);
        stream.last_ns = event.time_ns;
        stream.pending.extend_from_slice(bytes);
        let mut pending = std::mem::take(&mut stream.pending);
        let mut read = 0;
        loop {
            match tcp_message(&pending[read..]) {
                Ok(Some((message, len))) => {
                    others.extend(self.message(event, message));
                    read += len;
                }
                Ok(None) => break,
                Err(err) => {
                    *self.failures.entry(err).or_default() += 1;
                    self.streams.remove(&event.socket);
                    return;
                }
            }
        }
        pending.drain(..read);
        if let Some(stream) = self.streams.get_mut(&event.socket) {
            stream.pending = pending;
        }
    }

    /// Names that `address` had in the namespace at that time.
    pub fn names_at(&self, netns: u64, address: IpAddr, time_ns: u64) -> impl Iterator<Item = &Host> {
        self.names.names_at(netns, address, time_ns)
    }

    /// A namespace is gone.
    pub fn forget(&mut self, netns: u64) {
        self.names.forget(netns);
    }

    /// Messages that could not be made use of although they should tell addresses, and streams that were given up.
    pub fn losses(&self) -> u64 {
        // A truncated answer is asked for again, and the others are no answers about addresses.
        let malformed = self.failures.get(&DnsError::Malformed).copied().unwrap_or_default();
        let evictions = self.names.evictions();
        malformed + self.streams_lost + evictions.namespaces + evictions.addresses + evictions.names
    }

    fn stream(&mut self, event: &DnsEvent, others: &mut Vec<u64>) -> Option<&mut Stream> {
        if !self.streams.contains_key(&event.socket) && self.streams.len() >= MAX_STREAMS {
            let oldest =
                self.streams.iter().min_by_key(|(_, stream)| stream.last_ns).map(|(socket, _)| *socket)?;
            let lost = self.streams.remove(&oldest).filter(|stream| !stream.pending.is_empty());
            self.streams_lost += u64::from(lost.is_some());
            others.extend(lost.map(|stream| stream.netns));
        }
        Some(self.streams.entry(event.socket).or_insert_with(|| Stream {
            netns: event.netns,
            next_seq: event.seq,
            last_ns: event.time_ns,
            pending: Vec::new(),
        }))
    }

    /// Returns other namespaces whose names had to go for this one.
    fn message(&mut self, event: &DnsEvent, bytes: &[u8]) -> Vec<u64> {
        match answer(bytes) {
            Ok(Some(answer)) => return self.names.insert(event.time_ns, event.netns, &answer),
            Ok(None) => {}
            Err(err) => *self.failures.entry(err).or_default() += 1,
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use sidescope_common::event_kind;

    use super::*;

    const CHAIN: &[u8] = include_bytes!("../samples/dns-bind-glibc-chain-a-udp.bin");
    const MANY: &[u8] = include_bytes!("../samples/dns-bind-glibc-many-a-tcp.bin");
    const UDP: u32 = 17;

    fn event(netns: u64, seq: u32, transport: u32) -> DnsEvent {
        DnsEvent { kind: event_kind::DNS, len: 0, netns, socket: netns, time_ns: 5, seq, transport }
    }

    fn address_in(message: &[u8]) -> (Host, IpAddr) {
        let answer = answer(message).unwrap().unwrap();
        (answer.question, answer.addresses[0].0)
    }

    #[test]
    fn an_answer_names_its_addresses_in_the_namespace_that_asked_and_in_no_other() {
        let mut answers = Answers::new();
        answers.take(&event(1, 0, UDP), CHAIN);
        let (name, address) = address_in(CHAIN);
        assert_eq!(answers.names_at(1, address, 6).collect::<Vec<_>>(), [&name]);
        assert_eq!(answers.names_at(2, address, 6).count(), 0, "another namespace");
        assert_eq!(answers.names_at(1, address, 4).count(), 0, "before the answer");
        assert_eq!(answers.losses(), 0);
    }

    #[test]
    fn a_stream_cut_anywhere_gives_the_same_names() {
        let (message, _) = tcp_message(MANY).unwrap().unwrap();
        let (name, address) = address_in(message);
        for cut in 1..MANY.len() {
            let mut answers = Answers::new();
            answers.take(&event(1, 100, TCP), &MANY[..cut]);
            answers.take(&event(1, 100, TCP), &MANY[..cut]);
            answers.take(&event(1, 100 + cut as u32, TCP), &MANY[cut..]);
            assert_eq!(answers.names_at(1, address, 6).collect::<Vec<_>>(), [&name], "cut at {cut}");
            assert_eq!(answers.losses(), 0, "cut at {cut}");
        }
    }

    #[test]
    fn a_stream_with_a_hole_is_counted_and_given_up() {
        let mut answers = Answers::new();
        assert!(answers.take(&event(1, 100, TCP), &MANY[..20]).is_empty());
        assert_eq!(answers.take(&event(1, 130, TCP), &MANY[30..]), [1]);
        assert_eq!(answers.losses(), 1);
        assert!(answers.streams.is_empty());
    }

    #[test]
    fn streams_are_bounded() {
        let mut answers = Answers::new();
        for socket in 0..MAX_STREAMS as u64 * 3 {
            // The numbers of socket and namespace are the same: the oldest goes.
            let event = DnsEvent { time_ns: socket, ..event(socket, 0, TCP) };
            let lost: Vec<u64> = socket.checked_sub(MAX_STREAMS as u64).into_iter().collect();
            assert_eq!(answers.take(&event, &MANY[..20]), lost);
        }
        assert_eq!(answers.streams.len(), MAX_STREAMS);
        assert_eq!(answers.losses(), MAX_STREAMS as u64 * 2);
    }
}
