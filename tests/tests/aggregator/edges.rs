//! What becomes of what agents tell.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidescope::model::graph::UnresolvedReason;
use sidescope_tests::aggregator::{SOON, Scene, batch, coverage, edge, now, source};
use sidescope_tests::cluster::Parts;
use sidescope_tests::wait_for;

#[test]
fn the_first_edge_makes_the_record_and_it_tells_of_the_right_workload_and_service() -> Result<()> {
    let scene = Scene::start(Parts::Kubernetes)?;
    scene.make_node("node-1")?;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": "none"}]}},
        },
    });
    scene.cluster.apply(&deployment.to_string())?;
    let (shop, stock) = (scene.make_service("shop")?, scene.make_service("stock")?);
    let pods = scene.cluster.wait_for_bound_pods("default", "app=web", 2)?;
    let mut uids = Vec::new();
    for (n, pod) in pods.iter().enumerate() {
        let name = pod.metadata.name.as_deref().context("a pod has a name")?;
        scene.cluster.run_pod("default", name, &[format!("10.0.0.{}", n + 1).parse()?])?;
        uids.push(scene.uid("default", name)?);
    }
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;

    let since = now();
    agent.tell_and_wait(batch(&uids[0], vec![edge(&shop, now(), &["shop"])?]))?;
    // It is there when it is acknowledged.
    let web = "default".parse().map(|namespace| sidescope::model::names::WorkloadRef {
        namespace,
        kind: "Deployment".to_owned(),
        name: "web".to_owned(),
    })?;
    let record = scene.record_of(&web)?.context("there is a record")?;
    let [dependency] = &record.dependencies[..] else { panic!("{record:?}") };
    assert_eq!(dependency.host.as_str(), "shop.default.svc.cluster.local");
    let by = dependency.first_by.as_ref().context("it says who was seen")?;
    assert_eq!(by.node.as_str(), "node-1");
    ensure!(by.pod.as_str().starts_with("web-"), "{by:?}");

    // Of another pod, by another name; and one that was watched.
    let mut other = source(&uids[1], vec![edge(&stock, now(), &["stock.default"])?]);
    other.coverage = vec![coverage(since, now(), &["edgesFull"])];
    agent.tell_and_wait(vec![other])?;
    let record = scene.record_of(&web)?.context("there is a record")?;
    let hosts: Vec<_> = record.dependencies.iter().map(|dependency| dependency.host.as_str()).collect();
    assert_eq!(hosts, ["shop.default.svc.cluster.local", "stock.default.svc.cluster.local"]);
    assert_eq!(record.losses[0].cause, "edgesFull");
    agent.end();
    let (decided, _) = aggregator.counts()?;
    assert_eq!(
        (&decided["edges"], &decided["batches"], &decided["reasons"]),
        (&json!(2), &json!(2), &json!({}))
    );
    scene.cluster.end()
}

#[test]
fn an_address_that_goes_from_one_pod_to_another_is_that_of_whoever_had_it_then() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    scene.make_pod("first", "node-1", "10.0.0.9")?;
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    let direct = |scene: &Scene| -> Result<Vec<String>> {
        let record = scene.record("web")?.unwrap_or_default();
        Ok(record.direct.into_iter().map(|direct| direct.workload.name).collect())
    };

    let to_first = now();
    scene.cluster.delete_pod("default", "first")?;
    // In a cluster an address rests for a while, too.
    let rests = now() + 2_500;
    wait_for("the address to rest", SOON, || Ok((now() > rests).then_some(())))?;
    scene.make_pod("second", "node-1", "10.0.0.9")?;
    wait_for("the second to be known", SOON, || Ok((now() > rests + 1_500).then_some(())))?;
    // The last is told first.
    agent.tell_and_wait(batch(&web, vec![edge("10.0.0.9", now(), &[])?]))?;
    assert_eq!(direct(&scene)?, ["second"]);
    agent.tell_and_wait(batch(&web, vec![edge("10.0.0.9", to_first, &[])?]))?;
    assert_eq!(direct(&scene)?, ["first", "second"]);
    agent.end();
    assert_eq!(aggregator.counts()?.0["reasons"], json!({}));
    scene.cluster.end()
}

