//! The objects of the bench's cluster as JSON, about as large as those of a mesh: pods have a proxy beside their container. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::world::{PORT, TARGET_PORT, TEMPLATE_HASH, World};

/// The namespace and the service account of agents and aggregator.
pub(super) const NAMESPACE: &str = "sidescope";
pub(super) const AGENT: &str = "sidescope-agent";
pub(super) const AGGREGATOR: &str = "sidescope-aggregator";

/// What an EndpointSlice says of a pod: its name and its uid.
pub(super) type Endpoints = BTreeMap<IpAddr, (String, String)>;

pub(super) fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"istio-injection": "enabled"}}})
}

pub(super) fn node(node: usize) -> Value {
    let name = World::node_name(node);
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}})
}

pub(super) fn agent_name(node: usize) -> String {
    format!("{AGENT}-{node:04}")
}

pub(super) fn agent(node: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": agent_name(node), "namespace": NAMESPACE, "labels": {"app": AGENT},
            "ownerReferences": [owner("apps/v1", "DaemonSet", AGENT)],
        },
        "spec": {
            "nodeName": World::node_name(node), "serviceAccountName": AGENT, "hostNetwork": true,
            "containers": [{"name": "agent", "image": "sidescope"}],
        },
    })
}

fn owner(version: &str, kind: &str, name: &str) -> Value {
    // Nobody collects garbage here, so any uid will do.
    json!({"apiVersion": version, "kind": kind, "name": name, "uid": format!("of-{name}"), "controller": true, "blockOwnerDeletion": true})
}

fn labels(workload: usize) -> Value {
    json!({"app": World::workload_name(workload)})
}

fn pod_labels(workload: usize) -> Value {
    let name = World::workload_name(workload);
    json!({
        "app": name,
        "pod-template-hash": TEMPLATE_HASH,
        "security.istio.io/tlsMode": "istio",
        "service.istio.io/canonical-name": name,
        "service.istio.io/canonical-revision": "latest",
    })
}

fn replica_set_name(workload: usize) -> String {
    format!("{}-{TEMPLATE_HASH}", World::workload_name(workload))
}

fn template(workload: usize) -> Value {
    json!({
        "metadata": {"labels": labels(workload)},
        "spec": {"containers": [app(workload)], "volumes": [config()]},
    })
}

pub(super) fn deployment(workload: usize, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": World::workload_name(workload), "namespace": World::namespace_of(workload), "labels": labels(workload),
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels(workload)}, "template": template(workload)},
    })
}

pub(super) fn replica_set(workload: usize, replicas: usize) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": replica_set_name(workload), "namespace": World::namespace_of(workload), "labels": labels(workload),
            "ownerReferences": [owner("apps/v1", "Deployment", &World::workload_name(workload))],
        },
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels(workload)}, "template": template(workload)},
    })
}

pub(super) fn service(world: &World, service: usize) -> Value {
    let workload = world.selected_by(service);
    let (port, cluster_ip) = match service < world.virtual_services() {
        true => (PORT, world.cluster_ip(service).to_string()),
        false => (TARGET_PORT, "None".to_owned()),
    };
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": World::service_name(service), "namespace": World::namespace_of(workload), "labels": labels(workload),
        },
        "spec": {
            "clusterIP": cluster_ip, "selector": labels(workload),
            "ports": [{"name": "http", "port": port, "targetPort": TARGET_PORT}],
        },
    })
}

pub(super) fn slice_name(service: usize) -> String {
    format!("{}-x7k2p", World::service_name(service))
}

