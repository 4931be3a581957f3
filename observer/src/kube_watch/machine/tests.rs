use std::collections::BTreeMap;

use proptest::prelude::*;
use serde::de::DeserializeSeed;
use serde_json::json;

use super::*;
use crate::registry::Watched;

/// A machine, and what it has told in words.
struct Run {
    machine: Machine,
    now: Time,
    out: Vec<Told>,
}

fn service(name: &str) -> Watched {
    Kind::Service.deserialize(json!({"metadata": {"name": name}})).unwrap()
}

fn page(names: &[&str], version: &str, next: Option<&str>) -> Page {
    Page {
        items: names.iter().map(|name| Ok(service(name))).collect(),
        resource_version: version.to_owned(),
        next: next.map(str::to_owned),
    }
}

fn there(name: &str, version: &str) -> Change {
    Change::There(version.to_owned(), Ok(service(name)))
}

fn bookmark(version: &str) -> Change {
    Change::Bookmark(version.to_owned())
}

fn refused() -> Failure {
    Failure::other("connection refused")
}

impl Run {
    fn new() -> Self {
        Self { machine: Machine::new(Kind::Service, 2), now: Time(1_000_000), out: Vec::new() }
    }

    /// One that has listed `a` at version 10 and watches.
    fn watching() -> Self {
        let mut run = Self::new();
        run.list(page(&["a"], "10", None));
        run.open();
        assert_eq!(run.told(), ["begin", "there a ..0", "end ..0"]);
        run
    }

    fn later(&mut self, millis: i64) -> &mut Self {
        self.now = self.now.plus(millis);
        self
    }

    fn step(&self) -> Step<'_> {
        self.machine.step(self.now)
    }

    fn list(&mut self, page: Page) {
        assert!(matches!(self.step(), Step::List { .. }), "{:?}", self.step());
        self.machine.listed(page, self.now, self.now, &mut self.out);
    }

    fn open(&mut self) {
        assert!(matches!(self.step(), Step::Open { .. }), "{:?}", self.step());
        self.machine.opened(self.now, &mut self.out);
    }

    fn compare(&mut self, version: &str) {
        assert!(matches!(self.step(), Step::Compare { .. }), "{:?}", self.step());
        self.machine.compared(version);
    }

    fn change(&mut self, change: Change) {
        assert!(matches!(self.step(), Step::Read { .. }), "{:?}", self.step());
        self.machine.told(change, self.now, &mut self.out);
    }

    fn silence(&mut self) {
        let Step::Read { within } = self.step() else { panic!("{:?}", self.step()) };
        self.later(i64::try_from(within.as_millis()).unwrap());
        self.machine.silent(self.now, &mut self.out);
    }

    fn end(&mut self) {
        self.machine.ended(self.now, &mut self.out);
    }

    fn fail(&mut self, failure: &Failure) {
        self.machine.failed(failure, self.now, &mut self.out);
    }

    /// The number of failures that it waits for.
    fn wait(&mut self) -> u32 {
        let Step::Retry { failures, .. } = self.step() else { panic!("{:?}", self.step()) };
        self.machine.waited();
        failures
    }

    /// What was told since this was last asked, each with its span relative to now in milliseconds.
    fn told(&mut self) -> Vec<String> {
        let now = self.now;
        let time = |time: Time| {
            if time == Time(i64::MIN) { String::new() } else { time.since(now).to_string() }
        };
        let told = self.out.drain(..).map(|told| {
            let (earliest, latest) = (time(told.seen.earliest()), time(told.seen.latest()));
            let seen =
                if earliest == latest { format!("at {latest}") } else { format!("{earliest}..{latest}") };
            match told.what {
                What::Begin => "begin".to_owned(),
                What::There(object) => format!("there {} {seen}", object.metadata().name.as_str()),
                What::Gone(object) => format!("gone {} {seen}", object.metadata().name.as_str()),
                What::Unreadable(unreadable) => format!("unreadable {}", unreadable.name),
                What::End => format!("end {seen}"),
                What::Interrupted => "interrupted".to_owned(),
                What::Resumed => "resumed".to_owned(),
            }
        });
        told.collect()
    }
}

#[test]
fn pages_are_listed_from_ever_until_now_and_what_changes_then_is_told_as_of_now() {
    let mut run = Run::new();
    assert_eq!(run.step(), Step::List { version: 0, next: None });
    run.list(page(&["a"], "10", Some("more")));
    assert_eq!(run.step(), Step::List { version: 0, next: Some("more") });
    run.later(500).list(page(&["b"], "10", None));
    assert_eq!(run.told(), ["begin", "there a ..-500", "there b ..0"]);
    assert_eq!(run.step(), Step::Open { version: 0, from: "10", within: OPEN });
    run.open();
    assert_eq!(run.told(), ["end ..0"]);
    // It may have changed while the rest was listed.
    run.later(100).change(there("a", "11"));
    assert_eq!(run.told(), ["there a -600..0"]);
    run.later(5_000).change(there("a", "12"));
    run.change(Change::Gone("13".to_owned(), Some(service("a"))));
    assert_eq!(run.told(), ["there a at 0", "gone a at 0"]);
}

