//! What another layout has left: what it knew comes over, and its programs come off.

use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use nix::errno::Errno;
use sidescope_common::{
    ALL_NAMESPACES, Causes, Counter, EdgeKey, EdgeState, HeadEvent, SourceAddr, SourceKey, loss_time, names,
};

use super::kernel::{BPF_NOEXIST, errno};
use super::pins::{Kind, Mark, PinError, entries_of, kind_of, remove_links};
use super::programs::HOOKS;
use super::proxies::in_map;
use super::records::{Event, Malformed};
use super::{ProbeError, Probes, drain, entries, layout, map_error, now_ns, told, typed};

/// Cookies of sockets count up from zero; those with this bit are free to stand for the same sockets as other programs see them.
const SEEN_BY_OTHERS: u64 = 1 << 63;

/// A folder of another layout, or of one that was not finished.
#[derive(Debug)]
pub struct Other {
    pub(super) dir: PathBuf,
    /// Its name.
    pub name: String,
    /// Its agent was killed before it had reported all that it had read.
    pub killed: bool,
}

/// What came over.
#[derive(Debug, Default)]
pub struct Drained {
    /// Edges that came into the own set.
    pub moved: usize,
    /// Those that did not: the own set has them already, which the programs may be writing, or has no room.
    pub kept: Vec<(EdgeKey, EdgeState)>,
    /// Proxies for which the own map has no room.
    pub proxies_beyond: u64,
    /// What could not be read, and why.
    pub lost: Option<String>,
}

impl Other {
    pub(super) fn found(dir: PathBuf, name: String) -> Result<Self, PinError> {
        let mut attached = false;
        for hook in HOOKS {
            attached |= kind_of(&dir.join(hook))? == Some(Kind::Pin);
        }
        let killed = attached && !Mark::Reported.is_set(&dir)?;
        Ok(Self { dir, name, killed })
    }

