//! What has to wait before it can be told what it means: an agent's news may be ahead of the watches. Nothing waits for ever. Pure.

use std::collections::BTreeMap;

use crate::model::time::Time;

/// How long something is tried for, in milliseconds.
pub const PATIENCE: i64 = 27_000;
/// How often it is tried again, in milliseconds.
const RETRY: i64 = 1_000;

/// What waits, in the order in which it is to be tried, and of what is to be tried at the same time in which it came.
#[derive(Clone, Debug)]
pub struct Held<T> {
    waiting: BTreeMap<(Time, u64), Waiting<T>>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Waiting<T> {
    what: T,
    /// When it was tried for the first time.
    since: Option<Time>,
}

/// Something whose time has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due<T> {
    /// What it is.
    pub what: T,
    /// It is not to wait any more.
    pub is_last: bool,
    since: Time,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), next: 0 }
    }
}

impl<T> Held<T> {
    /// Lets something wait until it is to be tried for the first time.
    pub fn hold(&mut self, what: T, first: Time) {
        self.put(first, Waiting { what, since: None });
    }

    fn put(&mut self, due: Time, waiting: Waiting<T>) {
        self.waiting.insert((due, self.next), waiting);
        self.next += 1;
    }

    /// The next that is to be tried. How long it may wait counts from its first try: nobody can try while nothing is told.
    pub fn due(&mut self, now: Time) -> Option<Due<T>> {
        self.waiting.first_key_value().filter(|((due, _), _)| *due <= now)?;
        let (_, Waiting { what, since }) = self.waiting.pop_first()?;
        let since = since.unwrap_or(now);
        Some(Due { what, is_last: now.since(since) >= PATIENCE, since })
    }

    /// It could not be told yet, and is tried again a little later. Where that was the last time, it is not to be given back.
    pub fn again(&mut self, due: Due<T>, now: Time) {
        let when = now.plus(RETRY).min(due.since.plus(PATIENCE));
        self.put(when, Waiting { what: due.what, since: Some(due.since) });
    }

    /// When the next is to be tried.
    pub fn next_due(&self) -> Option<Time> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tried(held: &mut Held<&'static str>, now: i64) -> Vec<(&'static str, bool)> {
        let mut tried = Vec::new();
        while let Some(due) = held.due(Time(now)) {
            tried.push((due.what, due.is_last));
            if !due.is_last {
                held.again(due, Time(now));
            }
        }
        tried
    }

    #[test]
    fn what_waits_is_tried_from_its_first_time_on_until_its_patience_is_over() {
        let mut held = Held::default();
        held.hold("later", Time(4_000));
        held.hold("a", Time(3_000));
        held.hold("b", Time(3_000));
        assert_eq!(held.next_due(), Some(Time(3_000)));
        assert_eq!(tried(&mut held, 2_999), []);
        assert_eq!(tried(&mut held, 3_000), [("a", false), ("b", false)]);
        assert_eq!(tried(&mut held, 3_500), []);
        assert_eq!(tried(&mut held, 4_000), [("later", false), ("a", false), ("b", false)]);
        // Its first try was at 3 s, and the last one comes when it is due, however seldom somebody looks.
        assert_eq!(tried(&mut held, 29_999), [("later", false), ("a", false), ("b", false)]);
        assert_eq!(held.next_due(), Some(Time(30_000)));
        assert_eq!(tried(&mut held, 30_000), [("a", true), ("b", true)]);
        assert_eq!((held.len(), held.is_empty()), (1, false));
        assert_eq!(tried(&mut held, 99_000), [("later", true)]);
    }

    #[test]
    fn what_could_not_be_tried_has_all_its_patience_left() {
        let mut held = Held::default();
        held.hold("a", Time(0));
        assert_eq!(tried(&mut held, 3_600_000), [("a", false)]);
        assert_eq!(tried(&mut held, 3_600_000 + PATIENCE - 1), [("a", false)]);
        assert_eq!(tried(&mut held, 3_600_000 + PATIENCE), [("a", true)]);
    }
}
