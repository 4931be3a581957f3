//! The kernel boundary: loads the programs, attaches them, and reads their maps. Only here this crate has `unsafe`.
#![expect(unsafe_code, reason = "the kernel is asked here, and nowhere else")]

mod error;
mod kernel;
mod namespaces;
mod older;
mod proxies;
mod records;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{HashMap, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, ProgramInfo,
};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use sidescope_common::{Counter, EdgeKey, EdgeState, SourceAddr, SourceKey, names, part};
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

pub use error::ProbeError;
use kernel::{kernel_release, version_of};
pub use namespaces::{netns_cookie, user_namespace};
use older::Older;
use records::parse;
pub use records::{Event, Malformed};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidescope-ebpf"));

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

/// Programs that are attached: those that use the socket's storage first, those that fill it last.
const HOOKS: [&str; 6] =
    [names::INGRESS, names::EGRESS, names::SENDMSG4, names::SENDMSG6, names::CONNECT6, names::CONNECT4];

/// What holds a program to the cgroup, until it is dropped.
#[expect(dead_code, reason = "held for the sake of the drop")]
enum Link {
    SockAddr(CgroupSockAddrLink),
    Skb(CgroupSkbLink),
}

/// How often a program ran and for how long, while the kernel kept count (`kernel.bpf_stats_enabled`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunTime {
    /// Its name.
    pub program: &'static str,
    /// Runs. The parts that a program calls count as that program.
    pub runs: u64,
    /// Time in all of them.
    pub time: Duration,
}

/// The programs, and their maps. The programs are detached when this is dropped, and by the kernel when the process dies.
pub struct Probes {
    bpf: Ebpf,
    links: Vec<Link>,
    // The kernel empties a program array that nobody holds.
    _parts: ProgramArray<MapData>,
    edges: HashMap<MapData, EdgeKey, EdgeState>,
    sources: HashMap<MapData, SourceKey, SourceAddr>,
    cgroups: HashMap<MapData, u64, u64>,
    proxy_uids: HashMap<MapData, u32, u64>,
    counters: PerCpuArray<MapData, u64>,
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
        let kernel = kernel_release();
        if version_of(&kernel).is_some_and(|running| running < MIN_KERNEL) {
            return Err(ProbeError::KernelTooOld { found: kernel });
        }
        let mut bpf = EbpfLoader::new()
            .map_max_entries(names::EDGES, settings.edges)
            .map_max_entries(names::EVENTS, settings.ring_bytes)
            .load(OBJECT)
            .map_err(|err| refused(err, "create BPF maps", |err| ProbeError::Create(Box::new(err))))?;

        let map_error = |map| move |source| ProbeError::Map { map, source: Box::new(source) };
        let mut proxy_uids: HashMap<MapData, u32, u64> = take(&mut bpf, names::PROXY_UIDS)?;
        for uid in &settings.proxy_uids {
            proxy_uids.insert(uid, 0, 0).map_err(map_error(names::PROXY_UIDS))?;
        }
        let edges = take(&mut bpf, names::EDGES)?;
        let sources = take(&mut bpf, names::SOURCES)?;
        let cgroups = take(&mut bpf, names::CGROUPS)?;
        let counters = take(&mut bpf, names::COUNTERS)?;
        let older = Older::take(&mut bpf)?;
        let ring = take(&mut bpf, names::EVENTS)?;
        // SAFETY: the ring owns its descriptor and keeps it open and the same for as long as it lives.
        let ring = unsafe { AsyncFd::register(ring) }.map_err(|err| ProbeError::Wait(err.into()))?;

