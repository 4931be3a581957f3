use serde_json::{Value, json};

use super::*;
use crate::fixture::workload;
use crate::ledger::{Settings, What};
use crate::model::graph::UnresolvedReason;
use crate::model::names::{Host, PodUid};
use crate::registry::{Kind, Watched};
use crate::wire::{Coverage as Time_, Epoch};

/// Milliseconds since the start of 2026, when all has been listed.
fn ms(millis: i64) -> Time {
    Time(1_767_225_600_000 + millis)
}

fn s(seconds: i64) -> Time {
    ms(seconds * 1_000)
}

fn node(name: &str) -> ObjectName {
    ObjectName::new(name).unwrap()
}

fn uid(pod: &str) -> PodUid {
    PodUid::new(format!("{pod}-uid")).unwrap()
}

fn pod(name: &str, node: &str, address: &str, workload: &str) -> Value {
    json!({
        "metadata": {
            "name": name, "uid": format!("{name}-uid"), "labels": {"app": workload},
            "ownerReferences": [{"kind": "StatefulSet", "name": workload, "controller": true}],
        },
        "spec": {"nodeName": node},
        "status": {"phase": "Running", "podIPs": [{"ip": address}], "hostIP": "192.168.0.1"},
    })
}

fn service(name: &str, address: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"clusterIP": address, "ports": [{"port": 80, "name": "http"}]},
    })
}

/// A desk with the cluster that it looks at.
struct Scene {
    registry: Registry,
    desk: Desk,
    next: BatchId,
    now: Time,
}

impl Scene {
    /// `web-0` on the node `a` and `db-0` on `b`, and the services `shop` and `stock`.
    fn new() -> Self {
        Self::with(Ledger::new(Settings::default()))
    }

    fn with(ledger: Ledger) -> Self {
        let mut registry = Registry::new(s(0));
        Kind::ALL.into_iter().for_each(|kind| registry.begin_list(kind));
        let before = Span::between(Time(i64::MIN), s(0));
        for (name, node, address) in [("web-0", "a", "10.0.0.1"), ("db-0", "b", "10.0.0.2")] {
            let (workload, _) = name.split_once('-').unwrap();
            let pod = serde_json::from_value(pod(name, node, address, workload)).unwrap();
            registry.apply(Watched::Pod(pod), before).unwrap();
        }
        for (name, address) in [("shop", "10.96.0.1"), ("stock", "10.96.0.2")] {
            let service = serde_json::from_value(service(name, address)).unwrap();
            registry.apply(Watched::Service(service), before).unwrap();
        }
        Kind::ALL.into_iter().for_each(|kind| registry.end_list(kind, before));
        registry.settle(s(0));
        let desk = Desk::new(ledger, &mut registry, s(0));
        Self { registry, desk, next: 0, now: s(0) }
    }

    fn apply(&mut self, object: Value, at: Time) {
        let pod = serde_json::from_value(object).unwrap();
        self.registry.apply(Watched::Pod(pod), Span::at(at)).unwrap();
    }

    fn remove(&mut self, object: Value, at: Time) {
        let pod = serde_json::from_value(object).unwrap();
        self.registry.remove(&Watched::Pod(pod), Span::at(at));
    }

    /// A batch of the agent on `from`.
    fn tell(&mut self, from: &str, sequence: u64, sources: Vec<Source>, now: Time) -> (BatchId, Taken) {
        let batch = Batch { epoch: Epoch([7; 16]), sequence, sources };
        let id = self.next;
        self.next += 1;
        (id, self.desk.take(&node(from), batch, id, now))
    }

    /// Time passes until `now`, and the desk works as often as it does.
    fn until(&mut self, now: Time) {
        while self.now < now {
            self.now = self.now.plus(250).min(now);
            while self.desk.work(&mut self.registry, self.now, 100) {}
        }
    }

