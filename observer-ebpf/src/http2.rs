//! HTTP/2: the :authority of a request.
//!
//! A walk over frames and header fields that can stop and go on at any byte, since neither keeps to segments. It needs no copy of
//! the encoder's dynamic table: an indexed field refers to an entry that went by as a literal before, and was looked at then. Only
//! on a connection that is older than the programs it may refer to something that nobody saw.

use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{Counter, head_format, part};

use crate::bounded::byte_at;
use crate::egress::{full_socket, search_of};
use crate::handover::{NAME_BYTES, Piece, hand_on, load, name, unknown_host, with_scratch, within_budget};
use crate::maps::{Http2, PARTS, Scratch, Search, anew, count, phase};
use crate::packet::{Payload, payload};

/// Length of the connection preface (RFC 9113, 3.4).
pub const PREFACE: u32 = 24;

const FRAME_HEADER: u8 = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const FLAG_PADDED: u8 = 0x08;
const FLAG_PRIORITY: u8 = 0x20;
/// Stream dependency and weight.
const PRIORITY: u32 = 5;

/// Steps of one run; the walk goes on in another run, of which the kernel allows 33 in a row.
const STEPS: u32 = 96;
/// Bytes that are read from the packet at once.
const WINDOW: u32 = 256;

/// Entries of HPACK's static table (RFC 7541, appendix A).
const STATIC_ENTRIES: u32 = 61;
const AUTHORITY_INDEX: u32 = 1;
const HOST_INDEX: u32 = 38;
/// `:authority` in Huffman code.
const AUTHORITY_HUFFMAN: u64 = 0xb83b_5339_ec32_7d7f;
const AUTHORITY_START: u64 = u64::from_be_bytes(*b":authori");
const AUTHORITY_END: [u8; 2] = *b"ty";

/// What the next byte of a header block is.
mod state {
    pub const FIELD: u8 = 0;
    pub const PAD_LENGTH: u8 = 1;
    pub const INTEGER: u8 = 2;
    pub const NAME_LENGTH: u8 = 3;
    pub const VALUE_LENGTH: u8 = 4;
    pub const NAME: u8 = 5;
    pub const CAPTURE: u8 = 6;
}

/// What an integer means.
mod meaning {
    pub const INDEX: u8 = 0;
    pub const NAME_INDEX: u8 = 1;
    pub const TABLE_SIZE: u8 = 2;
    pub const NAME_LENGTH: u8 = 3;
    pub const VALUE_LENGTH: u8 = 4;
}

/// Bits of `Http2::field`.
const INCREMENTAL: u8 = 1;
const AUTHORITY: u8 = 2;
const HUFFMAN: u8 = 4;
const NEEDS_PRIORITY: u8 = 8;
/// The connection is older than the programs: entries of its dynamic table are not known.
pub const BLIND: u8 = 16;

/// A field of such a connection referred to an entry that is not known.
const BLIND_INDEX: u8 = 32;

/// How a run ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// All bytes of the packet were walked.
    Packet,
    /// More steps are needed.
    Steps,
    /// A value of the authority begins or goes on.
    Capture,
    /// Bytes that cannot be read, or that are no HTTP/2.
    Lost,
}

/// Whether the first eight bytes are those of the connection preface.
#[inline(always)]
pub fn is_preface(word: u64) -> bool {
    word == u64::from_be_bytes(*b"PRI * HT")
}

/// Whether a packet begins with the HEADERS frame of a request, as opposed to a response or anything else.
#[inline(always)]
pub fn is_headers_frame(ctx: &SkBuffContext, payload: &Payload, word: u64) -> bool {
    let (len, kind, flags, stream) = (word >> 40, (word >> 32) as u8, (word >> 24) as u8, word & 0xff_ffff);
    if kind != HEADERS || len == 0 || len > 0x4000 || flags & !0x25 != 0 || stream & 0x80_0000 != 0 {
        return false;
    }
    let at = payload.offset as usize + usize::from(FRAME_HEADER);
    let Ok(last) = ctx.load::<u8>(at - 1) else { return false };
    let field = if flags & FLAG_PRIORITY != 0 { at + PRIORITY as usize } else { at };
    let Ok(field) = ctx.load::<u8>(field) else { return false };
    // Streams of a client are odd, and a request begins with an indexed :method, :path or :scheme (2 to 7).
    last & 1 == 1 && (0x82..=0x87).contains(&field)
}

