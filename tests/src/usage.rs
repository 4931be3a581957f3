//! What processes take of the machine.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// A field of `/proc/PID/status` such as `VmRSS`, in MiB.
pub(crate) fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let kib: f64 = kib
        .and_then(|kib| kib.trim().trim_end_matches("kB").trim().parse().ok())
        .with_context(|| format!("no {field}"))?;
    Ok(kib / 1024.0)
}

/// CPU time since the start of the process.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(") ").context("no name")?;
    // User and system time in clock ticks are the 14th and 15th field, the state is the third.
    let ticks: u64 = rest.split(' ').skip(11).take(2).filter_map(|word| word.parse::<u64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_takes_something() {
        let pid = std::process::id();
        assert!(memory_mib(pid, "VmHWM").unwrap() >= 1.0);
        assert!(cpu_time(pid).unwrap() < Duration::from_secs(3600));
        assert!(memory_mib(pid, "VmNothing").is_err());
    }
}
