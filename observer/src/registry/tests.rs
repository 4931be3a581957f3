use std::net::IpAddr;

use serde::de::DeserializeSeed;

use super::*;
use crate::fixture::{host, ns};
use crate::inventory::Builder;
use crate::model::names::PodUid;
use crate::service_index::{Destination, Lookup, Target};

mod churn;
mod hosts;

/// Seconds since the start of 2026, which is when the registry starts.
pub(super) fn s(seconds: i64) -> Time {
    ms(seconds * 1_000)
}

pub(super) fn ms(millis: i64) -> Time {
    Time(1_767_225_600_000 + millis)
}

/// The objects of a text in YAML, as watches would give them.
pub(super) fn watched(yaml: &str) -> Vec<Watched> {
    let documents = yaml.split("\n---\n").filter(|text| !text.trim().is_empty());
    documents.map(|text| read(serde_saphyr::from_str(text).unwrap())).collect()
}

pub(super) fn read(object: serde_json::Value) -> Watched {
    let named = object["kind"].as_str().unwrap();
    let kind = Kind::ALL.into_iter().find(|known| known.name() == named).unwrap();
    kind.deserialize(object).unwrap()
}

struct Cluster(Registry);

impl Cluster {
    /// One whose watches have listed these objects at the start.
    fn listed(yaml: &str) -> Self {
        let mut registry = Registry::new(s(0));
        Kind::ALL.into_iter().for_each(|kind| registry.begin_list(kind));
        for object in watched(yaml) {
            registry.apply(object, Span::between(Time(i64::MIN), s(0))).unwrap();
        }
        for kind in Kind::ALL {
            registry.end_list(kind, Span::between(Time(i64::MIN), s(0)));
        }
        registry.settle(s(0));
        Self(registry)
    }

    fn apply(&mut self, now: Time, yaml: &str) {
        for object in watched(yaml) {
            self.0.apply(object, Span::at(now)).unwrap();
        }
        self.0.settle(now);
    }

    fn remove(&mut self, now: Time, yaml: &str) {
        for object in watched(yaml) {
            self.0.remove(&object, Span::at(now));
        }
        self.0.settle(now);
    }

    /// The destination in a word, as the tests of the index have it.
    fn at(&self, when: Time, address: &str, port: u16) -> String {
        let text = |targets: Vec<Target<'_>>| {
            let texts = targets.iter().map(|target| {
                let host = target.service.host.as_str();
                format!("{}:{}", host.strip_suffix(".default.svc.cluster.local").unwrap_or(host), target.port)
            });
            texts.collect::<Vec<_>>().join("+")
        };
        let view = self.0.view(Span::at(when));
        match view.destination(address.parse().unwrap(), port) {
            Destination::Services(targets) => text(targets),
            Destination::AmbiguousServices(targets) => format!("?{}", text(targets)),
            Destination::Pod(workload) => format!("{}/{}", workload.kind, workload.name),
            Destination::Ambiguous => "?".to_owned(),
            Destination::Unknown => "unknown".to_owned(),
            Destination::NotKnown => "not known".to_owned(),
        }
    }

    fn source(&self, when: Time, uid: Option<&str>, addresses: &[&str]) -> Result<String, NoSource> {
        let uid = uid.map(|uid| PodUid::new(uid).unwrap());
        let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
        let view = self.0.view(Span::at(when));
        let source = view.source(uid.as_ref(), &addresses)?;
        Ok(format!("{} of {}/{}", source.pod, source.workload.kind, source.workload.name))
    }

    fn named(&self, when: Time, name: &str) -> Option<String> {
        let view = self.0.view(Span::at(when));
        let found = view.service_named(&host(name), &ns("default"), 80);
        found.map(|target| target.service.host.to_string())
    }
}

