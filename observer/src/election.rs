//! Who of the aggregator's replicas leads: the holder of a Lease (`coordination.k8s.io`), which it renews. What to do next, given what
//! was read; clocks of other machines play no part: a lease runs out a time after it was *seen* to change. Pure.
//!
//! Times are durations since some fixed moment, on a clock that also runs while the machine sleeps.

use std::net::SocketAddr;
use std::time::Duration;

/// How long a lease holds after it was seen to change.
pub const LEASE: Duration = Duration::from_secs(15);
/// How long a leader leads after it asked for what became its last renewal. The difference to [`LEASE`] is what a clock may be wrong by.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How often a leader renews. Each is a write, so not as often as others look.
pub const RENEW: Duration = Duration::from_secs(4);
/// How often the others look.
pub const LOOK: Duration = Duration::from_secs(2);
/// When a leader tries again after a renewal that failed.
pub const AGAIN: Duration = Duration::from_secs(1);
/// A lease that claims to hold for longer than this holds for this long: whoever wrote it was not one of us.
const LONGEST: Duration = Duration::from_secs(60);

/// Who holds a lease: its name, and where it can be reached. Written as `name@address:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Name of the replica's pod.
    pub name: String,
    /// Where agents reach it.
    pub address: SocketAddr,
}

impl Holder {
    /// As the lease has it.
    pub fn identity(&self) -> String {
        format!("{}@{}", self.name, self.address)
    }

    /// Reads an identity; `None` where it was written by something else.
    pub fn parse(identity: &str) -> Option<Self> {
        let (name, address) = identity.rsplit_once('@')?;
        Some(Self { name: name.to_owned(), address: address.parse().ok()? })
    }
}

/// A lease, without what does not matter here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// Identity of who holds it; empty where nobody does.
    pub holder: String,
    /// How long it holds.
    pub duration: Duration,
    /// Microseconds since the Unix epoch on the holder's clock. Only whether it has changed counts.
    pub renewed: i64,
    /// Likewise, when the holder got it.
    pub acquired: i64,
    /// How often the holder has changed.
    pub transitions: i32,
}

/// Who leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This replica.
    Me,
    /// Another, to be reached there.
    Other(SocketAddr),
    /// Nobody, as far as is known.
    Unknown,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write this in place of what was read.
    Write(Record),
    /// Look again after this time.
    Wait(Duration),
}

/// What this replica knows.
#[derive(Clone, Debug)]
pub struct Election {
    me: String,
    /// What was read last, and since when it has been so. `None` inside: there is no lease.
    seen: Option<(Option<Record>, Duration)>,
    /// When it asked for its last renewal that succeeded.
    renewed: Option<Duration>,
    /// When it last asked for one.
    asked: Option<Duration>,
}

impl Election {
    /// A replica that knows nothing yet.
    pub fn new(me: &Holder) -> Self {
        Self { me: me.identity(), seen: None, renewed: None, asked: None }
    }

    /// What was read at `now`.
    pub fn saw(&mut self, lease: Option<Record>, now: Duration) {
        if !self.seen.as_ref().is_some_and(|(seen, _)| *seen == lease) {
            if lease.as_ref().is_none_or(|lease| lease.holder != self.me) {
                self.renewed = None;
            }
            self.seen = Some((lease, now));
        }
    }

    /// A write is tried at `now`.
    pub fn asks(&mut self, now: Duration) {
        self.asked = Some(now);
    }

    /// The last write that was asked for succeeded.
    pub fn wrote(&mut self, lease: Record) {
        if let Some(asked) = self.asked {
            self.renewed = (lease.holder == self.me).then_some(asked);
            self.seen = Some((Some(lease), asked));
        }
    }

    /// What is known no longer holds (another one wrote); it leads until it learns better.
    pub fn conflict(&mut self) {
        self.seen = None;
    }

    /// Until when this replica leads, unless it renews.
    pub fn until(&self) -> Option<Duration> {
        self.renewed.map(|renewed| renewed + DEADLINE)
    }

    /// Who leads at `now`.
    pub fn leader(&self, now: Duration) -> Leader {
        if self.until().is_some_and(|until| now < until) {
            return Leader::Me;
        }
        match &self.seen {
            Some((Some(lease), since)) if lease.holder != self.me && now < *since + holds(lease) => {
                Holder::parse(&lease.holder).map_or(Leader::Unknown, |holder| Leader::Other(holder.address))
            }
            _ => Leader::Unknown,
        }
    }

