//! Kubernetes objects for what a bed runs, as the API server would print them: the other half of a bed for who reads inventories.
//!
//! Everything in it is derived from names, so the same bed gives the same text.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::bed::{Host, NODE_V4, NODE_V6, Protocol, Service};

/// When everything was created. A constant, because nothing may hang on it.
const CREATED: &str = "2026-01-01T00:00:00Z";
/// The name of the one node.
const NODE: &str = "node-1";

/// A Deployment, its ReplicaSet and its pods, with what Istio's injector adds.
pub struct Deployment {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Labels of its pods; also its selector. `app` and `version` make Istio's canonical name and revision.
    pub labels: Vec<(String, String)>,
    /// Name of the application's container.
    pub container: String,
    /// Port of the application.
    pub port: u16,
    /// The hosts of the bed that are its pods.
    pub pods: Vec<Host>,
}

impl Deployment {
    /// Deployment, ReplicaSet and pods.
    pub fn objects(&self) -> Vec<Value> {
        let mut objects = vec![self.deployment(), self.replica_set()];
        objects.extend((0..self.pods.len()).map(|index| self.pod(index)));
        objects
    }

    fn hash(&self) -> String {
        letters(&self.name, 10)
    }

    fn replica_set_name(&self) -> String {
        format!("{}-{}", self.name, self.hash())
    }

    fn pod_name(&self, index: usize) -> String {
        format!("{}-{}", self.replica_set_name(), letters(&format!("{} {index}", self.name), 5))
    }

    fn labels(&self, more: &[(&str, &str)]) -> Value {
        labels(
            self.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).chain(more.iter().copied()),
        )
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn app_container(&self) -> Value {
        json!({
            "name": self.container,
            "image": format!("docker.io/istio/examples-bookinfo-{}:1.20.3", self.container),
            "imagePullPolicy": "IfNotPresent",
            "ports": [{ "containerPort": self.port, "protocol": "TCP" }],
            "resources": {},
        })
    }

    fn deployment(&self) -> Value {
        let count = self.pods.len();
        let mut object = object("apps/v1", "Deployment", Some(&self.namespace), &self.name);
        object["metadata"]["labels"] = self.labels(&[]);
        object["metadata"]["annotations"] = json!({ "deployment.kubernetes.io/revision": "1" });
        object["spec"] = json!({
            "replicas": count,
            "selector": { "matchLabels": self.labels(&[]) },
            "template": { "metadata": { "labels": self.labels(&[]) }, "spec": { "containers": [self.app_container()] } },
        });
        object["status"] = json!({ "availableReplicas": count, "readyReplicas": count, "replicas": count });
        object
    }

    fn replica_set(&self) -> Value {
        let (count, hash) = (self.pods.len(), self.hash());
        let hashed = [("pod-template-hash", hash.as_str())];
        let mut object = object("apps/v1", "ReplicaSet", Some(&self.namespace), &self.replica_set_name());
        object["metadata"]["labels"] = self.labels(&hashed);
        object["metadata"]["ownerReferences"] = owner("Deployment", &self.namespace, &self.name);
        object["spec"] = json!({
            "replicas": count,
            "selector": { "matchLabels": self.labels(&hashed) },
            "template": {
                "metadata": { "labels": self.labels(&hashed) },
                "spec": { "containers": [self.app_container()] },
            },
        });
        object["status"] = json!({ "availableReplicas": count, "readyReplicas": count, "replicas": count });
        object
    }

