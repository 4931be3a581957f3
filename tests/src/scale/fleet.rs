//! All agents: a client each, with its own token, its own stream and its own clock.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sidescope::transport::client::{self, Outbox as _, Shared};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::agent::{Agent, Caller, Connect, Skewed, Tally, clock_ns};
use super::populate::Made;
use super::world::{PORT, World};

/// How far clocks are off, and how fast they drift.
const SKEW_NS: i64 = 500_000_000;
const DRIFT_PPM: i64 = 50;
/// How often an agent tells that its pods were watched.
const WATCHED: Duration = Duration::from_secs(60);
/// How often rounds of repeats are given out.
const TICK: Duration = Duration::from_millis(10);

/// Where the aggregator is.
pub(super) struct Target {
    pub(super) address: SocketAddr,
    /// Name in its certificate.
    pub(super) server_name: String,
    /// File with its authorities.
    pub(super) bundle: PathBuf,
}

/// The agents, which end with this value.
pub(super) struct Fleet {
    world: World,
    agents: Vec<Arc<Shared<Agent>>>,
    /// The pods that stay, in their order.
    callers: Vec<Arc<Caller>>,
    pub(super) tally: Arc<Tally>,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Fleet {
    /// Starts a client for each node. `folder` is for the tokens.
    pub(super) fn start(world: World, made: &Made, target: &Target, folder: &Path) -> Result<Self> {
        let tally = Arc::new(Tally::default());
        let callers: Vec<Arc<Caller>> = world
            .calm_pods()
            .zip(&made.uids)
            .enumerate()
            .map(|(nth, (pod, uid))| {
                Arc::new(Caller { netns: netns(nth), uid: Some(Arc::clone(uid)), address: pod.address })
            })
            .collect();
        let mut of_nodes: Vec<Vec<Arc<Caller>>> = vec![Vec::new(); world.nodes];
        let mut known: Vec<Vec<(Arc<Caller>, IpAddr, u16)>> = vec![Vec::new(); world.nodes];
        for (pod, caller) in world.calm_pods().zip(&callers) {
            of_nodes[pod.node].push(Arc::clone(caller));
            let called = world.called_by(pod.workload);
            known[pod.node]
                .extend(called.map(|service| (Arc::clone(caller), world.cluster_ip(service), PORT)));
        }
        let (stop, stopping) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut agents = Vec::new();
        for (node, (watched, known)) in of_nodes.into_iter().zip(known).enumerate() {
            let token = folder.join(World::node_name(node));
            fs::write(&token, &made.tokens[node])
                .with_context(|| format!("cannot write {}", token.display()))?;
            let clock = Skewed {
                ahead_ns: fastrand::i64(-SKEW_NS..=SKEW_NS),
                drift_ppm: fastrand::i64(-DRIFT_PPM..=DRIFT_PPM),
                since_ns: clock_ns(),
            };
            let mut agent = Agent::new(clock, watched, Arc::clone(&tally));
            agent.set_known(known);
            let shared = Shared::new(agent);
            let config = client::Config {
                address: target.address.to_string(),
                server_name: target.server_name.clone(),
                bundle: target.bundle.clone(),
                token,
                clock: clock_ns,
            };
            let (outbox, mut stopping) = (Arc::clone(&shared), stopping.clone());
            tasks.spawn(client::run(config, outbox, async move {
                // An error means that the fleet is gone, which is as good a reason to end.
                drop(stopping.wait_for(|stop| *stop).await);
            }));
            agents.push(shared);
        }
        let fleet = Self { world, agents, callers, tally, tasks, stop };
        Ok(fleet)
    }

    /// Has agents tell that their pods were watched, one after the other, for as long as the fleet is there.
    pub(super) fn tell_watched(&mut self) {
        let agents = self.agents.clone();
        let every = WATCHED / u32::try_from(agents.len()).unwrap_or(u32::MAX);
        let mut stopping = self.stop.subscribe();
        self.tasks.spawn(async move {
            let mut tick = interval(every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
            for agent in agents.iter().cycle() {
                tokio::select! {
                    _ = stopping.wait_for(|stop| *stop) => break,
                    _ = tick.tick() => agent.with(Agent::tell_watched),
                }
            }
        });
    }

    /// One of the pods of a calm workload, with its node.
    pub(super) fn caller(&self, workload: usize, any: usize) -> (usize, Arc<Caller>) {
        let pod = self.world.pod_of(workload, any);
        let nth = pod.workload + pod.nth * self.world.calm();
        (pod.node, Arc::clone(&self.callers[nth]))
    }

    /// The agent of a node has this to tell.
    pub(super) fn tell(&self, node: usize, connects: impl IntoIterator<Item = Connect>) {
        self.agents[node].with(|agent| agent.tell(connects));
    }

    /// Waits until each agent has a stream. `streams` is how many there have been in all then.
    pub(super) async fn connected(&self, streams: u64, limit: Duration) -> Result<Duration> {
        let since = Instant::now();
        loop {
            let now = self.tally.streams.load(Relaxed);
            if now >= streams {
                return Ok(since.elapsed());
            }
            if since.elapsed() > limit {
                bail!("only {now} of {streams} streams of agents were begun within {limit:?}");
            }
            sleep(TICK).await;
        }
    }

    /// Waits until everything is acknowledged, and says how many agents have something left after `limit`.
    pub(super) async fn settled(&self, limit: Duration) -> usize {
        let since = Instant::now();
        loop {
            let left = self.agents.iter().filter(|agent| !agent.with(|agent| agent.is_empty())).count();
            if left == 0 || since.elapsed() > limit {
                return left;
            }
            sleep(10 * TICK).await;
        }
    }

    /// Has all agents tell what their pods call over and over: so many edges in a second over all of them. For as long as `time`;
    /// who does not keep up is asked for less.
    pub(super) async fn repeat(&self, edges_per_s: f64, time: Duration) {
        let each = (self.callers.len() * self.world.calls) as f64 / self.agents.len() as f64;
        let rounds_per_s = edges_per_s / each;
        let (since, mut tick) = (Instant::now(), interval(TICK));
        let mut rounds = 0.0;
        while since.elapsed() < time {
            tick.tick().await;
            let due = since.elapsed().as_secs_f64() * rounds_per_s;
            while rounds < due {
                let agent = &self.agents[rounds as usize % self.agents.len()];
                agent.with(Agent::repeat);
                rounds += 1.0;
            }
        }
    }

    /// Ends all of them.
    pub(super) async fn end(mut self) -> Result<()> {
        self.stop.send_replace(true);
        let all = async {
            while let Some(ended) = self.tasks.join_next().await {
                ended.context("a task of an agent")?;
            }
            Ok(())
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.context("the agents do not end")?
    }
}

/// The network namespace of a pod that stays. Others come after.
fn netns(nth: usize) -> u64 {
    1 + nth as u64
}
