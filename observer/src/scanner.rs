//! The scanner: a small process that alone holds the rights to enter network namespaces, so that the agent need not.
//!
//! `sidescope scanner --socket PATH` listens on a unix socket that only its own user may open. A client sends one line, is
//! answered with frames (see [`protocol`]) and hung up on; one client is served at a time. The client cannot choose where the
//! scanner looks. Switched off (`sidescope agent --scanner none`), edges that are older than the agent are missing until their
//! program connects again, the namespaces' addresses come from their first connection, and in a pod with a user namespace of its own
//! the proxy's connections count as the workload's.
//!
//! It keeps two capabilities and gives up all others at its start: SYS_ADMIN enters a namespace (`setns`), SYS_PTRACE opens
//! `/proc/PID/ns/net` of a process of another user or with other rights. Nothing else is needed: sock_diag answers everyone,
//! and no file is read that others may not read (no DAC_READ_SEARCH). In a container it takes the host's process namespace.

mod client;
pub mod protocol;
mod rights;
mod server;

pub use client::{Client, ClientError};
pub use server::{ServeError, run};
