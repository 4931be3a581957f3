//! HTTP/2: the :authority of a request, found by the walk in `sidescope_common::http2`.

use aya_ebpf::programs::SkBuffContext;
use sidescope_common::http2::{
    BLIND_INDEX, FLAG_PRIORITY, FRAME_HEADER, HEADERS, HUFFMAN, PRIORITY, field_byte, frame_byte, pass, state,
};
use sidescope_common::{Counter, head_format, part};

use crate::bounded::byte_at;
use crate::egress::{search_of, socket};
use crate::handover::{NAME_BYTES, Piece, hand_on, load, lost, name, with_scratch, within_budget};
use crate::maps::{PARTS, Scratch, Search, anew, phase};
use crate::packet::{Payload, payload};

/// Steps of one run; the walk goes on in another run, of which the kernel allows 33 in a row.
const STEPS: u32 = 48;
/// Bytes that are read from the packet at once.
const WINDOW: u32 = 256;
/// Entries of HPACK's static table.
const STATIC_ENTRIES: u8 = 61;

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

/// Where the HEADERS frame of a request begins in a packet that begins with a frame; of those before it only a few are passed over.
#[inline(always)]
pub fn find_headers(ctx: &SkBuffContext, payload: &Payload) -> Option<u32> {
    const FRAMES: u32 = 4;
    let mut at = 0;
    let mut i = 0;
    while i < FRAMES {
        let word = ctx.load::<[u8; 8]>((payload.offset + at) as usize).map_or(u64::MAX, u64::from_be_bytes);
        if is_headers_frame(ctx, payload.offset + at, word) {
            return Some(at);
        }
        at += u32::from(FRAME_HEADER) + other_frame(word)?;
        if at >= payload.len {
            return None;
        }
        i += 1;
    }
    None
}

/// Length of the payload of a frame that a client may send before a request; `None`: these eight bytes begin none.
#[inline(always)]
fn other_frame(word: u64) -> Option<u32> {
    let (len, kind, stream) = ((word >> 40) as u32, (word >> 32) as u8, word & 0xff_ffff);
    let is_one = stream & 0x80_0000 == 0
        && match kind {
            0 => len <= 0x4000,
            2 => len == 5,
            3 | 8 => len == 4,
            4 => len <= 0x100 && stream == 0,
            6 => len == 8 && stream == 0,
            _ => false,
        };
    is_one.then_some(len)
}

/// Whether these eight bytes, and those after them, are the HEADERS frame of a request, as opposed to a response or anything else.
#[inline(always)]
fn is_headers_frame(ctx: &SkBuffContext, at: u32, word: u64) -> bool {
    let (len, kind, flags, stream) = (word >> 40, (word >> 32) as u8, (word >> 24) as u8, word & 0xff_ffff);
    if kind != HEADERS || len == 0 || len > 0x4000 || flags & !0x25 != 0 || stream & 0x80_0000 != 0 {
        return false;
    }
    let at = at as usize + usize::from(FRAME_HEADER);
    let Ok(last) = ctx.load::<u8>(at - 1) else { return false };
    let field = if flags & FLAG_PRIORITY != 0 { at + PRIORITY as usize } else { at };
    let Ok(field) = ctx.load::<u8>(field) else { return false };
    // Streams of a client are odd, and a request begins with a field of :authority, :method, :path or :scheme (1 to 7), one of the dynamic
    // table, or a new size of that.
    let is_first = match field {
        0x81.. => field <= 0x87 || field > 0x80 + STATIC_ENTRIES,
        0x40.. => (0x41..=0x47).contains(&field),
        0x20.. => true,
        _ => (1..8).contains(&(field & 0xf)),
    };
    last & 1 == 1 && is_first
}

#[inline(always)]
pub fn try_http2(ctx: &SkBuffContext) {
    let Some(sk) = socket(ctx) else { return };
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
            lose_thread(search);
        }
        return;
    }
    let end = with_scratch(ctx, |scratch| {
        scratch.at = begin;
        let end = walk(ctx, search, scratch, &payload);
        let at = anew!(scratch.at);
        if end == End::Capture {
            scratch.at = at + capture(ctx, search, scratch, &payload, at);
        }
        if end == End::Lost {
            lose_thread(search);
        }
        if search.http2.field & BLIND_INDEX != 0 {
            search.http2.field &= !BLIND_INDEX;
            lost(Counter::BeforeStart, search);
        }
        search.next_seq = payload.seq.wrapping_add(anew!(scratch.at));
        end
    });
    if matches!(end, Some(End::Steps | End::Capture)) {
        // SAFETY: a program of the same type.
        unsafe { PARTS.tail_call(ctx, part::HTTP2) };
        // The kernel allows 33 programs in a row, and they are used up.
        lose_thread(search);
    }
    if end.is_none() {
        // Without room to read it the thread is lost.
        search.phase = phase::DONE;
        lost(Counter::PacketUnreadable, search);
    }
}

#[inline(always)]
fn lose_thread(search: &mut Search) {
    lost(Counter::FramesLost, search);
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
            let passed = pass(http2, left);
            if passed != 0 {
                scratch.at = at + passed;
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
        let is_too_long = total as usize > NAME_BYTES;
        if is_too_long {
            lost(Counter::PacketUnreadable, search);
        }
        if is_too_long || !within_budget(search) {
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
        lost(Counter::PacketUnreadable, search);
    }
    len
}
