//! An agent reports to an aggregator.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sidescope::election::Leader;
use sidescope::model::time::Time;
use sidescope::wire::Coverage;
use sidescope_tests::{Cmd, Host, Proc, wait_for};

use crate::aggregator::{Aggregator, now};
use crate::gone::{delete, edges, tells_cookies};
use crate::scene::{Agent, SOON, Scene};

const CLIENT: &str = "c-1";
const SERVER: &str = "s-1";

/// Pods with a process each, as their sandboxes have one.
fn scene() -> Result<Scene> {
    let scene = Scene::of("podc-1", "pods-1")?;
    sandbox(&scene.client)?;
    Ok(scene)
}

fn sandbox(pod: &Host) -> Result<Proc> {
    pod.spawn(&Cmd::new("sleep").arg("3600"))
}

/// An agent that watches, and reports; the pods' connections that are older are listed.
fn agent(scene: &Scene, to: &Aggregator, more: &[&str]) -> Result<Agent> {
    let options = to.options();
    let options: Vec<&str> = options.iter().map(String::as_str).chain(more.iter().copied()).collect();
    let agent = scene.agent(&options)?;
    let layout = scene.bpffs.layout()?;
    wait_for("the end of the first list of sockets", SOON, || {
        agent.process.must_run()?;
        Ok(layout.join("listed").exists().then_some(()))
    })?;
    Ok(agent)
}

/// Lets some time pass in which edges are told.
fn a_while(scene: &Scene, aggregator: &Aggregator, agent: &Agent) -> Result<()> {
    let since = Instant::now();
    for number in 200.. {
        let edge = scene.connect(number)?;
        aggregator.wait_for_edges(agent, &[edge])?;
        if since.elapsed() > Duration::from_millis(500) {
            break;
        }
    }
    Ok(())
}

/// Everything that was watched without a loss, as stretches that do not touch.
fn watched(coverage: &[Coverage]) -> Vec<(Time, Time)> {
    let mut clean: Vec<(Time, Time)> =
        coverage.iter().filter(|time| time.losses.is_empty()).map(|time| (time.from, time.until)).collect();
    clean.sort();
    let mut stretches: Vec<(Time, Time)> = Vec::new();
    for (from, until) in clean {
        match stretches.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => stretches.push((from, until)),
        }
    }
    stretches
}

fn causes(coverage: &[Coverage]) -> Vec<&str> {
    coverage.iter().flat_map(|time| &time.losses).map(String::as_str).collect()
}

#[test]
fn edges_and_hosts_are_told_once_with_their_pod_and_their_times() -> Result<()> {
    let (scene, aggregator) = (scene()?, Aggregator::start()?);
    let agent = agent(&scene, &aggregator, &[])?;
    let before = now();
    let refused = scene.connect(1)?;
    scene.request("one.test")?;
    let after = now();
    aggregator.wait_for_edges(&agent, &[refused])?;
    aggregator.wait_for_host(&agent, scene.server_edge(), "one.test")?;
    scene.request("one.test")?;
    scene.connect(1)?;
    scene.request("two.test")?;
    aggregator.wait_for_host(&agent, scene.server_edge(), "two.test")?;
    agent.terminate()?;

    let told = aggregator.told(refused);
    assert!(told.len() <= 2, "told at once, and what was used since at the end: {told:?}");
    for told in told.iter().chain(&aggregator.told(scene.server_edge())) {
        assert_eq!(told.pod.as_deref(), Some(CLIENT));
        assert!(told.addresses.contains(&IpAddr::V4(scene.client.v4())), "{told:?}");
    }
    let first = &told[0].edge;
    assert!(
        before <= first.first.latest() && first.first.earliest() <= after,
        "{before:?} {after:?} {told:?}"
    );
    assert!(first.first.latest().since(first.first.earliest()) < 1_000, "{told:?}");
    assert_eq!(told.iter().map(|told| told.edge.connects).sum::<u64>(), told.len() as u64, "{told:?}");
    let sequences: Vec<u64> = aggregator.sequences().into_iter().map(|(_, sequence)| sequence).collect();
    assert_eq!(sequences, (1..=sequences.len() as u64).collect::<Vec<_>>());
    scene.bed.end()
}

