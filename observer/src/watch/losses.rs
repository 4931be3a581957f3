//! What was lost, in the kernel and here.

use std::collections::BTreeMap;

use sidescope_common::{Counter, loss_time};

use super::Watch;
use crate::losses::Hit;
use crate::probes::ProbeError;

impl Watch {
    /// Which network namespaces the losses have hit.
    ///
    /// # Errors
    /// When the kernel refuses to read its map.
    pub fn hit(&self) -> Result<Hit, ProbeError> {
        let mut hit = self.collector.hit().clone();
        for (netns, causes) in self.probes.losses()? {
            hit.note_causes(netns, &causes, 0);
        }
        Ok(hit)
    }

    /// Those that losses have hit since `since_ns`, nanoseconds of CLOCK_MONOTONIC, and since this was last called. One of the second in
    /// which that was may come again.
    ///
    /// # Errors
    /// When the kernel refuses to read its map.
    pub fn hit_since(&mut self, since_ns: u64) -> Result<Hit, ProbeError> {
        let losses = self.probes.losses()?;
        let mut hit = self.collector.take_new_hit();
        for (netns, causes) in losses {
            hit.note_causes(netns, &causes, loss_time(since_ns));
        }
        Ok(hit)
    }

    /// What was lost, in the kernel and here; only causes that occurred.
    ///
    /// # Errors
    /// When the kernel refuses to read its counters.
    pub fn losses(&self) -> Result<BTreeMap<String, u64>, ProbeError> {
        let mut losses: BTreeMap<String, u64> =
            self.collector.losses().iter().map(|(loss, count)| (loss.name().to_owned(), *count)).collect();
        for counter in Counter::ALL.into_iter().filter(|counter| counter.is_loss()) {
            let count = self.probes.counter(counter)?;
            if count > 0 {
                losses.insert(counter.name().to_owned(), count);
            }
        }
        Ok(losses)
    }
}
