//! Waiting for conditions. Nothing in the bed sleeps for a fixed time and hopes.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(10);
/// By how much every limit is longer on a slow machine. The kernel matrix, whose machines are emulated, sets it.
const PATIENCE_VAR: &str = "SIDESCOPE_TEST_PATIENCE";

/// What a limit for an ordinary machine is on this one.
pub fn patient(limit: Duration) -> Duration {
    static TIMES: OnceLock<u32> = OnceLock::new();
    let times = TIMES.get_or_init(|| {
        let times = std::env::var(PATIENCE_VAR).ok().map_or(Ok(1), |text| text.parse());
        times.unwrap_or_else(|error| panic!("{PATIENCE_VAR}: {error}"))
    });
    limit * *times
}

/// Looks at `probe` until it yields a value, for as long as [`patient`] makes of `timeout`. An error of `probe` ends the wait at once: it
/// is for what can no longer come true.
pub fn wait_for<T>(what: &str, timeout: Duration, mut probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let (start, timeout) = (Instant::now(), patient(timeout));
    loop {
        if let Some(value) = probe().with_context(|| format!("while waiting for {what}"))? {
            return Ok(value);
        }
        if start.elapsed() >= timeout {
            bail!("{what}: did not come true within {:.1} s", timeout.as_secs_f64());
        }
        thread::sleep(patient(PAUSE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_never_holds_is_named_in_the_error() {
        let error = wait_for::<()>("the moon", Duration::from_millis(1), || Ok(None)).unwrap_err();
        assert_eq!(error.to_string(), "the moon: did not come true within 0.0 s");
    }

    #[test]
    fn an_error_of_the_probe_ends_the_wait() {
        let error = wait_for::<()>("the moon", Duration::from_secs(3600), || bail!("it fell")).unwrap_err();
        assert_eq!(format!("{error:#}"), "while waiting for the moon: it fell");
    }
}