    /// Hands what is in its ring to `handle`. Nothing, where there is none that can be read: [`Self::drain`] tells.
    pub fn read_ring(&self, handle: impl FnMut(Result<Event<'_>, Malformed>)) {
        if layout::is_readable(&self.name) {
            drop(self.take_ring(handle));
        }
    }

    /// Its edges as they are now, likewise.
    pub fn edges(&self) -> Vec<(EdgeKey, EdgeState)> {
        if !layout::is_readable(&self.name) {
            return Vec::new();
        }
        self.map(names::EDGES).and_then(|edges| entries(&edges, names::EDGES)).unwrap_or_default()
    }

    /// The proxies that its programs know, likewise.
    pub fn proxies(&self) -> Vec<(Option<u64>, u32)> {
        if !layout::is_readable(&self.name) {
            return Vec::new();
        }
        self.map(names::PROXY_UIDS).and_then(|uids| in_map(&uids)).unwrap_or_default()
    }

    /// Takes its programs off, hands the rest of its ring to `handle`, and moves its edges, its proxies, its sources and its counters
    /// over. The programs of `into` must be attached, and know the connections that are older: what these no longer see, the others
    /// do.
    ///
    /// # Errors
    /// When the programs cannot be taken off, or when `into` cannot be written. What cannot be read is in [`Drained::lost`].
    pub fn drain(
        &self,
        into: &mut Probes,
        handle: impl FnMut(Result<Event<'_>, Malformed>),
    ) -> Result<Drained, PinError> {
        let links = remove_links(&self.dir)?;
        let left = entries_of(&self.dir)?;
        let mut drained = Drained::default();
        if !layout::is_readable(&self.name) {
            if links > 0 || !left.is_empty() {
                drained.lost = Some("this build does not know the version of its layout".to_owned());
            }
            return Ok(drained);
        }
        // Maps are pinned before links, edges first, and removed in that order when all was read: what has neither has nothing to tell.
        if links == 0 && !left.iter().any(|(name, _)| name == names::EDGES) {
            return Ok(drained);
        }
        // Such a folder may be one that was not finished, without all maps.
        let in_use = |name: &str| links > 0 || left.iter().any(|(left, _)| left == name);
        let mut lost = None;
        let mut failed = |err: ProbeError| {
            lost.get_or_insert_with(|| with_causes(&err));
        };
        // The ring first: names in DNS answers are looked up when an edge comes.
        if in_use(names::EVENTS) {
            self.take_ring(handle).unwrap_or_else(&mut failed);
        }
        let mut counted = Causes::default();
        if in_use(names::COUNTERS) {
            match self.map(names::COUNTERS) {
                Ok(counters) => counted = into.add_counters(&counters, &self.told())?,
                Err(err) => failed(err),
            }
        }
        // Where an earlier build did not note whom they hit, losses may have hit anyone.
        if left.iter().any(|(name, _)| name == names::LOSSES) {
            self.map(names::LOSSES).and_then(|losses| into.add_losses(&losses)).unwrap_or_else(&mut failed);
        } else {
            into.note_earlier(ALL_NAMESPACES, counted)?;
        }
        if in_use(names::EDGES) {
            match self.map(names::EDGES) {
                Ok(edges) => (drained.moved, drained.kept) = into.add_edges(&edges)?,
                Err(err) => failed(err),
            }
        }
        if in_use(names::PROXY_UIDS) {
            match self.map::<HashMap<_, u32, u64>>(names::PROXY_UIDS) {
                Ok(uids) => drained.proxies_beyond = copy(&uids, &mut into.proxy_uids, names::PROXY_UIDS)?,
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

    /// What was read of it so far has been reported, or is missed by an agent that was killed, and that is told.
    ///
    /// # Errors
    /// When the mark cannot be made.
    pub fn mark_reported(&self) -> Result<(), PinError> {
        Mark::Reported.set(&self.dir)
    }

    /// Both layouts may hand on pieces of the same request, which make no whole.
    fn take_ring(&self, mut handle: impl FnMut(Result<Event<'_>, Malformed>)) -> Result<(), ProbeError> {
        let mut ring: RingBuf<MapData> = self.map(names::EVENTS)?;
        drain(&mut ring, usize::MAX, |record| {
            handle(record.map(|event| match event {
                Event::Head(head, bytes) => {
                    Event::Head(HeadEvent { socket: head.socket | SEEN_BY_OTHERS, ..head }, bytes)
                }
                other => other,
            }));
        });
        Ok(())
    }

    /// Where no agent has told anything, all is to be told.
    fn told(&self) -> told::Counts {
        told::open(&self.dir).and_then(|told| told::read(&told)).unwrap_or_default()
    }

    fn map<M: TryFrom<Map, Error = MapError>>(&self, name: &'static str) -> Result<M, ProbeError> {
        pinned(&self.dir, name).and_then(|map| typed(map, name))
    }
}

/// A map by its pin.
pub(super) fn pinned(dir: &Path, name: &'static str) -> Result<Map, ProbeError> {
    let path = dir.join(name);
    // The kernel would follow a link.
    if !std::fs::symlink_metadata(&path).map_err(|err| map_error(name)(err.into()))?.is_file() {
        let err = std::io::Error::other(format!("{} is no pin", path.display()));
        return Err(map_error(name)(err.into()));
    }
    MapData::from_pin(path).and_then(Map::from_map_data).map_err(map_error(name))
}

impl Probes {
    /// Adds what other programs have counted and no agent has told, and returns which causes they have counted at all. Those of an
    /// earlier build may count fewer of them.
    fn add_counters(
        &mut self,
        counters: &PerCpuArray<MapData, u64>,
        told: &told::Counts,
    ) -> Result<Causes, ProbeError> {
        let mut causes = Causes::default();
        for (at, values) in counters.iter().enumerate().take(told.len()) {
            let counted: u64 = values.map_err(map_error(names::COUNTERS))?.iter().sum();
            self.earlier[at] += counted.saturating_sub(told[at]);
            // When it was is not known.
            causes[at] = if counted > 0 { loss_time(now_ns()) } else { 0 };
        }
        Ok(causes)
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
            *known = new.max(*known);
        }
        Ok(())
    }

    /// Moves edges into the own set, which keeps them if this process dies; returns how many, and those that are there already or
    /// have no room. What is there is left alone: the programs write it at the same time.
    fn add_edges(
        &mut self,
        edges: &HashMap<MapData, EdgeKey, EdgeState>,
    ) -> Result<(usize, Vec<(EdgeKey, EdgeState)>), ProbeError> {
        let (mut moved, mut kept) = (0, Vec::new());
        for edge in edges.iter() {
            let (key, state) = edge.map_err(map_error(names::EDGES))?;
            match self.edges.insert(key, state, BPF_NOEXIST) {
                Ok(()) => moved += 1,
                Err(err) if is_full(&err) => {
                    // Only this process knows it.
                    self.earlier[Counter::EdgesFull as usize] += 1;
                    kept.push((key, state));
                }
                Err(err) if errno(&err) == Some(Errno::EEXIST) => kept.push((key, state)),
                Err(err) => return Err(map_error(names::EDGES)(err)),
            }
        }
        Ok((moved, kept))
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
