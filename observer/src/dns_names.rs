//! Under which names the programs of a network namespace know an address, as DNS told *them*. Pure; bounded.
//!
//! Never node-wide: what one pod asked says nothing of why another one connects to the same address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use crate::dns::Answer;
use crate::model::names::Host;

/// Programs hold an address for longer than its lifetime: a connection pool opens its next connection to it, and Java caches
/// for 30 s. Answers of 0 s would be over before the connect that they led to.
pub const MIN_LIFETIME: Duration = Duration::from_secs(60);
/// An address may belong to somebody else an hour later, whatever its server promised.
pub const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// How much is kept. What is over it costs the entry that would have expired first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Network namespaces.
    pub namespaces: usize,
    /// Addresses of each of them.
    pub addresses: usize,
    /// Names of each address.
    pub names: usize,
}

impl Default for Limits {
    /// As many namespaces as a node has pods. A full table takes about 40 MB; that needs every pod to resolve without end.
    fn default() -> Self {
        Self { namespaces: 256, addresses: 256, names: 4 }
    }
}

/// What had to go before its time, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evictions {
    /// Namespaces, with all that they held.
    pub namespaces: u64,
    /// Addresses, with their names.
    pub addresses: u64,
    /// Names of an address that has too many.
    pub names: u64,
}

/// Names of addresses, by network namespace. Times are nanoseconds of the clock that the kernel's records have.
#[derive(Debug, Default)]
pub struct DnsNames {
    limits: Limits,
    namespaces: HashMap<u64, Namespace>,
    evictions: Evictions,
}

#[derive(Debug, Default)]
struct Namespace {
    addresses: HashMap<IpAddr, Names>,
    /// Every address once, by when the last of its names expires.
    by_expiry: BTreeSet<(u64, IpAddr)>,
}

type Names = BTreeMap<Host, Lifetime>;

#[derive(Clone, Copy, Debug)]
struct Lifetime {
    from: u64,
    until: u64,
}

impl DnsNames {
    /// An empty table. A limit of zero counts as one.
    pub fn new(limits: Limits) -> Self {
        let limits = Limits {
            namespaces: limits.namespaces.max(1),
            addresses: limits.addresses.max(1),
            names: limits.names.max(1),
        };
        Self { limits, ..Self::default() }
    }

    /// Takes an answer that reached a program in `netns` at `now`. Returns other namespaces whose names had to go before their time.
    pub fn insert(&mut self, now: u64, netns: u64, answer: &Answer) -> Vec<u64> {
        if answer.addresses.is_empty() {
            return Vec::new();
        }
        let evicted = self.make_room(now, netns);
        let namespace = self.namespaces.entry(netns).or_default();
        for (address, ttl) in &answer.addresses {
            let nanos = (*ttl).clamp(MIN_LIFETIME, MAX_LIFETIME).as_nanos();
            let nanos = u64::try_from(nanos).expect("an hour in nanoseconds fits");
            let lifetime = Lifetime { from: now, until: now.saturating_add(nanos) };
            namespace.insert(*address, &answer.question, lifetime, self.limits, &mut self.evictions);
        }
        evicted
    }

    /// The names of `address` that held in `netns` at `time`, in alphabetical order.
    pub fn names_at(&self, netns: u64, address: IpAddr, time: u64) -> impl Iterator<Item = &Host> {
        let names = self.namespaces.get(&netns).and_then(|namespace| namespace.addresses.get(&address));
        names
            .into_iter()
            .flatten()
            .filter(move |(_, lifetime)| (lifetime.from..lifetime.until).contains(&time))
            .map(|(name, _)| name)
    }

    /// Drops what is known of a namespace that is gone.
    pub fn forget(&mut self, netns: u64) {
        self.namespaces.remove(&netns);
    }

    /// What had to go before its time.
    pub fn evictions(&self) -> Evictions {
        self.evictions
    }

