//! The run, part by part.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result};
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use sidescope::crd::{self, WorkloadDependencies};
use sidescope::model::dependencies::Record;
use sidescope::model::names::WorkloadRef;
use tokio::time::{Instant, sleep, sleep_until};

use super::Options;
use super::agent::{Connect, clock_ns};
use super::aggregator::{self, Aggregator};
use super::audit::{Audit, sums};
use super::churn::{self, Done};
use super::fleet::Fleet;
use super::populate::populate;
use super::report::{Figure, Phase, Report, Target};
use super::truth::{Edge, Told, Unresolved, compare, unresolved_of};
use super::world::{PORT, World};
use crate::bed::lock;
use crate::cluster::Cluster;
use crate::usage;

/// How long it may take until each agent has its stream.
const CONNECTED: Duration = Duration::from_secs(120);
/// How long ago the first connects are. What agents tell is looked at when it is three seconds old, and that wait is not to be measured.
const AGO: Duration = Duration::from_secs(4);
/// Repeated edges that agents tell in a second, if they are taken: half as many again as the target.
const OFFERED_PER_S: f64 = 75_000.0;
/// For how long, and the part of it that is measured: what was told in the first seconds is not looked at yet.
const REPEATS: Duration = Duration::from_secs(25);
const REPEATS_BEFORE: Duration = Duration::from_secs(8);
const REPEATS_MEASURED: Duration = Duration::from_secs(16);
/// How long it may take until everything is acknowledged.
const SETTLED: Duration = Duration::from_secs(120);
/// Objects that are read at once.
const PAGE: u32 = 500;

