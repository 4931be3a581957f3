//! Finding the Host header in the first bytes of a request, in a way that the verifier of 5.10 can follow.

use crate::maps::Scratch;

/// Bytes of a segment that are searched for the Host header in the kernel. A host that stands later is found in user space.
pub const SCAN_BYTES: usize = 1024;
/// Longest value of a Host header that the kernel tells apart.
const HOST_BYTES: usize = 264;

/// `\nHost:` with bit 5 of every byte set, as the loop sees it.
const NEEDLE: u64 = u64::from_be_bytes([0, 0, b'\n' | 0x20, b'h', b'o', b's', b't', b':']);
const NEEDLE_MASK: u64 = 0xffff_ffff_ffff;

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

/// The value of the Host header: its hash, and where it ends.
pub struct Found {
    pub hash: u64,
    pub end: usize,
}

/// Looks for the Host header in the first `len` bytes of the scratch.
#[inline(always)]
pub fn find_host(scratch: &mut Scratch, len: usize) -> Option<Found> {
    scratch.found = 0;
    scratch.end = 0;
    let mut window = 0u64;
    let mut i = 0;
    while i < SCAN_BYTES {
        if i >= len {
            break;
        }
        window = ((window << 8) | u64::from(scratch.data[i] | 0x20)) & NEEDLE_MASK;
        i += 1;
        if window == NEEDLE {
            scratch.found = i as u32;
            break;
        }
    }
    // Through memory: see `Scratch::found`.
    // SAFETY: a field of a valid reference.
    let start = unsafe { core::ptr::read_volatile(&raw const scratch.found) } as usize;
    if start == 0 || start > SCAN_BYTES {
        return None;
    }
    hash_value(scratch, start, len)
}

#[inline(always)]
fn hash_value(scratch: &mut Scratch, start: usize, len: usize) -> Option<Found> {
    let mut hash = FNV_OFFSET;
    let mut i = 0;
    while i < HOST_BYTES {
        let at = start + i;
        if at >= len {
            break;
        }
        let byte = scratch.data[at & (SCAN_BYTES * 2 - 1)];
        if byte == b'\r' || byte == b'\n' {
            scratch.hash = hash;
            scratch.end = at as u32;
            break;
        }
        hash = (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME);
        i += 1;
    }
    // SAFETY: fields of a valid reference; through memory: see `Scratch::found`.
    let (end, hash) = unsafe {
        (core::ptr::read_volatile(&raw const scratch.end), core::ptr::read_volatile(&raw const scratch.hash))
    };
    (end != 0).then_some(Found { hash, end: end as usize })
}
