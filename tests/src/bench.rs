//! `cargo xtask bench kernel`: what the kernel programs cost, and how complete what they find is.
//!
//! Ratios are of the same work with and without the programs, in short blocks that take turns in one run, so that a busy machine
//! is busy for both. A second arm without programs shows what the machine alone makes of it.

mod floor;
pub mod load;
pub mod plan;
mod report;
mod rig;
mod stats;
mod wire;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::sys::{Stats, enable_stats};
use serde_json::Value;
use sidescope::collect::Collector;
use sidescope::probes::{Probes, RunTime, Settings};
use sidescope_common::{Counter, DEFAULT_EDGES, DEFAULT_RING_BYTES, MAX_OLDER, names};

use crate::existing::{self, Programs};
use floor::Floor;
use load::{Work, destination, host_destination};
use report::{Agent, Cost, Edges, Hosts, Ns, Report, Row};
use rig::{Rig, block, drain, hosts, service};
use stats::{Round, median, ratio, spread};
use wire::Form;

/// What is measured with what.
pub struct Options {
    /// The program `sidescope`.
    pub sidescope: PathBuf,
    /// This program.
    pub testbed: PathBuf,
    /// Where the JSON goes.
    pub out: PathBuf,
    /// Rounds of each ratio.
    pub rounds: usize,
    /// Length of a block.
    pub block: Duration,
}

/// The edges of a set that new edges do not fill while ratios are measured.
const ROOMY: u32 = 1 << 20;
/// The smallest ring there is.
const SMALL_RING: u32 = 4096;
/// Hosts of each form.
const HOSTS: u32 = 1000;
/// Edges of the agent whose memory and time is measured, how often they are repeated, and for how many seconds: all that it does now and
/// then, it does within a minute.
const AGENT: (u32, u64, u64) = (10_000, 20_000, 60);

/// Destinations, connects, ring and set of each row of edges.
const EDGES: [(u32, u64, u32, u32); 6] = [
    (1, 20_000, DEFAULT_RING_BYTES, DEFAULT_EDGES),
    (1_000, 20_000, DEFAULT_RING_BYTES, DEFAULT_EDGES),
    (100_000, 100_000, DEFAULT_RING_BYTES, 1 << 17),
    (1_000, 20_000, SMALL_RING, DEFAULT_EDGES),
    (30_000, 30_000, SMALL_RING, DEFAULT_EDGES),
    (40_000, 40_000, DEFAULT_RING_BYTES, DEFAULT_EDGES),
];

/// Measures everything, prints a table and writes the JSON.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0 && !options.block.is_zero(), "no rounds, or empty ones");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(options))?;
    print!("{}", report.table());
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut json = serde_json::to_string_pretty(&report.json())?;
    json.push('\n');
    std::fs::write(&options.out, json).with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("\nwritten to {}", options.out.display());
    Ok(())
}

async fn measure(options: &Options) -> Result<Report> {
    let mut rig = Rig::new(&options.testbed).await?;
    let mut watched = Watched::new()?;
    let mut rows = Vec::new();
    for work in Work::ALL {
        rows.push(watched.row(&mut rig, work, options).await?);
    }
    let mut costs = Vec::new();
    for work in Work::ALL {
        costs.push(watched.cost(&mut rig, work).await?);
    }
    ensure!(watched.probes.counter(Counter::EdgesFull)? == 0, "the set for new edges was too small");
    let verified = watched.probes.verified()?;
    drop(watched);

    let mut edges = Vec::new();
    for row in EDGES {
        edges.push(find_edges(&mut rig, &options.sidescope, row).await?);
    }
    let mut hosts = Vec::new();
    for ring_bytes in [DEFAULT_RING_BYTES, SMALL_RING] {
        hosts.extend(find_hosts(&mut rig, &options.sidescope, ring_bytes).await?);
    }
    let agent = agent(&mut rig, options).await?;
    rig.end()?;
    let programs = Programs { sidescope: options.sidescope.clone(), testbed: options.testbed.clone() };
    let existing = tokio::task::spawn_blocking(move || existing::run(&programs, 200, 10_000)).await??;
    Ok(Report { rows, costs, verified, edges, hosts, existing, agent })
}

/// The programs in this process, where they can be attached for a block and detached for the next.
struct Watched {
    probes: Probes,
    floor: Floor,
    collector: Collector,
}

impl Watched {
    fn new() -> Result<Self> {
        let probes = Probes::load(&Settings { edges: ROOMY, ..Settings::default() })?;
        Ok(Self { probes, floor: Floor::load()?, collector: Collector::default() })
    }

    /// Time of an operation with the programs.
    async fn on(&mut self, rig: &mut Rig, work: Work, time: Duration) -> Result<(f64, u64)> {
        self.probes.attach_to(&rig.cgroup)?;
        let done = rig.order_read(&block(work, time), &mut self.probes, &mut self.collector).await;
        self.probes.detach();
        drain(&mut self.probes, &mut self.collector);
        // Edges are of no use here, and a table of a million of them would be a load of its own.
        self.collector = Collector::default();
        one(&done?)
    }

