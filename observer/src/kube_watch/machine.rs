//! The steps of one watch: it lists, watches from there, and lists anew where it must. Pure: it says what to do next, and is told what
//! came of it, and when.
//!
//! What it tells is up to date once the watch is open and has told what had changed until then. Where that was soon after the state
//! that it started from ([`LAG`]), it counts as up to date at once, as a watch tells everything within that time. Otherwise the API
//! server is asked for its current resourceVersion while the watch is open already: what changed before has been told when that version
//! has gone by, or when the watch is silent.

use std::time::Duration;

use super::api::{Change, Failure, Page};
use crate::model::time::{Span, Time};
use crate::registry::{Kind, LAG, Told, What};

/// How long a watch is asked to last. The API server ends it then, and a bookmark before that keeps its place.
pub(super) const LASTS: Duration = Duration::from_secs(30);
/// How much longer it may last before it is taken for dead.
const SLACK: Duration = Duration::from_secs(5);
/// A watch that ends no earlier than this before its time has ended in time.
const EARLY: i64 = 1_000;
/// How long the opening of a watch may take.
const OPEN: Duration = Duration::from_secs(10);
/// How long a kind that was there must be unknown to the API server before it counts as gone: while that starts it may not know all,
/// and to take all objects of a kind for gone is not to be undone.
const GONE_AFTER: i64 = 10_000;
/// How many watches in a row may break without a word before everything is listed anew.
const FRUITLESS: u32 = 3;
/// A watch that held for so many milliseconds was a success.
const HELD: i64 = 5_000;

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'m> {
    /// List a page in the `version`th version of the kind: the first, or the one with this token.
    List { version: usize, next: Option<&'m str> },
    /// Open a watch from a resourceVersion on; it may take so long.
    Open { version: usize, from: &'m str, within: Duration },
    /// With the watch open, ask for the current resourceVersion.
    Compare { version: usize },
    /// Wait for what the watch tells for so long.
    Read { within: Duration },
    /// Wait after so many failures in a row, and at least for so long.
    Retry { failures: u32, at_least: Duration },
    /// The API server does not know the kind; wait until it is time to look again.
    LookAgain,
}

#[derive(Debug)]
pub(super) struct Machine {
    kind: Kind,
    /// In how many versions the kind may be served.
    versions: usize,
    state: State,
    progress: Progress,
    /// All that happened until then was told.
    known: Time,
    failures: u32,
    /// Watches in a row that broke without a word.
    fruitless: u32,
    /// The last that was told is that there is nothing of this kind, as the API server does not know it.
    is_absent: bool,
    /// Since when the API server does not know a kind that it knew.
    unknown_since: Option<Time>,
}

/// What was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// Not all that there is, yet.
    Listing,
    /// All that there was, until an interruption.
    Interrupted,
    /// All.
    UpToDate,
}

#[derive(Debug)]
enum State {
    List { version: usize, next: Option<String>, asked: Option<Time> },
    Open(Place),
    Compare { place: Place, opened: Time },
    Read(Reading),
    Retry { at_least: Duration, then: Box<State> },
    LookAgain,
}

/// Where a watch is.
#[derive(Clone, Debug)]
struct Place {
    version: usize,
    resource_version: String,
    /// When that was the current one.
    as_of: Time,
}

/// A watch that tells.
#[derive(Debug)]
struct Reading {
    place: Place,
    opened: Time,
    /// Has told something.
    has_told: bool,
    /// When this resourceVersion has gone by it is up to date.
    until: Option<u64>,
}

impl State {
    fn listing(version: usize) -> Self {
        Self::List { version, next: None, asked: None }
    }
}

impl Machine {
    /// One that has told nothing yet of a kind that is served in one of so many versions.
    pub(super) fn new(kind: Kind, versions: usize) -> Self {
        Self {
            kind,
            versions,
            state: State::listing(0),
            progress: Progress::Listing,
            known: Time(i64::MIN),
            failures: 0,
            fruitless: 0,
            is_absent: false,
            unknown_since: None,
        }
    }

