use serde::de::DeserializeOwned;

use super::*;
use crate::model::config::{HostPattern, MtlsMode, OutboundMode};
use crate::objects::Object;

/// Reads an object as watches and inventories do: by way of JSON, with the path of what is wrong.
fn read<T: DeserializeOwned + Default>(yaml: &str) -> Result<Object<T>, String> {
    let value: serde_json::Value = serde_saphyr::from_str(yaml).unwrap();
    serde_path_to_error::deserialize(value).map_err(|err| format!("{}: {}", err.path(), err.inner()))
}

fn host(name: &str) -> crate::model::names::Host {
    crate::fixture::host(name)
}

#[test]
fn a_virtual_service_tells_where_its_requests_go() {
    let read: Object<VirtualServiceSpec> = read(
        r#"
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: bookinfo}
spec:
  hosts: [reviews, "*.wild.test", "*", 10.0.0.1]
  gateways: [mesh, istio-system/ingress]
  exportTo: [".", other]
  http:
  - name: canary
    match:
    - headers: {end-user: {exact: jason}}
      uri: {prefix: /v2}
      sourceLabels: {app: productpage}
      gateways: [mesh]
      port: 9080
    timeout: 3s
    retries: {attempts: 3}
    route:
    - destination: {host: reviews, subset: v2, port: {number: 9080}}
      weight: 90
    - destination: {host: reviews.other.svc.cluster.local}
      weight: 10
    mirror: {host: shadow}
    mirrors: [{destination: {host: second}, percentage: {value: 1.0}}]
  - delegate: {name: rest, namespace: other}
  - redirect: {uri: /x}
    match: null
  tls:
  - match: [{port: 443, sniHosts: [a.test, "*.b.test"]}]
    route: [{destination: {host: egress.istio-system.svc.cluster.local}}]
  tcp:
  - match: [{port: 27017, destinationSubnets: [10.0.0.0/8]}]
    route: [{destination: {host: mongo}}]
"#,
    )
    .unwrap();
    let spec = &read.spec;
    assert_eq!(spec.hosts[0], HostPattern::Name(host("reviews")));
    assert_eq!(spec.hosts[2..], [HostPattern::Any, HostPattern::Address("10.0.0.1".parse().unwrap())]);
    assert_eq!(spec.gateways, [GatewayRef::Mesh, GatewayRef::Other]);
    assert_eq!(spec.export_to[0], ExportTo::Own);
    let canary = &spec.http[0];
    let hosts: Vec<_> = canary.route.iter().map(|to| to.destination.host.as_str()).collect();
    assert_eq!(hosts, ["reviews", "reviews.other.svc.cluster.local"]);
    assert_eq!(canary.matches[0].source_labels.get("app"), Some("productpage"));
    assert_eq!(canary.mirror.as_ref().unwrap().host, host("shadow"));
    assert_eq!(canary.mirrors[0].destination.as_ref().unwrap().host, host("second"));
    assert_eq!(spec.http[1].delegate.as_ref().unwrap().name.as_str(), "rest");
    assert!(spec.http[2].route.is_empty());
    assert_eq!(spec.tls[0].matches[0].sni_hosts[1], HostPattern::Name(host("*.b.test")));
    assert_eq!(spec.tcp[0].route[0].destination.host, host("mongo"));
}

#[test]
fn a_rule_for_connections_tells_their_tls() {
    let read: Object<DestinationRuleSpec> = read(
        r#"
metadata: {name: external, namespace: default}
spec:
  host: external.test
  exportTo: null
  workloadSelector: {matchLabels: {app: caller}}
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 1}}
    tls: {mode: SIMPLE, sni: external.test}
    portLevelSettings:
    - {port: {number: 443}, tls: {mode: ISTIO_MUTUAL}}
    - {port: {number: 80}, tls: null}
  subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {tls: {mode: DISABLE}}}, {name: v2}]
"#,
    )
    .unwrap();
    let spec = read.spec;
    assert_eq!(spec.host, Some(host("external.test")));
    assert_eq!(spec.traffic_policy.tls, Some(Tls { mode: TlsMode::Simple }));
    let ports: Vec<_> = spec.traffic_policy.port_level_settings.iter().map(|port| port.tls).collect();
    assert_eq!(ports, [Some(Tls { mode: TlsMode::IstioMutual }), None]);
    assert_eq!(spec.subsets[0].traffic_policy.tls, Some(Tls { mode: TlsMode::Disable }));
    assert_eq!(spec.workload_selector.unwrap().match_labels.get("app"), Some("caller"));
}

