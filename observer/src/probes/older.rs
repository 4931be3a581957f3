//! What the programs are told of connections that they have no search for.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData};
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use sidescope_common::{EdgeKey, EdgeState, names};

use super::kernel::{BPF_NOEXIST, errno};
use super::{ProbeError, map_error, remove, typed};

/// The maps that user space writes while the programs run.
pub(super) struct Older {
    edges: HashMap<MapData, u64, EdgeKey>,
    ports: Array<MapData, u64>,
    /// The port of each connection that the programs were told of.
    told: BTreeMap<u64, u16>,
    /// The id of the last edge that was put into the set here.
    last_id: u64,
}

impl Older {
    pub(super) fn open(
        mut map: impl FnMut(&'static str) -> Result<Map, ProbeError>,
    ) -> Result<Self, ProbeError> {
        let edges: HashMap<_, u64, EdgeKey> = typed(map(names::OLDER)?, names::OLDER)?;
        let told = edges.iter().map(|entry| entry.map(|(socket, edge)| (socket, edge.port)));
        let told = told.collect::<Result<_, _>>().map_err(map_error(names::OLDER))?;
        Ok(Self { edges, ports: typed(map(names::OLDER_PORTS)?, names::OLDER_PORTS)?, told, last_id: 0 })
    }

    /// With the network namespace of each.
    pub(super) fn sockets(&self) -> Result<Vec<(u64, u64)>, ProbeError> {
        let sockets = self.edges.iter().map(|entry| entry.map(|(socket, edge)| (socket, edge.netns)));
        sockets.collect::<Result<_, _>>().map_err(map_error(names::OLDER))
    }

    /// False: one of the maps is full.
    pub(super) fn add(
        &mut self,
        set: &mut HashMap<MapData, EdgeKey, EdgeState>,
        socket: u64,
        edge: &EdgeKey,
    ) -> Result<bool, ProbeError> {
        let first_ns = self.next_id();
        // No connect was seen: its time and number are none.
        let state = EdgeState {
            first_ns,
            last_ns: 0,
            connects: 0,
            tick: 0,
            spent: 0,
            names: 0,
            reserved: 0,
            window: 0,
            heads: 0,
            flags: 0,
            unsearched: 0,
        };
        let known = match set.insert(edge, state, BPF_NOEXIST) {
            Err(err) if errno(&err) == Some(Errno::EEXIST) => Ok(()),
            other => other,
        };
        let mut inserted = known.map_err(|err| (names::EDGES, err));
        if inserted.is_ok() {
            inserted = self.edges.insert(socket, edge, 0).map_err(|err| (names::OLDER, err));
        }
        match inserted {
            Ok(()) => {
                self.told.insert(socket, edge.port);
                let (word, bit) = place(edge.port);
                let known = self.ports.get(&word, 0).map_err(map_error(names::OLDER_PORTS))?;
                self.set(word, known | bit).map(|()| true)
            }
            Err((_, err)) if matches!(errno(&err), Some(Errno::E2BIG | Errno::ENOMEM)) => Ok(false),
            Err((map, source)) => Err(ProbeError::Map { map, source: Box::new(source) }),
        }
    }

    pub(super) fn forget(&mut self, sockets: &[u64]) -> Result<(), ProbeError> {
        let mut words = BTreeMap::new();
        for socket in sockets {
            if let Some(port) = self.told.remove(socket) {
                words.insert(place(port).0, 0);
            }
            remove(&mut self.edges, socket, names::OLDER)?;
        }
        for port in self.told.values() {
            let (word, bit) = place(*port);
            words.entry(word).and_modify(|ports| *ports |= bit);
        }
        words.into_iter().try_for_each(|(word, ports)| self.set(word, ports))
    }

    fn set(&mut self, word: u32, ports: u64) -> Result<(), ProbeError> {
        self.ports.set(word, ports, 0).map_err(map_error(names::OLDER_PORTS))
    }

    /// The programs make an edge's id of the time and, in the low byte, the CPU; so many CPUs share that byte that 255 is as good as
    /// another, and the time keeps these apart.
    fn next_id(&mut self) -> u64 {
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
        let now = Duration::from(now).as_nanos() as u64 | 0xff;
        self.last_id = now.max(self.last_id + 0x100);
        self.last_id
    }
}

/// The word of a port, and its bit there.
fn place(port: u16) -> (u32, u64) {
    (u32::from(port) / 64, 1 << (port % 64))
}