/// A bare pod. `more` goes into its metadata.
fn pod(name: &str, addresses: &str, more: &str) -> String {
    let ips: Vec<_> = addresses.split(' ').map(|address| format!("{{ip: '{address}'}}")).collect();
    let ips = if addresses.is_empty() { String::new() } else { ips.join(", ") };
    format!(
        "\n---\nkind: Pod\nmetadata: {{name: {name}, uid: {name}-uid, {more}}}\nspec: {{nodeName: node-1}}\nstatus: {{phase: Running, podIPs: [{ips}], hostIP: 192.168.0.1}}\n"
    )
}

fn owned(name: &str, address: &str, kind: &str, owner: &str, more: &str) -> String {
    let owner = format!("ownerReferences: [{{kind: {kind}, name: {owner}, controller: true}}], {more}");
    pod(name, address, &owner)
}

fn controller(kind: &str, name: &str, owner: Option<(&str, &str)>) -> String {
    let owner = owner.map_or(String::new(), |(kind, name)| {
        format!(", ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}]")
    });
    format!("\n---\nkind: {kind}\nmetadata: {{name: {name}{owner}}}\n")
}

fn service(name: &str, more: &str) -> String {
    format!("\n---\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{{more}}}\n")
}

fn slice(name: &str, service: &str, endpoints: &str) -> String {
    format!(
        "\n---\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: tcp, port: 15432}}]\nendpoints: [{endpoints}]\n"
    )
}

const ENTRIES: &str = "
---
kind: ServiceEntry
metadata: {name: vms}
spec: {hosts: [vms.test], ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}], workloadSelector: {labels: {app: vm}}}
---
kind: WorkloadEntry
metadata: {name: vm-1, labels: {app: vm}}
spec: {address: 192.0.2.1}
---
kind: WorkloadEntry
metadata: {name: vm-2, labels: {app: other}}
spec: {address: 192.0.2.2, labels: {app: vm}}
---
kind: WorkloadEntry
metadata: {name: vm-3, namespace: elsewhere}
spec: {address: 192.0.2.3, labels: {app: vm}}
---
kind: ServiceEntry
metadata: {name: ext}
spec: {hosts: ['*.wild.test', api.test], addresses: [10.9.0.0/16], ports: [{number: 443, name: tls, protocol: TLS}], endpoints: [{address: 192.0.2.9}]}
status: {addresses: [{value: 240.240.0.1, host: api.test}]}
";

