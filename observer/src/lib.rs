//! Sidescope: watches what the workloads of an Istio mesh connect to, and writes their `Sidecar` resources.
//!
//! The layers, each of which may use only those before it (checked by `cargo xtask tidy`): [`model`], the pure logic, the IO,
//! the wiring. ARCHITECTURE.md tells the way of the data through them.

pub mod agent;
pub mod aggregator;
pub mod answers;
pub mod attended;
pub mod attribute;
pub mod authority;
pub mod binding;
pub mod certificates;
pub mod cgroup;
pub mod changes;
pub mod cli;
pub mod clock;
pub mod collect;
pub mod configure;
pub mod coverage;
pub mod crd;
pub mod desk;
pub mod dns;
pub mod dns_names;
pub mod election;
pub mod heads;
pub mod held;
pub mod hpack;
pub mod http1;
pub mod input;
pub mod interned;
pub mod inventory;
pub mod kube_watch;
pub mod lease;
pub mod ledger;
pub mod living;
pub mod losses;
pub mod mesh_index;
pub mod model;
pub mod namespaces;
pub mod node_pods;
pub mod objects;
pub mod observe;
pub mod older;
pub mod outbox;
pub mod output;
pub mod owners;
pub mod plan;
pub mod pod_watch;
pub mod probes;
pub mod progress;
pub mod proxy_protocol;
pub mod registry;
pub mod render;
pub mod report;
pub mod scan;
pub mod scanner;
pub mod service_index;
pub mod services;
pub mod sock_diag;
pub mod sockets;
pub mod sources;
pub mod store;
pub mod tls;
pub mod transport;
pub mod trust;
pub mod uid_map;
pub mod watch;
pub mod wire;
pub mod workloads;

#[cfg(test)]
mod fixture;
