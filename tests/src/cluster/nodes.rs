//! Nodes and pods without a kubelet: the test says of them what a kubelet would.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod as PodObject};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::json;

use super::Cluster;
use crate::wait::wait_for;

const SOON: Duration = Duration::from_secs(30);

/// A pod that no controller makes.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its namespace, which must be there.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node that it is bound to from the start, past the scheduler.
    pub node: String,
    /// What Services select it by.
    pub labels: BTreeMap<String, String>,
    /// The address that it runs with; one of each family at most.
    pub addresses: Vec<IpAddr>,
}

impl Cluster {
    /// A node that is ready and has room for every pod.
    pub fn make_node(&self, name: &str) -> Result<()> {
        let labels = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"});
        let nodes: Api<Node> = Api::all(self.client());
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
        let failed = || format!("cannot make the node {name}");
        self.apply(&node.to_string()).with_context(failed)?;
        let resources =
            json!({"cpu": "100000", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": "100000"});
        let status = json!({
            "capacity": resources,
            "allocatable": resources,
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}],
            "addresses": [{"type": "InternalIP", "address": "172.18.0.2"}, {"type": "Hostname", "address": name}],
        });
        let patch = Patch::Merge(json!({"status": status}));
        self.run(nodes.patch_status(name, &PatchParams::default(), &patch)).with_context(failed)?;
        Ok(())
    }

    /// A pod that runs.
    pub fn make_pod(&self, pod: &Pod) -> Result<()> {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": pod.name, "namespace": pod.namespace, "labels": pod.labels},
            "spec": {"nodeName": pod.node, "containers": [{"name": "app", "image": "none"}]},
        });
        self.apply(&object.to_string())?;
        self.run_pod(&pod.namespace, &pod.name, &pod.addresses)
    }

    /// Says of a pod that it runs, is ready and has these addresses.
    pub fn run_pod(&self, namespace: &str, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let conditions =
            ["Initialized", "ContainersReady", "Ready"].map(|kind| json!({"type": kind, "status": "True"}));
        let mut status = json!({"phase": "Running", "hostIP": "172.18.0.2", "conditions": conditions});
        if let Some(first) = addresses.first() {
            status["podIP"] = json!(first);
            let all: Vec<_> = addresses.iter().map(|address| json!({"ip": address})).collect();
            status["podIPs"] = json!(all);
        }
        self.patch_pod(namespace, name, &status)
    }

    /// Says of a pod that it has come to its end, as that of a Job does.
    pub fn finish_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let conditions = [json!({"type": "Ready", "status": "False"})];
        self.patch_pod(namespace, name, &json!({"phase": "Succeeded", "conditions": conditions}))
    }

    /// Removes a pod at once, also one that a controller has deleted and whose end no kubelet reports.
    pub fn delete_pod(&self, namespace: &str, name: &str) -> Result<()> {
        let pods: Api<PodObject> = Api::namespaced(self.client(), namespace);
        let deleted = self.run(pods.delete(name, &DeleteParams::default().grace_period(0)));
        deleted.with_context(|| format!("cannot delete the pod {namespace}/{name}"))?;
        Ok(())
    }

    /// Waits until exactly so many pods with these labels (`app=a,version=v1`) are bound to nodes.
    pub fn wait_for_bound_pods(&self, namespace: &str, labels: &str, count: usize) -> Result<Vec<PodObject>> {
        let pods: Api<PodObject> = Api::namespaced(self.client(), namespace);
        wait_for(&format!("{count} pods {labels} in {namespace} to be bound"), SOON, || {
            let found = self.run(pods.list(&ListParams::default().labels(labels)))?.items;
            let is_bound = |pod: &PodObject| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            Ok((found.len() == count && found.iter().all(is_bound)).then_some(found))
        })
    }

    fn patch_pod(&self, namespace: &str, name: &str, status: &serde_json::Value) -> Result<()> {
        let pods: Api<PodObject> = Api::namespaced(self.client(), namespace);
        let patch = Patch::Strategic(json!({"status": status}));
        let patched = self.run(pods.patch_status(name, &PatchParams::default(), &patch));
        patched.with_context(|| format!("cannot set the status of the pod {namespace}/{name}"))?;
        Ok(())
    }
}
