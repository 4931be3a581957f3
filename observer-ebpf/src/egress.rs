//! Outgoing packets: which of them may name a host.
//!
//! A host that user space knows already costs a look and no event; one that it does not know is handed on, within a budget per
//! edge. Whatever cannot be handed on marks the edge as `host unknown`.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_storage_get};
use aya_ebpf::programs::SkBuffContext;
use sidescope_common::http2::{BLIND, Walk};
use sidescope_common::{Counter, EdgeKey, edge_flags, part};

use crate::bounded::word_at;
use crate::connect::flag_edge;
use crate::handover::{lost, mixed};
use crate::http1;
use crate::http2;
use crate::maps::{EDGES, Look, OLDER, OLDER_PORTS, PARTS, SEARCHES, Search, anew, lose, phase};
use crate::packet::{Payload, payload};
use crate::source::note_address;
use crate::tls::CLIENT_HELLO;

/// Packets after the first in which TLS may begin behind something else.
const OTHERS: u32 = 8;
/// Most empty lines before a request, in bytes. PROXY protocol version 2 begins with as many.
const EMPTY_LINES: u32 = 4;

#[inline(always)]
pub fn try_egress(ctx: &SkBuffContext) {
    let Some(sk) = socket(ctx) else { return };
    let search = search_of(sk);
    if search.is_null() {
        return older_socket(ctx, sk);
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    if search.phase == phase::DONE {
        return;
    }
    if !search.noted {
        search.noted = true;
        note_address(sk, search.key.netns);
    }
    look(ctx, search);
}

#[inline(always)]
fn look(ctx: &SkBuffContext, search: &mut Search) {
    let Some(payload) = payload(ctx) else {
        return pass_over(search);
    };
    if payload.len == 0 || is_repeated(ctx, search, &payload) {
        return;
    }
    if matches!(search.phase, phase::HEAD | phase::TLS)
        && search.next_seq.wrapping_sub(payload.seq) > u32::MAX / 2
    {
        // Bytes behind those that are waited for: a packet between them was not shown to us.
        pass_over(search);
    }
    match search.phase {
        phase::DONE => {}
        phase::OTHER => look_for_tls(ctx, search, &payload),
        phase::TLS => to_part(ctx, part::TLS),
        phase::HTTP2 => to_part(ctx, part::HTTP2),
        phase::HEAD => {
            if payload.seq == search.next_seq {
                to_part(ctx, part::HTTP1);
            }
        }
        _ => begin(ctx, search, payload),
    }
}

/// There were bytes that cannot be read: what had begun in an earlier packet ends here.
#[inline(always)]
fn pass_over(search: &mut Search) {
    lost(Counter::PacketUnreadable, search);
    search.phase = match search.phase {
        phase::HEAD | phase::REST => phase::BETWEEN,
        phase::TLS | phase::HTTP2 | phase::OTHER => phase::DONE,
        // Perhaps it had no payload.
        phase => phase,
    };
}

/// Whether it is the request before it once more, byte by byte where the host stands. Once a millisecond one is looked at all the same, so
/// that a host of which user space does not know any more is told again.
#[inline(always)]
fn is_repeated(ctx: &SkBuffContext, search: &mut Search, payload: &Payload) -> bool {
    search.phase == phase::BETWEEN
        && search.look.print != 0
        && search.look.len == payload.len
        && !is_next_millisecond(search)
        && search.look.print == print(ctx, payload, search.look.at)
}

/// A hash of 64 bytes of a payload; 0 if there are not so many.
#[inline(always)]
pub fn print(ctx: &SkBuffContext, payload: &Payload, at: u32) -> u64 {
    let Ok(words) = ctx.load::<[u64; 8]>((payload.offset + at) as usize) else { return 0 };
    let mut print = 0xcbf2_9ce4_8422_2325;
    for word in words {
        print = mixed(print, word);
    }
    print | 1
}

/// The first bytes of a connection, or what may be the first of a request.
#[inline(always)]
fn begin(ctx: &SkBuffContext, search: &mut Search, payload: Payload) {
    let mut payload = payload;
    let mut word = first_word(ctx, &payload);
    if search.phase == phase::NEW
        && let Some(header) = proxy_header(ctx, &payload, word)
    {
        if header > payload.len {
            // It goes on in the next packet, where nothing tells its end.
            return cut_off(search);
        }
        if header == payload.len {
            return;
        }
        payload = payload.after(header);
        word = first_word(ctx, &payload);
    }
    // Through memory: see `Scratch::start`.
    search.copied = empty_lines(word);
    let empty_lines = anew!(search.copied).min(payload.len);
    if empty_lines != 0 && search.phase != phase::REST {
        if search.phase == phase::NEW {
            search.tail = 1;
        }
        if empty_lines == payload.len {
            return;
        }
        payload = payload.after(empty_lines);
        word = first_word(ctx, &payload);
    }
    if http2::is_preface(word) && payload.len >= 8 {
        search.phase = phase::HTTP2;
        search.http2 = Walk::of_new_connection();
        search.next_seq = payload.seq;
        return to_part(ctx, part::HTTP2);
    }
    if http1::may_be_request(ctx, &payload, word) {
        search.next_seq = payload.seq;
        return to_part(ctx, part::HTTP1);
    }
    if search.phase == phase::REST && payload.seq == search.next_seq {
        return to_part(ctx, part::PIPELINED);
    }
    if search.phase != phase::NEW {
        if search.older
            && let Some(at) = http2::find_headers(ctx, &payload)
        {
            search.phase = phase::HTTP2;
            // Entries of the dynamic table from before are not known.
            search.http2.field = BLIND;
            search.next_seq = payload.seq.wrapping_add(at);
            to_part(ctx, part::HTTP2);
        }
        return;
    }
    if search.tail != 0 {
        // Behind empty lines only a request makes sense, or they were the start of a PROXY protocol header.
        return cut_off(search);
    }
    if is_tls(word) {
        return to_tls(ctx, search, &payload);
    }
    search.phase = phase::OTHER;
    search.copied = 0;
}

/// Nothing tells where a request begins that may come.
#[inline(always)]
fn cut_off(search: &mut Search) {
    lost(Counter::PacketUnreadable, search);
    search.phase = phase::DONE;
}

/// What a connection that began with neither HTTP nor TLS sends next: a database or a mail server is asked for TLS before it begins.
#[inline(always)]
fn look_for_tls(ctx: &SkBuffContext, search: &mut Search, payload: &Payload) {
    let word = first_word(ctx, payload);
    if is_tls(word) && (word >> 16) as u8 == CLIENT_HELLO {
        return to_tls(ctx, search, payload);
    }
    search.copied += 1;
    if search.copied >= OTHERS {
        // From here on the socket costs a look at its storage.
        search.phase = phase::DONE;
    }
}

#[inline(always)]
fn to_tls(ctx: &SkBuffContext, search: &mut Search, payload: &Payload) {
    search.phase = phase::TLS;
    search.next_seq = payload.seq;
    search.copied = 0;
    to_part(ctx, part::TLS);
}

/// A socket without storage: accepted, a proxy's own, outside of pods, connected before the programs were there, or on an edge with more
/// connects than get a search. Only the last two are of interest, and user space knows their cookies.
#[inline(always)]
fn older_socket(ctx: &SkBuffContext, sk: *mut bpf_sock) {
    // SAFETY: a socket of a packet. Its port of destination is in network byte order.
    let port = u16::from_be(unsafe { (*sk).dst_port });
    if OLDER_PORTS.get(u32::from(port) / 64).is_none_or(|ports| *ports >> (port % 64) & 1 == 0) {
        return;
    }
    // SAFETY: the context is valid for the run of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    // SAFETY: the value is never written after it was inserted.
    let Some(key) = (unsafe { OLDER.get(&cookie) }) else { return };
    let Some(edge) = EDGES.get_ptr(key) else {
        return lose(Counter::HeadBudget, key.netns);
    };
    // SAFETY: a map value, valid for the run of the program; this field is never written after the insert.
    let mut search = new_search(*key, unsafe { (*edge).first_ns }, phase::BETWEEN);
    search.older = true;
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: a socket of a packet; the value is of the map's type.
    let stored = unsafe { bpf_sk_storage_get(searches(), sk.cast(), (&raw mut search).cast(), flags) };
    if stored.is_null() {
        lose(Counter::SearchNoMemory, key.netns);
        flag_edge(key, edge_flags::HOST_UNKNOWN);
        return;
    }
    // SAFETY: not null, and valid for the run of the program.
    look(ctx, unsafe { &mut *stored.cast::<Search>() });
}

/// A search that has just begun.
#[inline(always)]
pub fn new_search(key: EdgeKey, edge: u64, phase: u32) -> Search {
    Search {
        key,
        edge,
        next_seq: 0,
        copied: 0,
        request: 0,
        last_look: 0,
        look: Look { print: 0, at: 0, len: 0 },
        phase,
        tail: 0,
        noted: false,
        older: false,
        reserved: [0; 6],
        http2: Walk::default(),
    }
}

/// The socket of a packet; where it is no full one, it has no storage.
#[inline(always)]
pub fn socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the run of the program.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    (!sk.is_null()).then_some(sk)
}

