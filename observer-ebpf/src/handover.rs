//! From bytes in a packet to user space: scratch, known hosts, budget, ring.

use aya_ebpf::bindings::{BPF_ANY, BPF_EXIST};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SkBuffContext;
use sidescope_common::{
    Counter, HEAD_BYTES, HEAD_WINDOW_NS, HEADS_PER_WINDOW, HeadEvent, HostKey, edge_flags, event_kind,
    head_format,
};

use crate::bounded::{load_bytes, ring_output};
use crate::connect::flag_edge;
use crate::maps::{EDGES, HOSTS, SCRATCH, SCRATCH_SLOTS, Scratch, Search, anew, atomic_add, lose};

/// Longest host in bytes that is told apart: 255 of a name and a port.
pub const NAME_BYTES: usize = 264;

/// An offset that is in no packet, whatever the kernel's idea of the longest one.
const NOWHERE: u32 = u32::MAX;

/// Stands in [`HostKey::host`] for requests that name no host. No hash is even.
const NOBODY: u64 = 2;

const HEADER: i32 = size_of::<HeadEvent>() as i32;

/// Runs `f` with a slot of scratch that nobody else on this CPU uses. `None`: all slots are taken.
///
/// The compiler may make a function of `f`, which is well as long as its result is a number; where it is none, or large, see
/// [`claim`].
#[inline(always)]
pub fn with_scratch<R>(ctx: &SkBuffContext, f: impl FnOnce(&mut Scratch) -> R) -> Option<R> {
    let scratch = claim()?;
    let result = f(scratch);
    release(ctx, scratch);
    Some(result)
}

/// A slot of scratch that nobody else on this CPU uses, until [`release`]. `None`: all slots are taken.
///
/// A softirq, or on preemptible kernels another task, can run a program on the same CPU in the midst of this one. An atomic add
/// and a look at the result is a lock that works on 5.10 (which has no atomic exchange): two may both lose, never both win.
#[inline(always)]
pub fn claim() -> Option<&'static mut Scratch> {
    let mut slot = 0;
    while slot < SCRATCH_SLOTS {
        let scratch = SCRATCH.get_ptr_mut(slot)?;
        // SAFETY: a per-CPU map value, valid for the run of the program.
        unsafe { atomic_add(&raw mut (*scratch).claims, 1) };
        // SAFETY: as above.
        if unsafe { core::ptr::read_volatile(&raw const (*scratch).claims) } == 1 {
            // SAFETY: the claim makes this the only reference.
            return Some(unsafe { &mut *scratch });
        }
        // SAFETY: as above.
        unsafe { atomic_add(&raw mut (*scratch).claims, u64::MAX) };
        slot += 1;
    }
    None
}

/// Gives a slot back, and leaves nothing in it of what was read from the packet: whoever may read maps must not find cookies and
/// tokens there.
///
/// A load from an offset that no packet has fails, and a load that fails fills what it was given with zeros (the helper has to:
/// the verifier takes the memory for written). That is one call, for packets that are looked at and for no others, where a loop
/// of stores would be walked by the verifier once for each way that leads here.
#[inline(always)]
pub fn release(ctx: &SkBuffContext, scratch: &mut Scratch) {
    let used = anew!(scratch.used);
    if used != 0 {
        load_bytes(ctx.skb.skb, NOWHERE, scratch, used);
        scratch.used = 0;
    }
    // SAFETY: a per-CPU map value, claimed before.
    unsafe { atomic_add(&raw mut scratch.claims, u64::MAX) };
}

/// Copies `len` bytes of the packet to the start of the scratch. False: there are none, too many, or they cannot be read.
#[inline(always)]
pub fn load(ctx: &SkBuffContext, scratch: &mut Scratch, offset: u32, len: u32) -> bool {
    scratch.used = scratch.used.max(len);
    (1..=HEAD_BYTES as u32).contains(&len) && load_bytes(ctx.skb.skb, offset, scratch, len)
}

/// Whether a name is news to user space.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Name {
    Known,
    /// Handed on now, or the edge is marked.
    New,
}

