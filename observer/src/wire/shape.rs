//! How much a message would take in memory, told from its bytes before anything is made of them. Two bytes of protobuf can stand for a
//! structure of two hundred, so a message that is small enough as bytes may still be a hundred times too large decoded. Pure.

use prost::encoding::{WireType, decode_key, decode_varint};

use super::{
    MAX_ADDRESSES, MAX_COVERAGE, MAX_EDGES, MAX_LOSSES, MAX_NAMES, MAX_SOURCES, WireError, at_most, wrong,
};

/// Most kinds of refusal in one acknowledgement.
pub const MAX_REFUSALS: usize = 64;

/// A message whose bytes can be judged before they are decoded.
pub trait Shape {
    /// Whether decoding takes no more than what this program is ready to keep.
    ///
    /// # Errors
    /// When the bytes are no protobuf, or there is more of something than a message may hold.
    fn check(bytes: &[u8]) -> Result<(), WireError>;
}

impl Shape for super::proto::FromAgent {
    fn check(bytes: &[u8]) -> Result<(), WireError> {
        let mut count = Count::default();
        count.message(Message::FromAgent, bytes)?;
        count.within_bounds()
    }
}

impl Shape for super::proto::ToAgent {
    fn check(bytes: &[u8]) -> Result<(), WireError> {
        let mut count = Count::default();
        count.message(Message::ToAgent, bytes)?;
        at_most("refusals", MAX_REFUSALS, count.refusals)
    }
}

/// Messages that hold what may repeat.
#[derive(Clone, Copy)]
enum Message {
    FromAgent,
    Batch,
    Source,
    Edge,
    Coverage,
    ToAgent,
    Ack,
}

/// What repeats, over the whole message.
#[derive(Default)]
struct Count {
    sources: usize,
    edges: usize,
    names: usize,
    addresses: usize,
    coverage: usize,
    losses: usize,
    refusals: usize,
}

impl Count {
    fn within_bounds(&self) -> Result<(), WireError> {
        at_most("sources", MAX_SOURCES, self.sources)?;
        at_most("edges", MAX_EDGES, self.edges)?;
        at_most("hosts and names", MAX_NAMES, self.names)?;
        at_most("addresses of pods", MAX_SOURCES * MAX_ADDRESSES, self.addresses)?;
        at_most("times of pods", MAX_SOURCES * MAX_COVERAGE, self.coverage)?;
        at_most("losses", MAX_SOURCES * MAX_LOSSES, self.losses)
    }

    /// The fields of a message; those of the messages in it as well, four deep at most.
    fn message(&mut self, message: Message, mut bytes: &[u8]) -> Result<(), WireError> {
        let malformed = |err: prost::DecodeError| wrong("message", format!("is no protobuf: {err}"));
        while !bytes.is_empty() {
            let (field, kind) = decode_key(&mut bytes).map_err(malformed)?;
            let len = match kind {
                WireType::Varint => {
                    decode_varint(&mut bytes).map_err(malformed)?;
                    0
                }
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                WireType::LengthDelimited => decode_varint(&mut bytes).map_err(malformed)?,
                WireType::StartGroup | WireType::EndGroup => {
                    return Err(wrong("message", "holds a group, which none of ours does"));
                }
            };
            let len = usize::try_from(len).ok().filter(|len| *len <= bytes.len());
            let (inner, rest) =
                bytes.split_at(len.ok_or_else(|| wrong("message", "ends within one of its fields"))?);
            bytes = rest;
            if kind == WireType::LengthDelimited {
                self.field(message, field, inner)?;
            }
        }
        Ok(())
    }

