//! Verdicts on workloads of which records are kept.

use super::*;
use crate::model::dependencies::{Coverage, Dependency, EvidenceKind, Loss, Port, Record, Unresolved};
use crate::model::graph::UnresolvedReason;
use crate::model::names::ObjectName;
use crate::model::stamp::{Seconds, Timestamp};

const HOUR: u64 = 3600;
const NOW: Time = Time(1_800_000_000_000);

fn ago(seconds: u64) -> Timestamp {
    Timestamp::floor(NOW.plus(-Seconds(seconds).millis()))
}

fn http_port() -> Port {
    Port {
        port: 80,
        protocol: PortProtocol::Http,
        seen: [EvidenceKind::Host].into_iter().collect(),
        address_only: false,
        existing: false,
        host_unknown: None,
        first_seen: ago(100 * HOUR),
        last_seen: ago(HOUR),
        covered_when_last_seen: Seconds(100 * HOUR),
    }
}

fn dependency(name: &str, port: Port) -> Dependency {
    let host = host(&format!("{name}.default.svc.cluster.local"));
    Dependency { host, namespace: ns("default"), first_by: None, ports: vec![port] }
}

/// Watched for 100 hours without a gap; it calls `web`.
fn record() -> Record {
    Record {
        coverage: Coverage {
            covered: Seconds(100 * HOUR),
            through: Some(ago(60)),
            watched_pods: 1,
            pods: 1,
            ..Coverage::default()
        },
        dependencies: vec![dependency("web", http_port())],
        ..Record::default()
    }
}

