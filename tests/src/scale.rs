//! `cargo xtask bench scale`: the aggregator in a large cluster, with all its agents.
//!
//! etcd and kube-apiserver are real, and so are the aggregator, its certificates, the agents' tokens and the client that agents report
//! with. Pods are objects, and what their agents saw is made up, so that it is known what the records have to say.

mod agent;
mod aggregator;
mod api;
mod audit;
mod churn;
mod fleet;
mod measure;
mod objects;
mod populate;
mod report;
mod truth;
mod world;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, Parts};
use crate::cmd::Cmd;
use world::World;

/// The resource that records are.
const DEFINITION: &str = include_str!("../../deploy/crds/workloaddependencies.yaml");
/// The user that the aggregator is for the API server.
const USER: &str = "system:serviceaccount:sidescope:sidescope-aggregator";
/// Threads for all agents and all that is made: the machine is the aggregator's, too.
const THREADS: usize = 2;
/// Files that a process with all connections of the full size has open.
const FILES: u64 = 8_192;

/// What is measured.
pub struct Options {
    /// The program `sidescope`.
    pub sidescope: PathBuf,
    /// Where the JSON goes.
    pub out: PathBuf,
    /// Which part of the full size.
    pub scale: f64,
}

/// Measures everything, prints a table and writes the JSON.
pub fn run(options: &Options) -> Result<()> {
    let world = World::scaled(options.scale)?;
    allow_files()?;
    let cluster = Cluster::start_audited(Parts::Api, USER)?;
    cluster.apply_definitions(DEFINITION)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build()?;
    let report = runtime.block_on(measure::all(&cluster, world, options));
    // What still runs there has nobody left who waits for it.
    runtime.shutdown_background();
    let report = match report {
        Ok(report) => report,
        Err(error) => return Err(aggregator::with_last_words(&cluster, error)),
    };
    cluster.end()?;
    print!("\n{}", report.table());
    if let Some(folder) = options.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut json = serde_json::to_string_pretty(&report.json())?;
    json.push('\n');
    std::fs::write(&options.out, json).with_context(|| format!("cannot write {}", options.out.display()))?;
    println!("\nwritten to {}", options.out.display());
    Ok(())
}

/// Lets this process, and those that it starts, have enough files open.
fn allow_files() -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let most = files.and_then(|files| files.split_whitespace().next()?.parse::<u64>().ok());
    // Without a number it is unlimited.
    if most.is_some_and(|most| most < FILES) {
        let pid = std::process::id().to_string();
        let raised = Cmd::new("prlimit").args(["--pid", &pid, &format!("--nofile={FILES}:")]).run();
        raised.with_context(|| format!("this needs {FILES} open files"))?;
    }
    Ok(())
}
