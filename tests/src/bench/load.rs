//! The load generator and the server that it talks to: one process each, blocking sockets, one connection at a time.
//!
//! Every operation waits for the server, so that its time is that of the whole exchange and nothing piles up. Connections are
//! closed with a reset: the ports of closed ones are free at once.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc::linger;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use nix::unistd::Pid;

use sidescope_common::SEARCHED_CONNECTS;

use super::wire::Form;
use crate::bed::LONE_NETWORK;

/// Closes every connection that it accepts.
pub(super) const ACCEPT: u16 = 9001;
/// Sends back [`SMALL`] bytes.
const ECHO: u16 = 9002;
/// Answers [`REQUEST`] bytes with [`RESPONSE`] bytes.
const ANSWER: u16 = 9003;
/// Answers whatever comes with two bytes.
pub(super) const SINK: u16 = 9004;
/// Keeps every connection that it accepts; a server of its own.
pub(super) const KEEP: u16 = 9005;

const SMALL: usize = 64;
const REQUEST: usize = 256;
const RESPONSE: usize = 1024;

/// What a block of measurement does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// connect, accept, close, always to the same destination, of which the first many get a search for hosts, and later on one in each
    /// tick of the kernel's clock. The others are only counted.
    ConnectRepeated,
    /// The same, to one after the other of so many destinations that each connect gets the search, as those of all edges do that have
    /// fewer than some hundred connects a second.
    ConnectSearched,
    /// The same, every time to another destination.
    ConnectNew,
    /// A round trip on a connection that began with HTTP/1, so that every packet might begin a request.
    RoundTripSearched,
    /// A round trip on a connection that can name no host.
    RoundTripFinished,
    /// A request on a connection on which each names the same host.
    RequestSearched,
    /// A request on a connection that can name no host.
    RequestFinished,
}

impl Work {
    /// All of them.
    pub(super) const ALL: [Self; 7] = [
        Self::ConnectRepeated,
        Self::ConnectSearched,
        Self::ConnectNew,
        Self::RoundTripSearched,
        Self::RoundTripFinished,
        Self::RequestSearched,
        Self::RequestFinished,
    ];

    /// Operations before those that are timed: the first pay for caches that others had, or make edges that are to be repeated.
    pub(super) fn untimed(self) -> u32 {
        match self {
            Self::ConnectSearched => SEARCHED,
            // Until no more of them get a search at once.
            Self::ConnectRepeated => 4 * u32::from(SEARCHED_CONNECTS),
            _ => 100,
        }
    }

    /// Its name in the results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ConnectRepeated => "a repeated edge, counted",
            Self::ConnectSearched => "a repeated edge, searched",
            Self::ConnectNew => "every edge new",
            Self::RoundTripSearched | Self::RequestSearched => "host search active",
            Self::RoundTripFinished | Self::RequestFinished => "host search finished",
        }
    }
}

/// The destination with this number.
pub(super) fn destination(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(LONE_NETWORK.0) + 1 + number)
}

/// Destinations between two connects of [`Work::ConnectSearched`] to the same one: more than there are connects in the longest tick, 10 ms.
const SEARCHED: u32 = 2000;

/// The first destination that has never been one before in a bench.
const NEW: u32 = 1 << 20;

/// Binds this process to one CPU.
pub(super) fn pin(cpus: impl IntoIterator<Item = usize>) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot bind to a CPU")
}

/// Serves until it is killed.
pub fn serve(cpu: usize) -> Result<()> {
    pin([cpu])?;
    let mut servers = Vec::new();
    for (port, handle) in [
        (ACCEPT, accept as fn(TcpStream) -> std::io::Result<()>),
        (ECHO, echo),
        (ANSWER, answer),
        (SINK, sink),
    ] {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        servers.push(thread::spawn(move || {
            for stream in listener.incoming() {
                // The client resets every connection in the end; it is also the one who counts what came of it.
                stream.and_then(handle).ok();
            }
        }));
    }
    for server in servers {
        server.join().map_err(|_| anyhow::anyhow!("a server panicked"))?;
    }
    Ok(())
}

fn accept(_: TcpStream) -> std::io::Result<()> {
    Ok(())
}

fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; SMALL];
    loop {
        stream.read_exact(&mut bytes)?;
        stream.write_all(&bytes)?;
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut request, mut response) = ([0; REQUEST], [b'x'; RESPONSE]);
    let head = b"HTTP/1.1 200 OK\r\nContent-Length: ";
    response[..head.len()].copy_from_slice(head);
    loop {
        stream.read_exact(&mut request)?;
        stream.write_all(&response)?;
    }
}

fn sink(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut bytes = [0; 4096];
    while stream.read(&mut bytes)? > 0 {
        stream.write_all(b"ok")?;
    }
    Ok(())
}

/// Does what it is told over the socket at `control`, a line for a line, until that is closed.
pub fn run(control: &Path, cpu: usize) -> Result<()> {
    pin([cpu])?;
    let mut control = UnixStream::connect(control).context("cannot connect to the bench")?;
    let mut new = NEW;
    for line in BufReader::new(control.try_clone()?).lines() {
        let line = line?;
        let words = line.split(' ').map(str::parse).collect::<Result<Vec<u64>, _>>();
        let answer = match words.with_context(|| format!("`{line}`"))?.as_slice() {
            [0, work, millis] => {
                let work = *Work::ALL.get(usize::try_from(*work)?).context("no such work")?;
                let (median, operations) = block(work, Duration::from_millis(*millis), &mut new)?;
                format!("{median} {operations}")
            }
            [1, distinct, total] => edges(u32::try_from(*distinct)?, *total)?.to_string(),
            [2, form, hosts] => {
                let form = *Form::ALL.get(usize::try_from(*form)?).context("no such form")?;
                send_hosts(form, u32::try_from(*hosts)?)?.to_string()
            }
            [3, rate, seconds, distinct] => paced(*rate, *seconds, u32::try_from(*distinct)?)?.to_string(),
            _ => bail!("`{line}` is no order"),
        };
        writeln!(control, "{answer}")?;
    }
    Ok(())
}

