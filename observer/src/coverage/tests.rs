use proptest::prelude::*;

use super::*;
use crate::model::names::Namespace;

/// Not a divisor of a second, so that rounding plays its part.
const UNIT: i64 = 300;
const END: i64 = 150;

fn workload() -> WorkloadRef {
    WorkloadRef {
        namespace: Namespace::new("default").unwrap(),
        kind: "Deployment".to_owned(),
        name: "web".to_owned(),
    }
}

fn uid(pod: usize) -> PodUid {
    PodUid::new(format!("pod-{pod}")).unwrap()
}

fn watched(coverage: &Coverage) -> &Watched {
    &coverage.workloads[&workload()]
}

/// A coverage with this many pods that start at 0.
fn pods(count: usize) -> Coverage {
    let mut coverage = Coverage::new(Time(0));
    for pod in 0..count {
        coverage.start(&uid(pod), &workload(), Time(0));
    }
    coverage
}

impl Coverage {
    fn good(&mut self, pod: usize, from: i64, until: i64) {
        assert!(self.report(&uid(pod), Time(from), Time(until), true, Time(until)));
    }

    fn lossy(&mut self, pod: usize, from: i64, until: i64) {
        assert!(self.report(&uid(pod), Time(from), Time(until), false, Time(until)));
    }

    /// The sum and the frontier once everything before `now` is known.
    fn sum(&mut self, now: i64) -> (i64, i64) {
        self.advance(Time(now));
        (watched(self).covered_ms, watched(self).frontier.0)
    }
}

#[test]
fn a_time_counts_when_all_pods_were_watched() {
    let mut coverage = pods(2);
    coverage.good(0, 0, 100);
    assert_eq!(coverage.sum(100), (0, 0), "nobody has told of the other one");
    coverage.good(1, 40, 90);
    assert_eq!(coverage.sum(100), (50, 90));
    assert_eq!(watched(&coverage).interrupted, Some(Time(40)));
    coverage.good(1, 40, 200);
    coverage.good(0, 100, 300);
    assert_eq!(coverage.sum(300), (160, 200));
    // The first one is alone again.
    coverage.end(&uid(1), Time(200));
    assert_eq!(coverage.sum(300), (260, 300));
    assert!(!coverage.report(&uid(1), Time(0), Time(400), true, Time(400)), "nothing is kept of it");
    assert_eq!(coverage.of(&workload(), Time(250)).unwrap().pods, 1);
}

#[test]
fn a_pod_on_a_node_without_an_agent_stops_the_sum_for_as_long_as_it_lives() {
    let mut coverage = pods(2);
    let day = 86_400_000;
    coverage.good(0, 0, day);
    assert_eq!(coverage.sum(day), (0, 0));
    let recent = Time(day - 60_000);
    assert_eq!(coverage.behind(&workload(), recent).collect::<Vec<_>>(), [&uid(1)]);
    let stored = coverage.of(&workload(), recent).unwrap();
    assert_eq!((stored.watched_pods, stored.pods), (1, 2));
    coverage.end(&uid(1), Time(day));
    assert_eq!(coverage.sum(day + LATE_MS - 1), (0, 0), "its agent may only be late");
    coverage.good(0, 0, day + LATE_MS);
    assert_eq!(coverage.sum(day + LATE_MS), (LATE_MS, day + LATE_MS));
}

#[test]
fn a_loss_interrupts_and_no_later_word_mends_it() {
    let mut coverage = pods(1);
    coverage.good(0, 0, 100);
    coverage.lossy(0, 100, 150);
    coverage.good(0, 0, 200);
    coverage.good(0, 0, 300);
    assert_eq!(coverage.sum(300), (250, 300));
    assert_eq!(coverage.of(&workload(), Time(0)).unwrap().interrupted, Some(Timestamp::ceil(Time(150))));
    // One that is told too late is taken back.
    coverage.lossy(0, 250, 260);
    assert_eq!(coverage.sum(300), (240, 300));
    coverage.lossy(0, 250, 260);
    assert_eq!(coverage.sum(300), (240, 300), "once");
}

