//! What the scanner and its client say to each other.
//!
//! The client sends one line, `sidescope-scan VERSION WHAT`. The answer is a row of frames, each a length (four bytes, big-endian,
//! at most [`MAX_FRAME`]) and that many bytes of JSON. The last one is an end, a failure or a refusal.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::namespaces::{Part, Summary};
use crate::scan::What;

/// Version of request and frames; raised with every incompatible change.
pub const VERSION: u32 = 2;
/// Longest request, with its line end.
pub const MAX_REQUEST: usize = 64;
/// Longest frame: a part with its most addresses and sockets stays below.
pub const MAX_FRAME: usize = 1 << 20;

/// One frame of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Frame {
    /// A namespace, or more sockets of it.
    Part(Part),
    /// The scan is through.
    End(Summary),
    /// The scan failed.
    Failed(String),
    /// The request was none that this scanner answers.
    Refused(String),
}

/// The request's line.
pub fn request(what: What) -> String {
    let what = match what {
        What::Addresses => "addresses",
        What::Sockets => "sockets",
    };
    format!("sidescope-scan {VERSION} {what}\n")
}

/// Reads a request without its line end.
///
/// # Errors
/// What to tell a client that sent something else.
pub fn parse_request(line: &[u8]) -> Result<What, String> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match words.as_slice() {
        [b"sidescope-scan", version, what] if *version == VERSION.to_string().as_bytes() => match *what {
            b"addresses" => Ok(What::Addresses),
            b"sockets" => Ok(What::Sockets),
            _ => Err("this scanner looks at addresses or sockets".to_owned()),
        },
        [b"sidescope-scan", ..] => Err(format!("this scanner speaks version {VERSION} of the protocol")),
        _ => Err("not a request for a scan".to_owned()),
    }
}

/// Writes one frame.
///
/// # Errors
/// Those of the stream, and `InvalidData` for a frame over [`MAX_FRAME`].
pub async fn write(stream: &mut (impl AsyncWrite + Unpin), frame: &Frame) -> io::Result<()> {
    let json = serde_json::to_vec(frame)?;
    let len = u32::try_from(json.len()).ok().filter(|_| json.len() <= MAX_FRAME);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"))?;
    stream.write_all(&len.to_be_bytes()).await?;
    stream.write_all(&json).await?;
    stream.flush().await
}

/// Reads one frame.
///
/// # Errors
/// Those of the stream, `UnexpectedEof` where it ends, and `InvalidData` for what is no frame.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Frame> {
    let len = stream.read_u32().await? as usize;
    if len > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the frame is too long"));
    }
    let mut json = vec![0; len];
    stream.read_exact(&mut json).await?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv6Addr};

    use super::*;
    use crate::model::names::PodUid;
    use crate::namespaces::{MAX_ADDRESSES, MAX_PODS, PART_SOCKETS};
    use crate::sockets::{Socket, State};
    use crate::uid_map::{Extent, MAX_EXTENTS};

    #[test]
    fn requests_are_read_as_they_are_written() {
        for what in [What::Addresses, What::Sockets] {
            let line = request(what);
            assert!(line.len() <= MAX_REQUEST);
            assert_eq!(parse_request(line.trim_end().as_bytes()), Ok(what));
        }
    }

    #[test]
    fn other_requests_are_refused_with_a_reason() {
        for (line, reason) in [
            ("GET / HTTP/1.1", "not a request"),
            ("", "not a request"),
            ("sidescope-scan", "version 2"),
            ("sidescope-scan 1 sockets", "version 2"),
            ("sidescope-scan 2 passwords", "addresses or sockets"),
        ] {
            let refusal = parse_request(line.as_bytes()).unwrap_err();
            assert!(refusal.contains(reason), "{line}: {refusal}");
        }
    }

    #[tokio::test]
    async fn the_largest_part_fits_a_frame_and_is_read_back() {
        let last = IpAddr::from(Ipv6Addr::from(u128::MAX));
        let socket = Socket {
            uid: u32::MAX,
            address: last,
            port: u16::MAX,
            cookie: u64::MAX,
            state: State::Established,
        };
        let last_uid = u32::MAX - 1;
        let extent = Extent { inside: last_uid, outside: last_uid, count: 1 };
        let addresses = (0..MAX_ADDRESSES).map(|i| IpAddr::from(Ipv6Addr::from(u128::MAX - i as u128)));
        let part = Frame::Part(Part {
            netns: u64::MAX,
            watched: true,
            addresses: addresses.collect(),
            sockets: vec![socket; PART_SOCKETS],
            pods: (0..MAX_PODS).map(|n| PodUid::new(format!("{n:064}")).unwrap()).collect(),
            users: Some(vec![extent; MAX_EXTENTS].try_into().unwrap()),
            ..Part::default()
        });
        let mut bytes = Vec::new();
        write(&mut bytes, &part).await.unwrap();
        assert_eq!(read(&mut bytes.as_slice()).await.unwrap(), part);
        assert_eq!(read(&mut &bytes[..9]).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn what_is_no_frame_is_an_error_before_memory_is_taken() {
        for bytes in [&[0xff; 8][..], b"\0\0\0\x02{}", b"\0\0\0\x01\xff"] {
            let error = read(&mut &bytes[..]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bytes:?}");
        }
    }
}
