//! HTTP/1: the Host header of a request, in a way that the verifier of 5.10 can follow.

use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{Counter, HEAD_BYTES, head_format};

use crate::bounded::byte_at;
use crate::handover::{NAME_BYTES, Name, Piece, hand_on, load, name, unknown_host, within_budget};
use crate::maps::{Scratch, Search, anew, count, phase};
use crate::packet::Payload;

/// Bytes of a segment that are searched for the Host header here. A host that stands later is found in user space.
const SCAN_BYTES: usize = 1024;

/// `\nHost:` with bit 5 of every byte set, as the loop sees it.
const NEEDLE: u64 = u64::from_be_bytes([0, 0, b'\n' | 0x20, b'h', b'o', b's', b't', b':']);
const NEEDLE_MASK: u64 = 0xffff_ffff_ffff;

/// How a segment begins.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Not like a request.
    Other,
    /// A method and a plain path: only the Host header names the host.
    Path,
    /// A method, and a target that may name the host; or too few bytes to tell.
    Unclear,
}

/// Whether eight bytes begin with an HTTP/1 method, and how long it is with its blank.
#[inline(always)]
pub fn method_len(word: u64) -> Option<u32> {
    let len = match (word >> 32) as u32 {
        0x4745_5420 | 0x5055_5420 => 4,                               // "GET ", "PUT "
        0x504f_5354 | 0x4845_4144 if (word >> 24) as u8 == b' ' => 5, // "POST ", "HEAD "
        0x5041_5443 if (word >> 16) as u16 == 0x4820 => 6,            // "PATCH "
        0x5452_4143 if (word >> 16) as u16 == 0x4520 => 6,            // "TRACE "
        0x4445_4c45 if (word >> 8) as u32 & 0xff_ffff == 0x54_4520 => 7, // "DELETE "
        0x4f50_5449 if word as u32 == 0x4f4e_5320 => 8,               // "OPTIONS "
        0x434f_4e4e if word as u32 == 0x4543_5420 => 8,               // "CONNECT "
        _ => return None,
    };
    Some(len)
}

/// How the payload begins, whose first eight bytes are `word`.
#[inline(always)]
pub fn start(ctx: &SkBuffContext, payload: &Payload, word: u64) -> Start {
    let Some(len) = method_len(word) else { return Start::Other };
    match ctx.load::<u8>((payload.offset + len) as usize) {
        Ok(b'/') => Start::Path,
        _ => Start::Unclear,
    }
}

/// The first segment of a request.
#[inline(always)]
pub fn begin(
    ctx: &SkBuffContext,
    search: &mut Search,
    scratch: &mut Scratch,
    payload: &Payload,
    start: Start,
) {
    search.request = search.request.wrapping_add(1);
    search.copied = 0;
    search.phase = phase::BETWEEN;
    let len = payload.len.min(HEAD_BYTES as u32);
    if !load(ctx, scratch, payload.offset, len) {
        count(Counter::PacketUnreadable);
        unknown_host(ctx, search, scratch);
        return;
    }
    if start == Start::Path && find_host(scratch, len as usize) {
        // Through memory: see `Scratch::start`.
        let (from, to) = (anew!(scratch.start), anew!(scratch.end));
        match name(ctx, search, scratch, payload.offset + from, to - from, head_format::NAME) {
            Name::Known => search.known += 1,
            Name::New => search.known = 0,
        }
        return;
    }
    // The host stands in the target, later than the loop looks, or in a later segment: user space has a look.
    search.known = 0;
    if within_budget(ctx, search, scratch) {
        hand_on_piece(ctx, search, scratch, payload, len);
    }
}

/// A further segment of a head whose host has not been found.
#[inline(always)]
pub fn go_on(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, payload: &Payload) {
    let len = payload.len.min((HEAD_BYTES as u32).saturating_sub(search.copied));
    if load(ctx, scratch, payload.offset, len) {
        hand_on_piece(ctx, search, scratch, payload, len);
    } else {
        count(Counter::PacketUnreadable);
        unknown_host(ctx, search, scratch);
        search.phase = phase::BETWEEN;
    }
}

#[inline(always)]
fn hand_on_piece(
    ctx: &SkBuffContext,
    search: &mut Search,
    scratch: &mut Scratch,
    payload: &Payload,
    len: u32,
) {
    hand_on(ctx, search, scratch, &Piece { len, total: 0, format: head_format::HTTP1, host: 0 });
    search.copied += len;
    search.next_seq = payload.seq.wrapping_add(len);
    let more = search.copied < HEAD_BYTES as u32 && !ends_head(scratch, len as usize);
    search.phase = if more { phase::HEAD } else { phase::BETWEEN };
}

/// Whether the bytes end with the empty line that ends a head.
#[inline(always)]
fn ends_head(scratch: &Scratch, len: usize) -> bool {
    if !(4..=HEAD_BYTES).contains(&len) {
        return false;
    }
    let last = len - 4;
    byte_at(scratch, last) == b'\r'
        && byte_at(scratch, last + 1) == b'\n'
        && byte_at(scratch, last + 2) == b'\r'
        && byte_at(scratch, last + 3) == b'\n'
}

/// Looks for the whole value of the Host header in the first `len` bytes of the scratch; leaves where it starts and ends there.
#[inline(always)]
fn find_host(scratch: &mut Scratch, len: usize) -> bool {
    scratch.start = 0;
    scratch.end = 0;
    let mut window = 0u64;
    let mut i = 0;
    while i < SCAN_BYTES {
        if i >= len {
            break;
        }
        window = ((window << 8) | u64::from(byte_at(scratch, i) | 0x20)) & NEEDLE_MASK;
        i += 1;
        if window == NEEDLE {
            scratch.start = i as u32;
            break;
        }
    }
    // Through memory: see `Scratch::start`.
    let mut start = anew!(scratch.start) as usize;
    if start == 0 || start > SCAN_BYTES {
        return false;
    }
    // The usual blank; more of them become part of what is handed on.
    if start < len && byte_at(scratch, start) == b' ' {
        start += 1;
        scratch.start = start as u32;
    }
    let mut i = 0;
    while i < NAME_BYTES {
        let at = start + i;
        if at >= len {
            break;
        }
        let byte = byte_at(scratch, at);
        if byte == b'\r' || byte == b'\n' {
            scratch.end = at as u32;
            break;
        }
        i += 1;
    }
    // An empty value is left to user space.
    anew!(scratch.end) as usize > start
}