    fn pod(&self, index: usize) -> Value {
        let (host, hash) = (&self.pods[index], self.hash());
        let canonical = self.label("app").unwrap_or(&self.name);
        let mut object = object("v1", "Pod", Some(&self.namespace), &self.pod_name(index));
        object["metadata"]["generateName"] = json!(format!("{}-", self.replica_set_name()));
        object["metadata"]["labels"] = self.labels(&[
            ("pod-template-hash", &hash),
            ("security.istio.io/tlsMode", "istio"),
            ("service.istio.io/canonical-name", canonical),
            ("service.istio.io/canonical-revision", self.label("version").unwrap_or("latest")),
        ]);
        object["metadata"]["ownerReferences"] =
            owner("ReplicaSet", &self.namespace, &self.replica_set_name());
        object["spec"] = json!({
            "containers": [
                self.app_container(),
                {
                    "name": "istio-proxy",
                    "image": "docker.io/istio/proxyv2:1.28.0",
                    "args": ["proxy", "sidecar"],
                    "ports": [{ "containerPort": 15090, "name": "http-envoy-prom", "protocol": "TCP" }],
                    "securityContext": { "runAsGroup": 1337, "runAsNonRoot": true, "runAsUser": 1337 },
                },
            ],
            "nodeName": NODE,
        });
        object["status"] = json!({
            "phase": "Running",
            "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": CREATED }],
            "hostIP": NODE_V4.to_string(),
            "hostIPs": [{ "ip": NODE_V4.to_string() }, { "ip": NODE_V6.to_string() }],
            "podIP": host.v4().to_string(),
            "podIPs": [{ "ip": host.v4().to_string() }, { "ip": host.v6().to_string() }],
            "startTime": CREATED,
        });
        object
    }
}

/// A Namespace, with or without Istio's injection.
pub fn namespace(name: &str, injected: bool) -> Value {
    let mut object = object("v1", "Namespace", None, name);
    let injection = injected.then_some(("istio-injection", "enabled"));
    object["metadata"]["labels"] =
        labels(injection.into_iter().chain([("kubernetes.io/metadata.name", name)]));
    object["spec"] = json!({ "finalizers": ["kubernetes"] });
    object["status"] = json!({ "phase": "Active" });
    object
}

/// A dual-stack Service of the bed and its EndpointSlices, one per family: `behind` are the deployments that it selects.
pub fn service<'a>(
    namespace: &str,
    service: &Service,
    selector: &[(&str, &str)],
    behind: impl Iterator<Item = &'a Deployment> + Clone,
) -> Vec<Value> {
    let protocol = |protocol| match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    let mut front = object("v1", "Service", Some(namespace), &service.name);
    front["metadata"]["labels"] = labels(selector.iter().copied());
    front["spec"] = json!({
        "clusterIP": service.v4.to_string(),
        "clusterIPs": [service.v4.to_string(), service.v6.to_string()],
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
        "ports": service.ports.iter().map(|port| json!({
            "name": port.name, "port": port.port, "targetPort": port.target, "protocol": protocol(port.protocol),
        })).collect::<Vec<_>>(),
        "selector": labels(selector.iter().copied()),
        "sessionAffinity": "None",
        "type": "ClusterIP",
    });
    front["status"] = json!({ "loadBalancer": {} });
    let slice = |family: &str, address: fn(&Host) -> String| {
        let name = format!("{}-{}", service.name, letters(&format!("{} {family}", service.name), 5));
        let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", Some(namespace), &name);
        slice["metadata"]["generateName"] = json!(format!("{}-", service.name));
        slice["metadata"]["labels"] = labels(selector.iter().copied().chain([
            ("endpointslice.kubernetes.io/managed-by", "endpointslice-controller.k8s.io"),
            ("kubernetes.io/service-name", service.name.as_str()),
        ]));
        let mut owners = owner("Service", namespace, &service.name);
        owners[0]["apiVersion"] = json!("v1");
        slice["metadata"]["ownerReferences"] = owners;
        slice["addressType"] = json!(family);
        let endpoints = behind.clone().flat_map(|deployment| {
            deployment.pods.iter().enumerate().map(move |(index, pod)| {
                let name = deployment.pod_name(index);
                json!({
                    "addresses": [address(pod)],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": NODE,
                    "targetRef": { "kind": "Pod", "name": name, "namespace": deployment.namespace,
                                   "uid": uid("Pod", &deployment.namespace, &name) },
                })
            })
        });
        slice["endpoints"] = endpoints.collect();
        slice["ports"] = service
            .ports
            .iter()
            .map(
                |port| json!({ "name": port.name, "port": port.target, "protocol": protocol(port.protocol) }),
            )
            .collect();
        slice
    };
    let slices = [slice("IPv4", |pod| pod.v4().to_string()), slice("IPv6", |pod| pod.v6().to_string())];
    [front].into_iter().chain(slices).collect()
}

