//! The kernel boundary: loads the programs, attaches them, and reads their maps. Only here this crate has `unsafe`.
#![expect(unsafe_code, reason = "the kernel is asked here, and nowhere else")]

mod attached;
mod error;
mod forget;
mod kernel;
mod layout;
mod link;
mod namespaces;
mod older;
mod other;
pub mod pins;
mod programs;
mod proxies;
mod records;
mod times;
mod told;

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf};
use nix::errno::Errno;
use sidescope_common::{
    ALL_NAMESPACES, Causes, Counter, EdgeKey, EdgeState, HostKey, SourceAddr, SourceKey, names,
};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

pub use error::ProbeError;
use forget::remove;
pub use kernel::now_ns;
use kernel::{BPF_NOEXIST, errno};
pub use namespaces::{netns_cookie, user_namespace};
use older::Older;
pub use programs::RunTime;
use programs::{HOOKS, OBJECT, Programs};
use records::parse;
pub use records::{Event, Malformed};
pub use times::Times;
use told::Counts;

/// Oldest kernel whose hooks have all that the programs call.
pub const MIN_KERNEL: (u16, u16) = (5, 10);

/// What a user can set of the kernel side.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Users whose connections are a proxy's own and make no edge.
    pub proxy_uids: Vec<u32>,
    /// Edges that the set holds.
    pub edges: u32,
    /// Size of the ring buffer in bytes: a power of two, at least a page.
    pub ring_bytes: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            proxy_uids: vec![1337],
            edges: sidescope_common::DEFAULT_EDGES,
            ring_bytes: sidescope_common::DEFAULT_RING_BYTES,
        }
    }
}

/// How long a record may wait in the ring before it is read.
pub const POLL: Duration = Duration::from_millis(20);

/// The maps of the programs. If this process has loaded the programs, they are detached when this is dropped, and by the kernel when
/// the process dies; what was pinned stays.
pub struct Probes {
    /// None where pins hold them.
    programs: Option<Programs>,
    edges: HashMap<MapData, EdgeKey, EdgeState>,
    hosts: HashMap<MapData, HostKey, u64>,
    sources: HashMap<MapData, SourceKey, SourceAddr>,
    cgroups: HashMap<MapData, u64, u64>,
    proxy_uids: HashMap<MapData, u32, u64>,
    counters: PerCpuArray<MapData, u64>,
    losses: HashMap<MapData, u64, Causes>,
    /// What programs counted whose maps are gone.
    earlier: Counts,
    /// What the agents before this one have told of the counters.
    before: Counts,
    /// None where nobody goes on with them.
    told: Option<Array<MapData, u64>>,
    /// Likewise.
    times: Option<Array<MapData, u64>>,
    /// Whom the losses have hit that earlier programs counted.
    earlier_losses: BTreeMap<u64, Causes>,
    older: Older,
    ring: AsyncFd<RingBuf<MapData>>,
}

