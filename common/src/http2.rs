//! HTTP/2: the walk over frames and header fields that finds the `:authority` of requests.
//!
//! A machine that takes one byte at a time and can stop at any, since neither frames nor fields keep to segments. It runs in the
//! kernel, where nothing can be looked up and every loop is bounded by its caller, and lives here so that it can be tested outside.
//!
//! It needs no copy of the encoder's dynamic table: an indexed field refers to an entry that went by as a literal before, and was
//! looked at then. Of a name that is taken from the table it must only be known whether it is that of an authority: a bit for
//! each of the last entries says so. A connection that is older than the programs may refer to something that nobody saw, and so
//! may one whose table is larger than the bits; then the walk says that it does not know ([`BLIND_INDEX`]).

/// Length of the connection preface (RFC 9113, 3.4).
pub const PREFACE: u32 = 24;

/// Length of a frame header.
pub const FRAME_HEADER: u8 = 9;
/// Type of a HEADERS frame.
pub const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const FLAG_PADDED: u8 = 0x08;
/// Flag of a HEADERS frame: stream dependency and weight come first.
pub const FLAG_PRIORITY: u8 = 0x20;
/// Length of stream dependency and weight.
pub const PRIORITY: u32 = 5;

/// Entries of HPACK's static table (RFC 7541, appendix A).
const STATIC_ENTRIES: u32 = 61;
const AUTHORITY_INDEX: u32 = 1;
const HOST_INDEX: u32 = 38;
/// `:authority` in Huffman code.
const AUTHORITY_HUFFMAN: u64 = 0xb83b_5339_ec32_7d7f;
const AUTHORITY_START: u64 = u64::from_be_bytes(*b":authori");
const AUTHORITY_END: [u8; 2] = *b"ty";
const HOST_HUFFMAN: u64 = 0x9ce8_4f00_0000_0000;
const HOST_PLAIN: u64 = u64::from_be_bytes(*b"host\0\0\0\0");
/// Entries of the dynamic table of which [`Walk::recent`] knows: all that the default size of a table (4096 bytes, of which each
/// entry takes at least 32) can hold.
const RECENT: u32 = 128;

/// What the next byte of a header block is.
pub mod state {
    /// The first byte of a field.
    pub const FIELD: u8 = 0;
    /// The length of the padding.
    pub const PAD_LENGTH: u8 = 1;
    /// A further byte of an integer.
    pub const INTEGER: u8 = 2;
    /// The length of a name.
    pub const NAME_LENGTH: u8 = 3;
    /// The length of a value.
    pub const VALUE_LENGTH: u8 = 4;
    /// A byte of a name that may be that of the authority.
    pub const NAME: u8 = 5;
    /// A byte of the authority's value: for the caller.
    pub const CAPTURE: u8 = 6;
}

/// What an integer means.
pub mod meaning {
    /// Index of a field in the tables.
    pub const INDEX: u8 = 0;
    /// Index of a name in the tables.
    pub const NAME_INDEX: u8 = 1;
    /// New size of the dynamic table.
    pub const TABLE_SIZE: u8 = 2;
    /// Length of a name.
    pub const NAME_LENGTH: u8 = 3;
    /// Length of a value.
    pub const VALUE_LENGTH: u8 = 4;
}

/// Bits of `Http2::field`.
const INCREMENTAL: u8 = 1;
const AUTHORITY: u8 = 2;
/// The string that was begun is in Huffman code.
pub const HUFFMAN: u8 = 4;
const NEEDS_PRIORITY: u8 = 8;
/// The connection is older than the programs: entries of its dynamic table are not known.
pub const BLIND: u8 = 16;

/// A field referred to an entry that is not known: it may have been an authority.
pub const BLIND_INDEX: u8 = 32;
/// The name that is being compared may be `host`, and not `:authority`.
const SHORT_NAME: u8 = 64;