#[test]
fn a_new_edge_is_told_at_once() -> Result<()> {
    let (scene, aggregator) = (scene()?, Aggregator::start()?);
    let agent = agent(&scene, &aggregator, &[])?;
    let first = scene.connect(1)?;
    aggregator.wait_for_edges(&agent, &[first])?;
    // Any of them may come just before a tick, and each may meet a machine that is busy.
    let mut fastest = Duration::MAX;
    for number in 2..12 {
        let to = scene.connect(number)?;
        let since = Instant::now();
        aggregator.wait_for_edges(&agent, &[to])?;
        fastest = fastest.min(since.elapsed());
    }
    assert!(fastest < Duration::from_millis(200), "{fastest:?}");
    scene.bed.end()
}

#[test]
fn what_happens_while_the_aggregator_is_away_is_told_when_it_comes() -> Result<()> {
    let (scene, mut aggregator) = (scene()?, Aggregator::away()?);
    let agent = agent(&scene, &aggregator, &[])?;
    let mut edges: Vec<SocketAddr> = (1..=20).map(|number| scene.connect(number)).collect::<Result<_>>()?;
    scene.request("one.test")?;
    agent.process.wait_for_log("no stream to the aggregator", SOON)?;
    aggregator.come()?;
    aggregator.wait_for_edges(&agent, &edges)?;
    aggregator.wait_for_host(&agent, scene.server_edge(), "one.test")?;
    aggregator.go();
    edges.push(scene.connect(21)?);
    scene.request("two.test")?;
    aggregator.come()?;
    aggregator.wait_for_edges(&agent, &edges)?;
    aggregator.wait_for_host(&agent, scene.server_edge(), "two.test")?;
    scene.bed.end()
}

#[test]
fn what_was_not_acknowledged_is_sent_again_in_its_order() -> Result<()> {
    let (scene, mut aggregator) = (scene()?, Aggregator::start()?);
    let agent = agent(&scene, &aggregator, &[])?;
    let first = scene.connect(1)?;
    aggregator.wait_for_edges(&agent, &[first])?;
    aggregator.acknowledge(false);
    let second = scene.connect(2)?;
    aggregator.wait_for_edges(&agent, &[second])?;
    let before = aggregator.sequences();
    let third = scene.connect(3)?;
    aggregator.wait_for_edges(&agent, &[third])?;
    aggregator.go();
    aggregator.acknowledge(true);
    let sent = aggregator.sequences();
    aggregator.come()?;
    let fourth = scene.connect(4)?;
    aggregator.wait_for_edges(&agent, &[fourth])?;
    let again = &aggregator.sequences()[sent.len()..];
    // The last one that was acknowledged is known here only as far as it was not the first.
    let unacknowledged = &sent[before.len() - 1..];
    assert!(again.starts_with(unacknowledged), "{sent:?} {again:?}");
    assert!(again.windows(2).all(|two| two[1].1 == two[0].1 + 1), "{again:?}");
    scene.bed.end()
}

