//! Helper calls whose length is bounded in the instructions directly before the call.
//!
//! Before Linux 6.8 the verifier forgets what it knows of a number as soon as the compiler keeps it on the stack, so a comparison
//! somewhere above the call proves nothing there. The mask stands in the same asm block as the call, and nothing can come
//! between.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::bindings::{
    __sk_buff, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE,
};
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use sidescope_common::HEAD_BYTES;

use crate::maps::{EVENTS, Scratch};

/// Most bytes that a record takes in the ring beside those of its payload: its own header and ours.
const RECORD_OVERHEAD: u64 = 8 + 64;

// The masks below are written for this.
const _: () = assert!(HEAD_BYTES == 4096);

/// Copies `len` bytes of a packet to the start of the scratch's data; `len` is from 1 to [`HEAD_BYTES`]. Whether that worked.
#[inline(always)]
pub fn load_bytes(skb: *mut __sk_buff, offset: u32, scratch: &mut Scratch, len: u32) -> bool {
    let result: i64;
    // SAFETY: bpf_skb_load_bytes; the mask keeps the length within the buffer, whatever `len` is.
    unsafe {
        asm!(
            "r4 += -1",
            "r4 &= 4095",
            "r4 += 1",
            "call 26",
            inlateout("r1") skb => _,
            inlateout("r2") u64::from(offset) => _,
            inlateout("r3") scratch.data.as_mut_ptr() => _,
            inlateout("r4") u64::from(len) => _,
            lateout("r0") result,
            lateout("r5") _,
        );
    }
    result == 0
}

/// The first eight bytes at a place of a packet, or fewer, the first one highest; zeros where there are none.
#[inline(always)]
pub fn word_at(skb: *mut __sk_buff, offset: u32, len: u32) -> u64 {
    let mut word = [0u8; 8];
    // SAFETY: bpf_skb_load_bytes; the mask keeps the length within the word, whatever `len` is.
    unsafe {
        asm!(
            "r4 += -1",
            "r4 &= 7",
            "r4 += 1",
            "call 26",
            inlateout("r1") skb => _,
            inlateout("r2") u64::from(offset) => _,
            inlateout("r3") word.as_mut_ptr() => _,
            inlateout("r4") u64::from(len.min(8)) => _,
            lateout("r0") _,
            lateout("r5") _,
        );
    }
    // A load that fails fills it with zeros.
    u64::from_be_bytes(word)
}

/// 1 for 0, and 0 for all other numbers below 2^63. No branch, for which the verifier would walk all that comes after it once more.
#[inline(always)]
pub fn is_zero(number: u64) -> u64 {
    let mut number = number;
    // SAFETY: changes nothing but the register.
    unsafe {
        asm!("{number} += -1", "{number} >>= 63", number = inout(reg) number, options(pure, nomem, nostack));
    }
    number
}

/// A length that an IPv4 header may have, too, and is one to the verifier: it walks what comes after either only once.
#[inline(always)]
pub fn within_ipv4_header(len: u64) -> u64 {
    let mut len = len;
    // SAFETY: changes nothing but the register.
    unsafe { asm!("{len} &= 60", len = inout(reg) len, options(pure, nomem, nostack)) };
    len
}

/// Sends `HEADER` bytes from `record` on and `len` behind them; `len` is from 1 to [`HEAD_BYTES`]. Whether the ring had room.
///
/// # Safety
/// `record` must point to so many bytes before the end of [`Scratch::data`].
#[inline(always)]
pub unsafe fn ring_output<const HEADER: i32>(record: *mut u8, len: u32) -> bool {
    let result: i64;
    let ring: *mut c_void = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: bpf_ringbuf_output; the mask keeps the length within what the caller promises.
    unsafe {
        asm!(
            "r3 += -1",
            "r3 &= 4095",
            "r3 += {header}",
            "call 130",
            header = const HEADER + 1,
            inlateout("r1") ring => _,
            inlateout("r2") record => _,
            inlateout("r3") u64::from(len) => _,
            inlateout("r4") wakeup(u64::from(len)) => _,
            lateout("r0") result,
            lateout("r5") _,
        );
    }
    result == 0
}

/// Whether a record of this length shall wake the reader: only the one with which the ring becomes a quarter full. The reader looks
/// by itself often enough for what comes before; a wake-up for each record would cost the program that connects many times
/// what all the rest does (measured).
#[inline(always)]
pub fn wakeup(len: u64) -> u64 {
    let ring: *mut c_void = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: the ring buffer is one.
    let (waiting, size) = unsafe {
        (
            bpf_ringbuf_query(ring, u64::from(BPF_RB_AVAIL_DATA)),
            bpf_ringbuf_query(ring, u64::from(BPF_RB_RING_SIZE)),
        )
    };
    let quarter = size / 4;
    let wake = waiting < quarter && waiting + len + RECORD_OVERHEAD >= quarter;
    u64::from(if wake { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP })
}

/// A byte of the scratch's data. An index beyond them wraps: it cannot occur, but only the mask proves that to the verifier, and
/// the compiler drops a mask that it can tell to be needless.
#[inline(always)]
pub fn byte_at(scratch: &Scratch, at: usize) -> u8 {
    let mut at = at;
    // SAFETY: changes nothing but the register.
    unsafe { asm!("{at} &= 4095", at = inout(reg) at, options(pure, nomem, nostack)) };
    // SAFETY: below HEAD_BYTES by the mask.
    unsafe { *scratch.data.as_ptr().add(at) }
}
