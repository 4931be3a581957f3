//! connect(): the edge set.
//!
//! The edge is inserted here and not at `TCP_CONNECT_CB` of sock_ops: that never runs where another program denies the connect
//! (a socket load balancer for a Service without backends) or where there is no route.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_smp_processor_id, bpf_jiffies64, bpf_ktime_get_ns,
};
use aya_ebpf::programs::SockAddrContext;
use sidescope_common::{
    Addr, Counter, EdgeEvent, EdgeKey, EdgeState, SEARCHED_CONNECTS, edge_flags, event_kind,
};

use crate::bounded::wakeup;
use crate::dns;
use crate::egress::new_search;
use crate::maps::{EDGES, EVENTS, PROXY_UIDS, SEARCHES, atomic_add, count, lose, phase};
use crate::source::note_cgroup;

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Names of an edge from which on each of its connects may bring another one.
pub const SEVERAL: u8 = 2;

#[inline(always)]
pub fn try_connect4(ctx: &SockAddrContext) {
    // SAFETY: the context is valid for the run of the program; this field is readable in connect4.
    let ip = unsafe { (*ctx.sock_addr).user_ip4 };
    try_connect(ctx, v4_mapped(ip));
}

#[inline(always)]
pub fn try_connect6(ctx: &SockAddrContext) {
    // SAFETY: as above, in connect6.
    let words = unsafe { (*ctx.sock_addr).user_ip6 };
    try_connect(ctx, words);
}

#[inline(always)]
fn try_connect(ctx: &SockAddrContext, words: [u32; 4]) {
    let sock_addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: the context is valid for the run of the program; these fields are readable in connect4 and connect6.
    let (kind, protocol, port) =
        unsafe { ((*sock_addr).type_, (*sock_addr).protocol, (*sock_addr).user_port) };
    let port = u16::from_be(port as u16);
    if port == dns::PORT {
        dns::mark(ctx);
    }
    if kind != SOCK_STREAM || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP) {
        return;
    }
    if is_own_host(&words) {
        return;
    }
    // SAFETY: the helper takes the context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let key = EdgeKey { netns, addr: addr(words), uid: ctx.uid(), port, reserved: 0 };
    // Most connects repeat an edge, and that it belongs to a workload has been looked at when it was made.
    if let Some(state) = EDGES.get_ptr_mut(&key) {
        return repeat(ctx, &key, state);
    }
    // SAFETY: the helper gives the cookie of the initial namespace where it gets no context.
    if netns == unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) } {
        return;
    }
    if is_proxy(key.uid, netns) {
        return;
    }
    make_edge(ctx, &key);
}

/// Whether connections of this user in this network namespace are a proxy's own.
#[inline(always)]
pub fn is_proxy(uid: u32, netns: u64) -> bool {
    // SAFETY: an entry is replaced as a whole.
    unsafe { PROXY_UIDS.get(&uid) }.is_some_and(|at| *at == 0 || *at == netns)
}

#[inline(always)]
fn make_edge(ctx: &SockAddrContext, key: &EdgeKey) {
    // SAFETY: no preconditions.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    // Two edges that are made at once on two CPUs must not share an id.
    let first = (now & !0xff) | u64::from(cpu & 0xff);
    let state = EdgeState {
        first_ns: first,
        last_ns: now,
        connects: 1,
        tick: 0,
        spent: 0,
        names: 0,
        reserved: 0,
        window: 0,
        heads: 0,
        flags: 0,
        unsearched: 0,
    };
    if EDGES.insert(key, &state, u64::from(BPF_NOEXIST)).is_err() {
        // Another CPU was faster, or the set is full.
        if let Some(state) = EDGES.get_ptr_mut(key) {
            return repeat(ctx, key, state);
        }
        count(Counter::Connects);
        return lose(Counter::EdgesFull, key.netns);
    }
    count(Counter::Connects);
    announce(key, now);
    note_cgroup(&key.netns);
    start_search(ctx, key, first);
}

