use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;

use super::*;
use crate::attribute::Uses;
use crate::model::dependencies::{EvidenceKind, MAX_PORTS, OTHER_PORTS, Port, SeenBy};
use crate::model::graph::{self, DirectCall, Evidence, Pods, PortUse, UnresolvedReason, WorkloadNode};
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, ObjectName};
use crate::model::stamp::Seconds;
use crate::model::time::Span;

const NOW: Time = Time(1_700_000_000_000);
const MINUTE: i64 = 60_000;

fn workload(name: &str) -> WorkloadRef {
    WorkloadRef {
        namespace: Namespace::new("default").unwrap(),
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
    }
}

fn host(name: &str) -> Host {
    Host::new(name).unwrap()
}

fn port_use(evidence: Evidence) -> PortUse {
    PortUse {
        protocol: PortProtocol::Http,
        seen: BTreeSet::from([evidence]),
        address_only: false,
        connects: 1,
        host_unknown: false,
        existing: false,
        unknown_hosts: BTreeSet::new(),
    }
}

/// `web` calls these hosts on these ports.
fn node(calls: &[(&str, u16)]) -> WorkloadNode {
    let mut dependencies: BTreeMap<&str, graph::Dependency> = BTreeMap::new();
    for (name, port) in calls {
        let dependency = dependencies.entry(name).or_insert_with(|| graph::Dependency {
            host: host(name),
            namespace: Namespace::new("default").unwrap(),
            ports: BTreeMap::new(),
        });
        dependency.ports.insert(*port, port_use(Evidence::Host(host(name))));
    }
    WorkloadNode {
        losses: std::collections::BTreeSet::new(),
        workload: workload("web"),
        pods: Pods::default(),
        dependencies: dependencies.into_values().collect(),
        direct: Vec::new(),
    }
}

fn uses(node: &WorkloadNode) -> Uses<'_> {
    let ports = node.dependencies.iter().flat_map(|dependency| {
        let (host, namespace) = (&dependency.host, &dependency.namespace);
        dependency.ports.iter().map(move |(port, port_use)| ((host, namespace, *port), port_use.clone()))
    });
    ports.collect()
}

fn note_node(
    record: &mut Record,
    node: &WorkloadNode,
    unresolved: &[graph::Unresolved],
    seen: &Seen<'_>,
    most: usize,
) -> Change {
    super::note(record, Account { uses: &uses(node), direct: &node.direct, unresolved }, seen, most)
}

impl Ledger {
    fn merge_node(
        &mut self,
        node: &WorkloadNode,
        unresolved: &[graph::Unresolved],
        seen: &Seen<'_>,
        now: Time,
    ) -> Merged {
        let account = Account { uses: &uses(node), direct: &node.direct, unresolved };
        self.merge(&node.workload, account, seen, now)
    }
}

fn at(time: Time) -> Seen<'static> {
    Seen { first: Span::at(time), last: Span::at(time), by: None }
}

fn ledger() -> Ledger {
    Ledger::new(Settings { retention_ms: 30 * 86_400_000, max_destinations: 5 })
}

fn written(ledger: &mut Ledger, now: Time) -> Vec<Write> {
    let writes = ledger.due(now, 100);
    for write in &writes {
        ledger.done(&write.workload, Outcome::Written("1".to_owned()), now);
    }
    writes
}

fn put(write: &Write) -> &Record {
    match &write.what {
        What::Put(record) => record,
        What::Delete => panic!("{write:?}"),
    }
}

fn hosts(record: &Record) -> Vec<&str> {
    record.dependencies.iter().map(|dependency| dependency.host.as_str()).collect()
}

