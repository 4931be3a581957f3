//! Every parser of bytes that a workload chooses takes all of them: none panics, and none says of a prefix what it takes back.
//!
//! Inputs are the samples of real clients, broken in random ways. `cargo test` does that for a moment;
//! `cargo xtask fuzz --seconds N` for longer.

use std::cell::Cell;
use std::env;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};
use sidescope::authority::{HeadError, RequestHost};
use sidescope::heads::{Heads, Outcome};
use sidescope::http1::request_host;
use sidescope::proxy_protocol::{self, header_len};
use sidescope::tls::{TlsError, server_name};
use sidescope::{dns, hpack};
use sidescope_common::{EdgeKey, HeadEvent, event_kind, head_format};

use crate::{Kind, Sample, samples};

/// Inputs for each parser in `cargo test`.
const CASES: u32 = 2_000;
const SECONDS_VAR: &str = "SIDESCOPE_FUZZ_SECONDS";

#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    Set(Index, u8),
    Cut(Index),
    Remove(Index, u8),
    Insert(Index, Vec<u8>),
    /// A part of the input once more at another place.
    Repeat(Index, Index, u8),
}

impl Mutation {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            (any::<Index>(), 0..8u8).prop_map(|(at, bit)| Self::Flip(at, bit)),
            (any::<Index>(), prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(b'\n')])
                .prop_map(|(at, byte)| Self::Set(at, byte)),
            any::<Index>().prop_map(Self::Cut),
            (any::<Index>(), 1..40u8).prop_map(|(at, len)| Self::Remove(at, len)),
            (any::<Index>(), proptest::collection::vec(any::<u8>(), 1..40))
                .prop_map(|(at, bytes)| Self::Insert(at, bytes)),
            (any::<Index>(), any::<Index>(), 1..80u8).prop_map(|(from, to, len)| Self::Repeat(from, to, len)),
        ]
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        let end = |at: usize, wanted: u8| len.min(at + usize::from(wanted));
        match self {
            Self::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Self::Set(at, byte) => bytes[at.index(len)] = *byte,
            Self::Cut(at) => bytes.truncate(at.index(len)),
            Self::Remove(at, wanted) => drop(bytes.drain(at.index(len)..end(at.index(len), *wanted))),
            Self::Insert(at, new) => drop(bytes.splice(at.index(len)..at.index(len), new.iter().copied())),
            Self::Repeat(from, to, wanted) => {
                let part = bytes[from.index(len)..end(from.index(len), *wanted)].to_vec();
                bytes.splice(to.index(len)..to.index(len), part);
            }
        }
    }
}

/// Runs `check` on broken samples that `seeds` chooses, with places to cut them at.
fn fuzz(target: &str, seeds: impl Fn(Sample) -> Option<Vec<u8>>, check: impl Fn(&[u8], &[usize])) {
    let seeds: Vec<Vec<u8>> = samples().into_iter().filter_map(seeds).collect();
    assert!(!seeds.is_empty(), "no sample for {target}");
    let inputs = (
        proptest::sample::select(seeds),
        proptest::collection::vec(Mutation::any(), 0..8),
        proptest::collection::vec(any::<Index>(), 1..6),
    );
    let seconds = env::var(SECONDS_VAR).ok().map(|seconds| seconds.parse().expect(SECONDS_VAR));
    let start = Instant::now();
    let count = Cell::new(0u64);
    loop {
        let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
        let result = TestRunner::new(config).run(&inputs, |(mut bytes, mutations, cuts)| {
            mutations.iter().for_each(|mutation| mutation.apply(&mut bytes));
            let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            check(&bytes, &cuts);
            count.set(count.get() + 1);
            Ok(())
        });
        if let Err(failure) = result {
            panic!("{target}: {failure}");
        }
        if seconds.is_none_or(|seconds| start.elapsed() >= Duration::from_secs(seconds)) {
            break;
        }
    }
    println!("{target}: {} inputs in {:.1} s", count.get(), start.elapsed().as_secs_f64());
}

/// A parser that reads from the front: a prefix says the same or that it is incomplete.
fn check_prefixes<T: PartialEq + std::fmt::Debug>(
    bytes: &[u8],
    cuts: &[usize],
    incomplete: &T,
    parse: impl Fn(&[u8]) -> T,
) {
    let whole = parse(bytes);
    for cut in cuts {
        let answer = parse(&bytes[..*cut]);
        assert!(answer == whole || answer == *incomplete, "{answer:?} at {cut}, then {whole:?}");
    }
}

