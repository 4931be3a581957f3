//! Whatever dies meanwhile, what was acknowledged is in the records, and what was not comes again.

use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use sidescope_tests::aggregator::{Agent, SOON, Scene, batch, edge, now};
use sidescope_tests::cluster::Parts;

/// A pod that calls one service after the other, and what of that was acknowledged.
struct Caller<'s> {
    scene: &'s Scene,
    agent: Agent,
    uid: String,
    services: Vec<(String, String)>,
    told: usize,
}

impl<'s> Caller<'s> {
    fn new(scene: &'s Scene, agent: Agent, uid: String, services: usize) -> Result<Self> {
        let services = (0..services).map(|n| {
            let name = format!("s{n:02}");
            Ok((name.clone(), scene.make_service(&name)?))
        });
        Ok(Self { scene, agent, uid, services: services.collect::<Result<_>>()?, told: 0 })
    }

    /// Each in a batch of its own.
    fn tell(&mut self, services: usize) -> Result<()> {
        for (_, address) in &self.services[self.told..self.told + services] {
            self.agent.tell(batch(&self.uid, vec![edge(address, now(), &[])?]));
        }
        self.told += services;
        Ok(())
    }

    /// The first so many of all are acknowledged; and all that are acknowledged are in the record.
    fn wait_for_acks(&self, at_least: usize) -> Result<usize> {
        self.agent.wait_for_ack(u64::try_from(at_least)?)?;
        let acknowledged = usize::try_from(self.agent.acknowledged())?;
        let calls = self.scene.calls("web")?;
        for (name, _) in &self.services[..acknowledged] {
            ensure!(calls.contains(name), "{name} was acknowledged, and is not among {calls:?}");
        }
        Ok(acknowledged)
    }

    fn all_told(&self) -> Vec<&str> {
        self.services[..self.told].iter().map(|(name, _)| name.as_str()).collect()
    }
}

#[test]
fn a_leader_that_is_killed_takes_nothing_with_it() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let first = scene.aggregator("one")?;
    scene.wait_for_leader(&first)?;
    let second = scene.aggregator("two")?;
    // It finds the leader by the other one, as by a Service that stands for both.
    let mut caller = Caller::new(&scene, scene.agent("node-1", &second)?, web, 24)?;
    caller.tell(4)?;
    caller.wait_for_acks(4)?;
    // Killed when it has acknowledged some of it, and has more.
    caller.tell(8)?;
    caller.wait_for_acks(5)?;
    first.proc.signal(Signal::SIGKILL)?;
    first.proc.wait(SOON)?;
    scene.wait_for_leader(&second)?;
    caller.tell(4)?;
    caller.wait_for_acks(16)?;
    scene.wait_for_calls("web", &caller.all_told())?;

    // And back: it starts again, follows, and leads when the other one is ended as Kubernetes does it.
    let first = scene.aggregator("one")?;
    caller.tell(4)?;
    let said = second.end()?;
    ensure!(said.contains("aggregator ended"), "{said}");
    scene.wait_for_leader(&first)?;
    let Caller { agent, uid, services, told, .. } = caller;
    agent.end();
    // In its next life an agent tells all that it knows.
    let mut caller = Caller { scene: &scene, agent: scene.agent("node-1", &first)?, uid, services, told: 0 };
    caller.tell(told + 4)?;
    caller.wait_for_acks(told + 4)?;
    scene.wait_for_calls("web", &caller.all_told())?;
    caller.agent.end();
    first.end()?;
    scene.cluster.end()
}

#[test]
fn an_api_server_that_starts_again_is_waited_for() -> Result<()> {
    let scene = Scene::start(Parts::Api)?;
    scene.make_node("node-1")?;
    let web = scene.make_pod("web", "node-1", "10.0.0.1")?;
    let aggregator = scene.aggregator("one")?;
    let mut caller = Caller::new(&scene, scene.agent("node-1", &aggregator)?, web, 12)?;
    caller.tell(4)?;
    caller.wait_for_acks(4)?;
    scene.cluster.kill_apiserver();
    caller.tell(4)?;
    // For longer than its lease holds without it.
    aggregator.proc.wait_for_log("another replica may lead", Duration::from_secs(30))?;
    assert_eq!(caller.agent.acknowledged(), 4, "nothing can be durable");
    scene.cluster.start_apiserver()?;
    caller.tell(4)?;
    caller.wait_for_acks(12)?;
    scene.wait_for_calls("web", &caller.all_told())?;
    caller.agent.end();
    assert_eq!(aggregator.counts()?.0["reasons"], serde_json::json!({}), "nothing was given up meanwhile");
    scene.cluster.end()
}