#[test]
fn a_sidecar_keeps_what_may_have_to_be_copied_as_it_was_written() {
    let read: Object<SidecarSpec> = read(
        r#"
metadata: {name: default, namespace: default}
spec:
  egress:
  - hosts: ["./*", "istio-system/*"]
  - port: {number: 9080, protocol: HTTP, name: egress}
    bind: 127.0.0.1
    captureMode: NONE
    hosts: ["*/a.test"]
  ingress:
  - port: {number: 9080, protocol: HTTP, name: in}
    defaultEndpoint: 127.0.0.1:8080
  inboundConnectionPool: {http: {http1MaxPendingRequests: 10}}
  outboundTrafficPolicy: {mode: ALLOW_ANY}
"#,
    )
    .unwrap();
    let spec = &read.spec;
    assert_eq!(spec.egress[0].hosts[1], EgressText("istio-system/*".to_owned()));
    assert_eq!(spec.ingress.as_ref().unwrap()[0]["defaultEndpoint"], "127.0.0.1:8080");
    assert_eq!(spec.inbound_connection_pool.as_ref().unwrap()["http"]["http1MaxPendingRequests"], 10);
    for (policy, expected) in [
        ("{mode: ALLOW_ANY}", Some(OutboundMode::AllowAny)),
        ("{mode: REGISTRY_ONLY}", Some(OutboundMode::RegistryOnly)),
        ("{}", Some(OutboundMode::RegistryOnly)),
        ("{mode: NEW}", Some(OutboundMode::RegistryOnly)),
        ("null", None),
    ] {
        let text = format!("metadata: {{name: a}}\nspec: {{outboundTrafficPolicy: {policy}}}");
        let read: Object<SidecarSpec> = super::tests::read(&text).unwrap();
        assert_eq!(read.spec.outbound_mode(), expected, "{policy}");
    }
}

#[test]
fn security_rules_tell_who_is_refused() {
    let peer: Object<PeerAuthenticationSpec> = read(
        "metadata: {name: a}\nspec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {\"8080\": {mode: DISABLE}, \"9090\": {}}}",
    )
    .unwrap();
    assert_eq!(peer.spec.mtls.mode, MtlsMode::Strict);
    let ports: Vec<_> = peer.spec.port_level_mtls.iter().map(|(port, mtls)| (*port, mtls.mode)).collect();
    assert_eq!(ports, [(8080, MtlsMode::Disable), (9090, MtlsMode::Unset)]);
    for (rules, identity) in [
        ("[]", false),
        ("[{}]", false),
        ("[{to: [{operation: {methods: [GET]}}]}]", false),
        ("[{from: [{source: {ipBlocks: [10.0.0.0/8]}}]}]", false),
        ("[{from: [{source: {requestPrincipals: [\"*\"]}}]}]", false),
        ("[{from: [{source: {principals: [cluster.local/ns/a/sa/b]}}]}]", true),
        ("[{from: [{source: {notNamespaces: [a]}}]}]", true),
        ("[{from: [{source: {serviceAccounts: [a/b]}}]}]", true),
        ("[{}, {when: [{key: source.namespace, values: [a]}]}]", true),
        ("[{when: [{key: request.headers, values: [a]}]}]", false),
    ] {
        let text = format!("metadata: {{name: a}}\nspec: {{action: DENY, rules: {rules}}}");
        let policy: Object<AuthorizationPolicySpec> = read(&text).unwrap();
        assert_eq!(policy.spec.asks_for_identity(), identity, "{rules}");
        assert_eq!(policy.spec.action, AuthorizationAction::Deny);
    }
    let custom: Object<AuthorizationPolicySpec> = read(
        "metadata: {name: a}\nspec: {action: CUSTOM, provider: {name: ext}, targetRefs: [{kind: Gateway, name: w}]}",
    )
    .unwrap();
    assert_eq!(custom.spec.provider.as_ref().unwrap().name.0, "ext");
    assert!(custom.spec.is_attached());
}

#[test]
fn telemetry_names_its_providers() {
    let read: Object<TelemetrySpec> = read(
        "metadata: {name: a}\nspec: {tracing: [{providers: [{name: zipkin}], randomSamplingPercentage: 1.5}], accessLogging: [{providers: [{name: otel}]}, {disabled: true}], metrics: null}",
    )
    .unwrap();
    let names: Vec<_> = read.spec.providers().map(|name| name.0.as_str()).collect();
    assert_eq!(names, ["zipkin", "otel"]);
}

#[test]
fn routes_of_the_gateway_api_tell_their_parents_and_where_they_send() {
    let read: Object<GatewayRouteSpec> = read(
        r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: reviews, namespace: default}
spec:
  parentRefs: [{group: "", kind: Service, name: reviews, port: 9080}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /}}]
    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 9080}}}, {type: URLRewrite, urlRewrite: {}}]
    backendRefs:
    - {name: reviews-v1, port: 9080, weight: 1}
    - {group: networking.istio.io, kind: Hostname, name: a.test, port: 443, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: second}}}]}
"#,
    )
    .unwrap();
    let rule = &read.spec.rules[0];
    assert_eq!(read.spec.parent_refs[0].kind.as_deref(), Some("Service"));
    assert_eq!(rule.filters[0].request_mirror.as_ref().unwrap().backend_ref.name.as_str(), "shadow");
    assert_eq!(rule.backend_refs[1].kind.as_deref(), Some("Hostname"));
    assert!(rule.backend_refs[1].filters[0].request_mirror.is_some());
}

