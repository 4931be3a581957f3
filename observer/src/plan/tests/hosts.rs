//! Which hosts are in scope beside those that were called.

use super::*;

const HEAD: &str = "\n---\napiVersion: networking.istio.io/v1\n";

fn http(name: &str, address: &str) -> String {
    service(name, address, "{port: 80, name: http}")
}

fn virtual_service(name: &str, spec: &str) -> String {
    format!("{HEAD}kind: VirtualService\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n")
}

fn entry(name: &str, spec: &str) -> String {
    format!("{HEAD}kind: ServiceEntry\nmetadata: {{name: {name}, namespace: default}}\nspec: {spec}\n")
}

/// The hosts of the Sidecar of the one workload, which calls port 80 (or what follows a colon) of these by name, and by address where
/// they have one.
fn scope(objects: &[String], called: &[&str]) -> String {
    let text = objects.concat() + &deployment("caller", "v1", "10.0.0.1");
    let mesh = mesh(&text);
    let flows: Vec<_> = called
        .iter()
        .map(|name| {
            let (name, port) =
                name.split_once(':').map_or((*name, 80), |(name, port)| (name, port.parse().unwrap()));
            let full = format!("{name}.default.svc.cluster.local");
            let known = mesh.services.iter().find(|s| s.host.as_str() == full || s.host.as_str() == name);
            let address = known.and_then(|s| s.addresses.first()).and_then(|range| range.as_single());
            let address = address.map_or_else(|| "198.51.100.1".to_owned(), |address| address.to_string());
            flow("default/Deployment/caller-v1", &address, port, &[name])
        })
        .collect();
    let plan = planned(&mesh, &flows);
    let line = lines(&plan).first().map(|line| line.split(" -> ").nth(1).unwrap().to_owned());
    line.unwrap_or_default()
}

#[test]
fn routes_bring_where_they_lead() {
    let services = || {
        ["reviews", "v2", "shadow", "second", "rest", "other"].map(|name| {
            let last = name.len() + usize::from(name.as_bytes()[0]);
            http(name, &format!("10.96.1.{}", last % 250))
        })
    };
    let with = |more: &[String]| [&services()[..], more].concat();
    for (spec, expected) in [
        // A short name is of the object's namespace, and a name with a dot is in full.
        (
            "{hosts: [reviews], http: [{route: [{destination: {host: v2}}, {destination: {host: other.shop}}]}]}",
            "*/other.shop */reviews */v2",
        ),
        (
            "{hosts: [reviews], http: [{route: [{destination: {host: reviews}}], mirror: {host: shadow}, mirrors: [{destination: {host: second}}]}]}",
            "*/reviews */second */shadow",
        ),
        // Of a gateway only, in part or as a whole.
        (
            "{hosts: [reviews], gateways: [a/ingress], http: [{route: [{destination: {host: v2}}]}]}",
            "*/reviews",
        ),
        (
            "{hosts: [reviews], gateways: [mesh, ingress], http: [{match: [{gateways: [ingress]}], route: [{destination: {host: v2}}]}, {match: [{gateways: [mesh]}], route: [{destination: {host: other}}]}]}",
            "*/other */reviews",
        ),
        // Not visible here.
        ("{hosts: [reviews], exportTo: [shop], http: [{route: [{destination: {host: v2}}]}]}", "*/reviews"),
        ("{hosts: [reviews], exportTo: [\"~\"], http: [{route: [{destination: {host: v2}}]}]}", "*/reviews"),
        (
            "{hosts: [reviews], exportTo: [\".\"], http: [{route: [{destination: {host: v2}}]}]}",
            "*/reviews */v2",
        ),
        // A wildcard takes it, or all.
        (
            "{hosts: [\"*.default.svc.cluster.local\"], http: [{route: [{destination: {host: v2}}]}]}",
            "*/reviews */v2",
        ),
        ("{hosts: [\"*\"], http: [{route: [{destination: {host: v2}}]}]}", "*/reviews */v2"),
        ("{hosts: [other], http: [{route: [{destination: {host: v2}}]}]}", "*/reviews"),
        (
            "{hosts: [reviews], tcp: [{match: [{port: 80}], route: [{destination: {host: v2}}]}]}",
            "*/reviews */v2",
        ),
        (
            "{hosts: [reviews], tls: [{match: [{sniHosts: [reviews]}], route: [{destination: {host: v2}}]}]}",
            "*/reviews */v2",
        ),
        // A delegate has the rest.
        ("{hosts: [reviews], http: [{delegate: {name: part}}]}", "*/rest */reviews"),
        ("{hosts: [reviews], http: [{delegate: {name: part, namespace: elsewhere}}]}", "*/reviews"),
    ] {
        let part = virtual_service("part", "{http: [{route: [{destination: {host: rest}}]}]}");
        let objects = with(&[virtual_service("a", spec), part]);
        assert_eq!(scope(&objects, &["reviews"]), expected, "{spec}");
    }
    // Where a route leads, another may take over.
    let chain = with(&[
        virtual_service("a", "{hosts: [reviews], http: [{route: [{destination: {host: v2}}]}]}"),
        virtual_service("b", "{hosts: [v2], http: [{route: [{destination: {host: other}}]}]}"),
        virtual_service("c", "{hosts: [other], http: [{route: [{destination: {host: reviews}}]}]}"),
    ]);
    assert_eq!(scope(&chain, &["reviews"]), "*/other */reviews */v2");
}