#[test]
fn a_time_without_pods_tells_nothing() {
    let mut coverage = pods(1);
    coverage.good(0, 0, 100);
    coverage.end(&uid(0), Time(100));
    assert_eq!(coverage.sum(100), (100, 100));
    assert_eq!(coverage.sum(100_000), (100, 100));
    coverage.start(&uid(1), &workload(), Time(100_000));
    coverage.good(1, 0, 100_500);
    assert_eq!(coverage.sum(100_500), (600, 100_500));
    assert_eq!(watched(&coverage).interrupted, None);
}

#[test]
fn nobody_has_watched_the_future() {
    let mut coverage = pods(1);
    coverage.report(&uid(0), Time(0), Time(1_000_000), true, Time(100));
    assert_eq!(coverage.sum(1_000_000), (100, 100));
}

#[test]
fn what_came_and_went_unseen_does_not_count_as_watched() {
    let mut coverage = pods(1);
    coverage.good(0, 0, 100);
    assert_eq!(coverage.sum(100), (100, 100));
    // The watch of pods broke, and another pod may have been there.
    coverage.good(0, 0, 500);
    coverage.relisted(Time(400));
    assert_eq!(coverage.sum(500), (200, 500));
    assert_eq!(watched(&coverage).interrupted, Some(Time(400)));
    // The same with a new leader.
    let stored = coverage.of(&workload(), Time(0)).unwrap();
    let mut next = Coverage::new(Time(9_000));
    next.load(&workload(), &stored);
    next.start(&uid(0), &workload(), Time(0));
    next.good(0, 0, 10_000);
    assert_eq!(next.sum(10_000), (1_000, 10_000), "{stored:?}");
}

#[test]
fn a_leader_whose_clock_is_behind_counts_nothing_twice() {
    let mut coverage = pods(1);
    coverage.good(0, 900, 3_900);
    assert_eq!(coverage.sum(3_900), (3_000, 3_900));
    let mut next = Coverage::new(Time(0));
    next.load(&workload(), &coverage.of(&workload(), Time(0)).unwrap());
    next.start(&uid(0), &workload(), Time(0));
    next.good(0, 900, 5_900);
    // Of the 5,000 ms that were covered, rounding has taken a part.
    assert_eq!(next.sum(5_900), (4_900, 5_900));
}

#[test]
fn what_is_kept_is_bounded_while_one_pod_stops_the_frontier() {
    let mut coverage = pods(1);
    for pod in 1..=10_000 {
        let from = i64::try_from(pod).unwrap() * 10;
        coverage.start(&uid(pod), &workload(), Time(from));
        for gap in 0..3 {
            coverage.good(pod, from + gap * 3, from + gap * 3 + 2);
        }
        coverage.good(pod, from + 9, from + 10);
        coverage.end(&uid(pod), Time(from + 10));
        coverage.advance(Time(from + 10));
        assert!(watched(&coverage).pods.len() <= MAX_ENDED + 2 && coverage.pods.len() <= MAX_ENDED + 2);
    }
    assert_eq!(watched(&coverage).covered_ms, 0);
}

/// What really happened to a pod, and what agents tell of it. In units.
#[derive(Clone, Debug)]
struct Life {
    from: i64,
    until: Option<i64>,
    reports: Vec<Report>,
}

#[derive(Clone, Debug)]
struct Report {
    from: i64,
    until: i64,
    is_complete: bool,
    /// When it comes in, if it comes in order.
    arrives: i64,
}

prop_compose! {
    fn life()(
        from in 0i64..60,
        length in prop::option::of(1i64..80),
        stretches in prop::collection::vec(
            (0i64..20, prop::collection::vec((1i64..30, prop::bool::weighted(0.8), 0i64..15), 1..=3), any::<bool>()),
            0..=2,
        ),
        early in 0i64..20,
    ) -> Life {
        // Agents may have watched before the pod was there.
        let mut at = (from - early).max(0);
        let mut arrives = 0;
        let mut reports = Vec::new();
        for (gap, chunks, grows) in stretches {
            at += gap;
            let mut begin = at;
            for (length, is_complete, delay) in chunks {
                let until = at + length;
                arrives = arrives.max(until + delay);
                let from = if grows && is_complete { begin } else { at };
                reports.push(Report { from, until, is_complete, arrives });
                at = until;
                if !is_complete {
                    begin = at;
                }
            }
        }
        Life { from, until: length.map(|length| from + length), reports }
    }
}