/// The Service of the API server, that every cluster has in `default`, and its EndpointSlice.
pub fn kubernetes_service() -> Vec<Value> {
    let api_labels = [("component", "apiserver"), ("provider", "kubernetes")];
    let mut front = object("v1", "Service", Some("default"), "kubernetes");
    front["metadata"]["labels"] = labels(api_labels.into_iter());
    front["spec"] = json!({
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ipFamilies": ["IPv4"],
        "ipFamilyPolicy": "SingleStack",
        "ports": [{ "name": "https", "port": 443, "targetPort": 6443, "protocol": "TCP" }],
        "sessionAffinity": "None",
        "type": "ClusterIP",
    });
    front["status"] = json!({ "loadBalancer": {} });
    let mut slice = object("discovery.k8s.io/v1", "EndpointSlice", Some("default"), "kubernetes");
    slice["metadata"]["labels"] = labels([("kubernetes.io/service-name", "kubernetes")].into_iter());
    slice["addressType"] = json!("IPv4");
    slice["endpoints"] = json!([{ "addresses": [NODE_V4.to_string()], "conditions": { "ready": true } }]);
    slice["ports"] = json!([{ "name": "https", "port": 6443, "protocol": "TCP" }]);
    vec![front, slice]
}

/// What `kubectl get -o yaml` makes of several objects.
pub fn list(items: Vec<Value>) -> Result<String> {
    let list = json!({
        "apiVersion": "v1", "items": items, "kind": "List", "metadata": { "resourceVersion": "" },
    });
    serde_saphyr::to_string(&list).context("cannot write the inventory as YAML")
}

fn object(api_version: &str, kind: &str, namespace: Option<&str>, name: &str) -> Value {
    let mut metadata = json!({
        "creationTimestamp": CREATED,
        "name": name,
        "resourceVersion": "1",
        "uid": uid(kind, namespace.unwrap_or_default(), name),
    });
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata })
}

fn owner(kind: &str, namespace: &str, name: &str) -> Value {
    json!([{
        "apiVersion": "apps/v1", "blockOwnerDeletion": true, "controller": true,
        "kind": kind, "name": name, "uid": uid(kind, namespace, name),
    }])
}

fn labels<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    Value::Object(pairs.map(|(key, value)| (key.to_owned(), json!(value))).collect::<Map<_, _>>())
}

/// A uid that an object keeps from run to run.
fn uid(kind: &str, namespace: &str, name: &str) -> String {
    let text = format!("{kind}/{namespace}/{name}");
    let (high, low) = (fnv(&text), fnv(&format!("{text}/")));
    format!(
        "{:08x}-{:04x}-4{:03x}-8{:03x}-{:012x}",
        high >> 32,
        high >> 16 & 0xffff,
        high & 0xfff,
        low >> 48 & 0xfff,
        low & 0xffff_ffff_ffff
    )
}

/// A suffix in the alphabet of Kubernetes' generated names.
fn letters(seed: &str, count: usize) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = fnv(seed);
    let mut next = || {
        let letter = ALPHABET[usize::try_from(rest % 27).expect("below 27")];
        rest /= 27;
        char::from(letter)
    };
    (0..count).map(|_| next()).collect()
}

/// FNV-1a: the standard library's hashers do not promise the same value tomorrow.
fn fnv(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_names_look_like_those_of_kubernetes_and_stay_the_same() {
        assert_eq!(letters("reviews-v1", 10), letters("reviews-v1", 10));
        assert_ne!(letters("reviews-v1", 10), letters("reviews-v2", 10));
        let uid = uid("Pod", "default", "a");
        assert_eq!(uid.split('-').map(str::len).collect::<Vec<_>>(), [8, 4, 4, 4, 12]);
    }

    #[test]
    fn a_list_is_yaml_that_reads_back() {
        let text = list(vec![namespace("default", true)]).unwrap();
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(value["items"][0]["metadata"]["labels"]["istio-injection"], "enabled");
        assert_eq!(value["items"][0]["metadata"]["resourceVersion"], "1", "a text stays a text");
    }
}
