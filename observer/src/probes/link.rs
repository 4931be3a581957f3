//! Links behind their pins: where they are attached, and their end at once. When a pin is removed the kernel takes the program off in
//! its own time, and until then it may still write to its maps.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// What the kernel reads for `BPF_OBJ_GET`.
#[repr(C)]
struct ObjectByPath {
    path: u64,
    fd: u32,
    flags: u32,
}

/// What the kernel reads for `BPF_LINK_DETACH`.
#[repr(C)]
struct DetachLink {
    fd: u32,
}

/// A link that is held while it is looked at.
pub(super) struct Link {
    fd: OwnedFd,
    /// The cgroup that it is attached to; `None` if that is gone.
    pub(super) cgroup: Option<u64>,
    /// Its program.
    pub(super) program: Option<u32>,
}

impl Link {
    /// The link that is pinned here; `None` if it is something else.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = ObjectByPath { path: path.as_ptr() as u64, fd: 0, flags: 0 };
        let fd = bpf(BPF_OBJ_GET, &mut attr)?;
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
        Ok(field(&info, "link_type").map(|_| {
            let cgroup = field(&info, "cgroup_id").and_then(|id| id.parse().ok());
            let program = field(&info, "prog_id").and_then(|id| id.parse().ok());
            Self { fd, cgroup: cgroup.filter(|id| *id != 0), program }
        }))
    }

    /// Takes its program off now. A link of another kind, that knows no such end, ends with its pin.
    pub(super) fn detach(&self) -> io::Result<()> {
        let mut attr = DetachLink { fd: self.fd.as_raw_fd().unsigned_abs() };
        match bpf(BPF_LINK_DETACH, &mut attr) {
            Err(err) if err.raw_os_error() != Some(libc::EOPNOTSUPP) => Err(err),
            _ => Ok(()),
        }
    }
}

/// Calls the kernel with what this command reads and writes.
pub(super) fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is what this command reads and writes, without padding; what it points to, the caller keeps.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    nix::errno::Errno::result(result).map_err(io::Error::from)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_told_by_its_fields() {
        let info = "pos:\t0\nflags:\t02000000\nlink_type:\tcgroup\nlink_id:\t7\nprog_id:\t12\ncgroup_id:\t4711\nattach_type:\t10\n";
        assert_eq!(field(info, "link_type"), Some("cgroup"));
        assert_eq!(field(info, "cgroup_id"), Some("4711"));
        assert_eq!(field(info, "prog_id"), Some("12"));
        assert_eq!(field(info, "cgroup"), None);
        assert_eq!(field("map_type:\t1\n", "link_type"), None);
    }
}
