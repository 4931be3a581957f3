//! DNS: which sockets ask a server, and what they are answered.

use aya_ebpf::EbpfContext as _;

use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_sk_storage_get,
};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};
use sidescope_common::{Counter, DNS_PER_WINDOW, DnsEvent, HEAD_BYTES, HEAD_WINDOW_NS, event_kind};

use crate::bounded::ring_output;
use crate::connect::is_proxy;
use crate::egress::socket;
use crate::handover::{load, with_scratch};
use crate::maps::{DNS_EVENT_OFFSET, RESOLVERS, Resolver, Scratch, lose};
use crate::packet::{Payload, UDP, payload};

/// Port of DNS servers. Istio's DNS proxy is asked there, too: its port is that of a redirect rule.
pub const PORT: u16 = 53;
/// Header of a DNS message; what is not longer has no question.
const HEADER: u32 = 12;

/// sendmsg(): a socket that is not connected.
#[inline(always)]
pub fn try_sendmsg(ctx: &SockAddrContext) {
    // SAFETY: the context is valid for the run of the program.
    let (protocol, port) = unsafe { ((*ctx.sock_addr).protocol, (*ctx.sock_addr).user_port) };
    if protocol == u32::from(UDP) && u16::from_be(port as u16) == PORT {
        mark(ctx);
    }
}

/// Marks a socket that asks a DNS server, unless it is a proxy's or the node's own.
#[inline(always)]
pub fn mark(ctx: &SockAddrContext) {
    // SAFETY: the helper takes the context; without one it gives the cookie of the initial namespace.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    // SAFETY: as above.
    if netns == unsafe { bpf_get_netns_cookie(core::ptr::null_mut()) } {
        return;
    }
    if is_proxy(ctx.uid(), netns) {
        return;
    }
    let mut resolver = Resolver { netns, window: 0, messages: 0 };
    // SAFETY: `sk` of the context is a full socket.
    if unsafe { RESOLVERS.get_or_insert_ptr_mut(ctx, Some(&mut resolver)) }.is_null() {
        lose(Counter::SearchNoMemory, netns);
    }
}

#[inline(always)]
pub fn try_ingress(ctx: &SkBuffContext) {
    let Some(sk) = socket(ctx) else { return };
    // Most packets come from elsewhere, and this tells it without a call. A datagram socket that is not connected has no peer.
    // SAFETY: a socket of a packet. Its port of destination is in network byte order.
    let peer = u16::from_be(unsafe { (*sk).dst_port });
    if peer != PORT && peer != 0 {
        return;
    }
    let resolvers = (&raw const RESOLVERS).cast_mut().cast();
    // SAFETY: a socket of a packet; the value is of the map's type.
    let resolver =
        unsafe { bpf_sk_storage_get(resolvers, sk.cast(), core::ptr::null_mut(), 0) }.cast::<Resolver>();
    if resolver.is_null() {
        return;
    }
    // SAFETY: not null, and valid for the run of the program. CPUs that race may let a few messages more pass.
    let resolver = unsafe { &mut *resolver };
    let Some(payload) = payload(ctx) else {
        return lose(Counter::PacketUnreadable, resolver.netns);
    };
    if payload.len == 0 || (payload.transport == UDP && payload.len <= HEADER) {
        return;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let window = (now / HEAD_WINDOW_NS) as u32;
    if resolver.window != window {
        resolver.window = window;
        resolver.messages = 0;
    }
    resolver.messages += 1;
    if resolver.messages > u32::from(DNS_PER_WINDOW) {
        return lose(Counter::DnsBudget, resolver.netns);
    }
    if with_scratch(ctx, |scratch| hand_on(ctx, scratch, &payload, resolver.netns, now)).is_none() {
        lose(Counter::PacketUnreadable, resolver.netns);
    }
}

#[inline(always)]
fn hand_on(ctx: &SkBuffContext, scratch: &mut Scratch, payload: &Payload, netns: u64, now: u64) {
    let len = payload.len.min(HEAD_BYTES as u32);
    if !load(ctx, scratch, payload.offset, len) {
        return lose(Counter::PacketUnreadable, netns);
    }
    let event = DnsEvent {
        kind: event_kind::DNS,
        len,
        netns,
        // SAFETY: the context is valid for the run of the program.
        socket: unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) },
        time_ns: now,
        seq: payload.seq,
        transport: u32::from(payload.transport),
    };
    // SAFETY: the room of the other header ends where the data begin, and this one is smaller.
    let start = unsafe { (&raw mut scratch.event).cast::<u8>().add(DNS_EVENT_OFFSET) };
    // SAFETY: as above, aligned to 8.
    unsafe { start.cast::<DnsEvent>().write(event) };
    // SAFETY: event and data lie behind each other.
    if !unsafe { ring_output::<{ size_of::<DnsEvent>() as i32 }>(start, len) } {
        lose(Counter::DnsRingFull, netns);
    }
}