#[test]
fn what_is_new_is_written_at_once_and_durable_when_that_is_done() {
    let mut ledger = ledger();
    let first = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    assert_eq!(first.change, Change::New);
    let first = first.wait_for.unwrap();
    let writes = ledger.due(NOW, 100);
    let [write] = &writes[..] else { panic!("{writes:?}") };
    assert_eq!((write.resource_version.as_ref(), hosts(put(write))), (None, vec!["a"]));

    // Told again while it is written: nothing new, but not to be acknowledged yet either.
    let again = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    assert_eq!(again, Merged { change: Change::Nothing, wait_for: Some(first) });
    let second = ledger.merge_node(&node(&[("b", 80)]), &[], &at(NOW), NOW).wait_for.unwrap();
    assert_eq!(ledger.due(NOW, 100), [], "one write of a workload at a time");
    ledger.done(&write.workload, Outcome::Written("7".to_owned()), NOW);
    assert!(ledger.is_durable(&workload("web"), first));
    assert!(!ledger.is_durable(&workload("web"), second), "it came when the write had begun");

    let writes = ledger.due(NOW, 100);
    assert_eq!(writes[0].resource_version.as_deref(), Some("7"));
    assert_eq!(hosts(put(&writes[0])), ["a", "b"]);
    ledger.done(&writes[0].workload, Outcome::Written("8".to_owned()), NOW);
    assert!(ledger.is_durable(&workload("web"), second));
    assert_eq!((ledger.next_due(), ledger.in_flight(), ledger.not_durable()), (None, 0, 0));
    let again = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    assert_eq!(again, Merged::default());
}

#[test]
fn what_is_only_more_recent_is_written_once_an_hour_and_not_all_at_once() {
    let mut ledger = ledger();
    let names: Vec<WorkloadRef> = (0..200).map(|n| workload(&format!("web-{n}"))).collect();
    for name in &names {
        let mut node = node(&[("a", 80), ("b", 80)]);
        node.workload = name.clone();
        ledger.merge_node(&node, &[], &at(NOW), NOW);
    }
    while !written(&mut ledger, NOW).is_empty() {}
    let mut per_minute = Vec::new();
    for minute in 1..=240 {
        let now = NOW.plus(minute * MINUTE);
        for name in &names {
            let mut node = node(&[("a", 80)]);
            node.workload = name.clone();
            let merged = ledger.merge_node(&node, &[], &at(now), now);
            assert_eq!(merged, Merged { change: Change::Refreshed, wait_for: None });
            ledger.cover(
                name,
                Coverage { covered: Seconds(minute.unsigned_abs()), ..Coverage::default() },
                now,
            );
        }
        per_minute.push(written(&mut ledger, now).len());
    }
    let total: usize = per_minute.iter().sum();
    assert!((3 * 200..=4 * 200).contains(&total), "{total}");
    assert!(per_minute.iter().all(|writes| *writes <= 20), "{per_minute:?}");
}

#[test]
fn a_failed_write_is_tried_again_later_and_nothing_is_lost() {
    let mut ledger = ledger();
    let version = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW).wait_for.unwrap();
    let (mut now, mut tries) = (NOW, Vec::new());
    for _ in 0..12 {
        let writes = ledger.due(now, 100);
        ledger.done(&writes[0].workload, Outcome::Failed, now);
        // What comes meanwhile makes no more of them.
        ledger.merge_node(&node(&[("b", 80)]), &[], &at(NOW), now);
        ledger.merge_node(&node(&[("b", 80)]), &[], &at(NOW.plus(MINUTE)), now);
        let next = ledger.next_due().unwrap();
        tries.push(next.since(now));
        now = next;
    }
    assert!(
        tries[0] <= 200 && tries[11] > 10_000 && tries.iter().all(|wait| *wait <= MAX_BACKOFF_MS),
        "{tries:?}"
    );
    assert!(!ledger.is_durable(&workload("web"), version));
    assert_eq!(hosts(put(&written(&mut ledger, now)[0])), ["a", "b"]);
    assert_eq!(ledger.not_durable(), 0);
}