    /// The records that are to be written, which are written.
    fn write(&mut self) -> Vec<String> {
        let writes = self.desk.writes(self.now, 100);
        for write in &writes {
            let written = match write.what {
                What::Put(_) => Outcome::Written("1".to_owned()),
                What::Delete => Outcome::Deleted,
            };
            self.desk.written(&write.workload, written, self.now);
        }
        let mut names: Vec<_> = writes.iter().map(|write| write.workload.name.clone()).collect();
        names.sort();
        names
    }

    fn acknowledged(&mut self) -> Vec<(BatchId, String)> {
        let acknowledged = self.desk.acknowledged().into_iter();
        let text = |refusal: Refusal| format!("{} {}", refusal.count, refusal.reason);
        acknowledged
            .map(|one| (one.id, one.refusals.into_iter().map(text).collect::<Vec<_>>().join(", ")))
            .collect()
    }

    /// What a workload's record says it calls.
    fn calls(&self, name: &str) -> Vec<String> {
        let record = self.desk.ledger().record(&workload(&format!("default/StatefulSet/{name}")));
        let Some(record) = record else { return Vec::new() };
        let short = |host: &Host| host.as_str().split('.').next().unwrap().to_owned();
        let services = record.dependencies.iter().map(|dependency| short(&dependency.host));
        let direct = record.direct.iter().map(|direct| format!("pod of {}", direct.workload.name));
        let unresolved = record.unresolved.iter().map(|one| format!("{:?} {}", one.reason, one.address));
        services.chain(direct).chain(unresolved).collect()
    }

    fn reasons(&self) -> Vec<(Reason, u64)> {
        self.desk.tally().counts.reasons.iter().map(|(reason, count)| (*reason, *count)).collect()
    }
}

fn edge(address: &str, at: Time) -> Edge {
    Edge {
        address: address.parse().unwrap(),
        port: 80,
        first: Span::at(at),
        last: Span::at(at),
        connects: 1,
        hosts: Vec::new(),
        names: Vec::new(),
        host_unknown: false,
        unnamed: false,
    }
}

fn source(pod: &str, edges: Vec<Edge>) -> Source {
    Source { netns: 1, pod: Some(uid(pod)), edges, ..Source::default() }
}

#[test]
fn an_edge_is_acknowledged_when_its_record_is_written() {
    let mut scene = Scene::new();
    let (id, taken) = scene.tell("a", 1, vec![source("web-0", vec![edge("10.96.0.1", s(10))])], s(10));
    assert_eq!(taken, Taken::Waits);
    scene.until(ms(12_999));
    assert_eq!(scene.calls("web"), [""; 0], "something may still become known that bears on it");
    scene.until(s(13));
    assert_eq!(scene.calls("web"), ["shop"]);
    assert_eq!(scene.acknowledged(), []);
    assert_eq!(scene.write(), ["web"]);
    assert_eq!(scene.acknowledged(), [(id, String::new())]);
    let record = scene.desk.ledger().record(&workload("default/StatefulSet/web")).unwrap();
    let by = record.dependencies[0].first_by.as_ref().unwrap();
    assert_eq!((by.pod.as_str(), by.node.as_str()), ("web-0", "a"));

    // What it says is known: nothing is to be written.
    let (id, _) = scene.tell("a", 2, vec![source("web-0", vec![edge("10.96.0.1", s(20))])], s(20));
    scene.until(s(23));
    assert_eq!((scene.acknowledged(), scene.write()), (vec![(id, String::new())], vec![]));
    assert_eq!((scene.desk.tally().counts.edges, scene.desk.open()), (2, 0));
}

