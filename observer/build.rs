//! Compiles the kernel programs (`observer-ebpf`) and puts the object where the observer embeds it from.

#[path = "../xtask/src/bpf_build.rs"]
mod bpf_build;

use std::process::ExitCode;

use bpf_build::Crate;

fn main() -> ExitCode {
    bpf_build::run(&Crate { folder: "observer-ebpf", object: "sidescope-ebpf", uses: &["common"] })
}
