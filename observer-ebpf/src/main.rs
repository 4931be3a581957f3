//! Sidescope's kernel programs.
//!
//! They only look: every program returns 1 ("go on"), writes neither the context nor `reply`, and so changes nothing for the
//! workload or for other programs on the same hooks. UAPI contexts only (no kprobes, no CO-RE), for kernels from 5.10 on.
#![no_std]
#![no_main]
// For the one instruction in `maps::atomic_add`.
#![feature(asm_experimental_arch)]

mod bounded;
mod connect;
mod dns;
mod egress;
mod handover;
mod http1;
mod http2;
mod maps;
mod packet;
mod source;
mod tls;

use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext};

/// The verdict of every program: let it pass, as if we were not there.
const GO_ON: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn sidescope_connect4(ctx: SockAddrContext) -> i32 {
    connect::try_connect4(&ctx);
    GO_ON
}

#[cgroup_sock_addr(connect6)]
pub fn sidescope_connect6(ctx: SockAddrContext) -> i32 {
    connect::try_connect6(&ctx);
    GO_ON
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sidescope_sendmsg4(ctx: SockAddrContext) -> i32 {
    dns::try_sendmsg(&ctx);
    GO_ON
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sidescope_sendmsg6(ctx: SockAddrContext) -> i32 {
    dns::try_sendmsg(&ctx);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn sidescope_egress(ctx: SkBuffContext) -> i32 {
    egress::try_egress(&ctx);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn sidescope_tls(ctx: SkBuffContext) -> i32 {
    tls::try_tls(&ctx);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn sidescope_http2(ctx: SkBuffContext) -> i32 {
    http2::try_http2(&ctx);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn sidescope_http1(ctx: SkBuffContext) -> i32 {
    http1::try_http1(&ctx);
    GO_ON
}

#[cgroup_skb(egress)]
pub fn sidescope_pipelined(ctx: SkBuffContext) -> i32 {
    http1::try_pipelined(&ctx);
    GO_ON
}

#[cgroup_skb(ingress)]
pub fn sidescope_ingress(ctx: SkBuffContext) -> i32 {
    dns::try_ingress(&ctx);
    GO_ON
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier rejects a program that can get here.
    loop {}
}

// The kernel lends some helpers only to programs under the GPL. None of ours is one of them, but the string is what it checks;
// "Dual MIT/GPL" is what permissively licensed programs declare.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