/// Where the walk stands. Zero is the start of a frame; for a new connection see [`Walk::of_new_connection`].
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Walk {
    /// A bit for each of the last entries of the encoder's dynamic table, the last one lowest: its name is an authority's.
    pub recent: [u64; 2],
    /// Bytes of the current frame's payload that are left.
    pub frame_left: u32,
    /// Bytes to pass over before the next byte that matters.
    pub skip: u32,
    /// The integer that is being read.
    pub value: u32,
    /// Length of the frame whose header is being read.
    pub frame_len: u32,
    /// Entries that were put into the encoder's dynamic table.
    pub inserted: u32,
    /// Bytes of the authority that are still to be handed on.
    pub capture: u32,
    /// Length of that authority.
    pub length: u32,
    /// What the next byte of a header block is: one of [`state`].
    pub state: u8,
    /// Bytes of the frame header that were read.
    pub header: u8,
    /// Type of the current frame.
    pub frame_type: u8,
    /// Its flags.
    pub frame_flags: u8,
    /// What the integer that is being read means: one of [`meaning`].
    pub meaning: u8,
    /// Bits of that integer that were read.
    pub shift: u8,
    /// Bits of what is known of the current field, and of the connection: [`HUFFMAN`], [`BLIND`], [`BLIND_INDEX`] and others.
    pub field: u8,
    /// Bytes of the name that were compared.
    pub matched: u8,
    /// Bytes of padding at the end of the frame.
    pub pad: u8,
    /// Always zero.
    pub reserved: [u8; 3],
}

impl Walk {
    /// For a connection whose preface comes next. It passes as if it were a frame of no interest.
    #[inline(always)]
    pub fn of_new_connection() -> Self {
        Self { frame_left: PREFACE, ..Self::default() }
    }
}

/// Passes over the bytes of the current frame that are of no interest, as far as they are among the `left` that there are;
/// returns how many.
#[inline(always)]
pub fn pass(http2: &mut Walk, left: u32) -> u32 {
    let rest = http2.frame_left.min(left);
    let of_no_interest = http2.frame_type != HEADERS && http2.frame_type != CONTINUATION;
    let len = if of_no_interest || http2.frame_left <= u32::from(http2.pad) {
        rest
    } else {
        // The rest of a value that goes on in another packet, or in another frame, is passed over there.
        let len = http2.skip.min(http2.frame_left - u32::from(http2.pad)).min(rest);
        http2.skip -= len;
        len
    };
    http2.frame_left -= len;
    len
}

/// A byte of a frame header. True: it is the last one of a HEADERS frame's.
#[inline(always)]
pub fn frame_byte(http2: &mut Walk, byte: u8) -> bool {
    match http2.header {
        0..=2 => http2.frame_len = (http2.frame_len << 8) | u32::from(byte),
        3 => http2.frame_type = byte,
        4 => http2.frame_flags = byte,
        _ => {}
    }
    http2.header += 1;
    if http2.header < FRAME_HEADER {
        return false;
    }
    http2.header = 0;
    http2.frame_left = http2.frame_len & 0xff_ffff;
    http2.pad = 0;
    if http2.frame_type != HEADERS {
        return false;
    }
    http2.field &= BLIND | BLIND_INDEX;
    http2.skip = 0;
    http2.state = state::FIELD;
    if http2.frame_flags & FLAG_PRIORITY != 0 {
        http2.field |= NEEDS_PRIORITY;
        http2.skip = PRIORITY;
    }
    if http2.frame_flags & FLAG_PADDED != 0 {
        http2.skip = 0;
        http2.state = state::PAD_LENGTH;
    }
    true
}

/// A byte of a header block. False: no HTTP/2.
#[inline(always)]
pub fn field_byte(http2: &mut Walk, byte: u8) -> bool {
    let (prefix, what) = match http2.state {
        state::PAD_LENGTH => {
            http2.pad = byte;
            http2.state = state::FIELD;
            http2.skip = if http2.field & NEEDS_PRIORITY != 0 { PRIORITY } else { 0 };
            return true;
        }
        state::INTEGER => {
            if http2.shift > 21 {
                return false;
            }
            http2.value += u32::from(byte & 0x7f) << (http2.shift & 31);
            http2.shift += 7;
            if byte & 0x80 == 0 {
                integer(http2);
            }
            return true;
        }
        state::NAME => {
            name_byte(http2, byte);
            return true;
        }
        state::FIELD => {
            http2.field &= BLIND | BLIND_INDEX;
            if byte & 0x80 != 0 {
                (0x7f, meaning::INDEX)
            } else if byte & 0x40 != 0 {
                http2.field |= INCREMENTAL;
                (0x3f, meaning::NAME_INDEX)
            } else if byte & 0x20 != 0 {
                (0x1f, meaning::TABLE_SIZE)
            } else {
                (0x0f, meaning::NAME_INDEX)
            }
        }
        other => {
            http2.field = (http2.field & !HUFFMAN) | if byte & 0x80 != 0 { HUFFMAN } else { 0 };
            let what = if other == state::NAME_LENGTH { meaning::NAME_LENGTH } else { meaning::VALUE_LENGTH };
            (0x7f, what)
        }
    };
    http2.meaning = what;
    http2.value = u32::from(byte & prefix);
    http2.shift = 0;
    if byte & prefix == prefix {
        http2.state = state::INTEGER;
    } else {
        integer(http2);
    }
    true
}

