//! Programs that do nothing, to measure what having one costs; and what other people's kernel programs do on the hooks that Sidescope uses too: a network plugin that rewrites and denies
//! connects, a tuner that answers the kernel's questions about new connections. Sidescope must see past the former and
//! leave the latter its effect.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{BPF_SOCK_OPS_NEEDS_ECN, BPF_SOCK_OPS_TIMEOUT_INIT, bpf_sock_addr};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock_addr, map, sock_ops};
use aya_ebpf::maps::HashMap;
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockOpsContext};

const DENY: i32 = 0;
const GO_ON: i32 = 1;
/// First timeout of a SYN, in the kernel's ticks: later than the usual second at every tick rate that there is.
const TIMEOUT_TICKS: u32 = 1500;

/// Addresses to which nobody may connect, in network byte order.
#[map]
static DENIED: HashMap<u32, u8> = HashMap::with_max_entries(16, 0);

/// Addresses that stand for others, in network byte order.
#[map]
static REWRITTEN: HashMap<u32, u32> = HashMap::with_max_entries(16, 0);

#[cgroup_sock_addr(connect4)]
pub fn peer_deny4(ctx: SockAddrContext) -> i32 {
    // SAFETY: the context is valid for the run of the program.
    let address = unsafe { (*ctx.sock_addr).user_ip4 };
    // SAFETY: the value is never written while this is attached.
    let denied = unsafe { DENIED.get(address) };
    if denied.is_some() { DENY } else { GO_ON }
}

#[cgroup_sock_addr(connect4)]
pub fn peer_rewrite4(ctx: SockAddrContext) -> i32 {
    let sock_addr: *mut bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as above.
    let address = unsafe { (*sock_addr).user_ip4 };
    // SAFETY: as above.
    if let Some(target) = unsafe { REWRITTEN.get(address) } {
        // SAFETY: as above; the field is writable in connect4.
        unsafe { (*sock_addr).user_ip4 = *target };
    }
    GO_ON
}

#[sock_ops]
pub fn peer_tune(ctx: SockOpsContext) -> u32 {
    let reply = match ctx.op() {
        BPF_SOCK_OPS_TIMEOUT_INIT => TIMEOUT_TICKS,
        BPF_SOCK_OPS_NEEDS_ECN => 1,
        _ => return GO_ON as u32,
    };
    // SAFETY: the context is valid for the run of the program; the field is writable for these questions.
    unsafe { (*ctx.ops).__bindgen_anon_1.reply = reply };
    GO_ON as u32
}

#[cgroup_sock_addr(connect4)]
pub fn nothing_connect4(_: SockAddrContext) -> i32 {
    GO_ON
}

#[cgroup_skb(egress)]
pub fn nothing_egress(_: SkBuffContext) -> i32 {
    GO_ON
}

#[cgroup_skb(ingress)]
pub fn nothing_ingress(_: SkBuffContext) -> i32 {
    GO_ON
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier rejects a program that can get here.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
