//! The walk over HTTP/2 that the kernel does, done here: on connections of real clients, on generated ones that use all that
//! HPACK and the framing offer, and on bytes that are no HTTP/2.

use std::collections::VecDeque;
use std::sync::LazyLock;

use loona_hpack::Decoder;
use loona_hpack::huffman::HuffmanDecoder;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use sidescope_common::http2::{
    BLIND, BLIND_INDEX, HUFFMAN, PREFACE, Walk, field_byte, frame_byte, pass, state,
};

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

/// How a field is written.
#[derive(Clone, Debug)]
struct Coding {
    /// 0: as an index if the table has it, 1: added to the table, 2: not added, 3: never to be added.
    form: u8,
    /// Take the name from the table, if it is there: from which of the places that have it.
    name: Option<Index>,
    huffman_name: bool,
    huffman_value: bool,
}

#[derive(Clone, Debug)]
struct Block {
    fields: Vec<(&'static str, String, Coding)>,
    /// New sizes of the dynamic table, at the start of the block.
    sizes: Vec<usize>,
    /// Where the block is cut into frames.
    cuts: Vec<Index>,
    padding: Option<u8>,
    priority: bool,
    /// A frame of another type and its length, before the block.
    before: Option<(u8, u16)>,
}

fn fields() -> impl Strategy<Value = Vec<(&'static str, String, Coding)>> {
    // Names as long as ":authority" and "host", plain or coded, are among them.
    let names = [
        ":authority",
        ":authority",
        ":method",
        ":path",
        "host",
        "hosu",
        "vary",
        "user-agent",
        ":authoritz",
        "x-authorit",
        "cookie",
        "a",
        "grpc-status",
        "x-long-name-of-a-header-field",
    ];
    let value =
        prop_oneof!["[a-z0-9.:-]{0,20}", Just("reviews.default:80".to_owned()), "[a-z0-9.:/=-]{100,300}"];
    let coding = (0..4u8, any::<Option<Index>>(), any::<bool>(), any::<bool>()).prop_map(
        |(form, name, huffman_name, huffman_value)| Coding { form, name, huffman_name, huffman_value },
    );
    proptest::collection::vec((select(names.to_vec()), value, coding), 0..12)
}

fn any_block() -> impl Strategy<Value = Block> {
    let sizes = prop_oneof![
        8 => Just(vec![]),
        1 => (0..4097usize).prop_map(|size| vec![size]),
        1 => Just(vec![0, 4096]),
        1 => Just(vec![64]),
    ];
    (
        fields(),
        sizes,
        proptest::collection::vec(any::<Index>(), 0..4),
        any::<Option<u8>>(),
        any::<bool>(),
        any::<Option<(u8, u16)>>(),
    )
        .prop_map(|(fields, sizes, cuts, padding, priority, before)| Block {
            fields,
            sizes,
            cuts,
            padding,
            priority,
            before: before.map(|(kind, len)| (kind, len % 300)),
        })
}

/// The first entries of the static table that have the names which are used here.
const STATIC: [(&str, usize); 8] = [
    (":authority", 1),
    (":method", 2),
    (":path", 4),
    ("host", 38),
    ("vary", 59),
    ("user-agent", 58),
    ("cookie", 32),
    ("content-type", 31),
];

/// An encoder that does what it is told, and notes which authorities it writes as literals.
#[derive(Default)]
struct Encoder {
    table: VecDeque<(String, String)>,
    limit: usize,
    literals: Vec<Literal>,
}

impl Encoder {
    fn resize(&mut self, limit: usize) {
        self.limit = limit;
        let size = |table: &VecDeque<(String, String)>| -> usize {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while size(&self.table) > self.limit {
            self.table.pop_back();
        }
    }

    fn field(&mut self, out: &mut Vec<u8>, name: &str, value: &str, coding: &Coding) {
        let known = self.table.iter().position(|(n, v)| n == name && v == value);
        if let Some(at) = known.filter(|_| coding.form == 0) {
            integer(out, 0x80, 7, 62 + at);
            return;
        }
        let (bits, prefix) = match coding.form {
            0 | 1 => (0x40, 6),
            2 => (0, 4),
            _ => (0x10, 4),
        };
        let own = self.table.iter().enumerate().filter(|(_, (n, _))| n == name).map(|(at, _)| 62 + at);
        let fixed = STATIC.iter().filter(|(n, _)| *n == name).map(|(_, at)| *at);
        let places: Vec<usize> = fixed.chain(own).collect();
        match coding.name.filter(|_| !places.is_empty()) {
            Some(which) => integer(out, bits, prefix, *which.get(&places)),
            None => {
                integer(out, bits, prefix, 0);
                string(out, name, coding.huffman_name);
            }
        }
        let written = string(out, value, coding.huffman_value);
        if (name == ":authority" || name == "host") && !value.is_empty() {
            self.literals.push((written, coding.huffman_value));
        }
        if coding.form < 2 {
            self.table.push_front((name.to_owned(), value.to_owned()));
            self.resize(self.limit);
        }
    }

    fn block(&mut self, block: &Block) -> Vec<u8> {
        let mut out = Vec::new();
        for size in &block.sizes {
            integer(&mut out, 0x20, 5, *size);
            self.resize(*size);
        }
        for (name, value, coding) in &block.fields {
            self.field(&mut out, name, value, coding);
        }
        out
    }
}

fn integer(out: &mut Vec<u8>, bits: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        return out.push(bits | value as u8);
    }
    out.push(bits | mask as u8);
    let mut rest = value - mask;
    while rest >= 128 {
        out.push((rest % 128) as u8 | 0x80);
        rest /= 128;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, text: &str, huffman: bool) -> Vec<u8> {
    let written = if huffman { in_huffman_code(text) } else { text.as_bytes().to_vec() };
    integer(out, u8::from(huffman) << 7, 7, written.len());
    out.extend_from_slice(&written);
    written
}

/// Code and number of bits of each character whose code fits into a byte, as another implementation decodes it.
static CODES: LazyLock<Vec<Option<(u32, u32)>>> = LazyLock::new(|| {
    let mut codes = vec![None; 256];
    for bits in 5..=8 {
        for code in 0..1u32 << bits {
            // The code, five zeros for the digit 0, and the padding.
            let padded = (code << (16 - bits)) | ((1 << (11 - bits)) - 1);
            let padded = (padded as u16).to_be_bytes();
            let len = usize::from(bits + 5 > 8) + 1;
            if let Ok([byte, b'0']) = HuffmanDecoder::new().decode(&padded[..len]).as_deref() {
                codes[usize::from(*byte)].get_or_insert((code, bits));
            }
        }
    }
    codes
});

fn in_huffman_code(text: &str) -> Vec<u8> {
    let bits = text.bytes().flat_map(|byte| {
        let (code, bits) = CODES[usize::from(byte)].expect("a short code");
        (0..bits).rev().map(move |shift| (code >> shift) & 1 == 1)
    });
    let mut bits: Vec<bool> = bits.collect();
    bits.resize(bits.len().next_multiple_of(8), true);
    bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| (sum << 1) | u8::from(*bit))).collect()
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The frames of a header block.
fn frames(out: &mut Vec<u8>, number: usize, block: &Block, bytes: &[u8]) {
    let stream = 2 * number as u32 + 1;
    if let Some((kind, len)) = block.before.filter(|(kind, _)| ![1, 9].contains(kind)) {
        frame(out, kind, 0xff, stream, &vec![0x41; usize::from(len)]);
    }
    let mut ends: Vec<usize> = block.cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    for (index, end) in ends.iter().enumerate() {
        let part = &bytes[start..*end];
        start = *end;
        let last = if index + 1 == ends.len() { 4 } else { 0 };
        if index > 0 {
            // The flags of HEADERS mean nothing here.
            frame(out, 9, last | 0x28, stream, part);
            continue;
        }
        let mut payload = Vec::new();
        payload.extend(block.padding);
        if block.priority {
            payload.extend_from_slice(&[0x80, 0, 0, 1, 0x41]);
        }
        payload.extend_from_slice(part);
        payload.resize(payload.len() + usize::from(block.padding.unwrap_or_default()), 0x41);
        let flags =
            last | if block.padding.is_some() { 8 } else { 0 } | if block.priority { 0x20 } else { 0 };
        frame(out, 1, flags, stream, &payload);
    }
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