#[test]
fn an_address_and_port_belong_to_whom_the_proxy_would_send_them() {
    let objects = [
        service(
            "web",
            "clusterIPs: [10.96.0.1, 'fd00::1'], externalIPs: [203.0.113.1], ports: [{port: 80, nodePort: 30080}]",
        ) + "status: {loadBalancer: {ingress: [{ip: 203.0.113.2}, {hostname: lb.test}]}}\n",
        service("db", "clusterIP: None, ports: [{port: 5432, name: tcp}]"),
        slice(
            "db-1",
            "db",
            "{addresses: [10.0.0.1], targetRef: {kind: Pod, uid: db-0-uid}}, {addresses: [198.51.100.1]}",
        ),
        service("manual", "clusterIP: 10.96.0.2, ports: [{port: 80}]"),
        slice("manual-1", "manual", "{addresses: [198.51.100.2]}"),
        service("alias", "type: ExternalName, externalName: target.test"),
        pod("db-0", "10.0.0.1 fd01::1", "labels: {app: db}"),
        pod("vm", "10.0.0.2", "labels: {app: vm}"),
        pod("foreign", "10.0.0.3", "namespace: elsewhere, labels: {app: vm}"),
        pod("node", "192.168.0.2", "").replace("spec: {", "spec: {hostNetwork: true, "),
        ENTRIES.to_owned(),
    ];
    let cluster = Cluster::listed(&objects.concat());
    for (address, port, expected) in [
        ("10.96.0.1", 80, "web:80"),
        ("fd00::1", 80, "web:80"),
        ("::ffff:10.96.0.1", 80, "web:80"),
        ("10.96.0.1", 81, "web:81"),
        ("203.0.113.1", 80, "web:80"),
        ("203.0.113.2", 80, "web:80"),
        ("192.168.0.1", 30080, "web:80"),
        ("192.168.0.2", 30080, "web:80"),
        ("192.168.0.2", 80, "unknown"),
        // Headless: the pod by its uid, whichever of its addresses the slice names; what is no pod by the address.
        ("10.0.0.1", 15432, "db:5432"),
        ("10.0.0.1", 5432, "db:5432"),
        ("fd01::1", 5432, "db:5432"),
        ("10.0.0.1", 1, "Pod/db-0"),
        ("198.51.100.1", 15432, "db:5432"),
        // Without a selector; its endpoint does not stand for it.
        ("10.96.0.2", 80, "manual:80"),
        ("198.51.100.2", 15432, "unknown"),
        // A ServiceEntry that selects pods and WorkloadEntries of its namespace.
        ("10.0.0.2", 8080, "vms.test:80"),
        ("10.0.0.2", 1, "Pod/vm"),
        ("10.0.0.3", 8080, "Pod/foreign"),
        ("192.0.2.1", 80, "vms.test:80"),
        ("192.0.2.2", 80, "unknown"),
        ("192.0.2.3", 80, "unknown"),
        // One with addresses is not reached at its endpoints.
        ("10.9.1.1", 443, "?*.wild.test:443+api.test:443"),
        ("240.240.0.1", 443, "api.test:443"),
        ("192.0.2.9", 443, "unknown"),
    ] {
        assert_eq!(cluster.at(s(60), address, port), expected, "{address} {port}");
    }
    for (name, expected) in [
        ("alias", Some("alias.default.svc.cluster.local")),
        ("web.default", Some("web.default.svc.cluster.local")),
        ("a.wild.test", Some("*.wild.test")),
        ("vms.test", Some("vms.test")),
        ("other.test", None),
    ] {
        assert_eq!(cluster.named(s(60), name).as_deref(), expected, "{name}");
    }
    let (view, uid) = (cluster.0.view(Span::at(s(60))), PodUid::new("vm-uid").unwrap());
    assert_eq!(view.source(Some(&uid), &[]).unwrap().node, Some("node-1"));
    assert_eq!(cluster.0.namespace(&ns("default")), None);
}

#[test]
fn a_workload_entry_that_comes_and_goes_is_an_endpoint_for_that_time() {
    let mut cluster = Cluster::listed(ENTRIES);
    let more =
        "kind: WorkloadEntry\nmetadata: {name: vm-9, labels: {app: vm}}\nspec: {address: 192.0.2.99}\n";
    cluster.apply(s(100), more);
    cluster.remove(s(200), more);
    for (when, expected) in [(50, "unknown"), (150, "vms.test:80"), (250, "unknown")] {
        assert_eq!(cluster.at(s(when), "192.0.2.99", 80), expected, "{when}");
    }
    assert_eq!(cluster.at(s(250), "192.0.2.1", 80), "vms.test:80");
}

#[test]
fn a_pod_is_an_endpoint_of_a_headless_service_for_the_time_that_slices_say() {
    let db = service("db", "clusterIP: None, ports: [{port: 80}]");
    let mut cluster = Cluster::listed(&(db + &pod("a", "10.0.0.1", "") + &slice("one", "db", "")));
    let member = "{addresses: [10.0.0.1], targetRef: {kind: Pod, uid: a-uid}}";
    cluster.apply(s(100), &slice("one", "db", member));
    // It moves to another slice, and is an endpoint all the time.
    cluster.apply(s(150), &slice("two", "db", member));
    cluster.remove(s(160), &slice("one", "db", member));
    cluster.apply(s(200), &slice("two", "db", ""));
    cluster.apply(s(300), &slice("two", "db", member));
    for (when, expected) in [(50, "Pod/a"), (120, "db:80"), (180, "db:80"), (250, "Pod/a"), (350, "db:80")] {
        assert_eq!(cluster.at(s(when), "10.0.0.1", 80), expected, "{when}");
    }
}

