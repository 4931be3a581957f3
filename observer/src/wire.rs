//! What agent and aggregator tell each other, checked: the messages of `proto/sidescope/v1/report.proto` as the rest of the program
//! knows them. Whatever comes from an agent is bounded here, before anything is kept of it. Pure.

pub mod shape;

use std::net::IpAddr;

use crate::model::names::{Host, PodUid};
use crate::model::time::{Span, Time};

/// The messages as protobuf has them.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "made by the build script")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages/sidescope.v1.rs"));
}

/// Most bytes of one message, encoded.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// Most sources of one batch.
pub const MAX_SOURCES: usize = 1_024;
/// Most edges of one batch, over all its sources.
pub const MAX_EDGES: usize = 2_048;
/// Most hosts and names of one batch, over all its edges.
pub const MAX_NAMES: usize = 8_192;
/// Most addresses of one source.
pub const MAX_ADDRESSES: usize = 16;
/// Most times of one source.
pub const MAX_COVERAGE: usize = 16;
/// Most causes of loss in one time.
pub const MAX_LOSSES: usize = 64;

/// One life of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub [u8; 16]);

/// News of an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Which life of it.
    pub epoch: Epoch,
    /// Its place among the batches of that life, from 1 on.
    pub sequence: u64,
    /// What it tells, by pod.
    pub sources: Vec<Source>,
}

/// News of one network namespace, which is a pod's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// Its cookie.
    pub netns: u64,
    /// The pod, where the agent knows it.
    pub pod: Option<PodUid>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// What it connected to.
    pub edges: Vec<Edge>,
    /// When it was watched.
    pub coverage: Vec<Coverage>,
}

/// Connections from one pod to one address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Destination.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// When the first connect was that this tells of.
    pub first: Span,
    /// When the last one was.
    pub last: Span,
    /// How many there were.
    pub connects: u64,
    /// Hosts that requests named.
    pub hosts: Vec<Host>,
    /// Names under which the address had been looked up.
    pub names: Vec<Host>,
    /// There was a request whose host is not known.
    pub host_unknown: bool,
    /// There was a request that named no host, or an address.
    pub unnamed: bool,
}

/// A time through which a pod's connects were recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    /// From then on.
    pub from: Time,
    /// Until then.
    pub until: Time,
    /// What was lost within it, by cause.
    pub losses: Vec<String>,
}

/// What is wrong with a message: no agent of ours sends such a one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A field that does not hold what it should.
    #[error("{field} {problem}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// More of something than one message may hold.
    #[error("more than {most} {what} in one message")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many may be.
        most: usize,
    },
}

fn wrong(field: &'static str, problem: impl Into<String>) -> WireError {
    WireError::Field { field, problem: problem.into() }
}

fn at_most(what: &'static str, most: usize, found: usize) -> Result<(), WireError> {
    if found <= most { Ok(()) } else { Err(WireError::TooMany { what, most }) }
}

impl TryFrom<proto::Batch> for Batch {
    type Error = WireError;

    fn try_from(batch: proto::Batch) -> Result<Self, WireError> {
        let epoch = batch.epoch.try_into().map_err(|_| wrong("epoch", "is not 16 bytes long"))?;
        if batch.sequence == 0 {
            return Err(wrong("sequence", "is 0; the first batch has 1"));
        }
        at_most("sources", MAX_SOURCES, batch.sources.len())?;
        let edges = || batch.sources.iter().flat_map(|source| &source.edges);
        at_most("edges", MAX_EDGES, edges().count())?;
        at_most("hosts and names", MAX_NAMES, edges().map(|edge| edge.hosts.len() + edge.names.len()).sum())?;
        let error = i64::from(batch.clock_error_ms);
        let sources = batch.sources.into_iter().map(|source| Source::read(source, error));
        Ok(Self {
            epoch: Epoch(epoch),
            sequence: batch.sequence,
            sources: sources.collect::<Result<_, _>>()?,
        })
    }
}

impl Source {
    fn read(source: proto::Source, clock_error: i64) -> Result<Self, WireError> {
        at_most("addresses of a pod", MAX_ADDRESSES, source.addresses.len())?;
        at_most("times of a pod", MAX_COVERAGE, source.coverage.len())?;
        let pod = (!source.pod_uid.is_empty())
            .then(|| PodUid::new(source.pod_uid).map_err(|err| wrong("pod_uid", err.to_string())));
        Ok(Self {
            netns: source.netns,
            pod: pod.transpose()?,
            addresses: source.addresses.iter().map(|bytes| address(bytes)).collect::<Result<_, _>>()?,
            edges: source
                .edges
                .into_iter()
                .map(|edge| Edge::read(edge, clock_error))
                .collect::<Result<_, _>>()?,
            coverage: source.coverage.into_iter().map(Coverage::read).collect::<Result<_, _>>()?,
        })
    }
}

