//! The server name that a TLS client asks for. Pure: bytes in, answer out.
//!
//! Published parsers want the whole ClientHello. A hello with a post-quantum key share fills more than one segment, the
//! extensions come in an order that browsers shuffle, and the name is needed from as few bytes as carry it: so the few fields
//! on the way to it are stepped over here, one after the other, across the borders of records.
//!
//! With Encrypted Client Hello this is the outer name: the one that a proxy sees and routes by.

use std::net::IpAddr;

use crate::model::names::Host;

/// Types and limits of RFC 8446 and RFC 6066.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
const MAX_RECORD: usize = 1 << 14;
const MAX_SESSION_ID: usize = 32;
/// A hello is a few kilobytes at most; servers refuse more than about this, too.
const MAX_HELLO: usize = 1 << 16;

/// Why the bytes do not tell a server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// More bytes may tell it.
    #[error("the ClientHello is not complete")]
    Incomplete,
    /// They are not what a TLS client begins with.
    #[error("not a TLS ClientHello")]
    NotTls,
    /// A length or a name that cannot be.
    #[error("the ClientHello is malformed")]
    Malformed,
}

/// What the ClientHello asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerName {
    /// A name.
    Name(Host),
    /// The whole hello names none, or an address, which says no more than the socket's destination.
    None,
}

/// Reads the server name out of what a TLS client sends, from its first byte on. The hello need not be complete, as long as
/// the name is.
///
/// # Errors
/// See [`TlsError`].
pub fn server_name(bytes: &[u8]) -> Result<ServerName, TlsError> {
    let mut hello = Hello { bytes, left_in_record: 0, at: 0 };
    if hello.byte(usize::MAX)? != CLIENT_HELLO {
        return Err(TlsError::NotTls);
    }
    let len = (usize::from(hello.byte(usize::MAX)?) << 16) | usize::from(hello.number(usize::MAX)?);
    if len > MAX_HELLO {
        return Err(TlsError::Malformed);
    }
    let end = hello.at + len;
    if hello.byte(end)? != 3 {
        return Err(TlsError::NotTls);
    }
    // The version's second byte and the random.
    hello.skip(1 + 32, end)?;
    let session_id = usize::from(hello.byte(end)?);
    if session_id > MAX_SESSION_ID {
        return Err(TlsError::Malformed);
    }
    hello.skip(session_id, end)?;
    let cipher_suites = usize::from(hello.number(end)?);
    hello.skip(cipher_suites, end)?;
    let compression_methods = usize::from(hello.byte(end)?);
    hello.skip(compression_methods, end)?;
    if hello.at == end {
        // No extensions at all: TLS 1.2 and older.
        return Ok(ServerName::None);
    }
    let extensions = usize::from(hello.number(end)?);
    if hello.at + extensions != end {
        return Err(TlsError::Malformed);
    }
    while hello.at < end {
        let kind = hello.number(end)?;
        let extension_len = usize::from(hello.number(end)?);
        let extension_end = hello.at + extension_len;
        if extension_end > end {
            return Err(TlsError::Malformed);
        }
        if kind == SERVER_NAME {
            return first_host_name(&mut hello, extension_end);
        }
        hello.skip(extension_len, extension_end)?;
    }
    Ok(ServerName::None)
}

/// The list of names has one of each type, and only one type was ever defined.
fn first_host_name(hello: &mut Hello<'_>, end: usize) -> Result<ServerName, TlsError> {
    let list = usize::from(hello.number(end)?);
    if hello.at + list != end {
        return Err(TlsError::Malformed);
    }
    if hello.byte(end)? != HOST_NAME {
        return Err(TlsError::Malformed);
    }
    let len = usize::from(hello.number(end)?);
    if len > Host::MAX_LEN + 1 || hello.at + len > end {
        return Err(TlsError::Malformed);
    }
    let mut name = Vec::with_capacity(len);
    for _ in 0..len {
        name.push(hello.byte(end)?);
    }
    let name = str::from_utf8(&name).map_err(|_| TlsError::Malformed)?;
    if name.parse::<IpAddr>().is_ok() {
        return Ok(ServerName::None);
    }
    let host = Host::new(name).map_err(|_| TlsError::Malformed)?;
    if host.wildcard_suffix().is_some() {
        return Err(TlsError::Malformed);
    }
    Ok(ServerName::Name(host))
}

/// The handshake message as one string of bytes, though it comes in records. Every read names the end of the structure that
/// it must lie within.
struct Hello<'a> {
    /// What was not read yet, headers of records included.
    bytes: &'a [u8],
    left_in_record: usize,
    /// Bytes of the message read so far.
    at: usize,
}

impl Hello<'_> {
    fn byte(&mut self, end: usize) -> Result<u8, TlsError> {
        if self.at >= end {
            return Err(TlsError::Malformed);
        }
        self.enter_record()?;
        let (byte, rest) = self.bytes.split_first().ok_or(TlsError::Incomplete)?;
        self.bytes = rest;
        self.left_in_record -= 1;
        self.at += 1;
        Ok(*byte)
    }

    fn number(&mut self, end: usize) -> Result<u16, TlsError> {
        Ok(u16::from_be_bytes([self.byte(end)?, self.byte(end)?]))
    }

    fn skip(&mut self, mut len: usize, end: usize) -> Result<(), TlsError> {
        if self.at + len > end {
            return Err(TlsError::Malformed);
        }
        while len > 0 {
            self.enter_record()?;
            let step = len.min(self.left_in_record);
            self.bytes = self.bytes.get(step..).ok_or(TlsError::Incomplete)?;
            self.left_in_record -= step;
            self.at += step;
            len -= step;
        }
        Ok(())
    }

    /// Steps over the header of the next record where the last one is used up. What is wrong is told from as few bytes as
    /// show it: what is no TLS must not wait for more.
    fn enter_record(&mut self) -> Result<(), TlsError> {
        if self.left_in_record > 0 {
            return Ok(());
        }
        let wrong = if self.at == 0 { TlsError::NotTls } else { TlsError::Malformed };
        if self.bytes.first().is_some_and(|kind| *kind != HANDSHAKE)
            || self.bytes.get(1).is_some_and(|major| *major != 3)
        {
            return Err(wrong);
        }
        let Some((header, rest)) = self.bytes.split_at_checked(5) else {
            return Err(TlsError::Incomplete);
        };
        let len = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if len == 0 || len > MAX_RECORD {
            return Err(wrong);
        }
        self.bytes = rest;
        self.left_in_record = len;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
