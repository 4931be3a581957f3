//! Which kernel this is, and what it says.

use std::time::Duration;

use aya::maps::MapError;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};

/// Flag of an update that leaves an entry alone if it is there.
pub(super) const BPF_NOEXIST: u64 = 1;

/// Why the kernel refused to write a map.
pub(super) fn errno(refusal: &MapError) -> Option<Errno> {
    let MapError::SyscallError(err) = refusal else { return None };
    err.io_error.raw_os_error().map(Errno::from_raw)
}

/// Major and minor version of a kernel release. Not aya's, which on some distributions reads another text than `uname -r` shows.
pub(super) fn version_of(release: &str) -> Option<(u16, u16)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The time of the kernel's records: nanoseconds of CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock");
    Duration::from(now).as_nanos() as u64
}

pub(super) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".to_owned(), |uname| uname.release().to_string_lossy().into_owned())
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
}
