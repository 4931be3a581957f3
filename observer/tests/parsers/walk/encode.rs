//! Header blocks that use all that HPACK and the framing offer, and an encoder that does what it is told.

use std::collections::VecDeque;
use std::sync::LazyLock;

use loona_hpack::huffman::HuffmanDecoder;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::Literal;

/// How a field is written.
#[derive(Clone, Debug)]
pub(super) struct Coding {
    /// 0: as an index if the table has it, 1: added to the table, 2: not added, 3: never to be added.
    pub(super) form: u8,
    /// Take the name from the table, if it is there: from which of the places that have it.
    pub(super) name: Option<Index>,
    pub(super) huffman_name: bool,
    pub(super) huffman_value: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) fields: Vec<(&'static str, String, Coding)>,
    /// New sizes of the dynamic table, at the start of the block.
    pub(super) sizes: Vec<usize>,
    /// Where the block is cut into frames.
    pub(super) cuts: Vec<Index>,
    pub(super) padding: Option<u8>,
    pub(super) priority: bool,
    /// A frame of another type and its length, before the block.
    pub(super) before: Option<(u8, u16)>,
}

pub(super) fn fields() -> impl Strategy<Value = Vec<(&'static str, String, Coding)>> {
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

pub(super) fn any_block() -> impl Strategy<Value = Block> {
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
pub(super) const STATIC: [(&str, usize); 8] = [
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
pub(super) struct Encoder {
    pub(super) table: VecDeque<(String, String)>,
    pub(super) limit: usize,
    pub(super) literals: Vec<Literal>,
}

impl Encoder {
    pub(super) fn resize(&mut self, limit: usize) {
        self.limit = limit;
        let size = |table: &VecDeque<(String, String)>| -> usize {
            table.iter().map(|(name, value)| name.len() + value.len() + 32).sum()
        };
        while size(&self.table) > self.limit {
            self.table.pop_back();
        }
    }

    pub(super) fn field(&mut self, out: &mut Vec<u8>, name: &str, value: &str, coding: &Coding) {
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

    pub(super) fn block(&mut self, block: &Block) -> Vec<u8> {
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

pub(super) fn integer(out: &mut Vec<u8>, bits: u8, prefix: u32, value: usize) {
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

pub(super) fn string(out: &mut Vec<u8>, text: &str, huffman: bool) -> Vec<u8> {
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

pub(super) fn in_huffman_code(text: &str) -> Vec<u8> {
    let bits = text.bytes().flat_map(|byte| {
        let (code, bits) = CODES[usize::from(byte)].expect("a short code");
        (0..bits).rev().map(move |shift| (code >> shift) & 1 == 1)
    });
    let mut bits: Vec<bool> = bits.collect();
    bits.resize(bits.len().next_multiple_of(8), true);
    bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| (sum << 1) | u8::from(*bit))).collect()
}

pub(super) fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The frames of a header block.
pub(super) fn frames(out: &mut Vec<u8>, number: usize, block: &Block, bytes: &[u8]) {
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
