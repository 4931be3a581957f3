//! Pods come and go and take turns with addresses, while agents tell late of what they saw.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::agent::{Caller, Connect, clock_ns};
use super::api::{create, delete, patch, replace};
use super::fleet::Fleet;
use super::objects::{self, Endpoints};
use super::populate::{in_namespace, now};
use super::truth::{Edge, Told};
use super::world::{PORT, TARGET_PORT, World};
use crate::bed::lock;
use plan::{Planned, Tenure, What, plan};

/// How long before it gets its address a pod is made.
const AHEAD_MS: u64 = 800;
/// How often EndpointSlices follow their pods.
const SLICES: Duration = Duration::from_millis(300);
/// Network namespaces of pods that come and go; those that stay have lower numbers.
const NETNS: u64 = 1 << 32;

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) pods: u64,
    pub(super) connects: u64,
    /// Of those, within two seconds of a handover of an address that plays a part in it.
    pub(super) near: u64,
    /// Of those, told with the address of the pod only.
    pub(super) by_address: u64,
    /// Planned, and not made: the API server was so slow that the pod did not have its address yet.
    pub(super) too_late: u64,
    /// Owners of each address.
    pub(super) owners: BTreeMap<usize, u64>,
    /// How long after the fact the API server had answered that a pod has its address, or is gone; milliseconds, in no order.
    pub(super) lags: Vec<u64>,
    pub(super) made: BTreeMap<Edge, Told>,
}

/// What the tasks share.
struct Stage {
    world: World,
    client: Client,
    fleet: Arc<Fleet>,
    start: Instant,
    start_ns: u64,
    done: Mutex<Done>,
    /// Of the headless services, and those that have changed.
    slices: Mutex<(BTreeMap<usize, Endpoints>, BTreeSet<usize>)>,
}