    /// A field with a length. The numbers are those of `report.proto`; one that is not listed takes memory once at most.
    fn field(&mut self, message: Message, number: u32, inner: &[u8]) -> Result<(), WireError> {
        let (counter, within) = match (message, number) {
            (Message::FromAgent, 2) => (None, Some(Message::Batch)),
            (Message::Batch, 4) => (Some(&mut self.sources), Some(Message::Source)),
            (Message::Source, 3) => (Some(&mut self.addresses), None),
            (Message::Source, 4) => (Some(&mut self.edges), Some(Message::Edge)),
            (Message::Source, 5) => (Some(&mut self.coverage), Some(Message::Coverage)),
            (Message::Edge, 6 | 7) => (Some(&mut self.names), None),
            (Message::Coverage, 3) => (Some(&mut self.losses), None),
            (Message::ToAgent, 2) => (None, Some(Message::Ack)),
            (Message::Ack, 2) => (Some(&mut self.refusals), None),
            _ => (None, None),
        };
        if let Some(counter) = counter {
            *counter += 1;
        }
        match within {
            Some(within) => self.message(within, inner),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;

    use super::*;
    use crate::wire::proto;

    fn from_agent(batch: proto::Batch) -> Vec<u8> {
        proto::FromAgent { message: Some(proto::from_agent::Message::Batch(batch)) }.encode_to_vec()
    }

    fn check(source: proto::Source) -> Result<(), WireError> {
        let batch = proto::Batch { sources: vec![source], ..proto::Batch::default() };
        proto::FromAgent::check(&from_agent(batch))
    }

    #[test]
    fn small_bytes_that_would_be_large_in_memory_are_refused() {
        let batch = |sources| proto::Batch {
            sources: vec![proto::Source::default(); sources],
            ..proto::Batch::default()
        };
        assert_eq!(proto::FromAgent::check(&from_agent(batch(MAX_SOURCES))), Ok(()));
        let bytes = from_agent(batch(MAX_SOURCES + 1));
        assert!(bytes.len() < 4_096, "{}", bytes.len());
        assert_eq!(
            proto::FromAgent::check(&bytes),
            Err(WireError::TooMany { what: "sources", most: MAX_SOURCES })
        );
        // Two batches in one message are merged when they are decoded.
        let mut twice = from_agent(batch(MAX_SOURCES));
        twice.extend(from_agent(batch(1)));
        assert!(proto::FromAgent::check(&twice).is_err());
    }

    #[test]
    fn everything_that_repeats_is_counted() {
        type Make = fn(usize) -> proto::Source;
        let makes: [(&str, usize, Make); 6] = [
            ("edges", MAX_EDGES, |n| proto::Source {
                edges: vec![proto::Edge::default(); n],
                ..<_>::default()
            }),
            ("hosts and names", MAX_NAMES, |n| proto::Source {
                edges: vec![proto::Edge { hosts: vec![String::new(); n], ..<_>::default() }],
                ..<_>::default()
            }),
            ("hosts and names", MAX_NAMES, |n| proto::Source {
                edges: vec![proto::Edge { names: vec![String::new(); n], ..<_>::default() }],
                ..<_>::default()
            }),
            ("addresses of pods", MAX_SOURCES * MAX_ADDRESSES, |n| proto::Source {
                addresses: vec![vec![]; n],
                ..<_>::default()
            }),
            ("times of pods", MAX_SOURCES * MAX_COVERAGE, |n| proto::Source {
                coverage: vec![proto::Coverage::default(); n],
                ..<_>::default()
            }),
            ("losses", MAX_SOURCES * MAX_LOSSES, |n| proto::Source {
                coverage: vec![proto::Coverage { losses: vec![String::new(); n], ..<_>::default() }],
                ..<_>::default()
            }),
        ];
        for (what, most, make) in makes {
            assert_eq!(check(make(most)), Ok(()), "{what}");
            assert_eq!(check(make(most + 1)), Err(WireError::TooMany { what, most }));
        }
        let ack = |n| proto::ToAgent {
            message: Some(proto::to_agent::Message::Ack(proto::Ack {
                sequence: 1,
                refusals: vec![proto::Refusal::default(); n],
            })),
        };
        assert_eq!(proto::ToAgent::check(&ack(MAX_REFUSALS).encode_to_vec()), Ok(()));
        assert!(proto::ToAgent::check(&ack(MAX_REFUSALS + 1).encode_to_vec()).is_err());
    }

    #[test]
    fn a_length_beyond_the_end_and_groups_are_refused() {
        for bytes in [&[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0x13], &[0x12, 3, 0x22, 9, 0], &[0x80]] {
            assert!(matches!(proto::FromAgent::check(bytes), Err(WireError::Field { .. })), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            drop(proto::FromAgent::check(&bytes));
            drop(proto::ToAgent::check(&bytes));
        }

        #[test]
        fn what_prost_decodes_has_no_more_than_was_counted(
            bytes in prop::collection::vec(prop::sample::select(vec![0x12u8, 0x22, 0x1a, 0x2a, 0x32, 0, 1, 2, 4, 6, 8]), 0..64),
        ) {
            let mut count = Count::default();
            let counted = count.message(Message::FromAgent, &bytes);
            if let Ok(proto::FromAgent { message: Some(proto::from_agent::Message::Batch(batch)) }) =
                proto::FromAgent::decode(&bytes[..])
            {
                prop_assert!(counted.is_ok());
                prop_assert!(batch.sources.len() <= count.sources);
                let edges: Vec<_> = batch.sources.iter().flat_map(|source| &source.edges).collect();
                prop_assert!(edges.len() <= count.edges);
                prop_assert!(edges.iter().map(|edge| edge.hosts.len() + edge.names.len()).sum::<usize>() <= count.names);
                prop_assert!(batch.sources.iter().map(|source| source.addresses.len()).sum::<usize>() <= count.addresses);
                prop_assert!(batch.sources.iter().map(|source| source.coverage.len()).sum::<usize>() <= count.coverage);
            }
        }
    }
}
