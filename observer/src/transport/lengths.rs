//! Where gRPC messages begin in a stream of bytes, and how long each says it is: a byte that tells of compression, four of length, the
//! message. Pure.

const HEADER: usize = 5;

/// How far a stream has come.
#[derive(Debug, Default)]
pub(super) struct Lengths {
    header: [u8; HEADER],
    /// Bytes of the header so far.
    have: usize,
    /// Bytes of the message to come.
    rest: usize,
}

impl Lengths {
    /// The lengths of the messages whose header ends within these bytes.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Vec<usize> {
        let mut begun = Vec::new();
        while !bytes.is_empty() {
            if self.rest > 0 {
                let skipped = self.rest.min(bytes.len());
                self.rest -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                let [_, len @ ..] = self.header;
                self.rest = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
                self.have = 0;
                begun.push(self.rest);
            }
        }
        begun
    }

    /// Whether a message has begun and not ended.
    pub(super) fn within_message(&self) -> bool {
        self.rest > 0 || self.have > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn however_the_bytes_are_cut_the_lengths_are_the_same(
            lens in prop::collection::vec(0usize..40, 0..20),
            cuts in prop::collection::vec(1usize..30, 1..200),
        ) {
            let mut bytes = Vec::new();
            for len in &lens {
                bytes.push(0);
                bytes.extend(u32::try_from(*len).unwrap().to_be_bytes());
                bytes.extend(vec![0xff; *len]);
            }
            let mut lengths = Lengths::default();
            let mut found = Vec::new();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                found.extend(lengths.feed(piece));
                rest = after;
                prop_assert!(rest.is_empty() || lengths.within_message() || after.first() == Some(&0));
            }
            prop_assert_eq!(found, lens);
            prop_assert!(!lengths.within_message());
        }
    }
}