    /// What to do next.
    pub(super) fn step(&self, now: Time) -> Step<'_> {
        match &self.state {
            State::List { version, next, .. } => Step::List { version: *version, next: next.as_deref() },
            State::Open(place) => {
                let within = if self.progress == Progress::UpToDate { millis(LAG) } else { OPEN };
                Step::Open { version: place.version, from: &place.resource_version, within }
            }
            State::Compare { place, .. } => Step::Compare { version: place.version },
            State::Read(reading) => {
                let left = (LASTS + SLACK).saturating_sub(millis(now.since(reading.opened)));
                let within = if self.progress == Progress::UpToDate { left } else { left.min(millis(LAG)) };
                Step::Read { within }
            }
            State::Retry { at_least, .. } => Step::Retry { failures: self.failures, at_least: *at_least },
            State::LookAgain => Step::LookAgain,
        }
    }

    /// Whether everything was told.
    pub(super) fn is_up_to_date(&self) -> bool {
        self.progress == Progress::UpToDate
    }

    /// A page came that had been asked for at `asked`.
    pub(super) fn listed(&mut self, page: Page, asked: Time, now: Time, out: &mut Vec<Told>) {
        let State::List { version, next, asked: first } = &self.state else { return };
        let (version, is_first, as_of) = (*version, next.is_none(), first.unwrap_or(asked));
        if is_first {
            self.progress = Progress::Listing;
            self.tell(What::Begin, Span::at(now), out);
        }
        (self.is_absent, self.unknown_since) = (false, None);
        let seen = Span::between(self.known, now);
        for item in page.items {
            let what = item.map_or_else(What::Unreadable, |object| What::There(Box::new(object)));
            self.tell(what, seen, out);
        }
        self.state = match page.next {
            Some(next) => State::List { version, next: Some(next), asked: Some(as_of) },
            None => State::Open(Place { version, resource_version: page.resource_version, as_of }),
        };
    }

    /// The watch is open.
    pub(super) fn opened(&mut self, now: Time, out: &mut Vec<Told>) {
        let State::Open(place) = &self.state else { return };
        let place = place.clone();
        if self.progress != Progress::UpToDate && now.since(place.as_of) > LAG {
            self.state = State::Compare { place, opened: now };
            return;
        }
        let known = self.known;
        self.caught_up(now, out);
        // What changed while there was no watch comes next.
        self.known = known.max(place.as_of);
        self.state = State::Read(Reading { place, opened: now, has_told: false, until: None });
    }

    /// The current resourceVersion.
    pub(super) fn compared(&mut self, resource_version: &str) {
        let State::Compare { place, opened } = &self.state else { return };
        let until = resource_version.parse().ok();
        self.state = State::Read(Reading { place: place.clone(), opened: *opened, has_told: false, until });
    }

    /// The watch told something.
    pub(super) fn told(&mut self, change: Change, now: Time, out: &mut Vec<Told>) {
        let State::Read(reading) = &mut self.state else { return };
        let is_fresh = now.since(reading.opened) > LAG;
        let is_up_to_date = self.progress == Progress::UpToDate;
        let seen = if is_up_to_date && is_fresh {
            Span::at(now)
        } else {
            // It tells what changed since its place was the current one.
            Span::between(self.known.max(reading.place.as_of), now)
        };
        reading.has_told = true;
        (self.fruitless, self.failures) = (0, 0);
        let is_bookmark = matches!(change, Change::Bookmark(_));
        let (version, what) = match change {
            Change::There(version, Ok(object)) => (version, Some(What::There(Box::new(object)))),
            Change::There(version, Err(unreadable)) => (version, Some(What::Unreadable(unreadable))),
            Change::Gone(version, object) => (version, object.map(|object| What::Gone(Box::new(object)))),
            Change::Bookmark(version) => (version, None),
        };
        let has_passed = match reading.until {
            Some(until) => version.parse().is_ok_and(|version: u64| version >= until),
            None => is_bookmark,
        };
        reading.place.resource_version = version;
        if let Some(what) = what {
            self.tell(what, seen, out);
        }
        if is_up_to_date {
            if is_fresh {
                self.known = now;
            }
        } else if has_passed {
            self.caught_up(now, out);
        }
    }

    /// The watch told nothing for as long as it was waited for.
    pub(super) fn silent(&mut self, now: Time, out: &mut Vec<Told>) {
        let State::Read(reading) = &self.state else { return };
        if millis(now.since(reading.opened)) >= LASTS + SLACK {
            self.broken(now, out);
        } else if self.progress != Progress::UpToDate {
            self.caught_up(now, out);
        }
    }

    /// The watch has ended.
    pub(super) fn ended(&mut self, now: Time, out: &mut Vec<Told>) {
        let State::Read(reading) = &self.state else { return };
        let lasted = now.since(reading.opened);
        if self.progress == Progress::UpToDate && millis(lasted.saturating_add(EARLY)) >= LASTS {
            (self.fruitless, self.failures) = (0, 0);
            self.known = now;
            self.state = State::Open(Place { as_of: now, ..reading.place.clone() });
        } else {
            self.broken(now, out);
        }
    }

    /// What was to be done has failed.
    pub(super) fn failed(&mut self, failure: &Failure, now: Time, out: &mut Vec<Told>) {
        let at_least = failure.retry_after();
        match &self.state {
            State::List { version, .. } => {
                let version = *version;
                match failure {
                    Failure::NotFound if version + 1 < self.versions => {
                        self.state = State::listing(version + 1);
                    }
                    Failure::NotFound => self.not_found(now, out),
                    Failure::Expired => self.retry(State::listing(version), at_least, out),
                    Failure::Forbidden(_) | Failure::Other { .. } => {
                        let same = std::mem::replace(&mut self.state, State::LookAgain);
                        self.retry(same, at_least, out);
                    }
                }
            }
            State::Open(place) | State::Compare { place, .. } => {
                let place = place.clone();
                self.retry(start_again(place, failure), at_least, out);
            }
            State::Read(reading) => match failure {
                Failure::NotFound | Failure::Expired => {
                    let place = reading.place.clone();
                    self.retry(start_again(place, failure), at_least, out);
                }
                Failure::Forbidden(_) | Failure::Other { .. } => self.broken(now, out),
            },
            State::Retry { .. } | State::LookAgain => {}
        }
    }

    /// The wait is over.
    pub(super) fn waited(&mut self) {
        self.state = match std::mem::replace(&mut self.state, State::LookAgain) {
            State::Retry { then, .. } => *then,
            State::LookAgain => State::listing(0),
            other => other,
        };
    }

    fn tell(&self, what: What, seen: Span, out: &mut Vec<Told>) {
        out.push(Told { kind: self.kind, what, seen });
    }

    fn caught_up(&mut self, now: Time, out: &mut Vec<Told>) {
        match self.progress {
            Progress::Listing => self.tell(What::End, Span::between(self.known, now), out),
            Progress::Interrupted => self.tell(What::Resumed, Span::at(now), out),
            Progress::UpToDate => {}
        }
        self.progress = Progress::UpToDate;
        self.known = now;
    }

    /// The watch is of no use any more before its time.
    fn broken(&mut self, now: Time, out: &mut Vec<Told>) {
        let State::Read(reading) = &self.state else { return };
        if now.since(reading.opened) >= HELD {
            self.failures = 0;
        }
        self.fruitless = if reading.has_told { 0 } else { self.fruitless + 1 };
        let then = if self.fruitless >= FRUITLESS {
            self.fruitless = 0;
            State::listing(reading.place.version)
        } else {
            State::Open(Place { as_of: self.known, ..reading.place.clone() })
        };
        self.retry(then, Duration::ZERO, out);
    }

    fn retry(&mut self, then: State, at_least: Duration, out: &mut Vec<Told>) {
        if self.progress == Progress::UpToDate {
            self.progress = Progress::Interrupted;
            self.tell(What::Interrupted, Span::at(self.known), out);
        }
        self.failures = self.failures.saturating_add(1);
        self.state = State::Retry { at_least, then: Box::new(then) };
    }

    /// The API server knows the kind in no version.
    fn not_found(&mut self, now: Time, out: &mut Vec<Told>) {
        let was_there = self.known != Time(i64::MIN) && !self.is_absent;
        let since = *self.unknown_since.get_or_insert(now);
        if was_there && now.since(since) < GONE_AFTER {
            self.retry(State::listing(0), Duration::ZERO, out);
            return;
        }
        if !self.is_absent {
            self.progress = Progress::Listing;
            self.tell(What::Begin, Span::at(now), out);
        }
        (self.is_absent, self.failures) = (true, 0);
        self.caught_up(now, out);
        self.state = State::LookAgain;
    }
}

/// Where to go on from a watch that cannot go on from its place.
fn start_again(place: Place, failure: &Failure) -> State {
    match failure {
        // In this version or in none; perhaps in another.
        Failure::NotFound => State::listing(0),
        Failure::Expired => State::listing(place.version),
        Failure::Forbidden(_) | Failure::Other { .. } => State::Open(place),
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests;
