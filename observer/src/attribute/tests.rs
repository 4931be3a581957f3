use proptest::prelude::*;

use super::*;
use crate::fixture::{all_watched, bookinfo, bookinfo_flows, flow, host, mesh, service, workload};
use crate::model::mesh::Mesh;

const CALLER: &str = "default/Deployment/caller";

fn graph(mesh: &Mesh, flows: &[Flow]) -> Graph {
    attribute(&MeshIndex::new(mesh), flows, &all_watched(mesh))
}

/// The dependencies of the caller, one line for each port: `host:port Protocol evidence...`.
fn lines(graph: &Graph) -> Vec<String> {
    let nodes = graph.workloads.iter().filter(|n| n.workload == workload(CALLER));
    let mut lines = Vec::new();
    for dependency in nodes.flat_map(|node| &node.dependencies) {
        let short = dependency.host.as_str().replace(".default.svc.cluster.local", "");
        for (port, port_use) in &dependency.ports {
            let mut line = format!("{short}:{port} {:?}", port_use.protocol);
            for evidence in &port_use.seen {
                line += &match evidence {
                    Evidence::Address(address) => format!(" {address}"),
                    Evidence::Host(host) => format!(" {host}"),
                    Evidence::DnsName(name) => format!(" asked for {name}"),
                };
            }
            if port_use.address_only {
                line += " address only";
            }
            lines.push(line);
        }
    }
    lines
}

fn shop() -> Mesh {
    let objects = [
        service("web", "10.96.0.1", "{port: 80, name: http}"),
        service("api", "10.96.0.2", "{port: 80, name: http}"),
        service("raw", "10.96.0.3", "{port: 80, name: tcp}, {port: 443, name: tls}"),
        service("odd", "10.96.0.4", "{port: 80}"),
        service("node", "10.96.0.5", "{port: 80, name: http, nodePort: 30080}"),
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: other, labels: {app: other}}\nstatus: {podIP: 10.0.0.5, hostIP: 192.168.0.1}\n".to_owned(),
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: daemon}\nspec: {hostNetwork: true}\nstatus: {podIP: 192.168.0.1}\n".to_owned(),
        "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext}\nspec: {hosts: [a.test, b.test, '*.wild.test'], addresses: [10.9.9.9], ports: [{number: 443, name: tls, protocol: TLS}]}\n".to_owned(),
        "\n---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: free}\nspec: {hosts: [free.test], ports: [{number: 80, name: http, protocol: HTTP}]}\n".to_owned(),
    ];
    mesh(&objects.concat())
}

#[test]
fn each_kind_of_evidence_is_recorded_on_the_service_that_it_names() {
    let mesh = shop();
    for (address, port, hosts, expected) in [
        ("10.96.0.1", 80, &["web"][..], &["web:80 Http 10.96.0.1 web"][..]),
        ("10.96.0.1", 80, &[], &["web:80 Http 10.96.0.1 address only"]),
        ("10.96.0.1", 80, &["api"], &["api:80 Http api", "web:80 Http 10.96.0.1"]),
        ("10.96.0.1", 80, &["no.such.host"], &["web:80 Http 10.96.0.1 address only"]),
        // The listener says whether a host counts: behind a TCP one, api's HTTP port is not what was reached.
        ("10.96.0.3", 80, &["api"], &["api:80 Tcp api", "raw:80 Tcp 10.96.0.3"]),
        ("10.96.0.4", 80, &["api"], &["api:80 Unknown api", "odd:80 Unknown 10.96.0.4"]),
        // Through a node port, the host is still the service's.
        ("192.168.0.1", 30080, &["node"], &["node:80 Http 192.168.0.1 node"]),
        // Of several claimants a host picks one.
        ("10.9.9.9", 443, &["a.test"], &["a.test:443 Tls 10.9.9.9 a.test"]),
        ("10.9.9.9", 443, &["x.wild.test"], &["*.wild.test:443 Tls 10.9.9.9 x.wild.test"]),
        // Where nothing tells which of them was meant, it may be any.
        (
            "10.9.9.9",
            443,
            &[],
            &[
                "*.wild.test:443 Tls 10.9.9.9 address only",
                "a.test:443 Tls 10.9.9.9 address only",
                "b.test:443 Tls 10.9.9.9 address only",
            ],
        ),
        (
            "10.9.9.9",
            443,
            &["a.test", "gone"],
            &[
                "*.wild.test:443 Tls 10.9.9.9 address only",
                "a.test:443 Tls 10.9.9.9 a.test address only",
                "b.test:443 Tls 10.9.9.9 address only",
            ],
        ),
        ("198.51.100.1", 80, &["free.test"], &["free.test:80 Http free.test"]),
        ("198.51.100.1", 80, &["other.test"], &[]),
        ("10.0.0.5", 80, &["web"], &["web:80 Http web"]),
    ] {
        let graph = graph(&mesh, &[flow(CALLER, address, port, hosts)]);
        assert_eq!(lines(&graph), expected, "{address}:{port} {hosts:?}");
    }
}

