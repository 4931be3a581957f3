//! The walk over HTTP/2 that the kernel does, done here: on connections of real clients, on generated ones that use all that
//! HPACK and the framing offer, and on bytes that are no HTTP/2.

mod encode;

use loona_hpack::Decoder;
use proptest::prelude::*;
use proptest::sample::Index;
use sidescope_common::http2::{
    BLIND, BLIND_INDEX, HUFFMAN, PREFACE, Walk, field_byte, frame_byte, pass, state,
};

use encode::{Block, Encoder, any_block, frame, frames};

use crate::replay::{authority_literals, blocks};
use crate::{Kind, samples};

/// A value that the walk came upon: its bytes, and whether they are in Huffman code.
type Literal = (Vec<u8>, bool);

/// What a walk has led to.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    literals: Vec<Literal>,
    /// A field referred to an entry that the walk does not know.
    unknown: bool,
    /// Bytes that are no HTTP/2.
    lost: bool,
}

/// The loop of the kernel program: `bytes` come in segments that end at `cuts`.
fn drive(mut walk: Walk, bytes: &[u8], cuts: &[usize]) -> Seen {
    let mut seen = Seen::default();
    let mut open: Option<Literal> = None;
    let mut ends = cuts.to_vec();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut at = 0;
    for end in ends {
        while at < end {
            if walk.frame_left != 0 {
                let passed = pass(&mut walk, (end - at) as u32);
                if passed != 0 {
                    at += passed as usize;
                    continue;
                }
                if walk.state == state::CAPTURE {
                    let room = walk.frame_left.saturating_sub(u32::from(walk.pad)).min((end - at) as u32);
                    let len = walk.capture.min(room);
                    assert!(len > 0, "a capture that does not move");
                    if walk.capture == walk.length {
                        open = Some((Vec::new(), walk.field & HUFFMAN != 0));
                    }
                    let literal = open.as_mut().expect("begun");
                    literal.0.extend_from_slice(&bytes[at..at + len as usize]);
                    walk.capture -= len;
                    walk.frame_left -= len;
                    at += len as usize;
                    if walk.capture == 0 {
                        walk.state = state::FIELD;
                        seen.literals.extend(open.take());
                    }
                    continue;
                }
            }
            let byte = bytes[at];
            at += 1;
            if walk.frame_left == 0 {
                frame_byte(&mut walk, byte);
                continue;
            }
            walk.frame_left -= 1;
            if !field_byte(&mut walk, byte) {
                seen.lost = true;
                return seen;
            }
            seen.unknown |= walk.field & BLIND_INDEX != 0;
        }
    }
    seen
}

const PREFACE_BYTES: &[u8; PREFACE as usize] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[test]
fn authorities_of_real_clients_are_found_wherever_segments_end() {
    let mut found = 0;
    for sample in samples() {
        let bytes = match sample.kind {
            Kind::Http2 => &sample.bytes[..],
            Kind::H2c => {
                let start = sample.bytes.windows(PREFACE_BYTES.len()).position(|w| w == PREFACE_BYTES);
                &sample.bytes[start.unwrap()..]
            }
            _ => continue,
        };
        let blocks = blocks(bytes);
        let literals = blocks.iter().flat_map(|block| authority_literals(block));
        let literals = literals.map(|(value, huffman)| (value.to_vec(), huffman)).collect();
        let expect = Seen { literals, ..Seen::default() };
        let all: Vec<usize> = (0..bytes.len()).collect();
        let walk = Walk::of_new_connection();
        assert_eq!(drive(walk, bytes, &all), expect, "{}, byte by byte", sample.file);
        for cut in (0..bytes.len()).step_by(1 + bytes.len() / 2_000) {
            assert_eq!(drive(walk, bytes, &[cut]), expect, "{}, cut at {cut}", sample.file);
        }
        found += expect.literals.len();
    }
    assert!(found >= 10, "{found}");
}

