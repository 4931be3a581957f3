//! Compiles the kernel programs (`observer-ebpf`) and puts the object where the observer embeds it from; makes Rust of the protocol
//! between agent and aggregator (`proto`).

#[path = "../xtask/src/bpf_build.rs"]
mod bpf_build;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::{env, fs};

use bpf_build::Crate;

fn main() -> ExitCode {
    if let Err(error) = protocol() {
        eprintln!("the protocol in observer/proto cannot be made into Rust: {error}");
        return ExitCode::FAILURE;
    }
    bpf_build::run(&Crate { folder: "observer-ebpf", object: "sidescope-ebpf", uses: &["common"] })
}

/// Messages and services apart: what is made of messages alone is pure, and does not need tonic.
fn protocol() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let files = protox::compile(["sidescope/v1/report.proto"], ["proto"])?;
    for (folder, services) in [("messages", false), ("services", true)] {
        let out = out.join(folder);
        fs::create_dir_all(&out)?;
        let mut builder =
            tonic_prost_build::configure().build_client(services).build_server(services).out_dir(out);
        if services {
            builder = builder
                .extern_path(".sidescope.v1", "crate::wire::proto")
                .codec_path("crate::transport::Codec");
        }
        builder.compile_fds(files.clone())?;
    }
    Ok(())
}
