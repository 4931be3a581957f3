//! Helper calls whose length is bounded in the instructions directly before the call.
//!
//! The verifiers of 5.10 and 6.1 do not carry over to a number on the stack what a comparison says of its copy in a register, so
//! that a comparison somewhere above the call may prove nothing there. The mask stands in the same asm block as the call, and nothing can come
//! between.

use core::arch::asm;
use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use sidescope_common::{HEAD_BYTES, HeadEvent};

use crate::maps::{EVENTS, Scratch};

// The instructions below are written for these.
const _: () = assert!(HEAD_BYTES == 4096 && size_of::<HeadEvent>() == 64);

/// Copies `len` bytes of a packet into the scratch; `len` is from 1 to [`HEAD_BYTES`]. Whether that worked.
#[inline(always)]
pub fn load_bytes(skb: *mut __sk_buff, offset: u32, scratch: &mut Scratch, len: usize) -> bool {
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
            inlateout("r4") len => _,
            lateout("r0") result,
            lateout("r5") _,
        );
    }
    result == 0
}

/// Sends the scratch's event and `len` bytes behind it; `len` is from 1 to [`HEAD_BYTES`]. Whether the ring had room.
#[inline(always)]
pub fn ring_output(scratch: &mut Scratch, len: usize) -> bool {
    let result: i64;
    let ring: *mut c_void = (&raw const EVENTS).cast_mut().cast();
    // SAFETY: bpf_ringbuf_output; event and data lie behind each other (repr(C)), and the mask keeps the length within both.
    unsafe {
        asm!(
            "r3 += -1",
            "r3 &= 4095",
            "r3 += 65",
            "call 130",
            inlateout("r1") ring => _,
            inlateout("r2") &raw mut scratch.event => _,
            inlateout("r3") len => _,
            inlateout("r4") 0u64 => _,
            lateout("r0") result,
            lateout("r5") _,
        );
    }
    result == 0
}
