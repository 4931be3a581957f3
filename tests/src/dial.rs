//! Every way in which a program can open a connection, or do what only looks like one.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{self as unix, UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use nix::errno::Errno;
use nix::libc::MSG_FASTOPEN;
use nix::sys::socket::sockopt::TcpFastOpenConnect;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, connect, sendto, setsockopt, socket,
};

use crate::wait::patient;

/// How long a connection may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long the impatient wait.
const IMPATIENCE: Duration = Duration::from_millis(50);

/// A way to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// connect() that waits.
    Blocking,
    /// connect() that does not wait, then poll().
    Nonblocking,
    /// The same, given up after a moment.
    Impatient,
    /// connect() that does not wait, then close().
    Abandoned,
    /// An IPv4 address on an IPv6 socket.
    Mapped,
    /// sendto() with MSG_FASTOPEN instead of connect().
    FastOpen,
    /// connect() with TCP_FASTOPEN_CONNECT, which puts it off until the first write.
    FastOpenConnect,
    /// connect() by io_uring.
    IoUring,
    /// A connection that stays until the process is killed.
    Held,
    /// A datagram on a socket without a destination of its own.
    Udp,
    /// connect() on a datagram socket, and a datagram.
    UdpConnected,
    /// A pair of unix sockets: the address is not used.
    Unix,
}

/// Dials and prints what came of it: `ok`, or the name of the error.
pub fn run(how: How, address: SocketAddr) -> Result<()> {
    let outcome = match dial(how, address) {
        Ok(()) => "ok".to_owned(),
        Err(error) => match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None => format!("{:?}", error.kind()),
        },
    };
    println!("{outcome}");
    if how == How::Held {
        loop {
            thread::park();
        }
    }
    Ok(())
}

fn dial(how: How, address: SocketAddr) -> io::Result<()> {
    match how {
        How::Blocking => TcpStream::connect(address).map(drop),
        How::Nonblocking => TcpStream::connect_timeout(&address, patient(PATIENCE)).map(drop),
        How::Impatient => TcpStream::connect_timeout(&address, IMPATIENCE).map(drop),
        How::Abandoned => abandon(address),
        How::Mapped => TcpStream::connect(mapped(address)).map(drop),
        How::FastOpen => {
            let socket = stream_socket(address, SockFlag::empty())?;
            let flags = MsgFlags::from_bits_retain(MSG_FASTOPEN);
            sendto(socket.as_raw_fd(), b"hello", &SockaddrStorage::from(address), flags)?;
            Ok(())
        }
        How::FastOpenConnect => {
            let socket = stream_socket(address, SockFlag::empty())?;
            setsockopt(&socket, TcpFastOpenConnect, &true)?;
            connect(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
            io::Write::write_all(&mut TcpStream::from(socket), b"hello")
        }
        How::IoUring => {
            tokio_uring::start(async { tokio_uring::net::TcpStream::connect(address).await.map(drop) })
        }
        How::Held => {
            // Forgotten and not closed: the process holds it.
            std::mem::forget(TcpStream::connect(address)?);
            Ok(())
        }
        How::Udp => datagram_socket(address)?.send_to(b"hello", address).map(drop),
        How::UdpConnected => {
            let socket = datagram_socket(address)?;
            socket.connect(address)?;
            socket.send(b"hello").map(drop)
        }
        How::Unix => dial_itself(),
    }
}

fn abandon(address: SocketAddr) -> io::Result<()> {
    let socket = stream_socket(address, SockFlag::SOCK_NONBLOCK)?;
    match connect(socket.as_raw_fd(), &SockaddrStorage::from(address)) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Two sockets of one process, connected by a name that is gone with it.
fn dial_itself() -> io::Result<()> {
    let name = format!("sidescope-{}", std::process::id());
    let address = unix::SocketAddr::from_abstract_name(name)?;
    let _listener = UnixListener::bind_addr(&address)?;
    UnixStream::connect_addr(&address).map(drop)
}

fn stream_socket(address: SocketAddr, flags: SockFlag) -> io::Result<std::os::fd::OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, flags, None)?)
}

fn datagram_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let ip: Ipv6Addr = match address {
        SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
        SocketAddr::V6(v6) => *v6.ip(),
    };
    SocketAddr::from((ip, address.port()))
}