#[test]
fn routes_of_the_gateway_api_count_where_a_service_is_their_parent() {
    let route = |kind: &str, namespace: &str, parent: &str| {
        format!(
            "\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{{name: v2, namespace: default, port: 80}}], filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: v3, namespace: default, port: 80}}}}}}]}}]}}\n"
        )
    };
    let objects = |route: String| {
        [http("reviews", "10.96.0.1"), http("v2", "10.96.0.2"), http("v3", "10.96.0.3"), route]
    };
    let parent = "{group: \"\", kind: Service, name: reviews, namespace: default}";
    for (route, expected) in [
        (route("HTTPRoute", "default", parent), "*/reviews */v2 */v3"),
        (route("TLSRoute", "default", parent), "*/reviews */v2 */v3"),
        // Beside another namespace's Service it is for callers of its own namespace only.
        (route("GRPCRoute", "shop", parent), "*/reviews"),
        (route("HTTPRoute", "default", "{name: reviews}"), "*/reviews"),
    ] {
        assert_eq!(scope(&objects(route.clone()), &["reviews"]), expected, "{route}");
    }
}

#[test]
fn a_name_that_only_a_route_has_is_found_there() {
    let objects =
        |spec: &str| [http("reviews", "10.96.0.1"), http("v2", "10.96.0.2"), virtual_service("a", spec)];
    let to_v2 = "http: [{route: [{destination: {host: v2}}]}]";
    for (hosts, called, expected) in [
        ("shop.test", vec!["shop.test"], "*/shop.test */v2"),
        // By the wildcard alone services would come that nobody called.
        ("\"*.shop.test\"", vec!["a.shop.test"], "*/a.shop.test */v2"),
        ("virtual", vec!["virtual"], "*/v2 */virtual"),
        // A call to it whose host could not be read would come as one to its destination.
        ("shop.test", vec!["v2"], "*/shop.test */v2"),
        ("shop.test", vec!["reviews"], "*/reviews"),
        ("shop.test", vec!["other.test"], ""),
    ] {
        let spec = format!("{{hosts: [{hosts}], {to_v2}}}");
        assert_eq!(scope(&objects(&spec), &called), expected, "{hosts} {called:?}");
    }
}

#[test]
fn a_tls_connection_counts_by_its_name_where_a_route_looks_at_that() {
    let objects = |sni: &str| {
        [
            entry(
                "a",
                "{hosts: [a.test], addresses: [10.9.9.9], ports: [{number: 443, name: tls, protocol: TLS}]}",
            ),
            service("egress", "10.96.0.9", "{port: 443, name: tls}"),
            virtual_service(
                "a",
                &format!(
                    "{{hosts: [{sni}], tls: [{{match: [{{port: 443, sniHosts: [{sni}]}}], route: [{{destination: {{host: egress}}}}]}}]}}"
                ),
            ),
        ]
    };
    // The name's own address was not called, but another one.
    let call = |objects: &[String]| {
        let mesh = mesh(&(objects.concat() + &deployment("caller", "v1", "10.0.0.1")));
        let flows = [flow("default/Deployment/caller-v1", "198.51.100.1", 443, &["a.test"])];
        lines(&planned(&mesh, &flows)).concat()
    };
    assert_eq!(call(&objects("a.test")), "caller app=caller -> */a.test */egress");
    assert_eq!(call(&objects("\"*.test\"")), "caller app=caller -> */a.test */egress");
    assert_eq!(call(&objects("b.test")), "");
}

