//! The words of the product as types: names that are checked once, mesh objects in the form that decisions need, and the
//! dependency graph. Everything else in this crate builds on this module; it depends on nothing of it.

pub mod config;
pub mod dependencies;
pub mod graph;
pub mod mesh;
pub mod names;
pub mod policy;
pub mod sidecar;
pub mod stamp;
pub mod time;
