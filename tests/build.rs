//! Compiles the kernel programs of other people (`tests/ebpf`) that the tests attach beside ours.

#[path = "../xtask/src/bpf_build.rs"]
mod bpf_build;

use std::process::ExitCode;

use bpf_build::Crate;

fn main() -> ExitCode {
    bpf_build::run(&Crate { folder: "tests/ebpf", object: "peers", uses: &[] })
}
