mod changing;
mod hosts;
mod judging;

use proptest::prelude::*;

use super::*;
use crate::attribute::{Flow, attribute};
use crate::fixture::{
    all_watched, bookinfo, bookinfo_flows, deployment, flow, host, mesh, ns, service, workload,
};
use crate::mesh_index::MeshIndex;
use crate::model::graph::{Dependency, Evidence, Pods, PortUse, WorkloadNode};
use crate::model::mesh::Labels;
use crate::model::mesh::{Pod, PodRef, PortProtocol, Workload};
use changing::current_of;

fn planned(mesh: &Mesh, flows: &[Flow]) -> Plan {
    propose(&attribute(&MeshIndex::new(mesh), flows, &all_watched(mesh)), mesh)
}

/// `namespace/name key=value,... -> host host`, without what all have in common.
fn lines(plan: &Plan) -> Vec<String> {
    let line = |sidecar: &Sidecar| {
        let labels = &sidecar.spec.workload_selector.labels;
        let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let hosts: Vec<_> = sidecar.spec.egress[0].hosts.iter().map(|h| String::from(h.clone())).collect();
        let hosts = hosts.join(" ").replace(".default.svc.cluster.local", "");
        format!("{} {} -> {hosts}", sidecar.metadata.name, labels.join(","))
    };
    plan.sidecars.iter().map(line).collect()
}

#[test]
fn bookinfo_gets_the_sidecars_that_a_person_would_write() {
    let plan = planned(&bookinfo(), &bookinfo_flows());
    assert_eq!(
        lines(&plan),
        [
            "productpage app=productpage -> */details */reviews",
            "ratings app=ratings -> */mongodb",
            "reviews app=reviews -> */ratings",
        ]
    );
    let verdicts: Vec<_> = plan
        .verdicts
        .iter()
        .map(|v| (v.name.as_str(), v.workloads.len(), v.before.services, v.after.services, v.verdict.clone()))
        .collect();
    let nothing = || Verdict::Blocked(vec![Fact::NothingObserved]);
    assert_eq!(
        verdicts,
        [
            ("details", 1, 5, 5, nothing()),
            ("mongodb", 1, 5, 5, nothing()),
            ("productpage", 1, 5, 2, Verdict::Ready),
            ("ratings", 1, 5, 1, Verdict::Ready),
            ("reviews", 3, 5, 1, Verdict::Ready),
        ]
    );
    let sidecar = &plan.sidecars[0];
    assert_eq!(sidecar.metadata.namespace, ns("default"));
    assert_eq!(
        sidecar.metadata.labels,
        Labels::from([("app.kubernetes.io/managed-by".to_owned(), "sidescope".to_owned())])
    );
    assert!(sidecar.metadata.labels.iter().all(|(k, v)| !k.contains("istio.io") && !v.contains("istio.io")));
    let ten_times: Vec<_> = std::iter::repeat_n(bookinfo_flows(), 10).flatten().collect();
    assert_eq!(planned(&bookinfo(), &ten_times), plan);
}

