//! The parsers on bytes of real clients and servers: `observer/samples`, as they are and broken.
#![allow(clippy::unwrap_used)]

mod fuzz;
mod replay;
mod walk;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What a file holds.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Requests of HTTP/1, one after the other.
    Http1,
    /// The same behind a PROXY protocol header.
    ProxyHttp1,
    /// From the connection preface on.
    Http2,
    /// An HTTP/1 request that asks for HTTP/2, which follows it.
    H2c,
    /// A ClientHello.
    Tls,
    /// An answer as a datagram.
    DnsUdp,
    /// Answers as a stream.
    DnsTcp,
}

/// A file, and what must be read out of it.
#[derive(Debug, Deserialize)]
struct Sample {
    file: String,
    kind: Kind,
    /// Of each request, in their order; of a DNS answer the name asked for.
    hosts: Vec<String>,
    #[serde(default)]
    addresses: Vec<IpAddr>,
    #[serde(default)]
    nxdomain: bool,
    #[serde(default)]
    truncated: bool,
    #[serde(skip)]
    bytes: Vec<u8>,
}

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("samples")
}

fn samples() -> Vec<Sample> {
    let list = fs::read(dir().join("samples.json")).unwrap();
    let mut samples: Vec<Sample> = serde_json::from_slice(&list).unwrap();
    for sample in &mut samples {
        sample.bytes = fs::read(dir().join(&sample.file)).unwrap();
    }
    samples
}