#[test]
fn a_listing_that_took_long_ends_when_what_has_changed_meanwhile_was_told() {
    let listed = || {
        let mut run = Run::new();
        run.list(page(&["a"], "10", Some("more")));
        run.later(3_000).list(page(&["b"], "10", None));
        run.open();
        run.compare("20");
        run.told();
        run
    };
    let mut run = listed();
    run.change(there("c", "15"));
    assert_eq!(run.told(), ["there c -3000..0"]);
    run.later(10).change(there("d", "20"));
    assert_eq!(run.told(), ["there d -3010..0", "end ..0"]);
    // Nothing had changed, and so no version goes by.
    let mut run = listed();
    assert_eq!(run.step(), Step::Read { within: millis(LAG) });
    run.silence();
    assert_eq!(run.told(), ["end ..0"]);
    let mut run = listed();
    run.change(bookmark("19"));
    assert!(run.told().is_empty());
    run.change(bookmark("25"));
    assert_eq!(run.told(), ["end ..0"]);
}

#[test]
fn a_watch_that_ends_in_time_goes_on_without_an_interruption() {
    let mut run = Run::watching();
    run.later(28_000).change(bookmark("40"));
    run.later(2_000).end();
    assert_eq!(run.step(), Step::Open { version: 0, from: "40", within: millis(LAG) });
    run.later(300).open();
    run.later(50).change(there("b", "41"));
    assert_eq!(run.told(), ["there b -350..0"]);
    run.later(2_000).change(there("b", "42"));
    assert_eq!(run.told(), ["there b at 0"]);
    // Unless it cannot be opened.
    run.later(28_000).end();
    run.later(1_000).fail(&refused());
    assert_eq!(run.told(), ["interrupted"]);
}

#[test]
fn a_watch_that_breaks_is_interrupted_at_once_and_resumed_when_it_has_told_all() {
    let mut run = Run::watching();
    run.later(10_000).change(there("b", "11"));
    run.told();
    run.later(4_000).end();
    assert_eq!(run.told(), ["interrupted"]);
    assert_eq!(run.wait(), 1);
    for failures in 2..5 {
        run.later(1_000).fail(&refused());
        assert_eq!(run.wait(), failures);
    }
    assert!(run.told().is_empty());
    assert_eq!(run.step(), Step::Open { version: 0, from: "11", within: OPEN });
    run.open();
    run.compare("30");
    run.change(there("c", "12"));
    run.later(100).change(there("d", "30"));
    // Since it was last known to work.
    assert_eq!(run.told(), ["there c -7100..-100", "there d -7100..0", "resumed"]);
}

#[test]
fn a_watch_that_dies_without_a_word_is_taken_for_a_working_one_no_longer_than_its_time() {
    let mut run = Run::watching();
    run.later(3_000).change(there("b", "11"));
    run.told();
    assert_eq!(run.step(), Step::Read { within: Duration::from_secs(32) });
    run.silence();
    assert_eq!(run.told(), ["interrupted"]);
    run.wait();
    run.open();
    run.compare("11");
    run.silence();
    run.change(there("c", "12"));
    assert_eq!(run.told(), ["resumed", "there c at 0"].map(str::to_owned).to_vec());
}

#[test]
fn what_is_too_old_to_go_on_from_is_listed_anew() {
    let mut run = Run::watching();
    run.later(5_000).fail(&Failure::Expired);
    assert_eq!(run.told(), ["interrupted"]);
    run.wait();
    run.list(page(&["a"], "90", Some("more")));
    run.fail(&Failure::Expired);
    assert_eq!(run.wait(), 2);
    assert_eq!(run.step(), Step::List { version: 0, next: None });
    run.later(1_000).list(page(&["a"], "95", None));
    run.open();
    assert_eq!(run.told(), ["begin", "there a -6000..-1000", "begin", "there a -6000..0", "end -6000..0"]);
    // When it is opened, too.
    run.later(30_000).end();
    run.fail(&Failure::Expired);
    run.wait();
    assert_eq!(run.step(), Step::List { version: 0, next: None });
}

