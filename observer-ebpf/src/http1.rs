//! HTTP/1: the Host header of a request, in a way that the verifier of 5.10 can follow.

use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{Counter, HEAD_BYTES, head_format, part};

use crate::bounded::byte_at;
use crate::egress::{first_word, print, to_part, unseen};
use crate::handover::{NAME_BYTES, Name, Piece, claim, hand_on, load, lost, name, release, within_budget};
use crate::maps::{Look, Scratch, Search, anew, phase};
use crate::packet::Payload;

/// Bytes of a segment that are searched for the Host header here. A host that stands later is found in user space.
const SCAN_BYTES: usize = 1024;

/// Bytes that are looked at to find a method.
const METHOD: u32 = 8;
/// Payloads that are shorter hold no whole method and the byte after it.
const SHORT: u32 = METHOD + 1;

/// Length of `\nHost: `.
const HOST_HEADER: u32 = 7;
/// Bytes by which a request is known again.
const PRINT: u32 = 64;

/// Most bytes of a method that is not listed in [`method_len`], with its blank.
const OTHER_METHOD: u32 = 15;

/// `\nHost:` with bit 5 of every byte set, as the loop sees it.
const NEEDLE: u64 = u64::from_be_bytes([0, 0, b'\n' | 0x20, b'h', b'o', b's', b't', b':']);
const NEEDLE_MASK: u64 = 0xffff_ffff_ffff;

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

/// Whether a payload that begins with these eight bytes may be a request. Of one that is written in tiny pieces only the first
/// byte can be looked at.
#[inline(always)]
pub fn may_be_request(ctx: &SkBuffContext, payload: &Payload, word: u64) -> bool {
    let first = (word >> 56) as u8;
    if payload.len >= SHORT {
        return method_len(word).is_some()
            || (first.is_ascii_uppercase() && is_other_method(ctx, payload, word));
    }
    matches!(first, b'G' | b'P' | b'H' | b'D' | b'O' | b'C' | b'T')
}

/// Whether a payload begins with a method that is not listed above, and a path: WebDAV, Vault and caches have some.
#[inline(always)]
fn is_other_method(ctx: &SkBuffContext, payload: &Payload, word: u64) -> bool {
    // Of what is too short for that, the longest method would be most.
    let rest = ctx.load::<[u8; 8]>(payload.offset as usize + 8).map_or(0, u64::from_be_bytes);
    let mut i = 0;
    while i < OTHER_METHOD {
        let byte = if i < 8 { word >> (56 - 8 * i) } else { rest >> (120 - 8 * i) } as u8;
        if byte == b' ' {
            let next = if i < 7 { word >> (48 - 8 * i) } else { rest >> (112 - 8 * i) } as u8;
            return i > 2 && next == b'/';
        }
        if !byte.is_ascii_uppercase() && byte != b'-' {
            return false;
        }
        i += 1;
    }
    false
}

/// A request begins where the search has come to, or goes on there.
#[inline(always)]
pub fn try_http1(ctx: &SkBuffContext) {
    let Some((search, payload)) = unseen(ctx) else { return };
    let Some(scratch) = claim() else { return give_up(search) };
    if search.phase == phase::HEAD {
        go_on(ctx, search, scratch, &payload);
        let end = anew!(scratch.at);
        release(ctx, scratch);
        return follow(ctx, search, payload, end);
    }
    begin(ctx, search, scratch, &payload);
    release(ctx, scratch);
    // Where the head ended in this packet, or its host was found in it, another one may follow.
    if search.next_seq == payload.seq {
        to_part(ctx, part::PIPELINED);
        too_many(search);
    }
}

/// The kernel allows 33 programs in a row, and they are used up: there may be more requests in the packet.
#[inline(always)]
fn too_many(search: &Search) {
    lost(Counter::Pipelined, search);
}

/// The bytes cannot be read, or there is no room to read them: goes on with the next request.
#[inline(always)]
fn give_up(search: &mut Search) {
    lost(Counter::PacketUnreadable, search);
    search.phase = phase::BETWEEN;
}