/// A whole name: `len` bytes at `offset` of the packet. Handed on if user space does not know it. Overwrites the scratch.
#[inline(always)]
pub fn name(
    ctx: &SkBuffContext,
    search: &mut Search,
    scratch: &mut Scratch,
    offset: u32,
    len: u32,
    format: u16,
) -> Name {
    if len as usize > NAME_BYTES || !load(ctx, scratch, offset, len) {
        lost(Counter::PacketUnreadable, search);
        return Name::New;
    }
    let host = HostKey { edge: search.edge, host: hash(scratch, len, format) };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if HOSTS.insert(&host, &now, u64::from(BPF_EXIST)).is_ok() {
        return Name::Known;
    }
    if within_budget(search) {
        let piece = Piece { len, total: len, format, host: host.host };
        search.copied = 0;
        if hand_on(ctx, search, scratch, &piece) {
            // A failure means that the host is announced again at its next request.
            let _ = HOSTS.insert(&host, &now, u64::from(BPF_ANY));
        }
    }
    Name::New
}

/// A request that names nobody, as a blank instead of a name. Handed on if user space does not know that there are such ones. Overwrites
/// the scratch.
#[inline(always)]
pub fn unnamed(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch) {
    let host = HostKey { edge: search.edge, host: NOBODY };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if HOSTS.insert(&host, &now, u64::from(BPF_EXIST)).is_ok() || !within_budget(search) {
        return;
    }
    scratch.data[0] = b' ';
    search.copied = 0;
    let piece = Piece { len: 1, total: 1, format: head_format::NAME, host: NOBODY };
    if hand_on(ctx, search, scratch, &piece) {
        // A failure means that the next one is announced again.
        let _ = HOSTS.insert(&host, &now, u64::from(BPF_ANY));
    }
}

/// FNV over whole words, the last one padded with zeros.
#[inline(always)]
fn hash(scratch: &Scratch, len: u32, format: u16) -> u64 {
    const WORDS: usize = NAME_BYTES / 8;
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(format) << 32 ^ u64::from(len);
    let words = scratch.data.as_ptr().cast::<u64>();
    let mut i = 0;
    while i < WORDS {
        let at = (i * 8) as u32;
        if at >= len {
            break;
        }
        // SAFETY: within the data, whose start is aligned to 8.
        let mut word = u64::from_le(unsafe { *words.add(i) });
        let left = len - at;
        if left < 8 {
            word &= (1u64 << (left * 8)) - 1;
        }
        hash = mixed(hash, word);
        i += 1;
    }
    // 0 stands for "none".
    hash | 1
}

/// A step of that hash.
#[inline(always)]
pub fn mixed(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x0100_0000_01b3);
    hash ^ hash >> 29
}

/// What is handed on.
pub struct Piece {
    pub len: u32,
    pub total: u32,
    pub format: u16,
    pub host: u64,
}

/// Sends the first bytes of the scratch to user space. False: the ring is full, and the edge is marked.
#[inline(always)]
pub fn hand_on(ctx: &SkBuffContext, search: &mut Search, scratch: &mut Scratch, piece: &Piece) -> bool {
    scratch.event = HeadEvent {
        kind: event_kind::HEAD,
        len: piece.len as u16,
        format: piece.format,
        // SAFETY: the context is valid for the run of the program.
        socket: unsafe { bpf_get_socket_cookie(ctx.skb.skb.cast()) },
        offset: search.copied as u16,
        total: piece.total as u16,
        request: search.request,
        host: piece.host,
        key: search.key,
    };
    // SAFETY: event and data lie behind each other (repr(C)).
    let sent = unsafe { ring_output::<HEADER>((&raw mut scratch.event).cast(), piece.len) };
    if !sent {
        lost(Counter::HeadRingFull, search);
    }
    sent
}

/// There was a request whose host will not be known, for this cause.
#[inline(always)]
pub fn lost(cause: Counter, search: &Search) {
    lose(cause, search.key.netns);
    flag_edge(&search.key, edge_flags::HOST_UNKNOWN);
}

/// Whether one more head may go to user space in this window; if not, the hosts of the edge are not complete.
#[inline(always)]
pub fn within_budget(search: &Search) -> bool {
    // SAFETY: no preconditions.
    let window = (unsafe { bpf_ktime_get_ns() } / HEAD_WINDOW_NS) as u32;
    let Some(state) = EDGES.get_ptr_mut(&search.key) else {
        lose(Counter::HeadBudget, search.key.netns);
        return false;
    };
    // SAFETY: a map value is valid for the run of the program. CPUs that race may let a few heads more pass.
    let state = unsafe { &mut *state };
    if state.window != window {
        state.window = window;
        state.heads = 0;
    }
    state.names = state.names.saturating_add(1);
    state.heads = state.heads.saturating_add(1);
    if state.heads <= HEADS_PER_WINDOW {
        return true;
    }
    lost(Counter::HeadBudget, search);
    false
}
