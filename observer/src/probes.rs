//! The kernel boundary: loads the programs, attaches them, and reads their maps. The only file of this crate with `unsafe`.
#![expect(unsafe_code, reason = "records of the kernel are read byte for byte here, and nowhere else")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

use aya::maps::{HashMap, MapData, PerCpuArray, ProgramArray, RingBuf};
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, SockOps,
};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nix::errno::Errno;
use sidescope_common::{
    Counter, DnsEvent, EdgeEvent, EdgeKey, EdgeState, HeadEvent, SourceAddr, SourceKey, event_kind, names,
    part,
};
use tokio::io::unix::AsyncFd;

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

/// Programs that are attached: those that use the socket's storage first, those that fill it last.
const HOOKS: [&str; 7] = [
    names::INGRESS,
    names::EGRESS,
    names::SOCK_OPS,
    names::SENDMSG4,
    names::SENDMSG6,
    names::CONNECT6,
    names::CONNECT4,
];

/// Why the programs cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The kernel is older than [`MIN_KERNEL`].
    #[error(
        "this kernel is {found}, Sidescope needs {}.{} or later: its hooks lack the network namespace cookie and the socket \
         storage that the programs use",
        MIN_KERNEL.0, MIN_KERNEL.1
    )]
    KernelTooOld {
        /// Version of the running kernel.
        found: String,
    },
    /// The kernel refused for want of rights.
    #[error(
        "the kernel does not let this user {action}: run as root, or with the capabilities BPF and NET_ADMIN"
    )]
    NotPermitted {
        /// What was tried.
        action: &'static str,
    },
    /// The programs and maps could not be created.
    #[error("cannot create the kernel programs and maps")]
    Create(#[source] Box<EbpfError>),
    /// A program was refused, by the verifier for instance.
    #[error("kernel {kernel} refused the program {program}; please report this with the text below")]
    Load {
        /// Name of the program.
        program: &'static str,
        /// Version of the running kernel.
        kernel: String,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached.
    #[error("cannot attach the program {program} to the cgroup")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<ProgramError>,
    },
    /// A map could not be read or written.
    #[error("cannot access the map {map}")]
    Map {
        /// Name of the map.
        map: &'static str,
        /// What the kernel said.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// The event loop cannot wait for the ring buffer.
    #[error("cannot wait for the ring buffer")]
    Wait(#[source] io::Error),
}

/// A record from the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An edge that was not in the set.
    Edge(EdgeEvent),
    /// Bytes of a request. They lie in the ring and are gone when the callback returns.
    Head(HeadEvent, &'a [u8]),
    /// A DNS message that a workload received, likewise.
    Dns(DnsEvent, &'a [u8]),
}

/// A record that is not what its first word says: programs and user space do not belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The programs, attached. They are detached when this is dropped, and by the kernel when the process dies.
pub struct Probes {
    // Holds the links.
    _bpf: Ebpf,
    // The kernel empties a program array that nobody holds.
    _parts: ProgramArray<MapData>,
    edges: HashMap<MapData, EdgeKey, EdgeState>,
    sources: HashMap<MapData, SourceKey, SourceAddr>,
    cgroups: HashMap<MapData, u64, u64>,
    counters: PerCpuArray<MapData, u64>,
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
        let mut proxy_uids: HashMap<MapData, u32, u8> = take(&mut bpf, names::PROXY_UIDS)?;
        for uid in &settings.proxy_uids {
            proxy_uids.insert(uid, 1, 0).map_err(map_error(names::PROXY_UIDS))?;
        }
        let edges = take(&mut bpf, names::EDGES)?;
        let sources = take(&mut bpf, names::SOURCES)?;
        let cgroups = take(&mut bpf, names::CGROUPS)?;
        let counters = take(&mut bpf, names::COUNTERS)?;
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
        for program in HOOKS {
            attach(&mut bpf, program, cgroup)?;
        }
        Ok(Self { _bpf: bpf, _parts: parts, edges, sources, cgroups, counters, ring })
    }

    /// Waits until the ring holds a record.
    ///
    /// # Errors
    /// When the runtime cannot wait for it.
    pub async fn readable(&mut self) -> Result<(), ProbeError> {
        let mut guard = self.ring.readable_mut().await.map_err(ProbeError::Wait)?;
        // The caller drains the ring now; what comes later wakes us again.
        guard.clear_ready();
        Ok(())
    }

    /// Hands every record in the ring to `handle`, at most `limit` of them; returns how many.
    pub fn drain(&mut self, limit: usize, mut handle: impl FnMut(Result<Event<'_>, Malformed>)) -> usize {
        let ring = self.ring.get_mut();
        let mut taken = 0;
        while taken < limit {
            let Some(record) = ring.next() else { break };
            handle(parse(&record));
            taken += 1;
        }
        taken
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

/// The cookie of the network namespace in which `socket` was made; `None` where the kernel does not tell it, before Linux 5.14.
///
/// # Errors
/// When the kernel refuses otherwise.
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<Option<u64>> {
    let mut cookie = 0u64;
    let mut len = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the place of `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match Errno::result(result) {
        Ok(_) => Ok(Some(cookie)),
        Err(Errno::ENOPROTOOPT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
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
        Some(Program::SockOps(program)) => program.load(),
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

fn attach(bpf: &mut Ebpf, name: &'static str, cgroup: &File) -> Result<(), ProbeError> {
    // The mode of the flag API: a link on a cgroup is always beside others, and the kernel takes no flag for it.
    let mode = CgroupAttachMode::Single;
    let program = bpf.program_mut(name).expect("loaded before");
    let fd = cgroup.as_fd();
    let result = match name {
        names::SOCK_OPS => <&mut SockOps>::try_from(program).and_then(|p| p.attach(fd, mode)).map(drop),
        names::EGRESS | names::INGRESS => {
            let direction = if name == names::EGRESS {
                CgroupSkbAttachType::Egress
            } else {
                CgroupSkbAttachType::Ingress
            };
            <&mut CgroupSkb>::try_from(program).and_then(|p| p.attach(fd, direction, mode)).map(drop)
        }
        _ => <&mut CgroupSockAddr>::try_from(program).and_then(|p| p.attach(fd, mode)).map(drop),
    };
    result.map_err(|err| refused(err, "attach BPF programs", |err| attach_error(name, err)))
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

/// Major and minor version of a kernel release. Not aya's, which on some distributions reads another text than `uname -r` shows.
fn version_of(release: &str) -> Option<(u16, u16)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |uname| uname.release().to_string_lossy().into_owned())
}

fn parse(record: &[u8]) -> Result<Event<'_>, Malformed> {
    let kind = u32::from_ne_bytes(*record.first_chunk().ok_or(Malformed)?);
    match kind {
        event_kind::EDGE => read::<EdgeEvent>(record).map(|(event, _)| Event::Edge(event)),
        event_kind::HEAD => {
            let (event, bytes) = read::<HeadEvent>(record)?;
            let bytes = bytes.get(..usize::from(event.len)).ok_or(Malformed)?;
            Ok(Event::Head(event, bytes))
        }
        event_kind::DNS => {
            let (event, bytes) = read::<DnsEvent>(record)?;
            let bytes = bytes.get(..event.len as usize).ok_or(Malformed)?;
            Ok(Event::Dns(event, bytes))
        }
        _ => Err(Malformed),
    }
}

/// Marks the types that [`read`] may make out of any bytes.
///
/// # Safety
/// Every bit pattern must be a valid value.
unsafe trait Record: Copy {}
// SAFETY: repr(C), integers only.
unsafe impl Record for EdgeEvent {}
// SAFETY: repr(C), integers only.
unsafe impl Record for HeadEvent {}
// SAFETY: repr(C), integers only.
unsafe impl Record for DnsEvent {}

fn read<T: Record>(record: &[u8]) -> Result<(T, &[u8]), Malformed> {
    let (head, rest) = record.split_at_checked(size_of::<T>()).ok_or(Malformed)?;
    // SAFETY: `head` holds size_of::<T>() bytes, and any of them make a T.
    Ok((unsafe { head.as_ptr().cast::<T>().read_unaligned() }, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_what_a_release_begins_with() {
        for (release, version) in [
            ("5.10.0-30-amd64", Some((5, 10))),
            ("6.18.44", Some((6, 18))),
            ("6.1-rc3", Some((6, 1))),
            ("6", None),
            ("unknown", None),
        ] {
            assert_eq!(version_of(release), version, "{release}");
        }
    }

    #[test]
    fn records_that_are_cut_short_or_of_an_unknown_kind_are_malformed() {
        let mut record = vec![0u8; size_of::<HeadEvent>() + 3];
        record[..4].copy_from_slice(&event_kind::HEAD.to_ne_bytes());
        record[4..8].copy_from_slice(&3u32.to_ne_bytes());
        let Ok(Event::Head(head, bytes)) = parse(&record) else { panic!("not a head") };
        assert_eq!((head.len, bytes), (3, &[0u8; 3][..]));
        for len in 0..record.len() {
            assert_eq!(parse(&record[..len]), Err(Malformed), "{len} bytes");
        }
        record[0] = 99;
        assert_eq!(parse(&record), Err(Malformed));
    }
}
