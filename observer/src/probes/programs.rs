//! The kernel programs: loaded, connected to each other, attached to a cgroup.

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::links::FdLink;
use aya::programs::{
    CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, ProgramError, ProgramInfo,
};
use aya::{Ebpf, EbpfLoader};
use nix::errno::Errno;
use sidescope_common::{names, part};

use super::kernel::{kernel_release, version_of};
use super::{MIN_KERNEL, ProbeError, Settings, map_error, typed};

pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidescope-ebpf"));

/// Programs that are attached: those that use the socket's storage first, those that fill it last.
pub(super) const HOOKS: [&str; 6] =
    [names::INGRESS, names::EGRESS, names::SENDMSG4, names::SENDMSG6, names::CONNECT6, names::CONNECT4];

/// What holds a program to the cgroup, until it is dropped.
enum Link {
    SockAddr(CgroupSockAddrLink),
    Skb(CgroupSkbLink),
}

impl Link {
    fn pin(self, path: &Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let link = match self {
            Self::SockAddr(link) => FdLink::try_from(link),
            Self::Skb(link) => FdLink::try_from(link),
        };
        link?.pin(path)?;
        Ok(())
    }
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

/// The programs that this process has loaded, and what holds them to their cgroup.
pub(super) struct Programs {
    bpf: Ebpf,
    links: Vec<Link>,
    /// The kernel empties a program array that nobody holds.
    parts: Option<ProgramArray<MapData>>,
}

impl Programs {
    /// Creates the maps and loads the programs. They do not know their parts yet: see [`Self::connect_parts`].
    pub(super) fn load(settings: &Settings) -> Result<Self, ProbeError> {
        let kernel = kernel_release();
        if version_of(&kernel).is_some_and(|running| running < MIN_KERNEL) {
            return Err(ProbeError::KernelTooOld { found: kernel });
        }
        let mut bpf = EbpfLoader::new()
            .map_max_entries(names::EDGES, settings.edges)
            .map_max_entries(names::EVENTS, settings.ring_bytes)
            .load(OBJECT)
            .map_err(|err| refused(err, "create BPF maps", |err| ProbeError::Create(Box::new(err))))?;
        for program in part::PROGRAMS.into_iter().map(|(_, program)| program).chain(HOOKS) {
            load(&mut bpf, program, &kernel)?;
        }
        Ok(Self { bpf, links: Vec::new(), parts: None })
    }

    /// Pins maps under their names, before anybody takes one.
    pub(super) fn pin_maps(&self, names: &[&'static str], dir: &Path) -> Result<(), ProbeError> {
        for name in names {
            let map = self.bpf.map(name).expect("the object is built together with these names");
            map.pin(dir.join(name)).map_err(|err| {
                refused(err, "pin BPF maps", |err| ProbeError::Pin { name, source: Box::new(err) })
            })?;
        }
        Ok(())
    }

    /// A map, which can be taken once.
    pub(super) fn take(&mut self, name: &'static str) -> Map {
        self.bpf
            .take_map(name)
            .expect("the object is built together with these names, and each is taken once")
    }

    /// Makes the parts callable, and keeps them so until this is dropped.
    pub(super) fn connect_parts(&mut self) -> Result<(), ProbeError> {
        let mut parts: ProgramArray<MapData> = typed(self.take(names::PARTS), names::PARTS)?;
        for (index, name) in part::PROGRAMS {
            let program = <&CgroupSkb>::try_from(self.bpf.program(name).expect("loaded before"));
            let fd = program.and_then(|program| program.fd()).map_err(|err| attach_error(name, err))?;
            parts.set(index, fd, 0).map_err(map_error(names::PARTS))?;
        }
        self.parts = Some(parts);
        Ok(())
    }

    /// Attaches all programs to `cgroup`. Nothing stays attached after an error.
    pub(super) fn attach_to(&mut self, cgroup: &File) -> Result<(), ProbeError> {
        let mut links = Vec::with_capacity(HOOKS.len());
        for program in HOOKS {
            links.push(attach(&mut self.bpf, program, cgroup)?);
        }
        self.links.append(&mut links);
        Ok(())
    }

    /// Attaches all programs to `cgroup`, where their pins keep them.
    pub(super) fn attach_pinned(mut self, cgroup: &File, dir: &Path) -> Result<(), ProbeError> {
        for name in HOOKS {
            let link = attach(&mut self.bpf, name, cgroup)?;
            link.pin(&dir.join(name)).map_err(|source| ProbeError::Pin { name, source })?;
        }
        Ok(())
    }

    /// Takes the programs off their cgroup; they stay loaded.
    pub(super) fn detach(&mut self) {
        self.links.clear();
    }

    /// See [`super::Probes::run_times`].
    pub(super) fn run_times(&self) -> Result<Vec<RunTime>, ProbeError> {
        let run_time = |program| {
            let info = self.info(program)?;
            Ok(RunTime { program, runs: info.run_count(), time: info.run_time() })
        };
        HOOKS.into_iter().map(run_time).collect()
    }

    /// See [`super::Probes::verified`].
    pub(super) fn verified(&self) -> Result<Vec<(&'static str, Option<u32>)>, ProbeError> {
        let verified = |program| Ok((program, self.info(program)?.verified_instruction_count()));
        part::PROGRAMS.into_iter().map(|(_, name)| name).chain(HOOKS).map(verified).collect()
    }

    fn info(&self, program: &'static str) -> Result<ProgramInfo, ProbeError> {
        let info = self.bpf.program(program).expect("loaded before").info();
        info.map_err(|source| ProbeError::Info { program, source: Box::new(source) })
    }
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
