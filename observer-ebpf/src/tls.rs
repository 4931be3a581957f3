//! TLS: the server name in a ClientHello.

use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{Counter, HEAD_BYTES, head_format};

use crate::bounded::byte_at;
use crate::egress::unseen;
use crate::handover::{Piece, hand_on, load, lost, name, unnamed, with_scratch, within_budget};
use crate::maps::{Scratch, Search, anew, phase};
use crate::packet::Payload;

const RECORD_HEADER: usize = 5;
const HANDSHAKE_HEADER: usize = 4;
/// Type of the handshake message with which a client begins; the sixth byte of its first record.
pub const CLIENT_HELLO: u8 = 1;
/// Version and random.
const FIXED: usize = 2 + 32;
const SERVER_NAME: u16 = 0;
/// List length, type and name length before the name.
const NAME_HEADER: usize = 5;
/// Extensions that are looked at; more of them go to user space.
const EXTENSIONS: usize = 48;

#[inline(always)]
pub fn try_tls(ctx: &SkBuffContext) {
    let Some((search, payload)) = unseen(ctx) else { return };
    if with_scratch(ctx, |scratch| read(ctx, search, scratch, &payload)).is_none() {
        give_up(search);
    }
}

#[inline(always)]
fn read(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, payload: &Payload) {
    let len = payload.len.min((HEAD_BYTES as u32).saturating_sub(search.copied));
    if !load(ctx, scratch, payload.offset, len) {
        return give_up(search);
    }
    if search.copied == 0 {
        match find_name(scratch, len as usize) {
            Hello::Name { at, len } => {
                search.phase = phase::DONE;
                name(ctx, search, scratch, payload.offset + at, len, head_format::NAME);
                return;
            }
            Hello::NoName => {
                search.phase = phase::DONE;
                unnamed(ctx, search, scratch);
                return;
            }
            Hello::None => {
                search.phase = phase::DONE;
                return;
            }
            Hello::Unclear => {
                if !within_budget(search) {
                    search.phase = phase::DONE;
                    return;
                }
                search.request = search.request.wrapping_add(1);
            }
        }
    }
    hand_on(ctx, search, scratch, &Piece { len, total: 0, format: head_format::TLS, host: 0 });
    search.copied += len;
    search.next_seq = search.next_seq.wrapping_add(len);
    if search.copied >= HEAD_BYTES as u32 {
        search.phase = phase::DONE;
    }
}

/// The hello cannot be read, or there is no room to read it.
#[inline(always)]
fn give_up(search: &mut Search) {
    lost(Counter::PacketUnreadable, search);
    search.phase = phase::DONE;
}

enum Hello {
    /// Where the name stands.
    Name { at: u32, len: u32 },
    /// The hello has no name.
    NoName,
    /// This is no hello.
    None,
    /// Cut off, or spread over records.
    Unclear,
}

#[inline(always)]
fn find_name(scratch: &mut Scratch, len: usize) -> Hello {
    if len < RECORD_HEADER + HANDSHAKE_HEADER + FIXED + 1 {
        return Hello::Unclear;
    }
    if byte_at(scratch, RECORD_HEADER) != CLIENT_HELLO {
        return Hello::None;
    }
    let record = usize::from(word_at(scratch, 3));
    let handshake = usize::from(word_at(scratch, RECORD_HEADER + 2));
    if handshake + HANDSHAKE_HEADER > record {
        return Hello::Unclear;
    }
    let mut at = RECORD_HEADER + HANDSHAKE_HEADER + FIXED;
    at += 1 + usize::from(byte_at(scratch, at));
    if at + 2 > len {
        return Hello::Unclear;
    }
    at += 2 + usize::from(word_at(scratch, at));
    if at + 1 > len {
        return Hello::Unclear;
    }
    at += 1 + usize::from(byte_at(scratch, at));
    if at + 2 > len {
        return if at >= RECORD_HEADER + record { Hello::NoName } else { Hello::Unclear };
    }
    let end = at + 2 + usize::from(word_at(scratch, at));
    at += 2;
    scratch.start = 0;
    let mut i = 0;
    while i < EXTENSIONS {
        if at + 4 > end {
            return Hello::NoName;
        }
        if at + 4 > len {
            return Hello::Unclear;
        }
        if word_at(scratch, at) == SERVER_NAME {
            scratch.start = (at + 4) as u32;
            break;
        }
        at += 4 + usize::from(word_at(scratch, at + 2));
        i += 1;
    }
    // Through memory: see `Scratch::start`.
    let at = anew!(scratch.start) as usize;
    if at == 0 || at + NAME_HEADER > len {
        return Hello::Unclear;
    }
    let name = usize::from(word_at(scratch, at + 3));
    if at + NAME_HEADER + name > len {
        return Hello::Unclear;
    }
    if name == 0 {
        return Hello::NoName;
    }
    Hello::Name { at: (at + NAME_HEADER) as u32, len: name as u32 }
}

#[inline(always)]
fn word_at(scratch: &Scratch, at: usize) -> u16 {
    u16::from_be_bytes([byte_at(scratch, at), byte_at(scratch, at + 1)])
}