/// Goes on with the request that begins where a head has ended, if one does.
#[inline(always)]
fn follow(ctx: &SkBuffContext, search: &mut Search, payload: Payload, end: u32) {
    if end == 0 || end >= payload.len {
        return;
    }
    let payload = payload.after(end);
    let word = first_word(ctx, &payload);
    let is_request = method_len(word).is_some()
        || is_part_of_method(&payload, word)
        || is_other_method(ctx, &payload, word);
    if is_request {
        search.next_seq = payload.seq;
        to_part(ctx, part::HTTP1);
        too_many(search);
    }
}

/// Whether the few bytes at the end of a packet begin a request. Of less than three of them nobody can tell: they may be a body.
#[inline(always)]
fn is_part_of_method(payload: &Payload, word: u64) -> bool {
    if payload.len < 3 || payload.len >= METHOD {
        return false;
    }
    let missing = (METHOD - payload.len) * 8;
    let begins = |method: &[u8; 8]| (word ^ u64::from_be_bytes(*method)) >> missing == 0;
    begins(b"POST    ")
        || begins(b"HEAD    ")
        || begins(b"PATCH   ")
        || begins(b"TRACE   ")
        || begins(b"DELETE  ")
        || begins(b"OPTIONS ")
        || begins(b"CONNECT ")
        || begins(b"GET     ")
        || begins(b"PUT     ")
}

/// Whether the target is a plain path: then only the Host header names the host.
#[inline(always)]
fn has_plain_path(ctx: &SkBuffContext, payload: &Payload) -> bool {
    if payload.len < SHORT {
        return false;
    }
    let word = first_word(ctx, payload);
    match method_len(word) {
        Some(len) => ctx.load::<u8>((payload.offset + len) as usize) == Ok(b'/'),
        None => is_other_method(ctx, payload, word),
    }
}

/// The first segment of a request.
#[inline(always)]
fn begin(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, payload: &Payload) {
    search.request = search.request.wrapping_add(1);
    search.copied = 0;
    search.phase = phase::BETWEEN;
    let len = payload.len.min(HEAD_BYTES as u32);
    scratch.window_end = len;
    if !load(ctx, scratch, payload.offset, len) {
        return give_up(search);
    }
    if has_plain_path(ctx, payload) && find_host(scratch) {
        // Through memory: see `Scratch::start`.
        let (from, to) = (anew!(scratch.start), anew!(scratch.end));
        search.next_seq = payload.seq;
        match name(ctx, search, scratch, payload.offset + from, to - from, head_format::NAME) {
            Name::Known => search.look = look_of(ctx, payload, from, to),
            Name::New => search.look.print = 0,
        }
        return;
    }
    // The host stands in the target, later than the loop looks, or in a later segment: user space has a look.
    search.look.print = 0;
    search.tail = 0;
    if within_budget(search) {
        hand_on_piece(ctx, search, scratch, payload, len);
        if search.phase == phase::BETWEEN {
            search.next_seq = payload.seq;
        }
    }
}

/// What to know a request by whose host stands between these places of its payload.
#[inline(always)]
fn look_of(ctx: &SkBuffContext, payload: &Payload, from: u32, to: u32) -> Look {
    let at = from.saturating_sub(HOST_HEADER);
    // With the name of the header, and the end of its line.
    let print = if to - at < PRINT { print(ctx, payload, at) } else { 0 };
    Look { print, at, len: payload.len }
}

/// Looks for another request behind the one where the search has come to. A program of its own: in the one that looks for the
/// host, the verifier would walk this loop once for each end of that one.
#[inline(always)]
pub fn try_pipelined(ctx: &SkBuffContext) {
    let Some((search, payload)) = unseen(ctx) else { return };
    let Some(scratch) = claim() else { return give_up(search) };
    let len = payload.len.min(HEAD_BYTES as u32);
    scratch.window_end = len;
    scratch.at = 0;
    if load(ctx, scratch, payload.offset, len) {
        if search.phase != phase::REST {
            search.tail = 0;
        }
        find_end_across(search, scratch, len);
        let is_open = anew!(scratch.at) == 0 && payload.len <= SCAN_BYTES as u32 && !ends_head(search.tail);
        search.phase = if is_open { phase::REST } else { phase::BETWEEN };
        if is_open {
            search.look.print = 0;
        }
        search.next_seq = payload.seq.wrapping_add(payload.len);
    } else {
        give_up(search);
    }
    let end = anew!(scratch.at);
    release(ctx, scratch);
    follow(ctx, search, payload, end);
}

