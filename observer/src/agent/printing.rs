//! Prints what is learnt, where there is no aggregator to tell.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write as _};

use anyhow::Context as _;
use tracing::debug;

use super::Which;
use crate::changes::{Change, Changes};
use crate::losses::Hit;
use crate::probes::now_ns;
use crate::watch::Watch;

/// What was printed.
#[derive(Default)]
pub(super) struct Printer {
    changes: Changes,
    hit: Hit,
    /// Something could not be printed, and will not be: it counts as told.
    unprinted: bool,
}

impl Printer {
    /// Prints what is new.
    pub(super) fn tell(
        &mut self,
        watch: &mut Watch,
        losses: &BTreeMap<String, u64>,
        which: Which,
    ) -> anyhow::Result<()> {
        let hit = watch.hit();
        if let Ok(hit) = &hit {
            self.hit.clone_from(hit);
        }
        let changes = match which {
            Which::Tellable => self.changes.tell(watch.tellable(), &self.hit, losses),
            Which::All => self.changes.tell(watch.collector.edges(), &self.hit, losses),
        };
        if !changes.is_empty() {
            debug!(lines = changes.len(), "reporting");
            let printed = print(&changes).context("cannot print what was seen");
            self.unprinted |= printed.is_err();
            printed?;
        }
        hit?;
        Ok(())
    }

    /// Forgets what was told of pods that are gone.
    pub(super) fn forget(&mut self, watch: &mut Watch) -> anyhow::Result<()> {
        let forgotten = watch.forget(|key, observed| self.changes.is_told(key, observed))?;
        self.changes.forget(&forgotten);
        self.changes.keep(watch.collector.edges());
        Ok(())
    }

    /// Whether all was printed. Whoever tells an aggregator from here on cannot tell what was lost before.
    pub(super) fn end(&self, watch: &mut Watch) -> anyhow::Result<bool> {
        watch.probes.keep_told(now_ns())?;
        Ok(!self.unprinted)
    }
}

fn print(changes: &[Change<'_>]) -> anyhow::Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    for change in changes {
        serde_json::to_writer(&mut out, change)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}
