//! What another layout has left: its programs come off, and what it knew comes over.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use nix::errno::Errno;
use sidescope_common::{ALL_NAMESPACES, Causes, Counter, EdgeKey, EdgeState, SourceAddr, SourceKey, names};

use super::kernel::{BPF_EXIST, BPF_NOEXIST, errno};
use super::pins::{Mark, PinError, entries_of, remove_links};
use super::records::{Event, Malformed};
use super::{ProbeError, Probes, drain, layout, map_error, typed};

/// A folder of another layout, or of one that was not finished.
#[derive(Debug)]
pub struct Other {
    pub(super) dir: PathBuf,
    /// Its name.
    pub name: String,
}

/// What came over.
#[derive(Debug, Default)]
pub struct Drained {
    /// Edges that came into the own set.
    pub edges: usize,
    /// Edges for which the own set has no room.
    pub beyond: Vec<(EdgeKey, EdgeState)>,
    /// Its agent was killed before it had reported all that it had read.
    pub killed: bool,
    /// What could not be read, and why.
    pub lost: Option<String>,
}

impl Other {
    /// Takes its programs off, hands the rest of its ring to `handle`, and moves its edges, its sources and its counters over. The
    /// programs of `into` must be attached: a connect that these no longer see, the others do.
    ///
    /// # Errors
    /// When the programs cannot be taken off, or when `into` cannot be written. What cannot be read is in [`Drained::lost`].
    pub fn drain(
        &self,
        into: &mut Probes,
        handle: impl FnMut(Result<Event<'_>, Malformed>),
    ) -> Result<Drained, PinError> {
        let links = remove_links(&self.dir)?;
        let left: BTreeSet<String> = entries_of(&self.dir)?.into_iter().collect();
        let killed = links > 0 && !Mark::Reported.is_set(&self.dir);
        let mut drained = Drained { killed, ..Drained::default() };
        if !layout::is_readable(&self.name) {
            if links > 0 || !left.is_empty() {
                drained.lost = Some("this build does not know the version of its layout".to_owned());
            }
            return Ok(drained);
        }
        // Maps are pinned before links: what has neither was never in use.
        let in_use = |name: &str| links > 0 || left.contains(name);
        let mut lost = None;
        let mut failed = |err: ProbeError| {
            lost.get_or_insert_with(|| with_causes(&err));
        };
        // The ring first: names in DNS answers are looked up when an edge comes.
        if in_use(names::EVENTS) {
            match self.map::<RingBuf<MapData>>(names::EVENTS) {
                Ok(mut ring) => drop(drain(&mut ring, usize::MAX, handle)),
                Err(err) => failed(err),
            }
        }
        if in_use(names::COUNTERS) {
            self.map(names::COUNTERS)
                .and_then(|counters| into.add_counters(&counters))
                .unwrap_or_else(&mut failed);
        }
        // Where an earlier build did not note whom they hit, losses may have hit anyone.
        if left.contains(names::LOSSES) {
            self.map(names::LOSSES).and_then(|losses| into.add_losses(&losses)).unwrap_or_else(&mut failed);
        } else {
            into.note_earlier(ALL_NAMESPACES, into.earlier_causes())?;
        }
        if in_use(names::EDGES) {
            match self.map(names::EDGES) {
                Ok(edges) => (drained.edges, drained.beyond) = into.add_edges(&edges)?,
                Err(err) => failed(err),
            }
        }
        // Without these an edge whose pod is gone would belong to nobody.
        let mut full = 0;
        if in_use(names::SOURCES) {
            match self.map::<HashMap<_, SourceKey, SourceAddr>>(names::SOURCES) {
                Ok(sources) => full += copy(&sources, &mut into.sources, names::SOURCES)?,
                Err(err) => failed(err),
            }
        }
        if in_use(names::CGROUPS) {
            match self.map::<HashMap<_, u64, u64>>(names::CGROUPS) {
                Ok(cgroups) => full += copy(&cgroups, &mut into.cgroups, names::CGROUPS)?,
                Err(err) => failed(err),
            }
        }
        into.earlier[Counter::SourcesFull as usize] += full;
        drained.lost = lost;
        Ok(drained)
    }

    fn map<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, ProbeError> {
        pinned(&self.dir, name).and_then(|map| typed(map, name))
    }
}

/// A map by its pin.
pub(super) fn pinned(dir: &Path, name: &'static str) -> Result<Map, ProbeError> {
    MapData::from_pin(dir.join(name)).and_then(Map::from_map_data).map_err(map_error(name))
}

impl Probes {
    /// Adds what other programs have counted. Those of an earlier build may count fewer causes.
    fn add_counters(&mut self, counters: &PerCpuArray<MapData, u64>) -> Result<(), ProbeError> {
        for (earlier, values) in self.earlier.iter_mut().zip(counters.iter()) {
            *earlier += values.map_err(map_error(names::COUNTERS))?.iter().sum::<u64>();
        }
        Ok(())
    }

