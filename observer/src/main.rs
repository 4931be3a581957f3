//! The one binary of Sidescope.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::Parser as _;
use sidescope::cli::{Cli, Command};
use sidescope::observe::{self, Failure};
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
    let Command::Observe(args) = &cli.command;
    match observe::run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Setup(err)) => fail(&err, EXIT_SETUP),
        Err(Failure::Run(err)) => fail(&err, EXIT_RUN),
    }
}

fn fail(err: &anyhow::Error, code: u8) -> ExitCode {
    // With all causes on one line; not through the log, whose level may hide it.
    eprintln!("sidescope: {err:#}");
    ExitCode::from(code)
}
