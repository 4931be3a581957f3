//! The smallest TCP server and client, for tests that ask who answers, or with which error nobody does.

use std::io::{self, Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result};
use nix::libc::{self, linger};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use nix::{setsockopt_impl, sockopt_impl};

use crate::wait::patient;

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
    let mut stream = TcpStream::connect_timeout(&address, patient(TIMEOUT))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(patient(TIMEOUT)))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).with_context(|| format!("read from {address}"))?;
    io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}

/// Sends each connection as many zeros as it has brought bytes.
pub fn sink(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    for stream in listener.incoming() {
        let stream = stream.context("cannot accept")?;
        thread::spawn(move || {
            if let Err(error) = swallow(stream) {
                eprintln!("a connection: {error}");
            }
        });
    }
    Ok(())
}

fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    stream.set_nodelay(true)?;
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        buffer[..read].fill(0);
        stream.write_all(&buffer[..read])?;
    }
}

/// How to send.
#[derive(Default)]
pub struct Options<'a> {
    /// Where to cut into pieces.
    pub cuts: &'a [usize],
    /// Waits after the first piece until something is written to this FIFO.
    pub pause: Option<&'a Path>,
    /// The kernel adds a hop-by-hop header to each packet (IPv6).
    pub hop_by_hop: bool,
}

/// Sends what it reads to a sink, in pieces. Each is a packet of its own (or several, if it is large): it waits until the sink has told
/// of all bytes of one before it sends the next.
pub fn send(address: SocketAddr, input: Option<&Path>, options: &Options<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    match input {
        Some(path) => bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
        None => drop(io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?),
    }
    deliver(address, &bytes, options)
}

/// What is sent on one connection: to whom, what, and where it is cut into pieces.
pub type Message = (SocketAddr, Vec<u8>, Vec<usize>);

/// Sends what it reads as JSON, one message after the other, as [`send`] does: the start of a process costs more than that.
pub fn send_all() -> Result<()> {
    let messages: Vec<Message> = serde_json::from_reader(io::stdin()).context("cannot read the messages")?;
    messages.iter().try_for_each(|(address, bytes, cuts)| {
        deliver(*address, bytes, &Options { cuts, ..Options::default() })
    })
}

fn deliver(address: SocketAddr, bytes: &[u8], options: &Options<'_>) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, patient(TIMEOUT))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patient(TIMEOUT)))?;
    if options.hop_by_hop {
        setsockopt(&stream, HopByHop, &NO_OPTIONS).context("cannot have a hop-by-hop header")?;
    }
    let mut start = 0;
    let mut pause = options.pause;
    for end in options.cuts.iter().copied().chain([bytes.len()]) {
        let piece = bytes.get(start..end).with_context(|| format!("no piece from {start} to {end}"))?;
        stream.write_all(piece).with_context(|| format!("write to {address}"))?;
        stream.read_exact(&mut vec![0; piece.len()]).with_context(|| format!("read from {address}"))?;
        start = end;
        if let Some(fifo) = pause.take() {
            println!("paused");
            fs::read(fifo).with_context(|| format!("read {}", fifo.display()))?;
        }
    }
    Ok(())
}

sockopt_impl!(
    /// What the kernel puts behind the IPv6 header of each packet: a header of eight bytes.
    HopByHop,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_HOPOPTS,
    [u8; 8]
);

/// Padding.
const NO_OPTIONS: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// A connection to a sink that is closed with a reset, so that its port is free at once.
fn short_lived(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, patient(TIMEOUT))
        .with_context(|| format!("connect to {address}"))?;
    setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    stream.set_read_timeout(Some(patient(TIMEOUT)))?;
    Ok(stream)
}

fn request(stream: &mut TcpStream, host: &str) -> Result<()> {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    Ok(stream.read_exact(&mut vec![0; request.len()])?)
}

/// Names a host and connects for some time, as fast as it goes; then opens so many connections at once, says so, and waits for something
/// to be written to the FIFO. Then each of them has a request for a host of its own.
pub fn pool(address: SocketAddr, first: (&str, Duration), count: usize, pause: &Path) -> Result<()> {
    let start = Instant::now();
    request(&mut short_lived(address)?, first.0)?;
    while start.elapsed() < first.1 {
        short_lived(address)?;
    }
    let mut streams = (0..count).map(|_| short_lived(address)).collect::<Result<Vec<_>>>()?;
    println!("{count} open");
    fs::read(pause).with_context(|| format!("read {}", pause.display()))?;
    for (number, stream) in streams.iter_mut().enumerate() {
        request(stream, &format!("pooled-{number}.test"))?;
    }
    Ok(())
}

/// Connects over and over, each time with a request: for a host for some time, then for another one so many times.
pub fn knock(address: SocketAddr, first: (&str, Duration), second: (&str, u64)) -> Result<()> {
    let knock = |host: &str| request(&mut short_lived(address)?, host);
    let (start, mut made) = (Instant::now(), second.1);
    while start.elapsed() < first.1 {
        knock(first.0)?;
        made += 1;
    }
    for _ in 0..second.1 {
        knock(second.0)?;
    }
    println!("{made}");
    Ok(())
}