#[test]
fn what_another_leader_wrote_is_not_forgotten() {
    let mut ledger = ledger();
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    let mut theirs = Record::default();
    note_node(&mut theirs, &node(&[("b", 80)]), &[], &at(NOW), 5);
    let write = ledger.due(NOW, 1).remove(0);
    ledger.done(&write.workload, Outcome::Conflict(Some((Box::new(theirs), "9".to_owned()))), NOW);
    let write = ledger.due(NOW, 1).remove(0);
    assert_eq!(write.resource_version.as_deref(), Some("9"));
    assert_eq!(hosts(put(&write)), ["a", "b"]);
    // Somebody has removed it meanwhile.
    ledger.done(&write.workload, Outcome::Conflict(None), NOW);
    let write = ledger.due(NOW, 1).remove(0);
    assert_eq!((write.resource_version.as_ref(), hosts(put(&write))), (None, vec!["a", "b"]));
}

#[test]
fn what_the_api_server_does_not_take_holds_nobody_up() {
    let mut ledger = ledger();
    let version = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW).wait_for.unwrap();
    let write = ledger.due(NOW, 1).remove(0);
    ledger.done(&write.workload, Outcome::Refused, NOW);
    assert!(ledger.is_durable(&workload("web"), version));
    assert_eq!(ledger.not_durable(), 1, "it is counted");
    assert_eq!(ledger.next_due(), Some(NOW.plus(REFUSED_MS)));
    let write = ledger.due(NOW.plus(REFUSED_MS), 1).remove(0);
    ledger.done(&write.workload, Outcome::NoNamespace, NOW);
    assert!(ledger.record(&workload("web")).is_none() && ledger.is_durable(&workload("web"), version));
    assert_eq!((ledger.in_flight(), ledger.next_due()), (0, None));
}

#[test]
fn a_workload_that_is_gone_keeps_its_record_for_the_retention() {
    let mut ledger = ledger();
    let web = workload("web");
    let day = 24 * 60 * MINUTE;
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    written(&mut ledger, NOW);
    ledger.set_present(&web, false, NOW);
    ledger.retire(NOW.plus(30 * day));
    let writes = written(&mut ledger, NOW.plus(30 * day));
    assert_eq!(
        put(&writes[0]).gone,
        Some(Timestamp::floor(NOW)),
        "it is written once, to outlive this program"
    );
    assert_eq!(writes.len(), 1);

    let over = NOW.plus(30 * day + 1);
    ledger.retire(over);
    let write = ledger.due(over, 1).remove(0);
    assert_eq!((&write.what, write.resource_version.as_deref()), (&What::Delete, Some("1")));
    // It is back while its record is being removed.
    ledger.merge_node(&node(&[("b", 80)]), &[], &at(over), over);
    ledger.set_present(&web, true, over);
    ledger.done(&web, Outcome::Deleted, over);
    let write = ledger.due(over, 1).remove(0);
    assert_eq!((hosts(put(&write)), put(&write).gone), (vec!["a", "b"], None));
    ledger.done(&web, Outcome::Written("2".to_owned()), over);

    ledger.set_present(&web, false, over);
    let over = over.plus(31 * day);
    ledger.retire(over);
    let write = ledger.due(over, 1).remove(0);
    ledger.done(&write.workload, Outcome::Deleted, over);
    assert!(ledger.record(&web).is_none() && ledger.next_due().is_none());
}

#[test]
fn a_workload_that_calls_too_many_services_is_broad_and_grows_no_more() {
    let mut ledger = ledger();
    for n in 0..5 {
        let merged = ledger.merge_node(&node(&[(&format!("h{n}"), 80)]), &[], &at(NOW), NOW);
        assert_eq!(merged.change, Change::New);
    }
    assert_eq!(ledger.record(&workload("web")).unwrap().broad, None);
    assert_eq!(ledger.merge_node(&node(&[("more", 80)]), &[], &at(NOW), NOW).change, Change::New);
    let merged = ledger.merge_node(&node(&[("even-more", 80)]), &[], &at(NOW), NOW);
    assert_eq!(merged.change, Change::Nothing, "that it is broad was new only once");
    let record = ledger.record(&workload("web")).unwrap();
    assert_eq!((record.broad, record.dependencies.len(), record.hosts), (Some(Timestamp::floor(NOW)), 5, 5));
}

