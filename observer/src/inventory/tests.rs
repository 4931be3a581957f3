use super::*;
use crate::fixture::{host, mesh, workload};
use crate::model::mesh::{AddressRange, PortProtocol, ServiceKind};

fn read(text: &str) -> Result<Inventory, InventoryError> {
    let mut builder = Builder::default();
    builder.add_text("a.yaml", text)?;
    builder.build()
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    owned.collect()
}

#[test]
fn documents_lists_and_json_are_read_alike() {
    let yaml = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n# nothing\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: b}\n";
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Namespace, metadata: {name: a}}\n- {apiVersion: v1, kind: Namespace, metadata: {name: b}}\n";
    let typed =
        "apiVersion: v1\nkind: NamespaceList\nitems: [{metadata: {name: a}}, {metadata: {name: b}}]\n";
    let json = r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a"}}]}
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"b"}}"#;
    let expected = read(yaml).unwrap();
    assert_eq!(expected.objects, 2);
    for text in [list, typed, json] {
        assert_eq!(read(text).unwrap(), expected, "{text}");
    }
    for empty in ["", "---\n", "# only a comment\n", "apiVersion: v1\nkind: List\nitems: null\n"] {
        assert_eq!(read(empty).unwrap().objects, 0, "{empty:?}");
    }
}

#[test]
fn unknown_kinds_are_skipped_and_counted() {
    let inventory = read(
        "kind: ConfigMap\napiVersion: v1\ndata: {a: b}\n---\nkind: ConfigMap\napiVersion: v1\n---\nkind: Service\napiVersion: serving.knative.dev/v1\n---\nkind: AllowList\napiVersion: example.com/v1\n",
    )
    .unwrap();
    assert_eq!(inventory.objects, 0);
    let skipped: Vec<_> = inventory.skipped.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(skipped, [("AllowList", 1), ("ConfigMap", 2), ("Service.serving.knative.dev", 1)]);
}

#[test]
fn a_kind_longer_than_kubernetes_allows_is_refused() {
    let owned = |kind: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, ownerReferences: [{{kind: {kind}, name: o, controller: true}}]}}\n"
        )
    };
    assert!(read(&owned(&"K".repeat(63))).is_ok());
    assert!(read(&owned(&"K".repeat(64))).is_err());
}

#[test]
fn errors_name_file_object_and_field() {
    for (text, expected) in [
        (
            "apiVersion: v1\nkind: [\n",
            &["a.yaml: line 2: not valid YAML or JSON: unclosed bracket '['; correct it"][..],
        ),
        ("{\"a\": 1,\n}}", &["a.yaml: line 2", "not valid YAML or JSON"]),
        ("- a\n", &["a.yaml: document 1: it is no Kubernetes object"]),
        ("kind: Pod\n", &["document 1: field apiVersion is missing"]),
        ("apiVersion: v1\n", &["document 1: field kind is missing"]),
        ("apiVersion: v1\nkind: \"P\\e[31m\"\n", &["field kind contains '\\u{1b}'"]),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\napiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: Service, metadata: {}}]\n",
            &["a.yaml: Service (document 2, item 1): field metadata", "missing field `name`"],
        ),
        (
            "apiVersion: v1\nkind: Service\n",
            &["Service (document 1): field metadata: missing field `metadata`"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.0.0.300}\n",
            &["a.yaml: Service shop/web: field spec.clusterIP: \"10.0.0.300\" is no IP address"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}, {port: 70000}]}\n",
            &["Service shop/web: field spec.ports[1].port: 70000 is no port"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web.x, namespace: shop}\n",
            &["Service shop/web.x: field metadata.name: contains '.'"],
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {type: ExternalName}\n",
            &["Service default/web: field spec.externalName: \"\" is empty"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: \"a\\e[2J\"}\n",
            &["Pod (document 1): field metadata.name: contains '\\u{1b}'"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {app: \"x\\ny\"}}\n",
            &["Pod a: field metadata.labels.app: is the malformed label value \"x\\ny\""],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {version: 1.0}}\n",
            &["Pod a: field metadata.labels.version: invalid type: floating point `1.0`, expected a string"],
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIPs: [{ip: 10.0.0.1}, {ip: x}]}\n",
            &["Pod a: field status.podIPs[1].ip: \"x\" is no IP address"],
        ),
        (
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a.b}\n",
            &["Namespace a.b: field metadata.name: contains '.'"],
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints: [{addresses: [nope]}]\n",
            &["EndpointSlice default/a: field endpoints[0].addresses[0]: \"nope\" is no IP address"],
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [\"a b\"]}\n",
            &["ServiceEntry a: field spec.hosts[0]: contains ' '"],
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\nspec: {hosts: [a.b], addresses: [10.0.0.0/99]}\n",
            &["field spec.addresses[0]: \"10.0.0.0/99\" is no IP address or CIDR range"],
        ),
        (
            "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: a}\n",
            &["ServiceEntry default/a: field spec.hosts: is empty"],
        ),
    ] {
        let err = read(text).expect_err(text).to_string();
        for part in expected {
            assert!(err.contains(part), "{text:?}\n gave {err:?}\n without {part:?}");
        }
        assert!(!err.contains(char::is_control), "{err:?}");
    }
}