    /// Makes room for one namespace: those without a name that still holds go first, and are no loss.
    fn make_room(&mut self, now: u64, netns: u64) -> Vec<u64> {
        let mut evicted = Vec::new();
        if self.namespaces.contains_key(&netns) || self.namespaces.len() < self.limits.namespaces {
            return evicted;
        }
        self.namespaces.retain(|_, namespace| namespace.expires() > now);
        while self.namespaces.len() >= self.limits.namespaces {
            let oldest = self.namespaces.iter().map(|(netns, namespace)| (namespace.expires(), *netns)).min();
            let Some((_, oldest)) = oldest else {
                break;
            };
            self.namespaces.remove(&oldest);
            self.evictions.namespaces += 1;
            evicted.push(oldest);
        }
        evicted
    }
}

impl Namespace {
    fn expires(&self) -> u64 {
        self.by_expiry.last().map_or(0, |(until, _)| *until)
    }

    fn insert(
        &mut self,
        address: IpAddr,
        name: &Host,
        new: Lifetime,
        limits: Limits,
        evictions: &mut Evictions,
    ) {
        if !self.addresses.contains_key(&address) && self.addresses.len() >= limits.addresses {
            let (until, oldest) = self.by_expiry.pop_first().expect("holds every address");
            self.addresses.remove(&oldest);
            evictions.addresses += u64::from(until > new.from);
        }
        let names = self.addresses.entry(address).or_default();
        self.by_expiry.remove(&(last_expiry(names), address));
        match names.get_mut(name) {
            // Told again while it holds: it has held all the time. A shorter answer takes no address from a program.
            Some(old) if old.until >= new.from => {
                *old = Lifetime { from: old.from.min(new.from), until: old.until.max(new.until) };
            }
            Some(old) => *old = new,
            None => {
                if names.len() >= limits.names {
                    let oldest = names.iter().min_by_key(|(_, lifetime)| lifetime.until);
                    let (oldest, until) = oldest.map(|(name, l)| (name.clone(), l.until)).expect("is full");
                    names.remove(&oldest);
                    evictions.names += u64::from(until > new.from);
                }
                names.insert(name.clone(), new);
            }
        }
        self.by_expiry.insert((last_expiry(names), address));
    }
}

