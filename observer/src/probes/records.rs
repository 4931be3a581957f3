//! The records in the ring, read byte for byte.

use sidescope_common::{DnsEvent, EdgeEvent, HeadEvent, event_kind};

/// A record from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An edge that was not in the set.
    Edge(EdgeEvent),
    /// Bytes of a request. They lie in the ring and are gone when the callback returns.
    Head(HeadEvent, &'a [u8]),
    /// A DNS message that a workload received, likewise.
    Dns(DnsEvent, &'a [u8]),
}

/// A record that is not what its first word says: programs and user space do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

pub(super) fn parse(record: &[u8]) -> Result<Event<'_>, Malformed> {
    let kind = u32::from_ne_bytes(*record.first_chunk().ok_or(Malformed)?);
    match kind {
        event_kind::EDGE => read::<EdgeEvent>(record).map(|(event, _)| Event::Edge(event)),
        event_kind::HEAD => {
            let (event, bytes) = read::<HeadEvent>(record)?;
            let bytes = bytes.get(..usize::from(event.len)).ok_or(Malformed)?;
            Ok(Event::Head(event, bytes))
        }
        event_kind::DNS => {
            let (event, bytes) = read::<DnsEvent>(record)?;
            let bytes = bytes.get(..event.len as usize).ok_or(Malformed)?;
            Ok(Event::Dns(event, bytes))
        }
        _ => Err(Malformed),
    }
}

/// Marks the types that [`read`] may make out of any bytes.
///
/// # Safety
/// Every bit pattern must be a valid value.
unsafe trait Record: Copy {}
// SAFETY: repr(C), integers only.
unsafe impl Record for EdgeEvent {}
// SAFETY: repr(C), integers only.
unsafe impl Record for HeadEvent {}
// SAFETY: repr(C), integers only.
unsafe impl Record for DnsEvent {}

fn read<T: Record>(record: &[u8]) -> Result<(T, &[u8]), Malformed> {
    let (head, rest) = record.split_at_checked(size_of::<T>()).ok_or(Malformed)?;
    // SAFETY: `head` holds size_of::<T>() bytes, and any of them make a T.
    Ok((unsafe { head.as_ptr().cast::<T>().read_unaligned() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_are_cut_short_or_of_an_unknown_kind_are_malformed() {
        let mut record = vec![0u8; size_of::<HeadEvent>() + 3];
        record[..4].copy_from_slice(&event_kind::HEAD.to_ne_bytes());
        record[4..8].copy_from_slice(&3u32.to_ne_bytes());
        let Ok(Event::Head(head, bytes)) = parse(&record) else { panic!("not a head") };
        assert_eq!((head.len, bytes), (3, &[0u8; 3][..]));
        for len in 0..record.len() {
            assert_eq!(parse(&record[..len]), Err(Malformed), "{len} bytes");
        }
        record[0] = 99;
        assert_eq!(parse(&record), Err(Malformed));
    }
}