#[test]
fn evidence_counts_as_the_proxy_routes() {
    use PortProtocol::{Http, Tcp, Tls, Udp, Unknown};
    let with_address = service("svc", "10.96.0.1", "{port: 80}") + &deployment("caller", "v1", "10.0.0.1");
    let without = with_address.replace("clusterIP: 10.96.0.1", "clusterIP: None");
    let (with_address, without) = (mesh(&with_address), mesh(&without));
    let address = Evidence::Address("10.96.0.1".parse().unwrap());
    let named = Evidence::Host(host("svc"));
    for (protocol, seen, address_only, counts, counts_without) in [
        (Http, vec![&named], false, true, true),
        (Http, vec![&address], false, false, false),
        (Http, vec![&address], true, true, true),
        (Http, vec![&address, &named], false, true, true),
        (Tcp, vec![&named], false, false, true),
        (Tcp, vec![&address], false, true, true),
        (Tls, vec![&named], false, false, true),
        (Tls, vec![&address], false, true, true),
        (Unknown, vec![&named], false, true, true),
        (Unknown, vec![&address], false, true, true),
        (Udp, vec![&address, &named], true, false, false),
    ] {
        let port_use = PortUse {
            protocol,
            seen: seen.into_iter().cloned().collect(),
            address_only,
            connects: 1,
            host_unknown: false,
            existing: false,
            unknown_hosts: BTreeSet::new(),
        };
        let graph = Graph {
            workloads: vec![WorkloadNode {
                workload: workload("default/Deployment/caller-v1"),
                dependencies: vec![Dependency {
                    host: host("svc.default.svc.cluster.local"),
                    namespace: ns("default"),
                    ports: BTreeMap::from([(80, port_use.clone())]),
                }],
                pods: Pods { watched: 1, known: 1 },
                losses: BTreeSet::new(),
                direct: Vec::new(),
            }],
            ..Graph::default()
        };
        for (mesh, counts) in [(&with_address, counts), (&without, counts_without)] {
            assert_eq!(propose(&graph, mesh).sidecars.len(), usize::from(counts), "{port_use:?}");
        }
    }
}

#[test]
fn a_host_on_an_http_port_replaces_the_service_of_the_address() {
    let objects = [
        service("web", "10.96.0.1", "{port: 80, name: http}"),
        service("api", "10.96.0.2", "{port: 80, name: http}"),
        deployment("caller", "v1", "10.0.0.1"),
    ];
    let mesh = mesh(&objects.concat());
    let call = |hosts: &[&str]| flow("default/Deployment/caller-v1", "10.96.0.1", 80, hosts);
    for (flows, expected) in [
        (vec![call(&["api"])], "caller app=caller -> */api"),
        (vec![call(&["api"]), call(&[])], "caller app=caller -> */api */web"),
        (vec![call(&["gone"])], "caller app=caller -> */web"),
    ] {
        assert_eq!(lines(&planned(&mesh, &flows)), [expected]);
    }
}

#[test]
fn aliases_bring_their_targets_and_wildcards_stay_wildcards() {
    let alias = |name: &str, target: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: ExternalName, externalName: {target}, ports: [{{port: 80, name: http}}]}}\n"
        )
    };
    let objects = [
        alias("a", "b.default.svc.cluster.local"),
        alias("b", "real.default.svc.cluster.local"),
        alias("x", "z.default.svc.cluster.local"),
        alias("z", "x.default.svc.cluster.local"),
        service("real", "10.96.0.1", "{port: 80, name: http}"),
        deployment("caller", "v1", "10.0.0.1"),
        "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: w}\nspec: {hosts: ['*.wild.test'], ports: [{number: 80, name: http, protocol: HTTP}]}\n".to_owned(),
    ];
    let mesh = mesh(&objects.concat());
    for (named, expected) in [("a", "*/a */b */real"), ("x", "*/x */z"), ("q.wild.test", "*/*.wild.test")] {
        let flows = [flow("default/Deployment/caller-v1", "198.51.100.1", 80, &[named])];
        assert_eq!(lines(&planned(&mesh, &flows)), [format!("caller app=caller -> {expected}")]);
    }
}

/// A workload with its template labels, `matchLabels` and the labels of one pod.
fn add(
    mesh: &mut Mesh,
    name: &str,
    template: &[(&str, &str)],
    matching: &[(&str, &str)],
    pod: &[(&str, &str)],
) {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        let owned = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        owned.collect()
    };
    let key = workload(name);
    let pod = Pod {
        workload: key.clone(),
        labels: labels(pod).into(),
        addresses: BTreeSet::new(),
        host_network: false,
    };
    let pod_name = PodRef { namespace: key.namespace.clone(), name: format!("{}-{}", key.kind, key.name) };
    mesh.pods.insert(pod_name, pod);
    mesh.workloads.insert(
        key,
        Workload { template_labels: labels(template), match_labels: labels(matching), ..Workload::default() },
    );
}