fn cuts(bytes: &[u8], cuts: &[Index]) -> Vec<usize> {
    cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn every_authority_that_is_a_literal_is_found_once_and_nothing_else(
        blocks in proptest::collection::vec(any_block(), 1..20),
        places in proptest::collection::vec(any::<Index>(), 0..20),
    ) {
        let mut encoder = Encoder { limit: 4096, ..Encoder::default() };
        let mut decoder = Decoder::new();
        let mut bytes = PREFACE_BYTES.to_vec();
        for (number, block) in blocks.iter().enumerate() {
            // A size stands before a field.
            let sizes = if block.fields.is_empty() { vec![] } else { block.sizes.clone() };
            let block = &Block { sizes, ..block.clone() };
            let coded = encoder.block(block);
            // That the generator writes what it means is for others to say.
            let decoded = decoder.decode(&coded).unwrap();
            let meant: Vec<_> =
                block.fields.iter().map(|(n, v, _)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
            prop_assert_eq!(decoded, meant);
            frames(&mut bytes, number, block, &coded);
        }
        let expect = Seen { literals: encoder.literals, ..Seen::default() };
        let walk = Walk::of_new_connection();
        prop_assert_eq!(&drive(walk, &bytes, &[]), &expect, "in one piece");
        prop_assert_eq!(&drive(walk, &bytes, &cuts(&bytes, &places)), &expect, "cut");
        let all: Vec<usize> = (0..bytes.len()).collect();
        prop_assert_eq!(&drive(walk, &bytes, &all), &expect, "byte by byte");
    }

    #[test]
    fn no_bytes_stop_the_walk(
        bytes in proptest::collection::vec(any::<u8>(), 0..2_000),
        // Frames that begin like those of a header block go deeper than random types would.
        headers: bool,
        blind: bool,
        places in proptest::collection::vec(any::<Index>(), 0..20),
    ) {
        let mut input = Vec::new();
        if headers {
            bytes.chunks(50).for_each(|part| frame(&mut input, part[0] & 9, part[0], 1, part));
        } else {
            input = bytes;
        }
        let walk = Walk { field: if blind { BLIND } else { 0 }, ..Walk::default() };
        let whole = drive(walk, &input, &[]);
        prop_assert_eq!(&drive(walk, &input, &cuts(&input, &places)), &whole);
    }
}

/// A connection of one block of these fields, without the preface.
fn connection(blocks: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    blocks.iter().for_each(|block| frame(&mut bytes, 1, 4, 1, block));
    bytes
}

#[test]
fn what_was_said_before_the_start_is_told_apart_from_what_was_said_since() {
    let old = Walk { field: BLIND, ..Walk::default() };
    let new = Walk::default();
    // Added since: `:authority: a`.
    let literal: &[u8] = &[0x41, 1, b'a'];
    for (blocks, unknown) in [
        (&[&[0x82, 0x87][..]][..], false),
        (&[&[0xbe]], true),
        (&[literal, &[0xbe]], false),
        (&[literal, &[0xbf]], true),
        // A name that was put into the table by nobody knows what.
        (&[&[0x7e, 1, b'b']], true),
        (&[literal, &[0x7e, 1, b'b']], false),
        (&[literal, &[0x7f, 0, 1, b'b']], true),
    ] {
        let bytes = connection(blocks);
        assert_eq!(drive(old, &bytes, &[]).unknown, unknown, "{blocks:x?}");
        assert!(!drive(new, &bytes, &[]).unknown, "{blocks:x?}");
    }
}

#[test]
fn of_a_table_that_is_larger_than_usual_it_says_that_it_does_not_know() {
    let mut block = vec![0x41, 1, b'a'];
    for _ in 0..127 {
        block.extend_from_slice(&[0x40, 1, b'x', 0]);
    }
    // The authority is the 128th from the end: 61 + 128.
    let name = [0x7f, 126, 1, b'b'];
    let seen = drive(Walk::default(), &connection(&[&block, &name]), &[]);
    assert_eq!(seen.literals, [(b"a".to_vec(), false), (b"b".to_vec(), false)]);
    assert!(!seen.unknown);
    block.extend_from_slice(&[0x40, 1, b'x', 0]);
    let name = [0x7f, 127, 1, b'b'];
    let seen = drive(Walk::default(), &connection(&[&block, &name]), &[]);
    assert_eq!(seen.literals, [(b"a".to_vec(), false)]);
    assert!(seen.unknown);
}