/// Sums of the time that was really covered, for each millisecond, if the end of each pod was told so many units late. Until then
/// it counts for there; who is gone cannot be missed.
fn truth(lives: &[Life], late: &[i64]) -> Vec<i64> {
    let end = usize::try_from(END * UNIT).unwrap();
    let mut alive = vec![0u8; end];
    let mut watched = vec![0u8; end];
    let mut present = vec![false; end];
    let cut = |time: i64| usize::try_from(time).unwrap().min(end);
    for (pod, life) in lives.iter().enumerate() {
        let mut good = vec![false; end];
        for report in &life.reports {
            if report.is_complete {
                good[cut(report.from * UNIT)..cut(report.until * UNIT)].fill(true);
            }
        }
        for report in life.reports.iter().filter(|report| !report.is_complete) {
            good[cut(report.from * UNIT)..cut(report.until * UNIT)].fill(false);
        }
        for at in cut(life.from * UNIT)..cut(life.until.unwrap_or(END) * UNIT) {
            alive[at] += 1;
            watched[at] += u8::from(good[at]);
        }
        let told = life.until.map_or(END, |until| until + late.get(pod).unwrap_or(&0));
        present[cut(life.from * UNIT)..cut(told * UNIT)].fill(true);
    }
    let mut sums = vec![0];
    for at in 0..end {
        let counts = present[at] && watched[at] == alive[at];
        sums.push(sums[at] + i64::from(counts));
    }
    sums
}

fn sum_of(truth: &[i64], time: Time) -> i64 {
    truth[usize::try_from(time.0).unwrap().min(truth.len() - 1)]
}

