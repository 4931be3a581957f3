//! What lets user space tell whose network namespace it is: the local address of a connection and, where there was none (denied,
//! or without a route), the cgroup of the program.

use aya_ebpf::bindings::{BPF_NOEXIST, bpf_sock};
use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use sidescope_common::{Counter, SourceAddr, SourceKey};

use crate::connect::{addr, is_v4_mapped, v4_mapped};
use crate::maps::{CGROUPS, SOURCES, lose};

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;

/// Keeps the local address of a socket that sends, the first one of each network namespace and family.
#[inline(always)]
pub fn note_address(sk: *mut bpf_sock, netns: u64) {
    // All at once: behind a branch the compiler would make one load of two, at an offset that it chose before, and the verifier
    // takes only fixed ones.
    // SAFETY: a socket of a packet; these fields are readable in all of them.
    let (family, ip4, ip6) = unsafe {
        (
            core::ptr::read_volatile(&raw const (*sk).family),
            core::ptr::read_volatile(&raw const (*sk).src_ip4),
            core::ptr::read_volatile(&raw const (*sk).src_ip6),
        )
    };
    let (family, local) = match family {
        AF_INET => (4, v4_mapped(ip4)),
        AF_INET6 => (if is_v4_mapped(&ip6) { 4 } else { 6 }, ip6),
        _ => return,
    };
    let key = SourceKey { netns, family, reserved: 0 };
    // SAFETY: the value is written once, at the insert.
    if unsafe { SOURCES.get(&key) }.is_some() {
        return;
    }
    if SOURCES.insert(&key, &SourceAddr { addr: addr(local) }, u64::from(BPF_NOEXIST)).is_err()
        // SAFETY: as above.
        && unsafe { SOURCES.get(&key) }.is_none()
    {
        lose(Counter::SourcesFull, netns);
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
        lose(Counter::SourcesFull, *netns);
    }
}
