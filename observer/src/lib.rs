//! Sidescope: watches what the workloads of an Istio mesh connect to, and writes their `Sidecar` resources.
//!
//! The layers, each of which may use only those before it (checked by `cargo xtask tidy`): [`model`], the pure logic, the IO,
//! the wiring. ARCHITECTURE.md tells the way of the data through them.

pub mod agent;
pub mod answers;
pub mod attribute;
pub mod authority;
pub mod binding;
pub mod certificates;
pub mod cgroup;
pub mod changes;
pub mod cli;
pub mod clock;
pub mod collect;
pub mod dns;
pub mod dns_names;
pub mod election;
pub mod heads;
pub mod hpack;
pub mod http1;
pub mod input;
pub mod inventory;
pub mod lease;
pub mod mesh_index;
pub mod model;
pub mod namespaces;
pub mod observe;
pub mod older;
pub mod output;
pub mod owners;
pub mod plan;
pub mod probes;
pub mod progress;
pub mod proxy_protocol;
pub mod render;
pub mod report;
pub mod scan;
pub mod scanner;
pub mod sock_diag;
pub mod sockets;
pub mod sources;
pub mod tls;
pub mod transport;
pub mod trust;
pub mod uid_map;
pub mod watch;
pub mod wire;

#[cfg(test)]
mod fixture;