/// Runs all of it.
pub(super) async fn all(cluster: &Cluster, world: World, options: &Options) -> Result<Report> {
    let client = Client::try_from(cluster.config()).context("cannot make a client")?;
    let folder = tempfile::tempdir().context("no folder for tokens")?;
    let mut meter = Meter::new(cluster);

    let mark = meter.begin("set-up")?;
    let made = populate(&client, world).await?;
    meter.end(mark)?;

    let mark = meter.begin("start")?;
    // The same after the restart: agents look for it there.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, Cluster::free_port()?));
    let token = &made.aggregator;
    let start = || Aggregator::start(cluster, &options.sidescope, address, token, folder.path());
    let aggregator = start()?;
    let first_ready = aggregator.ready().await?;
    let ready_at = Instant::now();
    meter.end(mark)?;

    let mark = meter.begin("connect")?;
    let target = aggregator.target(&client, folder.path()).await?;
    let mut fleet = Fleet::start(world, &made, &target, folder.path())?;
    let nodes = world.nodes as u64;
    let connected = fleet.connected(nodes, CONNECTED).await?;
    meter.end(mark)?;

    sleep_until(ready_at + AGO + Duration::from_secs(1)).await;
    let mark = meter.begin("new edges")?;
    let new_edges_per_s = tell_first(world, &fleet).await;
    meter.end(mark)?;

    fleet.tell_watched();
    let fleet = Arc::new(fleet);
    let mark = meter.begin("repeats")?;
    let repeats_per_s = repeat(&fleet, OFFERED_PER_S * options.scale).await;
    meter.end(mark)?;

    let mark = meter.begin("churn")?;
    let done = churn::play(world, &client, &fleet).await?;
    let left = fleet.settled(SETTLED).await;
    meter.end(mark)?;

    let records = records(&client).await?;
    let mark = meter.begin("idle")?;
    sleep(world.idle()).await;
    let idle = meter.end(mark)?;
    let (_, writes) = sums(&meter.phases[idle].requests);
    let idle_writes_per_s = writes as f64 / meter.phases[idle].took.as_secs_f64();
    let (steady_mib, mut peak_mib) = meter.phases[idle].rss_mib.context("no aggregator runs")?;

    let mark = meter.begin("restart")?;
    let streams = fleet.tally.streams.load(Relaxed);
    aggregator.stop().await?;
    let aggregator = start()?;
    let ready = aggregator.ready().await?;
    let reconnected = fleet.connected(streams + nodes, CONNECTED).await?;
    let restart = meter.end(mark)?;
    peak_mib = peak_mib.max(meter.phases[restart].rss_mib.context("no aggregator runs")?.1);

    let fleet_tally = Arc::clone(&fleet.tally);
    Arc::into_inner(fleet).context("somebody holds the agents")?.end().await?;
    aggregator.stop().await?;

    let unresolved = unresolved(&fleet_tally, &records);
    let made = all_made(world, done.made.clone());
    let difference = compare(&made, &records, &unresolved.0);
    let shown = |edges: &[Edge]| edges.iter().map(|edge| format!("{} -> {:?}", edge.from, edge.to)).collect();
    let lags = Lags::of(&done);
    let figure = |name, what, value, target| Figure { name, what, value, target };
    let count = |count: usize| count as f64;
    use Target::{AtLeast, AtMost};
    let figures = vec![
        figure("rss_mib", "RSS of the aggregator at most, MiB", peak_mib, AtMost(256.0)),
        figure("rss_steady_mib", "  in an idle cluster, after all", steady_mib, Target::None),
        figure("new_edges_per_s", "new edges acknowledged a second", new_edges_per_s, AtLeast(5_000.0)),
        figure("repeats_per_s", "repeated edges acknowledged a second", repeats_per_s, AtLeast(50_000.0)),
        figure(
            "repeats_offered_per_s",
            "  of so many that were offered",
            OFFERED_PER_S * options.scale,
            Target::None,
        ),
        figure("ready_s", "seconds until ready after a restart", ready.as_secs_f64(), AtMost(5.0)),
        figure(
            "first_ready_s",
            "  and at the first start, without records",
            first_ready.as_secs_f64(),
            Target::None,
        ),
        figure(
            "reconnected_s",
            "  and until all agents had a stream again",
            reconnected.as_secs_f64(),
            Target::None,
        ),
        figure("connected_s", "  and at the first start", connected.as_secs_f64(), Target::None),
        figure("idle_writes_per_s", "API writes a second in an idle cluster", idle_writes_per_s, AtMost(1.0)),
        figure("wrong", "edges in records that nobody made", count(difference.wrong.len()), AtMost(0.0)),
        figure(
            "missing",
            "edges that were acknowledged and are in no record",
            count(difference.missing.len()),
            AtMost(0.0),
        ),
        figure("overflowed", "records that do not hold all", count(difference.overflowed.len()), AtMost(0.0)),
        figure(
            "unacknowledged_agents",
            "agents with something not acknowledged after the churn",
            count(left),
            AtMost(0.0),
        ),
        figure(
            "unresolved",
            "part of the churn's connects that is unresolved",
            unresolved.1 as f64 / done.connects as f64,
            AtMost(0.001),
        ),
        figure("unresolved_connects", "  in connects", unresolved.1 as f64, Target::None),
        figure(
            "unresolved_edges",
            "  edges that are in no record because of that",
            count(difference.unresolved.len()),
            Target::None,
        ),
        figure("connects", "connects in the churn", done.connects as f64, AtLeast(100_000.0)),
        figure(
            "near",
            "  part of them within 2 s of a handover of their address",
            done.near as f64 / done.connects as f64,
            AtLeast(0.1),
        ),
        figure(
            "by_address",
            "  part of them told without the pod's uid",
            done.by_address as f64 / done.connects as f64,
            Target::None,
        ),
        figure("too_late", "  not made, since the API server was behind", done.too_late as f64, Target::None),
        figure(
            "pods_per_s",
            "pods made, and as many removed, a second",
            done.pods as f64 / world.churn.as_secs_f64(),
            AtLeast(47.5),
        ),
        figure(
            "owners",
            "owners of the address that had the fewest",
            done.owners.values().min().copied().unwrap_or(0) as f64,
            AtLeast(20.0),
        ),
        figure(
            "lag_median_ms",
            "ms until the API server knew of an address or an end, median",
            lags.median,
            Target::None,
        ),
        figure("lag_most_ms", "  and at most", lags.most, Target::None),
        figure(
            "clock_error_ms",
            "ms by which agents' times may be off, at most",
            fleet_tally.clock_error_ms.load(Relaxed) as f64,
            Target::None,
        ),
    ];
    Ok(Report {
        scale: options.scale,
        figures,
        phases: meter.phases,
        wrong: shown(&difference.wrong),
        missing: shown(&difference.missing),
        unresolved: unresolved.0,
    })
}

/// All that calm workloads call, each edge told by one pod. Gives how many are acknowledged in a second.
async fn tell_first(world: World, fleet: &Fleet) -> f64 {
    let at_ns = clock_ns() - u64::try_from(AGO.as_nanos()).expect("some seconds");
    let mut of_nodes: BTreeMap<usize, Vec<Connect>> = BTreeMap::new();
    for workload in 0..world.calm() {
        for (nth, service) in world.called_by(workload).enumerate() {
            let (node, from) = fleet.caller(workload, nth);
            let connect = Connect { from, address: world.cluster_ip(service), port: PORT, at_ns };
            of_nodes.entry(node).or_default().push(connect);
        }
    }
    let (start_ns, before) = (clock_ns(), fleet.tally.acknowledged.load(Relaxed));
    for (node, connects) in of_nodes {
        fleet.tell(node, connects);
    }
    fleet.settled(SETTLED).await;
    let took_ns = fleet.tally.last_ns.load(Relaxed).saturating_sub(start_ns);
    (fleet.tally.acknowledged.load(Relaxed) - before) as f64 / (took_ns as f64 / 1e9)
}

/// All pods tell all that they call, again and again. Gives how many edges are acknowledged in a second.
async fn repeat(fleet: &Fleet, offered_per_s: f64) -> f64 {
    let acknowledged = || fleet.tally.acknowledged.load(Relaxed);
    let measured = async {
        sleep(REPEATS_BEFORE).await;
        let (since, before) = (Instant::now(), acknowledged());
        sleep(REPEATS_MEASURED).await;
        (acknowledged() - before) as f64 / since.elapsed().as_secs_f64()
    };
    let (per_s, ()) = tokio::join!(measured, fleet.repeat(offered_per_s, REPEATS));
    fleet.settled(SETTLED).await;
    per_s
}

