//! What a request's authority says, wherever it stood: an HTTP/1 target, a Host header or `:authority`. Pure.

use std::net::IpAddr;

use http::uri::Authority;

use crate::model::names::Host;

/// Why the bytes do not tell a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// More bytes may tell it.
    #[error("the head is not complete")]
    Incomplete,
    /// They are no request head.
    #[error("not an HTTP request head")]
    NotHttp,
    /// They are no HTTP at all, but another protocol that is made of lines.
    #[error("another protocol than HTTP")]
    OtherProtocol,
    /// The host is not a DNS name, or named twice.
    #[error("the request names a malformed host")]
    BadHost,
}

/// Who answers for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestHost {
    /// A name.
    Name(Host),
    /// An address in place of a name. No service is looked up by it: the socket's destination counts, as where none is named.
    Address(IpAddr),
    /// The head is complete and names none (HTTP/1.0).
    None,
}

/// Reads the bytes of an authority: a name or an address, perhaps with a port.
///
/// # Errors
/// [`HeadError::BadHost`].
pub fn host_of_bytes(value: &[u8]) -> Result<RequestHost, HeadError> {
    if value.is_empty() {
        return Ok(RequestHost::None);
    }
    Authority::try_from(value).map_err(|_| HeadError::BadHost).and_then(|authority| host_of(&authority))
}

/// The host of an authority.
///
/// # Errors
/// [`HeadError::BadHost`].
pub fn host_of(authority: &Authority) -> Result<RequestHost, HeadError> {
    let host = authority.host();
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse() {
        return Ok(RequestHost::Address(address));
    }
    let host = Host::new(host).map_err(|_| HeadError::BadHost)?;
    if host.wildcard_suffix().is_some() {
        return Err(HeadError::BadHost);
    }
    Ok(RequestHost::Name(host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_an_authority() {
        for (authority, expect) in [
            ("Reviews.default.svc.cluster.local.:9080", Some("reviews.default.svc.cluster.local")),
            ("user:pw@reviews", Some("reviews")),
            ("a_b.example:80", Some("a_b.example")),
            ("*.example", None),
            (" reviews", None),
            ("revi\u{e9}ws", None),
        ] {
            let expect =
                expect.map(|name| RequestHost::Name(Host::new(name).unwrap())).ok_or(HeadError::BadHost);
            assert_eq!(host_of_bytes(authority.as_bytes()), expect, "{authority:?}");
        }
        assert_eq!(host_of_bytes(b""), Ok(RequestHost::None));
        for address in ["10.0.0.1", "10.0.0.1:80", "[::1]", "[::1]:80"] {
            assert!(matches!(host_of_bytes(address.as_bytes()), Ok(RequestHost::Address(_))), "{address}");
        }
    }
}
