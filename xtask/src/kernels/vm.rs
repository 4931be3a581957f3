//! One run of qemu.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{fetch::Kernel, results::Ended};

const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Run {
    pub(super) console: String,
    pub(super) ended: Ended,
}

/// Boots the kernel and waits until it powers off, for `limit` at most.
pub(super) fn run(kernel: &Kernel, image: &Path, limit: Duration) -> Result<Run> {
    let log = image.with_extension("console");
    let file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut qemu = Command::new("qemu-system-x86_64");
    // qemu 7.2 damages the flags after some CMPXCHG16B, which 6.12 uses whenever it allocates memory; without it the kernel takes
    // another way.
    qemu.args(["-cpu", "qemu64,-cx16"])
        .args(["-accel", "tcg,thread=multi", "-m", "1G", "-smp", "2", "-nic", "none", "-no-reboot"])
        .args(["-display", "none", "-monitor", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(image)
        // A panic ends the machine at once, and qemu with it.
        .args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"])
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file);
    let mut machine = qemu.spawn().context("cannot start qemu-system-x86_64")?;
    let start = Instant::now();
    let ended = loop {
        if machine.try_wait()?.is_some() {
            break Ended::ByItself;
        }
        if start.elapsed() > limit {
            machine.kill()?;
            machine.wait()?;
            break Ended::TimedOut;
        }
        sleep(PAUSE);
    };
    let bytes = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(Run { console: String::from_utf8_lossy(&bytes).replace('\r', ""), ended })
}