fn objects() -> String {
    [
        deployment("caller", "v1", "10.0.0.1"),
        service("web", "10.96.0.1", "{port: 80, name: http}"),
        service("db", "10.96.0.2", "{port: 3306, name: tcp}"),
    ]
    .concat()
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: sidescope.io/v1alpha1\nkind: ScopePolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn plan_of(mesh: &Mesh, records: &[(&str, Record)], unwatched: &[(&str, &str)], current: &Current) -> Plan {
    let names: Vec<_> = records.iter().map(|(name, _)| workload(name)).collect();
    let mut seen = Recorded {
        records: names.iter().zip(records.iter().map(|(_, record)| record)).collect(),
        ..Recorded::default()
    };
    let nodes: Vec<_> = unwatched.iter().map(|(name, node)| (workload(name), *node)).collect();
    for (name, node) in &nodes {
        seen.unwatched.entry(name).or_default().insert(ObjectName::new(*node).unwrap());
    }
    let planner = Planner::new(mesh, seen.workloads(), Basis::Records);
    let plan = planner.plan(&seen, current, NOW);
    // One workload alone comes to the same.
    for name in &names {
        let alone = planner.replan(name, &seen, current, NOW).unwrap();
        for verdict in alone.verdicts {
            assert!(plan.verdicts.contains(&verdict), "{verdict:?}");
        }
        for change in alone.changes {
            assert!(plan.deferred > 0 || plan.changes.contains(&change), "{change:?}");
        }
    }
    plan
}

const CALLER: &str = "default/Deployment/caller-v1";

fn verdict_with(more: &str, record: Record) -> String {
    let plan = plan_of(&mesh(&(objects() + more)), &[(CALLER, record)], &[], &Current::default());
    plan.verdicts[0].verdict.to_string()
}

#[test]
fn a_workload_is_ready_after_its_window_and_learns_before() {
    assert_eq!(verdict_with("", record()), "ready");
    let mut young = record();
    young.coverage.covered = Seconds(2 * HOUR + 600);
    young.dependencies[0].ports[0].covered_when_last_seen = Seconds(HOUR);
    assert_eq!(verdict_with("", young.clone()), "learning (2h10m of 24h covered)");
    assert_eq!(verdict_with(&policy("istio-system", "p", "{learningWindow: 2h}"), young.clone()), "ready");
    // What came before its agent is no gap.
    young.coverage.interrupted = Some(ago(2 * HOUR + 600));
    assert_eq!(verdict_with("", young), "learning (2h10m of 24h covered)");
}

#[test]
fn whoever_was_not_observed_is_blocked_and_told_why() {
    let node = plan_of(
        &mesh(&objects()),
        &[(CALLER, Record { coverage: Coverage { pods: 3, ..record().coverage }, ..record() })],
        &[(CALLER, "node-7")],
        &Current::default(),
    );
    assert_eq!(
        node.verdicts[0].verdict.to_string(),
        "blocked: not observed: 1 of 3 pods are watched (no agent on node-7)"
    );
    let mut gap = record();
    gap.coverage.interrupted = Some(ago(3 * HOUR));
    gap.coverage.covered_when_interrupted = Seconds(97 * HOUR);
    gap.losses = vec![
        Loss { cause: "edgesFull".to_owned(), last: ago(3 * HOUR) },
        Loss { cause: "headRingFull".to_owned(), last: ago(90 * HOUR) },
    ];
    let said = verdict_with("", gap.clone());
    let until = ago(3 * HOUR);
    assert_eq!(
        said,
        format!(
            "blocked: not observed: {CALLER} was not watched, or not wholly, until {until} (lost: edgesFull); 3h of 24h covered since"
        )
    );
    gap.coverage.interrupted = Some(ago(25 * HOUR));
    gap.coverage.covered_when_interrupted = Seconds(75 * HOUR);
    assert_eq!(verdict_with("", gap), "ready", "a day without a gap is enough");
    type Change = fn(&mut Record);
    let cases: [(Change, &str); 5] = [
        (|r| r.coverage.through = Some(ago(2 * HOUR)), "nothing was told of its pods since"),
        (
            |r| r.dependencies[0].ports[0].host_unknown = Some(ago(HOUR)),
            "a host could not be read of a request to web.default",
        ),
        (
            |r| {
                r.unresolved = vec![Unresolved {
                    address: "10.9.9.9".parse().unwrap(),
                    port: 80,
                    reason: UnresolvedReason::AmbiguousAddress,
                    connects: 1,
                    last_seen: ago(HOUR),
                }];
            },
            "whose 10.9.9.9:80 was cannot be told",
        ),
        (|r| r.more_unknown_hosts = Some(ago(HOUR)), "more unknown hosts"),
        (|r| r.broad = Some(ago(HOUR)), "too broad"),
    ];
    for (change, expected) in cases {
        let mut record = record();
        change(&mut record);
        let said = verdict_with("", record);
        assert!(said.starts_with("blocked: ") && said.contains(expected), "{expected}: {said}");
    }
    let mut old = record();
    old.dependencies[0].ports[0].host_unknown = Some(ago(30 * HOUR));
    assert_eq!(verdict_with("", old), "ready");
}

#[test]
fn risks_block_and_name_their_object_until_they_are_accepted_for_longer() {
    let istio = |group: &str, kind: &str, namespace: &str, spec: &str| {
        format!(
            "\n---\napiVersion: {group}.istio.io/v1\nkind: {kind}\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    let mesh_config = |text: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata: {{mesh: \"{text}\"}}\n"
        )
    };
    let entry = istio(
        "networking",
        "ServiceEntry",
        "default",
        "{hosts: [far.test], ports: [{number: 443, name: tls, protocol: TLS}]}",
    );
    let allocated = entry.replace("spec:", "status: {addresses: [{value: 240.240.0.1}]}\nspec:");
    let strict = "{mtls: {mode: STRICT}}";
    let by_principal = "{rules: [{from: [{source: {namespaces: [a]}}]}]}";
    for (more, risk, meets, object) in [
        (
            istio("security", "PeerAuthentication", "istio-system", strict),
            "strict",
            "a reset, or 503",
            "PeerAuthentication istio-system/x",
        ),
        (
            istio("security", "PeerAuthentication", "default", strict),
            "strict",
            "a reset, or 503",
            "PeerAuthentication default/x",
        ),
        (
            istio(
                "security",
                "PeerAuthentication",
                "default",
                "{selector: {matchLabels: {a: b}}, portLevelMtls: {\"80\": {mode: STRICT}}}",
            ),
            "strict",
            "a call to db.default",
            "PeerAuthentication default/x",
        ),
        (
            mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}"),
            "registryOnly",
            "502",
            "ConfigMap istio-system/istio",
        ),
        (
            istio("networking", "Sidecar", "default", "{outboundTrafficPolicy: {}}"),
            "registryOnly",
            "502",
            "Sidecar default/x",
        ),
        (
            istio("security", "AuthorizationPolicy", "default", by_principal),
            "authorization",
            "403",
            "AuthorizationPolicy default/x",
        ),
        (
            entry.clone()
                + &istio(
                    "networking",
                    "DestinationRule",
                    "default",
                    "{host: \"*.test\", trafficPolicy: {tls: {mode: SIMPLE}}}",
                ),
            "tlsOrigination",
            "plain text",
            "DestinationRule default/x",
        ),
        (
            entry.clone() + &mesh_config("defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}"),
            "dns",
            "NXDOMAIN",
            "far.test",
        ),
        (allocated, "autoAllocated", "a timeout", "far.test"),
    ] {
        let said = verdict_with(&more, record());
        assert!(said.starts_with("blocked: a call to "), "{risk}: {said}");
        for part in [meets, object, &format!("[{risk}]")] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let accepting = more.clone() + &policy("istio-system", "p", &format!("{{accept: [{risk}]}}"));
        assert_eq!(verdict_with(&accepting, record()), "learning (100h of 168h covered)", "{risk}");
        let sooner =
            more.clone() + &policy("default", "p", &format!("{{accept: [{risk}], acceptAfter: 90h}}"));
        assert_eq!(verdict_with(&sooner, record()), "ready", "{risk}");
    }
    for harmless in [
        entry,
        istio("security", "PeerAuthentication", "istio-system", strict)
            + &istio("security", "PeerAuthentication", "default", "{mtls: {mode: PERMISSIVE}}"),
        istio("security", "PeerAuthentication", "elsewhere", strict),
        istio(
            "security",
            "PeerAuthentication",
            "istio-system",
            "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}",
        ),
        istio(
            "security",
            "AuthorizationPolicy",
            "default",
            "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
        ),
        istio(
            "networking",
            "DestinationRule",
            "default",
            "{host: db, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}",
        ),
    ] {
        assert_eq!(verdict_with(&harmless, record()), "ready", "{harmless}");
    }
    // Everybody whom it could hit is in scope.
    let mut all = record();
    all.dependencies.push(dependency("db", http_port()));
    assert_eq!(verdict_with(&istio("security", "PeerAuthentication", "istio-system", strict), all), "ready");
}