/// An integer is complete.
#[inline(always)]
fn integer(http2: &mut Walk) {
    let value = http2.value;
    match http2.meaning {
        meaning::NAME_INDEX if value == 0 => http2.state = state::NAME_LENGTH,
        meaning::NAME_INDEX => {
            if value > STATIC_ENTRIES {
                let back = value - STATIC_ENTRIES - 1;
                if is_unseen(http2, back) {
                    http2.field |= BLIND_INDEX;
                } else {
                    let bits = if back < 64 { http2.recent[0] } else { http2.recent[1] };
                    if (bits >> (back & 63)) & 1 != 0 {
                        http2.field |= AUTHORITY;
                    }
                }
            } else if value == AUTHORITY_INDEX || value == HOST_INDEX {
                http2.field |= AUTHORITY;
            }
            http2.state = state::VALUE_LENGTH;
        }
        meaning::NAME_LENGTH => {
            let (of_authority, of_host) = if http2.field & HUFFMAN != 0 { (8, 3) } else { (10, 4) };
            http2.matched = 0;
            if value == of_authority {
                http2.state = state::NAME;
            } else if value == of_host {
                http2.field |= SHORT_NAME;
                http2.state = state::NAME;
            } else {
                http2.skip = value;
                http2.state = state::VALUE_LENGTH;
            }
        }
        meaning::VALUE_LENGTH => {
            if http2.field & INCREMENTAL != 0 {
                http2.inserted = http2.inserted.saturating_add(1);
                http2.recent[1] = (http2.recent[1] << 1) | (http2.recent[0] >> 63);
                http2.recent[0] = (http2.recent[0] << 1) | u64::from(http2.field & AUTHORITY != 0);
            }
            http2.state = state::FIELD;
            if http2.field & AUTHORITY != 0 && value != 0 {
                http2.capture = value;
                http2.length = value;
                http2.state = state::CAPTURE;
            } else {
                http2.skip = value;
            }
        }
        meaning::INDEX => {
            // An entry that was seen was looked at then.
            let older = http2.field & BLIND != 0 && value > STATIC_ENTRIES;
            if older && value - STATIC_ENTRIES > http2.inserted {
                http2.field |= BLIND_INDEX;
            }
            http2.state = state::FIELD;
        }
        _ => http2.state = state::FIELD,
    }
}

/// Whether nothing is known of the entry that was put into the dynamic table before so many others.
#[inline(always)]
fn is_unseen(http2: &Walk, back: u32) -> bool {
    back >= RECENT || (http2.field & BLIND != 0 && back >= http2.inserted)
}

/// A byte of a name that is as long as one of an authority.
#[inline(always)]
fn name_byte(http2: &mut Walk, byte: u8) {
    let at = http2.matched & 15;
    let (word, len) = match (http2.field & SHORT_NAME != 0, http2.field & HUFFMAN != 0) {
        (false, true) => (AUTHORITY_HUFFMAN, 8),
        (false, false) => (AUTHORITY_START, 10),
        (true, true) => (HOST_HUFFMAN, 3),
        (true, false) => (HOST_PLAIN, 4),
    };
    let expected = match at {
        0..=7 => (word >> (56 - 8 * u32::from(at))) as u8,
        8 => AUTHORITY_END[0],
        _ => AUTHORITY_END[1],
    };
    http2.matched = at + 1;
    if byte != expected {
        http2.skip = u32::from(len - http2.matched);
        http2.state = state::VALUE_LENGTH;
    } else if http2.matched == len {
        http2.field |= AUTHORITY;
        http2.state = state::VALUE_LENGTH;
    }
}
