//! Whose an address was at a time. Addresses are given out again within seconds, and what tells of it comes late, in any order and
//! with clocks that differ; so each beginning and each end is known to lie within a [`Span`]. Pure.
//!
//! The rule that everything rests on: an address has one owner at a time. So who is certain to have had it rules out who may have.
//! Where nobody is certain and several are possible, the answer is that it cannot be told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;

use crate::model::time::{Span, Time};

/// Most owners that are remembered of one address. Of one that has had more within the time that is remembered, the first are
/// forgotten, and what happened in their time cannot be told.
pub const MAX_OWNERS: usize = 64;

/// Most times without a look that are remembered; before the end of the first, nothing is known any more when there are more.
const MAX_BLIND: usize = 16;

/// Who had which address when.
#[derive(Clone, Debug)]
pub struct Owners<O> {
    addresses: HashMap<IpAddr, Address<O>>,
    /// Owners that were gone by then are not known.
    since: Time,
    /// Times through which nobody looked: who came and went within one of them is not known.
    blind: Vec<Span>,
}

#[derive(Clone, Debug)]
struct Address<O> {
    /// In the order in which they became known.
    tenures: Vec<Tenure<O>>,
    /// As [`Owners::since`], of this address.
    since: Time,
}

#[derive(Clone, Debug)]
struct Tenure<O> {
    owner: O,
    from: Span,
    until: Option<Span>,
}

/// Whose an address was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner<O> {
    /// This one's: nobody else can have had it.
    One(O),
    /// Nobody's.
    Nobody,
    /// One of these; which one cannot be told.
    Several(Vec<O>),
    /// It was before anything was known of the address.
    NotKnown,
}

impl<O: Clone + PartialEq> Owners<O> {
    /// Nothing is known of owners that were gone by `since`.
    pub fn new(since: Time) -> Self {
        Self { addresses: HashMap::new(), since, blind: Vec::new() }
    }

    /// `owner` has got the address within `from`. Said again, it narrows what is known.
    pub fn claim(&mut self, address: IpAddr, owner: &O, from: Span) {
        let known = self.address(address);
        if let Some(tenure) = known.tenures.iter_mut().find(|tenure| tenure.owner == *owner) {
            tenure.from = tenure.from.narrowed(from);
            return;
        }
        if known.tenures.len() == MAX_OWNERS {
            // Those that have ended go first, the oldest of them before others.
            let end = |tenure: &Tenure<O>| tenure.until.map_or(Time(i64::MAX), Span::latest);
            let oldest = (0..MAX_OWNERS).min_by_key(|at| end(&known.tenures[*at])).expect("there are some");
            let gone = known.tenures.remove(oldest);
            known.since = known.since.max(gone.until.unwrap_or(from).latest());
        }
        known.tenures.push(Tenure { owner: owner.clone(), from, until: None });
    }

    /// `owner` has lost the address within `until`. Said again, it narrows what is known. Of an owner that is not known, nothing is
    /// to be said.
    pub fn release(&mut self, address: IpAddr, owner: &O, until: Span) {
        let Some(known) = self.addresses.get_mut(&address.to_canonical()) else { return };
        if let Some(tenure) = known.tenures.iter_mut().find(|tenure| tenure.owner == *owner) {
            tenure.until = Some(tenure.until.map_or(until, |known| known.narrowed(until)));
        }
    }

    /// Whose the address was when something happened within `when`.
    pub fn at(&self, address: IpAddr, when: Span) -> Owner<O> {
        let Some(known) = self.addresses.get(&address.to_canonical()) else {
            return if self.is_before_known(self.since, when) { Owner::NotKnown } else { Owner::Nobody };
        };
        let all = &known.tenures;
        let possible: Vec<&Tenure<O>> = all.iter().filter(|tenure| tenure.may_have_had(when, all)).collect();
        let certain: Vec<&Tenure<O>> =
            possible.iter().copied().filter(|tenure| tenure.has_had(when, all)).collect();
        if let [tenure] = certain[..] {
            return Owner::One(tenure.owner.clone());
        }
        if self.is_before_known(known.since, when) {
            return Owner::NotKnown;
        }
        match possible[..] {
            [] => Owner::Nobody,
            [tenure] => Owner::One(tenure.owner.clone()),
            _ => Owner::Several(possible.iter().map(|tenure| tenure.owner.clone()).collect()),
        }
    }

    fn is_before_known(&self, since: Time, when: Span) -> bool {
        let blind = self
            .blind
            .iter()
            .any(|blind| blind.earliest() <= when.latest() && blind.latest() >= when.earliest());
        blind || when.earliest() < since.max(self.since)
    }

    /// Nobody looked through all of `span`, so that somebody may have come and gone. Of those who had an address before and have it
    /// still, nobody doubts it.
    pub fn missed(&mut self, span: Span) {
        if self.blind.len() == MAX_BLIND {
            let oldest = self.blind.remove(0);
            self.since = self.since.max(oldest.latest());
        }
        self.blind.push(span);
    }

