//! What real clients and servers send is read as they meant it, and so is every prefix of it.

use std::collections::BTreeSet;
use std::fs;

use loona_hpack::Decoder;
use loona_hpack::huffman::HuffmanDecoder;
use sidescope::authority::{HeadError, RequestHost};
use sidescope::dns::{self, DnsError};
use sidescope::hpack;
use sidescope::http1::request_host;
use sidescope::model::names::Host;
use sidescope::proxy_protocol::{self, header_len};
use sidescope::tls::{ServerName, TlsError, server_name};

use crate::{Kind, Sample, dir, samples};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Every prefix is incomplete or gives the same answer, and stays known once it is.
fn check_prefixes<T: PartialEq + std::fmt::Debug>(
    sample: &Sample,
    bytes: &[u8],
    incomplete: &T,
    parse: impl Fn(&[u8]) -> T,
) {
    let whole = parse(bytes);
    let mut known = false;
    for len in 0..=bytes.len() {
        let answer = parse(&bytes[..len]);
        let waits = !known && answer == *incomplete;
        assert!(waits || answer == whole, "{}: prefix of {len}: {answer:?}, not {whole:?}", sample.file);
        known |= !waits;
    }
    assert!(known, "{}: {whole:?}", sample.file);
}

fn name(host: &str) -> RequestHost {
    RequestHost::Name(Host::new(host).unwrap())
}

/// The heads of requests without chunked bodies.
fn heads(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut heads = Vec::new();
    while !bytes.is_empty() && !bytes.starts_with(PREFACE) {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let (head, rest) = bytes.split_at(end);
        let text = str::from_utf8(head).unwrap().to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
        bytes = &rest[length.map_or(0, |length| length.trim().parse().unwrap())..];
        heads.push(head);
    }
    heads
}

/// Header blocks of a connection, by stream, in the order of their first frame.
pub(crate) fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    let mut rest = bytes.strip_prefix(PREFACE).expect("begins with the preface");
    let mut blocks: Vec<Vec<u8>> = Vec::new();
    while let Some((head, after)) = rest.split_at_checked(9) {
        let len = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (mut payload, next) = after.split_at(len);
        rest = next;
        let (kind, flags) = (head[3], head[4]);
        match kind {
            HEADERS => {
                if flags & 0x8 != 0 {
                    payload = &payload[1..len - usize::from(payload[0])];
                }
                if flags & 0x20 != 0 {
                    payload = &payload[5..];
                }
                blocks.push(payload.to_vec());
            }
            CONTINUATION => blocks.last_mut().unwrap().extend_from_slice(payload),
            _ => {}
        }
    }
    assert!(rest.is_empty(), "a frame is cut");
    blocks
}

/// An integer with a prefix of so many bits, and what follows it.
fn integer(bytes: &[u8], bits: u32) -> (usize, &[u8]) {
    let mask = (1usize << bits) - 1;
    let mut value = usize::from(bytes[0]) & mask;
    if value < mask {
        return (value, &bytes[1..]);
    }
    for (index, byte) in bytes[1..].iter().enumerate() {
        value += usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return (value, &bytes[index + 2..]);
        }
    }
    panic!("an integer is cut");
}

/// What the kernel will hand over of a block: the values of `:authority` that stand there as literals, and whether they are
/// Huffman-coded.
pub(crate) fn authority_literals(mut block: &[u8]) -> Vec<(&[u8], bool)> {
    const AUTHORITY: usize = 1;
    let string = |bytes: &'_ [u8]| -> (usize, usize, bool) {
        let (len, rest) = integer(bytes, 7);
        (bytes.len() - rest.len(), len, bytes[0] & 0x80 != 0)
    };
    let mut found = Vec::new();
    while let Some(first) = block.first() {
        let bits = match first {
            0x80.. => 7,
            0x40..0x80 => 6,
            0x20..0x40 => 5,
            _ => 4,
        };
        let (index, rest) = integer(block, bits);
        block = rest;
        if matches!(bits, 7 | 5) {
            continue;
        }
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            // gRPC's C core spells out the name, though the static table has it.
            let (start, len, huffman) = string(block);
            let spelled = &block[start..start + len];
            let decoded = huffman.then(|| HuffmanDecoder::new().decode(spelled).unwrap());
            is_authority = decoded.as_deref().unwrap_or(spelled) == b":authority";
            block = &block[start + len..];
        }
        let (start, len, huffman) = string(block);
        if is_authority {
            found.push((&block[start..start + len], huffman));
        }
        block = &block[start + len..];
    }
    found
}