pub(super) fn slice(world: &World, service: usize, pods: &Endpoints) -> Value {
    let namespace = World::namespace_of(world.selected_by(service));
    let endpoints = pods.iter().map(|(address, (name, uid))| {
        json!({
            "addresses": [address],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": name, "uid": uid},
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": slice_name(service), "namespace": namespace,
            "labels": {
                "kubernetes.io/service-name": World::service_name(service),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
        },
        "addressType": "IPv4",
        "endpoints": endpoints.collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": TARGET_PORT, "protocol": "TCP"}],
    })
}

pub(super) fn pod_name(workload: usize, suffix: usize) -> String {
    format!("{}-{suffix:05x}", replica_set_name(workload))
}

/// A pod that is bound to its node.
pub(super) fn pod(workload: usize, suffix: usize, node: usize) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(workload, suffix), "namespace": World::namespace_of(workload), "labels": pod_labels(workload),
            "annotations": {
                "kubectl.kubernetes.io/default-container": "app",
                "prometheus.io/path": "/stats/prometheus", "prometheus.io/port": "15020", "prometheus.io/scrape": "true",
                "sidecar.istio.io/status": "{\"initContainers\":[\"istio-init\"],\"containers\":[\"istio-proxy\"],\"revision\":\"default\"}",
            },
            "ownerReferences": [owner("apps/v1", "ReplicaSet", &replica_set_name(workload))],
        },
        "spec": {
            "nodeName": World::node_name(node),
            "containers": [app(workload), proxy(workload)],
            "volumes": [
                config(), {"name": "istio-envoy", "emptyDir": {"medium": "Memory"}},
                {"name": "istio-data", "emptyDir": {}}, {"name": "istiod-ca-cert", "configMap": {"name": "istio-ca-root-cert"}},
            ],
        },
    })
}

fn config() -> Value {
    json!({"name": "config", "configMap": {"name": "app"}})
}

fn app(workload: usize) -> Value {
    let name = World::workload_name(workload);
    json!({
        "name": "app",
        "image": format!("registry.example/team/{name}:1.42.0"),
        "ports": [{"name": "http", "containerPort": TARGET_PORT}],
        "env": [{"name": "APP", "value": name}, {"name": "LOG_LEVEL", "value": "info"}, {"name": "HTTP_PORT", "value": "8080"}],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": TARGET_PORT}, "periodSeconds": 5},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/app"}],
    })
}

fn proxy(workload: usize) -> Value {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    json!({
        "name": "istio-proxy",
        "image": "docker.io/istio/proxyv2:1.30.0",
        "args": ["proxy", "sidecar", "--domain", "$(POD_NAMESPACE).svc.cluster.local", "--proxyLogLevel=warning"],
        "ports": [{"name": "http-envoy-prom", "containerPort": 15090}],
        "env": [
            {"name": "POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "INSTANCE_IP", "valueFrom": field("status.podIP")},
            {"name": "HOST_IP", "valueFrom": field("status.hostIP")},
            {"name": "ISTIO_META_WORKLOAD_NAME", "value": World::workload_name(workload)},
            {"name": "TRUST_DOMAIN", "value": "cluster.local"},
        ],
        "resources": {"requests": {"cpu": "10m", "memory": "40Mi"}, "limits": {"cpu": "2", "memory": "1Gi"}},
        "securityContext": {"runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true, "readOnlyRootFilesystem": true},
        "readinessProbe": {"httpGet": {"path": "/healthz/ready", "port": 15021}, "periodSeconds": 15},
        "volumeMounts": [
            {"name": "istio-envoy", "mountPath": "/etc/istio/proxy"}, {"name": "istio-data", "mountPath": "/var/lib/istio/data"},
            {"name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio"},
        ],
    })
}

/// What the kubelet says of a pod that runs since `started` (`2026-01-31T12:00:00Z`). An agent has its node's address.
pub(super) fn running(address: IpAddr, node: IpAddr, started: &str) -> Value {
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": started, "lastProbeTime": null});
    let container = |name: &str| {
        json!({
            "name": name, "image": name, "imageID": "", "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": started}},
        })
    };
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    json!({"status": {
        "phase": "Running", "startTime": started,
        "hostIP": node, "hostIPs": [{"ip": node}], "podIP": address, "podIPs": [{"ip": address}],
        "conditions": conditions.map(condition).as_slice(),
        "containerStatuses": [container("app"), container("istio-proxy")],
    }})
}