#[test]
fn whatever_is_told_a_record_stays_bounded() {
    let mut record = Record::default();
    for n in 0..5_000u16 {
        let mut node = node(&[(&format!("h{n}"), n), ("same", n)]);
        node.dependencies[0].ports.get_mut(&n).unwrap().unknown_hosts.insert(host(&format!("x{n}")));
        node.direct.push(DirectCall {
            workload: workload(&format!("w{n}")),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: n,
            connects: 1,
            host_unknown: true,
            unknown_hosts: BTreeSet::new(),
        });
        let unresolved = graph::Unresolved {
            workload: workload("web"),
            address: IpAddr::V4(Ipv4Addr::from(u32::from(n))),
            port: n,
            hosts: BTreeSet::new(),
            host_unknown: true,
            reason: UnresolvedReason::UnknownAddress,
            connects: 1,
        };
        note_node(&mut record, &node, &[unresolved], &at(NOW), MAX_DESTINATIONS);
        record.add_loss(&format!("cause{n}"), Timestamp::floor(NOW));
    }
    let bytes = serde_json::to_vec(&record).unwrap().len();
    assert!(bytes < 1 << 20, "{bytes}");
    let now = Some(Timestamp::floor(NOW));
    assert_eq!(
        (record.broad, record.more_unknown_hosts, record.more_direct, record.more_unresolved),
        (now, now, now, now)
    );
    assert_eq!(record.losses.len(), 32);
    assert!(record.losses.iter().any(|loss| loss.cause == "other"));
    let same = record.dependencies.iter().find(|d| d.host.as_str() == "same").unwrap();
    let numbers: Vec<u16> = same.ports.iter().map(|port| port.port).collect();
    assert_eq!(numbers, [OTHER_PORTS, 1, 2, 3, 4, 5, 6, 7, 8], "port 0 is one of the others");
    assert_eq!(same.ports[0].protocol, PortProtocol::Unknown);
    assert_eq!(serde_json::from_slice::<Record>(&serde_json::to_vec(&record).unwrap()).unwrap(), record);
}

#[test]
fn time_out_of_use_counts_covered_time_only() {
    let mut ledger = ledger();
    let web = workload("web");
    let cover = |hours: u64, through: Time| Coverage {
        covered: Seconds(hours * 3600),
        through: Some(Timestamp::ceil(through)),
        ..Coverage::default()
    };
    let unused = |ledger: &Ledger| {
        let record = ledger.record(&web).unwrap();
        let port = record.dependencies[0].ports[0];
        record.coverage.covered.0.saturating_sub(port.covered_when_last_seen.0)
    };
    // Seen before anything is known of the coverage, and before what is then counted.
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    ledger.cover(&web, cover(100, NOW.plus(-60 * MINUTE)), NOW);
    assert_eq!(unused(&ledger), 0);
    ledger.cover(&web, cover(103, NOW.plus(120 * MINUTE)), NOW);
    assert_eq!(unused(&ledger), 2 * 3600 - 2, "the hour before it was seen does not count");
    // An old report that comes again says nothing of the time since then.
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    assert_eq!(unused(&ledger), 2 * 3600 - 2);
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW.plus(150 * MINUTE)), NOW);
    assert_eq!(unused(&ledger), 0);

    // Of two leaders, one knows of more covered time; neither knows that it was out of use for longer than an hour.
    let mut ours = Record { coverage: cover(10, NOW), ..Record::default() };
    note_node(&mut ours, &node(&[("a", 80)]), &[], &at(NOW), 5);
    ours.coverage = cover(11, NOW.plus(60 * MINUTE));
    let mut theirs = Record { coverage: cover(50, NOW), ..Record::default() };
    note_node(&mut theirs, &node(&[("a", 80)]), &[], &at(NOW), 5);
    theirs.coverage = cover(55, NOW.plus(300 * MINUTE));
    for (mut one, other) in [(ours.clone(), &theirs), (theirs.clone(), &ours)] {
        one.merge(other, 5);
        let port = one.dependencies[0].ports[0];
        assert_eq!((one.coverage.covered.0, port.covered_when_last_seen.0), (55 * 3600, 54 * 3600 + 2));
    }
}