#[test]
fn an_object_may_be_listed_twice_but_not_in_two_versions() {
    let web = |ip: &str, version: u32| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: web, resourceVersion: \"{version}\"}}\nspec: {{clusterIP: {ip}}}\n"
        )
    };
    let mut builder = Builder::default();
    builder.add_text("a.yaml", &web("10.0.0.1", 1)).unwrap();
    builder.add_text("b.yaml", &web("10.0.0.1", 2)).unwrap();
    let err = builder.add_text("c.yaml", &web("10.0.0.2", 3)).unwrap_err();
    assert_eq!(
        err.to_string(),
        "Service default/web is in a.yaml and, with other content, in c.yaml; keep one of them"
    );
    assert_eq!(builder.build().unwrap().objects, 1);
}

#[test]
fn a_pod_belongs_to_its_topmost_ordinary_controller() {
    let owned = |labels: &str, kind: &str, name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  labels: {labels}\n  ownerReferences:\n  - {{kind: Other, name: other}}\n  - {{kind: {kind}, name: {name}, controller: true}}\n"
        )
    };
    let controller = |group: &str, kind: &str, name: &str, owner: &str| {
        format!(
            "---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: {name}, ownerReferences: [{owner}]}}\n"
        )
    };
    let by = |kind: &str, name: &str| format!("{{kind: {kind}, name: {name}, controller: true}}");
    for (text, expected) in [
        (owned("{}", "StatefulSet", "db"), "default/StatefulSet/db"),
        (owned("{}", "Node", "n1"), "default/Pod/p"),
        (owned("{pod-template-hash: 5f4}", "ReplicaSet", "web-5f4"), "default/Deployment/web"),
        (owned("{pod-template-hash: 5f4}", "ReplicaSet", "web-abc"), "default/ReplicaSet/web-abc"),
        (owned("{}", "ReplicaSet", "web-5f4"), "default/ReplicaSet/web-5f4"),
        (
            owned("{pod-template-hash: \"5f4\"}", "ReplicaSet", "web-5f4")
                + &controller("apps", "ReplicaSet", "web-5f4", &by("Rollout", "web")),
            "default/Rollout/web",
        ),
        (
            owned("{}", "ReplicaSet", "web") + &controller("apps", "ReplicaSet", "web", ""),
            "default/ReplicaSet/web",
        ),
        (
            owned("{}", "Job", "tidy-1") + &controller("batch", "Job", "tidy-1", &by("CronJob", "tidy")),
            "default/CronJob/tidy",
        ),
        (owned("{}", "Job", "once"), "default/Job/once"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\n".to_owned(), "default/Pod/p"),
    ] {
        let mesh = mesh(&text);
        let pod = mesh.pods.values().next().unwrap();
        assert_eq!(pod.workload, workload(expected), "{text}");
        assert!(mesh.workloads.contains_key(&pod.workload), "{text}");
    }
}

