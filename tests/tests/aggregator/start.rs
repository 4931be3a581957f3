//! How it begins, and how little it does where nothing happens.

use anyhow::{Context, Result, ensure};
use kube::api::{Api, ListParams};
use sidescope::crd::WorkloadDependencies;
use sidescope_tests::aggregator::{AUDIENCE, SOON, Scene, batch, coverage, edge, now, source};
use sidescope_tests::cluster::Parts;
use sidescope_tests::wait_for;

#[test]
fn without_the_definition_it_says_what_to_do_and_goes_on_when_that_is_done() -> Result<()> {
    let scene = Scene::without_definition(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let shop = scene.make_service("shop")?;
    let aggregator = scene.start_aggregator("one", &[])?;
    aggregator.proc.wait_for_log("kubectl apply -f deploy/crds", SOON)?;
    ensure!(!aggregator.proc.log()?.contains(" ready "), "it is not ready");
    // An agent may be there before.
    let agent = scene.agent("node-1", &aggregator)?;
    let sequence = agent.tell(batch(&web, vec![edge(&shop, now(), &[])?]));
    scene.define()?;
    aggregator.proc.wait_for_log(" ready ", SOON)?;
    agent.wait_for_ack(sequence)?;
    assert_eq!(scene.calls("web")?, ["shop"]);
    agent.end();
    aggregator.end()?;
    scene.cluster.end()
}

#[test]
fn a_restart_forgets_nothing() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let (shop, stock) = (scene.make_service("shop")?, scene.make_service("stock")?);
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    agent.tell_and_wait(batch(&web, vec![edge(&shop, now(), &[])?]))?;
    agent.end();
    let ended = std::time::Instant::now();
    aggregator.end()?;
    ensure!(ended.elapsed() < std::time::Duration::from_secs(8), "{:?}", ended.elapsed());

    let aggregator = scene.aggregator("one")?;
    // The lease was let go, so nobody has to wait for its end.
    scene.wait_for_leader(&aggregator)?;
    ensure!(ended.elapsed() < std::time::Duration::from_secs(14), "{:?}", ended.elapsed());
    let agent = scene.agent("node-1", &aggregator)?;
    agent.tell_and_wait(batch(&web, vec![edge(&stock, now(), &[])?]))?;
    assert_eq!(scene.calls("web")?, ["shop", "stock"]);
    agent.end();
    aggregator.end()?;
    scene.cluster.end()
}

#[test]
fn only_tokens_of_agents_for_this_audience_are_good() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let shop = scene.make_service("shop")?;
    let aggregator = scene.aggregator("one")?;
    scene.wait_for_leader(&aggregator)?;
    let token = scene.token("agent-node-1", "somebody-else")?;
    let stranger = scene.agent_with(&token, "node-1", &aggregator)?;
    stranger.tell(batch(&web, vec![edge(&shop, now(), &[])?]));
    aggregator.proc.wait_for_log("the token is not for the audience", SOON)?;
    assert_eq!((stranger.acknowledged(), scene.record("web")?), (0, None));
    stranger.end();
    let good = scene.agent_with(&scene.token("agent-node-1", AUDIENCE)?, "node-1", &aggregator)?;
    good.tell_and_wait(batch(&web, vec![edge(&shop, now(), &[])?]))?;
    good.end();
    let (_, refused) = aggregator.counts()?;
    ensure!(refused["tokenAudience"].as_u64() >= Some(1), "{refused}");
    scene.cluster.end()
}

#[test]
fn where_nothing_new_happens_nothing_is_written() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let pods: Vec<(String, String)> = (1..=20)
        .map(|n| Ok((format!("p{n}"), scene.make_pod(&format!("p{n}"), "node-1", &format!("10.0.0.{n}"))?)))
        .collect::<Result<_>>()?;
    let shop = scene.make_service("shop")?;
    let aggregator = scene.aggregator("one")?;
    let agent = scene.agent("node-1", &aggregator)?;
    let tell = |from: i64| -> Result<()> {
        let mut sources = Vec::new();
        for (_, uid) in &pods {
            let mut part = source(uid, vec![edge(&shop, now(), &["shop"])?]);
            part.coverage = vec![coverage(from, now(), &[])];
            sources.push(part);
        }
        agent.tell_and_wait(sources)
    };
    let from = now();
    tell(from)?;
    // Records that are there when the first minute is over, with their coverage.
    let api: Api<WorkloadDependencies> = Api::all(scene.cluster.client());
    let versions = || -> Result<Vec<String>> {
        let list = scene.cluster.run(api.list(&ListParams::default()))?;
        let versions = list.items.into_iter().map(|item| item.metadata.resource_version.context("a version"));
        versions.collect()
    };
    let before = versions()?;
    assert_eq!(before.len(), pods.len());
    let until = now() + 75_000;
    wait_for("a minute of the same", SOON * 2, || {
        tell(from)?;
        Ok((now() > until).then_some(()))
    })?;
    let after = versions()?;
    let written = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    // Each has its minute of the hour, and one of them may be now.
    ensure!(written <= 3, "{written} of {} records were written", pods.len());
    agent.end();
    aggregator.end()?;
    scene.cluster.end()
}