#[test]
fn a_batch_that_comes_again_changes_nothing() {
    let mut scene = Scene::new();
    let batch = || vec![source("web-0", vec![edge("10.96.0.1", s(10)), edge("203.0.113.1", s(10))])];
    let (first, _) = scene.tell("a", 1, batch(), s(10));
    // On another stream, before it is durable: the new one is the one that is asked for.
    let (second, taken) = scene.tell("a", 1, batch(), s(11));
    assert_eq!(taken, Taken::InsteadOf(first));
    scene.until(s(13));
    scene.write();
    assert_eq!(scene.acknowledged(), [(second, String::new())]);
    let before = scene.desk.ledger().record(&workload("default/StatefulSet/web")).cloned();
    assert_eq!(scene.tell("a", 1, batch(), s(14)).1, Taken::Durable);
    scene.until(s(20));
    assert_eq!(scene.write(), [""; 0]);
    assert_eq!(scene.desk.ledger().record(&workload("default/StatefulSet/web")).cloned(), before);
    assert_eq!((scene.desk.tally().counts.batches, scene.desk.tally().counts.again), (1, 2));
}

#[test]
fn an_agent_tells_of_pods_of_its_own_node_only() {
    let mut scene = Scene::new();
    let by_address = Source {
        addresses: vec!["10.0.0.2".parse().unwrap()],
        edges: vec![edge("10.96.0.1", s(10))],
        ..Source::default()
    };
    let watched = Source { coverage: vec![watched(s(0), s(10))], ..source("db-0", vec![]) };
    let (id, _) = scene.tell(
        "a",
        1,
        vec![source("db-0", vec![edge("10.96.0.1", s(10))]), by_address.clone(), watched],
        s(10),
    );
    scene.until(s(13));
    assert_eq!(scene.acknowledged(), [(id, "3 foreignNode".to_owned())]);
    assert_eq!((scene.calls("db"), scene.write()), (vec![], vec![]));
    assert_eq!(scene.reasons(), [(Reason::ForeignNode, 3)]);
    let listed: Vec<_> = scene.desk.tally().listed().map(|one| (one.node.as_str(), one.to)).collect();
    assert_eq!(listed[0], ("a", Some(("10.96.0.1".parse().unwrap(), 80))));
    assert_eq!((listed.len(), listed[2].1), (3, None));
    // That of its own node may, also by its addresses.
    scene.tell("b", 1, vec![by_address], s(20));
    scene.until(s(23));
    assert_eq!(scene.calls("db"), ["shop"]);
}

#[test]
fn a_pod_that_is_not_known_is_waited_for_and_then_given_up() {
    let mut scene = Scene::new();
    let (late, _) = scene.tell("a", 1, vec![source("late-0", vec![edge("10.96.0.1", s(10))])], s(10));
    let (never, _) = scene.tell("a", 2, vec![source("never-0", vec![edge("10.96.0.1", s(10))])], s(10));
    scene.until(s(20));
    scene.apply(pod("late-0", "a", "10.0.0.3", "late"), s(20));
    scene.until(s(22));
    assert_eq!((scene.calls("late"), scene.write()), (vec!["shop".to_owned()], vec!["late".to_owned()]));
    assert_eq!(scene.acknowledged(), [(late, String::new())]);
    scene.until(s(39));
    assert_eq!(scene.acknowledged(), []);
    scene.until(s(40));
    assert_eq!(scene.acknowledged(), [(never, "1 podNotKnown".to_owned())]);
    assert_eq!(scene.reasons(), [(Reason::PodNotKnown, 1)]);
}

#[test]
fn an_address_is_that_of_whoever_had_it_then() {
    let mut scene = Scene::new();
    let (one, two) = (pod("one-0", "b", "10.0.0.9", "one"), pod("two-0", "b", "10.0.0.9", "two"));
    scene.apply(one.clone(), s(10));
    scene.remove(one, s(30));
    scene.apply(two, s(32));
    let at = |time| source("web-0", vec![edge("10.0.0.9", time)]);
    scene.now = s(32);
    // Told late, and in no order.
    scene.tell("a", 1, vec![at(s(40))], s(45));
    scene.until(s(48));
    assert_eq!(scene.calls("web"), ["pod of two"]);
    scene.tell("a", 2, vec![at(s(20))], s(50));
    scene.until(s(53));
    assert_eq!(scene.calls("web"), ["pod of one", "pod of two"]);
    // An edge that was used through both times tells of both.
    let through = Edge { first: Span::at(s(20)), connects: 2, ..edge("10.0.0.9", s(55)) };
    scene.tell("b", 1, vec![source("db-0", vec![through.clone()])], s(55));
    scene.until(s(58));
    assert_eq!(scene.calls("db"), ["pod of one", "pod of two"]);
    assert_eq!(scene.reasons(), []);
    // Of connects in between, nobody can tell whose they were.
    scene.tell("b", 2, vec![source("db-0", vec![Edge { connects: 9, ..through }])], s(59));
    scene.until(s(62));
    assert_eq!(scene.reasons(), [(Reason::AmbiguousAddress, 1)]);
}