    /// What to do at `now`. `wall` is the clock that others read, in microseconds since the Unix epoch.
    pub fn step(&self, now: Duration, wall: i64) -> Step {
        let Some((seen, since)) = &self.seen else { return Step::Wait(Duration::ZERO) };
        let mine = seen.as_ref().filter(|lease| lease.holder == self.me);
        let due = match (mine, seen) {
            // Renewed in time, again soon after a failure, at once if it comes back to a lease of its own.
            (Some(_), _) => {
                let renew = self.renewed.map_or(now, |renewed| renewed + RENEW);
                self.asked.map_or(renew, |asked| renew.max(asked + AGAIN))
            }
            (None, Some(lease)) if !lease.holder.is_empty() => *since + holds(lease),
            (None, _) => now,
        };
        if now < due {
            let most = if mine.is_some() { RENEW } else { LOOK };
            return Step::Wait((due - now).min(most));
        }
        let before = seen.as_ref();
        let transitions = before.map_or(0, |lease| lease.transitions);
        Step::Write(Record {
            holder: self.me.clone(),
            duration: LEASE,
            renewed: wall,
            acquired: mine.map_or(wall, |lease| lease.acquired),
            transitions: if mine.is_some() || before.is_none() {
                transitions
            } else {
                transitions.saturating_add(1)
            },
        })
    }

    /// What to write to let go of the lease, so that nobody has to wait for its end; `None` where this replica does not hold it.
    /// It does not lead from then on.
    pub fn release(&mut self, wall: i64) -> Option<Record> {
        self.renewed = None;
        let (Some(lease), _) = self.seen.as_ref()? else { return None };
        (lease.holder == self.me).then(|| Record {
            holder: String::new(),
            duration: Duration::from_secs(1),
            renewed: wall,
            ..lease.clone()
        })
    }
}

