use proptest::prelude::*;

use super::*;
use crate::clock::Exchange;
use crate::fixture::host;
use crate::model::time::Time;
use crate::wire::{Batch, MAX_EDGES};

const MS: u64 = 1_000_000;

/// The aggregator's clock is 1,000,000 ms ahead.
fn clock() -> Offset {
    let mut clock = Offset::default();
    let at = Time(1_000_000);
    clock.measure(&Exchange { asked_ns: 0, received: at, replied: at, answered_ns: 0 });
    clock
}

fn key(netns: u64, port: u16) -> EdgeKey {
    let addr = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    EdgeKey { netns, addr, uid: 5, port, reserved: 0 }
}

/// An edge as a node would know it.
#[derive(Clone, Debug)]
struct Known {
    key: EdgeKey,
    first_ns: u64,
    last_ns: u64,
    connects: u64,
    hosts: BTreeSet<Host>,
    names: BTreeSet<Host>,
}

impl Known {
    fn new(netns: u64, port: u16) -> Self {
        let (hosts, names) = (BTreeSet::new(), BTreeSet::new());
        Self { key: key(netns, port), first_ns: 10 * MS, last_ns: 10 * MS, connects: 1, hosts, names }
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            key: self.key,
            first_ns: self.first_ns,
            last_ns: self.last_ns,
            connects: self.connects,
            hosts: &self.hosts,
            names: &self.names,
            host_unknown: false,
            unnamed: false,
        }
    }
}

fn whose(netns: u64) -> Whose {
    let pod = Some(PodUid::new(format!("pod-{netns}")).unwrap());
    Whose { pod, addresses: vec!["10.1.0.1".parse().unwrap()] }
}

fn fill(outbox: &mut Outbox, known: &[Known]) {
    outbox.fill(known.iter().map(Known::seen), whose, &clock());
}

/// Sequence, and what each source has: pod, ports, how many times watched.
type Brief = (u64, Vec<(String, Vec<u32>, usize)>);

fn brief(outbox: &Outbox) -> Vec<Brief> {
    let source = |source: &proto::Source| {
        let ports = source.edges.iter().map(|edge| edge.port).collect();
        (source.pod_uid.clone(), ports, source.coverage.len())
    };
    outbox.under_way().map(|batch| (batch.sequence, batch.sources.iter().map(source).collect())).collect()
}

#[test]
fn only_what_differs_from_what_was_told_is_told() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    outbox.fill([Known::new(1, 80).seen()], whose, &Offset::default());
    assert!(brief(&outbox).is_empty(), "the clock was not measured");

    let mut known = vec![Known::new(2, 81), Known::new(1, 80), Known::new(2, 80)];
    fill(&mut outbox, &known);
    let first = (1, vec![("pod-1".to_owned(), vec![80], 0), ("pod-2".to_owned(), vec![80, 81], 0)]);
    assert_eq!(brief(&outbox), std::slice::from_ref(&first));
    fill(&mut outbox, &known);
    assert_eq!(brief(&outbox), std::slice::from_ref(&first), "told once, acknowledged or not");

    known[0].hosts.insert(host("a"));
    known[1].connects += 10;
    known[1].last_ns += REFRESH_NS - 1;
    fill(&mut outbox, &known);
    assert_eq!(brief(&outbox), [first, (2, vec![("pod-2".to_owned(), vec![81], 0)])]);
    assert!(outbox.acknowledged(1));
    assert!(!outbox.acknowledged(1));
    assert!(outbox.acknowledged(2));
    known[1].last_ns += 1;
    fill(&mut outbox, &known);
    assert_eq!(brief(&outbox), [(3, vec![("pod-1".to_owned(), vec![80], 0)])]);
    let refreshed = &outbox.under_way().next().unwrap().sources[0].edges[0];
    assert_eq!((refreshed.connects, refreshed.first), (10, 1_000_010), "any time since it was told last");
}

#[test]
fn times_are_the_aggregator_s() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    fill(&mut outbox, &[Known { last_ns: 15 * MS, connects: 3, ..Known::new(1, 80) }]);
    let batch = Batch::try_from(outbox.under_way().next().unwrap().clone()).unwrap();
    let edge = &batch.sources[0].edges[0];
    assert!(edge.first.earliest() <= Time(1_000_010) && Time(1_000_010) <= edge.first.latest());
    assert!(edge.last.earliest() <= Time(1_000_015) && Time(1_000_015) <= edge.last.latest());
    assert!(edge.last.latest().since(edge.last.earliest()) <= 10, "{edge:?}");
    assert_eq!(batch.sources[0].pod, whose(1).pod);
}

#[test]
fn while_nobody_acknowledges_no_more_than_a_few_batches_are_made_and_nothing_is_lost() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    let count = (MAX_UNDER_WAY + 1) * MAX_EDGES;
    let known: Vec<Known> = (0..count).map(|n| Known::new(n as u64 / 50_000, (n % 50_000) as u16)).collect();
    fill(&mut outbox, &known);
    assert_eq!(outbox.under_way().count(), MAX_UNDER_WAY);
    let mut told = HashSet::new();
    while let Some(batch) = outbox.after(0).cloned() {
        let read = Batch::try_from(batch).unwrap();
        told.extend(
            read.sources.iter().flat_map(|source| source.edges.iter().map(|e| (source.netns, e.port))),
        );
        outbox.acknowledged(read.sequence);
        fill(&mut outbox, &known);
    }
    assert_eq!(told.len(), count);
}