impl Probes {
    /// Loads the programs and attaches them to `cgroup`, a directory of a cgroup2 hierarchy.
    ///
    /// # Errors
    /// See [`ProbeError`]. Nothing stays attached after an error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn attach(cgroup: &File, settings: &Settings) -> Result<Self, ProbeError> {
        let mut probes = Self::load(settings)?;
        probes.attach_to(cgroup)?;
        Ok(probes)
    }

    /// Loads the programs, and attaches none.
    ///
    /// # Errors
    /// See [`ProbeError`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn load(settings: &Settings) -> Result<Self, ProbeError> {
        let mut programs = Programs::load(settings)?;
        let mut probes = Self::open(settings, |name| Ok(programs.take(name)))?;
        programs.connect_parts()?;
        probes.programs = Some(programs);
        Ok(probes)
    }

    /// Opens the maps, wherever they are.
    fn open(
        settings: &Settings,
        mut map: impl FnMut(&'static str) -> Result<Map, ProbeError>,
    ) -> Result<Self, ProbeError> {
        let mut proxy_uids: HashMap<MapData, u32, u64> = typed(map(names::PROXY_UIDS)?, names::PROXY_UIDS)?;
        for uid in &settings.proxy_uids {
            proxy_uids.insert(uid, 0, 0).map_err(map_error(names::PROXY_UIDS))?;
        }
        let mut losses: HashMap<MapData, u64, Causes> = typed(map(names::LOSSES)?, names::LOSSES)?;
        match losses.insert(ALL_NAMESPACES, Causes::default(), BPF_NOEXIST) {
            Err(err) if errno(&err) != Some(Errno::EEXIST) => return Err(map_error(names::LOSSES)(err)),
            _ => {}
        }
        let ring = typed(map(names::EVENTS)?, names::EVENTS)?;
        Ok(Self {
            programs: None,
            edges: typed(map(names::EDGES)?, names::EDGES)?,
            hosts: typed(map(names::HOSTS)?, names::HOSTS)?,
            sources: typed(map(names::SOURCES)?, names::SOURCES)?,
            cgroups: typed(map(names::CGROUPS)?, names::CGROUPS)?,
            proxy_uids,
            counters: typed(map(names::COUNTERS)?, names::COUNTERS)?,
            losses,
            earlier: Counts::default(),
            before: Counts::default(),
            told: None,
            times: None,
            earlier_losses: BTreeMap::new(),
            older: Older::open(map)?,
            // SAFETY: the ring owns its descriptor and keeps it open and the same for as long as it lives.
            ring: unsafe { AsyncFd::register(ring) }.map_err(|err| ProbeError::Wait(err.into()))?,
        })
    }

    /// Attaches all programs that this process has loaded to `cgroup`, a directory of a cgroup2 hierarchy.
    ///
    /// # Errors
    /// See [`ProbeError`]. Nothing stays attached after an error.
    pub fn attach_to(&mut self, cgroup: &File) -> Result<(), ProbeError> {
        self.programs.as_mut().map_or(Ok(()), |programs| programs.attach_to(cgroup))
    }

    /// Takes the programs that this process has loaded off their cgroup; they and the maps stay loaded.
    pub fn detach(&mut self) {
        if let Some(programs) = &mut self.programs {
            programs.detach();
        }
    }

    /// What the kernel counted of each program that this process has loaded; zeros unless it was told to keep count.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn run_times(&self) -> Result<Vec<RunTime>, ProbeError> {
        self.programs.as_ref().map_or(Ok(Vec::new()), Programs::run_times)
    }

    /// How many instructions the verifier walked to accept each program that this process has loaded, its parts too; `None` before
    /// Linux 5.16.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verified(&self) -> Result<Vec<(&'static str, Option<u32>)>, ProbeError> {
        self.programs.as_ref().map_or(Ok(Vec::new()), Programs::verified)
    }

    /// Waits for records and hands them to `handle`, at most `limit` of them; returns how many. Nothing is lost when this is dropped
    /// while it waits.
    ///
    /// The programs wake the reader only when the ring fills: to wake it for every record would cost the workload that connects
    /// more than everything else. What comes before that waits for [`POLL`] at most.
    ///
    /// # Errors
    /// When the runtime cannot wait for the ring.
    pub async fn next(
        &mut self,
        limit: usize,
        handle: impl FnMut(Result<Event<'_>, Malformed>),
    ) -> Result<usize, ProbeError> {
        let Ok(ready) = timeout(POLL, self.ring.readable_mut()).await else {
            return Ok(drain(self.ring.get_mut(), limit, handle));
        };
        let mut guard = ready.map_err(ProbeError::Wait)?;
        let taken = drain(guard.get_inner_mut(), limit, handle);
        // With records left, come back at once.
        if taken < limit {
            guard.clear_ready();
        }
        Ok(taken)
    }

    /// Hands all records that are in the ring to `handle`.
    pub fn drain(&mut self, handle: impl FnMut(Result<Event<'_>, Malformed>)) {
        drain(self.ring.get_mut(), usize::MAX, handle);
    }

    /// Tells the programs of a connection that has no search, by the cookie of its socket: its edge comes into the set, and the
    /// hosts of its requests are looked for. One that has a search goes on with that. False: there is no room.
    ///
    /// # Errors
    /// When the kernel refuses to write the maps.
    pub fn add_older(&mut self, socket: u64, edge: &EdgeKey) -> Result<bool, ProbeError> {
        self.older.add(&mut self.edges, socket, edge)
    }

    /// Such connections were closed.
    ///
    /// # Errors
    /// When the kernel refuses to write the maps.
    pub fn forget_older(&mut self, sockets: &[u64]) -> Result<(), ProbeError> {
        self.older.forget(sockets)
    }

    /// Sockets that the programs were told of, each with its network namespace.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn older(&self) -> Result<Vec<(u64, u64)>, ProbeError> {
        self.older.sockets()
    }

    /// Lets the programs announce every host once more.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn forget_hosts(&mut self) -> Result<(), ProbeError> {
        let hosts: Result<Vec<HostKey>, _> = self.hosts.keys().collect();
        for host in hosts.map_err(map_error(names::HOSTS))? {
            remove(&mut self.hosts, &host, names::HOSTS)?;
        }
        Ok(())
    }

    /// The edge set. Edges that come while it is read may be missing.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn edges(&self) -> Result<Vec<(EdgeKey, EdgeState)>, ProbeError> {
        entries(&self.edges, names::EDGES)
    }

    /// Local addresses by network namespace.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn sources(&self) -> Result<Vec<(SourceKey, SourceAddr)>, ProbeError> {
        entries(&self.sources, names::SOURCES)
    }

    /// By network namespace, the id of the cgroup of a program that connected there.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn cgroups(&self) -> Result<Vec<(u64, u64)>, ProbeError> {
        entries(&self.cgroups, names::CGROUPS)
    }

    /// Which losses have hit which network namespaces, or all of them, since the programs were loaded or those that they have
    /// replaced.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn losses(&self) -> Result<Vec<(u64, Causes)>, ProbeError> {
        let mut losses = entries(&self.losses, names::LOSSES)?;
        losses.extend(self.earlier_losses.iter().map(|(netns, causes)| (*netns, *causes)));
        Ok(losses)
    }

    /// What the kernel counted, summed over all CPUs, and by programs that these have replaced; of losses, what no agent before this one
    /// has told.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counter(&self, counter: Counter) -> Result<u64, ProbeError> {
        let index = counter as usize;
        let values = self.counters.get(&(counter as u32), 0).map_err(map_error(names::COUNTERS))?;
        Ok(self.earlier[index] + values.iter().sum::<u64>().saturating_sub(self.before[index]))
    }
}

fn drain(
    ring: &mut RingBuf<MapData>,
    limit: usize,
    mut handle: impl FnMut(Result<Event<'_>, Malformed>),
) -> usize {
    let mut taken = 0;
    while taken < limit {
        let Some(record) = ring.next() else { break };
        handle(parse(&record));
        taken += 1;
    }
    taken
}

fn entries<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<Vec<(K, V)>, ProbeError> {
    map.iter().collect::<Result<_, _>>().map_err(map_error(name))
}

/// A map of this type, with keys and values of these sizes.
fn typed<M>(map: Map, name: &'static str) -> Result<M, ProbeError>
where
    M: TryFrom<Map, Error = MapError>,
{
    M::try_from(map).map_err(map_error(name))
}

fn map_error(map: &'static str) -> impl Fn(MapError) -> ProbeError {
    move |source| ProbeError::Map { map, source: Box::new(source) }
}
