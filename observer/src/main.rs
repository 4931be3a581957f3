//! The one binary of Sidescope.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use sidescope::cli::{self, Cli, Command};
use sidescope::watch::Failure;
use sidescope::{agent, aggregator, cgroup, observe, scanner};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

/// What the user gave, or the machine, does not allow it.
const EXIT_SETUP: u8 = 2;
/// It failed later.
const EXIT_RUN: u8 = 1;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = runtime(&cli.command).build().context("cannot start").map_err(Failure::Setup);
    match result.and_then(|runtime| runtime.block_on(run(&cli.command))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Setup(err)) => fail(&err, EXIT_SETUP),
        Err(Failure::Run(err)) => fail(&err, EXIT_RUN),
    }
}

/// One thread is enough to watch a node, and leaves the others to its pods.
fn runtime(command: &Command) -> Builder {
    let mut builder = match command {
        Command::Aggregator(_) => aggregator::runtime(),
        Command::Observe(_) | Command::Agent(_) | Command::Scanner(_) => Builder::new_current_thread(),
    };
    builder.enable_all();
    builder
}

async fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Observe(args) => observe::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Aggregator(args) => aggregator::run(args).await,
        Command::Scanner(args) => scanner(args).await.map_err(Failure::Setup),
    }
}

async fn scanner(args: &cli::Scanner) -> anyhow::Result<()> {
    let cgroup = cgroup::open(args.cgroup.as_deref())?;
    scanner::run(&args.socket, &cgroup.path).await?;
    Ok(())
}

fn fail(err: &anyhow::Error, code: u8) -> ExitCode {
    // With all causes on one line; not through the log, whose level may hide it.
    eprintln!("sidescope: {err:#}");
    ExitCode::from(code)
}