fn watched(from: u64, until: u64, loss: &[&str]) -> Watched {
    Watched {
        pod: PodUid::new("pod-1").unwrap(),
        from_ns: from * MS,
        until_ns: until * MS,
        losses: loss.iter().map(|&cause| cause.to_owned()).collect(),
    }
}

#[test]
fn times_that_meet_are_one_and_a_gap_or_a_loss_is_never_covered() {
    for (times, expected) in [
        (vec![watched(10, 20, &[]), watched(20, 30, &[])], vec![(10, 30, 0)]),
        (vec![watched(10, 20, &[]), watched(10, 30, &[])], vec![(10, 30, 0)]),
        (vec![watched(10, 20, &[]), watched(25, 30, &[])], vec![(10, 20, 0), (25, 30, 0)]),
        (vec![watched(10, 20, &[]), watched(20, 30, &["edgesFull"])], vec![(10, 20, 0), (20, 30, 1)]),
        (vec![watched(10, 20, &["edgesFull"]), watched(20, 30, &[])], vec![(10, 20, 1), (20, 30, 0)]),
    ] {
        let mut outbox = Outbox::new(Epoch([1; 16]), 0);
        times.into_iter().for_each(|time| outbox.watched(time));
        fill(&mut outbox, &[]);
        fill(&mut outbox, &[]);
        let batches: Vec<_> = outbox.under_way().collect();
        let [batch] = &batches[..] else { panic!("{batches:?}") };
        let [source] = &batch.sources[..] else { panic!("{batch:?}") };
        assert_eq!((source.netns, source.pod_uid.as_str()), (0, "pod-1"));
        // The clock is known to 2 ms.
        let error = |coverage: &proto::Coverage| if coverage.losses.is_empty() { 2 } else { -2 };
        let found: Vec<_> = source
            .coverage
            .iter()
            .map(|time| {
                (time.from - 1_000_000 - error(time), time.until - 1_000_000 + error(time), time.losses.len())
            })
            .collect();
        assert_eq!(found, expected);
        Batch::try_from((*batch).clone()).unwrap();
    }
}

#[test]
fn times_that_wait_are_bounded_and_what_is_given_up_is_not_covered() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    outbox.watched(watched(0, 1000, &[]));
    for at in 0..100 {
        outbox.watched(watched(1000 + at * 20, 1010 + at * 20, &["edgesFull"]));
        outbox.watched(watched(1010 + at * 20, 1020 + at * 20, &[]));
    }
    for pod in 0..MAX_PODS {
        outbox.watched(Watched { pod: PodUid::new(format!("other-{pod}")).unwrap(), ..watched(0, 1, &[]) });
    }
    assert_eq!(outbox.dropped(), 1);
    fill(&mut outbox, &[]);
    let mut coverage = Vec::new();
    while let Some(batch) = outbox.after(0).cloned() {
        let batch = Batch::try_from(batch).unwrap();
        let of_it = batch.sources.iter().filter(|source| source.pod.as_ref().unwrap().as_str() == "pod-1");
        coverage.extend(of_it.flat_map(|source| source.coverage.clone()));
        outbox.acknowledged(batch.sequence);
        fill(&mut outbox, &[]);
    }
    assert_eq!(coverage[0].until, Time(1_001_000 - 2));
    let clean: i64 = coverage[1..]
        .iter()
        .filter(|time| time.losses.is_empty())
        .map(|time| time.until.since(time.from))
        .sum();
    assert!(clean <= 100 * 10 && coverage.len() <= crate::wire::MAX_COVERAGE, "{coverage:?}");
    assert!(coverage.windows(2).all(|two| two[1].from.since(two[0].until).abs() <= 4), "{coverage:?}");
}

#[test]
fn what_happened_long_ago_does_not_blur_what_happens_now() {
    let day = 86_400_000 * MS;
    let now = |known: Known| Known { first_ns: day, last_ns: day, ..known };
    let mut clock = Offset::default();
    let at = Time(1_000_000 + 86_400_000);
    clock.measure(&Exchange { asked_ns: day, received: at, replied: at, answered_ns: day });
    // What the clock's drift makes of a day is some seconds.
    let known = [Known::new(1, 80), now(Known::new(1, 81)), now(Known::new(2, 80))];
    for (known, errors) in [(&known[..], &[2, 8_641][..]), (&known[1..], &[2])] {
        let mut outbox = Outbox::new(Epoch([1; 16]), 0);
        outbox.watched(watched(0, 86_400_000, &[]));
        outbox.fill(known.iter().map(Known::seen), whose, &clock);
        assert_eq!(outbox.under_way().map(|batch| batch.clock_error_ms).collect::<Vec<_>>(), errors);
        let last = outbox.under_way().last().unwrap().sources.last().unwrap();
        assert_eq!(last.coverage[0].from, 1_000_000 + 8_642, "it is not certain that it was earlier");
    }
}

