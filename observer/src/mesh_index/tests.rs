use super::*;
use crate::fixture::{host, mesh, ns, service};

const HEADLESS: &str = "
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: default}
spec: {clusterIP: None, ports: [{port: 5432, name: tcp}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-1, namespace: default, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: tcp, port: 15432}]
endpoints: [{addresses: [10.0.0.9]}]
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: default}
spec: {clusterIP: None}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: all-1, namespace: default, labels: {kubernetes.io/service-name: all}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.9]}]
";

fn pod(name: &str, address: &str, more: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{more}}}\nstatus: {{phase: Running, podIP: {address}, hostIP: 192.168.0.1}}\n"
    )
}

fn entry(name: &str, hosts: &str, addresses: &str, port: u16) -> String {
    format!(
        "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: {name}}}\nspec: {{hosts: [{hosts}], addresses: [{addresses}], ports: [{{number: {port}, name: tcp, protocol: TCP}}]}}\n"
    )
}

/// The destination in a word: `host:port`, joined by `+`; `?` in front where it is ambiguous.
fn at(mesh: &Mesh, address: &str, port: u16) -> String {
    let text = |targets: Vec<Target<'_>>| {
        let texts: Vec<_> = targets
            .iter()
            .map(|t| {
                let host = t.service.host.as_str();
                format!("{}:{}", host.strip_suffix(".default.svc.cluster.local").unwrap_or(host), t.port)
            })
            .collect();
        texts.join("+")
    };
    match MeshIndex::new(mesh).destination(address.parse().unwrap(), port) {
        Destination::Services(targets) => text(targets),
        Destination::AmbiguousServices(targets) => format!("?{}", text(targets)),
        Destination::Pod(workload) => format!("pod {}", workload.name),
        Destination::Ambiguous => "?pods".to_owned(),
        Destination::Unknown => "unknown".to_owned(),
        Destination::NotKnown => "not known".to_owned(),
    }
}

#[test]
fn an_address_and_port_belong_to_whom_the_proxy_would_send_them() {
    let objects = [
        service(
            "web",
            "10.96.0.1",
            "{port: 80, name: http, nodePort: 30080}, {port: 53, name: dns, protocol: UDP}",
        ),
        service("a", "10.96.0.2", "{port: 1}").replace("ports:", "externalIPs: [203.0.113.1], ports:"),
        service("b", "10.96.0.3", "{port: 2}").replace("ports:", "externalIPs: [203.0.113.1], ports:"),
        service("c", "10.96.0.4", "{port: 2}").replace("ports:", "externalIPs: [203.0.113.1], ports:"),
        HEADLESS.to_owned(),
        pod("x", "10.0.0.1", ""),
        pod("stale-1", "10.0.0.2", ""),
        pod("stale-2", "10.0.0.2", ""),
        pod("node", "192.168.0.2", "hostNetwork: true"),
        entry("wide", "wide.test", "10.0.0.0/8", 443),
        entry("narrow", "narrow.test", "10.7.0.0/16", 443),
        entry("one", "one.test", "10.7.7.7", 443),
        entry("twin", "'p.test', 'q.test'", "10.8.0.0/16", 443),
    ];
    let mesh = mesh(&objects.concat());
    for (address, port, expected) in [
        ("10.96.0.1", 80, "web:80"),
        ("::ffff:10.96.0.1", 80, "web:80"),
        // A port that nobody lists; UDP's is nobody's for us.
        ("10.96.0.1", 81, "web:81"),
        ("10.96.0.1", 53, "web:53"),
        // Shared addresses: by port, or not at all.
        ("203.0.113.1", 1, "a:1"),
        ("203.0.113.1", 2, "?b:2+c:2"),
        ("203.0.113.1", 3, "?a:3+b:3+c:3"),
        // Headless: the target port, or the service's own; a service without ports has all.
        ("10.0.0.9", 15432, "all:15432+db:5432"),
        ("10.0.0.9", 5432, "all:5432+db:5432"),
        ("10.0.0.9", 1, "all:1"),
        // Pods.
        ("10.0.0.1", 8080, "pod x"),
        ("10.0.0.2", 8080, "?pods"),
        // Node ports at the addresses of nodes only, host-network pods' included.
        ("192.168.0.1", 30080, "web:80"),
        ("192.168.0.2", 30080, "web:80"),
        ("192.168.0.3", 30080, "unknown"),
        ("192.168.0.2", 30081, "unknown"),
        // Ranges: the longest prefix that has the port.
        ("10.1.1.1", 443, "wide.test:443"),
        ("10.7.1.1", 443, "narrow.test:443"),
        ("10.7.7.7", 443, "one.test:443"),
        ("10.8.1.1", 443, "?p.test:443+q.test:443"),
        ("10.1.1.1", 80, "unknown"),
        ("198.51.100.1", 443, "unknown"),
    ] {
        assert_eq!(at(&mesh, address, port), expected, "{address} {port}");
    }
}

