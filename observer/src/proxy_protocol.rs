//! The header that a PROXY-protocol client puts before its first request. Pure: bytes in, answer out.
//!
//! Only its length is of interest, so that what follows can be read: the addresses in it stay unread.

/// A header may have begun; more bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the PROXY protocol header is not complete")]
pub struct Incomplete;

const V1: &[u8] = b"PROXY ";
const V1_FAMILIES: [&[u8]; 3] = [b"TCP4 ", b"TCP6 ", b"UNKNOWN"];
/// Longest line of version 1, its end included.
const V1_MAX: usize = 107;
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_FIXED: usize = 16;

/// Length of the header that `bytes` begin with; 0 if they begin with none. It may be more than there is of `bytes`.
///
/// # Errors
/// [`Incomplete`] while that cannot be told.
pub fn header_len(bytes: &[u8]) -> Result<usize, Incomplete> {
    if starts_with(bytes, V2)? {
        v2_len(bytes)
    } else if starts_with(bytes, V1)? {
        v1_len(bytes)
    } else {
        Ok(0)
    }
}

fn v1_len(bytes: &[u8]) -> Result<usize, Incomplete> {
    let mut known = false;
    for family in V1_FAMILIES {
        known |= starts_with(&bytes[V1.len()..], family)?;
    }
    if !known {
        return Ok(0);
    }
    let line = &bytes[..bytes.len().min(V1_MAX)];
    match line.windows(2).position(|end| end == b"\r\n") {
        Some(end) => Ok(end + 2),
        None if line.len() == V1_MAX => Ok(0),
        None => Err(Incomplete),
    }
}

fn v2_len(bytes: &[u8]) -> Result<usize, Incomplete> {
    // Version 2, and the command LOCAL or PROXY.
    if !matches!(bytes.get(V2.len()).ok_or(Incomplete)?, 0x20 | 0x21) {
        return Ok(0);
    }
    let len = bytes.get(V2_FIXED - 2..V2_FIXED).ok_or(Incomplete)?;
    Ok(V2_FIXED + usize::from(u16::from_be_bytes([len[0], len[1]])))
}

/// Whether `bytes` begin with `word`; unknown while all that is there of them does.
fn starts_with(bytes: &[u8], word: &[u8]) -> Result<bool, Incomplete> {
    if bytes.len() < word.len() && word.starts_with(bytes) {
        return Err(Incomplete);
    }
    Ok(bytes.starts_with(word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V2_INET: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x1f\x90\x00\x50";

    #[test]
    fn the_length_of_a_header() {
        let longest = [V1, b"UNKNOWN ", &[b'f'; V1_MAX - 16], b"\r\n"].concat();
        let too_long = [V1, b"UNKNOWN ", &[b'f'; V1_MAX - 15], b"\r\n"].concat();
        assert_eq!(longest.len(), V1_MAX);
        for (header, expect) in [
            (&b"PROXY TCP4 10.0.0.1 10.0.0.2 8080 80\r\n"[..], 38),
            (b"PROXY TCP6 ::1 ::2 8080 80\r\n", 28),
            (b"PROXY UNKNOWN\r\n", 15),
            (&longest, V1_MAX),
            (V2_INET, 28),
            (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", 16),
        ] {
            for follows in [&b""[..], b"GET / HTTP/1.1\r\n"] {
                let bytes = [header, follows].concat();
                assert_eq!(header_len(&bytes), Ok(expect), "{:?}", bytes.escape_ascii().to_string());
            }
        }
        for none in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"PRI * HTTP/2.0\r\n",
            b"PROXY / HTTP/1.1\r\n",
            b"PROXY TCP5 ",
            b"\x16\x03\x01",
            b"\r\n\r\nGET",
            b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c",
            b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c",
            &too_long,
        ] {
            assert_eq!(header_len(none), Ok(0), "{:?}", none.escape_ascii().to_string());
        }
    }

    #[test]
    fn every_prefix_of_a_header_is_incomplete_or_gives_the_same_length() {
        for header in [
            b"PROXY TCP4 10.0.0.1 10.0.0.2 8080 80\r\nGET /",
            V2_INET,
            b"PROXY / HTTP/1.1\r\n",
            b"PRI * HTTP",
        ] {
            let whole = header_len(header);
            let mut known = false;
            for len in 0..=header.len() {
                let answer = header_len(&header[..len]);
                assert!(
                    answer == whole || answer == Err(Incomplete) && !known,
                    "prefix of {len}: {answer:?}"
                );
                known |= answer.is_ok();
            }
            assert!(known);
        }
        assert_eq!(header_len(b""), Err(Incomplete));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in 0..3usize) {
            let _ = header_len(&[[&b""[..], b"PROXY TCP4 ", V2][version], &bytes].concat());
        }
    }
}