#[test]
fn a_page_that_fails_is_asked_for_again() {
    let mut run = Run::new();
    run.list(page(&["a"], "10", Some("more")));
    run.fail(&Failure::Other { problem: "busy".to_owned(), retry_after: Duration::from_secs(7) });
    assert_eq!(run.step(), Step::Retry { failures: 1, at_least: Duration::from_secs(7) });
    run.wait();
    assert_eq!(run.step(), Step::List { version: 0, next: Some("more") });
}

#[test]
fn watches_that_break_without_a_word_end_in_a_new_listing() {
    let mut run = Run::watching();
    for _ in 0..2 {
        run.later(100).fail(&refused());
        run.wait();
        run.open();
    }
    run.later(100).fail(&refused());
    run.wait();
    assert_eq!(run.step(), Step::List { version: 0, next: None });
}

#[test]
fn a_kind_that_the_cluster_does_not_have_is_empty_and_its_arrival_is_noticed() {
    let mut run = Run::new();
    run.fail(&Failure::NotFound);
    assert_eq!(run.step(), Step::List { version: 1, next: None });
    run.fail(&Failure::NotFound);
    assert_eq!(run.told(), ["begin", "end ..0"]);
    for _ in 0..3 {
        assert_eq!(run.step(), Step::LookAgain);
        run.later(30_000).machine.waited();
        run.fail(&Failure::NotFound);
        run.fail(&Failure::NotFound);
        assert!(run.told().is_empty());
    }
    // Where that cannot be told, it is not up to date.
    run.later(30_000).machine.waited();
    run.fail(&refused());
    run.wait();
    assert_eq!(run.told(), ["interrupted"]);
    run.later(200).fail(&Failure::NotFound);
    run.fail(&Failure::NotFound);
    assert_eq!(run.told(), ["resumed"]);
    run.later(30_000).machine.waited();
    run.fail(&Failure::NotFound);
    run.list(page(&["a"], "10", None));
    assert_eq!(run.step(), Step::Open { version: 1, from: "10", within: OPEN });
    run.open();
    assert_eq!(run.told(), ["begin", "there a -30000..0", "end -30000..0"]);
}

#[test]
fn a_kind_that_goes_away_counts_as_empty_only_when_it_stays_away() {
    let mut run = Run::watching();
    run.later(5_000).end();
    run.wait();
    run.fail(&Failure::NotFound);
    assert_eq!(run.told(), ["interrupted"]);
    run.wait();
    let mut tries = 0;
    while run.told().is_empty() {
        run.fail(&Failure::NotFound);
        run.fail(&Failure::NotFound);
        if matches!(run.step(), Step::Retry { .. }) {
            run.later(3_000).wait();
        }
        tries += 1;
    }
    assert_eq!((tries, run.step()), (5, Step::LookAgain));
}

#[test]
fn an_object_that_cannot_be_read_stops_nothing() {
    use crate::registry::Unreadable;
    let unreadable = || Unreadable::new(Kind::Service, "default", "odd\u{1b}[31m", "field x: no");
    let mut run = Run::new();
    let mut listed = page(&["a"], "10", None);
    listed.items.insert(0, Err(unreadable()));
    run.list(listed);
    run.open();
    run.later(5_000).change(Change::There("11".to_owned(), Err(unreadable())));
    run.change(Change::Gone("12".to_owned(), None));
    run.end();
    let told = run.told();
    assert_eq!(
        told,
        [
            "begin",
            "unreadable odd[31m",
            "there a ..-5000",
            "end ..-5000",
            "unreadable odd[31m",
            "interrupted"
        ]
    );
    run.wait();
    assert_eq!(run.step(), Step::Open { version: 0, from: "12", within: OPEN });
}

/// An API server with one kind of objects, and what really happened there.
#[derive(Default)]
struct Server {
    version: u64,
    /// Name -> when it was last changed.
    objects: BTreeMap<u8, Time>,
    /// Version, when, which object, whether it is there since.
    log: Vec<(u64, Time, u8, bool)>,
    /// Older versions are gone.
    oldest: u64,
}

impl Server {
    fn change(&mut self, name: u8, now: Time) {
        self.version += 1;
        let appears = self.objects.remove(&name).is_none();
        if appears {
            self.objects.insert(name, now);
        }
        self.log.push((self.version, now, name, appears));
    }
}

/// A machine at that server, and what it has told so far.
struct Simulation {
    server: Server,
    run: Run,
    /// Name -> listing that told it.
    mirror: BTreeMap<String, u32>,
    listing: u32,
    /// The version that the open watch has told.
    at: u64,
    /// What is being listed: its version, and what is left.
    snapshot: (u64, Vec<u8>),
}