#[test]
fn what_cannot_be_told_or_may_not_be_is_counted_and_listed_with_its_reason() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    scene.make_node("node-2")?;
    let (web, foreign) =
        (scene.make_pod("web", "node-1", "10.0.0.1")?, scene.make_pod("foreign", "node-2", "10.0.0.2")?);
    let shop = scene.make_service("shop")?;
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    const NEVER: &str = "00000000-0000-0000-0000-000000000000";
    let sources = vec![
        source(&web, vec![edge("203.0.113.7", now(), &["unheard.of"])?, edge(&shop, now(), &[])?]),
        source(&foreign, vec![edge(&shop, now(), &[])?]),
        source(NEVER, vec![edge(&shop, now(), &[])?]),
    ];
    let sequence = agent.tell(sources);
    // What can be told does not wait for what cannot.
    scene.wait_for_calls("web", &["shop"])?;
    assert_eq!(agent.acknowledged(), 0);
    agent.wait_for_ack(sequence)?;
    assert_eq!(agent.refusals(), [("foreignNode".to_owned(), 1), ("podNotKnown".to_owned(), 1)].into());
    assert_eq!(scene.record("foreign")?, None);
    let record = scene.record("web")?.context("there is a record")?;
    let unresolved: Vec<_> =
        record.unresolved.iter().map(|one| (one.address.to_string(), one.reason)).collect();
    assert_eq!(unresolved, [("203.0.113.7".to_owned(), UnresolvedReason::UnknownAddress)]);
    assert_eq!(record.unknown_hosts[0].host.as_str(), "unheard.of");
    agent.end();
    // It is named once a second.
    wait_for("the name of what was given up in the log", SOON, || {
        let said = aggregator.proc.log()?;
        Ok((said.contains(NEVER) && said.contains("podNotKnown")).then_some(()))
    })?;
    assert_eq!(
        aggregator.counts()?.0["reasons"],
        json!({"foreignNode": 1, "podNotKnown": 1, "unknownAddress": 1})
    );
    scene.cluster.end()
}

#[test]
fn a_batch_that_comes_again_is_acknowledged_and_changes_nothing() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let (shop, stock) = (scene.make_service("shop")?, scene.make_service("stock")?);
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    let sources = batch(&web, vec![edge(&shop, now(), &[])?, edge("203.0.113.7", now(), &[])?]);
    agent.tell_and_wait(sources.clone())?;
    let before = scene.record("web")?;
    // In the same stream nothing may come twice; so it begins anew.
    let same = agent.again(sources)?;
    same.tell_and_wait(batch(&web, vec![edge(&stock, now(), &[])?]))?;
    let mut after = scene.record("web")?.context("there is a record")?;
    assert_eq!(after.dependencies.len(), 2);
    after.dependencies.retain(|dependency| !dependency.host.as_str().starts_with("stock"));
    let before = before.context("there was a record")?;
    assert_eq!((after.dependencies, after.unresolved), (before.dependencies, before.unresolved));
    same.end();
    let (decided, _) = aggregator.counts()?;
    assert_eq!((&decided["again"], &decided["batches"]), (&json!(1), &json!(2)));
    scene.cluster.end()
}

#[test]
fn a_workload_that_calls_too_much_is_broad() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let hosts: Vec<String> = (0..210).map(|n| format!("h{n}")).collect();
    for host in &hosts {
        scene.make_service(host)?;
    }
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    let edges: Result<Vec<_>> = hosts.iter().map(|host| edge("203.0.113.7", now(), &[host])).collect();
    agent.tell_and_wait(batch(&web, edges?))?;
    let record = scene.record("web")?.context("there is a record")?;
    assert_eq!((record.dependencies.len(), record.broad.is_some()), (200, true));
    agent.end();
    aggregator.end()?;
    scene.cluster.end()
}