#[inline(always)]
pub fn try_http2(ctx: &SkBuffContext) {
    let Some(sk) = full_socket(ctx) else { return };
    let search = search_of(sk);
    if search.is_null() {
        return;
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    let Some(payload) = payload(ctx) else { return };
    let begin = search.next_seq.wrapping_sub(payload.seq);
    if begin >= payload.len {
        // Sent before. Bytes that begin behind those we wait for would mean that a packet was not shown to us.
        if begin > u32::MAX / 2 {
            with_scratch(|scratch| lost(ctx, search, scratch));
        }
        return;
    }
    let end = with_scratch(|scratch| {
        scratch.at = begin;
        let end = walk(ctx, search, scratch, &payload);
        let at = anew!(scratch.at);
        if end == End::Capture {
            scratch.at = at + capture(ctx, search, scratch, &payload, at);
        }
        if end == End::Lost {
            lost(ctx, search, scratch);
        }
        if search.http2.field & BLIND_INDEX != 0 {
            search.http2.field &= !BLIND_INDEX;
            unknown_host(ctx, search, scratch);
        }
        search.next_seq = payload.seq.wrapping_add(anew!(scratch.at));
        end
    });
    if matches!(end, Some(End::Steps | End::Capture)) {
        // SAFETY: a program of the same type.
        let _ = unsafe { PARTS.tail_call(ctx, part::HTTP2) };
    }
    if end.is_none() {
        // Without room to read it the thread is lost.
        search.phase = phase::DONE;
        crate::connect::flag_edge(&search.key, sidescope_common::edge_flags::HOST_UNKNOWN);
    }
}

#[inline(always)]
fn lost(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch) {
    count(Counter::FramesLost);
    unknown_host(ctx, search, scratch);
    search.phase = phase::DONE;
}

/// Walks on from where the scratch says; returns why it stopped.
#[inline(always)]
fn walk(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, payload: &Payload) -> End {
    scratch.window = 0;
    scratch.window_end = 0;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let at = anew!(scratch.at);
        if at >= payload.len {
            return End::Packet;
        }
        let left = payload.len - at;
        let http2 = &mut search.http2;
        if http2.frame_left != 0 {
            let pass = passes(http2).min(left);
            if pass != 0 {
                http2.frame_left -= pass;
                scratch.at = at + pass;
                continue;
            }
            if http2.state == state::CAPTURE {
                return End::Capture;
            }
        }
        if at < anew!(scratch.window) || at >= anew!(scratch.window_end) {
            let len = left.min(WINDOW);
            scratch.window = at;
            scratch.window_end = at + len;
            if !load(ctx, scratch, payload.offset + at, len) {
                return End::Lost;
            }
        }
        let byte = byte_at(scratch, at.wrapping_sub(anew!(scratch.window)) as usize);
        scratch.at = at + 1;
        if http2.frame_left == 0 {
            if frame_byte(http2, byte) {
                search.request = search.request.wrapping_add(1);
            }
            continue;
        }
        http2.frame_left -= 1;
        if !field_byte(http2, byte) {
            return End::Lost;
        }
    }
    End::Steps
}

/// How many bytes of the current frame are of no interest.
#[inline(always)]
fn passes(http2: &mut Http2) -> u32 {
    if http2.frame_type != HEADERS && http2.frame_type != CONTINUATION {
        return http2.frame_left;
    }
    if http2.frame_left <= u32::from(http2.pad) {
        return http2.frame_left;
    }
    let pass = http2.skip.min(http2.frame_left - u32::from(http2.pad));
    http2.skip -= pass;
    pass
}

/// A byte of a frame header. True: it is the last one of a HEADERS frame's.
#[inline(always)]
fn frame_byte(http2: &mut Http2, byte: u8) -> bool {
    match http2.header {
        0..=2 => http2.frame_len = (http2.frame_len << 8) | u32::from(byte),
        3 => http2.frame_type = byte,
        4 => http2.frame_flags = byte,
        _ => {}
    }
    http2.header += 1;
    if http2.header < FRAME_HEADER {
        return false;
    }
    http2.header = 0;
    http2.frame_left = http2.frame_len & 0xff_ffff;
    http2.pad = 0;
    if http2.frame_type != HEADERS {
        return false;
    }
    http2.field &= BLIND | BLIND_INDEX;
    http2.skip = 0;
    http2.state = state::FIELD;
    if http2.frame_flags & FLAG_PRIORITY != 0 {
        http2.field |= NEEDS_PRIORITY;
        http2.skip = PRIORITY;
    }
    if http2.frame_flags & FLAG_PADDED != 0 {
        http2.skip = 0;
        http2.state = state::PAD_LENGTH;
    }
    true
}

