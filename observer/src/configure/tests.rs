use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::fixture::{host, ns};

fn object<T: DeserializeOwned + Default>(spec: Value) -> Object<T> {
    let object = json!({"metadata": {"name": "x", "namespace": "shop"}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

fn name(text: &str) -> HostPattern {
    HostPattern::Name(host(text))
}

#[test]
fn names_are_in_full_as_istiod_reads_them() {
    let spec = json!({"hosts": ["reviews", "reviews.other", "*", "*.wild.test"], "http": [
        {"route": [{"destination": {"host": "v2"}}], "mirror": {"host": "shadow.test"}},
        {"delegate": {"name": "rest"}},
    ]});
    let routes = virtual_service(&object(spec), &Defaults::default());
    let full = |short: &str| host(&format!("{short}.shop.svc.cluster.local"));
    let hosts =
        [HostPattern::Name(full("reviews")), name("reviews.other"), HostPattern::Any, name("*.wild.test")];
    assert_eq!(routes.hosts, hosts);
    assert_eq!(routes.routes[0].to, BTreeSet::from([full("v2"), host("shadow.test")]));
    assert_eq!(routes.routes[1].delegate, Some((ns("shop"), "rest".to_owned())));
    let rule = destination_rule(&object(json!({"host": "reviews"})), &Defaults::default()).unwrap();
    assert_eq!(rule.host, HostPattern::Name(full("reviews")));
    assert_eq!(destination_rule(&object(json!({})), &Defaults::default()), None);
}

#[test]
fn an_object_that_does_not_say_to_whom_it_is_visible_is_as_the_mesh_says() {
    let visible = |export: Value, default: &[&str]| {
        let mesh = MeshConfig {
            default_virtual_service_export_to: default
                .iter()
                .map(|to| ExportTo::try_from((*to).to_owned()).unwrap())
                .collect(),
            ..MeshConfig::default()
        };
        virtual_service(&object(json!({"exportTo": export})), &Defaults::from(&mesh)).visible
    };
    let only = |names: &[&str]| Visibility::Only(names.iter().map(|name| ns(name)).collect());
    for (export, default, expected) in [
        (json!(null), &[][..], Visibility::All),
        (json!([]), &["."], only(&["shop"])),
        (json!(["*"]), &["."], Visibility::All),
        (json!([".", "other"]), &[], only(&["shop", "other"])),
        (json!(["~"]), &[], only(&[])),
    ] {
        assert_eq!(visible(export.clone(), default), expected, "{export} {default:?}");
    }
}

#[test]
fn tls_of_the_proxy_s_own_is_told_from_istio_s() {
    for (policy, expected) in [
        (json!({"tls": {"mode": "SIMPLE"}}), true),
        (json!({"tls": {"mode": "MUTUAL"}}), true),
        (json!({"portLevelSettings": [{"port": {"number": 443}, "tls": {"mode": "SIMPLE"}}]}), true),
        (json!({"tls": {"mode": "ISTIO_MUTUAL"}}), false),
        (json!({"tls": {"mode": "DISABLE"}}), false),
        (json!(null), false),
    ] {
        for spec in [
            json!({"host": "a", "trafficPolicy": policy}),
            json!({"host": "a", "subsets": [{"name": "v1", "trafficPolicy": policy}]}),
        ] {
            let rule = destination_rule(&object(spec.clone()), &Defaults::default()).unwrap();
            assert_eq!(rule.originates_tls, expected, "{spec}");
        }
    }
}

#[test]
fn the_mesh_s_own_settings_name_services_in_several_ways() {
    let mesh = MeshConfig::parse(
        "defaultConfig: {tracing: {zipkin: {address: 'zipkin.istio-system:9411'}, datadog: {address: '10.0.0.1:80'}}, envoyAccessLogService: {address: 'als.ns.svc:1'}, envoyMetricsService: {address: 'm.test:1'}}",
    )
    .unwrap();
    let always = settings(&mesh).always;
    // Of two parts the second may be a namespace.
    let expected = [
        "als.ns.svc.cluster.local",
        "m.test",
        "m.test.svc.cluster.local",
        "zipkin.istio-system",
        "zipkin.istio-system.svc.cluster.local",
    ]
    .map(host);
    assert_eq!(always, BTreeSet::from(expected));
}

#[test]
fn a_namespace_is_known_to_istiod_by_its_labels() {
    let labels = Labels::from([("team".to_owned(), "a".to_owned())]);
    for (selectors, expected) in [
        ("[]", false),
        ("[{matchLabels: {team: a}}]", false),
        ("[{matchLabels: {team: b}}]", true),
        (
            "[{matchLabels: {team: b}}, {matchExpressions: [{key: team, operator: In, values: [a, c]}]}]",
            false,
        ),
        ("[{matchExpressions: [{key: team, operator: NotIn, values: [a]}]}]", true),
        ("[{matchExpressions: [{key: team, operator: Exists}, {key: x, operator: DoesNotExist}]}]", false),
    ] {
        let mesh = MeshConfig::parse(&format!("discoverySelectors: {selectors}")).unwrap();
        assert_eq!(namespace(&labels, &mesh).is_undiscovered, expected, "{selectors}");
    }
}

#[test]
fn a_policy_that_cannot_be_read_says_which_field_it_is() {
    let meta: Meta = serde_json::from_value(json!({"name": "p", "namespace": "shop"})).unwrap();
    for (spec, expected) in [
        (json!({"mode": "always"}), "field spec.mode"),
        (json!({"learningWindow": "soon"}), "field spec.learningWindow"),
        (json!({"learnigWindow": "1h"}), "unknown field `learnigWindow`"),
        (json!({"accept": ["everything"]}), "field spec.accept[0]"),
        (json!({"staticHosts": ["a b"]}), "field spec.staticHosts[0]"),
    ] {
        let problem = policy(&meta, spec.clone()).spec.unwrap_err();
        assert!(problem.contains(expected), "{spec}: {problem}");
    }
    assert!(policy(&meta, Value::Null).spec.is_ok());
    let spec = json!({"mode": "enforce", "learningWindow": "2h", "accept": ["strict", "registryOnly"], "maxHosts": 5});
    assert!(policy(&meta, spec).spec.is_ok());
}