#[test]
fn a_sidecar_that_would_be_wrong_or_idle_is_not_made() {
    let caller = |labels: &str| {
        deployment("caller", "v1", "10.0.0.1").replace(
            "template: {metadata: {labels: {",
            &format!("template: {{metadata: {{labels: {{{labels}, "),
        )
    };
    let sidecar = |name: &str, spec: &str| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n"
        )
    };
    let namespace = |labels: &str| {
        format!("\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: default, labels: {{{labels}}}}}\n")
    };
    let bare = objects().replace(", service.istio.io/canonical-name: caller", "");
    let injected = deployment("other", "v1", "10.0.0.2");
    for (text, expected) in [
        (
            objects() + &sidecar("mine", "{workloadSelector: {labels: {version: v1}}}"),
            "blocked: Sidecar default/mine selects its pods",
        ),
        (
            objects() + &sidecar("all", "{workloadSelector: {}}"),
            "blocked: Sidecar default/all selects its pods",
        ),
        (objects() + &sidecar("else", "{workloadSelector: {labels: {version: v2}}}"), "ready"),
        (objects() + &sidecar("default", "{egress: [{hosts: [\"./*\"]}]}"), "ready"),
        (
            objects().replace(&deployment("caller", "v1", "10.0.0.1"), &caller("istio.io/gateway-name: w")),
            "blocked: it is a gateway or a waypoint",
        ),
        (
            objects()
                + "\n---\napiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g, namespace: x}\nspec: {selector: {app: caller}}\n",
            "blocked: it is a gateway or a waypoint",
        ),
        (bare.clone() + &injected, "blocked: its pods have no proxy"),
        // Where no pod has the injector's labels, they are not told.
        (bare.clone(), "ready"),
        (
            bare.clone() + &injected + &namespace("istio.io/dataplane-mode: ambient"),
            "blocked: its pods are in an ambient mesh",
        ),
        (objects() + &namespace("istio.io/dataplane-mode: ambient"), "ready"),
        (
            objects() + &policy("istio-system", "p", "{excludedNamespaces: [default]}"),
            "blocked: its namespace is left out",
        ),
        (
            objects() + &policy("default", "p", "{maxHosts: 1, staticHosts: [a.test]}"),
            "blocked: too broad: it needs 2 hosts, 1 are allowed",
        ),
    ] {
        let plan = plan_of(&mesh(&text), &[(CALLER, record())], &[], &Current::default());
        let caller = plan.verdicts.iter().find(|v| v.name == "caller").unwrap();
        assert!(caller.verdict.to_string().starts_with(expected), "{expected}: {}", caller.verdict);
    }
    let undiscovered = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"discoverySelectors: [{matchLabels: {mesh: 'on'}}]\"}\n".to_owned() + &namespace("mesh: \"off\"");
    assert!(verdict_with(&undiscovered, record()).contains("discoverySelectors"));
}