#[test]
fn every_sample_is_listed() {
    let listed: BTreeSet<String> = samples().into_iter().map(|sample| sample.file).collect();
    let files = fs::read_dir(dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> = files.filter(|file| file.ends_with(".bin")).collect();
    assert_eq!(listed, there);
}

#[test]
fn requests_of_http1_name_their_hosts() {
    let mut seen = 0;
    for sample in samples() {
        let (bytes, requests) = match sample.kind {
            Kind::Http1 => (&sample.bytes[..], sample.hosts.len()),
            Kind::H2c => (&sample.bytes[..], 1),
            Kind::ProxyHttp1 => {
                let incomplete = Err(proxy_protocol::Incomplete);
                check_prefixes(&sample, &sample.bytes, &incomplete, header_len);
                let header = header_len(&sample.bytes).unwrap();
                assert!(header > 0, "{}", sample.file);
                (&sample.bytes[header..], sample.hosts.len())
            }
            _ => continue,
        };
        let heads = heads(bytes);
        assert_eq!(heads.len(), requests, "{}", sample.file);
        for (head, host) in heads.iter().zip(&sample.hosts) {
            assert_eq!(request_host(head), Ok(name(host)), "{}", sample.file);
            assert_eq!(header_len(head), Ok(0), "{}", sample.file);
            check_prefixes(&sample, head, &Err(HeadError::Incomplete), request_host);
            seen += 1;
        }
    }
    assert!(seen >= 15, "{seen}");
}

#[test]
fn requests_of_http2_name_their_hosts() {
    let (mut plain, mut huffman_coded, mut indexed) = (0, 0, 0);
    for sample in samples() {
        let (bytes, hosts) = match sample.kind {
            Kind::Http2 => (&sample.bytes[..], &sample.hosts[..]),
            Kind::H2c => {
                let start = sample.bytes.windows(PREFACE.len()).position(|window| window == PREFACE);
                (&sample.bytes[start.unwrap()..], &sample.hosts[1..])
            }
            _ => continue,
        };
        let blocks = blocks(bytes);
        let mut decoder = Decoder::new();
        let mut decoded = Vec::new();
        for block in &blocks {
            let fields = decoder.decode(block).unwrap();
            decoded
                .extend(fields.into_iter().find(|(name, _)| name == b":authority").map(|(_, value)| value));
        }
        assert_eq!(decoded.len(), hosts.len(), "{}", sample.file);
        for (value, host) in decoded.iter().zip(hosts) {
            assert_eq!(hpack::authority(value, false), Ok(name(host)), "{}", sample.file);
        }

        let literals: Vec<_> = blocks.iter().flat_map(|block| authority_literals(block)).collect();
        let read: BTreeSet<Host> = literals
            .iter()
            .map(|(value, huffman)| match hpack::authority(value, *huffman) {
                Ok(RequestHost::Name(host)) => host,
                other => panic!("{}: {other:?}", sample.file),
            })
            .collect();
        let expect: BTreeSet<Host> = hosts.iter().map(|host| Host::new(host).unwrap()).collect();
        assert_eq!(read, expect, "{}", sample.file);
        huffman_coded += literals.iter().filter(|(_, huffman)| *huffman).count();
        plain += literals.iter().filter(|(_, huffman)| !*huffman).count();
        indexed += hosts.len() - literals.len();
    }
    assert!(huffman_coded > 5 && plain > 0 && indexed > 0, "{huffman_coded}, {plain}, {indexed}");
}

#[test]
fn hellos_name_their_servers() {
    let (mut seen, mut large, mut fragmented) = (0, 0, 0);
    for sample in samples().iter().filter(|sample| matches!(sample.kind, Kind::Tls)) {
        let expect = match sample.hosts.first() {
            Some(host) => ServerName::Name(Host::new(host).unwrap()),
            None => ServerName::None,
        };
        assert_eq!(server_name(&sample.bytes), Ok(expect), "{}", sample.file);
        check_prefixes(sample, &sample.bytes, &Err(TlsError::Incomplete), server_name);
        let first_record = 5 + usize::from(u16::from_be_bytes([sample.bytes[3], sample.bytes[4]]));
        seen += 1;
        large += usize::from(sample.bytes.len() > 1500);
        fragmented += usize::from(sample.bytes.len() > first_record);
    }
    assert!(seen >= 8 && large > 0 && fragmented > 0, "{seen}, {large}, {fragmented}");
}

#[test]
fn answers_of_name_servers_tell_their_addresses() {
    let (mut chains, mut streams, mut truncated, mut missing) = (0, 0, 0, 0);
    for sample in samples() {
        let message = match sample.kind {
            Kind::DnsUdp => &sample.bytes[..],
            Kind::DnsTcp => {
                check_prefixes(&sample, &sample.bytes, &Ok(None), |bytes| {
                    dns::tcp_message(bytes).map(|found| found.map(|(message, len)| (message.to_vec(), len)))
                });
                let (message, len) = dns::tcp_message(&sample.bytes).unwrap().unwrap();
                // Some clients ask for the other family on the same connection.
                let mut rest = &sample.bytes[len..];
                while let Some((_, len)) = dns::tcp_message(rest).unwrap() {
                    rest = &rest[len..];
                }
                assert!(rest.is_empty(), "{}", sample.file);
                streams += 1;
                message
            }
            _ => continue,
        };
        for len in 0..message.len() {
            let answer = dns::answer(&message[..len]);
            assert!(
                answer == Err(DnsError::Malformed) || answer == dns::answer(message),
                "{}: prefix of {len}: {answer:?}",
                sample.file
            );
        }
        let answer = dns::answer(message);
        if sample.truncated {
            assert_eq!(answer, Err(DnsError::Truncated), "{}", sample.file);
            truncated += 1;
            continue;
        }
        let answer = answer.unwrap();
        if sample.addresses.is_empty() && !sample.nxdomain {
            assert_eq!(answer, None, "{}", sample.file);
            continue;
        }
        let answer = answer.expect(&sample.file);
        assert_eq!(answer.question.as_str(), sample.hosts[0], "{}", sample.file);
        assert_eq!(answer.nxdomain, sample.nxdomain, "{}", sample.file);
        let addresses: BTreeSet<_> = answer.addresses.iter().map(|(address, _)| *address).collect();
        assert_eq!(addresses, sample.addresses.iter().copied().collect(), "{}", sample.file);
        assert_eq!(answer.addresses.len(), addresses.len(), "{}", sample.file);
        chains += usize::from(sample.hosts[0].starts_with("shop.") && !addresses.is_empty());
        missing += usize::from(sample.nxdomain);
    }
    assert!(
        chains > 0 && streams > 0 && truncated > 0 && missing > 0,
        "{chains} {streams} {truncated} {missing}"
    );
}
