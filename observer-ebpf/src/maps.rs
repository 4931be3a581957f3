//! All maps, and the counters.

use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuArray, RingBuf};
use sidescope_common::{
    Counter, DEFAULT_EDGES, DEFAULT_HOSTS, DEFAULT_RING_BYTES, EdgeKey, EdgeState, HEAD_BYTES, HeadEvent,
    HostKey, MAX_PROXY_UIDS, MAX_SOURCES, SourceAddr, SourceKey,
};

/// A plain hash, never LRU: an LRU would forget edges that nobody has read yet.
#[map]
pub static EDGES: HashMap<EdgeKey, EdgeState> = HashMap::with_max_entries(DEFAULT_EDGES, 0);

/// Hosts that user space knows. An LRU is right here: what it forgets is announced once more.
#[map]
pub static HOSTS: LruHashMap<HostKey, u64> = LruHashMap::with_max_entries(DEFAULT_HOSTS, 0);

#[map]
pub static SOURCES: HashMap<SourceKey, SourceAddr> = HashMap::with_max_entries(MAX_SOURCES, 0);

/// By cookie of the network namespace: see [`crate::source::note_cgroup`].
#[map]
pub static CGROUPS: HashMap<u64, u64> = HashMap::with_max_entries(MAX_SOURCES, 0);

#[map]
pub static PROXY_UIDS: HashMap<u32, u8> = HashMap::with_max_entries(MAX_PROXY_UIDS, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(DEFAULT_RING_BYTES, 0);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SCRATCH_SLOTS, 0);

/// What connect hands on to the later hooks of the same socket, which cannot learn it by themselves on every kernel.
#[btf_map]
pub static SEARCHES: SkStorage<Search> = SkStorage::new();

/// Room for the bytes of one head; too large for the stack.
#[repr(C)]
pub struct Scratch {
    /// Number of programs on this CPU that want the slot: see [`crate::egress`].
    pub claims: u64,
    /// Header of the record, directly before its bytes.
    pub event: HeadEvent,
    pub data: [u8; HEAD_BYTES],
    /// Results of a scan. They pass through memory on purpose: the verifier then forgets which of the many ways through the
    /// loop led here, and does not walk the rest of the program once per way.
    pub found: u32,
    pub end: u32,
    pub hash: u64,
}

/// Slots of scratch per CPU: one for the program, one for a second one that interrupts it (softirq or preemption).
pub const SCRATCH_SLOTS: u32 = 2;

/// The search for hosts on one socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Search {
    pub key: EdgeKey,
    /// Id of the edge: [`EdgeState::first_ns`].
    pub edge: u64,
    /// Sequence number of the byte that continues the head, in [`phase::HEAD`].
    pub next_seq: u32,
    /// Bytes of the head that were handed on.
    pub copied: u32,
    /// Number of the request on this socket.
    pub request: u32,
    /// One of [`phase`].
    pub phase: u32,
}

/// Where the search on a socket stands.
pub mod phase {
    /// Nothing was sent yet.
    pub const NEW: u32 = 0;
    /// The connection speaks HTTP/1; a request may start at the next segment.
    pub const BETWEEN: u32 = 1;
    /// A head began and its host has not been found yet.
    pub const HEAD: u32 = 2;
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a map value, valid for the run of the program.
        unsafe { atomic_add(value, 1) };
    }
}

/// Adds to a word that other programs may write at the same time.
///
/// # Safety
/// `word` must point to a map value.
#[inline(always)]
pub unsafe fn atomic_add(word: *mut u64, value: u64) {
    // Rust offers no atomic add on this target. This is the instruction of BPF's first version (BPF_XADD), known to every
    // kernel; the result is not to be had.
    // SAFETY: by the caller.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {value}", word = in(reg) word, value = in(reg) value)
    }
}
