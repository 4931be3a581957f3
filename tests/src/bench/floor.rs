//! The floor: programs that do nothing, on the hooks that the work under measurement passes. What they cost is the kernel's price for
//! a program there, and what the kernel counts for them is the price of the count.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::cgroup_skb::CgroupSkbLink;
use aya::programs::cgroup_sock_addr::CgroupSockAddrLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, CgroupSockAddr, Program};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/peers"));

const CONNECT: &str = "nothing_connect4";
const EGRESS: &str = "nothing_egress";
const INGRESS: &str = "nothing_ingress";

pub(super) struct Floor(Ebpf);

impl Floor {
    pub(super) fn load() -> Result<Self> {
        let mut bpf = Ebpf::load(OBJECT).context("cannot load the programs that do nothing")?;
        for name in [CONNECT, EGRESS, INGRESS] {
            match bpf.program_mut(name).context(name)? {
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSkb(program) => program.load(),
                _ => unreachable!("the object is built together with these names"),
            }
            .context(name)?;
        }
        Ok(Self(bpf))
    }

    /// Attached until the links are dropped.
    pub(super) fn attach(
        &mut self,
        cgroup: &File,
    ) -> Result<(CgroupSkbLink, CgroupSkbLink, CgroupSockAddrLink)> {
        let mode = CgroupAttachMode::Single;
        let mut skb = |name, direction| -> Result<CgroupSkbLink> {
            let program: &mut CgroupSkb = self.0.program_mut(name).context(name)?.try_into()?;
            let id = program.attach(cgroup, direction, mode)?;
            Ok(program.take_link(id)?)
        };
        let egress = skb(EGRESS, CgroupSkbAttachType::Egress)?;
        let ingress = skb(INGRESS, CgroupSkbAttachType::Ingress)?;
        let program: &mut CgroupSockAddr = self.0.program_mut(CONNECT).context(CONNECT)?.try_into()?;
        let id = program.attach(cgroup, mode)?;
        Ok((egress, ingress, program.take_link(id)?))
    }

    /// How often they ran, all together, and what the kernel counted for it.
    pub(super) fn run_time(&self) -> Result<(u64, Duration)> {
        let mut sum = (0, Duration::ZERO);
        for name in [CONNECT, EGRESS, INGRESS] {
            let info = self.0.program(name).context(name)?.info()?;
            sum = (sum.0 + info.run_count(), sum.1 + info.run_time());
        }
        Ok(sum)
    }
}
