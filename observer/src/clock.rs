//! What a time on this machine's monotonic clock is on the aggregator's clock. Wall clocks of nodes differ, by seconds where something
//! is wrong with them, and the owner of an address is a question of fractions of one. So each answer of the aggregator is also a
//! measurement, as in NTP (RFC 5905): the offset is known to half the time that question and answer took. Pure.

use std::collections::VecDeque;

use crate::model::time::{Span, Time};

/// Measurements that are kept.
const KEPT: usize = 8;
/// How fast two clocks may drift apart, in parts of a million; what NTP assumes of a bad one.
const DRIFT_PPM: u64 = 100;

/// A question and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// When the question was sent: nanoseconds of this machine's CLOCK_MONOTONIC.
    pub asked_ns: u64,
    /// When it came in there.
    pub received: Time,
    /// When the answer was sent.
    pub replied: Time,
    /// When the answer came in here, on the clock of `asked_ns`.
    pub answered_ns: u64,
}

/// How the clocks stand to each other.
#[derive(Clone, Debug, Default)]
pub struct Offset {
    measured: VecDeque<Measured>,
}

#[derive(Clone, Copy, Debug)]
struct Measured {
    /// Milliseconds to add to the monotonic clock's.
    offset: i64,
    /// The real offset differs from it by no more than these milliseconds.
    error: u64,
    /// When, on the monotonic clock.
    at_ns: u64,
}

impl Measured {
    /// Its error at another time.
    fn error_at(&self, ns: u64) -> u64 {
        self.error + ns.abs_diff(self.at_ns) / (1_000_000_000_000 / DRIFT_PPM)
    }
}

impl Offset {
    /// Takes over a measurement. One whose answer came before its question tells nothing.
    pub fn measure(&mut self, exchange: &Exchange) {
        let Some(took_ns) = exchange.answered_ns.checked_sub(exchange.asked_ns) else { return };
        let there = exchange.replied.since(exchange.received);
        let took = millis(took_ns);
        if there < 0 || there > took.saturating_add(1) {
            return;
        }
        let (asked, answered) = (millis(exchange.asked_ns), millis(exchange.answered_ns));
        let offset = (exchange.received.0 - asked + exchange.replied.0 - answered) / 2;
        // All four are cut to whole milliseconds.
        let error = took.saturating_sub(there).unsigned_abs() / 2 + 2;
        if self.measured.len() == KEPT {
            self.measured.pop_front();
        }
        self.measured.push_back(Measured { offset, error, at_ns: exchange.answered_ns });
    }

    /// What a time of CLOCK_MONOTONIC in nanoseconds is on the aggregator's clock; `None` before the first measurement.
    pub fn on_aggregator(&self, ns: u64) -> Option<Span> {
        let best = self.measured.iter().min_by_key(|measured| measured.error_at(ns))?;
        let error = i64::try_from(best.error_at(ns)).unwrap_or(i64::MAX);
        Some(Span::around(Time(millis(ns).saturating_add(best.offset)), error))
    }
}

fn millis(ns: u64) -> i64 {
    i64::try_from(ns / 1_000_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_known_before_the_first_answer() {
        let mut offset = Offset::default();
        assert_eq!(offset.on_aggregator(5), None);
        // An answer from before its question, and one that took longer there than it was under way.
        let wrong = Exchange { asked_ns: 10, received: Time(0), replied: Time(0), answered_ns: 9 };
        offset.measure(&wrong);
        offset.measure(&Exchange { replied: Time(50), answered_ns: 11, ..wrong });
        assert_eq!(offset.on_aggregator(5), None);
    }

    #[test]
    fn the_quickest_answer_counts_until_the_clocks_may_have_drifted() {
        let ms = 1_000_000;
        let mut offset = Offset::default();
        let quick =
            Exchange { asked_ns: 0, received: Time(1_000), replied: Time(1_000), answered_ns: 2 * ms };
        let slow = Exchange {
            asked_ns: 100 * ms,
            received: Time(1_190),
            replied: Time(1_190),
            answered_ns: 200 * ms,
        };
        offset.measure(&quick);
        offset.measure(&slow);
        let now = offset.on_aggregator(200 * ms).unwrap();
        assert_eq!((now.earliest(), now.latest()), (Time(1_196), Time(1_202)));
        // After an hour, by 360 ms.
        let hour = 3_600_000;
        let later = offset.on_aggregator(hour * ms).unwrap();
        assert!(later.latest().since(later.earliest()) > 2 * 359 - 200, "{later:?}");
    }

    proptest! {
        #[test]
        fn the_real_time_is_always_within_the_span(
            real_offset in -1_000_000_000i64..1_000_000_000,
            exchanges in prop::collection::vec((0u64..1_000_000_000, 0u64..300_000, 0u64..300_000, 0u64..300_000), 1..20),
            event in 0u64..2_000_000_000,
        ) {
            // In microseconds, so that cutting to milliseconds plays its part.
            let there = |us: u64| Time((us as i64 + real_offset).div_euclid(1000));
            let mut offset = Offset::default();
            for (asked, out, held, back) in exchanges {
                offset.measure(&Exchange {
                    asked_ns: asked * 1000,
                    received: there(asked + out),
                    replied: there(asked + out + held),
                    answered_ns: (asked + out + held + back) * 1000,
                });
            }
            let known = offset.on_aggregator(event * 1000).unwrap();
            prop_assert!(known.earliest() <= there(event) && there(event) <= known.latest(), "{known:?} {:?}", there(event));
        }
    }
}
