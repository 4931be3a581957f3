//! Hosts that no service has: those of VirtualServices, and aliases.

use super::*;
use crate::attribute::{Flow, find};
use crate::fixture::flow;
use crate::model::graph::Evidence;

fn virtual_service(name: &str, spec: &str) -> String {
    format!("\n---\nkind: VirtualService\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n")
}

fn in_namespace(objects: &str, namespace: &str) -> String {
    objects.replace("metadata: {", &format!("metadata: {{namespace: {namespace}, "))
}

fn named_in(cluster: &Cluster, name: &str, namespace: &str) -> Option<String> {
    let view = cluster.0.view(Span::at(s(10)));
    let found = view.service_named(&host(name), &ns(namespace), 80);
    found.map(|target| target.service.host.to_string())
}

#[test]
fn a_host_that_only_a_virtual_service_has_is_one_that_a_workload_depends_on() {
    let objects = [
        service("web", "clusterIP: 10.96.0.1, ports: [{port: 80, name: http}]"),
        service("legacy", "type: ExternalName, externalName: legacy.example.com, ports: [{port: 80}]"),
        virtual_service("api", "hosts: [api.internal, short, '*.wild.internal', web, 10.9.9.9]"),
        in_namespace(&virtual_service("of-gateway", "hosts: [shop.test], gateways: [shop]"), "prod"),
        in_namespace(&virtual_service("both", "hosts: [both.test], gateways: [shop, mesh]"), "prod"),
        in_namespace(&virtual_service("own", "hosts: [own.test], exportTo: ['.']"), "prod"),
        in_namespace(&virtual_service("none", "hosts: [none.test], exportTo: ['~']"), "prod"),
        in_namespace(&virtual_service("some", "hosts: [some.test], exportTo: [default]"), "prod"),
        in_namespace(&service("api", "clusterIP: 10.96.0.2, ports: [{port: 80}]"), "internal"),
        "\n---\nkind: ServiceEntry\nmetadata: {name: wild}\nspec: {hosts: ['*.internal']}\n".to_owned(),
        virtual_service("delegate", "http: [{route: [{destination: {host: web}}]}]"),
    ];
    let cluster = Cluster::listed(&objects.concat());
    for (name, namespace, expected) in [
        ("api.internal", "default", Some("api.internal")),
        ("short", "default", Some("short.default.svc.cluster.local")),
        ("short.default", "prod", Some("short.default.svc.cluster.local")),
        ("short", "prod", None),
        ("a.wild.internal", "prod", Some("*.wild.internal")),
        ("a.internal", "prod", Some("*.internal")),
        // What is a service stays one.
        ("web", "default", Some("web.default.svc.cluster.local")),
        ("api", "internal", Some("api.internal.svc.cluster.local")),
        ("shop.test", "prod", None),
        ("both.test", "default", Some("both.test")),
        ("own.test", "default", None),
        ("own.test", "prod", Some("own.test")),
        ("none.test", "prod", None),
        ("some.test", "default", Some("some.test")),
        ("some.test", "prod", None),
        // An alias is what was called, whatever it stands for.
        ("legacy", "default", Some("legacy.default.svc.cluster.local")),
    ] {
        assert_eq!(named_in(&cluster, name, namespace).as_deref(), expected, "{name} in {namespace}");
    }
    // They have no address, and are none of the services.
    assert_eq!(cluster.at(s(10), "10.9.9.9", 80), "unknown");
    let hosts: Vec<_> = cluster.0.mesh().services.iter().map(|service| service.host.to_string()).collect();
    assert!(!hosts.contains(&"api.internal".to_owned()), "{hosts:?}");

    let call = |address: &str, name: &str| flow("default/Deployment/caller", address, 80, &[name]);
    for (flow, expected) in [
        (call("198.51.100.1", "api.internal"), vec!["api.internal default"]),
        (
            call("10.96.0.1", "api.internal"),
            vec!["api.internal default", "web.default.svc.cluster.local default"],
        ),
        (call("198.51.100.1", "x.wild.internal"), vec!["*.wild.internal default"]),
    ] {
        let Flow { hosts, .. } = &flow;
        let view = cluster.0.view(Span::at(s(10)));
        let found = find(&view, &flow);
        let uses: Vec<String> =
            found.uses.keys().map(|(host, namespace, _)| format!("{host} {namespace}")).collect();
        assert_eq!(uses, expected);
        assert_eq!((found.unresolved, found.unknown_hosts.len()), (None, 0));
        let evidence = found.uses.values().next().map(|port| port.seen.clone());
        let name = hosts.first().cloned().map(Evidence::Host).into_iter().collect();
        assert_eq!(evidence, Some(name));
    }
}

#[test]
fn a_virtual_service_counts_as_it_was() {
    let mut cluster = Cluster::listed("");
    let name = |cluster: &Cluster, when| cluster.named(when, "api.internal");
    assert_eq!(name(&cluster, s(10)), None);
    cluster.apply(s(100), &virtual_service("api", "hosts: [api.internal]"));
    cluster.apply(s(200), &virtual_service("api", "hosts: [other.internal]"));
    cluster.apply(s(300), &virtual_service("api", "hosts: [api.internal], gateways: [shop]"));
    cluster.remove(s(400), &virtual_service("api", ""));
    assert_eq!(name(&cluster, s(50)), None);
    assert_eq!(name(&cluster, s(150)).as_deref(), Some("api.internal"));
    assert_eq!(name(&cluster, s(250)), None);
    assert_eq!(cluster.named(s(250), "other.internal").as_deref(), Some("other.internal"));
    assert_eq!(cluster.named(s(350), "other.internal"), None);
    // A listing that does not name it.
    cluster.apply(s(500), &virtual_service("late", "hosts: [late.internal]"));
    cluster.0.begin_list(Kind::VirtualService);
    cluster.0.end_list(Kind::VirtualService, Span::between(s(590), s(600)));
    cluster.0.settle(s(600));
    assert_eq!(cluster.named(s(550), "late.internal").as_deref(), Some("late.internal"));
    assert_eq!(cluster.named(s(650), "late.internal"), None);
    cluster.0.forget(s(2_000));
    cluster.apply(s(2_000), &service("web", "clusterIP: 10.96.0.1"));
    assert_eq!(cluster.named(s(550), "late.internal"), None);
}
