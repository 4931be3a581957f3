//! The smallest DNS: a server that answers from a list, a forwarder as it runs beside an application in a pod, and a program that
//! asks for a name and connects to what it is told.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use crate::wait::patient;

const TIMEOUT: Duration = Duration::from_secs(5);
const HEADER: usize = 12;
const A: u16 = 1;
const CNAME: u16 = 5;
const AAAA: u16 = 28;
/// A response that is authoritative and recursive, without an error.
const FLAGS: u16 = 0x8580;
const NXDOMAIN: u16 = 3;
/// A name that stands at the start of the question, as a pointer.
const QUESTION_NAME: u16 = 0xc000 | HEADER as u16;

/// How to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum How {
    /// A datagram from a socket without a destination of its own.
    Udp,
    /// A datagram from a connected socket, as most resolvers do.
    UdpConnected,
    /// A connection.
    Tcp,
}

/// Answers questions, over UDP and TCP.
pub fn answer(port: u16, records: &[String]) -> Result<()> {
    let records: Vec<(String, String)> = records
        .iter()
        .map(|record| record.split_once('=').map(|(name, data)| (name.to_owned(), data.to_owned())))
        .collect::<Option<_>>()
        .context("a record is NAME=DATA")?;
    serve((Ipv6Addr::UNSPECIFIED, port).into(), move |question| reply(question, &records))
}

/// Passes questions on to a server, over UDP. It listens on loopback only: an answer to a redirected question must come from the
/// address that it was redirected to.
pub fn forward(port: u16, server: SocketAddr) -> Result<()> {
    serve((Ipv4Addr::LOCALHOST, port).into(), move |question| exchange(How::UdpConnected, server, question))
}

fn serve(at: SocketAddr, reply: impl Fn(&[u8]) -> Result<Vec<u8>> + Clone + Send + 'static) -> Result<()> {
    let datagrams = UdpSocket::bind(at).with_context(|| format!("cannot bind {at}"))?;
    let listener = TcpListener::bind(at).with_context(|| format!("cannot listen on {at}"))?;
    let over_udp = reply.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
            let sent = over_udp(&buffer[..len]).and_then(|reply| Ok(datagrams.send_to(&reply, from)?));
            if let Err(error) = sent {
                eprintln!("a datagram: {error:#}");
            }
        }
    });
    for stream in listener.incoming() {
        let mut stream = stream.context("cannot accept")?;
        let served =
            read_message(&mut stream).and_then(|question| write_message(&mut stream, &reply(&question)?));
        if let Err(error) = served {
            eprintln!("a connection: {error:#}");
        }
    }
    Ok(())
}

/// Asks for a name, prints the address, connects to it and sends what is no request.
pub fn ask(how: How, server: SocketAddr, name: &str, port: u16, v6: bool) -> Result<()> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    question.extend(encoded(name));
    question.extend_from_slice(&if v6 { AAAA } else { A }.to_be_bytes());
    question.extend_from_slice(&[0, 1]);
    let reply = exchange(how, server, &question)?;
    // The address is what the message ends with.
    let address: IpAddr = match (v6, reply.last_chunk::<16>(), reply.last_chunk::<4>()) {
        (true, Some(octets), _) => (*octets).into(),
        (false, _, Some(octets)) => (*octets).into(),
        _ => bail!("no address in the reply"),
    };
    println!("{address}");
    let mut stream = TcpStream::connect_timeout(&(address, port).into(), patient(TIMEOUT))?;
    Ok(stream.write_all(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")?)
}

fn exchange(how: How, server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    if how == How::Tcp {
        let mut stream = TcpStream::connect_timeout(&server, patient(TIMEOUT))?;
        stream.set_read_timeout(Some(patient(TIMEOUT)))?;
        write_message(&mut stream, question)?;
        return read_message(&mut stream);
    }
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.set_read_timeout(Some(patient(TIMEOUT)))?;
    let mut buffer = vec![0; 4096];
    let len = if how == How::Udp {
        socket.send_to(question, server)?;
        socket.recv_from(&mut buffer)?.0
    } else {
        socket.connect(server)?;
        socket.send(question)?;
        socket.recv(&mut buffer)?
    };
    buffer.truncate(len);
    Ok(buffer)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let mut framed = u16::try_from(message.len())?.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).context("cannot write")
}

fn read_message(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// The reply to a question: the chain of aliases from its name on, then the addresses of its end.
fn reply(question: &[u8], records: &[(String, String)]) -> Result<Vec<u8>> {
    let (name, end) = decoded(question)?;
    let kind = u16::from_be_bytes([question[end], question[end + 1]]);
    let mut answers = Vec::new();
    let (mut owner, mut count, mut known) = (QUESTION_NAME.to_be_bytes().to_vec(), 0u16, false);
    let mut current = name;
    loop {
        let of_name: Vec<&str> =
            records.iter().filter(|(name, _)| *name == current).map(|(_, data)| data.as_str()).collect();
        known |= !of_name.is_empty();
        let mut alias = None;
        for data in of_name {
            let (found, bytes) = match data.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => (A, address.octets().to_vec()),
                Ok(IpAddr::V6(address)) => (AAAA, address.octets().to_vec()),
                Err(_) => {
                    alias = Some(data.to_owned());
                    (CNAME, encoded(data))
                }
            };
            if found == kind || found == CNAME {
                answers.extend_from_slice(&owner);
                answers.extend_from_slice(&found.to_be_bytes());
                answers.extend_from_slice(&[0, 1, 0, 0, 0, 30]);
                answers.extend_from_slice(&u16::try_from(bytes.len())?.to_be_bytes());
                answers.extend_from_slice(&bytes);
                count += 1;
            }
        }
        let Some(alias) = alias else { break };
        owner = encoded(&alias);
        current = alias;
    }
    let mut message = question[..2].to_vec();
    let flags = if known { FLAGS } else { FLAGS | NXDOMAIN };
    for field in [flags, 1, count, 0, 0] {
        message.extend_from_slice(&field.to_be_bytes());
    }
    message.extend_from_slice(&question[HEADER..end + 4]);
    message.extend_from_slice(&answers);
    Ok(message)
}

fn encoded(name: &str) -> Vec<u8> {
    let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
    labels.chain([0]).collect()
}

/// The name of a question, and where it ends.
fn decoded(question: &[u8]) -> Result<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let len = usize::from(*question.get(at).context("a name is cut")?);
        at += 1;
        if len == 0 {
            break;
        }
        let label = question.get(at..at + len).context("a label is cut")?;
        labels.push(str::from_utf8(label)?.to_ascii_lowercase());
        at += len;
    }
    ensure!(question.len() >= at + 4, "a question is cut");
    Ok((labels.join("."), at))
}