#[test]
fn http1() {
    let seeds = |sample: Sample| {
        matches!(sample.kind, Kind::Http1 | Kind::H2c | Kind::ProxyHttp1).then_some(sample.bytes)
    };
    fuzz("http1::request_host", seeds, |bytes, cuts| {
        let whole = request_host(bytes);
        for cut in cuts {
            // A head that breaks off later on, or names a second host, is no request in the end.
            match request_host(&bytes[..*cut]) {
                Err(HeadError::Incomplete) => {}
                Ok(host) => {
                    assert!(whole.as_ref().map_or(true, |whole| *whole == host), "{host:?}, then {whole:?}")
                }
                Err(error) => assert!(
                    whole.as_ref().is_err_and(|whole| *whole != HeadError::Incomplete),
                    "{error:?}, then {whole:?}"
                ),
            }
        }
    });
}

#[test]
fn tls() {
    let seeds = |sample: Sample| matches!(sample.kind, Kind::Tls).then_some(sample.bytes);
    fuzz("tls::server_name", seeds, |bytes, cuts| {
        check_prefixes(bytes, cuts, &Err(TlsError::Incomplete), server_name);
    });
}

#[test]
fn hpack() {
    // Anywhere in a header block there may be a string.
    let seeds = |sample: Sample| {
        let bytes = sample.bytes;
        matches!(sample.kind, Kind::Http2).then(|| bytes[..bytes.len().min(600)].to_vec())
    };
    fuzz("hpack::authority", seeds, |bytes, cuts| {
        for cut in cuts {
            for huffman in [false, true] {
                let _ = hpack::authority(&bytes[..*cut], huffman);
                let _ = hpack::authority(&bytes[*cut..], huffman);
            }
        }
    });
}

#[test]
fn proxy_protocol() {
    let seeds = |sample: Sample| match sample.kind {
        Kind::ProxyHttp1 => Some(sample.bytes),
        // Version 2 in front of what follows it: no client here sends it.
        Kind::Tls => Some(
            [
                &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x1f\x90\x00\x50"[..],
                &sample.bytes,
            ]
            .concat(),
        ),
        _ => None,
    };
    fuzz("proxy_protocol::header_len", seeds, |bytes, cuts| {
        check_prefixes(bytes, cuts, &Err(proxy_protocol::Incomplete), header_len);
    });
}

#[test]
fn dns_answer() {
    let seeds = |sample: Sample| match sample.kind {
        Kind::DnsUdp => Some(sample.bytes),
        Kind::DnsTcp => Some(sample.bytes[2..].to_vec()),
        _ => None,
    };
    fuzz("dns::answer", seeds, |bytes, _| {
        if let Ok(Some(answer)) = dns::answer(bytes) {
            assert!(answer.nxdomain == answer.addresses.is_empty());
        }
    });
}

#[test]
fn dns_stream() {
    let seeds = |sample: Sample| matches!(sample.kind, Kind::DnsTcp).then_some(sample.bytes);
    fuzz("dns::tcp_message", seeds, |bytes, cuts| {
        check_prefixes(bytes, cuts, &Ok(None), |bytes| {
            dns::tcp_message(bytes).map(|found| found.map(|(message, len)| (message.to_vec(), len)))
        });
        if let Ok(Some((message, len))) = dns::tcp_message(bytes) {
            assert_eq!(message.len() + 2, len);
        }
    });
}

#[test]
fn heads() {
    let seeds = |sample: Sample| matches!(sample.kind, Kind::Http1 | Kind::H2c).then_some(sample.bytes);
    fuzz("heads::feed", seeds, |bytes, cuts| {
        let mut borders: Vec<usize> = [&[0, bytes.len()], cuts].concat();
        borders.sort_unstable();
        borders.dedup();
        let pieces: Vec<(usize, usize)> = borders.windows(2).map(|pair| (pair[0], pair[1])).collect();
        // What the kernel could lead to know: the hosts of all that was put together from the front.
        let possible: Vec<_> = borders.iter().map(|end| request_host(&bytes[..*end])).collect();
        let in_order: Vec<usize> = (0..pieces.len()).collect();
        // The places to cut at come in a random order: so do the pieces.
        let any_order: Vec<usize> = cuts.iter().map(|cut| cut % pieces.len().max(1)).collect();
        for order in [in_order, any_order] {
            let mut heads = Heads::default();
            for index in order {
                let Some((start, end)) = pieces.get(index) else { continue };
                let key = EdgeKey { netns: 1, addr: [0; 16], uid: 0, port: 80, reserved: 0 };
                let offset = u16::try_from(*start).unwrap();
                let event = HeadEvent {
                    kind: event_kind::HEAD,
                    len: 0,
                    format: head_format::HTTP1,
                    socket: 1,
                    offset,
                    total: 0,
                    request: 1,
                    host: 0,
                    key,
                };
                let outcome = heads.feed(&event, &bytes[*start..*end], |key| panic!("{key:?} was given up"));
                if let Outcome::Host(host) = outcome {
                    assert!(possible.contains(&Ok(RequestHost::Name(host.clone()))), "{host} out of nowhere");
                }
            }
        }
    });
}