/// Plays all of it.
pub(super) async fn play(world: World, client: &Client, fleet: &Arc<Fleet>) -> Result<Done> {
    let stage = Arc::new(Stage {
        world,
        client: client.clone(),
        fleet: Arc::clone(fleet),
        start: Instant::now(),
        start_ns: clock_ns(),
        done: Mutex::default(),
        slices: Mutex::default(),
    });
    let (stop, stopped) = watch::channel(false);
    let slices = tokio::spawn(Arc::clone(&stage).keep_slices(stopped));
    let mut tasks = JoinSet::new();
    for (number, tenure) in plan(&world).into_iter().enumerate() {
        tasks.spawn(Arc::clone(&stage).play(number, tenure));
    }
    let mut result = Ok(());
    while let Some(ended) = tasks.join_next().await {
        result = ended.context("a task of the churn").and_then(|ended| ended);
        if result.is_err() {
            tasks.shutdown().await;
        }
    }
    stop.send_replace(true);
    slices.await.context("the task of the EndpointSlices")??;
    result?;
    let stage = Arc::into_inner(stage).context("a task of the churn still runs")?;
    Ok(stage.done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

impl Stage {
    async fn until(&self, ms: u64) {
        sleep_until(self.start + Duration::from_millis(ms)).await;
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    async fn play(self: Arc<Self>, number: usize, tenure: Tenure) -> Result<()> {
        self.until(tenure.from.saturating_sub(AHEAD_MS)).await;
        let (node, address) = self.world.shared(tenure.shared);
        let all = in_namespace("api/v1", tenure.workload, "pods");
        // Behind those of the same workload that stay, of which restless ones have none.
        let uid = create(&self.client, &all, &objects::pod(tenure.workload, number, node)).await?;
        {
            let mut done = lock(&self.done);
            done.pods += 1;
            *done.owners.entry(tenure.shared).or_default() += 1;
        }
        let has_it_since = self.elapsed_ms().max(tenure.from);
        let (lived, ()) = tokio::join!(
            self.live(number, &tenure, &uid, address, node),
            self.tell(number, &tenure, has_it_since, &uid, address, node),
        );
        lived
    }

    /// What the API server is told of the pod.
    async fn live(
        &self,
        number: usize,
        tenure: &Tenure,
        uid: &str,
        address: IpAddr,
        node: usize,
    ) -> Result<()> {
        let name = objects::pod_name(tenure.workload, number);
        let path = format!("{}/{name}", in_namespace("api/v1", tenure.workload, "pods"));
        self.until(tenure.from).await;
        let started = now();
        self.until(tenure.told).await;
        let status = objects::running(address, self.world.node_address(node), &started);
        patch(&self.client, &format!("{path}/status"), &status).await?;
        lock(&self.done).lags.push(self.elapsed_ms() - tenure.from);
        self.change_slice(tenure.workload, |pods| {
            pods.insert(address, (name.clone(), uid.to_owned()));
        });
        if let Some(asked) = tenure.asked_to_end {
            self.until(asked).await;
            delete(&self.client, &path, false).await?;
        }
        self.until(tenure.gone).await;
        delete(&self.client, &path, true).await?;
        lock(&self.done).lags.push(self.elapsed_ms() - tenure.until);
        self.change_slice(tenure.workload, |pods| {
            // Somebody else of the workload may have it by now.
            if pods.get(&address).is_some_and(|(of, _)| *of == name) {
                pods.remove(&address);
            }
        });
        Ok(())
    }

    fn change_slice(&self, workload: usize, change: impl FnOnce(&mut Endpoints)) {
        if let Some(service) = self.world.headless_of(workload) {
            let mut slices = lock(&self.slices);
            change(slices.0.entry(service).or_default());
            slices.1.insert(service);
        }
    }

    /// What agents tell of its time.
    async fn tell(
        &self,
        number: usize,
        tenure: &Tenure,
        since: u64,
        uid: &str,
        address: IpAddr,
        node: usize,
    ) {
        let netns = NETNS + number as u64;
        let known = Arc::new(Caller { netns, uid: Some(Arc::from(uid)), address });
        let unknown = Arc::new(Caller { netns, uid: None, address });
        for connect in &tenure.connects {
            // Others do not need the pod to have its address.
            if connect.at < since && !matches!(connect.what, What::Other { .. }) {
                lock(&self.done).too_late += 1;
                continue;
            }
            self.until(connect.told).await;
            let at_ns = self.start_ns + connect.at * 1_000_000;
            let (node, from, to, port, edge) = match connect.what {
                What::Calls { nth, by_uid } => {
                    let from = if by_uid { &known } else { &unknown };
                    let (to, edge) = self.call(tenure.workload, nth);
                    (node, Arc::clone(from), to, PORT, edge)
                }
                What::Called { by, any } => {
                    let (node, from) = self.fleet.caller(by, any);
                    let edge = Edge { from: World::workload(by), to: self.world.to_pod(tenure.workload) };
                    (node, from, address, TARGET_PORT, edge)
                }
                What::Other { by, any, nth } => {
                    let (node, from) = self.fleet.caller(by, any);
                    let (to, edge) = self.call(by, nth);
                    (node, from, to, PORT, edge)
                }
            };
            self.note(connect, &from, to, edge);
            self.fleet.tell(node, [Connect { from, address: to, port, at_ns }]);
        }
    }

    fn call(&self, workload: usize, nth: usize) -> (IpAddr, Edge) {
        let service = self.world.called_by(workload).nth(nth).expect("one of those that it calls");
        let to = self.world.to_service(service, PORT);
        (self.world.cluster_ip(service), Edge { from: World::workload(workload), to })
    }

    fn note(&self, connect: &Planned, from: &Caller, to: IpAddr, edge: Edge) {
        let mut done = lock(&self.done);
        done.connects += 1;
        done.near += u64::from(connect.is_near);
        done.by_address += u64::from(from.uid.is_none());
        let told = done.made.entry(edge).or_default();
        told.times += 1;
        told.addresses.insert(to);
        if from.uid.is_none() {
            told.sources.insert(from.address);
        }
    }

    /// Keeps EndpointSlices as their controller would.
    async fn keep_slices(self: Arc<Self>, stopped: watch::Receiver<bool>) -> Result<()> {
        let mut tick = interval(SLICES);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !*stopped.borrow() {
            tick.tick().await;
            let changed: Vec<(usize, Endpoints)> = {
                let mut slices = lock(&self.slices);
                let services = std::mem::take(&mut slices.1);
                services.into_iter().map(|service| (service, slices.0[&service].clone())).collect()
            };
            for (service, pods) in changed {
                let workload = self.world.selected_by(service);
                let all = in_namespace("apis/discovery.k8s.io/v1", workload, "endpointslices");
                let slice = objects::slice(&self.world, service, &pods);
                replace(&self.client, &format!("{all}/{}", objects::slice_name(service)), &slice).await?;
            }
        }
        Ok(())
    }
}
