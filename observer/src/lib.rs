//! Sidescope: watches what the workloads of an Istio mesh connect to, and writes their `Sidecar` resources.
//!
//! The layers, each of which may use only those before it (checked by `cargo xtask tidy`): [`model`], the pure logic, the IO,
//! the wiring. ARCHITECTURE.md tells the way of the data through them.

pub mod attribute;
pub mod inventory;
pub mod mesh_index;
pub mod model;
pub mod plan;
pub mod render;
pub mod report;

#[cfg(test)]
mod fixture;
