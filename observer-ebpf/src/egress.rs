//! Outgoing segments: the heads of requests.
//!
//! A host that user space knows already costs a look and no event; one that it does not know is handed on, within a budget per
//! edge. Whatever cannot be handed on marks the edge as `host unknown`.

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_fullsock, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{
    Counter, HEAD_BYTES, HEAD_WINDOW_NS, HEADS_PER_WINDOW, HeadEvent, HostKey, edge_flags, event_kind,
};

use crate::bounded::{load_bytes, ring_output};
use crate::connect::flag_edge;
use crate::maps::{
    EDGES, HOSTS, SCRATCH, SCRATCH_SLOTS, SEARCHES, Scratch, Search, atomic_add, count, phase,
};
use crate::packet::{Segment, segment};
use crate::scan::find_host;

#[inline(always)]
pub fn try_egress(ctx: &SkBuffContext) {
    // SAFETY: the context is valid for the run of the program.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: `sk` is not null.
    let sk = unsafe { bpf_sk_fullsock(sk) };
    if sk.is_null() {
        return;
    }
    // SAFETY: a full socket; the value is the type of the map.
    let search =
        unsafe { bpf_sk_storage_get(searches(), sk.cast(), core::ptr::null_mut(), 0) }.cast::<Search>();
    if search.is_null() {
        return;
    }
    // SAFETY: not null, and valid for the run of the program. Packets of one socket are sent under its lock.
    let search = unsafe { &mut *search };
    let Some(segment) = segment(ctx) else {
        count(Counter::PacketUnreadable);
        return;
    };
    if segment.len == 0 {
        return;
    }
    if search.phase == phase::HEAD {
        if segment.seq == search.next_seq {
            with_scratch(search, |search, scratch| go_on_head(ctx, search, scratch, &segment));
        }
        return;
    }
    match starts_request(ctx, &segment) {
        Some(plain) => {
            with_scratch(search, |search, scratch| start_head(ctx, search, scratch, &segment, plain))
        }
        // Not HTTP/1: this socket costs nothing from here on.
        // SAFETY: a full socket.
        None if search.phase == phase::NEW => unsafe {
            bpf_sk_storage_delete(searches(), sk.cast());
        },
        None => {}
    }
    let _: *mut bpf_sock = sk;
}

#[inline(always)]
fn searches() -> *mut core::ffi::c_void {
    (&raw const SEARCHES).cast_mut().cast()
}

/// Runs `f` with a slot of scratch that nobody else on this CPU uses.
///
/// A softirq, or on preemptible kernels another task, can run the same program on the same CPU in the midst of this one. An
/// atomic add and a look at the result is a lock that works on 5.10 (which has no atomic exchange): two may both lose, never
/// both win.
#[inline(always)]
fn with_scratch(search: &mut Search, f: impl Fn(&mut Search, &mut Scratch)) {
    let mut slot = 0;
    while slot < SCRATCH_SLOTS {
        let Some(scratch) = SCRATCH.get_ptr_mut(slot) else {
            return;
        };
        // SAFETY: a per-CPU map value, valid for the run of the program.
        unsafe { atomic_add(&raw mut (*scratch).claims, 1) };
        // SAFETY: as above.
        let alone = unsafe { core::ptr::read_volatile(&raw const (*scratch).claims) } == 1;
        if alone {
            // SAFETY: the claim makes this the only reference.
            f(search, unsafe { &mut *scratch });
        }
        // SAFETY: as above.
        unsafe { atomic_add(&raw mut (*scratch).claims, u64::MAX) };
        if alone {
            return;
        }
        slot += 1;
    }
    count(Counter::PacketUnreadable);
    flag_edge(&search.key, edge_flags::HOST_UNKNOWN);
}

/// Whether a segment begins with an HTTP/1 method, or with as much of one as it holds. `Some(true)`: the target is a plain path,
/// so that only the Host header names the host.
#[inline(always)]
fn starts_request(ctx: &SkBuffContext, segment: &Segment) -> Option<bool> {
    let at = segment.offset as usize;
    if segment.len < 9 {
        // A request that is written byte by byte.
        let first: u8 = ctx.load(at).ok()?;
        return matches!(first, b'G' | b'P' | b'H' | b'D' | b'O' | b'C' | b'T').then_some(false);
    }
    let word = u64::from_be_bytes(ctx.load::<[u8; 8]>(at).ok()?);
    let method = match word >> 32 {
        0x4745_5420 => 4,                                                // "GET "
        0x5055_5420 => 4,                                                // "PUT "
        0x504f_5354 if (word >> 24) as u8 == b' ' => 5,                  // "POST "
        0x4845_4144 if (word >> 24) as u8 == b' ' => 5,                  // "HEAD "
        0x5041_5443 if (word >> 16) as u16 == 0x4820 => 6,               // "PATCH "
        0x5452_4143 if (word >> 16) as u16 == 0x4520 => 6,               // "TRACE "
        0x4445_4c45 if (word >> 8) as u32 & 0xff_ffff == 0x54_4520 => 7, // "DELETE "
        0x4f50_5449 if word as u32 == 0x4f4e_5320 => 8,                  // "OPTIONS "
        0x434f_4e4e if word as u32 == 0x4543_5420 => 8,                  // "CONNECT "
        _ => return None,
    };
    let target: u8 = ctx.load(at + method).ok()?;
    Some(target == b'/')
}