#[test]
fn an_address_that_goes_from_one_pod_to_another_is_each_one_s_for_its_time() {
    let mut cluster = Cluster::listed(&pod("a", "10.0.0.1 fd01::1", ""));
    cluster.apply(s(100), &pod("a", "10.0.0.1 fd01::1", "deletionTimestamp: 2026-01-01T00:02:10Z"));
    cluster.remove(s(103), &pod("a", "10.0.0.1 fd01::1", ""));
    cluster.apply(s(110), &pod("b", "", "creationTimestamp: 2026-01-01T00:01:49Z"));
    cluster.apply(s(112), &pod("b", "10.0.0.1 fd01::2", "creationTimestamp: 2026-01-01T00:01:49Z"));
    for (when, expected) in [
        (s(50), "Pod/a"),
        (ms(102_900), "Pod/a"),
        (s(105), "unknown"),
        (ms(111_500), "Pod/b"),
        (s(200), "Pod/b"),
    ] {
        assert_eq!(cluster.at(when, "10.0.0.1", 80), expected, "{when:?}");
    }
    // In a hurry: it is seen at the second before the first is known to be gone, and may have had the address since.
    let mut cluster = Cluster::listed(&pod("a", "10.0.0.1", ""));
    cluster.apply(ms(100_500), &pod("b", "10.0.0.1", ""));
    cluster.remove(ms(100_600), &pod("a", "10.0.0.1", ""));
    for (when, expected) in
        [(ms(99_400), "Pod/a"), (ms(99_800), "?"), (ms(100_450), "?"), (ms(100_700), "Pod/b")]
    {
        assert_eq!(cluster.at(when, "10.0.0.1", 80), expected, "{when:?}");
    }
    // From the start of its deletion on, a pod may be without its address, however late it is gone.
    let mut late = Cluster::listed(&pod("a", "10.0.0.1", ""));
    late.apply(s(100), &pod("a", "10.0.0.1", "deletionTimestamp: 2026-01-01T00:02:10Z"));
    late.apply(s(120), &pod("b", "10.0.0.1", ""));
    late.remove(s(130), &pod("a", "10.0.0.1", ""));
    for (when, expected) in [(s(115), "Pod/a"), (ms(119_500), "?"), (ms(120_500), "Pod/b")] {
        assert_eq!(late.at(when, "10.0.0.1", 80), expected, "{when:?}");
    }
    // By uid there is no question, even after both are gone; by address, the other family may tell.
    assert_eq!(cluster.source(ms(99_800), Some("a-uid"), &[]).unwrap(), "a-uid of Pod/a");
    assert_eq!(cluster.source(ms(99_800), None, &["10.0.0.1"]), Err(NoSource::Ambiguous));
    cluster.apply(ms(90_000), &pod("c", "fd01::c", ""));
    assert_eq!(cluster.source(s(120), None, &["127.0.0.1", "fd01::c"]).unwrap(), "c-uid of Pod/c");
    assert_eq!(cluster.source(s(120), None, &["10.0.0.1", "fd01::c"]), Err(NoSource::Ambiguous));
    assert_eq!(cluster.source(s(120), None, &["127.0.0.1"]), Err(NoSource::Nobody));
    assert_eq!(cluster.source(s(-9), None, &["127.0.0.1"]), Err(NoSource::AddressNotKnown));
    assert_eq!(cluster.source(s(120), Some("nobody"), &["fd01::c"]), Err(NoSource::PodNotKnown));
}