#[test]
fn a_dns_name_tells_whose_address_it_is_where_the_mesh_does_not() {
    let mesh = shop();
    for (address, names, expected) in [
        (
            "198.51.100.1",
            &["free.test"][..],
            &["free.test:80 Http 198.51.100.1 asked for free.test address only"][..],
        ),
        (
            "198.51.100.1",
            &["x.wild.test"],
            &["*.wild.test:80 Unknown 198.51.100.1 asked for x.wild.test address only"],
        ),
        ("198.51.100.1", &["other.test"], &[]),
        // The address is known: nothing has to be told by the name.
        ("10.96.0.1", &["free.test"], &["web:80 Http 10.96.0.1 address only"]),
    ] {
        let mut flow = flow(CALLER, address, 80, &[]);
        flow.names = names.iter().map(|name| host(name)).collect();
        let graph = graph(&mesh, &[flow]);
        assert_eq!(lines(&graph), expected, "{address} {names:?}");
        assert_eq!(graph.unresolved.is_empty(), !expected.is_empty(), "{address} {names:?}");
    }
    // Of several claimants a name picks one.
    let mut flow = flow(CALLER, "10.9.9.9", 443, &[]);
    flow.names = BTreeSet::from([host("b.test"), host("free.test")]);
    let graph = graph(&mesh, &[flow]);
    assert_eq!(lines(&graph), ["b.test:443 Tls 10.9.9.9 asked for b.test address only"]);
    assert!(graph.unresolved.is_empty());
}

#[test]
fn the_address_counts_beside_a_host_where_a_request_did_not_name_any() {
    let named = |unnamed| Flow { unnamed, ..flow(CALLER, "10.96.0.1", 80, &["api"]) };
    let bare = flow(CALLER, "10.96.0.1", 80, &[]);
    for (flows, expected) in [
        (vec![named(false)], "web:80 Http 10.96.0.1"),
        (vec![named(true)], "web:80 Http 10.96.0.1 address only"),
        (vec![named(false), bare.clone()], "web:80 Http 10.96.0.1 address only"),
    ] {
        assert_eq!(lines(&graph(&shop(), &flows)), ["api:80 Http api", expected]);
    }
}

#[test]
fn what_is_not_known_is_said_and_not_guessed() {
    use UnresolvedReason::{AmbiguousAddress, UnknownAddress};
    let mesh = shop();
    let unread = |mut flow: Flow| {
        flow.host_unknown = true;
        flow
    };
    for (flow, expected) in [
        (flow(CALLER, "198.51.100.1", 80, &[]), Some((UnknownAddress, &[][..]))),
        (flow(CALLER, "198.51.100.1", 80, &["free.test"]), None),
        (
            flow(CALLER, "198.51.100.1", 80, &["free.test", "other.test"]),
            Some((UnknownAddress, &["other.test"])),
        ),
        (unread(flow(CALLER, "198.51.100.1", 80, &["free.test"])), Some((UnknownAddress, &[]))),
        (flow(CALLER, "10.9.9.9", 443, &[]), Some((AmbiguousAddress, &[]))),
        (flow(CALLER, "10.9.9.9", 443, &["a.test"]), None),
        (flow(CALLER, "192.168.0.1", 31000, &[]), Some((UnknownAddress, &[]))),
        (flow(CALLER, "10.0.0.5", 80, &[]), None),
        (flow(CALLER, "10.96.0.1", 80, &["no.such.host"]), None),
    ] {
        let graph = graph(&mesh, std::slice::from_ref(&flow));
        let found: Vec<_> = graph
            .unresolved
            .iter()
            .map(|u| (u.reason, u.hosts.iter().map(Host::as_str).collect::<Vec<_>>()))
            .collect();
        let expected: Vec<_> = expected.iter().map(|(r, hosts)| (*r, hosts.to_vec())).collect();
        assert_eq!(found, expected, "{flow:?}");
        assert!(graph.unresolved.iter().all(|entry| entry.host_unknown == flow.host_unknown), "{flow:?}");
    }
}

#[test]
fn a_call_to_a_pod_is_direct_and_keeps_what_its_requests_said() {
    let mut unread = flow(CALLER, "10.0.0.5", 8080, &["web", "gone"]);
    unread.host_unknown = true;
    let graph = graph(&shop(), &[flow(CALLER, "10.0.0.5", 8080, &[]), unread]);
    let node = graph.workloads.iter().find(|n| n.workload == workload(CALLER)).unwrap();
    assert_eq!(lines(&graph), ["web:8080 Unknown web"], "the host it named");
    assert_eq!(
        node.direct,
        [DirectCall {
            workload: workload("default/Pod/other"),
            address: "10.0.0.5".parse().unwrap(),
            port: 8080,
            connects: 2,
            host_unknown: true,
            unknown_hosts: BTreeSet::from([host("gone")]),
        }]
    );
}

