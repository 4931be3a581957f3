//! Outgoing packets: which of them may name a host.
//!
//! A host that user space knows already costs a look and no event; one that it does not know is handed on, within a budget per
//! edge. Whatever cannot be handed on marks the edge as `host unknown`.

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_get_socket_uid, bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_storage_get,
};
use aya_ebpf::programs::SkBuffContext;
use sidescope_common::http2::{BLIND, Walk};
use sidescope_common::{Counter, EdgeKey, part};

use crate::handover::{claim, release};
use crate::http1::{self, Start};
use crate::http2;
use crate::maps::{PARTS, PROXY_UIDS, SEARCHES, Search, count, phase};
use crate::packet::{Payload, TCP, payload};

/// Requests in a row with a known host after which a connection is looked at only once a millisecond.
const KNOWN_ENOUGH: u32 = 64;

#[inline(always)]
pub fn try_egress(ctx: &SkBuffContext) {
    let Some(sk) = full_socket(ctx) else { return };
    let search = search_of(sk);
    if search.is_null() {
        return older_socket(ctx, sk);
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    if search.phase == phase::DONE {
        return;
    }
    if search.phase == phase::BETWEEN && search.known > KNOWN_ENOUGH && !is_next_millisecond(search) {
        return;
    }
    let Some(payload) = payload(ctx) else {
        count(Counter::PacketUnreadable);
        return;
    };
    if payload.len == 0 {
        return;
    }
    match search.phase {
        phase::TLS => to_part(ctx, part::TLS),
        phase::HTTP2 => to_part(ctx, part::HTTP2),
        phase::HEAD => {
            if payload.seq == search.next_seq
                && let Some(scratch) = claim()
            {
                http1::go_on(ctx, search, scratch, &payload);
                release(ctx, scratch);
            }
        }
        _ => begin(ctx, search, payload),
    }
}

/// The first bytes of a connection, or what may be the first of a request.
#[inline(always)]
fn begin(ctx: &SkBuffContext, search: &mut Search, payload: Payload) {
    let mut payload = payload;
    let mut word = first_word(ctx, &payload);
    if search.phase == phase::NEW
        && let Some(header) = proxy_header(ctx, &payload, word)
    {
        if header >= payload.len {
            return;
        }
        payload.offset += header;
        payload.len -= header;
        payload.seq = payload.seq.wrapping_add(header);
        word = first_word(ctx, &payload);
    }
    if http2::is_preface(word) && payload.len >= 8 {
        search.phase = phase::HTTP2;
        search.http2 = Walk::of_new_connection();
        search.next_seq = payload.seq;
        return to_part(ctx, part::HTTP2);
    }
    let start = if payload.len < 9 { short_start(word) } else { http1::start(ctx, &payload, word) };
    if start != Start::Other {
        if let Some(scratch) = claim() {
            http1::begin(ctx, search, scratch, &payload, start);
            release(ctx, scratch);
        }
        // Where the head ended in this packet, or its host was found in it, another one may follow.
        if search.next_seq == payload.seq {
            to_part(ctx, part::PIPELINED);
        }
        return;
    }
    if search.phase != phase::NEW {
        return;
    }
    if is_tls(word) {
        search.phase = phase::TLS;
        search.next_seq = payload.seq;
        search.copied = 0;
        return to_part(ctx, part::TLS);
    }
    // Neither: from here on the socket costs a look at its storage.
    search.phase = phase::DONE;
}

/// A socket without storage: accepted, a proxy's own, outside of pods, or older than the programs. Only the last are of interest,
/// and what tells them is that they send a request.
#[inline(always)]
fn older_socket(ctx: &SkBuffContext, sk: *mut bpf_sock) {
    // SAFETY: a full socket, checked by the caller.
    let (protocol, ip4, ip6) = unsafe { ((*sk).protocol, (*sk).dst_ip4, (*sk).dst_ip6[3]) };
    if protocol != u32::from(TCP) || u32::from_be(ip4) >> 24 == 127 || u32::from_be(ip6) == 1 {
        return;
    }
    let Some(payload) = payload(ctx) else { return };
    if payload.len < 16 {
        return;
    }
    let word = first_word(ctx, &payload);
    let is_http1 = http1::method_len(word).is_some();
    if !is_http1 && !http2::is_headers_frame(ctx, &payload, word) {
        return;
    }
    // SAFETY: the context is valid for the run of the program.
    let uid = unsafe { bpf_get_socket_uid(ctx.skb.skb) };
    // SAFETY: an entry stays as it is once it is in.
    if unsafe { PROXY_UIDS.get(&uid) }.is_some() {
        return;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) };
    let key = EdgeKey { netns: 0, addr: [0; 16], uid: 0, port: 0, reserved: 0 };
    let phase = if is_http1 { phase::BETWEEN } else { phase::HTTP2 };
    let mut search = new_search(key, cookie, phase);
    search.next_seq = payload.seq;
    // Entries of the dynamic table from before are not known.
    search.http2.field = BLIND;
    let value = (&raw mut search).cast();
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: a full socket; the value is of the map's type.
    let stored = unsafe { bpf_sk_storage_get(searches(), sk.cast(), value, flags) }.cast::<Search>();
    if stored.is_null() {
        count(Counter::SearchNoMemory);
        return;
    }
    if is_http1 {
        // SAFETY: not null, and valid for the run of the program.
        begin(ctx, unsafe { &mut *stored }, payload);
    } else {
        to_part(ctx, part::HTTP2);
    }
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
        known: 0,
        phase,
        window: 0,
        heads: 0,
        tail: 0,
        reserved: 0,
        http2: Walk::default(),
    }
}