#[test]
fn providers_of_the_proxy_itself_are_in_scope_of_whoever_has_one() {
    let config = |providers: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  other: x\n  mesh: |\n    extensionProviders:\n    - name: zipkin\n      zipkin: {{service: zipkin.default.svc.cluster.local, port: 9411}}\n    - name: als\n      envoyHttpAls: {{service: als.default.svc.cluster.local, port: 9000}}\n    - name: authz\n      envoyExtAuthzGrpc: {{service: default/authz.default.svc.cluster.local, port: 9000}}\n    - name: gone\n      zipkin: {{service: gone.default.svc.cluster.local, port: 9411}}\n    defaultProviders: {{tracing: [{providers}]}}\n"
        )
    };
    let telemetry = |namespace: &str, provider: &str| {
        format!(
            "\n---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {{accessLogging: [{{providers: [{{name: {provider}}}]}}]}}\n"
        )
    };
    let custom = "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a, namespace: default}\nspec: {action: CUSTOM, provider: {name: authz}, rules: [{}]}\n";
    let services = || {
        ["web", "zipkin", "als", "authz"]
            .map(|name| http(name, &format!("10.96.0.{}", name.len() + usize::from(name.as_bytes()[0]))))
    };
    for (more, expected) in [
        (vec![config("zipkin, gone")], "*/web */zipkin"),
        (vec![config(""), telemetry("istio-system", "als")], "*/als */web"),
        (vec![config(""), telemetry("default", "als")], "*/als */web"),
        (vec![config(""), telemetry("other", "als")], "*/web"),
        (vec![config(""), custom.to_owned()], "*/authz */web"),
        (vec![config("")], "*/web"),
    ] {
        let objects = [&services()[..], &more].concat();
        assert_eq!(scope(&objects, &["web"]), expected, "{more:?}");
        assert_eq!(scope(&objects, &[]), "", "nothing is called, so nothing is narrowed");
    }
}

#[test]
fn hosts_that_somebody_names_are_in_scope_with_all_that_belongs_to_them() {
    let policy = |namespace: &str, hosts: &str| {
        format!(
            "\n---\napiVersion: sidescope.io/v1alpha1\nkind: ScopePolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {{staticHosts: [{hosts}]}}\n"
        )
    };
    let alias = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: alias, namespace: default}\nspec: {type: ExternalName, externalName: far.test, ports: [{port: 80, name: http}]}\n".to_owned();
    let objects = [
        http("web", "10.96.0.1"),
        alias,
        policy("default", "alias.default.svc.cluster.local"),
        policy("istio-system", "\"*.wild.test\""),
        policy("other", "no.test"),
    ];
    assert_eq!(scope(&objects, &["web"]), "*/*.wild.test */alias */far.test */web");
    let annotated = deployment("caller", "v1", "10.0.0.1").replace(
        "metadata: {name: caller-v1, namespace: default}",
        "metadata: {name: caller-v1, namespace: default, annotations: {other: x, sidescope.io/static-hosts: \"a.test, b.test\"}}",
    );
    let mesh = mesh(&annotated);
    assert_eq!(lines(&planned(&mesh, &[])), ["caller app=caller -> */a.test */b.test"]);
}

#[test]
fn a_pod_of_a_headless_service_is_called_by_a_name_below_it() {
    let objects = [service("db", "None", "{port: 80, name: http}")];
    assert_eq!(scope(&objects, &["db-0.db"]), "*/db");
    assert_eq!(scope(&[http("db", "10.96.0.1")], &["db-0.db"]), "");
}

#[test]
fn a_wildcard_entry_stays_one_and_brings_the_routes_below_it() {
    let wild = entry("wild", "{hosts: [\"*.wild.test\"], ports: [{number: 80, name: http, protocol: HTTP}]}");
    let below = virtual_service("a", "{hosts: [a.wild.test], http: [{route: [{destination: {host: web}}]}]}");
    assert_eq!(scope(&[wild, below, http("web", "10.96.0.1")], &["b.wild.test"]), "*/*.wild.test */web");
}

#[test]
fn what_shares_a_port_brings_its_own_routes() {
    let free = entry("free", "{hosts: [free.test], ports: [{number: 3306, name: p, protocol: TCP}]}");
    let objects = [
        free,
        service("mysql", "10.96.0.1", "{port: 3306, name: tcp}"),
        service("replica", "10.96.0.2", "{port: 3307, name: tcp}"),
        virtual_service("a", "{hosts: [mysql], tcp: [{route: [{destination: {host: replica}}]}]}"),
    ];
    assert_eq!(scope(&objects, &["free.test:3306"]), "*/free.test */mysql */replica");
}

#[test]
fn an_address_that_istiod_made_up_is_one_only_for_proxies_that_tell_of_it() {
    let free = entry("free", "{hosts: [free.test], ports: [{number: 3306, name: p, protocol: TCP}]}")
        .replace("spec:", "status: {addresses: [{value: 240.240.0.1}]}\nspec:");
    let capture = "\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: \"defaultConfig: {proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'true'}}\"}\n";
    for (config, expected) in [("", "*/free.test */mysql"), (capture, "*/free.test")] {
        let mysql = service("mysql", "10.96.0.1", "{port: 3306, name: tcp}");
        let text = [free.clone(), mysql, config.to_owned(), deployment("caller", "v1", "10.0.0.1")].concat();
        let mesh = mesh(&text);
        // By its name: the address that the program had for it is another.
        let flows = [flow("default/Deployment/caller-v1", "198.51.100.1", 3306, &["free.test"])];
        assert_eq!(lines(&planned(&mesh, &flows)), [format!("caller app=caller -> {expected}")], "{config}");
    }
}