/// Every workload of the mesh calls one service.
fn all_call(mesh: &mut Mesh) -> Plan {
    let more = crate::fixture::mesh(&service("svc", "10.96.0.1", "{port: 80, name: http}"));
    mesh.services = more.services;
    let flows: Vec<_> =
        mesh.workloads.keys().map(|key| flow(&key.to_string(), "10.96.0.1", 80, &["svc.default"])).collect();
    planned(mesh, &flows)
}

#[test]
fn selectors_are_as_short_as_they_can_be_and_no_shorter() {
    const CANONICAL: &str = "service.istio.io/canonical-name";
    type Labelled<'a> =
        (&'a str, &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)]);
    let a: &[_] = &[("app", "a")];
    let a_v1: &[_] = &[("app", "a"), ("v", "1")];
    let a_v2: &[_] = &[("app", "a"), ("v", "2")];
    let canonical: &[_] = &[(CANONICAL, "a"), ("app", "a")];
    let other: &[_] = &[(CANONICAL, "b"), ("app", "a")];
    let name: &[_] = &[("app.kubernetes.io/name", "n"), ("app", "a")];
    let cases: [(&[Labelled<'_>], &[&str]); 9] = [
        // Versions of one service share a Sidecar.
        (&[("x/D/a1", a_v1, a_v1, a_v1), ("x/D/a2", a_v2, a_v2, a_v2)], &["a app=a"]),
        // The same label in another namespace is another workload.
        (&[("x/D/a", a, a, a), ("y/D/a", a, a, a)], &["a app=a", "a app=a"]),
        // Istio's order of labels.
        (&[("x/D/q", canonical, a, a)], &["a service.istio.io/canonical-name=a"]),
        (&[("x/D/q", name, a, a)], &["n app.kubernetes.io/name=n"]),
        // No canonical label: the owner's name and all of its labels.
        (&[("x/D/q", &[("k", "v")], &[("k", "v")], a)], &["q k=v"]),
        (&[("x/D/q", &[("k", "v")], &[], a)], &["q k=v"]),
        // `app=a` would hit b's pods, which is another canonical workload.
        (
            &[("x/D/a", a_v1, a_v1, a_v1), ("x/D/b", other, other, other)],
            &["a app=a,v=1", "b service.istio.io/canonical-name=b"],
        ),
        // A pod that was labelled by hand counts as much as a template.
        (
            &[("x/D/a", a_v1, a_v1, a_v1), ("x/D/c", &[("k", "v")], &[("k", "v")], a)],
            &["a app=a,v=1", "c k=v"],
        ),
        // Not all of the group has the label: each owner by its own labels.
        (
            &[("x/D/a", &[("k", "v")], &[("k", "v")], &[("k", "v")]), ("x/S/q", a_v1, a_v1, a_v1)],
            &["a k=v", "q app=a,v=1"],
        ),
    ];
    for (workloads, expected) in cases {
        let mut mesh = Mesh::default();
        for (name, template, matching, pod) in workloads {
            add(&mut mesh, name, template, matching, pod);
        }
        let lines: Vec<_> = lines(&all_call(&mut mesh))
            .iter()
            .map(|line| line.split(" -> ").next().unwrap().to_owned())
            .collect();
        assert_eq!(lines, expected, "{workloads:?}");
    }
}

#[test]
fn workloads_that_cannot_be_told_apart_get_no_sidecar_and_are_named() {
    let mut mesh = Mesh::default();
    let v: &[_] = &[("k", "v")];
    let both: &[_] = &[("k", "v"), ("l", "w")];
    add(&mut mesh, "x/Deployment/wide", v, v, v);
    add(&mut mesh, "x/Deployment/narrow", both, both, both);
    add(&mut mesh, "x/Pod/bare", &[], &[], &[]);
    let plan = all_call(&mut mesh);
    assert_eq!(plan.sidecars.len(), 1, "narrow can be told apart");
    let reasons: BTreeMap<_, _> =
        plan.verdicts.iter().map(|v| (v.name.as_str(), v.verdict.to_string())).collect();
    assert_eq!(
        reasons["wide"],
        "blocked: its labels k=v select pods of x/Deployment/narrow as well; give them labels that tell them apart"
    );
    assert!(reasons["bare"].contains("no label"), "{}", reasons["bare"]);
    let wide = plan.verdicts.iter().find(|v| v.name == "wide").unwrap();
    assert_eq!((wide.before.services, wide.after.services), (1, 1));
}

#[test]
fn a_new_version_inherits_what_the_others_were_seen_to_call() {
    let mut mesh = bookinfo();
    let late: &[_] = &[("app", "reviews"), ("version", "v4")];
    add(&mut mesh, "default/Deployment/reviews-v4", late, late, late);
    let plan = planned(&mesh, &bookinfo_flows());
    assert!(lines(&plan).contains(&"reviews app=reviews -> */ratings".to_owned()));
    let reviews = plan.verdicts.iter().find(|v| v.name == "reviews").unwrap();
    assert_eq!(reviews.workloads.len(), 4);
}

const ENTRY: &str = "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\n";

#[test]
fn two_entries_of_one_host_count_by_host_if_one_of_them_has_no_address() {
    let entry = |name: &str, addresses: &str| {
        format!(
            "{ENTRY}metadata: {{name: {name}}}\nspec: {{hosts: [db.test], addresses: [{addresses}], ports: [{{number: 443, name: tls, protocol: TLS}}]}}\n"
        )
    };
    for (first, second, counts) in
        [("", "10.9.9.9", true), ("10.9.9.9", "", true), ("10.9.9.8", "10.9.9.9", false), ("", "", true)]
    {
        let mesh =
            mesh(&[entry("a", first), entry("b", second), deployment("caller", "v1", "10.0.0.1")].concat());
        let flows = [flow("default/Deployment/caller-v1", "198.51.100.1", 443, &["db.test"])];
        let plan = planned(&mesh, &flows);
        assert_eq!(plan.sidecars.len(), usize::from(counts), "{first:?} {second:?}");
        let nothing = Verdict::Blocked(vec![Fact::NothingCounts]);
        assert_eq!(plan.verdicts[0].verdict == nothing, !counts, "{first:?} {second:?}");
    }
}

#[test]
fn whoever_shares_a_port_with_a_service_without_an_address_stays_in_scope() {
    let objects = |free: &str| {
        let free = format!("{ENTRY}metadata: {{name: free}}\nspec: {{hosts: [free.test], {free}}}\n");
        [
            free,
            "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: alias}\nspec: {type: ExternalName, externalName: far.test, ports: [{port: 6379, name: tcp}]}\n".to_owned(),
            service("mysql", "10.96.0.1", "{port: 3306, name: tcp}"),
            service("tls", "10.96.0.2", "{port: 3306, name: tls}"),
            service("unsaid", "10.96.0.3", "{port: 3306}"),
            service("http", "10.96.0.4", "{port: 3306, name: http}"),
            service("udp", "10.96.0.5", "{port: 3306, name: udp, protocol: UDP}"),
            service("elsewhere", "10.96.0.6", "{port: 3307, name: tcp}"),
            service("headless", "None", "{port: 3306, name: tcp}"),
            service("redis", "10.96.0.7", "{port: 6379, name: tcp}"),
            service("web", "10.96.0.8", "{port: 80, name: http}, {port: 3306, name: tcp}"),
            deployment("caller", "v1", "10.0.0.1"),
        ]
        .concat()
    };
    let ports = |protocol: &str| format!("ports: [{{number: 3306, name: p, protocol: {protocol}}}]");
    let sharing = "*/free.test */mysql */tls */unsaid */web";
    for (free, called, expected) in [
        (ports("TCP"), "free.test", sharing),
        (ports("TLS"), "free.test", sharing),
        (ports("HTTP"), "free.test", "*/free.test"),
        ("addresses: [10.9.9.9], ".to_owned() + &ports("TCP"), "free.test", "*/free.test"),
        (ports("TCP"), "alias", "*/alias */far.test */redis"),
        (ports("TCP"), "mysql", "*/mysql"),
        (ports("TCP"), "headless", "*/headless"),
    ] {
        let mesh = mesh(&objects(&free));
        // By name, and by the address where there is one.
        let (address, port) = match called {
            "mysql" => ("10.96.0.1", 3306),
            "alias" => ("198.51.100.1", 6379),
            _ if free.starts_with('a') => ("10.9.9.9", 3306),
            _ => ("198.51.100.1", 3306),
        };
        let flows = [flow("default/Deployment/caller-v1", address, port, &[called])];
        let plan = planned(&mesh, &flows);
        assert_eq!(lines(&plan), [format!("caller app=caller -> {expected}")], "{free} {called}");
        let sharing = &plan.verdicts[0].sharing;
        let called = if called == "alias" { 2 } else { 1 };
        assert_eq!(sharing.len() + called, plan.verdicts[0].after.services, "{free}");
    }
}

#[test]
fn a_workload_without_a_sidecar_is_told_why_by_its_cause() {
    let mesh = bookinfo();
    let call = |address: &str, hosts: &[&str]| flow("default/Deployment/ratings-v1", address, 9080, hosts);
    for (flows, expected) in [
        (vec![], Fact::NothingObserved),
        (vec![call("198.51.100.1", &[])], Fact::OnlyUnresolved),
        (vec![call("10.0.0.1", &[])], Fact::OnlyDirect),
        (vec![call("10.0.0.1", &[]), call("198.51.100.1", &[])], Fact::OnlyUnresolved),
    ] {
        let plan = planned(&mesh, &flows);
        let ratings = plan.verdicts.iter().find(|v| v.name == "ratings").unwrap();
        assert_eq!(ratings.verdict, Verdict::Blocked(vec![expected]), "{flows:?}");
    }
}

#[test]
fn a_sidecar_s_verdict_says_what_may_be_missing() {
    let mesh = bookinfo();
    let unread = |mut flow: Flow| {
        flow.host_unknown = true;
        flow
    };
    let call = |address: &str| flow("default/Deployment/ratings-v1", address, 9080, &[]);
    let mut flows = bookinfo_flows();
    flows.extend([
        unread(call("10.96.0.2")),
        unread(call("10.0.0.1")),
        call("198.51.100.1"),
        call("198.51.100.2"),
    ]);
    let mut graph = attribute(&MeshIndex::new(&mesh), &flows, &all_watched(&mesh));
    let missing = |graph: &Graph, name: &str| {
        let plan = propose(graph, &mesh);
        let verdict = plan.verdicts.into_iter().find(|v| v.name == name).unwrap();
        assert_eq!(verdict.verdict, Verdict::Ready);
        verdict.doubts
    };
    let mut expected = vec![
        Doubt::HostUnknown(host("details.default.svc.cluster.local"), 9080),
        Doubt::DirectHostUnknown("10.0.0.1:9080".parse().unwrap()),
        Doubt::Unresolved(2),
    ];
    assert_eq!(missing(&graph, "ratings"), expected);
    assert_eq!(missing(&graph, "reviews"), []);
    graph.unresolved[0].reason = crate::model::graph::UnresolvedReason::AmbiguousAddress;
    // Of the machine they say nothing: only the workload that they hit is incomplete.
    graph.losses.insert("headRingFull".to_owned(), 3);
    let ratings = |node: &&mut WorkloadNode| node.workload.name == "ratings-v1";
    let hit = &mut graph.workloads.iter_mut().find(ratings).unwrap().losses;
    hit.extend(["headRingFull", "edgesFull"].map(str::to_owned));
    graph.unattributed = crate::model::graph::Unattributed { unknown: 1, ambiguous: 1, foreign: 9 };
    expected[2] = Doubt::Unresolved(1);
    let causes = BTreeSet::from(["edgesFull", "headRingFull"].map(str::to_owned));
    expected.extend([Doubt::AmbiguousAddress(1), Doubt::Lost(causes), Doubt::Unattributed(2)]);
    assert_eq!(missing(&graph, "ratings"), expected);
    assert_eq!(missing(&graph, "reviews"), expected[5..]);
    assert_eq!(
        expected[4].to_string(),
        "observations of it were lost, or may have been: edgesFull, headRingFull"
    );
}

#[test]
fn what_nobody_watched_is_not_judged() {
    let mut mesh = bookinfo();
    add(&mut mesh, "default/DaemonSet/node", &[("app", "node")], &[], &[("app", "node")]);
    for pod in mesh.pods.values_mut().filter(|pod| pod.workload.name == "node") {
        pod.host_network = true;
    }
    let watched = BTreeMap::from([
        (workload("default/Deployment/reviews-v1"), 1),
        (workload("default/Deployment/details-v1"), 1),
    ]);
    let plan = propose(&attribute(&MeshIndex::new(&mesh), &[], &watched), &mesh);
    let judged: Vec<_> = plan.verdicts.iter().map(|v| (v.name.as_str(), v.pods)).collect();
    assert_eq!(
        judged,
        [("details", Pods { watched: 1, known: 1 }), ("reviews", Pods { watched: 1, known: 3 })]
    );
    // productpage, ratings and mongodb: what lives in the node's own network has no sidecar.
    assert_eq!(plan.not_judged, 3);
}

fn any_labels() -> impl Strategy<Value = Vec<(&'static str, &'static str)>> {
    let keys = vec!["service.istio.io/canonical-name", "app.kubernetes.io/name", "app", "version", "x"];
    prop::sample::subsequence(keys, 0..=4).prop_flat_map(|keys| {
        let values = prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), keys.len());
        values.prop_map(move |values| keys.iter().copied().zip(values).collect())
    })
}

proptest! {
    #[test]
    fn no_pod_matches_two_selectors_and_none_another_s(
        workloads in prop::collection::vec((any_labels(), 0..4_usize, any_labels(), prop::sample::select(vec!["D", "S"])), 1..9),
    ) {
        let mut mesh = Mesh::default();
        for (n, (template, matching, extra, kind)) in workloads.iter().enumerate() {
            // Kubernetes wants matchLabels to be part of the template, and pods to have all of the template's labels.
            let matching = &template[..(*matching).min(template.len())];
            let mut pod: BTreeMap<_, _> = extra.iter().copied().collect();
            pod.extend(template.iter().copied());
            let pod: Vec<_> = pod.into_iter().collect();
            add(&mut mesh, &format!("ns/{kind}/{}", ["a", "b", "c", "d", "e", "f", "g", "h"][n]), template, matching, &pod);
        }
        let plan = all_call(&mut mesh);
        let mut names = BTreeSet::new();
        for sidecar in &plan.sidecars {
            prop_assert!(names.insert(&sidecar.metadata.name));
            prop_assert!(!sidecar.spec.workload_selector.labels.is_empty());
        }
        for pod in mesh.pods.values() {
            let hit: Vec<_> = plan
                .sidecars
                .iter()
                .filter(|s| s.spec.workload_selector.labels.iter().all(|(k, v)| pod.labels.get(k) == Some(v)))
                .map(|s| s.metadata.name.clone())
                .collect();
            prop_assert!(hit.len() <= 1, "{pod:?} {hit:?}");
            for name in hit {
                let made = |v: &&WorkloadVerdict| v.verdict == Verdict::Ready && v.sidecar == name;
                let verdict = plan.verdicts.iter().find(made).unwrap();
                prop_assert!(verdict.workloads.contains(&pod.workload), "{pod:?} is selected by {verdict:?}");
            }
        }
        let decided: usize = plan.verdicts.iter().map(|v| v.workloads.len()).sum();
        prop_assert_eq!(decided, mesh.workloads.len(), "each workload has one verdict");
    }
}