/// The full socket of a packet.
#[inline(always)]
pub fn full_socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: the context is valid for the run of the program.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return None;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    (!sk.is_null()).then_some(sk)
}

/// What a part of the egress program goes on with: the search on the packet's socket, and the payload that was not seen yet, behind a
/// PROXY protocol header and what was sent before.
#[inline(always)]
pub fn unseen<'a>(ctx: &SkBuffContext) -> Option<(&'a mut Search, Payload)> {
    let search = search_of(full_socket(ctx)?);
    if search.is_null() {
        return None;
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    let mut payload = payload(ctx)?;
    let passed = search.next_seq.wrapping_sub(payload.seq);
    if passed >= payload.len {
        return None;
    }
    payload.offset += passed;
    payload.len -= passed;
    Some((search, payload))
}

/// The search on a socket; null if there is none.
#[inline(always)]
pub fn search_of(sk: *mut bpf_sock) -> *mut Search {
    // SAFETY: a full socket.
    unsafe { bpf_sk_storage_get(searches(), sk.cast(), core::ptr::null_mut(), 0) }.cast()
}

#[inline(always)]
fn searches() -> *mut core::ffi::c_void {
    (&raw const SEARCHES).cast_mut().cast()
}

/// Goes on in another program, with the same packet. Comes back only if that program is not there.
#[inline(always)]
fn to_part(ctx: &SkBuffContext, part: u32) {
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
fn first_word(ctx: &SkBuffContext, payload: &Payload) -> u64 {
    let at = payload.offset as usize;
    if payload.len >= 8 {
        return ctx.load::<[u8; 8]>(at).map_or(0, u64::from_be_bytes);
    }
    ctx.load::<u8>(at).map_or(0, |first| u64::from(first) << 56)
}

/// A request that is written in tiny pieces: only the first byte can be looked at.
#[inline(always)]
fn short_start(word: u64) -> Start {
    match (word >> 56) as u8 {
        b'G' | b'P' | b'H' | b'D' | b'O' | b'C' | b'T' => Start::Unclear,
        _ => Start::Other,
    }
}

/// A handshake record of TLS.
#[inline(always)]
fn is_tls(word: u64) -> bool {
    word >> 48 == 0x1603 || (word << 8 == 0 && word >> 56 == 0x16)
}

/// Length of a PROXY protocol header at the start of the payload.
#[inline(always)]
fn proxy_header(ctx: &SkBuffContext, payload: &Payload, word: u64) -> Option<u32> {
    const V2: u64 = 0x0d0a_0d0a_000d_0a51;
    const V1: u64 = u64::from_be_bytes(*b"PROXY \0\0") >> 16;
    /// Longest header of version 1.
    const V1_MAX: u32 = 107;
    let at = payload.offset as usize;
    if word == V2 {
        let len: u16 = ctx.load(at + 14).ok()?;
        return Some(16 + u32::from(u16::from_be(len)));
    }
    if word >> 16 != V1 {
        return None;
    }
    let mut i = 8;
    while i < V1_MAX {
        if ctx.load::<u8>(at + i as usize).ok()? == b'\n' {
            return Some(i + 1);
        }
        i += 1;
    }
    None
}