proptest! {
    #[test]
    fn in_order_it_is_exactly_what_there_was(
        lives in prop::collection::vec(life(), 1..4),
        advances in prop::collection::vec(any::<bool>(), END as usize),
    ) {
        let truth = truth(&lives, &[]);
        let mut coverage = Coverage::new(Time(0));
        for now in 0..END {
            for (pod, life) in lives.iter().enumerate() {
                if life.from == now {
                    coverage.start(&uid(pod), &workload(), Time(now * UNIT));
                }
                for report in life.reports.iter().filter(|report| report.arrives == now) {
                    let (from, until) = (Time(report.from * UNIT), Time(report.until * UNIT));
                    coverage.report(&uid(pod), from, until, report.is_complete, Time(now * UNIT));
                }
                if life.until == Some(now) {
                    coverage.end(&uid(pod), Time(now * UNIT));
                }
            }
            if advances[now as usize] || now == END - 1 {
                coverage.advance(Time(now * UNIT));
                if let Some(watched) = coverage.workloads.get(&workload()) {
                    prop_assert_eq!(watched.covered_ms, sum_of(&truth, watched.frontier));
                }
            }
        }
        // Nothing but what a pod has not been reported on stops it.
        let now = END - 1;
        let missing = lives.iter().filter(|life| life.from <= now).filter_map(|life| {
            let told = life.reports.iter().filter(|report| report.arrives <= now && report.arrives >= life.from);
            let told = told.map(|report| report.until).max().unwrap_or(0).max(life.from);
            let is_over = life.until.is_some_and(|until| until <= now && told >= until);
            (!is_over).then_some(told)
        });
        let has_pods = !watched(&coverage).pods.is_empty();
        let expected = missing.min();
        prop_assert_eq!(has_pods, expected.is_some());
        if let Some(expected) = expected {
            prop_assert_eq!(watched(&coverage).frontier, Time(expected.min(now) * UNIT));
        }
    }

    #[test]
    fn it_is_never_more_than_there_was(
        lives in prop::collection::vec(life(), 1..4),
        // What is told when: of which pod, which of its reports, and how late its beginning and end.
        told in prop::collection::vec((0usize..4, 0usize..6, any::<bool>()), END as usize),
        late in prop::collection::vec((0i64..30, 0i64..30), 4),
    ) {
        let told_after = |(life, late): (&Life, &(i64, i64))| {
            let until = life.until.unwrap_or(END);
            (life.from + late.0).max(until + late.1) - until
        };
        let ends: Vec<i64> = lives.iter().zip(&late).map(told_after).collect();
        let truth = truth(&lives, &ends);
        let mut coverage = Coverage::new(Time(0));
        for now in 0..END {
            for (pod, life) in lives.iter().enumerate() {
                let begin = life.from + late[pod].0;
                if begin == now {
                    coverage.start(&uid(pod), &workload(), Time(life.from * UNIT));
                }
                if let Some(until) = life.until && begin.max(until + late[pod].1) == now {
                    coverage.end(&uid(pod), Time(until * UNIT));
                }
            }
            let (pod, report, advance) = told[now as usize];
            // Again, out of order, or never.
            if let Some(report) = lives.get(pod).and_then(|life| life.reports.get(report))
                && report.until <= now
            {
                let (from, until) = (Time(report.from * UNIT), Time(report.until * UNIT));
                coverage.report(&uid(pod), from, until, report.is_complete, Time(now * UNIT));
            }
            if advance {
                coverage.advance(Time(now * UNIT));
            }
            if let Some(watched) = coverage.workloads.get(&workload()) {
                // Of pods that nobody has told of yet, nothing can be known.
                let unknown = lives.iter().enumerate().filter(|(pod, life)| life.from + late[*pod].0 > now);
                if unknown.count() == 0 {
                    prop_assert!(watched.covered_ms <= sum_of(&truth, watched.frontier), "{watched:?}");
                }
            }
        }
    }

    #[test]
    fn after_restarts_it_is_not_more_than_there_was(
        lives in prop::collection::vec(life(), 1..4),
        restarts in prop::collection::vec(0..END, 1..4),
        reports_again: bool,
    ) {
        let truth = truth(&lives, &[]);
        let mut coverage = Coverage::new(Time(0));
        for now in 0..END {
            if restarts.contains(&now) {
                let stored = coverage.of(&workload(), Time(0));
                coverage = Coverage::new(Time(now * UNIT));
                if let Some(stored) = stored {
                    coverage.load(&workload(), &stored);
                }
                for (pod, life) in lives.iter().enumerate() {
                    if life.from < now && life.until.is_none_or(|until| until > now) {
                        coverage.start(&uid(pod), &workload(), Time(life.from * UNIT));
                    }
                }
            }
            for (pod, life) in lives.iter().enumerate() {
                if life.from == now {
                    coverage.start(&uid(pod), &workload(), Time(now * UNIT));
                }
                for report in &life.reports {
                    if report.arrives == now || (reports_again && restarts.contains(&now) && report.arrives < now) {
                        let (from, until) = (Time(report.from * UNIT), Time(report.until * UNIT));
                        coverage.report(&uid(pod), from, until, report.is_complete, Time(now * UNIT));
                    }
                }
                if life.until == Some(now) {
                    coverage.end(&uid(pod), Time(now * UNIT));
                }
            }
            coverage.advance(Time(now * UNIT));
            if let Some(watched) = coverage.workloads.get(&workload()) {
                prop_assert!(watched.covered_ms <= sum_of(&truth, watched.frontier), "{watched:?}");
            }
        }
    }

    #[test]
    fn stretches_are_what_was_added_and_not_cut(
        steps in prop::collection::vec((any::<bool>(), 0i64..30, 1i64..10), 0..12),
    ) {
        let (mut stretches, mut model) = (Vec::new(), [false; 40]);
        for (adds, from, length) in steps {
            let range = from as usize..(from + length) as usize;
            let stretch = (Time(from), Time(from + length));
            if adds {
                add(&mut stretches, stretch);
            } else {
                cut(&mut stretches, stretch);
            }
            model[range].fill(adds);
            let is_in = |at: i64| stretches.iter().any(|(from, until)| *from <= Time(at) && Time(at) < *until);
            // `cut` forgets the first of too many.
            let forgotten = stretches.len() >= MAX_STRETCHES;
            for at in 0..40 {
                prop_assert!(is_in(at) == model[at as usize] || forgotten && !is_in(at), "{at} {stretches:?}");
            }
            if forgotten {
                break;
            }
            prop_assert!(stretches.windows(2).all(|pair| pair[0].1 < pair[1].0), "{stretches:?}");
        }
    }
}
