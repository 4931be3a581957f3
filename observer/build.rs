//! Compiles the kernel programs (`observer-ebpf`) and puts the object where the observer embeds it from.
//!
//! Not by aya-build: that only knows rustup toolchains and crates of the same workspace, while these programs must also build
//! with a distribution's compiler and keep a lock file of their own.

#[path = "../xtask/src/bpf.rs"]
mod bpf;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bpf::{Compilation, Compiler};

fn main() -> ExitCode {
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), Box<dyn Error>> {
    let var = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let root = Path::new(&var("CARGO_MANIFEST_DIR")?).join("..");
    for input in [
        "observer-ebpf/src",
        "observer-ebpf/Cargo.toml",
        "observer-ebpf/Cargo.lock",
        "common/src",
        "common/Cargo.toml",
    ] {
        println!("cargo::rerun-if-changed={}", root.join(input).display());
    }
    println!("cargo::rerun-if-env-changed={}", bpf::COMPILER_VAR);

    let setup = |missing| format!("{missing}\n`cargo xtask setup` installs what is missing");
    let compiler = Compiler::choose(env::var_os(bpf::COMPILER_VAR).as_deref()).map_err(setup)?;
    let linker = bpf::linker().map_err(setup)?;
    println!("cargo::rerun-if-changed={}", linker.display());

    let compilation = Compilation {
        compiler,
        linker: &linker,
        source: &root.join("observer-ebpf"),
        target_dir: &out_dir.join("ebpf-target"),
        arch: &var("CARGO_CFG_TARGET_ARCH")?,
        big_endian: var("CARGO_CFG_TARGET_ENDIAN")? == "big",
    };
    // Quiet, cargo writes diagnostics only. A build script's own output is not shown, so they go out as its warnings.
    let mut cargo = compilation.cargo("build");
    let output = cargo.arg("--quiet").output().map_err(|error| format!("{cargo:?}: {error}"))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("the kernel programs do not compile ({compiler:?})\n{diagnostics}").into());
    }
    for line in diagnostics.lines() {
        println!("cargo::warning={line}");
    }
    let object = compilation.object();
    fs::copy(&object, out_dir.join(bpf::OBJECT)).map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}
