//! What lets user space tell whose network namespace it is: the local address of a connection and, where there was none (denied,
//! or without a route), the cgroup of the program.

use aya_ebpf::bindings::{BPF_NOEXIST, BPF_SOCK_OPS_TCP_CONNECT_CB};
use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_sk_storage_get};
use aya_ebpf::programs::SockOpsContext;
use sidescope_common::{Counter, SourceAddr, SourceKey};

use crate::connect::{addr, is_v4_mapped, v4_mapped};
use crate::maps::{CGROUPS, SEARCHES, SOURCES, Search, count};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

#[inline(always)]
pub fn try_sock_ops(ctx: &SockOpsContext) {
    if ctx.op() != BPF_SOCK_OPS_TCP_CONNECT_CB {
        return;
    }
    // SAFETY: the context is valid for the run of the program.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // sock_ops has no netns cookie on 5.10: connect left it in the socket's storage.
    // SAFETY: `sk` is not null; the value is the type of the map.
    let search = unsafe {
        bpf_sk_storage_get((&raw const SEARCHES).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), 0)
    }
    .cast::<Search>();
    if search.is_null() {
        return;
    }
    // Both at once: behind a branch the compiler would make one load of them, through a pointer into the context that it chose
    // before, and the verifier takes only fixed offsets.
    // SAFETY: the context is valid for the run of the program.
    let (ip4, ip6) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*ctx.ops).local_ip4),
            core::ptr::read_volatile(&raw const (*ctx.ops).local_ip6),
        )
    };
    let (family, local) = match ctx.family() {
        AF_INET => (4, v4_mapped(ip4)),
        AF_INET6 => (if is_v4_mapped(&ip6) { 4 } else { 6 }, ip6),
        _ => return,
    };
    // SAFETY: not null, and valid for the run of the program.
    let netns = unsafe { (*search).key.netns };
    let key = SourceKey { netns, family, reserved: 0 };
    // SAFETY: the value is written once, at the insert.
    if unsafe { SOURCES.get(&key) }.is_some() {
        return;
    }
    if SOURCES.insert(&key, &SourceAddr { addr: addr(local) }, u64::from(BPF_NOEXIST)).is_err()
        // SAFETY: as above.
        && unsafe { SOURCES.get(&key) }.is_none()
    {
        count(Counter::SourcesFull);
    }
}

/// Keeps the cgroup of the program that connects, the first one of each network namespace. For new edges only.
#[inline(always)]
pub fn note_cgroup(netns: &u64) {
    // SAFETY: the value is written once, at the insert.
    if unsafe { CGROUPS.get(netns) }.is_some() {
        return;
    }
    // SAFETY: no preconditions.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if CGROUPS.insert(netns, &cgroup, u64::from(BPF_NOEXIST)).is_err()
        // SAFETY: as above.
        && unsafe { CGROUPS.get(netns) }.is_none()
    {
        count(Counter::SourcesFull);
    }
}
