//! What keeps the parsers of a workload's bytes honest: samples of real clients, and fuzzing that starts from them.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{self, cargo, stdout};

/// Where the samples are kept.
const SAMPLES: &str = "observer/samples";

/// Captures the samples anew. Clients that are missing are named and left out; nothing is installed.
pub(crate) fn capture() -> Result<()> {
    for tool in ["python3", "unshare", "ip"] {
        ensure!(stdout(Command::new("which").arg(tool)).is_some(), "`{tool}` is missing");
    }
    println!("==> capture");
    println!("    CAPTURE_PYTHON may name a Python that has requests, urllib3, httpx with h2, and grpcio");
    command::run(Command::new("python3").args(["tests/samples/capture.py", SAMPLES]))
        .context("the capture needs user namespaces, or root")
}

/// Fuzzes every parser for as long.
pub(crate) fn fuzz(seconds: u64) -> Result<()> {
    let mut fuzz = cargo(["test", "-p", "sidescope", "--test", "parsers", "--", "fuzz::", "--nocapture"]);
    command::run(fuzz.env("SIDESCOPE_FUZZ_SECONDS", seconds.to_string()))
}