#[test]
fn the_pod_that_was_seen_first_is_named() {
    let by = |pod: &str| SeenBy { pod: ObjectName::new(pod).unwrap(), node: ObjectName::new("n").unwrap() };
    let (one, other) = (by("one"), by("other"));
    let mut record = Record::default();
    note_node(&mut record, &node(&[("a", 80)]), &[], &Seen { by: Some(&other), ..at(NOW) }, 5);
    note_node(&mut record, &node(&[("a", 81)]), &[], &Seen { by: Some(&one), ..at(NOW.plus(MINUTE)) }, 5);
    assert_eq!(record.dependencies[0].first_by.as_ref(), Some(&other));
    note_node(&mut record, &node(&[("a", 81)]), &[], &Seen { by: Some(&one), ..at(NOW.plus(-MINUTE)) }, 5);
    assert_eq!(record.dependencies[0].first_by.as_ref(), Some(&one));
}

#[test]
fn repeated_edges_are_the_cheap_case() {
    let mut ledger = ledger();
    ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW), NOW);
    written(&mut ledger, NOW);
    for n in 0..1_000 {
        let merged = ledger.merge_node(&node(&[("a", 80)]), &[], &at(NOW.plus(n)), NOW.plus(n));
        assert_ne!(merged.change, Change::New);
    }
    assert_eq!(ledger.schedule.len(), 1, "however often it is refreshed");
}

/// One account, as a flow tells it.
type Told = (WorkloadNode, Vec<graph::Unresolved>, i64, i64, Option<SeenBy>);

prop_compose! {
    fn port()(
        protocol in prop::sample::select(vec![PortProtocol::Http, PortProtocol::Tcp, PortProtocol::Tls]),
        kind in 0..3,
        [address_only, existing, host_unknown] in any::<[bool; 3]>(),
        unknown in prop::option::of(0..3),
    ) -> PortUse {
        let seen = match kind {
            0 => Evidence::Address(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            1 => Evidence::Host(host("a")),
            _ => Evidence::DnsName(host("a")),
        };
        let unknown_hosts = unknown.map(|n| host(&format!("x{n}"))).into_iter().collect();
        PortUse { protocol, address_only, existing, host_unknown, unknown_hosts, ..port_use(seen) }
    }
}

prop_compose! {
    fn account()(
        to in prop::collection::vec((0..7, 1u16..12, port()), 0..3),
        direct in prop::option::of((0..3, any::<bool>())),
        unresolved in prop::option::of(0u8..3),
        first in 0i64..20_000,
        length in 0i64..20_000,
        by in prop::option::of(0..3),
    ) -> Told {
        let mut node = node(&[]);
        for (name, number, port) in to {
            let (host, namespace) = (host(&format!("h{name}")), Namespace::new("default").unwrap());
            node.dependencies.push(graph::Dependency { host, namespace, ports: BTreeMap::from([(number, port)]) });
        }
        node.direct.extend(direct.map(|(name, host_unknown)| DirectCall {
            workload: workload(&format!("w{name}")),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 80,
            connects: 1,
            host_unknown,
            unknown_hosts: BTreeSet::new(),
        }));
        let unresolved = unresolved.map(|n| graph::Unresolved {
            workload: workload("web"),
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)),
            port: 80,
            hosts: BTreeSet::from([host("nobody")]),
            host_unknown: false,
            reason: UnresolvedReason::UnknownAddress,
            connects: 1,
        });
        let name = |n: &str| ObjectName::new(n).unwrap();
        let by = by.map(|n| SeenBy { pod: name(&format!("p{n}")), node: name("n") });
        (node, unresolved.into_iter().collect(), first, first + length, by)
    }
}

