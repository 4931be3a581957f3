//! Which programs of this name are on a cgroup already, whoever keeps them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use aya::programs::loaded_programs;
use sidescope_common::names;

use super::link::bpf;

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
/// Those of the cgroups above, too.
const BPF_F_QUERY_EFFECTIVE: u32 = 1;
/// The kernel takes no more on one cgroup, and there are few levels of them.
const MOST: usize = 1024;
/// As much of a program's name as the kernel keeps.
const NAME_BYTES: usize = 15;

/// What the kernel reads for `BPF_PROG_QUERY`, and writes.
#[repr(C)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    reserved: u32,
    /// What later kernels may write.
    later: [u64; 4],
}

/// The ids of programs that see the IPv4 connects of this cgroup as ours do, but for those in `own`.
pub(super) fn foreign(cgroup: &File, own: &BTreeSet<u32>) -> io::Result<Vec<u32>> {
    let ids = connect4(cgroup)?;
    let mut foreign = Vec::new();
    // Most have no other program there, and need not look at all that are loaded.
    if ids.iter().all(|id| own.contains(id)) {
        return Ok(foreign);
    }
    for program in loaded_programs() {
        let program = program.map_err(io::Error::other)?;
        let is_named = program.name_as_str() == names::CONNECT4.get(..NAME_BYTES);
        if is_named && ids.contains(&program.id()) && !own.contains(&program.id()) {
            foreign.push(program.id());
        }
    }
    Ok(foreign)
}

fn connect4(cgroup: &File) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; MOST];
    let mut query = Query {
        target_fd: cgroup.as_raw_fd().unsigned_abs(),
        attach_type: BPF_CGROUP_INET4_CONNECT,
        query_flags: BPF_F_QUERY_EFFECTIVE,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: MOST as u32,
        reserved: 0,
        later: [0; 4],
    };
    bpf(BPF_PROG_QUERY, &mut query)?;
    ids.truncate(query.prog_cnt as usize);
    Ok(ids)
}
