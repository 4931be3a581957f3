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

/// From when to when something was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Life {
    /// When it came.
    pub from: Span,
    /// When it went; `None` while it is there.
    pub until: Option<Span>,
}

/// Whether something was there at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Presence {
    /// It was not.
    No,
    /// It cannot be told.
    Maybe,
    /// All through that time.
    Yes,
}

impl Life {
    /// Of what was always there.
    pub const ALWAYS: Self =
        Self { from: Span { earliest: Time(i64::MIN), latest: Time(i64::MIN) }, until: None };

    /// Whether it was there at `when`.
    pub fn at(&self, when: Span) -> Presence {
        let came = (self.from.earliest <= when.latest, self.from.latest <= when.earliest);
        let stayed =
            self.until.map_or((true, true), |end| (end.latest >= when.earliest, end.earliest >= when.latest));
        match (came.0 && stayed.0, came.1 && stayed.1) {
            (false, _) => Presence::No,
            (true, false) => Presence::Maybe,
            (true, true) => Presence::Yes,
        }
    }
}