    /// Time of an operation with programs that do nothing.
    async fn idle(&mut self, rig: &mut Rig, work: Work, time: Duration) -> Result<f64> {
        let links = self.floor.attach(&rig.cgroup)?;
        let done = rig.order(&block(work, time)).await;
        drop(links);
        Ok(one(&done?)?.0)
    }

    async fn off(&mut self, rig: &mut Rig, work: Work, time: Duration) -> Result<f64> {
        Ok(one(&rig.order(&block(work, time)).await?)?.0)
    }

    async fn row(&mut self, rig: &mut Rig, work: Work, options: &Options) -> Result<Row> {
        let mut rounds = Vec::new();
        for index in 0..options.rounds {
            let mut round = Round { on: 0.0, floor: 0.0, off: 0.0, control: 0.0 };
            // Each arm comes as often in each place, and after each other one, as every other.
            for arm in ORDERS[index % ORDERS.len()] {
                match arm {
                    Arm::On => round.on = self.on(rig, work, options.block).await?.0,
                    Arm::Floor => round.floor = self.idle(rig, work, options.block).await?,
                    Arm::Off => round.off = self.off(rig, work, options.block).await?,
                    Arm::Control => round.control = self.off(rig, work, options.block).await?,
                }
            }
            rounds.push(round);
        }
        let off: Vec<f64> = rounds.iter().map(|round| round.off).collect();
        Ok(Row {
            work,
            ratio: ratio(&rounds, |round| round.on).context("no rounds")?,
            floor: ratio(&rounds, |round| round.floor).context("no rounds")?,
            spread: spread(off.clone()).context("no rounds")?,
            off_ns: median(off).context("no rounds")?,
            on_ns: median(rounds.iter().map(|round| round.on).collect()).context("no rounds")?,
        })
    }

    /// Time in the programs for an operation. The kernel keeps count for as long as a descriptor is open, so that it stops
    /// whatever becomes of us.
    async fn cost(&mut self, rig: &mut Rig, work: Work) -> Result<Cost> {
        let second = Duration::from_millis(1000);
        let counting =
            enable_stats(Stats::RunTime).context("the kernel does not count the programs' time")?;
        let (runs, time) = self.floor.run_time()?;
        self.idle(rig, work, second / 2).await?;
        let (runs_after, time_after) = self.floor.run_time()?;
        let before = self.probes.run_times()?;
        let (_, operations) = self.on(rig, work, second).await?;
        let after = self.probes.run_times()?;
        drop(counting);
        let programs = before.iter().zip(&after).map(|(before, after)| RunTime {
            program: after.program,
            runs: after.runs - before.runs,
            time: after.time.saturating_sub(before.time),
        });
        ensure!(runs_after > runs, "the programs that do nothing did not run");
        Ok(Cost {
            work,
            // Those before the first that is timed ran too.
            operations: operations + u64::from(work.untimed()),
            programs: programs.filter(|program| program.runs > 0).collect(),
            count_ns: (time_after - time).as_nanos() as f64 / (runs_after - runs) as f64,
        })
    }
}

#[derive(Clone, Copy)]
enum Arm {
    On,
    Floor,
    Off,
    Control,
}

const ORDERS: [[Arm; 4]; 4] = [
    [Arm::On, Arm::Off, Arm::Control, Arm::Floor],
    [Arm::Off, Arm::Floor, Arm::On, Arm::Control],
    [Arm::Floor, Arm::Control, Arm::Off, Arm::On],
    [Arm::Control, Arm::On, Arm::Floor, Arm::Off],
];

fn one(numbers: &[u64]) -> Result<(f64, u64)> {
    let [median, operations] = numbers else { anyhow::bail!("the load generator answers {numbers:?}") };
    ensure!(*operations > 0, "no operation fits a block");
    Ok((*median as f64, *operations))
}

/// What the ordinary binary finds of connects at full rate.
async fn find_edges(rig: &mut Rig, sidescope: &Path, row: (u32, u64, u32, u32)) -> Result<Edges> {
    let (distinct, total, ring_bytes, set) = row;
    let sizes = [format!("--edges={set}"), format!("--ring-bytes={ring_bytes}")];
    let observer = rig.observe(sidescope, Vec::new(), &[&sizes[0], &sizes[1]])?;
    let (_, set_mib) = observer.process.maps_mib()?;
    let start = Instant::now();
    let made = rig.order(&[1, distinct.into(), total]).await?[0];
    let took = start.elapsed();
    let graph = observer.stop()?;
    let expected: BTreeSet<String> = (0..distinct).map(|number| destination(number).to_string()).collect();
    let seen = list(&graph["unresolved"]).iter().filter_map(|edge| edge["address"].as_str());
    let found =
        seen.collect::<BTreeSet<_>>().into_iter().filter(|address| expected.contains(*address)).count();
    Ok(Edges {
        distinct,
        ring_bytes,
        set_mib,
        made,
        found: found as u64,
        counted_lost: graph["losses"][Counter::EdgesFull.name()].as_u64().unwrap_or(0),
        per_second: total as f64 / took.as_secs_f64(),
    })
}

