//! Which addresses a DNS server gave for a name. Pure: bytes in, answer out.
//!
//! The name is the one that the program asked for, wherever a chain of CNAMEs led: that is the name a ServiceEntry holds.

use std::net::IpAddr;
use std::time::Duration;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::{Message, ParsedName, ParsedRecord, Ttl};
use domain::rdata::{A, Aaaa, Cname};

use crate::model::names::Host;

/// Longest chain of CNAMEs that is followed; resolvers give up at 8 to 16.
const MAX_CHAIN: usize = 16;

/// Why a message is no answer that tells addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum DnsError {
    /// It is a question, or no query's answer (a notification, a dynamic update).
    #[error("not the response to a query")]
    NotAResponse,
    /// It does not fit into its datagram: the program asks again over TCP.
    #[error("the response is truncated")]
    Truncated,
    /// It is about another class than IN.
    #[error("the response is not of class IN")]
    OtherClass,
    /// The name asked for is no host name.
    #[error("the question's name is no host name")]
    BadName,
    /// It breaks the rules of the format.
    #[error("the message is malformed")]
    Malformed,
}

/// What a DNS server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked for.
    pub question: Host,
    /// Its addresses, each with the shortest lifetime on the way to it.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// There is no such name.
    pub nxdomain: bool,
}

/// Reads a message as a UDP datagram carries it. `None`: it is well-formed, and says nothing of addresses (another type of
/// record, a failure, a name without addresses).
///
/// # Errors
/// See [`DnsError`].
pub fn answer(message: &[u8]) -> Result<Option<Answer>, DnsError> {
    let message = Message::from_slice(message).map_err(|_| DnsError::Malformed)?;
    let header = message.header();
    if !header.qr() || header.opcode() != Opcode::QUERY {
        return Err(DnsError::NotAResponse);
    }
    if header.tc() {
        return Err(DnsError::Truncated);
    }
    let question = message.sole_question().map_err(|_| DnsError::Malformed)?;
    if question.qclass() != Class::IN {
        return Err(DnsError::OtherClass);
    }
    if !matches!(question.qtype(), Rtype::A | Rtype::AAAA | Rtype::ANY) {
        return Ok(None);
    }
    let nxdomain = header.rcode() == Rcode::NXDOMAIN;
    if !nxdomain && header.rcode() != Rcode::NOERROR {
        return Ok(None);
    }
    let records = Records::read(message)?;
    let addresses = if nxdomain { Vec::new() } else { records.addresses_of(*question.qname())? };
    if addresses.is_empty() && !nxdomain {
        return Ok(None);
    }
    let question = Host::new(&question.qname().to_string()).map_err(|_| DnsError::BadName)?;
    if question.wildcard_suffix().is_some() {
        return Err(DnsError::BadName);
    }
    Ok(Some(Answer { question, addresses, nxdomain }))
}

/// Cuts the first message off a TCP stream: the message, and how many bytes of the stream it takes. `None`: more bytes have
/// to come.
///
/// # Errors
/// [`DnsError::Malformed`] for a length that no message has: the rest of the stream cannot be read.
pub fn tcp_message(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, DnsError> {
    const HEADER: usize = 12;
    let Some((len, rest)) = bytes.split_at_checked(2) else {
        return Ok(None);
    };
    let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
    if len < HEADER {
        return Err(DnsError::Malformed);
    }
    Ok(rest.get(..len).map(|message| (message, 2 + len)))
}

type Name<'a> = ParsedName<&'a [u8]>;

/// The records of an answer that lead to addresses.
#[derive(Default)]
struct Records<'a> {
    aliases: Vec<(Name<'a>, Name<'a>, Duration)>,
    addresses: Vec<(Name<'a>, IpAddr, Duration)>,
}

impl<'a> Records<'a> {
    fn read(message: &'a Message<[u8]>) -> Result<Self, DnsError> {
        let mut records = Self::default();
        for record in message.answer().map_err(|_| DnsError::Malformed)? {
            records.add(&record.map_err(|_| DnsError::Malformed)?)?;
        }
        Ok(records)
    }

    fn add(&mut self, record: &ParsedRecord<'a, [u8]>) -> Result<(), DnsError> {
        if record.class() != Class::IN {
            return Ok(());
        }
        let lifetime = lifetime(record.ttl());
        let malformed = |_| DnsError::Malformed;
        if let Some(a) = record.to_record::<A>().map_err(malformed)? {
            self.addresses.push((record.owner(), IpAddr::V4(a.data().addr()), lifetime));
        } else if let Some(aaaa) = record.to_record::<Aaaa>().map_err(malformed)? {
            self.addresses.push((record.owner(), IpAddr::V6(aaaa.data().addr()), lifetime));
        } else if let Some(alias) = record.to_record::<Cname<_>>().map_err(malformed)? {
            self.aliases.push((record.owner(), alias.into_data().into_cname(), lifetime));
        }
        Ok(())
    }

    /// What stands at the end of the chain that begins with `name`. Records beside the chain are none of its business.
    fn addresses_of(&self, mut name: Name<'a>) -> Result<Vec<(IpAddr, Duration)>, DnsError> {
        let mut shortest = Duration::MAX;
        let mut steps = 0;
        while let Some((_, target, lifetime)) = self.aliases.iter().find(|(owner, ..)| *owner == name) {
            steps += 1;
            if steps > MAX_CHAIN {
                return Err(DnsError::Malformed);
            }
            name = *target;
            shortest = shortest.min(*lifetime);
        }
        let reached = self.addresses.iter().filter(|(owner, ..)| *owner == name);
        Ok(reached.map(|(_, address, lifetime)| (*address, shortest.min(*lifetime))).collect())
    }
}

/// A lifetime with the highest bit set counts as zero (RFC 2181, 8).
fn lifetime(ttl: Ttl) -> Duration {
    i32::try_from(ttl.as_secs())
        .map_or(Duration::ZERO, |secs| Duration::from_secs(secs.unsigned_abs().into()))
}

#[cfg(test)]
mod tests;
