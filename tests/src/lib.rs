//! The test bed: real processes in network namespaces, used by the end-to-end tests, the demo and the benches.
//!
//! A [`Bed`] is a network of its own: a node namespace with a bridge, one namespace per pod, ClusterIPs. The machine's
//! own network is never touched, and nothing of a bed outlives the process that made it.
//! A [`Cluster`] is a real Kubernetes control plane beside it; [`aggregator`] runs Sidescope's aggregator on one.
//! [`bookinfo`] fills a bed with Istio's sample application, [`demo`] runs `sidescope observe` on that.

pub mod aggregator;
pub mod bed;
pub mod bench;
pub mod bookinfo;
pub mod cluster;
pub mod cmd;
pub mod demo;
pub mod dial;
pub mod dns;
pub mod existing;
pub mod inventory;
pub mod scale;
pub mod tcp;
mod usage;
pub mod wait;

pub use bed::{Bed, Host, Proc, Service, ServicePort};
pub use cluster::Cluster;
pub use cmd::Cmd;
pub use wait::{patient, wait_for};