#[test]
fn the_configuration_of_a_mesh_is_read_from_its_text() {
    let read = MeshConfig::parse(
        r#"
accessLogFile: /dev/stdout
rootNamespace: mesh-root
trustDomain: td
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
enableAutoMtls: false
discoverySelectors:
- matchLabels: {mesh: "on"}
- matchExpressions: [{key: team, operator: In, values: [a, b]}]
defaultProviders: {tracing: [zipkin], metrics: [prometheus]}
defaultServiceExportTo: [".", "istio-system"]
extensionProviders:
- name: zipkin
  zipkin: {service: zipkin.istio-system.svc.cluster.local, port: 9411}
- name: ext
  envoyExtAuthzGrpc: {service: auth/ext.test, port: 9000}
- name: prometheus
  prometheus: {}
- name: file
  envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: x}}
defaultConfig:
  discoveryAddress: istiod.istio-system.svc:15012
  proxyMetadata: {ISTIO_META_DNS_CAPTURE: "true"}
  tracing: {sampling: 1.0, zipkin: {address: "zipkin.istio-system:9411"}}
  envoyAccessLogService: {address: als.ns:1234}
"#,
    )
    .unwrap();
    assert_eq!(read.root().as_str(), "mesh-root");
    assert_eq!(read.outbound_mode(), OutboundMode::RegistryOnly);
    let services: Vec<_> =
        read.extension_providers.iter().map(|p| p.services().cloned().collect::<Vec<_>>()).collect();
    assert_eq!(services[0][0].host, host("zipkin.istio-system.svc.cluster.local"));
    assert_eq!(services[1][0].namespace.as_ref().unwrap().as_str(), "auth");
    assert!(services[2].is_empty() && services[3].is_empty());
    assert_eq!(
        read.default_config.addresses().collect::<Vec<_>>(),
        ["zipkin.istio-system:9411", "als.ns:1234"]
    );
    assert!(read.default_config.captures_dns());
    assert_eq!(read.discovery_selectors[1].match_expressions[0].values, ["a", "b"]);
    for empty in ["", "# nothing\n", "{}", "null"] {
        let read = MeshConfig::parse(empty).unwrap();
        assert_eq!(read, MeshConfig::default(), "{empty:?}");
        assert_eq!((read.outbound_mode(), read.root().as_str()), (OutboundMode::AllowAny, "istio-system"));
    }
    // Without a mode the field's own default counts, which is not the mesh's.
    let read = MeshConfig::parse("outboundTrafficPolicy: {}").unwrap();
    assert_eq!(read.outbound_mode(), OutboundMode::RegistryOnly);
}

#[test]
fn odd_input_is_an_error_that_names_its_field() {
    fn wrong<T: DeserializeOwned + Default>(spec: &str) -> String {
        let read = read::<T>(&format!("metadata: {{name: a}}\nspec: {spec}")).map(drop);
        read.unwrap_err()
    }
    for (message, field) in [
        (wrong::<VirtualServiceSpec>("{hosts: [\"a b\"]}"), "spec.hosts[0]"),
        (wrong::<VirtualServiceSpec>("{exportTo: [A]}"), "spec.exportTo[0]"),
        (wrong::<VirtualServiceSpec>("{http: [{route: [{}]}]}"), "spec.http[0].route[0]"),
        (
            wrong::<VirtualServiceSpec>("{tls: [{route: [{destination: {host: \"\"}}]}]}"),
            "spec.tls[0].route[0].destination.host",
        ),
        (wrong::<DestinationRuleSpec>("{trafficPolicy: {tls: {mode: NEW}}}"), "spec.trafficPolicy.tls.mode"),
        (wrong::<SidecarSpec>("{egress: [{hosts: [\"\\e[31m\"]}]}"), "spec.egress[0].hosts[0]"),
        (wrong::<PeerAuthenticationSpec>("{portLevelMtls: {x: {mode: STRICT}}}"), "spec.portLevelMtls"),
        (wrong::<AuthorizationPolicySpec>("{action: MAYBE}"), "spec.action"),
        (
            wrong::<TelemetrySpec>("{tracing: [{providers: [{name: \"a b\"}]}]}"),
            "spec.tracing[0].providers[0].name",
        ),
        (
            wrong::<GatewayRouteSpec>("{rules: [{backendRefs: [{name: A_b}]}]}"),
            "spec.rules[0].backendRefs[0].name",
        ),
        (wrong::<GatewaySpec>("{selector: {-a: b}}"), "spec.selector"),
        (MeshConfig::parse("rootNamespace: A").unwrap_err().to_string(), "rootNamespace"),
        (
            MeshConfig::parse("extensionProviders: [{name: a, zipkin: {service: \"a/b/c\"}}]")
                .unwrap_err()
                .to_string(),
            "service",
        ),
        (MeshConfig::parse("a: [").unwrap_err().to_string(), "YAML"),
        (MeshConfig::parse("- 1").unwrap_err().to_string(), "field"),
    ] {
        assert!(message.contains(field), "{field}: {message}");
    }
}