impl Edge {
    fn read(edge: proto::Edge, clock_error: i64) -> Result<Self, WireError> {
        if edge.first > edge.last {
            return Err(wrong("first", "is later than last"));
        }
        let hosts = |field, names: Vec<String>| -> Result<Vec<Host>, WireError> {
            let read = |name: String| Host::new(&name).map_err(|err| wrong(field, err.to_string()));
            names.into_iter().map(read).collect()
        };
        Ok(Self {
            address: address(&edge.address)?,
            port: u16::try_from(edge.port).map_err(|_| wrong("port", "is over 65535"))?,
            first: Span::around(Time(edge.first), clock_error),
            last: Span::around(Time(edge.last), clock_error),
            connects: edge.connects,
            hosts: hosts("hosts", edge.hosts)?,
            names: hosts("names", edge.names)?,
            host_unknown: edge.host_unknown,
            unnamed: edge.unnamed,
        })
    }
}

impl Coverage {
    fn read(coverage: proto::Coverage) -> Result<Self, WireError> {
        if coverage.from > coverage.until {
            return Err(wrong("from", "is later than until"));
        }
        at_most("losses", MAX_LOSSES, coverage.losses.len())?;
        let is_cause =
            |cause: &String| cause.len() <= 64 && cause.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !coverage.losses.iter().all(is_cause) {
            return Err(wrong("losses", "names a cause that is no word of at most 64 letters and digits"));
        }
        Ok(Self { from: Time(coverage.from), until: Time(coverage.until), losses: coverage.losses })
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    let v6 = <[u8; 16]>::try_from(bytes).map_err(|_| wrong("address", "is neither 4 nor 16 bytes long"))?;
    Ok(IpAddr::from(v6).to_canonical())
}

/// An address as protobuf has it.
pub fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;

    fn edge() -> proto::Edge {
        proto::Edge {
            address: vec![10, 0, 0, 1],
            port: 80,
            first: 5,
            last: 9,
            connects: 2,
            hosts: vec!["A.example".to_owned()],
            ..proto::Edge::default()
        }
    }

    fn batch(change: impl FnOnce(&mut proto::Batch)) -> proto::Batch {
        let source = proto::Source {
            netns: 7,
            pod_uid: "0b1c-2".to_owned(),
            addresses: vec![vec![10, 0, 0, 9]],
            edges: vec![edge()],
            coverage: vec![proto::Coverage { from: 1, until: 2, losses: vec!["edgesFull".to_owned()] }],
        };
        let mut batch =
            proto::Batch { epoch: vec![1; 16], sequence: 3, clock_error_ms: 2, sources: vec![source] };
        change(&mut batch);
        batch
    }

    #[test]
    fn a_batch_is_read_with_its_times_as_uncertain_as_its_clock() {
        let read = Batch::try_from(batch(|_| {})).unwrap();
        assert_eq!((read.epoch, read.sequence), (Epoch([1; 16]), 3));
        let [source] = &read.sources[..] else { panic!("{read:?}") };
        assert_eq!(source.pod.as_ref().map(PodUid::as_str), Some("0b1c-2"));
        assert_eq!(source.edges[0].first, Span::between(Time(3), Time(7)));
        assert_eq!(source.edges[0].hosts[0].as_str(), "a.example");
        assert_eq!(source.coverage[0].losses, ["edgesFull"]);
        let mapped = address(&std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets());
        assert_eq!(mapped, address(&[10, 0, 0, 1]));
    }

    #[test]
    fn what_no_agent_of_ours_sends_is_refused() {
        type Change = fn(&mut proto::Batch);
        let changes: [(&str, Change); 14] = [
            ("epoch", |batch| batch.epoch = vec![1; 15]),
            ("sequence", |batch| batch.sequence = 0),
            ("sources", |batch| batch.sources = vec![proto::Source::default(); MAX_SOURCES + 1]),
            ("edges", |batch| batch.sources[0].edges = vec![edge(); MAX_EDGES + 1]),
            ("hosts", |batch| batch.sources[0].edges[0].hosts = vec!["a".to_owned(); MAX_NAMES + 1]),
            ("pod_uid", |batch| batch.sources[0].pod_uid = "a/b".to_owned()),
            ("addresses", |batch| batch.sources[0].addresses = vec![vec![1; 4]; MAX_ADDRESSES + 1]),
            ("address", |batch| batch.sources[0].edges[0].address = vec![1; 5]),
            ("port", |batch| batch.sources[0].edges[0].port = 65_536),
            ("first", |batch| batch.sources[0].edges[0].first = 10),
            ("names", |batch| batch.sources[0].edges[0].names = vec!["a\u{1b}[2J".to_owned()]),
            ("hosts", |batch| batch.sources[0].edges[0].hosts = vec!["a".repeat(10_000)]),
            ("from", |batch| batch.sources[0].coverage[0].from = 3),
            ("losses", |batch| batch.sources[0].coverage[0].losses = vec!["a\n".to_owned()]),
        ];
        for (what, change) in changes {
            let err = Batch::try_from(batch(change)).unwrap_err().to_string();
            assert!(err.contains(what), "{what}: {err}");
            assert!(!err.contains('\u{1b}'), "{err:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512), at in 0usize..200, byte: u8) {
            drop(proto::Batch::decode(&bytes[..]).map(Batch::try_from));
            // One that is almost right gets further.
            let mut almost = batch(|_| {}).encode_to_vec();
            let len = almost.len();
            almost[at % len] = byte;
            drop(proto::Batch::decode(&almost[..]).map(Batch::try_from));
        }
    }
}