impl Simulation {
    fn new() -> Self {
        let run = Run::new();
        let (server, mirror) = (Server::default(), BTreeMap::new());
        Self { server, run, mirror, listing: 0, at: 0, snapshot: (0, Vec::new()) }
    }

    fn next_change(&self) -> Option<(u64, Time, u8, bool)> {
        self.server.log.iter().find(|(version, ..)| *version > self.at).copied()
    }

    /// A watch that works tells at once.
    fn deliver(&mut self) {
        while let (Step::Read { .. }, Some((version, _, name, appears))) =
            (self.run.step(), self.next_change())
        {
            self.at = version;
            let object = service(&format!("o{name}"));
            let version = version.to_string();
            self.run.change(if appears {
                Change::There(version, Ok(object))
            } else {
                Change::Gone(version, Some(object))
            });
            self.check();
        }
    }

    /// Takes one step, which fails or goes well.
    fn step(&mut self, what: u8, passed: i64) {
        let fails = what < 3;
        match self.run.step() {
            Step::List { .. } if what == 0 => self.run.fail(&Failure::Expired),
            Step::Open { .. } | Step::List { .. } | Step::Compare { .. } if fails => {
                self.run.fail(&refused())
            }
            Step::List { next, .. } => {
                if next.is_none() {
                    self.snapshot = (self.server.version, self.server.objects.keys().copied().collect());
                }
                let (version, rest) = &mut self.snapshot;
                let names: Vec<String> =
                    rest.drain(..rest.len().min(2)).map(|name| format!("o{name}")).collect();
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                let page = page(&names, &version.to_string(), (!rest.is_empty()).then_some("more"));
                let asked = self.run.now;
                let now = self.run.later(passed / 4).now;
                self.run.machine.listed(page, asked, now, &mut self.run.out);
            }
            Step::Open { from, .. } => {
                self.at = from.parse().unwrap();
                if self.at < self.server.oldest {
                    self.run.fail(&Failure::Expired);
                } else {
                    self.run.open();
                }
            }
            Step::Compare { .. } => self.run.compare(&self.server.version.to_string()),
            Step::Read { .. } => match what {
                0 => self.run.fail(&Failure::Expired),
                1 => self.run.end(),
                2 => self.run.later(30_000).end(),
                _ => self.run.silence(),
            },
            Step::Retry { .. } | Step::LookAgain => {
                self.run.later(passed);
                self.run.machine.waited();
            }
        }
        self.check();
    }

    /// Takes over what was told. Everything must have happened when that says, and where all was told it must be what there is.
    fn check(&mut self) {
        let happened = |log: &[(u64, Time, u8, bool)], name: &str, there: bool, seen: Span| {
            let fits = |when: Time| seen.earliest().plus(-LAG) <= when && when <= seen.latest();
            let mut log = log.iter();
            let found = log
                .any(|(_, when, of, appears)| format!("o{of}") == name && *appears == there && fits(*when));
            assert!(found, "{name} {seen:?}");
        };
        let log = &self.server.log;
        for told in self.run.out.drain(..) {
            match told.what {
                What::Begin => self.listing += 1,
                What::There(object) => {
                    let name = object.metadata().name.as_str().to_owned();
                    if self.mirror.insert(name.clone(), self.listing).is_none() {
                        happened(log, &name, true, told.seen);
                    }
                }
                What::Gone(object) => {
                    let name = object.metadata().name.as_str();
                    if self.mirror.remove(name).is_some() {
                        happened(log, name, false, told.seen);
                    }
                }
                What::End => self.mirror.retain(|name, listing| {
                    let stays = *listing == self.listing;
                    if !stays {
                        happened(log, name, false, told.seen);
                    }
                    stays
                }),
                What::Interrupted | What::Resumed | What::Unreadable(_) => {}
            }
        }
        let reads = matches!(self.run.step(), Step::Read { .. });
        if reads && self.run.machine.is_up_to_date() && self.next_change().is_none() {
            let there: Vec<String> = self.server.objects.keys().map(|name| format!("o{name}")).collect();
            assert_eq!(self.mirror.keys().cloned().collect::<Vec<_>>(), there);
        }
    }
}

proptest! {
    /// Whatever fails when.
    #[test]
    fn what_is_told_is_what_happened_and_when(
        script in prop::collection::vec((0u8..24, 0u8..6, 1i64..4_000), 1..300),
    ) {
        let mut simulation = Simulation::new();
        for (what, name, passed) in script {
            simulation.deliver();
            match what {
                0..8 => {
                    let now = simulation.run.later(passed / 8).now;
                    simulation.server.change(name, now);
                }
                8 => simulation.server.oldest = simulation.server.version,
                what => simulation.step(what - 9, passed),
            }
        }
    }
}
