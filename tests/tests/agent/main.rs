//! `sidescope agent`: what one agent leaves in the kernel, and the next one goes on with. The real binary, the real kernel, a BPF file
//! system for each test.

mod aggregator;
mod end;
#[path = "../observe/fixture.rs"]
#[allow(dead_code, reason = "shared with the tests of `observe`, which use all of it")]
mod fixture;
mod gone;
mod layouts;
mod losses;
mod owners;
mod pinned;
mod reports;
mod restart;
mod scanner;
mod scene;