/// A further segment of a head whose host has not been found; leaves in `at` where it ends, or 0.
#[inline(always)]
fn go_on(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, payload: &Payload) {
    let len = payload.len.min((HEAD_BYTES as u32).saturating_sub(search.copied));
    scratch.window_end = len;
    scratch.at = 0;
    if load(ctx, scratch, payload.offset, len) {
        hand_on_piece(ctx, search, scratch, payload, len);
    } else {
        give_up(search);
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
    find_end_across(search, scratch, len);
    // It may end beyond what is searched.
    let ended = anew!(scratch.at) != 0 || ends_head(search.tail);
    let more = search.copied < HEAD_BYTES as u32 && !ended;
    search.phase = if more { phase::HEAD } else { phase::BETWEEN };
}

/// Whether the last of these four bytes ends the empty line that ends a head. The carriage returns may be missing (RFC 9112, 2.2).
#[inline(always)]
fn ends_head(bytes: u32) -> bool {
    bytes & 0xffff == 0x0a0a || bytes & 0xff_ffff == 0x0a_0d0a
}

/// Looks for the end of a head; leaves in `at` where it is, or 0.
#[inline(always)]
fn find_end(scratch: &mut Scratch) {
    scratch.at = 0;
    let mut window = 0u32;
    let mut i = 0;
    // Two bytes at once: the head ends with them, or with the first of them.
    while i < SCAN_BYTES / 2 {
        let at = 2 * i;
        if at + 1 >= anew!(scratch.window_end) as usize {
            break;
        }
        window = window << 16 | u32::from(byte_at(scratch, at)) << 8 | u32::from(byte_at(scratch, at + 1));
        if ends_head(window >> 8) {
            scratch.at = at as u32 + 1;
            break;
        }
        if ends_head(window) {
            scratch.at = at as u32 + 2;
            break;
        }
        i += 1;
    }
}

/// The same in a piece of a head, where the line may have begun in an earlier one.
#[inline(always)]
fn find_end_across(search: &mut Search, scratch: &mut Scratch, len: u32) {
    let start = u32::from_be_bytes([0, 1, 2, 3].map(|at| byte_at(scratch, at)));
    let both = u64::from(search.tail) << 32 | u64::from(start);
    let across = if len >= 1 && ends_head((both >> 24) as u32) {
        1
    } else if len >= 2 && ends_head((both >> 16) as u32) {
        2
    } else {
        0
    };
    search.tail = if len < 4 {
        (both >> (32 - 8 * len)) as u32
    } else {
        let last = len as usize - 4;
        u32::from_be_bytes([0, 1, 2, 3].map(|at| byte_at(scratch, last + at)))
    };
    if across == 0 {
        find_end(scratch);
    } else {
        scratch.at = across;
    }
}

/// Looks for the whole value of the Host header; leaves where it starts and ends in the scratch.
///
/// How many bytes there are is read anew for each of them: a comparison would tell the verifier how many there are at this end of
/// the loop, and it would walk the rest of the program once for each.
#[inline(always)]
fn find_host(scratch: &mut Scratch) -> bool {
    scratch.start = 0;
    scratch.end = 0;
    let mut window = 0u64;
    let mut i = 0;
    while i < SCAN_BYTES {
        if i >= anew!(scratch.window_end) as usize {
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
    if start < anew!(scratch.window_end) as usize && byte_at(scratch, start) == b' ' {
        start += 1;
        scratch.start = start as u32;
    }
    let mut i = 0;
    while i < NAME_BYTES {
        let at = start + i;
        if at >= anew!(scratch.window_end) as usize {
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