#[inline(always)]
fn start_head(
    ctx: &SkBuffContext,
    search: &mut Search,
    scratch: &mut Scratch,
    segment: &Segment,
    plain: bool,
) {
    let Some(len) = load(ctx, scratch, segment, HEAD_BYTES) else {
        count(Counter::PacketUnreadable);
        flag_edge(&search.key, edge_flags::HOST_UNKNOWN);
        return;
    };
    search.request = search.request.wrapping_add(1);
    search.copied = 0;
    search.phase = phase::BETWEEN;
    let found = if plain { find_host(scratch, len) } else { None };
    let Some(found) = found else {
        // The host stands in the target, later than the kernel looks, or in a later segment: user space has a look.
        if within_budget(search) {
            hand_on(ctx, search, scratch, len, 0);
            go_on_after(search, scratch, segment, len);
        }
        return;
    };
    let host = HostKey { edge: search.edge, host: found.hash };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if HOSTS.insert(&host, &now, u64::from(BPF_EXIST)).is_ok() || !within_budget(search) {
        return;
    }
    let end = found.end.min(len);
    if hand_on(ctx, search, scratch, end, found.hash) {
        // A failure means that the host is announced again at its next request.
        let _ = HOSTS.insert(&host, &now, u64::from(BPF_ANY));
    }
}

#[inline(always)]
fn go_on_head(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, segment: &Segment) {
    let room = HEAD_BYTES.saturating_sub(search.copied as usize);
    match load(ctx, scratch, segment, room) {
        Some(len) => {
            hand_on(ctx, search, scratch, len, 0);
            go_on_after(search, scratch, segment, len);
        }
        None => search.phase = phase::BETWEEN,
    }
}

/// After a part of a head that did not name the host: the next segment goes on with it, unless this one ends the head or the
/// limit is reached.
#[inline(always)]
fn go_on_after(search: &mut Search, scratch: &Scratch, segment: &Segment, len: usize) {
    search.copied += len as u32;
    search.next_seq = segment.seq.wrapping_add(segment.len);
    let ended = (4..=HEAD_BYTES).contains(&len) && {
        let last = (len - 4) & (HEAD_BYTES - 1);
        last + 3 < HEAD_BYTES
            && scratch.data[last] == b'\r'
            && scratch.data[last + 1] == b'\n'
            && scratch.data[last + 2] == b'\r'
            && scratch.data[last + 3] == b'\n'
    };
    let more = !ended && (search.copied as usize) < HEAD_BYTES && segment.len as usize == len;
    search.phase = if more { phase::HEAD } else { phase::BETWEEN };
}

/// Copies at most `room` bytes of the payload into the scratch; returns how many.
#[inline(always)]
fn load(ctx: &SkBuffContext, scratch: &mut Scratch, segment: &Segment, room: usize) -> Option<usize> {
    let len = (segment.len as usize).min(room);
    (len != 0 && load_bytes(ctx.skb.skb, segment.offset, scratch, len)).then_some(len)
}

/// Whether the edge may hand on one more head in this window; if not, its hosts are not complete.
#[inline(always)]
fn within_budget(search: &Search) -> bool {
    let Some(state) = EDGES.get_ptr_mut(&search.key) else {
        return false;
    };
    // SAFETY: a map value is valid for the run of the program. CPUs that race may let a few heads more pass.
    let state = unsafe { &mut *state };
    // SAFETY: no preconditions.
    let window = (unsafe { bpf_ktime_get_ns() } / HEAD_WINDOW_NS) as u32;
    if state.window != window {
        state.window = window;
        state.heads = 0;
    }
    if state.heads >= HEADS_PER_WINDOW {
        state.flags |= edge_flags::HOST_UNKNOWN;
        count(Counter::HeadBudget);
        return false;
    }
    state.heads += 1;
    true
}

/// Sends the first `len` bytes of the scratch to user space.
#[inline(always)]
fn hand_on(ctx: &SkBuffContext, search: &Search, scratch: &mut Scratch, len: usize, host: u64) -> bool {
    scratch.event = HeadEvent {
        kind: event_kind::HEAD,
        len: len as u32,
        // SAFETY: the context is valid for the run of the program.
        socket: unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) },
        offset: search.copied,
        request: search.request,
        host,
        key: search.key,
    };
    if len == 0 || !ring_output(scratch, len) {
        count(Counter::HeadRingFull);
        flag_edge(&search.key, edge_flags::HOST_UNKNOWN);
        return false;
    }
    true
}