#[test]
fn a_pod_that_ended_or_is_in_the_node_s_namespace_has_no_address() {
    let node = pod("node", "192.168.0.2", "").replace("spec: {", "spec: {hostNetwork: true, ");
    let mut cluster = Cluster::listed(&(pod("job", "10.0.0.1", "") + &node));
    cluster.apply(s(100), &pod("job", "10.0.0.1", "").replace("Running", "Succeeded"));
    cluster.apply(s(103), &pod("next", "10.0.0.1", ""));
    assert_eq!(cluster.at(s(98), "10.0.0.1", 80), "Pod/job");
    assert_eq!(cluster.at(ms(101_500), "10.0.0.1", 80), "unknown");
    assert_eq!(cluster.at(s(150), "10.0.0.1", 80), "Pod/next");
    assert_eq!(cluster.source(s(98), Some("node-uid"), &[]), Err(NoSource::HostNetwork));
    assert_eq!(cluster.source(s(98), None, &["192.168.0.2"]), Err(NoSource::Nobody));
    // It loses its address, and has the same again when it is started anew.
    cluster.apply(s(200), &pod("next", "", ""));
    cluster.apply(s(203), &pod("next", "10.0.0.1", ""));
    cluster.remove(s(300), &pod("next", "10.0.0.1", ""));
    for (when, expected) in
        [(s(150), "Pod/next"), (s(201), "unknown"), (s(250), "Pod/next"), (s(301), "unknown")]
    {
        assert_eq!(cluster.at(when, "10.0.0.1", 80), expected, "{when:?}");
    }
}

#[test]
fn a_pod_belongs_to_the_topmost_of_those_that_make_pods() {
    let hash = "labels: {pod-template-hash: 5f4}";
    let objects = [
        controller("ReplicaSet", "web-5f4", Some(("Deployment", "web"))),
        controller("ReplicaSet", "canary-1", Some(("Rollout", "canary"))),
        controller("ReplicaSet", "lone", None),
        controller("Job", "nightly-1", Some(("CronJob", "nightly"))),
        controller("Job", "once", None),
        owned("web", "10.0.0.1", "ReplicaSet", "web-5f4", hash),
        owned("canary", "10.0.0.2", "ReplicaSet", "canary-1", ""),
        owned("lone", "10.0.0.3", "ReplicaSet", "lone", ""),
        owned("nightly", "10.0.0.4", "Job", "nightly-1", ""),
        owned("once", "10.0.0.5", "Job", "once", ""),
        owned("db-0", "10.0.0.6", "StatefulSet", "db", ""),
        owned("log", "10.0.0.7", "DaemonSet", "log", ""),
        owned("odd", "10.0.0.8", "CloneSet", "odd", ""),
        owned("etcd-n1", "10.0.0.9", "Node", "n1", "annotations: {kubernetes.io/config.hash: d8c8d4a5}"),
        pod("bare", "10.0.0.10", ""),
    ];
    let cluster = Cluster::listed(&objects.concat());
    for (n, expected) in [
        "Deployment/web",
        "Rollout/canary",
        "ReplicaSet/lone",
        "CronJob/nightly",
        "Job/once",
        "StatefulSet/db",
        "DaemonSet/log",
        "CloneSet/odd",
        "Pod/etcd-n1",
        "Pod/bare",
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(cluster.at(s(60), &format!("10.0.0.{}", n + 1), 80), expected);
    }
    assert_eq!(cluster.source(s(60), Some("d8c8d4a5"), &[]).unwrap(), "etcd-n1-uid of Pod/etcd-n1");
}

