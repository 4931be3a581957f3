//! All maps, and the counters.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use sidescope_common::http2;
use sidescope_common::{
    ALL_NAMESPACES, Causes, Counter, DEFAULT_EDGES, DEFAULT_HOSTS, DEFAULT_RING_BYTES, DnsEvent, EdgeKey,
    EdgeState, HEAD_BYTES, HeadEvent, HostKey, MAX_HIT, MAX_OLDER, MAX_PROXY_UIDS, MAX_SOURCES, PORT_WORDS,
    SourceAddr, SourceKey, loss_time, part,
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
pub static PROXY_UIDS: HashMap<u32, u64> = HashMap::with_max_entries(MAX_PROXY_UIDS, 0);

/// By cookie of a socket that has no search, its edge: connected before the programs were there, or long-lived and beyond
/// [`SEARCHED_CONNECTS`](sidescope_common::SEARCHED_CONNECTS). Written by user space.
#[map]
pub static OLDER: HashMap<u64, EdgeKey> = HashMap::with_max_entries(MAX_OLDER, BPF_F_NO_PREALLOC);

/// A bit for each port to which [`OLDER`] has connections. To look there costs two calls, and most sockets without storage are accepted
/// ones, whose peers have other ports.
#[map]
pub static OLDER_PORTS: Array<u64> = Array::with_max_entries(PORT_WORDS, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(DEFAULT_RING_BYTES, 0);

#[map]
pub static PARTS: ProgramArray = ProgramArray::with_max_entries(part::COUNT, 0);

/// Which causes of loss have hit which network namespace. Written where something is lost, and nowhere else.
#[map]
static LOSSES: HashMap<u64, Causes> = HashMap::with_max_entries(MAX_HIT + 1, BPF_F_NO_PREALLOC);

#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(Counter::ALL.len() as u32, 0);

#[map]
pub static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SCRATCH_SLOTS, 0);

/// What connect hands on to the later hooks of the same socket, which cannot learn it by themselves on every kernel.
#[btf_map]
pub static SEARCHES: SkStorage<Search> = SkStorage::new();

/// Sockets that ask a DNS server.
#[btf_map]
pub static RESOLVERS: SkStorage<Resolver> = SkStorage::new();

/// Room for the bytes of one head; too large for the stack.
#[repr(C)]
pub struct Scratch {
    /// Number of programs on this CPU that want the slot: see [`crate::handover::with_scratch`].
    pub claims: u64,
    /// Results of a scan. They pass through memory on purpose: the verifier then forgets which of the many ways through the
    /// loop led here, and does not walk the rest of the program once per way.
    pub start: u32,
    pub end: u32,
    /// The place in the packet that a walk has come to, and the bytes of the packet that lie in `data`. In memory for the same
    /// reason.
    pub at: u32,
    pub window: u32,
    pub window_end: u32,
    /// Bytes of `data` that hold what was read from a packet.
    pub used: u32,
    /// Room before the header, so that a [`DnsEvent`] can stand directly before the bytes, too.
    pub event: HeadEvent,
    pub data: [u8; HEAD_BYTES],
}

/// Bytes of [`Scratch::event`] before a [`DnsEvent`] that ends where it ends.
pub const DNS_EVENT_OFFSET: usize = size_of::<HeadEvent>() - size_of::<DnsEvent>();

/// Slots of scratch per CPU: one for the program, one for a second one that interrupts it (softirq or preemption).
pub const SCRATCH_SLOTS: u32 = 2;

/// The search for hosts on one socket.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Search {
    /// The edge.
    pub key: EdgeKey,
    /// First half of [`HostKey`]: [`EdgeState::first_ns`] of the edge.
    pub edge: u64,
    /// Sequence number of the byte that continues what was begun.
    pub next_seq: u32,
    /// Bytes that were handed on of what was begun.
    pub copied: u32,
    /// Number of the request on this socket.
    pub request: u32,
    /// Millisecond of the last packet that was looked at.
    pub last_look: u32,
    /// What the last request looked like; nothing, if its host was not known.
    pub look: Look,
    /// One of [`phase`].
    pub phase: u32,
    /// The last four bytes that were handed on of an HTTP/1 head. Not 0 before anything else was sent: there were empty lines.
    pub tail: u32,
    /// The local address was noted: see [`crate::source::note_address`].
    pub noted: bool,
    /// What was sent before on this connection was not seen.
    pub older: bool,
    pub reserved: [u8; 6],
    pub http2: http2::Walk,
}

/// By what a request is known again that is like the one before it: where its host stands, and what stands there.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Look {
    /// A hash of what stands there; 0: nothing is known.
    pub print: u64,
    /// Where in the packet's payload it begins.
    pub at: u32,
    /// Length of the payload.
    pub len: u32,
}

/// A socket that asks a DNS server.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Resolver {
    pub netns: u64,
    pub window: u32,
    pub messages: u32,
}

/// Where the search on a socket stands.
pub mod phase {
    /// Nothing was sent yet.
    pub const NEW: u32 = 0;
    /// The connection speaks HTTP/1; a request may start at the next segment.
    pub const BETWEEN: u32 = 1;
    /// An HTTP/1 head began and its host has not been found yet.
    pub const HEAD: u32 = 2;
    /// A TLS ClientHello began and its name has not been found yet.
    pub const TLS: u32 = 3;
    /// The connection speaks HTTP/2.
    pub const HTTP2: u32 = 4;
    /// Nothing more to be found here.
    pub const DONE: u32 = 5;
    /// The host of an HTTP/1 head is known and its end has not come: another request may follow it in a later packet.
    pub const REST: u32 = 6;
    /// The connection began with something else; TLS may begin behind it.
    pub const OTHER: u32 = 7;
}

#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: a map value, valid for the run of the program.
        unsafe { atomic_add(value, 1) };
    }
}

/// Counts a loss and notes the network namespace that it has hit.
#[inline(always)]
pub fn lose(counter: Counter, netns: u64) {
    count(counter);
    let mut netns = netns;
    if note(&netns, counter) {
        return;
    }
    let none: Causes = [0; size_of::<Causes>() / size_of::<u32>()];
    // A failure is seen at the next line: then it counts for all.
    let _ = LOSSES.insert(&netns, &none, u64::from(BPF_NOEXIST));
    if !note(&netns, counter) {
        netns = ALL_NAMESPACES;
        note(&netns, counter);
    }
}

/// False: the namespace is not in the map.
#[inline(always)]
fn note(netns: &u64, counter: Counter) -> bool {
    let Some(causes) = LOSSES.get_ptr_mut(netns) else { return false };
    // SAFETY: a map value, valid for the run of the program. Others may write the same word at the same time, and either may stay.
    unsafe { (*causes)[counter as usize] = loss_time(bpf_ktime_get_ns()) };
    true
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

/// Reads a field of a map value anew, so that neither the compiler nor the verifier knows anything of it.
macro_rules! anew {
    ($place:expr) => {
        // SAFETY: the place of a field of a valid reference.
        unsafe { core::ptr::read_volatile(&raw const $place) }
    };
}
pub(crate) use anew;