fn last_expiry(names: &Names) -> u64 {
    names.values().map(|lifetime| lifetime.until).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const LIMITS: Limits = Limits { namespaces: 2, addresses: 3, names: 2 };

    fn answer(name: &str, last: u8, ttl: u64) -> Answer {
        let addresses = vec![(ip(last), Duration::from_secs(ttl))];
        Answer { question: Host::new(name).unwrap(), addresses, nxdomain: false }
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn names(table: &DnsNames, netns: u64, last: u8, second: u64) -> Vec<&str> {
        table.names_at(netns, ip(last), second * SECOND).map(Host::as_str).collect()
    }

    #[test]
    fn a_name_holds_in_its_namespace_from_the_answer_to_its_end() {
        let mut table = DnsNames::default();
        for (ttl, end) in [(0, 60), (60, 60), (300, 300), (86_400, 3600)] {
            table.forget(1);
            table.insert(100 * SECOND, 1, &answer("db.example", 1, ttl));
            for (second, holds) in [(99, false), (100, true), (99 + end, true), (100 + end, false)] {
                let expect: &[&str] = if holds { &["db.example"] } else { &[] };
                assert_eq!(names(&table, 1, 1, second), expect, "ttl {ttl}, {second} s");
            }
        }
        assert!(names(&table, 2, 1, 101).is_empty(), "another namespace");
        assert!(names(&table, 1, 2, 101).is_empty(), "another address");
    }

    #[test]
    fn an_address_has_all_names_that_lead_to_it() {
        let mut table = DnsNames::default();
        table.insert(0, 1, &answer("b.example", 1, 60));
        table.insert(0, 1, &answer("a.example", 1, 120));
        assert_eq!(names(&table, 1, 1, 59), ["a.example", "b.example"]);
        assert_eq!(names(&table, 1, 1, 60), ["a.example"]);
    }

    #[test]
    fn a_name_that_is_told_again_holds_on() {
        let mut table = DnsNames::default();
        table.insert(0, 1, &answer("a.example", 1, 600));
        table.insert(50 * SECOND, 1, &answer("a.example", 1, 60));
        assert_eq!(names(&table, 1, 1, 1), ["a.example"], "the past was forgotten");
        assert_eq!(names(&table, 1, 1, 599), ["a.example"], "was shortened");
        table.insert(560 * SECOND, 1, &answer("a.example", 1, 60));
        assert_eq!(names(&table, 1, 1, 610), ["a.example"], "was not prolonged");
        assert_eq!(names(&table, 1, 1, 1), ["a.example"], "the past was forgotten");
        table.insert(1000 * SECOND, 1, &answer("a.example", 1, 60));
        assert!(names(&table, 1, 1, 800).is_empty(), "held in a gap");
        assert_eq!(names(&table, 1, 1, 1001), ["a.example"]);
    }

    #[test]
    fn what_expires_first_makes_room_and_is_counted_by_cause() {
        let mut table = DnsNames::new(LIMITS);
        for (name, ttl) in [("long.example", 900), ("short.example", 60), ("third.example", 60)] {
            table.insert(0, 1, &answer(name, 1, ttl));
        }
        assert_eq!(names(&table, 1, 1, 1), ["long.example", "third.example"]);
        for (last, ttl) in [(2, 60), (3, 600), (4, 60)] {
            table.insert(0, 1, &answer("a.example", last, ttl));
        }
        assert_eq!([1, 2, 3, 4].map(|last| !names(&table, 1, last, 1).is_empty()), [true, false, true, true]);
        table.insert(0, 2, &answer("a.example", 1, 60));
        table.insert(0, 3, &answer("a.example", 1, 60));
        assert_eq!([1, 2, 3].map(|netns| !names(&table, netns, 1, 1).is_empty()), [true, false, true]);
        assert_eq!(table.evictions(), Evictions { namespaces: 1, addresses: 1, names: 1 });
    }

    #[test]
    fn what_has_expired_makes_room_at_no_loss() {
        let mut table = DnsNames::new(LIMITS);
        for round in 0..10 {
            let now = round * 60 * SECOND;
            for last in 0..3 {
                for name in ["a", "b"] {
                    table.insert(now, round, &answer(&format!("{name}{round}.example"), last, 60));
                    table.insert(now, round + 1, &answer(&format!("{name}{round}.example"), last + 100, 60));
                }
            }
        }
        for now in 0..10 {
            table.insert((1000 + 60 * now) * SECOND, 1, &answer(&format!("n{now}.example"), 1, 60));
        }
        assert_eq!(table.evictions(), Evictions::default());
    }

    proptest! {
        #[test]
        fn the_table_stays_within_its_limits_and_finds_what_came_last(
            inserts in proptest::collection::vec((0..1000u64, 0..5u64, 0..8u8, 0..4u8, 0..200u64), 1..100),
        ) {
            let mut table = DnsNames::new(LIMITS);
            for (now, netns, last, name, ttl) in inserts {
                let host = format!("n{name}.example");
                table.insert(now * SECOND, netns, &answer(&host, last, ttl));
                prop_assert!(names(&table, netns, last, now).contains(&host.as_str()));
                prop_assert!(table.namespaces.len() <= LIMITS.namespaces);
                for namespace in table.namespaces.values() {
                    prop_assert!(namespace.addresses.len() <= LIMITS.addresses);
                    let by_expiry: BTreeSet<_> =
                        namespace.addresses.iter().map(|(ip, names)| (last_expiry(names), *ip)).collect();
                    prop_assert_eq!(&by_expiry, &namespace.by_expiry);
                    prop_assert!(namespace.addresses.values().all(|names| names.len() <= LIMITS.names));
                }
            }
        }
    }
}