#[test]
fn what_cannot_be_told_is_waited_for_and_then_recorded_as_such() {
    let mut scene = Scene::new();
    scene.apply(pod("one-0", "b", "10.0.0.9", "one"), s(10));
    scene.remove(pod("one-0", "b", "10.0.0.9", "one"), ms(20_500));
    scene.apply(pod("two-0", "b", "10.0.0.9", "two"), ms(20_600));
    scene.now = s(21);
    let at = |address, time| source("web-0", vec![edge(address, time)]);
    let (either, _) = scene.tell("a", 1, vec![at("10.0.0.9", s(20))], s(21));
    // Before the start; and nobody's, which is not waited for.
    let (early, _) = scene.tell("a", 2, vec![at("10.0.0.77", s(-60))], s(21));
    let (nobody, _) = scene.tell("a", 3, vec![at("203.0.113.1", s(20))], s(21));
    scene.until(s(24));
    assert_eq!(scene.write(), ["web"]);
    assert_eq!(scene.acknowledged(), [(early, String::new()), (nobody, String::new())]);
    scene.until(s(60));
    scene.write();
    assert_eq!(scene.acknowledged(), [(either, String::new())]);
    assert_eq!(
        scene.reasons(),
        [(Reason::UnknownAddress, 1), (Reason::AmbiguousAddress, 1), (Reason::AddressNotKnown, 1)]
    );
    let record = scene.desk.ledger().record(&workload("default/StatefulSet/web")).unwrap();
    let unresolved: Vec<_> =
        record.unresolved.iter().map(|one| (one.address.to_string(), one.reason)).collect();
    assert!(
        unresolved.contains(&("10.0.0.9".to_owned(), UnresolvedReason::AmbiguousAddress)),
        "{unresolved:?}"
    );
    assert_eq!((unresolved.len(), record.dependencies.len(), record.direct.len()), (3, 0, 0));
}

#[test]
fn nothing_is_resolved_or_given_up_while_a_watch_tells_nothing() {
    let mut scene = Scene::new();
    scene.registry.interrupted(Kind::Pod);
    let (id, _) = scene.tell("a", 1, vec![source("late-0", vec![edge("10.96.0.1", s(10))])], s(10));
    scene.until(s(300));
    assert_eq!((scene.desk.open(), scene.reasons()), (1, vec![]));
    scene.registry.resumed(Kind::Pod);
    scene.until(s(302));
    scene.apply(pod("late-0", "a", "10.0.0.3", "late"), s(302));
    scene.until(s(304));
    scene.write();
    assert_eq!(scene.acknowledged(), [(id, String::new())]);
    assert_eq!(scene.calls("late"), ["shop"]);
}

#[test]
fn a_write_that_fails_keeps_the_batch_until_one_succeeds() {
    let mut scene = Scene::new();
    let (id, _) = scene.tell("a", 1, vec![source("web-0", vec![edge("10.96.0.1", s(10))])], s(10));
    scene.until(s(13));
    for write in scene.desk.writes(scene.now, 100) {
        scene.desk.written(&write.workload, Outcome::Failed, scene.now);
    }
    assert_eq!((scene.acknowledged(), scene.desk.open()), (vec![], 1));
    scene.until(s(60));
    assert_eq!(scene.write(), ["web"]);
    assert_eq!(scene.acknowledged(), [(id, String::new())]);
}