/// One more connect on an edge.
///
/// To make room for a search on the socket costs more than all else here, so an edge on which one host at most was named gets it for
/// [`SEARCHED_CONNECTS`], and for one more in each tick (1 to 10 ms). Ticks and not nanoseconds: they cost no call. Of the others user
/// space tells the programs if they stay open: see [`OLDER`](crate::maps::OLDER).
#[inline(always)]
fn repeat(ctx: &SockAddrContext, key: &EdgeKey, state: *mut EdgeState) {
    count(Counter::Connects);
    // SAFETY: a map value is valid for the run of the program. Other CPUs write the same fields: of the times either may stay, the
    // count is atomic.
    unsafe { atomic_add(&raw mut (*state).connects, 1) };
    // SAFETY: as above.
    let state = unsafe { &mut *state };
    // SAFETY: no preconditions.
    let tick = unsafe { bpf_jiffies64() } as u32;
    let spent = u32::from(state.spent).saturating_sub(tick.wrapping_sub(state.tick));
    if spent >= u32::from(SEARCHED_CONNECTS) && state.names < SEVERAL {
        return pass_over(ctx, key, state);
    }
    state.tick = tick;
    state.spent = (spent as u16 + 1).min(SEARCHED_CONNECTS);
    // SAFETY: no preconditions.
    state.last_ns = unsafe { bpf_ktime_get_ns() };
    start_search(ctx, key, state.first_ns);
}

/// A connect that is only counted. Where the edge is known to name hosts, another one may go by here.
#[inline(always)]
fn pass_over(ctx: &SockAddrContext, key: &EdgeKey, state: &mut EdgeState) {
    state.unsearched = 1;
    if state.names != 0 && state.flags & edge_flags::HOST_UNKNOWN == 0 {
        state.flags |= edge_flags::HOST_UNKNOWN;
        lose(Counter::SearchBudget, key.netns);
    }
    end_search(ctx, key, state.first_ns);
}

#[inline(always)]
fn announce(key: &EdgeKey, now: u64) {
    let event = EdgeEvent { kind: event_kind::EDGE, reserved: 0, time_ns: now, key: *key };
    if EVENTS.output::<EdgeEvent>(&event, wakeup(size_of::<EdgeEvent>() as u64)).is_err() {
        // The sweep of the set finds it.
        count(Counter::EdgeRingFull);
    }
}

/// Sets a flag of an edge.
#[inline(always)]
pub fn flag_edge(key: &EdgeKey, flag: u8) {
    if let Some(state) = EDGES.get_ptr_mut(key) {
        // SAFETY: a map value is valid for the run of the program.
        unsafe { (*state).flags |= flag };
    }
}

#[inline(always)]
fn start_search(ctx: &SockAddrContext, key: &EdgeKey, edge: u64) {
    let mut search = new_search(*key, edge, phase::NEW);
    // SAFETY: `sk` of the context is a full socket in connect4 and connect6.
    let stored = unsafe { SEARCHES.get_or_insert_ptr_mut(ctx, Some(&mut search)) };
    if stored.is_null() {
        lose(Counter::SearchNoMemory, key.netns);
        flag_edge(key, edge_flags::HOST_UNKNOWN);
        return;
    }
    // A socket may connect again after a failure, then the storage holds the earlier destination.
    // SAFETY: not null, and valid for the run of the program.
    unsafe { *stored = search };
}

/// No search on this connection; what an earlier, failed connect of the socket left must not count for this one.
#[inline(always)]
fn end_search(ctx: &SockAddrContext, key: &EdgeKey, edge: u64) {
    // SAFETY: `sk` of the context is a full socket in connect4 and connect6.
    let stored = unsafe { SEARCHES.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: not null, and valid for the run of the program.
        unsafe { *stored = new_search(*key, edge, phase::NEW) };
    }
}

/// Loopback and the unspecified address, to which connect() means this host.
#[inline(always)]
fn is_own_host(words: &[u32; 4]) -> bool {
    let low = u32::from_be(words[3]);
    if words[0] != 0 || words[1] != 0 {
        return false;
    }
    match words[2] {
        0 => low <= 1,
        V4_PREFIX => low >> 24 == 127 || low == 0,
        _ => false,
    }
}

/// The third word of a v4-mapped address.
const V4_PREFIX: u32 = u32::to_be(0xffff);

/// `::ffff:a.b.c.d` for an IPv4 address in network byte order.
#[inline(always)]
pub fn v4_mapped(ip: u32) -> [u32; 4] {
    [0, 0, V4_PREFIX, ip]
}

/// Whether an IPv6 address is a v4-mapped one.
#[inline(always)]
pub fn is_v4_mapped(words: &[u32; 4]) -> bool {
    words[0] == 0 && words[1] == 0 && words[2] == V4_PREFIX
}

/// The bytes of four words that are in network byte order already.
#[inline(always)]
pub fn addr(words: [u32; 4]) -> Addr {
    // SAFETY: same size, every bit pattern valid.
    unsafe { core::mem::transmute(words) }
}
