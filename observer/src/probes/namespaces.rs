//! What the kernel tells of a network namespace only to who asks with a call of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _};

use nix::errno::Errno;

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

/// The user namespace that owns a namespace.
///
/// # Errors
/// When it is none, or when the owner is neither this process's user namespace nor one below that.
pub fn user_namespace(namespace: &impl AsFd) -> io::Result<File> {
    // SAFETY: the request takes no argument.
    let fd = unsafe { libc::ioctl(namespace.as_fd().as_raw_fd(), libc::NS_GET_USERNS) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just opened it for us, and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(fd) })
}