#[test]
fn what_a_pod_that_is_gone_has_left_stays_until_it_is_acknowledged() -> Result<()> {
    if !tells_cookies()? {
        return Ok(());
    }
    let (scene, mut aggregator) = (scene()?, Aggregator::start()?);
    let agent = agent(&scene, &aggregator, &[])?;
    aggregator.acknowledge(false);
    let pod = scene.bed.add_pod("podg-1")?;
    pod.unroute("203.0.113.0/24")?;
    let process = sandbox(&pod)?;
    let edge = scene.connect_from(&pod, 1)?;
    aggregator.wait_for_edges(&agent, &[edge])?;
    process.kill();
    delete(&pod)?;
    // The scan that a new pod brings misses the one that is gone.
    let next = scene.bed.add_pod("podn-1")?;
    next.unroute("203.0.113.0/24")?;
    sandbox(&next)?;
    let other = scene.connect_from(&next, 2)?;
    aggregator.wait_for_edges(&agent, &[other])?;
    let is_there =
        || Ok::<_, anyhow::Error>(edges(&scene)?.iter().any(|key| key.addr[12..] == [203, 0, 113, 1]));
    assert!(is_there()?, "{}", agent.process.log()?);
    aggregator.go();
    aggregator.acknowledge(true);
    aggregator.come()?;
    let gone = wait_for("the end of what is kept of the pod", SOON, || {
        agent.process.must_run()?;
        Ok((!is_there()?).then_some(()))
    });
    gone.with_context(|| agent.process.log().unwrap_or_default())?;
    scene.bed.end()
}

#[test]
fn an_agent_that_is_killed_loses_no_edge_and_says_that_hosts_may_be_missing() -> Result<()> {
    let (scene, mut aggregator) = (scene()?, Aggregator::start()?);
    let first = agent(&scene, &aggregator, &[])?;
    let told = scene.connect(1)?;
    aggregator.wait_for_edges(&first, &[told])?;
    aggregator.wait(&first, "coverage", |here| (!here.coverage(CLIENT).is_empty()).then_some(()))?;
    aggregator.go();
    let untold = scene.connect(2)?;
    scene.request("one.test")?;
    first.process.kill();
    let killed = now();
    let between = scene.connect(3)?;
    aggregator.come()?;
    let second = agent(&scene, &aggregator, &[])?;
    aggregator.wait_for_edges(&second, &[told, untold, between, scene.server_edge()])?;
    for pod in [CLIENT, SERVER] {
        aggregator.wait(&second, "the loss", |here| {
            causes(&here.coverage(pod)).contains(&"agentKilled").then_some(())
        })?;
    }
    let epochs: std::collections::BTreeSet<_> =
        aggregator.sequences().into_iter().map(|(epoch, _)| epoch).collect();
    assert_eq!(epochs.len(), 2);
    let since = now();
    a_while(&scene, &aggregator, &second)?;
    second.terminate()?;
    // The time between what the first one told last and the start of the second counts as lossy, and 5 s before at most.
    let coverage = aggregator.coverage(CLIENT);
    let lossy = coverage.iter().find(|time| !time.losses.is_empty()).context("a loss")?;
    let stretches = watched(&coverage);
    let [.., (from, _)] = stretches[..] else { panic!("{coverage:?}") };
    assert!(lossy.until <= from.plus(50) && from <= since, "{coverage:?}");
    assert!(coverage[0].losses.is_empty() && coverage[0].until.since(lossy.from) <= 5_100, "{coverage:?}");
    assert!(
        coverage.iter().all(|time| time.until <= killed || time.from.plus(50) >= lossy.from),
        "{coverage:?}"
    );
    scene.bed.end()
}

#[test]
fn an_agent_ends_in_time_while_the_aggregator_is_away_and_the_next_one_tells_all() -> Result<()> {
    let (scene, mut aggregator) = (scene()?, Aggregator::away()?);
    let first = agent(&scene, &aggregator, &[])?;
    let edge = scene.connect(1)?;
    scene.request("one.test")?;
    first.process.wait_for_log("no stream to the aggregator", SOON)?;
    first.terminate()?;
    assert!(first.process.log()?.contains("the next agent tells what is left"), "{}", first.process.log()?);
    aggregator.come()?;
    let second = agent(&scene, &aggregator, &[])?;
    aggregator.wait_for_edges(&second, &[edge, scene.server_edge()])?;
    // What the first had read is gone with it, and that is told.
    aggregator.wait(&second, "the loss", |here| {
        causes(&here.coverage(CLIENT)).contains(&"agentKilled").then_some(())
    })?;
    scene.bed.end()
}

