//! Asks the kernel for the TCP sockets of the network namespace that this thread is in. Takes no rights.
//!
//! For every list the kernel walks through the connections of the whole machine, whatever the namespace: that is nearly all the time
//! that a scan takes. So it is asked in the older of its two forms, which gives IPv4 and IPv6 in one walk.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer};
use netlink_packet_sock_diag::inet::StateFlags;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::sockets::{Entry, Listeners, MAX_LISTENERS, Socket, State, decode, outgoing};

/// Most outgoing sockets that are kept of one namespace.
pub const MAX_SOCKETS: usize = 65_536;

/// The kernel fills at most 32 KiB at once.
const BUFFER: usize = 64 * 1024;
/// How often a list is asked for that changed while it was made.
const ATTEMPTS: u32 = 4;
/// The kernel answers at once; this is for the kernel that does not.
const PATIENCE_S: i64 = 5;

const NOOP: u16 = 1;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const OVERRUN: u16 = 4;
/// TCPDIAG_GETSOCK: TCP sockets of both families.
const TCP_SOCKETS: u16 = 18;

/// Length of the request, struct inet_diag_req, behind its header.
const REQUEST: usize = 60;
/// Length of a netlink header.
const NETLINK_HEADER_LEN: usize = 16;
/// Where in it the states are.
const STATES: usize = NETLINK_HEADER_LEN + 52;

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum DiagError {
    /// The kernel refused or did not answer.
    #[error("netlink sock_diag: cannot {action}")]
    Netlink {
        /// What was tried.
        action: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Something came that is no answer.
    #[error("netlink sock_diag: the kernel's answer makes no sense")]
    Malformed,
    /// The list changed under the kernel's hands each time.
    #[error("netlink sock_diag: the list was interrupted {ATTEMPTS} times")]
    Interrupted,
    /// Accepted connections could not be told from outgoing ones.
    #[error("more than {MAX_LISTENERS} listening sockets")]
    TooManyListeners,
}

/// The outgoing sockets of one namespace.
#[derive(Debug, Default)]
pub struct Outgoing {
    /// At most [`MAX_SOCKETS`].
    pub sockets: Vec<Socket>,
    /// How many more there are.
    pub beyond: u64,
}

/// Lists the outgoing TCP sockets of the namespace that this thread is in.
///
/// # Errors
/// See [`DiagError`].
pub fn outgoing_sockets() -> Result<Outgoing, DiagError> {
    let mut netlink = Netlink::open()?;
    let mut listeners = Listeners::default();
    netlink.listeners(&mut listeners)?;
    let mut found: Vec<((std::net::IpAddr, u16), Socket)> = Vec::new();
    let mut beyond = 0;
    netlink.dump(State::all(), |event| match event {
        Dump::Again => {
            found.clear();
            beyond = 0;
        }
        Dump::Entry(Entry::Connected { local, socket }) => {
            if let Some(socket) = outgoing(local, socket, &listeners) {
                if found.len() < MAX_SOCKETS {
                    found.push((local, socket));
                } else {
                    beyond += 1;
                }
            }
        }
        Dump::Entry(_) => {}
    })?;
    if !found.is_empty() {
        // Who began to listen after the first list may have accepted before the second.
        netlink.listeners(&mut listeners)?;
        found.retain(|(local, _)| !listeners.accepted(*local));
    }
    Ok(Outgoing { sockets: found.into_iter().map(|(_, socket)| socket).collect(), beyond })
}

/// What a dump hands out.
enum Dump {
    /// One socket.
    Entry(Entry),
    /// What was handed out so far does not count: it begins again.
    Again,
}

struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    fn open() -> Result<Self, DiagError> {
        let action = "open a socket";
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )
        .map_err(failed(action))?;
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_S, 0)).map_err(failed(action))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; BUFFER] })
    }

    fn listeners(&mut self, listeners: &mut Listeners) -> Result<(), DiagError> {
        let mut all = true;
        self.dump(StateFlags::LISTEN, |event| {
            if let Dump::Entry(Entry::Listener(listener)) = event {
                all &= listeners.add(listener);
            }
        })?;
        if all { Ok(()) } else { Err(DiagError::TooManyListeners) }
    }

    fn dump(&mut self, states: StateFlags, mut handle: impl FnMut(Dump)) -> Result<(), DiagError> {
        for _ in 0..ATTEMPTS {
            self.ask(&states)?;
            if self.take_answer(&mut handle)? {
                return Ok(());
            }
            handle(Dump::Again);
        }
        Err(DiagError::Interrupted)
    }

    fn ask(&mut self, states: &StateFlags) -> Result<(), DiagError> {
        self.sequence += 1;
        let mut bytes = [0; NETLINK_HEADER_LEN + REQUEST];
        let len = bytes.len() as u32;
        let mut message = NetlinkBuffer::new(&mut bytes[..]);
        message.set_length(len);
        message.set_message_type(TCP_SOCKETS);
        message.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
        message.set_sequence_number(self.sequence);
        bytes[STATES..STATES + 4].copy_from_slice(&states.bits().to_ne_bytes());
        again(|| send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()))
            .map(drop)
            .map_err(failed("ask for sockets"))
    }

    /// False if the list is not consistent.
    fn take_answer(&mut self, handle: &mut impl FnMut(Dump)) -> Result<bool, DiagError> {
        let mut consistent = true;
        loop {
            let fd = self.fd.as_raw_fd();
            let buffer = &mut self.buffer;
            let len = again(|| recv(fd, buffer, MsgFlags::MSG_TRUNC)).map_err(failed("read the answer"))?;
            // More than the buffer holds, or nothing at all.
            let mut rest =
                self.buffer.get(..len).filter(|rest| !rest.is_empty()).ok_or(DiagError::Malformed)?;
            while !rest.is_empty() {
                let message = NetlinkBuffer::new_checked(rest).map_err(|_| DiagError::Malformed)?;
                let len = message.length() as usize;
                if message.sequence_number() == self.sequence {
                    consistent &= message.flags() & NLM_F_DUMP_INTR == 0;
                    match message.message_type() {
                        TCP_SOCKETS => {
                            let entry = decode(message.payload()).map_err(|_| DiagError::Malformed)?;
                            handle(Dump::Entry(entry));
                        }
                        DONE => match code(message.payload()) {
                            Some(errno) => return Err(refusal(errno)),
                            None => return Ok(consistent),
                        },
                        ERROR => {
                            return Err(code(message.payload()).map_or(DiagError::Malformed, refusal));
                        }
                        OVERRUN => consistent = false,
                        NOOP => {}
                        _ => return Err(DiagError::Malformed),
                    }
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

/// The errno at the start of the kernel's last word.
fn code(payload: &[u8]) -> Option<i32> {
    let code = i32::from_ne_bytes(*payload.first_chunk()?);
    (code != 0).then_some(code.saturating_neg())
}

fn refusal(errno: i32) -> DiagError {
    DiagError::Netlink { action: "list sockets", source: io::Error::from_raw_os_error(errno) }
}

fn failed(action: &'static str) -> impl Fn(Errno) -> DiagError {
    move |errno| DiagError::Netlink { action, source: errno.into() }
}

/// Repeats a call that a signal interrupts.
fn again<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};

    use super::*;

    #[test]
    fn the_kernel_answers_and_loopback_and_accepted_sockets_are_left_out() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        let accepted = listener.accept().unwrap();
        let found = outgoing_sockets().unwrap();
        assert_eq!(found.beyond, 0);
        assert!(found.sockets.iter().all(|socket| !socket.address.is_loopback()));
        drop((client, accepted));
    }

    #[test]
    fn a_refusal_is_told_with_its_errno() {
        assert_eq!(code(&(-libc::ENOENT).to_ne_bytes().repeat(5)), Some(libc::ENOENT));
        assert_eq!(code(&[0; 4]), None);
        assert_eq!(code(&[]), None);
        let DiagError::Netlink { source, .. } = refusal(libc::ENOENT) else { panic!("another error") };
        assert_eq!(source.raw_os_error(), Some(libc::ENOENT));
    }
}