#[test]
fn of_what_an_agent_before_this_one_has_told_only_the_last_use_is_told_again() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 12 * MS);
    let known = [
        Known { last_ns: 20 * MS, connects: 5, ..Known::new(1, 80) },
        Known { first_ns: 13 * MS, last_ns: 20 * MS, connects: 5, ..Known::new(1, 81) },
    ];
    fill(&mut outbox, &known);
    let edges = &outbox.under_way().next().unwrap().sources[0].edges;
    assert_eq!(
        edges.iter().map(|edge| (edge.first, edge.last)).collect::<Vec<_>>(),
        [(1_000_020, 1_000_020), (1_000_013, 1_000_020)]
    );
}

#[test]
fn that_a_time_was_watched_is_told_after_all_that_was_seen_in_it() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    let count = MAX_UNDER_WAY * MAX_EDGES + 1;
    let known: Vec<Known> = (0..count).map(|port| Known::new(1, port as u16)).collect();
    outbox.watched(watched(0, 10, &[]));
    assert!(!outbox.fill(known.iter().map(Known::seen), whose, &clock()));
    let is_told = |outbox: &Outbox| {
        outbox.under_way().flat_map(|batch| &batch.sources).any(|source| !source.coverage.is_empty())
    };
    assert!(!is_told(&outbox));
    outbox.acknowledged(1);
    assert!(outbox.fill(known.iter().map(Known::seen), whose, &clock()));
    let last = outbox.under_way().last().unwrap();
    assert_eq!((last.sources[0].edges.len(), last.sources[1].coverage.len()), (1, 1));
}

#[test]
fn an_edge_is_durable_when_all_of_its_namespace_is_acknowledged() {
    let mut outbox = Outbox::new(Epoch([1; 16]), 0);
    let mut known = [Known::new(1, 80), Known::new(2, 80)];
    let durable = |outbox: &Outbox, known: &[Known]| -> Vec<u64> {
        let is_durable = outbox.durable();
        known.iter().filter(|known| is_durable(&known.seen())).map(|known| known.key.netns).collect()
    };
    assert!(durable(&outbox, &known).is_empty());
    fill(&mut outbox, &known);
    assert!(durable(&outbox, &known).is_empty(), "under way");
    outbox.acknowledged(1);
    assert_eq!(durable(&outbox, &known), [1, 2]);
    // Used once more, though not so much later that it would be told again; unless it is the last time.
    known.iter_mut().for_each(|known| known.connects += 1);
    known.iter_mut().for_each(|known| known.last_ns += MS);
    fill(&mut outbox, &known);
    assert!(brief(&outbox).is_empty());
    outbox.close([1]);
    assert_eq!(durable(&outbox, &known), [2]);
    fill(&mut outbox, &known);
    outbox.acknowledged(2);
    assert_eq!(durable(&outbox, &known), [1, 2]);
    outbox.forget(&[known[0].key]);
    fill(&mut outbox, &known);
    assert_eq!(brief(&outbox).len(), 1, "it would be new again");
}

proptest! {
    /// Whatever is lost on the way, in the end all is known there.
    #[test]
    fn in_the_end_all_is_told(steps in prop::collection::vec((0u8..4, 0u16..6, 0u64..3), 1..60)) {
        let mut outbox = Outbox::new(Epoch([1; 16]), 0);
        let mut known: HashMap<(u64, u16), Known> = HashMap::new();
        let mut there: HashMap<(u64, u16), BTreeSet<String>> = HashMap::new();
        let mut take = |outbox: &mut Outbox, acknowledge: bool| {
            for batch in outbox.under_way().cloned().collect::<Vec<_>>() {
                let sequence = batch.sequence;
                for source in Batch::try_from(batch).unwrap().sources {
                    for edge in source.edges {
                        let hosts = edge.hosts.into_iter().map(String::from);
                        there.entry((source.netns, edge.port)).or_default().extend(hosts);
                    }
                }
                if acknowledge {
                    outbox.acknowledged(sequence);
                }
            }
        };
        for (what, port, netns) in steps {
            let edge = known.entry((netns, port)).or_insert_with(|| Known::new(netns, port));
            match what {
                0 => drop(edge.hosts.insert(host(&format!("h{}", edge.hosts.len())))),
                1 => edge.connects += 1,
                2 => take(&mut outbox, false),
                _ => take(&mut outbox, true),
            }
            outbox.fill(known.values().map(Known::seen), whose, &clock());
        }
        take(&mut outbox, true);
        outbox.fill(known.values().map(Known::seen), whose, &clock());
        take(&mut outbox, true);
        for (at, edge) in &known {
            let hosts: BTreeSet<String> = edge.hosts.iter().cloned().map(String::from).collect();
            prop_assert_eq!(there.get(at), Some(&hosts));
        }
    }
}