        for program in part::PROGRAMS.into_iter().map(|(_, program)| program).chain(HOOKS) {
            load(&mut bpf, program, &kernel)?;
        }
        let mut parts: ProgramArray<MapData> = take(&mut bpf, names::PARTS)?;
        for (index, name) in part::PROGRAMS {
            let program = <&CgroupSkb>::try_from(bpf.program(name).expect("loaded before"));
            let fd = program.and_then(|program| program.fd()).map_err(|err| attach_error(name, err))?;
            parts.set(index, fd, 0).map_err(map_error(names::PARTS))?;
        }
        Ok(Self {
            bpf,
            links: Vec::new(),
            _parts: parts,
            edges,
            sources,
            cgroups,
            proxy_uids,
            counters,
            older,
            ring,
        })
    }

    /// Attaches all programs to `cgroup`, a directory of a cgroup2 hierarchy.
    ///
    /// # Errors
    /// See [`ProbeError`]. Nothing stays attached after an error.
    pub fn attach_to(&mut self, cgroup: &File) -> Result<(), ProbeError> {
        let mut links = Vec::with_capacity(HOOKS.len());
        for program in HOOKS {
            links.push(attach(&mut self.bpf, program, cgroup)?);
        }
        self.links.append(&mut links);
        Ok(())
    }

    /// Takes the programs off their cgroup; they and the maps stay loaded.
    pub fn detach(&mut self) {
        self.links.clear();
    }

    /// What the kernel counted of each attached program; zeros unless it was told to keep count.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn run_times(&self) -> Result<Vec<RunTime>, ProbeError> {
        let run_time = |program| {
            let info = self.info(program)?;
            Ok(RunTime { program, runs: info.run_count(), time: info.run_time() })
        };
        HOOKS.into_iter().map(run_time).collect()
    }

    /// How many instructions the verifier walked to accept each program, its parts too; `None` before Linux 5.16.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn verified(&self) -> Result<Vec<(&'static str, Option<u32>)>, ProbeError> {
        let verified = |program| Ok((program, self.info(program)?.verified_instruction_count()));
        part::PROGRAMS.into_iter().map(|(_, name)| name).chain(HOOKS).map(verified).collect()
    }

    fn info(&self, program: &'static str) -> Result<ProgramInfo, ProbeError> {
        let info = self.bpf.program(program).expect("loaded before").info();
        info.map_err(|source| ProbeError::Info { program, source: Box::new(source) })
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

    /// Detaches the programs and hands all that they left in the ring to `handle`. The maps stay readable.
    pub fn end(&mut self, handle: impl FnMut(Result<Event<'_>, Malformed>)) {
        self.detach();
        self.drain(handle);
    }

    /// Tells the programs of a connection from before them, by the cookie of its socket: its edge comes into the set, and the hosts
    /// of its requests are looked for. False: there is no room.
    ///
    /// # Errors
    /// When the kernel refuses to write the maps.
    pub fn add_older(&mut self, socket: u64, edge: &EdgeKey) -> Result<bool, ProbeError> {
        self.older.add(&mut self.edges, socket, edge)
    }

    /// Such connections were closed; `any`: whether others may still be open.
    ///
    /// # Errors
    /// When the kernel refuses to write the maps.
    pub fn forget_older(&mut self, sockets: &[u64], any: bool) -> Result<(), ProbeError> {
        self.older.forget(sockets, any)
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

    /// What the kernel counted, summed over all CPUs.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn counter(&self, counter: Counter) -> Result<u64, ProbeError> {
        let values = self
            .counters
            .get(&(counter as u32), 0)
            .map_err(|source| ProbeError::Map { map: names::COUNTERS, source: Box::new(source) })?;
        Ok(values.iter().sum())
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
    map.iter()
        .collect::<Result<_, _>>()
        .map_err(|source| ProbeError::Map { map: name, source: Box::new(source) })
}

fn take<M>(bpf: &mut Ebpf, name: &'static str) -> Result<M, ProbeError>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    let map = bpf.take_map(name).expect("the object is built together with these names");
    M::try_from(map).map_err(|source| ProbeError::Map { map: name, source: Box::new(source) })
}

fn load(bpf: &mut Ebpf, name: &'static str, kernel: &str) -> Result<(), ProbeError> {
    use aya::programs::Program;
    let result = match bpf.program_mut(name) {
        Some(Program::CgroupSockAddr(program)) => program.load(),
        Some(Program::CgroupSkb(program)) => program.load(),
        other => unreachable!("the object is built together with these names: {name} is {other:?}"),
    };
    result.map_err(|err| {
        refused(err, "load BPF programs", |err| ProbeError::Load {
            program: name,
            kernel: kernel.to_owned(),
            source: Box::new(err),
        })
    })
}

fn attach(bpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<Link, ProbeError> {
    // The mode of the flag API: a link on a cgroup is always beside others, and the kernel takes no flag for it.
    let mode = CgroupAttachMode::Single;
    let program = bpf.program_mut(name).expect("loaded before");
    let fd = cgroup.as_fd();
    let link = || match name {
        names::EGRESS | names::INGRESS => {
            let direction = if name == names::EGRESS {
                CgroupSkbAttachType::Egress
            } else {
                CgroupSkbAttachType::Ingress
            };
            let program = <&mut CgroupSkb>::try_from(program)?;
            let id = program.attach(fd, direction, mode)?;
            program.take_link(id).map(Link::Skb)
        }
        _ => {
            let program = <&mut CgroupSockAddr>::try_from(program)?;
            let id = program.attach(fd, mode)?;
            program.take_link(id).map(Link::SockAddr)
        }
    };
    link().map_err(|err| refused(err, "attach BPF programs", |err| attach_error(name, err)))
}

fn attach_error(program: &'static str, err: ProgramError) -> ProbeError {
    ProbeError::Attach { program, source: Box::new(err) }
}

/// Tells a want of rights from everything else.
fn refused<E: std::error::Error + 'static>(
    err: E,
    action: &'static str,
    otherwise: impl FnOnce(E) -> ProbeError,
) -> ProbeError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&err);
    while let Some(current) = cause {
        if let Some(io) = current.downcast_ref::<io::Error>()
            && io.raw_os_error() == Some(Errno::EPERM as i32)
        {
            return ProbeError::NotPermitted { action };
        }
        cause = current.source();
    }
    otherwise(err)
}