#[test]
fn labels_come_from_the_nearest_template() {
    let template = "selector: {matchLabels: {app: web, pod-template-hash: x}}, template: {metadata: {labels: {app: web, service.istio.io/canonical-name: shop, pod-template-hash: x}}}";
    let pod = |name: &str, version: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web, version: {version}, service.istio.io/canonical-name: web}}, ownerReferences: [{{kind: ReplicaSet, name: web-x, controller: true}}]}}\n"
        )
    };
    let set = |owner: &str| {
        format!(
            "\n---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: web-x, ownerReferences: [{{kind: {owner}, name: web, controller: true}}]}}\nspec: {{{template}}}\n"
        )
    };
    let deployment = "\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {replicas: 0, selector: {matchLabels: {app: d}}, template: {metadata: {labels: {app: d}}}}\n";
    for (text, key, template_labels, match_labels) in [
        (deployment.to_owned(), "default/Deployment/web", labels(&[("app", "d")]), labels(&[("app", "d")])),
        (
            set("Deployment") + deployment + &pod("a", "v1"),
            "default/Deployment/web",
            labels(&[("app", "d")]),
            labels(&[("app", "d")]),
        ),
        (
            set("Rollout") + &pod("a", "v1"),
            "default/Rollout/web",
            labels(&[("app", "web"), ("service.istio.io/canonical-name", "shop")]),
            labels(&[("app", "web")]),
        ),
        (
            pod("a", "v1") + &pod("b", "v2"),
            "default/ReplicaSet/web-x",
            labels(&[("app", "web")]),
            labels(&[]),
        ),
    ] {
        let mesh = mesh(&text);
        let found = &mesh.workloads[&workload(key)];
        assert_eq!(found.template_labels, template_labels, "{text}");
        assert_eq!(found.match_labels, match_labels, "{text}");
    }
}

#[test]
fn pods_that_ended_have_no_address_and_nodes_are_known_by_their_pods() {
    let mesh = mesh(
        "apiVersion: v1\nkind: PodList\nitems:\n- {metadata: {name: a}, status: {phase: Succeeded, podIP: 10.0.0.1}}\n- {metadata: {name: b}, status: {phase: Running, podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}], hostIP: 192.168.0.1}}\n- {metadata: {name: c}, spec: {hostNetwork: true}, status: {phase: Running, podIP: 192.168.0.2}}\n- {metadata: {name: d, labels: null}, status: {podIP: ''}}\n- {metadata: {name: e}}\n",
    );
    let addresses: Vec<usize> = mesh.pods.values().map(|pod| pod.addresses.len()).collect();
    assert_eq!(addresses, [0, 2, 1, 0, 0]);
    let nodes: Vec<_> = mesh.node_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(nodes, ["192.168.0.1", "192.168.0.2"]);
}