/// What the ordinary binary finds of hosts in every form.
async fn find_hosts(rig: &mut Rig, sidescope: &Path, ring_bytes: u32) -> Result<Vec<Hosts>> {
    let connections = |form: Form| 0..HOSTS.div_ceil(form.hosts_per_connection());
    let services = Form::ALL.into_iter().flat_map(|form| {
        let port = if form == Form::Tls { "tls" } else { "http" };
        connections(form).map(move |connection| service(host_destination(form, connection), port))
    });
    let ring = format!("--ring-bytes={ring_bytes}");
    let observer = rig.observe(sidescope, services.collect(), &[&ring])?;
    let mut made = Vec::new();
    for form in Form::ALL {
        made.push((form, rig.order(&hosts(form, HOSTS.into())).await?[0]));
    }
    let graph = observer.stop()?;
    let (mut seen, mut marked) = (BTreeSet::new(), BTreeSet::new());
    for dependency in list(&graph["workloads"]).iter().flat_map(|node| list(&node["dependencies"])) {
        let service =
            dependency["host"].as_str().and_then(|host| host.split('.').next()).context("no host")?;
        for port in dependency["ports"].as_object().context("no ports")?.values() {
            let hosts = list(&port["unknownHosts"]).iter().filter_map(Value::as_str);
            seen.extend(hosts.map(|host| (service.to_owned(), host.to_owned())));
            if port["hostUnknown"] == true {
                marked.insert(service.to_owned());
            }
        }
    }
    let row = |(form, made): (Form, u64)| {
        let (mut found, mut counted_unknown) = (0, 0);
        for number in 0..HOSTS {
            let connection = number / form.hosts_per_connection();
            let key = (format!("s{}", host_destination(form, connection)), form.host(number));
            found += u64::from(seen.contains(&key));
            counted_unknown += u64::from(!seen.contains(&key) && marked.contains(&key.0));
        }
        Hosts { form, ring_bytes, made, found, counted_unknown }
    };
    Ok(made.into_iter().map(row).collect())
}

/// What an agent takes of the machine, with as many connections from before it as it can have.
async fn agent(rig: &mut Rig, options: &Options) -> Result<Agent> {
    let (edges, rate, seconds) = AGENT;
    rig.keep(&options.testbed, MAX_OLDER)?;
    let agent = rig.agent(&options.sidescope, MAX_OLDER as usize)?;
    // With the one of the connections from before.
    rig.order(&[1, (edges - 1).into(), (edges - 1).into()]).await?;
    let (start, before) = (Instant::now(), agent.process.cpu_time()?);
    let connects = rig.order(&[3, rate, seconds, (edges - 1).into()]).await?[0];
    let (elapsed, used) = (start.elapsed().as_secs_f64(), agent.process.cpu_time()?.saturating_sub(before));
    let (maps_mib, _) = agent.process.maps_mib()?;
    let (rss_mib, older) = (agent.process.rss_mib()?, agent.older()?);
    agent.stop()?;
    Ok(Agent {
        older,
        rss_mib,
        maps_mib,
        cpu_percent: used.as_secs_f64() / elapsed * 100.0,
        connects_per_second: connects as f64 / elapsed,
    })
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

impl Cost {
    /// Time in all programs for one operation, without the count.
    fn per_operation(&self) -> f64 {
        self.programs.iter().map(|program| self.net(program)).sum::<f64>() / self.operations as f64
    }

    /// Time in the programs that see packets, for one packet, without the count: on a loopback each passes both.
    fn per_packet(&self) -> f64 {
        let of = |name| self.programs.iter().find(|program| program.program == name);
        let (Some(out), Some(back)) = (of(names::EGRESS), of(names::INGRESS)) else { return f64::NAN };
        (self.net(out) + self.net(back)) / out.runs as f64
    }

    /// What the kernel counted, less what it counts for a program that does nothing.
    fn net(&self, program: &RunTime) -> f64 {
        program.time.as_nanos() as f64 - program.runs as f64 * self.count_ns
    }
}

impl Report {
    fn cost_of(&self, work: Work) -> Option<&Cost> {
        self.costs.iter().find(|cost| cost.work == work)
    }

    fn program_ns(&self) -> Ns {
        Ns {
            connect: self.cost_of(Work::ConnectRepeated).map_or(f64::NAN, Cost::per_operation),
            connect_searched: self.cost_of(Work::ConnectSearched).map_or(f64::NAN, Cost::per_operation),
            packet: self.cost_of(Work::RoundTripFinished).map_or(f64::NAN, Cost::per_packet),
        }
    }
}