    /// Causes that programs have counted whose maps are gone.
    fn earlier_causes(&self) -> Causes {
        let mut causes = Causes::default();
        for counter in Counter::ALL {
            causes[counter as usize] = u8::from(self.earlier[counter as usize] > 0);
        }
        causes
    }

    /// Takes over whom losses have hit.
    fn add_losses(&mut self, losses: &HashMap<MapData, u64, Causes>) -> Result<(), ProbeError> {
        for entry in losses.iter() {
            let (netns, causes) = entry.map_err(map_error(names::LOSSES))?;
            self.note_earlier(netns, causes)?;
        }
        Ok(())
    }

    /// In the own map, where the next agent finds it, and, because the programs write there meanwhile, in memory.
    fn note_earlier(&mut self, netns: u64, causes: Causes) -> Result<(), ProbeError> {
        match self.losses.insert(netns, causes, BPF_NOEXIST) {
            Err(err) if errno(&err) != Some(Errno::EEXIST) && !is_full(&err) => {
                return Err(map_error(names::LOSSES)(err));
            }
            _ => {}
        }
        let known = self.earlier_losses.entry(netns).or_default();
        for (known, new) in known.iter_mut().zip(causes) {
            *known |= new;
        }
        Ok(())
    }

    /// Moves edges into the own set, which keeps them if this process dies before it could report them; returns how many, and those
    /// that have no room.
    fn add_edges(
        &mut self,
        edges: &HashMap<MapData, EdgeKey, EdgeState>,
    ) -> Result<(usize, Vec<(EdgeKey, EdgeState)>), ProbeError> {
        let (mut moved, mut beyond) = (0, Vec::new());
        for edge in edges.iter() {
            let (key, state) = edge.map_err(map_error(names::EDGES))?;
            let inserted = match self.edges.insert(key, state, BPF_NOEXIST) {
                Err(err) if errno(&err) == Some(Errno::EEXIST) => {
                    let own = self.edges.get(&key, 0).map_err(map_error(names::EDGES))?;
                    self.edges.insert(key, merged(&own, &state), BPF_EXIST)
                }
                other => other,
            };
            match inserted {
                Ok(()) => moved += 1,
                Err(err) if is_full(&err) => beyond.push((key, state)),
                Err(err) => return Err(map_error(names::EDGES)(err)),
            }
        }
        Ok((moved, beyond))
    }
}

/// An edge that both sets have. A connect in the short time in which both programs run counts twice.
fn merged(own: &EdgeState, other: &EdgeState) -> EdgeState {
    EdgeState {
        last_ns: own.last_ns.max(other.last_ns),
        connects: own.connects + other.connects,
        flags: own.flags | other.flags,
        unsearched: own.unsearched | other.unsearched,
        ..*own
    }
}

/// Copies what the own map does not have; returns how many had no room.
fn copy<K: aya::Pod, V: aya::Pod>(
    from: &HashMap<MapData, K, V>,
    to: &mut HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<u64, ProbeError> {
    let mut full = 0;
    for entry in from.iter() {
        let (key, value) = entry.map_err(map_error(name))?;
        match to.insert(key, value, BPF_NOEXIST) {
            Err(err) if is_full(&err) => full += 1,
            Err(err) if errno(&err) != Some(Errno::EEXIST) => return Err(map_error(name)(err)),
            _ => {}
        }
    }
    Ok(full)
}

/// An error on one line.
pub(super) fn with_causes(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text = format!("{text}: {err}");
        cause = err.source();
    }
    text
}

fn is_full(err: &MapError) -> bool {
    matches!(errno(err), Some(Errno::E2BIG | Errno::ENOMEM))
}

#[cfg(test)]
mod tests {
    use sidescope_common::edge_flags::HOST_UNKNOWN;

    use super::*;

    #[test]
    fn an_edge_of_both_sets_keeps_its_id_and_all_that_is_known() {
        let own = EdgeState {
            first_ns: 10,
            last_ns: 30,
            connects: 2,
            settled_tick: 0,
            window: 3,
            heads: 4,
            flags: 0,
            unsearched: 1,
        };
        let other = EdgeState {
            first_ns: 5,
            last_ns: 20,
            connects: 40,
            settled_tick: 0,
            window: 9,
            heads: 9,
            flags: HOST_UNKNOWN,
            unsearched: 0,
        };
        let expected = EdgeState { connects: 42, flags: HOST_UNKNOWN, ..own };
        assert_eq!(merged(&own, &other), expected);
        assert_eq!(merged(&EdgeState { last_ns: 1, ..own }, &other).last_ns, 20);
    }
}