#[test]
fn hosts_that_could_not_be_read_or_are_unknown_stay_on_the_port() {
    let mut unread = flow(CALLER, "10.96.0.1", 80, &["api", "gone.test"]);
    unread.host_unknown = true;
    let graph = graph(&shop(), &[unread]);
    let web = graph
        .workloads
        .iter()
        .flat_map(|n| &n.dependencies)
        .find(|d| d.host == host("web.default.svc.cluster.local"));
    let port = &web.unwrap().ports[&80];
    assert!(port.host_unknown);
    assert!(port.address_only, "what was not read may have named the service itself");
    assert_eq!(port.unknown_hosts, BTreeSet::from([host("gone.test")]));
}

#[test]
fn workloads_without_a_call_are_there_and_host_network_pods_are_not() {
    let graph = graph(&shop(), &[]);
    let names: Vec<_> = graph.workloads.iter().map(|n| n.workload.to_string()).collect();
    assert_eq!(names, ["default/Pod/other"]);
    assert_eq!(graph.workloads[0].pods, Pods { watched: 1, known: 1 });
    assert_eq!(graph.version, GRAPH_VERSION);
}

#[test]
fn only_watched_workloads_and_callers_are_in_the_graph() {
    let reviews = workload("default/Deployment/reviews-v1");
    let mesh = bookinfo();
    let watched = BTreeMap::from([(reviews.clone(), 1)]);
    let call = flow("default/Deployment/ratings-v1", "10.96.0.5", 27017, &[]);
    let graph = attribute(&MeshIndex::new(&mesh), &[call], &watched);
    let nodes: Vec<_> = graph.workloads.iter().map(|node| (&node.workload, node.pods)).collect();
    let pods = |watched| Pods { watched, known: 1 };
    assert_eq!(nodes, [(&workload("default/Deployment/ratings-v1"), pods(0)), (&reviews, pods(1))]);
}

#[test]
fn bookinfo_s_graph_survives_its_file() {
    let graph = graph(&bookinfo(), &bookinfo_flows());
    let text = serde_json::to_string(&graph).unwrap();
    assert_eq!(serde_json::from_str::<Graph>(&text).unwrap(), graph);
    assert_eq!(graph.workloads.len(), 7);
}

fn without_counts(mut graph: Graph) -> Graph {
    let dependencies = graph.workloads.iter_mut().flat_map(|n| &mut n.dependencies);
    for port in dependencies.flat_map(|d| d.ports.values_mut()) {
        port.connects = 0;
    }
    for direct in graph.workloads.iter_mut().flat_map(|n| &mut n.direct) {
        direct.connects = 0;
    }
    for unresolved in &mut graph.unresolved {
        unresolved.connects = 0;
    }
    graph
}

fn any_flow() -> impl Strategy<Value = Flow> {
    let address = prop::sample::select(vec![
        "10.96.0.1",
        "10.96.0.2",
        "10.96.0.3",
        "10.96.0.4",
        "10.0.0.5",
        "192.168.0.1",
        "10.9.9.9",
        "198.51.100.1",
    ]);
    let hosts = prop::sample::subsequence(
        vec!["web", "api", "raw", "a.test", "b.test", "c.wild.test", "free.test", "gone"],
        0..4,
    );
    let source = prop::sample::select(vec![CALLER, "default/Pod/other"]);
    let unread = (any::<bool>(), any::<bool>());
    (source, address, prop::sample::select(vec![80, 443, 30080]), hosts, 1..5_u64, unread).prop_map(
        |(source, address, port, hosts, connects, (host_unknown, unnamed))| Flow {
            connects,
            host_unknown,
            existing: false,
            unnamed,
            ..flow(source, address, port, &hosts)
        },
    )
}

proptest! {
    #[test]
    fn neither_order_nor_repetition_of_flows_matters(
        (flows, shuffled) in prop::collection::vec(any_flow(), 0..12)
            .prop_flat_map(|flows| (Just(flows.clone()), Just(flows).prop_shuffle())),
        again in 0..12_usize,
    ) {
        let mesh = shop();
        let mut turned = shop();
        turned.services.reverse();
        let expected = graph(&mesh, &flows);
        prop_assert_eq!(&graph(&turned, &shuffled), &expected);
        let mut repeated = shuffled.clone();
        repeated.extend(flows.iter().take(again).cloned());
        prop_assert_eq!(without_counts(graph(&mesh, &repeated)), without_counts(expected));
    }

    #[test]
    fn flows_of_one_destination_say_together_what_they_say_apart(a in any_flow(), b in any_flow()) {
        let mesh = shop();
        let a = Flow { source: workload("default/Pod/other"), ..a };
        let b = Flow { source: a.source.clone(), address: a.address, port: a.port, ..b };
        let mut both = a.clone();
        both.merge(&b);
        let apart = graph(&mesh, &[a.clone(), b.clone()]);
        prop_assert_eq!(&graph(&mesh, &[both]), &apart);
        // One more flow takes nothing away from what the proxy would have to be sent.
        let hosts = |graph: &Graph| -> BTreeSet<String> {
            let sidecars = crate::plan::propose(graph, &mesh).sidecars;
            sidecars.into_iter().flat_map(|s| s.spec.egress).flat_map(|e| e.hosts).map(String::from).collect()
        };
        for one in [a, b] {
            prop_assert!(hosts(&graph(&mesh, &[one])).is_subset(&hosts(&apart)));
        }
    }
}
