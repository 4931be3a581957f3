//! The host in an `:authority` that the kernel found: the value of one HPACK string literal. Pure: bytes in, answer out.
//!
//! The kernel walks frames and fields; what is left is the Huffman code of RFC 7541. It is canonical, so the lengths of its
//! codes say all of it, and decoding takes fewer lines than the care for a crate would: the ones that offer no more than this
//! have not been kept for years. The tests compare it with another implementation.

use std::sync::LazyLock;

use zeroize::Zeroizing;

use crate::authority::{HeadError, RequestHost, host_of_bytes};
use crate::model::names::Host;

/// A name with its root dot, and a port.
const MAX_AUTHORITY: usize = Host::MAX_LEN + 1 + ":65535".len();

/// Bits of the code of each byte (RFC 7541, appendix B). The end of string, 30 bits, is not among them: it may not be sent.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
];
const MAX_CODE_LENGTH: usize = 30;

/// Reads the value of an `:authority`.
///
/// # Errors
/// [`HeadError::NotHttp`] if the code is broken, [`HeadError::BadHost`] if what it says is.
pub fn authority(value: &[u8], huffman: bool) -> Result<RequestHost, HeadError> {
    if !huffman {
        return checked(value);
    }
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_AUTHORITY));
    decode(value, &mut text)?;
    checked(&text)
}

fn checked(text: &[u8]) -> Result<RequestHost, HeadError> {
    if text.len() > MAX_AUTHORITY {
        return Err(HeadError::BadHost);
    }
    host_of_bytes(text)
}

/// The codes of one length.
struct Row {
    first: u32,
    /// What the first and those after it stand for.
    bytes: Vec<u8>,
}

/// By length.
static ROWS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let mut next = 0;
    (0..=MAX_CODE_LENGTH)
        .map(|length| {
            let bytes: Vec<u8> = (0..=u8::MAX)
                .filter(|byte| usize::from(CODE_LENGTHS[usize::from(*byte)]) == length)
                .collect();
            let first = next;
            next = (next + bytes.len() as u32) << 1;
            Row { first, bytes }
        })
        .collect()
});

/// Decodes into `text`, which does not grow beyond what an authority can be.
fn decode(value: &[u8], text: &mut Vec<u8>) -> Result<(), HeadError> {
    let (mut code, mut length) = (0u32, 0usize);
    let bits = value.iter().flat_map(|byte| (0..8).rev().map(move |shift| u32::from((byte >> shift) & 1)));
    for bit in bits {
        code = (code << 1) | bit;
        length += 1;
        // The only code that is not in the rows is the end of string.
        let row = ROWS.get(length).ok_or(HeadError::NotHttp)?;
        let byte = code.checked_sub(row.first).and_then(|index| row.bytes.get(index as usize));
        if let Some(byte) = byte {
            if text.len() >= MAX_AUTHORITY {
                return Err(HeadError::BadHost);
            }
            text.push(*byte);
            (code, length) = (0, 0);
        }
    }
    // The padding is the beginning of the end of string: ones, and less than a byte of them.
    if length > 7 || code != (1 << length) - 1 {
        return Err(HeadError::NotHttp);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use loona_hpack::huffman::HuffmanDecoder;
    use proptest::prelude::*;

    use super::*;

    fn encode(text: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for byte in text {
            let length = usize::from(CODE_LENGTHS[usize::from(*byte)]);
            let row = &ROWS[length];
            let index = row.bytes.iter().position(|other| other == byte).unwrap();
            let code = row.first + index as u32;
            bits.extend((0..length).rev().map(|shift| (code >> shift) & 1 == 1));
        }
        bits.resize(bits.len().next_multiple_of(8), true);
        bits.chunks(8).map(|byte| byte.iter().fold(0, |sum, bit| (sum << 1) | u8::from(*bit))).collect()
    }

    fn name(host: &str) -> Result<RequestHost, HeadError> {
        Ok(RequestHost::Name(Host::new(host).unwrap()))
    }

    #[test]
    fn every_byte_is_coded_as_others_decode_it() {
        for byte in 0..=u8::MAX {
            let coded = encode(&[byte, b'a']);
            assert_eq!(HuffmanDecoder::new().decode(&coded).unwrap(), [byte, b'a'], "{byte}");
        }
    }

    #[test]
    fn the_host_of_an_authority() {
        // The example of RFC 7541, C.4.1.
        let www = [0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff];
        assert_eq!(authority(&www, true), name("www.example.com"));
        assert_eq!(
            authority(&encode(b"Reviews.default.svc.cluster.local:9080"), true),
            name("reviews.default.svc.cluster.local")
        );
        assert_eq!(authority(b"reviews:9080", false), name("reviews"));
        assert_eq!(authority(b"", false), Ok(RequestHost::None));
        assert_eq!(authority(&encode(b"10.0.0.1:80"), true), Ok(RequestHost::Address([10, 0, 0, 1].into())));
        for (value, huffman, error) in [
            (&b"a b"[..], false, HeadError::BadHost),
            (&encode(b"a b"), true, HeadError::BadHost),
            // Padding: a zero in it, a whole byte of it, and the end of string itself.
            (&[0b0001_1110], true, HeadError::NotHttp),
            (&[0b0001_1111, 0xff], true, HeadError::NotHttp),
            (&[&encode(b"aaaaaaaa")[..], &[0xff]].concat(), true, HeadError::NotHttp),
            (&[0xff, 0xff, 0xff, 0xff], true, HeadError::NotHttp),
        ] {
            assert_eq!(authority(value, huffman), Err(error), "{value:x?}");
        }
    }

    #[test]
    fn the_longest_name_fits_with_its_port_and_no_more() {
        let longest =
            [["a"; 63].concat(), ["b"; 63].concat(), ["c"; 63].concat(), ["d"; 61].concat()].join(".");
        assert_eq!(longest.len(), Host::MAX_LEN);
        let with_port = format!("{longest}.:65535");
        let too_long = format!("u@{with_port}");
        for (text, expect) in [(with_port, name(&longest)), (too_long, Err(HeadError::BadHost))] {
            assert_eq!(authority(text.as_bytes(), false), expect);
            assert_eq!(authority(&encode(text.as_bytes()), true), expect);
        }
        assert_eq!(authority(&encode(&[b'a'; 100_000]), true), Err(HeadError::BadHost));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(value in proptest::collection::vec(any::<u8>(), 0..400), huffman: bool) {
            let _ = authority(&value, huffman);
        }

        #[test]
        fn any_text_is_decoded_as_it_was_coded(text in proptest::collection::vec(any::<u8>(), 0..MAX_AUTHORITY)) {
            let mut decoded = Vec::new();
            decode(&encode(&text), &mut decoded).unwrap();
            prop_assert_eq!(decoded, text);
        }

        #[test]
        fn any_bytes_decode_as_they_do_elsewhere(value in proptest::collection::vec(any::<u8>(), 0..150)) {
            let mut decoded = Vec::new();
            if decode(&value, &mut decoded).is_ok() {
                prop_assert_eq!(HuffmanDecoder::new().decode(&value).unwrap(), decoded);
            }
        }
    }
}
