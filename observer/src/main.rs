//! The one binary of Sidescope.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use sidescope::cli::{self, Cli, Command};
use sidescope::watch::Failure;
use sidescope::{agent, cgroup, observe, scanner};
use tracing_subscriber::EnvFilter;

/// What the user gave, or the machine, does not allow it.
const EXIT_SETUP: u8 = 2;
/// It failed later.
const EXIT_RUN: u8 = 1;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let result = match &cli.command {
        Command::Observe(args) => observe::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Scanner(args) => scanner(args).await.map_err(Failure::Setup),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Setup(err)) => fail(&err, EXIT_SETUP),
        Err(Failure::Run(err)) => fail(&err, EXIT_RUN),
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