fn watched(from: Time, until: Time) -> Time_ {
    Time_ { from, until, losses: Vec::new() }
}

#[test]
fn records_tell_through_which_time_their_workload_was_watched() {
    let mut scene = Scene::new();
    let covered = |scene: &Scene, name: &str| {
        let record = scene.desk.ledger().record(&workload(&format!("default/StatefulSet/{name}")))?;
        Some((record.coverage.covered.0, record.coverage.watched_pods, record.coverage.pods))
    };
    let report = |scene: &mut Scene, from, until, sequence| {
        let part = Source { coverage: vec![watched(s(from), s(until))], ..source("web-0", vec![]) };
        scene.tell("a", sequence, vec![part], s(until));
        scene.until(s(until + 4));
    };
    report(&mut scene, 0, 100, 1);
    scene.until(s(170));
    assert_eq!(covered(&scene, "web"), Some((100, 1, 1)));
    assert_eq!(covered(&scene, "db"), None, "there is nothing to tell of it");
    // Another pod, on a node without an agent, stops the sum.
    scene.apply(pod("web-1", "c", "10.0.0.4", "web"), s(200));
    report(&mut scene, 0, 400, 2);
    scene.until(s(470));
    let (sum, watched_pods, pods) = covered(&scene, "web").unwrap();
    assert!((195..=200).contains(&sum), "{sum}");
    assert_eq!((watched_pods, pods), (1, 2));
    // A loss is named, and waits to be durable.
    let lossy = Time_ { losses: vec!["edgesFull".to_owned()], ..watched(s(400), s(480)) };
    let (id, _) =
        scene.tell("a", 3, vec![Source { coverage: vec![lossy], ..source("web-0", vec![]) }], s(480));
    scene.until(s(484));
    scene.acknowledged();
    scene.write();
    assert_eq!(scene.acknowledged(), [(id, String::new())]);
    let record = scene.desk.ledger().record(&workload("default/StatefulSet/web")).unwrap();
    assert_eq!(record.losses[0].cause, "edgesFull");
}

#[test]
fn a_workload_that_is_gone_keeps_its_record_for_the_retention() {
    let settings = Settings { retention_ms: 3_600_000, ..Settings::default() };
    let mut scene = Scene::with(Ledger::new(settings));
    scene.tell("b", 1, vec![source("db-0", vec![edge("10.96.0.1", s(10))])], s(10));
    scene.until(s(13));
    scene.write();
    scene.remove(pod("db-0", "b", "10.0.0.2", "db"), s(20));
    scene.until(s(140));
    let gone = |scene: &Scene| {
        scene.desk.ledger().record(&workload("default/StatefulSet/db")).map(|record| record.gone.is_some())
    };
    assert_eq!(gone(&scene), Some(true));
    scene.now = s(3_700);
    scene.until(s(3_900));
    assert!(scene.write().contains(&"db".to_owned()));
    assert_eq!(gone(&scene), None);
}

#[test]
fn an_event_of_the_future_is_one_of_now() {
    let mut scene = Scene::new();
    let (id, _) = scene.tell("a", 1, vec![source("web-0", vec![edge("10.96.0.1", s(1_000_000))])], s(10));
    scene.until(s(13));
    scene.write();
    assert_eq!(scene.acknowledged(), [(id, String::new())]);
}

#[test]
fn pods_of_the_node_s_own_network_are_left_out() {
    let mut scene = Scene::new();
    let mut object = pod("proxy-0", "a", "192.168.0.1", "proxy");
    object["spec"]["hostNetwork"] = json!(true);
    scene.apply(object, s(5));
    let (id, _) = scene.tell("a", 1, vec![source("proxy-0", vec![edge("10.96.0.1", s(10))])], s(10));
    scene.until(s(13));
    assert_eq!(scene.acknowledged(), [(id, "1 hostNetwork".to_owned())]);
    assert_eq!(scene.write(), [""; 0]);
}
