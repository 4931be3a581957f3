//! Hellos put together here; those of real clients are in `observer/samples`.

use proptest::prelude::*;

use super::*;

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
}

fn sni(name: &[u8]) -> Vec<u8> {
    let entry = [&[HOST_NAME][..], &(name.len() as u16).to_be_bytes(), name].concat();
    extension(SERVER_NAME, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
}

fn key_share(len: usize) -> Vec<u8> {
    extension(51, &vec![7; len])
}

/// The handshake message; `None` for a hello that ends before its extensions.
fn hello(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([9; 32]);
    body.extend([2, 1, 1]);
    body.extend([0, 4, 0x13, 1, 0x13, 2]);
    body.extend([1, 0]);
    if let Some(extensions) = extensions {
        let extensions = extensions.concat();
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
    }
    let len = (body.len() as u32).to_be_bytes();
    [&[CLIENT_HELLO][..], &len[1..], &body].concat()
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| [&[HANDSHAKE, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(size).flat_map(record).collect()
}

fn name(name: &str) -> Result<ServerName, TlsError> {
    Ok(ServerName::Name(Host::new(name).unwrap()))
}

fn whole(extensions: &[Vec<u8>]) -> Result<ServerName, TlsError> {
    server_name(&records(&hello(Some(extensions)), MAX_RECORD))
}

#[test]
fn the_server_name_of_a_hello() {
    for (extensions, expect) in [
        (&[sni(b"reviews"), key_share(10)][..], name("reviews")),
        (&[key_share(1300), sni(b"Reviews.Default")], name("reviews.default")),
        (&[extension(0x0a0a, &[]), sni(b"a.b"), extension(21, &[0; 200])], name("a.b")),
        (&[key_share(10)], Ok(ServerName::None)),
        (&[], Ok(ServerName::None)),
        (&[sni(b"10.0.0.1")], Ok(ServerName::None)),
        (&[sni(b"2001:db8::1")], Ok(ServerName::None)),
        (&[sni(b"")], Err(TlsError::Malformed)),
        (&[sni(b"a b")], Err(TlsError::Malformed)),
        (&[sni(b"*.wild.test")], Err(TlsError::Malformed)),
        (&[sni(b"\xff\xfe")], Err(TlsError::Malformed)),
        (&[sni(&[b'a'; 255])], Err(TlsError::Malformed)),
        (&[extension(SERVER_NAME, &[])], Err(TlsError::Malformed)),
        (&[extension(SERVER_NAME, &[0, 4, 1, 0, 1, b'a'])], Err(TlsError::Malformed)),
        (&[extension(SERVER_NAME, &[0, 4, 0, 0, 2, b'a'])], Err(TlsError::Malformed)),
        (&[extension(SERVER_NAME, &[0, 9, 0, 0, 1, b'a'])], Err(TlsError::Malformed)),
    ] {
        assert_eq!(whole(extensions), expect, "{extensions:02x?}");
    }
    assert_eq!(server_name(&records(&hello(None), MAX_RECORD)), Ok(ServerName::None));
}

#[test]
fn what_is_no_hello_is_told_at_once() {
    for bytes in [&b"GET / HTTP/1.1"[..], b"\x80\x2e\x01", b"\x16\x02", b"\x17\x03\x03", b"\x16\x03\x01\0\0"]
    {
        assert_eq!(server_name(bytes), Err(TlsError::NotTls), "{bytes:02x?}");
    }
    // A server's hello.
    assert_eq!(server_name(b"\x16\x03\x03\0\x7a\x02"), Err(TlsError::NotTls));
    // A length that no hello has.
    assert_eq!(server_name(b"\x16\x03\x03\0\x7a\x01\x02\0\0"), Err(TlsError::Malformed));
}

#[test]
fn lengths_that_do_not_fit_are_malformed() {
    let good = hello(Some(&[key_share(4), sni(b"reviews")]));
    // The high bytes of the lengths of: cipher suites, extensions, key share.
    for place in [41, 49, 53] {
        let mut bad = good.clone();
        bad[place] = 0x7f;
        assert_eq!(server_name(&records(&bad, MAX_RECORD)), Err(TlsError::Malformed), "byte {place}");
    }
    // One less for all extensions than there is.
    let mut short = good.clone();
    short[50] -= 1;
    assert_eq!(server_name(&records(&short, MAX_RECORD)), Err(TlsError::Malformed));
    // A session id of 33 bytes, all of them there.
    let mut session = good;
    session[38] = 33;
    session.splice(39..39, [1; 31]);
    session[3] += 31;
    assert_eq!(server_name(&records(&session, MAX_RECORD)), Err(TlsError::Malformed));
}

#[test]
fn a_record_of_another_kind_within_the_hello_is_malformed() {
    let mut bytes = records(&hello(Some(&[sni(b"reviews")])), 40);
    bytes[45] = 21;
    assert_eq!(server_name(&bytes), Err(TlsError::Malformed));
}

#[test]
fn the_name_is_told_as_soon_as_it_is_there() {
    let bytes = records(&hello(Some(&[sni(b"reviews"), key_share(4000)])), MAX_RECORD);
    let end = bytes.windows(7).position(|window| window == b"reviews").unwrap() + 7;
    assert_eq!(server_name(&bytes[..end - 1]), Err(TlsError::Incomplete));
    assert_eq!(server_name(&bytes[..end]), name("reviews"));
}

#[test]
fn every_prefix_in_records_of_any_size_is_incomplete_or_gives_the_same_name() {
    let message = hello(Some(&[key_share(30), sni(b"reviews"), key_share(20)]));
    for size in 1..=message.len() {
        let bytes = records(&message, size);
        let mut known = false;
        for len in 0..=bytes.len() {
            let answer = server_name(&bytes[..len]);
            assert!(
                answer == name("reviews") || answer == Err(TlsError::Incomplete) && !known,
                "records of {size}, prefix of {len}: {answer:?}"
            );
            known |= answer.is_ok();
        }
        assert!(known, "records of {size}");
    }
}

proptest! {
    #[test]
    fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 1..100usize) {
        let _ = server_name(&bytes);
        let _ = server_name(&records(&[&hello(None)[..40], &bytes].concat(), size));
    }

    #[test]
    fn a_broken_hello_never_gives_another_answer_for_more_bytes(
        place in 0..140usize,
        value: u8,
        size in 20..150usize,
    ) {
        let mut bytes = records(&hello(Some(&[key_share(30), sni(b"reviews")])), size);
        let place = place % bytes.len();
        bytes[place] = value;
        let whole = server_name(&bytes);
        for len in 0..bytes.len() {
            let answer = server_name(&bytes[..len]);
            prop_assert!(answer == whole || answer == Err(TlsError::Incomplete));
        }
    }
}