    /// Forgets owners that were gone before `time`; what happened before it can no longer be told of their addresses.
    pub fn forget(&mut self, time: Time) {
        self.since = self.since.max(time);
        self.blind.retain(|blind| blind.latest() >= time);
        self.addresses.retain(|_, address| {
            let is_over = |tenure: &Tenure<O>| tenure.until.is_some_and(|until| until.latest() < time);
            address.tenures.retain(|tenure| !is_over(tenure));
            !address.tenures.is_empty()
        });
    }

    /// How many pairs of address and owner are remembered.
    pub fn len(&self) -> usize {
        self.addresses.values().map(|address| address.tenures.len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    fn address(&mut self, address: IpAddr) -> &mut Address<O> {
        match self.addresses.entry(address.to_canonical()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(Address { tenures: Vec::new(), since: self.since }),
        }
    }
}

impl<O: PartialEq> Tenure<O> {
    /// Whether `other` is certain to have got the address later.
    fn is_before(&self, other: &Self) -> bool {
        self.from.latest() <= other.from.earliest() && self.owner != other.owner
    }

    /// Whether this one may have had the address at some time within `when`.
    fn may_have_had(&self, when: Span, all: &[Self]) -> bool {
        // Who came surely later had it only when this one was gone, and the other way round.
        let successors = all.iter().filter(|other| self.is_before(other));
        let end = successors.map(|next| next.from.latest()).chain(self.until.map(Span::latest)).min();
        let ended = all.iter().filter(|other| other.is_before(self)).filter_map(|other| other.until);
        let begin = ended.map(Span::earliest).chain([self.from.earliest()]).max();
        begin.is_none_or(|begin| begin <= when.latest()) && end.is_none_or(|end| end >= when.earliest())
    }

    /// Whether this one has had the address all through `when`.
    fn has_had(&self, when: Span, all: &[Self]) -> bool {
        let end = match self.until {
            Some(until) => until.earliest(),
            // As long as nobody says that it is gone, it is there until somebody else may be.
            None => {
                let others = all.iter().filter(|other| other.owner != self.owner);
                let later = others.filter(|other| !other.is_before(self));
                later.map(|other| other.from.earliest()).min().unwrap_or(Time(i64::MAX))
            }
        };
        self.from.latest() <= when.earliest() && when.latest() <= end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn span(from: i64, to: i64) -> Span {
        Span::between(Time(from), Time(to))
    }

    fn address() -> IpAddr {
        "10.0.0.1".parse().unwrap()
    }

    /// Owners by number, each with when it came and when it went.
    fn owners(tenures: &[(Span, Option<Span>)]) -> Owners<usize> {
        let mut owners = Owners::new(Time(0));
        for (owner, (from, until)) in tenures.iter().enumerate() {
            owners.claim(address(), &owner, *from);
            if let Some(until) = until {
                owners.release(address(), &owner, *until);
            }
        }
        owners
    }

    #[test]
    fn an_address_is_its_owner_s_of_that_time() {
        use Owner::{Nobody, NotKnown, One, Several};
        let handover = owners(&[(span(90, 100), Some(span(200, 210))), (span(300, 310), None)]);
        for (when, expected) in [
            (span(50, 60), Nobody),
            (span(85, 89), Nobody),
            // It may have come by then, and nobody else can have been there.
            (span(85, 90), One(0)),
            (span(150, 150), One(0)),
            (span(205, 220), One(0)),
            (span(211, 299), Nobody),
            (span(205, 305), Several(vec![0, 1])),
            (span(305, 305), One(1)),
            (span(1_000_000, 1_000_000), One(1)),
        ] {
            assert_eq!(handover.at(address(), when), expected, "{when:?}");
        }
        assert_eq!(handover.at("10.0.0.2".parse().unwrap(), span(5, 5)), Nobody);
        assert_eq!(handover.at("::ffff:10.0.0.1".parse().unwrap(), span(150, 150)), One(0));
        assert_eq!(Owners::<usize>::new(Time(100)).at(address(), span(99, 101)), NotKnown);
    }

    #[test]
    fn one_owner_at_a_time_tells_what_the_spans_alone_do_not() {
        use Owner::{One, Several};
        // The second is seen before anybody says that the first is gone; when that is said, it comes late.
        let late = owners(&[(span(90, 100), Some(span(150, 400))), (span(200, 300), None)]);
        for (when, expected) in [
            (span(149, 149), One(0)),
            (span(180, 180), One(0)),
            (span(250, 250), Several(vec![0, 1])),
            (span(350, 350), One(1)),
        ] {
            assert_eq!(late.at(address(), when), expected, "{when:?}");
        }
        // Nobody says that the first is gone, but it must be.
        let both = owners(&[(span(90, 100), None), (span(200, 300), None)]);
        for (when, expected) in
            [(span(199, 199), One(0)), (span(250, 250), Several(vec![0, 1])), (span(350, 350), One(1))]
        {
            assert_eq!(both.at(address(), when), expected, "{when:?}");
        }
    }

    #[test]
    fn what_is_forgotten_is_not_taken_for_nobody() {
        let mut owners = owners(&[(span(90, 100), Some(span(200, 200))), (span(300, 310), None)]);
        owners.forget(Time(250));
        assert_eq!(owners.len(), 1);
        assert_eq!(owners.at(address(), span(150, 150)), Owner::NotKnown);
        assert_eq!(owners.at(address(), span(260, 260)), Owner::Nobody);
        assert_eq!(owners.at(address(), span(310, 310)), Owner::One(1));
        // One that is still there was there before, as far as that was known.
        owners.forget(Time(1000));
        assert_eq!(owners.at(address(), span(500, 500)), Owner::One(1));
    }

    #[test]
    fn who_came_and_went_while_nobody_looked_is_not_taken_for_another() {
        // The second was there before and after; of the first it is only known that it was gone afterwards.
        let mut owners = owners(&[(span(90, 100), Some(span(200, 300)))]);
        let other = "10.0.0.2".parse().unwrap();
        owners.claim(other, &1, span(90, 100));
        owners.missed(span(200, 300));
        assert_eq!(owners.at(address(), span(150, 150)), Owner::One(0));
        assert_eq!(owners.at(address(), span(250, 250)), Owner::NotKnown);
        assert_eq!(owners.at(address(), span(301, 301)), Owner::Nobody);
        assert_eq!(owners.at(other, span(250, 250)), Owner::One(1));
        assert_eq!(owners.at("10.0.0.3".parse().unwrap(), span(250, 250)), Owner::NotKnown);
        for n in 0..MAX_BLIND as i64 {
            owners.missed(span(1000 + n, 1000 + n));
        }
        assert_eq!(owners.at("10.0.0.3".parse().unwrap(), span(250, 250)), Owner::NotKnown);
    }

    #[test]
    fn an_address_with_more_owners_than_are_remembered_forgets_the_first() {
        let count = MAX_OWNERS as i64 + 10;
        let tenures: Vec<_> =
            (0..count).map(|n| (span(n * 10, n * 10), Some(span(n * 10 + 5, n * 10 + 5)))).collect();
        let owners = owners(&tenures);
        assert_eq!(owners.len(), MAX_OWNERS);
        assert_eq!(owners.at(address(), span(2, 2)), Owner::NotKnown);
        assert_eq!(
            owners.at(address(), span(count * 10 - 8, count * 10 - 8)),
            Owner::One(count as usize - 1)
        );
    }

    /// What really happened, and what is known of it: each beginning and end within a span that holds it.
    #[derive(Clone, Debug)]
    struct Truth {
        from: i64,
        until: i64,
        from_known: Span,
        until_known: Option<Span>,
    }

    prop_compose! {
        fn history()(
            steps in prop::collection::vec((0i64..50, 1i64..80, [0i64..60, 0i64..60, 0i64..60, 0i64..60]), 1..8),
            last_is_there: bool,
        ) -> Vec<Truth> {
            let mut now = 1000;
            let count = steps.len();
            let mut truth = Vec::new();
            for (at, (gap, length, [a, b, c, d])) in steps.into_iter().enumerate() {
                let (from, until) = (now + gap, now + gap + length);
                let ended = at + 1 < count || !last_is_there;
                let until_known = ended.then(|| span(until - c, until + d));
                truth.push(Truth { from, until, from_known: span(from - a, from + b), until_known });
                now = until;
            }
            truth
        }
    }

    proptest! {
        #[test]
        fn nobody_is_ever_taken_for_another(
            truth in history(),
            order in any::<u64>(),
            events in prop::collection::vec((0usize..8, 0.0f64..1.0, 0i64..40, 0i64..40), 32),
        ) {
            let mut owners = Owners::new(Time(0));
            // In any order, as watches of many nodes bring it.
            let mut arrival: Vec<usize> = (0..truth.len()).collect();
            arrival.sort_by_key(|at| (order ^ (*at as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for at in arrival {
                owners.claim(address(), &at, truth[at].from_known);
                if let Some(until) = truth[at].until_known {
                    owners.release(address(), &at, until);
                }
            }
            for (at, part, before, after) in events {
                let at = at % truth.len();
                let Truth { from, until, .. } = truth[at];
                let time = from + ((until - from) as f64 * part) as i64;
                // The moment of a handover belongs to both.
                if time == until {
                    continue;
                }
                match owners.at(address(), span(time - before, time + after)) {
                    Owner::One(owner) => prop_assert_eq!(owner, at),
                    Owner::Several(possible) => prop_assert!(possible.contains(&at)),
                    other => prop_assert!(false, "{:?} for owner {} at {}", other, at, time),
                }
            }
        }
    }
}