/// What a part of the egress program goes on with: the search on the packet's socket, and the payload that was not seen yet, behind a
/// PROXY protocol header and what was sent before.
#[inline(always)]
pub fn unseen<'a>(ctx: &SkBuffContext) -> Option<(&'a mut Search, Payload)> {
    let search = search_of(socket(ctx)?);
    if search.is_null() {
        return None;
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    let payload = payload(ctx)?;
    let passed = search.next_seq.wrapping_sub(payload.seq);
    if passed >= payload.len {
        return None;
    }
    Some((search, payload.after(passed)))
}

/// The search on a socket; null if there is none.
#[inline(always)]
pub fn search_of(sk: *mut bpf_sock) -> *mut Search {
    // SAFETY: a socket of a packet.
    unsafe { bpf_sk_storage_get(searches(), sk.cast(), core::ptr::null_mut(), 0) }.cast()
}

#[inline(always)]
fn searches() -> *mut core::ffi::c_void {
    (&raw const SEARCHES).cast_mut().cast()
}

/// Goes on in another program, with the same packet. Comes back only if that program is not there.
#[inline(always)]
pub fn to_part(ctx: &SkBuffContext, part: u32) {
    // SAFETY: the parts are programs of the same type.
    unsafe { PARTS.tail_call(ctx, part) };
}

/// Whether this is the first packet of the socket in this millisecond (of 2^20 ns).
#[inline(always)]
fn is_next_millisecond(search: &mut Search) -> bool {
    // SAFETY: no preconditions.
    let now = (unsafe { bpf_ktime_get_ns() } >> 20) as u32;
    let next = now != search.last_look;
    search.last_look = now;
    next
}

/// The first eight bytes, the first one highest; zeros where there are fewer.
#[inline(always)]
pub fn first_word(ctx: &SkBuffContext, payload: &Payload) -> u64 {
    word_at(ctx.skb.skb, payload.offset, payload.len)
}

/// How many bytes of empty lines these eight begin with.
#[inline(always)]
fn empty_lines(word: u64) -> u32 {
    let mut i = 0;
    while i < EMPTY_LINES {
        if !matches!((word >> (56 - 8 * i)) as u8, b'\r' | b'\n') {
            break;
        }
        i += 1;
    }
    i
}

/// A handshake record of TLS.
#[inline(always)]
fn is_tls(word: u64) -> bool {
    word >> 48 == 0x1603 || (word << 8 == 0 && word >> 56 == 0x16)
}

/// Length of a PROXY protocol header at the start of the payload; a length that no payload has where it is cut off.
#[inline(always)]
fn proxy_header(ctx: &SkBuffContext, payload: &Payload, word: u64) -> Option<u32> {
    const V2: u64 = 0x0d0a_0d0a_000d_0a51;
    const V1: u64 = u64::from_be_bytes(*b"PROXY \0\0") >> 16;
    /// Longest header of version 1.
    const V1_MAX: u32 = 107;
    let at = payload.offset as usize;
    if word == V2 {
        let len: Result<u16, _> = ctx.load(at + 14);
        return Some(len.map_or(u32::MAX, |len| 16 + u32::from(u16::from_be(len))));
    }
    if word >> 16 != V1 {
        return None;
    }
    let mut i = 8;
    while i < V1_MAX {
        match ctx.load::<u8>(at + i as usize) {
            Ok(b'\n') => return Some(i + 1),
            Ok(_) => i += 1,
            Err(_) => return Some(u32::MAX),
        }
    }
    None
}
