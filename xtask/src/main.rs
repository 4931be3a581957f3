//! `cargo xtask`: everything that a person or CI does with this repository.
//!
//! Only what needs root runs as root (through sudo where the user is not root): apt-get, the demo and the tests that load
//! programs into the kernel. Compilers always run as the user.

mod bpf;
mod cache_dir;
mod command;
mod component;
mod components;
mod kernel_object;
mod kernels;
mod samples;
mod setup;
mod steps;
mod test;
mod tidy;

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use command::{Root, cargo, root_dir};
use setup::Needs;

/// Set-up, build, demo and tests of Sidescope.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Installs what this machine lacks to build, run and test
    Setup,
    /// Builds `sidescope` and its test bed
    Build {
        /// With optimisation
        #[arg(long)]
        release: bool,
    },
    /// Builds, then runs Istio's Bookinfo in network namespaces and writes the Sidecars for it
    Demo {
        /// Leave it running, and say how to look at it and how to end it
        #[arg(long)]
        keep: bool,
        /// Make N times as many calls
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        load: Option<u32>,
    },
    /// A real Kubernetes control plane with istiod, without nodes: what the tests use, for a person
    Cluster {
        /// What to do with it
        #[command(subcommand)]
        what: Cluster,
    },
    /// Runs all checks and tests
    Test {
        /// Only formatting, clippy, tidy and the unit tests
        #[arg(long)]
        quick: bool,
        /// Only the kernel matrix, or these kernels of it, each booted in qemu
        #[arg(long, value_name = "VERSION", num_args = 0.., conflicts_with = "quick")]
        kernels: Option<Vec<String>>,
    },
    /// Builds, then measures on this machine, which must do nothing else
    Bench {
        /// What to measure
        #[command(subcommand)]
        what: Bench,
    },
    /// Checks the rules of the code's structure that no compiler knows
    Tidy,
    /// Captures the samples of real clients in observer/samples anew; installs nothing
    Capture,
    /// Fuzzes the parsers of what workloads send, starting from the samples
    Fuzz {
        /// Seconds for each parser; they run side by side
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
    },
}

#[derive(Clone, Copy, Subcommand)]
enum Cluster {
    /// Builds what is missing, starts it in the background, unless it runs, and prints how to reach it
    Up,
    /// Ends it and removes its data
    Down,
    /// Shows what runs
    Status,
}

#[derive(Subcommand)]
enum Bench {
    /// What the kernel programs cost and how complete what they find is; needs root, takes four minutes
    Kernel,
    /// How long it takes to plan a mesh of 20,000 workloads, and how much memory
    Plan,
    /// What the aggregator needs and how right it is with 1,000 agents and 20,000 pods; takes about ten minutes
    Scale {
        /// Only a part of that, to try the bench itself
        #[arg(long, value_name = "PART", default_value_t = 1.0)]
        scale: f64,
    },
}

fn main() -> ExitCode {
    match run(Task::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    std::env::set_current_dir(root_dir())?;
    match task {
        Task::Setup => {
            setup::run(Needs::Demo)?;
            setup::run(Needs::Cluster)?;
            components::build()
        }
        Task::Build { release } => {
            setup::run(Needs::Build)?;
            build(release)
        }
        Task::Demo { keep, load } => demo(keep, load),
        Task::Cluster { what } => cluster(what),
        Task::Test { kernels: Some(names), .. } => test::run_kernels(&names),
        Task::Test { quick, kernels: None } => test::run(quick),
        Task::Bench { what: Bench::Kernel } => bench_kernel(),
        Task::Bench { what: Bench::Plan } => bench_plan(),
        Task::Bench { what: Bench::Scale { scale } } => bench_scale(scale),
        Task::Tidy => tidy::run(),
        Task::Capture => samples::capture(),
        Task::Fuzz { seconds } => samples::fuzz(seconds),
    }
}

fn build(release: bool) -> Result<()> {
    let mut build = cargo(["build", "-p", "sidescope", "-p", "sidescope-tests"]);
    if release {
        build.arg("--release");
    }
    command::run(&mut build)
}

fn cluster(what: Cluster) -> Result<()> {
    let word = match what {
        Cluster::Up => "up",
        Cluster::Down => "down",
        Cluster::Status => "status",
    };
    if matches!(what, Cluster::Up) {
        setup::run(Needs::Cluster)?;
        components::build()?;
    }
    command::run(&mut cargo(["build", "--quiet", "-p", "sidescope-tests", "--bin", "testbed"]))?;
    command::run(Command::new("target/debug/testbed").args(["cluster", word]))
}

fn demo(keep: bool, load: Option<u32>) -> Result<()> {
    let root = Root::obtain()?;
    setup::run(Needs::Demo)?;
    build(true)?;
    let mut testbed = root.command("target/release/testbed");
    testbed.args(["demo", "--sidescope", "target/release/sidescope", "--out", "target/demo"]);
    // Long enough to be watched, and no longer.
    testbed.args(["--for", "6"]);
    if keep {
        testbed.arg("--keep");
    }
    if let Some(load) = load {
        testbed.arg(format!("--load={load}x"));
    }
    // The demo takes our place: signals then reach it, and nobody returns before it has cleaned up.
    Err(testbed.exec()).context("target/release/testbed")
}

fn bench_kernel() -> Result<()> {
    let root = Root::obtain()?;
    setup::run(Needs::Demo)?;
    build(true)?;
    let mut testbed = root.command("target/release/testbed");
    testbed.args(["bench", "--sidescope", "target/release/sidescope", "--out", "target/bench/kernel.json"]);
    // It takes our place, as the demo does.
    Err(testbed.exec()).context("target/release/testbed")
}

fn bench_plan() -> Result<()> {
    setup::run(Needs::Build)?;
    build(true)?;
    command::run(Command::new("target/release/testbed").args([
        "bench-plan",
        "--out",
        "target/bench/plan.json",
    ]))
}

fn bench_scale(scale: f64) -> Result<()> {
    setup::run(Needs::Cluster)?;
    components::build()?;
    build(true)?;
    let mut testbed = Command::new("target/release/testbed");
    testbed.args(["scale", "--sidescope", "target/release/sidescope", "--out", "target/bench/scale.json"]);
    testbed.arg(format!("--scale={scale}"));
    // It takes our place, as the demo does.
    Err(testbed.exec()).context("target/release/testbed")
}
