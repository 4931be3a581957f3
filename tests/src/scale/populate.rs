//! Fills the cluster, and gets the agents' tokens.

use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result};
use kube::Client;
use serde_json::{Value, json};
use sidescope::trust::tokens::AUDIENCE;

use super::api::{create, each, patch};
use super::objects::{self, AGENT, AGGREGATOR, Endpoints, NAMESPACE};
use super::world::{NAMESPACES, World};

/// Requests at a time.
const AT_ONCE: usize = 48;

/// What the API server gave the objects.
pub(super) struct Made {
    /// Of the pods that stay, in their order.
    pub(super) uids: Vec<Arc<str>>,
    /// Of the agents, by node.
    pub(super) tokens: Vec<String>,
    /// Of the aggregator.
    pub(super) aggregator: String,
}

/// Makes everything.
pub(super) async fn populate(client: &Client, world: World) -> Result<Made> {
    let namespaces: Vec<String> =
        (0..NAMESPACES).map(World::namespace_of).chain([NAMESPACE.to_owned()]).collect();
    for namespace in namespaces {
        create(client, "/api/v1/namespaces", &objects::namespace(&namespace)).await?;
    }
    let aggregator = accounts(client).await?;
    let started = now();
    let tokens = each(0..world.nodes, AT_ONCE, |node| {
        let (client, started) = (client.clone(), started.clone());
        async move { agent(&client, world, node, &started).await }
    })
    .await?;
    each(0..world.workloads, AT_ONCE, |workload| {
        let client = client.clone();
        async move { controllers(&client, workload, world.pods / world.workloads).await }
    })
    .await?;
    each(0..world.services, AT_ONCE, |service| {
        let client = client.clone();
        async move {
            let path = in_namespace("api/v1", world.selected_by(service), "services");
            create(&client, &path, &objects::service(&world, service)).await
        }
    })
    .await?;
    let uids = each(world.calm_pods(), AT_ONCE, |pod| {
        let (client, started) = (client.clone(), started.clone());
        async move {
            let all = in_namespace("api/v1", pod.workload, "pods");
            let uid = create(&client, &all, &objects::pod(pod.workload, pod.nth, pod.node)).await?;
            let path = format!("{all}/{}/status", objects::pod_name(pod.workload, pod.nth));
            let status = objects::running(pod.address, world.node_address(pod.node), &started);
            patch(&client, &path, &status).await?;
            Ok(Arc::<str>::from(uid))
        }
    })
    .await?;
    let mut endpoints = vec![Endpoints::new(); world.workloads];
    for (pod, uid) in world.calm_pods().zip(&uids) {
        let name = objects::pod_name(pod.workload, pod.nth);
        endpoints[pod.workload].insert(pod.address, (name, uid.to_string()));
    }
    let endpoints = Arc::new(endpoints);
    each(0..world.services, AT_ONCE, |service| {
        let (client, endpoints) = (client.clone(), Arc::clone(&endpoints));
        async move {
            let workload = world.selected_by(service);
            let path = in_namespace("apis/discovery.k8s.io/v1", workload, "endpointslices");
            create(&client, &path, &objects::slice(&world, service, &endpoints[workload])).await
        }
    })
    .await?;
    Ok(Made { uids, tokens, aggregator })
}

/// Where the objects of a workload's namespace are.
pub(super) fn in_namespace(group: &str, workload: usize, resource: &str) -> String {
    format!("/{group}/namespaces/{}/{resource}", World::namespace_of(workload))
}

/// The present as objects have it.
pub(super) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

/// The accounts of agents and aggregator; gives a token of the latter, which may do everything.
async fn accounts(client: &Client) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts");
    for name in [AGENT, AGGREGATOR] {
        create(
            client,
            &path,
            &json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}),
        )
        .await?;
    }
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": AGGREGATOR},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": AGGREGATOR, "namespace": NAMESPACE}],
    });
    create(client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await?;
    token(client, AGGREGATOR, &json!({})).await
}

/// The node, its agent's pod, and the token of that.
async fn agent(client: &Client, world: World, node: usize, started: &str) -> Result<String> {
    create(client, "/api/v1/nodes", &objects::node(node)).await?;
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let (name, address) = (objects::agent_name(node), world.node_address(node));
    let uid = create(client, &pods, &objects::agent(node)).await?;
    patch(client, &format!("{pods}/{name}/status"), &objects::running(address, address, started)).await?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    token(client, AGENT, &json!({"audiences": [AUDIENCE], "boundObjectRef": pod})).await
}

async fn token(client: &Client, account: &str, spec: &Value) -> Result<String> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
    let request = hyper::Request::post(path)
        .header("content-type", "application/json")
        .body(request.to_string().into_bytes())?;
    let made: Value = client.request(request).await.with_context(|| format!("no token for {account}"))?;
    Ok(made["status"]["token"].as_str().context("no token in the answer")?.to_owned())
}

async fn controllers(client: &Client, workload: usize, replicas: usize) -> Result<()> {
    let path = |resource: &str| in_namespace("apis/apps/v1", workload, resource);
    create(client, &path("deployments"), &objects::deployment(workload, replicas)).await?;
    create(client, &path("replicasets"), &objects::replica_set(workload, replicas)).await?;
    Ok(())
}