#[test]
fn a_pod_waits_for_its_replica_set_but_not_for_ever() {
    let hash = "labels: {pod-template-hash: 5f4}";
    let mut cluster = Cluster::listed("");
    cluster.apply(s(100), &owned("late", "10.0.0.1", "ReplicaSet", "canary-5f4", hash));
    cluster.apply(s(100), &owned("never", "10.0.0.2", "ReplicaSet", "web-5f4", hash));
    cluster.apply(s(104), "");
    assert_eq!(cluster.at(s(101), "10.0.0.1", 80), "not known");
    assert_eq!(cluster.source(s(101), Some("late-uid"), &[]), Err(NoSource::WorkloadNotKnown));
    assert_eq!(cluster.0.size().waiting, 2);
    cluster.apply(s(105), &controller("ReplicaSet", "canary-5f4", Some(("Rollout", "canary"))));
    assert_eq!(cluster.at(s(101), "10.0.0.1", 80), "Rollout/canary");
    assert_eq!(cluster.at(s(101), "10.0.0.2", 80), "not known");
    cluster.apply(s(110), "");
    assert_eq!(cluster.at(s(101), "10.0.0.2", 80), "Deployment/web");
    // It comes after all, and is right.
    cluster.apply(s(111), &controller("ReplicaSet", "web-5f4", Some(("Rollout", "web"))));
    assert_eq!(cluster.at(s(101), "10.0.0.2", 80), "Rollout/web");
    // One that is gone again when its last pod becomes known.
    cluster.remove(s(112), &controller("ReplicaSet", "canary-5f4", None));
    cluster.apply(s(113), &owned("last", "10.0.0.3", "ReplicaSet", "canary-5f4", hash));
    assert_eq!(cluster.at(s(113), "10.0.0.3", 80), "Rollout/canary");
}

#[test]
fn a_cluster_ip_is_of_the_service_that_had_it_then() {
    let ip = "clusterIP: 10.96.0.1, ports: [{port: 80}]";
    let mut cluster = Cluster::listed(&service("old", ip));
    cluster.remove(s(100), &service("old", ip));
    cluster.apply(s(105), &service("new", ip));
    for (when, expected) in [(s(50), "old:80"), (s(102), "unknown"), (s(105), "new:80"), (s(200), "new:80")] {
        assert_eq!(cluster.at(when, "10.96.0.1", 80), expected, "{when:?}");
    }
    assert_eq!(cluster.named(s(50), "old").as_deref(), Some("old.default.svc.cluster.local"));
    assert_eq!(cluster.named(s(200), "old"), None);
    // Within the uncertainty of both nothing is said; a service that changes stays itself.
    cluster.remove(ms(300_000), &service("new", ip));
    cluster.apply(ms(300_100), &service("newer", ip));
    assert_eq!(cluster.at(ms(299_500), "10.96.0.1", 80), "?");
    cluster.apply(s(400), &service("newer", "clusterIP: 10.96.0.1, ports: [{port: 80}, {port: 81}]"));
    assert_eq!(cluster.at(ms(399_500), "10.96.0.1", 80), "newer:80");
    assert_eq!(cluster.at(ms(399_500), "10.96.0.1", 81), "newer:81");
}