/// The median time of an operation in nanoseconds, and how many there were.
fn block(work: Work, time: Duration, new: &mut u32) -> Result<(u64, usize)> {
    let mut exchange = Exchange::begin(work, new)?;
    for _ in 0..work.untimed() {
        exchange.once()?;
    }
    let mut times = Vec::with_capacity(1 << 16);
    let mut last = Instant::now();
    let end = last + time;
    while last < end {
        exchange.once()?;
        let now = Instant::now();
        times.push(u64::try_from((now - last).as_nanos())?);
        last = now;
    }
    let middle = times.len() / 2;
    Ok((*times.select_nth_unstable(middle).1, times.len()))
}

enum Exchange<'a> {
    Connect,
    ConnectSearched(u32),
    ConnectNew(&'a mut u32),
    Talk { stream: TcpStream, request: Vec<u8>, response: Vec<u8> },
}

impl<'a> Exchange<'a> {
    fn begin(work: Work, new: &'a mut u32) -> Result<Self> {
        let head = |len: usize| {
            let mut bytes = b"GET / HTTP/1.1\r\nHost: bench.test\r\nX-Padding: ".to_vec();
            bytes.resize(len - 4, b'x');
            bytes.extend(b"\r\n\r\n");
            bytes
        };
        let (port, first, request, response) = match work {
            Work::ConnectRepeated => return Ok(Self::Connect),
            Work::ConnectSearched => return Ok(Self::ConnectSearched(0)),
            Work::ConnectNew => return Ok(Self::ConnectNew(new)),
            Work::RoundTripSearched => (ECHO, head(SMALL), vec![0; SMALL], SMALL),
            Work::RoundTripFinished => (ECHO, vec![0; SMALL], vec![0; SMALL], SMALL),
            Work::RequestSearched => (ANSWER, head(REQUEST), head(REQUEST), RESPONSE),
            Work::RequestFinished => (ANSWER, vec![0; REQUEST], head(REQUEST), RESPONSE),
        };
        let stream = connect(destination(1), port)?;
        stream.set_nodelay(true)?;
        let mut talk = Self::Talk { stream, request: first, response: vec![0; response] };
        talk.once()?;
        if let Self::Talk { request: later, .. } = &mut talk {
            *later = request;
        }
        Ok(talk)
    }

    fn once(&mut self) -> Result<()> {
        match self {
            Self::Connect => connect_and_close(destination(0)),
            Self::ConnectSearched(next) => {
                *next = (*next + 1) % SEARCHED;
                connect_and_close(destination(*next))
            }
            Self::ConnectNew(new) => {
                **new += 1;
                connect_and_close(destination(**new))
            }
            Self::Talk { stream, request, response } => {
                stream.write_all(request)?;
                Ok(stream.read_exact(response)?)
            }
        }
    }
}

fn connect(address: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(SocketAddrV4::new(address, port))
        .with_context(|| format!("cannot connect to {address}:{port}"))?;
    setsockopt(&stream, Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    Ok(stream)
}

/// Until the server has accepted and closed.
fn connect_and_close(address: Ipv4Addr) -> Result<()> {
    let read = connect(address, ACCEPT)?.read(&mut [0])?;
    ensure!(read == 0, "the server has sent something");
    Ok(())
}

/// As fast as it goes; returns to how many destinations it connected.
fn edges(distinct: u32, total: u64) -> Result<u32> {
    let mut made = 0;
    for number in 0..u32::try_from(total)? {
        connect_and_close(destination(number % distinct))?;
        made = (number + 1).min(distinct);
    }
    Ok(made)
}

/// The destination of a connection that names hosts in this form.
pub(super) fn host_destination(form: Form, connection: u32) -> u32 {
    let form = Form::ALL.iter().position(|other| *other == form).unwrap_or_default();
    u32::try_from(form).unwrap_or_default() * 0x1_0000 + connection
}

/// Returns how many hosts it has named.
fn send_hosts(form: Form, hosts: u32) -> Result<u32> {
    let each = form.hosts_per_connection();
    let mut made = 0;
    for connection in 0..hosts.div_ceil(each) {
        let mut stream = connect(destination(host_destination(form, connection)), SINK)?;
        stream.set_nodelay(true)?;
        let names: Vec<String> = (made..hosts.min(made + each)).map(|number| form.host(number)).collect();
        for bytes in form.writes(&names) {
            stream.write_all(&bytes)?;
            stream.read_exact(&mut [0; 2])?;
        }
        made += u32::try_from(names.len())?;
    }
    Ok(made)
}

/// So many connects a second; returns how many there were.
fn paced(rate: u64, seconds: u64, distinct: u32) -> Result<u64> {
    let start = Instant::now();
    let mut made: u64 = 0;
    while start.elapsed() < Duration::from_secs(seconds) {
        let due = u64::try_from(start.elapsed().as_micros())? * rate / 1_000_000;
        while made < due && start.elapsed() < Duration::from_secs(seconds) {
            connect_and_close(destination(u32::try_from(made)? % distinct))?;
            made += 1;
        }
        thread::sleep(Duration::from_micros(500));
    }
    Ok(made)
}