fn holds(lease: &Record) -> Duration {
    lease.duration.min(LONGEST)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { name: name.to_owned(), address: "10.0.0.1:9443".parse().unwrap() }
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn lease_of(name: &str, renewed: i64) -> Record {
        Record { holder: holder(name).identity(), duration: LEASE, renewed, ..Record::default() }
    }

    fn written(step: Step) -> Record {
        match step {
            Step::Write(record) => record,
            Step::Wait(wait) => panic!("waits {wait:?}"),
        }
    }

    /// A replica that got the lease at 0.
    fn leading() -> Election {
        let mut election = Election::new(&holder("a"));
        election.saw(None, secs(0));
        let record = written(election.step(secs(0), 1));
        election.asks(secs(0));
        election.wrote(record);
        election
    }

    #[test]
    fn identities_are_read_back() {
        for address in ["10.0.0.1:9443", "[fd00::1]:9443"] {
            let holder = Holder { name: "a@b".to_owned(), address: address.parse().unwrap() };
            assert_eq!(Holder::parse(&holder.identity()), Some(holder));
        }
        for foreign in ["", "a", "a@b", "a@10.0.0.1"] {
            assert_eq!(Holder::parse(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn nothing_is_written_before_something_was_read() {
        assert_eq!(Election::new(&holder("a")).step(secs(9), 0), Step::Wait(Duration::ZERO));
    }

    #[test]
    fn a_lease_that_nobody_holds_is_taken_at_once() {
        let released = Record { holder: String::new(), transitions: 3, ..lease_of("b", 1) };
        for (lease, transitions) in [(None, 0), (Some(released), 4)] {
            let mut election = Election::new(&holder("a"));
            election.saw(lease, secs(5));
            let record = written(election.step(secs(5), 7));
            assert_eq!(
                (record.holder.as_str(), record.transitions),
                (holder("a").identity().as_str(), transitions)
            );
            assert_eq!(election.leader(secs(5)), Leader::Unknown, "not before it is written");
        }
    }

    #[test]
    fn another_ones_lease_is_waited_for_from_when_it_was_seen_to_change() {
        // Whatever the other one's clock says: an hour behind or ahead.
        for skew in [-3_600_000_000, 0, 3_600_000_000] {
            let mut election = Election::new(&holder("a"));
            election.saw(Some(lease_of("b", skew)), secs(100));
            assert_eq!(election.step(secs(100), 0), Step::Wait(LOOK));
            assert_eq!(election.leader(secs(100)), Leader::Other("10.0.0.1:9443".parse().unwrap()));
            // Seen again without a change: no news.
            election.saw(Some(lease_of("b", skew)), secs(114));
            assert_eq!(election.step(secs(114), 0), Step::Wait(secs(1)));
            assert!(matches!(election.step(secs(115), 0), Step::Write(_)));
            assert_eq!(election.leader(secs(115)), Leader::Unknown);
            election.saw(Some(lease_of("b", skew + 1)), secs(115));
            assert_eq!(election.step(secs(116), 0), Step::Wait(LOOK));
        }
    }

    #[test]
    fn a_lease_that_claims_to_hold_for_ever_does_not() {
        let mut election = Election::new(&holder("a"));
        election.saw(Some(Record { duration: Duration::MAX, ..lease_of("x", 0) }), secs(0));
        assert!(matches!(election.step(secs(60), 0), Step::Write(_)));
    }

    #[test]
    fn a_leader_renews_and_tries_again_soon_when_that_fails() {
        let mut election = leading();
        assert_eq!(election.leader(secs(0)), Leader::Me);
        assert_eq!(election.step(secs(1), 0), Step::Wait(secs(3)));
        let record = written(election.step(secs(4), 9));
        assert_eq!((record.renewed, record.acquired, record.transitions), (9, 1, 0));
        election.asks(secs(4));
        assert_eq!(election.step(secs(4), 0), Step::Wait(AGAIN));
        assert!(matches!(election.step(secs(5), 0), Step::Write(_)));
    }

    #[test]
    fn without_renewal_it_leads_until_its_deadline_counted_from_the_question() {
        let mut election = leading();
        let record = written(election.step(secs(4), 9));
        election.asks(secs(4));
        // The reply takes five seconds.
        election.wrote(record);
        assert_eq!(election.until(), Some(secs(14)));
        assert_eq!(election.leader(secs(13)), Leader::Me);
        assert_eq!(election.leader(secs(14)), Leader::Unknown);
        // It still holds the lease, and nobody else may take it yet: it takes it up again.
        assert!(matches!(election.step(secs(15), 0), Step::Write(_)));
    }

    #[test]
    fn a_leader_that_sees_another_one_hold_the_lease_stops_at_once() {
        let mut election = leading();
        election.conflict();
        assert_eq!(election.leader(secs(1)), Leader::Me);
        election.saw(Some(lease_of("b", 5)), secs(2));
        assert_eq!(election.leader(secs(2)), Leader::Other("10.0.0.1:9443".parse().unwrap()));
        let mut election = leading();
        election.saw(None, secs(2));
        assert_eq!(election.leader(secs(2)), Leader::Unknown, "somebody deleted it");
    }

    #[test]
    fn only_a_holder_releases() {
        let mut election = leading();
        let record = election.release(5).unwrap();
        assert_eq!((record.holder.as_str(), record.duration), ("", secs(1)));
        assert_eq!(election.leader(secs(1)), Leader::Unknown);
        let mut other = Election::new(&holder("a"));
        other.saw(Some(lease_of("b", 1)), secs(0));
        assert_eq!(other.release(5), None);
    }

    proptest! {
        /// Replicas with clocks of their own over one lease that is written only by who has read its last version; each looks and
        /// writes at times of its own, some requests fail, some take long.
        #[test]
        fn never_do_two_lead(steps in prop::collection::vec((0usize..3, 1u64..4_000, 0u64..12_000, 0u8..4), 1..300)) {
            let mut now = 0u64;
            let mut stored: (Option<Record>, u64) = (None, 0);
            let mut replicas: Vec<(Election, u64)> = ["a", "b", "c"].map(|name| (Election::new(&holder(name)), 0)).into();
            // Each clock has begun at another time.
            let clock = |replica: usize, now: u64| Duration::from_millis(now + 7_777 * replica as u64);
            // What was written, and its answer is still under way: to whom, until when.
            let mut under_way: Vec<(usize, u64, Record)> = Vec::new();
            for (replica, passed, delay, fate) in steps {
                now += passed;
                under_way.retain(|(to, at, record)| {
                    if *at > now { return true; }
                    replicas[*to].0.wrote(record.clone());
                    false
                });
                if !under_way.iter().any(|(to, ..)| *to == replica) {
                    let (election, version) = &mut replicas[replica];
                    let here = clock(replica, now);
                    match election.step(here, now as i64) {
                        Step::Wait(_) => {
                            election.saw(stored.0.clone(), here);
                            *version = stored.1;
                        }
                        Step::Write(record) => {
                            election.asks(here);
                            if *version != stored.1 {
                                election.conflict();
                            } else if fate > 0 {
                                stored = (Some(record.clone()), stored.1 + 1);
                                *version = stored.1;
                                under_way.push((replica, now + delay, record));
                            }
                        }
                    }
                }
                let leaders = (0..3).filter(|at| replicas[*at].0.leader(clock(*at, now)) == Leader::Me).count();
                prop_assert!(leaders <= 1);
            }
        }
    }
}