/// Every edge that was made in the whole run.
fn all_made(world: World, churn: BTreeMap<Edge, Told>) -> BTreeMap<Edge, Told> {
    let mut made = churn;
    for edge in world.first_edges() {
        made.entry(edge).or_default().times += 1;
    }
    made
}

/// What is unresolved, and how many connects that is.
fn unresolved(
    tally: &super::agent::Tally,
    records: &BTreeMap<WorkloadRef, Record>,
) -> (Vec<Unresolved>, u64) {
    let mut all: Vec<Unresolved> =
        records.iter().flat_map(|(workload, record)| unresolved_of(workload, record)).collect();
    let mut connects: u64 = all.iter().map(|one| one.connects).sum();
    for refused in lock(&tally.refused).iter() {
        connects += refused.count;
        all.extend(refused.among.iter().map(|(from, address, port)| Unresolved {
            from: Err(*from),
            address: *address,
            port: *port,
            reason: refused.reason.clone(),
            connects: refused.count,
        }));
    }
    all.sort_unstable();
    (all, connects)
}

/// All records that the API server has.
async fn records(client: &Client) -> Result<BTreeMap<WorkloadRef, Record>> {
    let api: Api<DynamicObject> =
        Api::all_with(client.clone(), &ApiResource::erase::<WorkloadDependencies>(&()));
    let mut page = ListParams::default().limit(PAGE);
    let mut records = BTreeMap::new();
    loop {
        let list = api.list(&page).await.context("cannot list the records")?;
        for object in list.items {
            let stored = crd::read(object)?;
            records.insert(stored.workload, stored.record);
        }
        page.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
        if page.continue_token.is_none() {
            return Ok(records);
        }
    }
}

struct Lags {
    median: f64,
    most: f64,
}

impl Lags {
    fn of(done: &Done) -> Self {
        let mut lags = done.lags.clone();
        lags.sort_unstable();
        let at = |index: usize| lags.get(index).copied().unwrap_or(0) as f64;
        Self { median: at(lags.len() / 2), most: at(lags.len().saturating_sub(1)) }
    }
}

/// What the processes take, part by part.
struct Meter<'c> {
    cluster: &'c Cluster,
    audit: Audit,
    phases: Vec<Phase>,
}

struct Mark {
    name: &'static str,
    since: Instant,
    cpu: BTreeMap<(&'static str, u32), Duration>,
    audit_end: u64,
}

/// Whose CPU time is told: as the cluster calls its processes, and as people are told.
const PROCESSES: [(&str, &str); 3] =
    [(aggregator::PROCESS, "aggregator"), ("kube-apiserver", "API server"), ("etcd", "etcd")];

impl<'c> Meter<'c> {
    fn new(cluster: &'c Cluster) -> Self {
        Self { cluster, audit: Audit { log: cluster.audit_log() }, phases: Vec::new() }
    }

    fn begin(&self, name: &'static str) -> Result<Mark> {
        println!("{name} ...");
        Ok(Mark { name, since: Instant::now(), cpu: self.cpu()?, audit_end: self.audit.end()? })
    }

    /// Returns its place among the phases.
    fn end(&mut self, mark: Mark) -> Result<usize> {
        let took = mark.since.elapsed();
        let mut cpu: BTreeMap<&'static str, Duration> = BTreeMap::new();
        for ((name, pid), time) in self.cpu()? {
            let before = mark.cpu.get(&(name, pid)).copied().unwrap_or_default();
            *cpu.entry(name).or_default() += time.saturating_sub(before);
        }
        let requests = self.audit.since(mark.audit_end)?;
        let processes = self.cluster.processes();
        let aggregator = processes.iter().find(|(name, _)| name == aggregator::PROCESS);
        let rss_mib = aggregator.and_then(|(_, proc)| {
            let now = usage::memory_mib(proc.pid(), "VmRSS").ok()?;
            Some((now, usage::memory_mib(proc.pid(), "VmHWM").ok()?))
        });
        self.phases.push(Phase { name: mark.name, took, cpu, requests, rss_mib });
        println!("  {:.1} s", took.as_secs_f64());
        Ok(self.phases.len() - 1)
    }

    /// Since the start of each process.
    fn cpu(&self) -> Result<BTreeMap<(&'static str, u32), Duration>> {
        let own = std::process::id();
        let mut cpu = BTreeMap::from([(("generator", own), usage::cpu_time(own)?)]);
        for (name, proc) in self.cluster.processes() {
            // One that has ended has no time any more.
            if let Some((_, shown)) = PROCESSES.iter().find(|(of, _)| *of == name)
                && let Ok(time) = usage::cpu_time(proc.pid())
            {
                cpu.insert((*shown, proc.pid()), time);
            }
        }
        Ok(cpu)
    }
}