#[test]
fn a_policy_that_cannot_be_understood_changes_nothing() {
    let enforce = policy("istio-system", "mesh", "{mode: enforce}");
    let two = policy("default", "a", "{mode: enforce}") + &policy("default", "b", "{mode: disabled}");
    let misplaced = policy("default", "a", "{excludedNamespaces: [x]}");
    let short = policy("default", "a", "{staticHosts: [web]}");
    for (bad, expected) in [
        (two, "ScopePolicy default/b is for the same workloads"),
        (misplaced, "excludedNamespaces is for the policy in istio-system only"),
        (short, "field spec.staticHosts: \"web\" has no dot"),
    ] {
        let good = mesh(&(objects() + &enforce));
        let made = plan_of(&good, &[(CALLER, record())], &[], &Current::default());
        let current = current_of(&made.changes, &Current::default());
        assert_eq!(current.len(), 1);
        let mesh = mesh(&(objects() + &enforce + &bad));
        // Neither made, nor removed, nor narrowed; a dependency that is new is added all the same.
        let plan = plan_of(&mesh, &[(CALLER, record())], &[], &Current::default());
        assert!(plan.verdicts[0].verdict.to_string().contains(expected), "{}", plan.verdicts[0].verdict);
        assert!(plan.changes.is_empty());
        let mut more = record();
        more.dependencies[0] = dependency("db", http_port());
        let plan = plan_of(&mesh, &[(CALLER, more)], &[], &current);
        let [Change { what: What::Update(sidecar), effect: Effect::Widens }] = &plan.changes[..] else {
            panic!("{:?}", plan.changes);
        };
        assert_eq!(hosts_of(sidecar), ["*/db", "*/web"]);
    }
    let mut broken = mesh(&objects());
    broken.config.policies = vec![crate::configure::policy(
        &serde_json::from_value(serde_json::json!({"name": "p", "namespace": "default"})).unwrap(),
        serde_json::json!({"mode": "enforced"}),
    )];
    let plan = plan_of(&broken, &[(CALLER, record())], &[], &Current::default());
    let said = plan.verdicts[0].verdict.to_string();
    assert!(said.contains("ScopePolicy default/p is not valid: field spec.mode"), "{said}");
}

