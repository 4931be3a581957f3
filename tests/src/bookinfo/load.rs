//! The load generator: asks for one page again and again.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Load;
use super::http::{Client, Name, Names, Reuse, runtime};

/// Asks for one page and prints it.
pub fn get(url: &str, names: Vec<Name>) -> Result<()> {
    let client = Client::new(&Names::new(names), Reuse::Never);
    let body = runtime()?.block_on(client.get(url))?;
    std::io::stdout().write_all(&body).context("cannot write to standard output")
}

/// Calls `url` as `load` says; an answer other than 200 is an error, at the end where there is one.
pub fn run(url: &str, names: Vec<Name>, load: Load) -> Result<()> {
    if let Some(rate) = load.rate {
        ensure!(rate.is_finite() && rate > 0.0, "the rate must be a positive number of calls a second");
    }
    let names = Names::new(names);
    runtime()?.block_on(async {
        let client = Client::new(&names, Reuse::KeepAlive);
        let start = Instant::now();
        let (mut calls, mut failures) = (0_u32, 0_u32);
        while load.count.is_none_or(|count| calls < count) {
            if let Some(rate) = load.rate {
                // By the start and not by the last call, so that slow answers do not lower the rate.
                let due = start + Duration::from_secs_f64(f64::from(calls) / rate);
                tokio::time::sleep_until(due.into()).await;
            }
            if let Err(error) = client.get(url).await {
                eprintln!("{error:#}");
                failures += 1;
            }
            calls = calls.saturating_add(1);
        }
        println!("{calls} calls in {:.1} s, {failures} failed", start.elapsed().as_secs_f64());
        ensure!(failures == 0, "{failures} of {calls} calls failed");
        Ok(())
    })
}
