//! The host that an HTTP/1 request names. Pure: bytes in, answer out.

use http::uri::Uri;

use crate::authority::{HeadError, RequestHost, host_of, host_of_bytes};

/// Most headers that a head may have; Envoy's default is 100.
const MAX_HEADERS: usize = 128;
/// How the version begins that ends the first line of a request.
const VERSION: &[u8] = b" HTTP/";

/// Reads the host out of the beginning of a request: from an absolute target or CONNECT, else from the Host header
/// (RFC 9112, 3.2). The head need not be complete, as long as the host's line is.
///
/// # Errors
/// See [`HeadError`].
pub fn request_host(bytes: &[u8]) -> Result<RequestHost, HeadError> {
    match parse(bytes)? {
        Parsed::Complete(host) => Ok(host),
        Parsed::Partial => {
            // What is there up to the last whole line, ended as a head is: the host may be in it already.
            let end = bytes.iter().rposition(|byte| *byte == b'\n').ok_or(HeadError::Incomplete)? + 1;
            // With room for all: a vector that grows would leave bytes behind that nobody wipes.
            let mut lines = zeroize::Zeroizing::new(Vec::with_capacity(end + 2));
            lines.extend_from_slice(&bytes[..end]);
            lines.extend_from_slice(b"\r\n");
            match parse(&lines)? {
                Parsed::Complete(RequestHost::None) | Parsed::Partial => Err(HeadError::Incomplete),
                Parsed::Complete(host) => Ok(host),
            }
        }
    }
}

enum Parsed {
    Complete(RequestHost),
    Partial,
}

fn parse(bytes: &[u8]) -> Result<Parsed, HeadError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(Parsed::Partial),
        Err(_) => return Err(what_else(bytes)),
    }
    let target = request.path.unwrap_or_default();
    if let Some(host) = target_host(request.method.unwrap_or_default(), target)? {
        return Ok(Parsed::Complete(host));
    }
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let Some(header) = hosts.next() else {
        return Ok(Parsed::Complete(RequestHost::None));
    };
    if hosts.next().is_some() {
        return Err(HeadError::BadHost);
    }
    host_of_bytes(header.value.trim_ascii()).map(Parsed::Complete)
}

/// What bytes are that begin with the first letter of a method, and with no request that can be read.
///
/// A first line without a version of HTTP is no request that was broken: a client of NATS begins with CONNECT, too, and one of POP3 with
/// CAPA. A PROXY protocol header has a request behind it.
fn what_else(bytes: &[u8]) -> HeadError {
    let end = bytes.iter().position(|byte| *byte == b'\n');
    let line = &bytes[..end.unwrap_or(bytes.len())];
    let is_text = line.iter().all(|byte| !byte.is_ascii_control() || matches!(byte, b'\r' | b'\t'));
    let names_http = line.windows(VERSION.len()).any(|part| part == VERSION) || line.starts_with(b"PROXY ");
    match end {
        _ if names_http || !is_text => HeadError::NotHttp,
        Some(_) => HeadError::OtherProtocol,
        None => HeadError::Incomplete,
    }
}

/// The host in an absolute target or in that of CONNECT.
fn target_host(method: &str, target: &str) -> Result<Option<RequestHost>, HeadError> {
    if target.starts_with('/') || target == "*" {
        return Ok(None);
    }
    let uri: Uri = target.parse().map_err(|_| HeadError::NotHttp)?;
    if uri.scheme().is_none() && method != "CONNECT" {
        return Err(HeadError::NotHttp);
    }
    uri.authority().map(host_of).transpose()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::names::Host;

    fn name(host: &str) -> Result<RequestHost, HeadError> {
        Ok(RequestHost::Name(Host::new(host).unwrap()))
    }

    #[test]
    fn the_host_of_a_request() {
        let long =
            format!("{}.example", ["a".repeat(60), "b".repeat(60), "c".repeat(60), "d".repeat(60)].join("."));
        let long_request = format!("GET / HTTP/1.1\r\nHost: {long}:80\r\n\r\n");
        for (request, expect) in [
            ("GET / HTTP/1.1\r\nHost: reviews:9080\r\n\r\n", name("reviews")),
            ("GET /a HTTP/1.1\r\nhOsT:Reviews.Default\r\nA: b\r\n\r\nbody", name("reviews.default")),
            ("POST / HTTP/1.1\r\nA: Host: no\r\nCookie: x\r\nHost:\t reviews. \r\n\r\n", name("reviews")),
            ("GET http://user:pw@absolute:80/x HTTP/1.1\r\nHost: other\r\n\r\n", name("absolute")),
            ("CONNECT tunnel.example:443 HTTP/1.1\r\nHost: other\r\n\r\n", name("tunnel.example")),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", name("a")),
            (&long_request, name(&long)),
            ("GET / HTTP/1.1\r\nHost: 10.0.0.1:80\r\n\r\n", Ok(RequestHost::Address([10, 0, 0, 1].into()))),
            (
                "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n",
                Ok(RequestHost::Address("2001:db8::1".parse().unwrap())),
            ),
            ("GET / HTTP/1.0\r\nA: b\r\n\r\n", Ok(RequestHost::None)),
            ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Ok(RequestHost::None)),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Err(HeadError::BadHost)),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Err(HeadError::BadHost)),
            ("GET / HTTP/1.1\r\nHost: *.wild.test\r\n\r\n", Err(HeadError::BadHost)),
            ("\x16\x03\x01\x02\x00\x01", Err(HeadError::NotHttp)),
            ("LIST /v1/secret HTTP/1.1\r\nHost: vault\r\n\r\n", name("vault")),
            ("CONNECT {\"verbose\":false} \r\nPING\r\n", Err(HeadError::OtherProtocol)),
            ("CONNECT {\"verbose\":false} ", Err(HeadError::Incomplete)),
            ("CAPA\r\n", Err(HeadError::OtherProtocol)),
            ("GET\x01\x02\n", Err(HeadError::NotHttp)),
            ("GET / HTTP/3\r\nHost: a\r\n\r\n", Err(HeadError::NotHttp)),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(HeadError::NotHttp)),
            ("PROXY TCP4 1.2.3.4 1.2.3.5 1 2\r\nGET / HTTP/1.1\r\n", Err(HeadError::NotHttp)),
            ("GET / HTTP/1.1\r\nHost: a\x1b[31m\r\n\r\n", Err(HeadError::NotHttp)),
        ] {
            assert_eq!(request_host(request.as_bytes()), expect, "{request:?}");
        }
    }

    #[test]
    fn every_prefix_of_a_request_is_incomplete_or_gives_the_same_host() {
        let request =
            b"GET http://absolute/x HTTP/1.1\r\nUser-Agent: x\r\nHost: absolute\r\nAccept: */*\r\n\r\n";
        let other = b"GET /x HTTP/1.1\r\nUser-Agent: x\r\nHost: reviews:9080\r\nAccept: */*\r\n\r\n";
        for request in [&request[..], &other[..]] {
            let whole = request_host(request);
            let mut known = false;
            for len in 0..request.len() {
                match request_host(&request[..len]) {
                    Err(HeadError::Incomplete) => assert!(!known, "known at a shorter prefix than {len}"),
                    answer => {
                        assert_eq!(answer, whole, "prefix of {len}");
                        known = true;
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let _ = request_host(&bytes);
        }

        #[test]
        fn any_host_bytes_give_an_answer(host in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut request = b"GET / HTTP/1.1\r\nHost: ".to_vec();
            request.extend_from_slice(&host);
            request.extend_from_slice(b"\r\n\r\n");
            let _ = request_host(&request);
        }
    }
}