#[test]
fn the_nearer_policy_counts() {
    let text = objects()
        + &policy("istio-system", "mesh", "{mode: enforce, learningWindow: 200h, staticHosts: [a.test]}")
        + &policy("default", "ns", "{learningWindow: 300h, staticHosts: [b.test]}")
        + &policy("default", "own", "{learningWindow: 1h, selector: {matchLabels: {app: caller}}}")
        + &policy("default", "another", "{mode: disabled, selector: {matchLabels: {app: another}}}");
    let plan = plan_of(&mesh(&text), &[(CALLER, record())], &[], &Current::default());
    assert_eq!(plan.verdicts[0].mode, Some(Mode::Enforce));
    let [Change { what: What::Create(sidecar), effect: Effect::Narrows }] = &plan.changes[..] else {
        panic!("{:?}", plan.changes);
    };
    assert_eq!(hosts_of(sidecar), ["*/a.test", "*/b.test", "*/web"]);
}

#[test]
fn a_mode_below_enforce_writes_nothing_and_removes_what_was_made() {
    let made = plan_of(
        &mesh(&(objects() + &policy("default", "p", "{mode: enforce}"))),
        &[(CALLER, record())],
        &[],
        &Current::default(),
    );
    let current = current_of(&made.changes, &Current::default());
    for (mode, proposed) in [("disabled", 0), ("observe", 0), ("recommend", 1)] {
        let text = objects() + &policy("default", "p", &format!("{{mode: \"{mode}\"}}"));
        let plan = plan_of(&mesh(&text), &[(CALLER, record())], &[], &current);
        assert_eq!(plan.sidecars.len(), proposed, "{mode}");
        let deleted =
            Change { what: What::Delete((ns("default"), "caller".to_owned())), effect: Effect::Widens };
        assert_eq!(plan.changes, [deleted], "{mode}");
    }
}

#[test]
fn what_was_not_used_for_long_goes_and_only_when_all_is_known() {
    let mut record = record();
    record.coverage.covered = Seconds(1000 * HOUR);
    record.dependencies.push(dependency("db", http_port()));
    record.dependencies[0].ports[0].covered_when_last_seen = Seconds(999 * HOUR);
    let text = objects() + &policy("default", "p", "{mode: enforce, expireAfter: 900h}");
    let hosts = |record: &Record| {
        let plan = plan_of(&mesh(&text), &[(CALLER, record.clone())], &[], &Current::default());
        plan.sidecars.iter().flat_map(hosts_of).collect::<Vec<_>>()
    };
    // `db` was last seen when 100 hours were covered.
    assert_eq!(hosts(&record), ["*/db", "*/web"]);
    record.coverage.covered = Seconds(1001 * HOUR);
    assert_eq!(hosts(&record), ["*/web"]);
}