#[test]
fn what_a_listing_does_not_name_is_gone_and_what_came_and_went_meanwhile_is_not_guessed() {
    let (a, b) = (pod("a", "10.0.0.1", ""), pod("b", "10.0.0.2", ""));
    let web = service("web", "clusterIP: 10.96.0.1, ports: [{port: 80}]");
    let mut cluster = Cluster::listed(&[a, b.clone(), web].concat());
    assert_eq!(cluster.0.settled_through(ms(2_999)), None);
    assert_eq!(cluster.0.settled_through(s(13)), Some(s(10)));
    // The watch breaks at 100 and lists anew at 120.
    cluster.0.begin_list(Kind::Pod);
    assert_eq!(cluster.0.missing().collect::<Vec<_>>(), [Kind::Pod]);
    assert_eq!(cluster.0.settled_through(s(110)), None);
    let seen = Span::between(s(100), s(120));
    for object in watched(&b) {
        cluster.0.apply(object, seen).unwrap();
    }
    cluster.0.end_list(Kind::Pod, seen);
    cluster.0.begin_list(Kind::Service);
    cluster.0.end_list(Kind::Service, seen);
    cluster.apply(s(120), "");
    assert_eq!(cluster.0.settled_through(ms(122_999)), None, "what was missed may be told still");
    assert_eq!(cluster.0.settled_through(s(123)), Some(s(120)));
    // However short it was.
    cluster.0.interrupted(Kind::Job);
    cluster.0.resumed(Kind::Job);
    cluster.apply(s(123), "");
    assert_eq!(cluster.0.settled_through(s(125)), None);
    for (when, address, expected) in [
        (98, "10.0.0.1", "Pod/a"),
        (110, "10.0.0.1", "not known"),
        (121, "10.0.0.1", "unknown"),
        (110, "10.0.0.2", "Pod/b"),
        (110, "10.0.0.3", "not known"),
        (98, "10.96.0.1", "web:80"),
        (121, "10.96.0.1", "unknown"),
    ] {
        assert_eq!(cluster.at(s(when), address, 80), expected, "{when} {address}");
    }
    // A listing that was behind: the pod was there all the time, as the next event shows.
    cluster.apply(s(130), &pod("a", "10.0.0.1", ""));
    assert_eq!(cluster.at(s(140), "10.0.0.1", 80), "Pod/a");
    // One that was deleted is not, whatever an old listing says.
    cluster.remove(s(150), &pod("b", "10.0.0.2", ""));
    cluster.apply(s(151), &pod("b", "10.0.0.2", ""));
    assert_eq!(cluster.at(s(160), "10.0.0.2", 80), "unknown");
}

#[test]
fn after_a_restart_what_happened_before_is_told_as_far_as_objects_tell_their_times() {
    let started = |name: &str, address: &str| {
        pod(name, address, "creationTimestamp: 2025-12-31T23:00:00Z").replace(
            "podIPs",
            "containerStatuses: [{state: {running: {startedAt: '2025-12-31T23:00:10Z'}}}], podIPs",
        )
    };
    let svc = service("web", "clusterIP: 10.96.0.1, ports: [{port: 80}]")
        .replace("name: web", "name: web, creationTimestamp: 2025-12-31T22:00:00Z");
    let objects = [started("old", "10.0.0.1"), pod("unsaid", "10.0.0.2", ""), svc];
    let cluster = Cluster::listed(&objects.concat());
    for (when, address, expected) in [
        (-60, "10.0.0.1", "Pod/old"),
        // It was created an hour ago, so before that the address was another's.
        (-3_601, "10.0.0.1", "not known"),
        (-60, "10.0.0.2", "not known"),
        (60, "10.0.0.2", "Pod/unsaid"),
        (-60, "10.96.0.1", "web:80"),
        (-7_300, "10.96.0.1", "not known"),
        (-60, "198.51.100.1", "not known"),
    ] {
        assert_eq!(cluster.at(s(when), address, 80), expected, "{when} {address}");
    }
}

#[test]
fn what_is_gone_is_forgotten_in_time_and_nothing_grows() {
    let mut cluster = Cluster::listed(&service("db", "clusterIP: None, ports: [{port: 80}]"));
    let empty = cluster.0.size();
    for n in 0..100 {
        let name = format!("p{n}");
        let web = service(&name, &format!("clusterIP: 10.96.1.{n}, ports: [{{port: 80}}]"));
        let member = format!("{{addresses: [10.0.0.1], targetRef: {{kind: Pod, uid: {name}-uid}}}}");
        let objects = pod(&name, "10.0.0.1", "") + &web + &slice("db-1", "db", &member);
        cluster.apply(s(n * 10), &objects);
        assert_eq!(cluster.at(s(n * 10), "10.0.0.1", 80), "db:80", "{n}");
        cluster.remove(s(n * 10 + 5), &(pod(&name, "", "") + &web));
    }
    cluster.remove(s(1000), &slice("db-1", "db", ""));
    cluster.0.forget(s(1000));
    let size = cluster.0.size();
    assert!((50..=65).contains(&size.gone), "{size:?}");
    cluster.0.forget(s(2000));
    cluster.0.settle(s(2000));
    assert_eq!(cluster.0.size(), empty);
    assert_eq!(cluster.at(s(500), "10.0.0.1", 80), "not known");
    assert_eq!(cluster.at(s(2000), "10.0.0.1", 80), "unknown");
}