#[test]
fn a_restart_leaves_no_gap_in_what_was_watched_and_a_purge_does() -> Result<()> {
    let (scene, aggregator) = (scene()?, Aggregator::start()?);
    let begin = now();
    let first = agent(&scene, &aggregator, &[])?;
    // Also of one that never connects, and of one that came later.
    let later = scene.bed.add_pod("podl-1")?;
    sandbox(&later)?;
    aggregator.wait(&first, "coverage", |here| (!here.coverage("l-1").is_empty()).then_some(()))?;
    first.terminate()?;
    let between = now();
    let second = agent(&scene, &aggregator, &[])?;
    a_while(&scene, &aggregator, &second)?;
    second.terminate()?;
    let end = now();
    for pod in [CLIENT, SERVER, "l-1"] {
        let coverage = aggregator.coverage(pod);
        let stretches = watched(&coverage);
        let [(from, until)] = stretches[..] else { panic!("{pod}: {stretches:?} {coverage:?}") };
        assert!(begin <= from && from < between && between < until && until <= end, "{pod}: {coverage:?}");
        assert!(causes(&coverage).is_empty(), "{coverage:?}");
    }

    assert_eq!(scene.purge()?.0, Some(0));
    let unwatched = scene.connect(9)?;
    let purged = now();
    let third = agent(&scene, &aggregator, &[])?;
    a_while(&scene, &aggregator, &third)?;
    third.terminate()?;
    assert!(aggregator.told(unwatched).is_empty());
    for pod in [CLIENT, SERVER, "l-1"] {
        let stretches = watched(&aggregator.coverage(pod));
        let [(_, until), (from, _)] = stretches[..] else { panic!("{pod}: {stretches:?}") };
        assert!(until <= end && purged <= from, "{pod}: {stretches:?}");
    }
    scene.bed.end()
}

#[test]
fn a_loss_is_in_the_time_of_the_pod_that_it_has_hit_and_of_no_other() -> Result<()> {
    let (scene, aggregator) = (scene()?, Aggregator::start()?);
    let agent = agent(&scene, &aggregator, &["--edges", "2"])?;
    // Known before anything is lost.
    let known = scene.connect(1)?;
    aggregator.wait_for_edges(&agent, &[known])?;
    aggregator.wait(&agent, "coverage", |here| (!here.coverage(SERVER).is_empty()).then_some(()))?;
    let before = now();
    for number in 2..=5 {
        scene.connect(number)?;
    }
    aggregator.wait(&agent, "the loss", |here| {
        causes(&here.coverage(CLIENT)).contains(&"edgesFull").then_some(())
    })?;
    let after = now();
    agent.terminate()?;
    let coverage = aggregator.coverage(CLIENT);
    let lossy: Vec<&Coverage> = coverage.iter().filter(|time| !time.losses.is_empty()).collect();
    for stretch in watched(&coverage) {
        assert!(stretch.1 <= before.plus(1_000) || stretch.0 >= before, "{coverage:?}");
    }
    assert!(lossy.iter().any(|time| time.from <= after && time.until >= before), "{coverage:?}");
    assert!(causes(&aggregator.coverage(SERVER)).is_empty(), "{:?}", aggregator.coverage(SERVER));
    scene.bed.end()
}

#[test]
fn a_replica_that_does_not_lead_sends_the_agent_to_the_one_that_does() -> Result<()> {
    let (scene, other) = (scene()?, Aggregator::start()?);
    let mut leading = other.replica()?;
    leading.come()?;
    other.lead(Leader::Other(leading.address));
    let agent = agent(&scene, &other, &[])?;
    let edge = scene.connect(1)?;
    leading.wait_for_edges(&agent, &[edge])?;
    assert!(other.sequences().is_empty());
    // They change places.
    other.lead(Leader::Me);
    leading.lead(Leader::Other(other.address));
    let next = scene.connect(2)?;
    other.wait_for_edges(&agent, &[next])?;
    scene.bed.end()
}