/// Enough for all hosts there are, or not.
fn limits() -> impl Strategy<Value = usize> {
    prop::sample::select(vec![4usize, 10])
}

fn tell(record: &mut Record, account: &Told, most: usize) -> Change {
    let (node, unresolved, first, last, by) = account;
    let first = Span::at(NOW.plus(*first));
    let seen = Seen { first, last: Span::at(NOW.plus(*last)), by: by.as_ref() };
    note_node(record, node, unresolved, &seen, most)
}

fn record_of<'a>(accounts: impl IntoIterator<Item = &'a Told>, covered: u64, most: usize) -> Record {
    let through = Some(Timestamp::floor(NOW.plus(10_000)));
    let coverage = Coverage { covered: Seconds(covered), through, ..Coverage::default() };
    let mut record = Record { coverage, ..Record::default() };
    for account in accounts {
        tell(&mut record, account, most);
    }
    record
}

/// Without what depends on the order: which of too many were the first, and counts.
fn comparable(mut record: Record) -> Record {
    for unresolved in &mut record.unresolved {
        unresolved.connects = 0;
    }
    for dependency in &mut record.dependencies {
        if dependency.ports[0].port == OTHER_PORTS {
            let all = dependency.ports.clone();
            let joined = all.iter().copied().reduce(|one, other| Port {
                port: OTHER_PORTS,
                protocol: PortProtocol::Unknown,
                seen: one.seen.union(other.seen),
                address_only: one.address_only | other.address_only,
                existing: one.existing | other.existing,
                host_unknown: one.host_unknown.max(other.host_unknown),
                first_seen: one.first_seen.min(other.first_seen),
                last_seen: one.last_seen.max(other.last_seen),
                covered_when_last_seen: one.covered_when_last_seen.max(other.covered_when_last_seen),
            });
            dependency.ports = joined.into_iter().collect();
        }
    }
    if record.broad.is_some() {
        record.broad = Some(Timestamp::default());
        record.dependencies.clear();
    }
    record
}