#[test]
fn what_a_default_sidecar_says_besides_egress_is_copied() {
    let default = |namespace: &str, pool: u32| {
        format!(
            "\n---\napiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {{egress: [{{hosts: [\"./*\"]}}], ingress: [{{port: {{number: 80, protocol: HTTP, name: in}}}}], inboundConnectionPool: {{http: {{http1MaxPendingRequests: {pool}}}}}, outboundTrafficPolicy: {{mode: ALLOW_ANY}}}}\n"
        )
    };
    let text = objects() + &policy("default", "p", "{mode: enforce}");
    for (more, pool) in
        [(default("istio-system", 1), 1), (default("istio-system", 1) + &default("default", 2), 2)]
    {
        let plan = plan_of(&mesh(&(text.clone() + &more)), &[(CALLER, record())], &[], &Current::default());
        let spec = serde_json::to_value(&plan.sidecars[0].spec).unwrap();
        assert_eq!(spec["inboundConnectionPool"]["http"]["http1MaxPendingRequests"], pool);
        assert_eq!(spec["outboundTrafficPolicy"]["mode"], "ALLOW_ANY");
        assert_eq!(spec["ingress"][0]["port"]["number"], 80);
        let (object, fields) = plan.verdicts[0].inherits.clone().unwrap();
        assert_eq!(fields, ["ingress", "inboundConnectionPool", "outboundTrafficPolicy"]);
        assert_eq!(object.name, "default");
    }
    let none = plan_of(&mesh(&text), &[(CALLER, record())], &[], &Current::default());
    let spec = serde_json::to_value(&none.sidecars[0].spec).unwrap();
    assert_eq!(spec.as_object().unwrap().keys().collect::<Vec<_>>(), ["egress", "workloadSelector"]);
}

#[test]
fn sizes_and_pushes_are_predicted() {
    let text = objects()
        + &deployment("other", "v1", "10.0.0.2")
        + "\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: d, namespace: default}\nspec: {host: web, subsets: [{name: a}, {name: b}]}\n"
        + &service("api", "10.96.0.3", "{port: 80, name: http}, {port: 9000, name: tcp}");
    let plan = plan_of(&mesh(&text), &[(CALLER, record())], &[], &Current::default());
    let caller = &plan.verdicts[0];
    // api: 2 clusters, web: 3, db: 1; one listener for port 80, and one for each of 10.96.0.2:3306 and 10.96.0.3:9000.
    assert_eq!(caller.before, Size { services: 3, clusters: 6, listeners: 3, endpoints: 0 });
    assert_eq!(caller.after, Size { services: 1, clusters: 3, listeners: 1, endpoints: 0 });
    assert_eq!(
        (caller.before.megabytes(), Size { clusters: 2000, ..Size::default() }.megabytes()),
        (66, 235)
    );
    let pushes = |name: &str| plan.pushes[&host(&format!("{name}.default.svc.cluster.local"))];
    assert_eq!(
        (pushes("web"), pushes("db")),
        (Pushes { before: 2, after: 2 }, Pushes { before: 2, after: 1 })
    );
}

#[test]
fn a_canonical_workload_is_as_well_known_as_its_best_known_member() {
    let text = objects() + &deployment("caller", "v2", "10.0.0.3");
    let mut young = record();
    young.coverage.covered = Seconds(HOUR);
    young.dependencies = vec![dependency("db", http_port())];
    let second = "default/Deployment/caller-v2";
    let plan =
        plan_of(&mesh(&text), &[(CALLER, record()), (second, young.clone())], &[], &Current::default());
    assert_eq!(plan.verdicts[0].verdict, Verdict::Ready);
    assert_eq!(hosts_of(&plan.sidecars[0]), ["*/db", "*/web"]);
    young.coverage.pods = 2;
    let plan = plan_of(&mesh(&text), &[(CALLER, record()), (second, young)], &[], &Current::default());
    assert!(plan.verdicts[0].verdict.to_string().contains("2 of 3 pods"), "{}", plan.verdicts[0].verdict);
}

fn hosts_of(sidecar: &Sidecar) -> Vec<String> {
    let hosts = sidecar.spec.egress[0].hosts.iter();
    hosts.map(|host| String::from(host.clone()).replace(".default.svc.cluster.local", "")).collect()
}

#[test]
fn a_record_of_a_workload_that_the_mesh_has_no_more_breaks_nothing() {
    let plan = plan_of(&mesh(&objects()), &[("gone/Deployment/gone", record())], &[], &Current::default());
    let gone = plan.verdicts.iter().find(|v| v.name == "gone").unwrap();
    assert_eq!(gone.verdict, Verdict::Blocked(vec![Fact::NoLabels]));
}
