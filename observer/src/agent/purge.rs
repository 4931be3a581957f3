//! Removes what agents have left.

use std::io::{self, Write as _};
use std::path::Path;

use anyhow::{Context as _, anyhow};

use crate::probes::pins::{self, PinError};
use crate::watch::Failure;

pub(super) fn purge(bpffs: &Path) -> Result<(), Failure> {
    let elsewhere = |what, path: &Path| {
        Failure::Setup(anyhow!(
            "nothing was removed: there is no {what} {}, so no agent keeps anything there; name the place that the agent was given \
             (--bpffs)",
            path.display()
        ))
    };
    let removed = pins::purge(bpffs).map_err(|err| match err {
        err @ PinError::Io { .. } => Failure::Run(err.into()),
        // It may be kept elsewhere: to say that nothing is left would not be true.
        PinError::NoBpffs { path } => elsewhere("BPF file system at", &path),
        PinError::NoDirectory { path } => elsewhere("directory", &path),
        err => Failure::Setup(err.into()),
    })?;
    let mut text = String::new();
    for pins::Removed { dir, links, maps } in &removed {
        text += &format!("removed {}: {links} attached programs, {maps} maps\n", dir.display());
    }
    if removed.is_empty() {
        text = format!("nothing to remove in {}\n", bpffs.display());
    }
    io::stdout().write_all(text.as_bytes()).context("cannot print what was removed").map_err(Failure::Run)
}
