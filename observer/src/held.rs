//! What has to wait before it can be told what it means: an agent's news may be ahead of the watches. Nothing waits for ever, and what
//! comes to nothing is counted and can be looked at. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::model::time::Time;

/// How long something may wait, in milliseconds.
pub const PATIENCE: i64 = 30_000;
/// How often it is tried again, in milliseconds.
const RETRY: i64 = 1_000;
/// How many of those that came to nothing are listed.
const LISTED: usize = 1_000;

/// What waits, each with the time until which it may.
#[derive(Clone, Debug)]
pub struct Held<T, R> {
    /// By when they are to be tried, and in which order they came.
    waiting: BTreeMap<(Time, u64), (Time, T)>,
    next: u64,
    most: usize,
    given_up: BTreeMap<R, u64>,
    listed: VecDeque<GivenUp<T, R>>,
}

/// What has come to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp<T, R> {
    /// What it was.
    pub what: T,
    /// Why.
    pub reason: R,
    /// When.
    pub at: Time,
}

/// What came out of a try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tried<V, R> {
    /// This.
    Told(V),
    /// Nothing yet, for this reason; a later try may tell.
    NotYet(R),
    /// Nothing, for this reason, and no later try will tell.
    Never(R),
}

impl<T: Clone, R: Copy + Ord> Held<T, R> {
    /// At most so many may wait.
    pub fn new(most: usize) -> Self {
        Self { waiting: BTreeMap::new(), next: 0, most, given_up: BTreeMap::new(), listed: VecDeque::new() }
    }

    /// Lets something wait that is new at `now`, until it is to be tried for the first time.
    ///
    /// # Errors
    /// Gives it back when too many wait: whoever sent it is to keep it.
    pub fn hold(&mut self, what: T, now: Time, first: Time) -> Result<(), T> {
        if self.waiting.len() >= self.most {
            return Err(what);
        }
        let deadline = now.plus(PATIENCE);
        self.put(first.min(deadline), deadline, what);
        Ok(())
    }

    fn put(&mut self, due: Time, deadline: Time, what: T) {
        self.waiting.insert((due, self.next), (deadline, what));
        self.next += 1;
    }

    /// Tries all whose time has come, and returns what came out of those that are done with. `Err`: it was given up.
    pub fn try_due<V>(
        &mut self,
        now: Time,
        mut attempt: impl FnMut(&T) -> Tried<V, R>,
    ) -> Vec<(T, Result<V, R>)> {
        let mut done = Vec::new();
        let later = self.waiting.split_off(&(now.plus(1), 0));
        for ((_, _), (deadline, what)) in std::mem::replace(&mut self.waiting, later) {
            match attempt(&what) {
                Tried::Told(value) => done.push((what, Ok(value))),
                Tried::NotYet(_) if now < deadline => {
                    self.put(now.plus(RETRY).min(deadline), deadline, what);
                }
                Tried::NotYet(reason) | Tried::Never(reason) => {
                    self.give_up(what.clone(), reason, now);
                    done.push((what, Err(reason)));
                }
            }
        }
        done
    }

    /// Counts and lists something that has come to nothing.
    pub fn give_up(&mut self, what: T, reason: R, now: Time) {
        *self.given_up.entry(reason).or_default() += 1;
        if self.listed.len() == LISTED {
            self.listed.pop_front();
        }
        self.listed.push_back(GivenUp { what, reason, at: now });
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

    /// How many came to nothing since the start, by reason.
    pub fn given_up(&self) -> &BTreeMap<R, u64> {
        &self.given_up
    }

    /// The last of them.
    pub fn listed(&self) -> impl Iterator<Item = &GivenUp<T, R>> {
        self.listed.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_later_waits_and_what_is_never_told_is_given_up_with_its_reason() {
        let mut held: Held<&str, &str> = Held::new(3);
        held.hold("late", Time(0), Time(3_000)).unwrap();
        held.hold("never", Time(0), Time(3_000)).unwrap();
        held.hold("foreign", Time(0), Time(3_000)).unwrap();
        assert_eq!(held.hold("one more", Time(0), Time(0)), Err("one more"));
        assert_eq!(held.next_due(), Some(Time(3_000)));
        assert!(held.try_due(Time(2_999), |_| Tried::Told(())).is_empty());

        let attempt = |now: i64| {
            move |what: &&str| match *what {
                "late" if now >= 5_000 => Tried::Told(now),
                "foreign" => Tried::Never("host network"),
                _ => Tried::NotYet("not known"),
            }
        };
        assert_eq!(held.try_due(Time(3_000), attempt(3_000)), [("foreign", Err("host network"))]);
        assert_eq!(held.try_due(Time(3_500), attempt(3_500)), []);
        assert_eq!(held.try_due(Time(5_000), attempt(5_000)), [("late", Ok(5_000))]);
        // At its deadline it is tried for the last time, however long nobody looked.
        assert_eq!(held.try_due(Time(29_999), attempt(29_999)), []);
        assert_eq!(held.next_due(), Some(Time(PATIENCE)));
        assert_eq!(held.try_due(Time(40_000), attempt(40_000)), [("never", Err("not known"))]);
        assert!(held.is_empty());
        assert_eq!(held.given_up(), &BTreeMap::from([("host network", 1), ("not known", 1)]));
        let listed: Vec<_> = held.listed().map(|given_up| (given_up.what, given_up.at)).collect();
        assert_eq!(listed, [("foreign", Time(3_000)), ("never", Time(40_000))]);
    }

    #[test]
    fn the_list_holds_the_last_and_the_count_all() {
        let mut held: Held<usize, ()> = Held::new(1);
        for n in 0..LISTED + 5 {
            held.give_up(n, (), Time(0));
        }
        assert_eq!(held.given_up()[&()], (LISTED + 5) as u64);
        assert_eq!(held.listed().count(), LISTED);
        assert_eq!(held.listed().next().unwrap().what, 5);
    }
}
