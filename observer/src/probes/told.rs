//! How much of what the programs count agents have told: it is kept beside the counters, so that each loss is told by one agent.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, MapData};
use sidescope_common::Counter;

use super::other::pinned;
use super::{ProbeError, Probes, map_error, times, typed};

/// Array of `u64`, indexed by [`Counter`]. No program uses it.
pub(super) const TOLD: &str = "TOLD";
/// A number for each counter.
pub(super) type Counts = [u64; Counter::ALL.len()];

/// Makes the map for programs that have just been loaded.
pub(super) fn make(dir: &Path) -> Result<(), ProbeError> {
    let most = u32::try_from(Counter::ALL.len()).expect("there are few");
    let told: Array<MapData, u64> = Array::create(most, 0).map_err(map_error(TOLD))?;
    told.pin(dir.join(TOLD)).map_err(|err| ProbeError::Pin { name: TOLD, source: Box::new(err) })
}

/// What was told of the programs whose pins are here.
pub(super) fn open(dir: &Path) -> Result<Array<MapData, u64>, ProbeError> {
    pinned(dir, TOLD).and_then(|map| typed(map, TOLD))
}

/// Agents of an earlier build may know fewer causes.
pub(super) fn read(told: &Array<MapData, u64>) -> Result<Counts, ProbeError> {
    let mut counts = Counts::default();
    for (count, told) in counts.iter_mut().zip(told.iter()) {
        *count = told.map_err(map_error(TOLD))?;
    }
    Ok(counts)
}

impl Probes {
    /// Goes on where the agents before this one have ended.
    pub(super) fn go_on(&mut self, dir: &Path) -> Result<(), ProbeError> {
        let told = open(dir)?;
        self.before = read(&told)?;
        self.told = Some(told);
        self.times = Some(times::open(dir)?);
        Ok(())
    }

    /// These losses of the programs were told, by the names of their counters: no other agent has to.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn mark_told(&mut self, losses: &BTreeMap<String, u64>) -> Result<(), ProbeError> {
        let Some(told) = &mut self.told else { return Ok(()) };
        for counter in Counter::ALL {
            let Some(count) = losses.get(counter.name()).filter(|_| counter.is_loss()) else { continue };
            let index = counter as usize;
            let own = self.before[index] + count.saturating_sub(self.earlier[index]);
            told.set(counter as u32, own, 0).map_err(map_error(TOLD))?;
        }
        Ok(())
    }
}