/// A byte of a header block. False: no HTTP/2.
#[inline(always)]
fn field_byte(http2: &mut Http2, byte: u8) -> bool {
    let (prefix, what) = match http2.state {
        state::PAD_LENGTH => {
            http2.pad = byte;
            http2.state = state::FIELD;
            http2.skip = if http2.field & NEEDS_PRIORITY != 0 { PRIORITY } else { 0 };
            return true;
        }
        state::INTEGER => {
            if http2.shift > 21 {
                return false;
            }
            http2.value += u32::from(byte & 0x7f) << (http2.shift & 31);
            http2.shift += 7;
            if byte & 0x80 == 0 {
                integer(http2);
            }
            return true;
        }
        state::NAME => {
            name_byte(http2, byte);
            return true;
        }
        state::FIELD => {
            http2.field &= BLIND | BLIND_INDEX;
            if byte & 0x80 != 0 {
                (0x7f, meaning::INDEX)
            } else if byte & 0x40 != 0 {
                http2.field |= INCREMENTAL;
                (0x3f, meaning::NAME_INDEX)
            } else if byte & 0x20 != 0 {
                (0x1f, meaning::TABLE_SIZE)
            } else {
                (0x0f, meaning::NAME_INDEX)
            }
        }
        other => {
            http2.field = (http2.field & !HUFFMAN) | if byte & 0x80 != 0 { HUFFMAN } else { 0 };
            let what = if other == state::NAME_LENGTH { meaning::NAME_LENGTH } else { meaning::VALUE_LENGTH };
            (0x7f, what)
        }
    };
    http2.meaning = what;
    http2.value = u32::from(byte & prefix);
    http2.shift = 0;
    if byte & prefix == prefix {
        http2.state = state::INTEGER;
    } else {
        integer(http2);
    }
    true
}

/// An integer is complete.
#[inline(always)]
fn integer(http2: &mut Http2) {
    let value = http2.value;
    match http2.meaning {
        meaning::NAME_INDEX if value == 0 => http2.state = state::NAME_LENGTH,
        meaning::NAME_INDEX => {
            let named = value == AUTHORITY_INDEX || value == HOST_INDEX;
            let by_entry = value > STATIC_ENTRIES
                && http2.authority != 0
                && http2.inserted.wrapping_sub(value - STATIC_ENTRIES - 1) == http2.authority;
            if named || by_entry {
                http2.field |= AUTHORITY;
            }
            http2.state = state::VALUE_LENGTH;
        }
        meaning::NAME_LENGTH => {
            let of_authority = if http2.field & HUFFMAN != 0 { 8 } else { 10 };
            http2.matched = 0;
            if value == of_authority {
                http2.state = state::NAME;
            } else {
                http2.skip = value;
                http2.state = state::VALUE_LENGTH;
            }
        }
        meaning::VALUE_LENGTH => {
            if http2.field & INCREMENTAL != 0 {
                http2.inserted = http2.inserted.wrapping_add(1);
                if http2.field & AUTHORITY != 0 {
                    http2.authority = http2.inserted;
                }
            }
            http2.state = state::FIELD;
            if http2.field & AUTHORITY != 0 && value != 0 {
                http2.capture = value;
                http2.length = value;
                http2.state = state::CAPTURE;
            } else {
                http2.skip = value;
            }
        }
        meaning::INDEX if value > STATIC_ENTRIES && http2.field & BLIND != 0 => {
            http2.field |= BLIND_INDEX;
            http2.state = state::FIELD;
        }
        _ => http2.state = state::FIELD,
    }
}

/// A byte of a name that is as long as that of the authority.
#[inline(always)]
fn name_byte(http2: &mut Http2, byte: u8) {
    let at = http2.matched & 15;
    let (word, len) = if http2.field & HUFFMAN != 0 { (AUTHORITY_HUFFMAN, 8) } else { (AUTHORITY_START, 10) };
    let expected = match at {
        0..=7 => (word >> (56 - 8 * u32::from(at))) as u8,
        8 => AUTHORITY_END[0],
        _ => AUTHORITY_END[1],
    };
    http2.matched = at + 1;
    if byte != expected {
        http2.skip = u32::from(len - http2.matched);
        http2.state = state::VALUE_LENGTH;
    } else if http2.matched == len {
        http2.field |= AUTHORITY;
        http2.state = state::VALUE_LENGTH;
    }
}

/// The value of an authority, or as much of it as this packet and frame hold; returns how much.
#[inline(always)]
fn capture(
    ctx: &SkBuffContext,
    search: &mut Search,
    scratch: &mut Scratch,
    payload: &Payload,
    at: u32,
) -> u32 {
    let http2 = &mut search.http2;
    let total = http2.length;
    let room = http2.frame_left.saturating_sub(u32::from(http2.pad)).min(payload.len - at);
    let len = http2.capture.min(room);
    let first = http2.capture == total;
    let whole = first && len == total;
    let format = if http2.field & HUFFMAN != 0 { head_format::HUFFMAN } else { head_format::NAME };
    http2.capture -= len;
    http2.frame_left -= len;
    if http2.capture == 0 {
        http2.state = state::FIELD;
    }
    if whole {
        name(ctx, search, scratch, payload.offset + at, len, format);
        return len;
    }
    if first {
        search.copied = 0;
        if total as usize > NAME_BYTES || !within_budget(ctx, search, scratch) {
            unknown_host(ctx, search, scratch);
            search.http2.skip = search.http2.capture;
            search.http2.capture = 0;
            search.http2.state = state::FIELD;
            return len;
        }
    }
    if load(ctx, scratch, payload.offset + at, len) {
        hand_on(ctx, search, scratch, &Piece { len, total, format, host: 0 });
        search.copied += len;
    } else {
        unknown_host(ctx, search, scratch);
    }
    len
}