proptest! {
    #[test]
    fn the_order_of_accounts_does_not_matter_nor_who_hears_them(
        accounts in prop::collection::vec(account(), 0..16),
        order in any::<prop::sample::Index>(),
        parts in prop::collection::vec(0..3usize, 16),
        most in limits(),
    ) {
        let once = record_of(&accounts, 100, most);
        let mut turned = accounts.clone();
        turned.rotate_left(if accounts.is_empty() { 0 } else { order.index(accounts.len()) });
        prop_assert_eq!(comparable(record_of(turned.iter().rev(), 100, most)), comparable(once.clone()));

        // Told again, nothing changes, but for the count of what is not resolved.
        let mut again = once.clone();
        for account in &accounts {
            prop_assert!(tell(&mut again, account, most) < Change::New);
        }
        prop_assert_eq!(comparable(again), comparable(once.clone()));

        // Three leaders heard a part each: however their records are put together, all of it is there.
        let part = |wanted: usize| {
            let heard = accounts.iter().zip(&parts).filter(move |(_, part)| **part == wanted);
            record_of(heard.map(|(account, _)| account), 100, most)
        };
        let (a, b, c) = (part(0), part(1), part(2));
        let merged = |one: &Record, other: &Record| {
            let mut one = one.clone();
            one.merge(other, most);
            one
        };
        let left = merged(&merged(&a, &b), &c);
        prop_assert_eq!(comparable(left.clone()), comparable(once));
        prop_assert_eq!(comparable(merged(&a, &merged(&b, &c))), comparable(left.clone()));
        prop_assert_eq!(comparable(merged(&c, &merged(&b, &a))), comparable(left.clone()));
        prop_assert_eq!(merged(&left, &a), left);
    }

    #[test]
    fn a_merge_with_another_leader_s_record_is_commutative_and_associative_whatever_each_has_covered(
        accounts in prop::collection::vec((account(), 0..3usize), 0..12),
        covered in any::<[u16; 3]>(),
    ) {
        let part = |wanted: usize| {
            let heard = accounts.iter().filter(|(_, part)| *part == wanted);
            record_of(heard.map(|(account, _)| account), u64::from(covered[wanted]), 10)
        };
        let merged = |one: &Record, other: &Record| {
            let mut one = one.clone();
            one.merge(other, 10);
            one
        };
        let (a, b, c) = (part(0), part(1), part(2));
        let left = merged(&merged(&a, &b), &c);
        prop_assert_eq!(comparable(merged(&b, &a)), comparable(merged(&a, &b)));
        prop_assert_eq!(comparable(merged(&a, &merged(&b, &c))), comparable(left.clone()));
        prop_assert_eq!(merged(&left, &b), left.clone());
        for dependency in &left.dependencies {
            prop_assert!(dependency.ports.len() <= MAX_PORTS + 1);
        }
    }

    #[test]
    fn whatever_happens_to_writes_all_that_is_durable_is_stored(
        steps in prop::collection::vec((0u8..8, 0usize..4), 0..60),
    ) {
        let mut ledger = Ledger::new(Settings::default());
        // What the API server has, and what was promised.
        let mut stored: Option<(Record, u64)> = None;
        let mut promised: Vec<(String, Version)> = Vec::new();
        let mut flying: Option<Write> = None;
        let mut now = NOW;
        let web = workload("web");
        for (n, (step, which)) in steps.into_iter().enumerate() {
            now = now.plus(MINUTE);
            match (step, flying.take()) {
                (0..=2, was_flying) => {
                    flying = was_flying;
                    let name = format!("h{}", n % 8 + which);
                    let merged = ledger.merge_node(&node(&[(&name, 80)]), &[], &at(now), now);
                    promised.push((name, merged.wait_for.unwrap_or(0)));
                }
                (3, was_flying) => {
                    flying = was_flying;
                    // Another leader, for a moment.
                    let (mut record, version) = stored.take().unwrap_or_default();
                    note_node(&mut record, &node(&[(&format!("o{which}"), 80)]), &[], &at(now), MAX_DESTINATIONS);
                    promised.push((format!("o{which}"), 0));
                    stored = Some((record, version + 1));
                }
                (_, None) => flying = ledger.due(now, 1).pop(),
                (4, Some(write)) => ledger.done(&write.workload, Outcome::Failed, now),
                (_, Some(write)) => {
                    let there = stored.as_ref().map(|(_, version)| version.to_string());
                    let outcome = if there == write.resource_version {
                        let version = stored.as_ref().map_or(0, |(_, version)| *version) + 1;
                        stored = Some((put(&write).clone(), version));
                        // The answer may get lost.
                        if step == 5 { Outcome::Failed } else { Outcome::Written(version.to_string()) }
                    } else {
                        let stored = stored.clone();
                        Outcome::Conflict(stored.map(|(record, version)| (Box::new(record), version.to_string())))
                    };
                    ledger.done(&write.workload, outcome, now);
                }
            }
            for (name, version) in &promised {
                if ledger.is_durable(&web, *version) && ledger.record(&web).is_some() || name.starts_with('o') {
                    let names = stored.as_ref().map(|(record, _)| hosts(record)).unwrap_or_default();
                    prop_assert!(names.contains(&name.as_str()), "{name} is not among {names:?}");
                }
            }
        }
    }
}

#[test]
fn evidence_is_a_list_of_words_in_objects() {
    let mut record = Record::default();
    note_node(&mut record, &node(&[("a", 80)]), &[], &at(NOW), 5);
    let port = &record.dependencies[0].ports[0];
    assert!(port.seen.contains(EvidenceKind::Host) && !port.seen.contains(EvidenceKind::Address));
    let json = serde_json::to_value(&record).unwrap();
    assert_eq!(json["dependencies"][0]["ports"][0]["seen"], serde_json::json!(["host"]));
    assert_eq!(json["lastSeen"], "2023-11-14T22:13:20Z");
}