#[test]
fn an_object_that_makes_no_sense_is_refused_and_changes_nothing() {
    let mut cluster = Cluster::listed(&service("web", "clusterIP: 10.96.0.1"));
    for (yaml, field) in [
        ("kind: Pod\nmetadata: {name: a}", "metadata.uid"),
        ("kind: Service\nmetadata: {name: a.b}", "metadata.name"),
        (
            "kind: Service\nmetadata: {name: web}\nspec: {type: ExternalName, externalName: 'a b'}",
            "spec.externalName",
        ),
        ("kind: ServiceEntry\nmetadata: {name: web}", "spec.hosts"),
        (
            "kind: EndpointSlice\nmetadata: {name: web}\nendpoints: [{addresses: [x]}]",
            "endpoints[0].addresses[0]",
        ),
        ("kind: Namespace\nmetadata: {name: a.b}", "metadata.name"),
    ] {
        let err = cluster.0.apply(watched(yaml).remove(0), Span::at(s(1))).unwrap_err();
        assert_eq!(err.field, field, "{yaml}");
    }
    cluster.0.settle(s(1));
    assert_eq!(cluster.at(s(1), "10.96.0.1", 80), "web:80");
}

#[test]
fn the_mesh_is_the_one_that_the_same_objects_in_a_file_make() {
    let api = |kind: &str| match kind {
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ServiceEntry" => "networking.istio.io/v1",
        "Deployment" | "ReplicaSet" | "StatefulSet" => "apps/v1",
        "Job" | "CronJob" => "batch/v1",
        _ => "v1",
    };
    let template =
        "spec: {selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}}}\n";
    let objects = [
        service("web", "clusterIP: 10.96.0.1, ports: [{port: 80, name: tcp}]"),
        slice("web-1", "web", "{addresses: [10.0.0.1], targetRef: {kind: Pod, uid: web-uid}}"),
        service("db", "clusterIP: None, ports: [{port: 5432, name: tcp}]"),
        slice("db-1", "db", "{addresses: [10.0.0.2]}"),
        controller("Deployment", "web", None) + template,
        controller("ReplicaSet", "web-5f4", Some(("Deployment", "web"))) + template,
        controller("ReplicaSet", "canary-1", Some(("Rollout", "canary"))) + template,
        owned("web", "10.0.0.1", "ReplicaSet", "web-5f4", "labels: {app: web, pod-template-hash: 5f4}"),
        owned("lost", "10.0.0.3", "ReplicaSet", "lost-1", "labels: {app: lost, pod-template-hash: '1'}"),
        owned("db-0", "10.0.0.2", "StatefulSet", "db", "labels: {app: db}"),
        "\n---\nkind: ServiceEntry\nmetadata: {name: ext}\nspec: {hosts: [ext.test], ports: [{number: 443, name: tls, protocol: TLS}]}\n".to_owned(),
    ]
    .concat();
    let cluster = Cluster::listed(&objects);
    let text: Vec<String> = objects
        .split("\n---\n")
        .filter(|text| !text.is_empty())
        .map(|text| {
            let kind = text.lines().next().unwrap().strip_prefix("kind: ").unwrap();
            format!("apiVersion: {}\n{text}", api(kind))
        })
        .collect();
    let mut builder = Builder::default();
    builder.add_text("a.yaml", &text.join("\n---\n")).unwrap();
    assert_eq!(cluster.0.mesh(), builder.build().unwrap().mesh);
}
