//! Meshes and flows for tests, written as people would: Kubernetes objects in YAML.

use std::collections::{BTreeMap, BTreeSet};

use crate::attribute::Flow;
use crate::inventory::Builder;
use crate::model::mesh::Mesh;
use crate::model::names::{Host, Namespace, WorkloadRef};

pub(crate) fn mesh(yaml: &str) -> Mesh {
    let mut builder = Builder::default();
    builder.add_text("test.yaml", yaml).unwrap();
    builder.build().unwrap().mesh
}

pub(crate) fn host(name: &str) -> Host {
    Host::new(name).unwrap()
}

pub(crate) fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

/// `namespace/Kind/name`.
pub(crate) fn workload(text: &str) -> WorkloadRef {
    let mut parts = text.splitn(3, '/');
    WorkloadRef {
        namespace: ns(parts.next().unwrap()),
        kind: parts.next().unwrap().to_owned(),
        name: parts.next().unwrap().to_owned(),
    }
}

pub(crate) fn flow(source: &str, address: &str, port: u16, hosts: &[&str]) -> Flow {
    Flow {
        source: workload(source),
        address: address.parse().unwrap(),
        port,
        hosts: hosts.iter().map(|name| host(name)).collect::<BTreeSet<_>>(),
        names: BTreeSet::new(),
        connects: 1,
        host_unknown: false,
        existing: false,
        unnamed: false,
    }
}

/// All pods of all workloads that have one.
pub(crate) fn all_watched(mesh: &Mesh) -> BTreeMap<WorkloadRef, usize> {
    mesh.live_pods().into_iter().map(|(workload, pods)| (workload.clone(), pods)).collect()
}

/// A Deployment in `default` with the labels `app` and `version`, and one pod of it.
pub(crate) fn deployment(app: &str, version: &str, address: &str) -> String {
    format!(
        r#"
---
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {app}-{version}, namespace: default}}
spec:
  selector: {{matchLabels: {{app: {app}, version: {version}}}}}
  template: {{metadata: {{labels: {{app: {app}, version: {version}}}}}}}
---
apiVersion: v1
kind: Pod
metadata:
  name: {app}-{version}-5f4-abc
  namespace: default
  labels: {{app: {app}, version: {version}, pod-template-hash: 5f4, service.istio.io/canonical-name: {app}}}
  ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {app}-{version}-5f4, controller: true}}]
status: {{phase: Running, podIP: {address}, hostIP: 192.168.0.1}}
"#
    )
}

/// A Service in `default`. `port` is written as in YAML, such as `{port: 9080, name: http}`.
pub(crate) fn service(name: &str, cluster_ip: &str, port: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{clusterIP: {cluster_ip}, ports: [{port}]}}\n"
    )
}

/// Istio's Bookinfo, with a MongoDB that speaks plain TCP.
pub(crate) fn bookinfo() -> Mesh {
    let http = "{port: 9080, name: http}";
    let objects = [
        deployment("productpage", "v1", "10.0.0.1"),
        deployment("details", "v1", "10.0.0.2"),
        deployment("reviews", "v1", "10.0.0.3"),
        deployment("reviews", "v2", "10.0.0.4"),
        deployment("reviews", "v3", "10.0.0.5"),
        deployment("ratings", "v1", "10.0.0.6"),
        deployment("mongodb", "v1", "10.0.0.7"),
        service("productpage", "10.96.0.1", http),
        service("details", "10.96.0.2", http),
        service("reviews", "10.96.0.3", http),
        service("ratings", "10.96.0.4", http),
        service("mongodb", "10.96.0.5", "{port: 27017, name: mongo}"),
    ];
    mesh(&objects.concat())
}

/// What Bookinfo's load makes.
pub(crate) fn bookinfo_flows() -> Vec<Flow> {
    vec![
        flow("default/Deployment/productpage-v1", "10.96.0.2", 9080, &["details"]),
        flow("default/Deployment/productpage-v1", "10.96.0.3", 9080, &["reviews"]),
        flow("default/Deployment/reviews-v2", "10.96.0.4", 9080, &["ratings"]),
        flow("default/Deployment/reviews-v3", "10.96.0.4", 9080, &["ratings.default.svc.cluster.local"]),
        flow("default/Deployment/ratings-v1", "10.96.0.5", 27017, &[]),
    ]
}