#[test]
fn services_have_all_their_addresses_ports_and_endpoints() {
    let mesh = mesh(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  type: LoadBalancer\n  clusterIP: 10.96.0.1\n  clusterIPs: [10.96.0.1, 'fd00::1']\n  externalIPs: [203.0.113.1]\n  ports:\n  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}\n  - {name: dns, port: 53, protocol: UDP}\nstatus: {loadBalancer: {ingress: [{ip: 203.0.113.2}, {hostname: lb.example}]}}\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: [{name: http, port: 8080, protocol: TCP}]\nendpoints:\n- {addresses: [10.0.0.1], conditions: {ready: true}}\n- {addresses: [10.0.0.2], conditions: {ready: false}}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: None}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: old, namespace: shop}\nspec: {type: ExternalName, externalName: DB.example.com.}\n",
    );
    let [db, old, web] = mesh.services.as_slice() else {
        panic!("{:?}", mesh.services);
    };
    assert_eq!(db.kind, ServiceKind::Headless);
    assert!(db.addresses.is_empty());
    assert_eq!(old.kind, ServiceKind::ExternalName(host("db.example.com")));
    assert_eq!(web.host, host("web.shop.svc.cluster.local"));
    let addresses: BTreeSet<_> = ["10.96.0.1", "fd00::1", "203.0.113.1", "203.0.113.2"]
        .iter()
        .map(|text| AddressRange::parse(text).unwrap())
        .collect();
    assert_eq!(web.addresses, addresses);
    assert_eq!(web.endpoints.len(), 2);
    assert_eq!(web.endpoint_ports, BTreeMap::from([(8080, 80)]));
    assert_eq!(web.ports[0].node_port, Some(30080));
    let protocols: Vec<_> = web.ports.iter().map(|port| port.protocol).collect();
    assert_eq!(protocols, [PortProtocol::Http, PortProtocol::Udp]);
}

#[test]
fn a_service_entry_is_one_service_for_each_host() {
    let mesh = mesh(
        "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: ext, namespace: shop}\nspec:\n  hosts: ['*.wild.test', api.test]\n  addresses: [10.9.0.0/16]\n  ports: [{number: 443, name: tls, protocol: TLS, targetPort: 8443}]\n  endpoints: [{address: 192.0.2.1}, {address: backend.test}, {address: 'unix:///x'}]\nstatus: {addresses: [{value: 240.240.0.1, host: api.test}]}\n",
    );
    let hosts: Vec<_> = mesh.services.iter().map(|s| s.host.as_str()).collect();
    assert_eq!(hosts, ["*.wild.test", "api.test"]);
    assert_eq!(mesh.services[0].addresses.len(), 1);
    assert_eq!(mesh.services[1].addresses.len(), 2, "what istiod allocated is an address of that host alone");
    assert_eq!(mesh.services[0].endpoints.len(), 1);
    assert_eq!(mesh.services[0].endpoint_ports, BTreeMap::from([(8443, 443)]));
    assert_eq!(mesh.services[0].ports[0].protocol, PortProtocol::Tls);
}

#[test]
fn twenty_thousand_pods_are_read() {
    let mut text = "apiVersion: v1\nkind: List\nitems:\n".to_owned();
    for n in 0..20_000 {
        text += &format!(
            "- apiVersion: v1\n  kind: Pod\n  metadata:\n    name: p{n}\n    labels:\n      app: a{}\n  spec:\n    containers:\n    - name: x\n      image: y\n      env: [{{name: A, value: B}}]\n  status:\n    podIP: 10.{}.{}.{}\n",
            n % 100,
            n / 65536,
            n / 256 % 256,
            n % 256
        );
    }
    assert_eq!(read(&text).unwrap().mesh.pods.len(), 20_000);
}

#[test]
fn aliases_do_not_multiply_without_bound() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let before = format!("*a{}", n - 1);
        text += &format!("a{n}: &a{n} [{}]\n", [before.as_str(); 10].join(", "));
    }
    assert!(matches!(read(&text), Err(InventoryError::Syntax { .. })));
    let deep = "[".repeat(10_000);
    assert!(matches!(read(&deep), Err(InventoryError::Syntax { .. })));
    let deep = format!("{{\"a\": {}", "[".repeat(100_000));
    assert!(matches!(read(&deep), Err(InventoryError::Syntax { .. })));
}

#[test]
fn a_label_may_have_the_name_of_a_part_that_is_not_read() {
    let mesh =
        mesh("apiVersion: v1\nkind: Pod\nmetadata: {name: a, labels: {data: x}, annotations: {b: c}}\n");
    assert_eq!(mesh.pods.values().next().unwrap().labels["data"], "x");
}