#[test]
fn hosts_are_found_as_the_caller_s_resolver_would() {
    let objects = [
        service("reviews", "10.96.0.1", "{port: 80, name: http}"),
        service("reviews", "10.96.0.2", "{port: 80, name: http}")
            .replace("namespace: default", "namespace: shop"),
        entry("exact", "a.wild.test", "", 80),
        entry("short", "'*.wild.test'", "", 80),
        entry("long", "'*.b.wild.test'", "", 80),
        entry("own", "db.shop.svc.cluster.local", "10.9.9.9", 80),
    ];
    let mesh = mesh(&objects.concat());
    let index = MeshIndex::new(&mesh);
    for (name, caller, expected) in [
        ("reviews", "default", Some("reviews.default.svc.cluster.local")),
        ("reviews", "shop", Some("reviews.shop.svc.cluster.local")),
        ("reviews", "other", None),
        ("REVIEWS.shop", "default", Some("reviews.shop.svc.cluster.local")),
        ("reviews.shop.svc", "default", Some("reviews.shop.svc.cluster.local")),
        ("reviews.shop.svc.cluster.local", "default", Some("reviews.shop.svc.cluster.local")),
        ("reviews.shop.svc.cluster", "default", None),
        ("a.wild.test", "default", Some("a.wild.test")),
        ("c.wild.test", "default", Some("*.wild.test")),
        ("x.a.wild.test", "default", Some("*.wild.test")),
        ("x.y.b.wild.test", "default", Some("*.b.wild.test")),
        ("wild.test", "default", None),
        ("db", "shop", Some("db.shop.svc.cluster.local")),
    ] {
        let found = index.service_named(&host(name), &ns(caller), 80);
        assert_eq!(found.map(|t| t.service.host.as_str()), expected, "{name} from {caller}");
    }
}

#[test]
fn of_one_host_in_several_objects_the_one_that_istiod_prefers_is_found() {
    let own = |namespace: &str, port| {
        entry("e", "x.test", "", port).replace("{name: e}", &format!("{{name: e, namespace: {namespace}}}"))
    };
    let mesh = mesh(&[own("a", 80), own("b", 80), own("c", 443)].concat());
    let index = MeshIndex::new(&mesh);
    for (caller, port, expected) in [("b", 80, "b"), ("z", 80, "a"), ("b", 443, "c"), ("c", 1, "c")] {
        let found = index.service_named(&host("x.test"), &ns(caller), port).unwrap();
        assert_eq!(found.service.namespace, ns(expected), "{caller} {port}");
    }
}

#[test]
fn a_source_is_a_pod_with_a_namespace_of_its_own_and_only_one() {
    let objects = [
        pod("x", "10.0.0.1", ""),
        pod("stale-1", "10.0.0.2", ""),
        pod("stale-2", "10.0.0.2", ""),
        pod("ended", "10.0.0.1", "").replace("Running", "Succeeded"),
        pod("node", "192.168.0.2", "hostNetwork: true"),
        pod("liar", "192.168.0.2", ""),
    ];
    let mesh = mesh(&objects.concat());
    let index = MeshIndex::new(&mesh);
    for (address, expected) in [
        ("10.0.0.1", "x"),
        ("::ffff:10.0.0.1", "x"),
        ("10.0.0.2", "ambiguous"),
        ("192.168.0.2", "none"),
        ("10.0.0.3", "none"),
    ] {
        let found = match index.pod_at(address.parse().unwrap()) {
            PodAt::Pod(_, pod) => pod.workload.name.as_str(),
            PodAt::Ambiguous => "ambiguous",
            PodAt::None => "none",
        };
        assert_eq!(found, expected, "{address}");
    }
}
