//! Points in time that two machines can speak of, and how sure one can be of them.

use serde::{Deserialize, Serialize};

/// A point in time on the aggregator's clock: milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(pub i64);

impl Time {
    /// The time so many milliseconds later; earlier where they are negative.
    #[must_use]
    pub fn plus(self, millis: i64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    /// Milliseconds from `earlier` to this; negative where that is later.
    pub fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// When something happened, as far as is known: not before `earliest` and not after `latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    earliest: Time,
    latest: Time,
}

impl Span {
    /// Between these two, whichever of them is the earlier.
    pub fn between(one: Time, other: Time) -> Self {
        Self { earliest: one.min(other), latest: one.max(other) }
    }

    /// Exactly then.
    pub fn at(time: Time) -> Self {
        Self { earliest: time, latest: time }
    }

    /// At this time, give or take `error` milliseconds.
    pub fn around(time: Time, error: i64) -> Self {
        Self { earliest: time.plus(-error.abs()), latest: time.plus(error.abs()) }
    }

    /// Not before this.
    pub fn earliest(self) -> Time {
        self.earliest
    }

    /// Not after this.
    pub fn latest(self) -> Time {
        self.latest
    }

    /// Both say of the same thing when it happened; where they contradict each other, the later word counts.
    #[must_use]
    pub fn narrowed(self, by: Self) -> Self {
        let (earliest, latest) = (self.earliest.max(by.earliest), self.latest.min(by.latest));
        if earliest <= latest { Self { earliest, latest } } else { by }
    }
}
