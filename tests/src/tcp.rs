//! The smallest TCP server and client, for tests that ask who answers, or with which error nobody does.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Longer than a refusal takes, shorter than a test may.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends each connection a text and closes it.
pub fn greet(port: u16, text: &str) -> Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    for stream in listener.incoming() {
        let mut stream = stream.context("cannot accept")?;
        if let Err(error) = stream.write_all(text.as_bytes()) {
            eprintln!("a connection: {error}");
        }
    }
    Ok(())
}

/// Connects, and prints what is read.
pub fn connect(address: SocketAddr) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&address, TIMEOUT).with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {address}"))?;
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
