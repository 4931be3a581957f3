//! What a build script does that compiles kernel programs: no module of `xtask`, but by path of `observer/build.rs` and
//! `tests/build.rs`.
//!
//! Not by aya-build: that only knows rustup toolchains and crates of the same workspace, while these programs must also build
//! with a distribution's compiler and keep a lock file of their own.

mod bpf;
mod cache_dir;

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use bpf::{Compilation, Compiler};

/// A crate of kernel programs. All paths are from the root of the repository.
pub(crate) struct Crate {
    pub(crate) folder: &'static str,
    /// Name of its binary, and of the object in the build script's output folder.
    pub(crate) object: &'static str,
    /// The crates of this repository that it uses.
    pub(crate) uses: &'static [&'static str],
}

/// Compiles the programs and leaves the object where the crate that is built embeds it from.
pub(crate) fn run(programs: &Crate) -> ExitCode {
    match compile(programs) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn compile(programs: &Crate) -> Result<(), Box<dyn Error>> {
    let var = |name| env::var(name).map_err(|error| format!("{name}: {error}"));
    let out_dir = PathBuf::from(var("OUT_DIR")?);
    let root = Path::new(&var("CARGO_MANIFEST_DIR")?).join("..");
    for folder in programs.uses.iter().chain([&programs.folder]) {
        // What a crate does not have counts as changed each time, and only those that are built alone have a lock file.
        for input in ["src", "Cargo.toml", "Cargo.lock"] {
            let path = root.join(folder).join(input);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    println!("cargo::rerun-if-env-changed={}", bpf::COMPILER_VAR);

    let setup = |missing| format!("{missing}\n`cargo xtask setup` installs what is missing");
    let compiler = Compiler::choose(env::var_os(bpf::COMPILER_VAR).as_deref()).map_err(setup)?;
    let linker = bpf::linker().map_err(setup)?;
    println!("cargo::rerun-if-changed={}", linker.display());

    let compilation = Compilation {
        compiler,
        linker: &linker,
        source: &root.join(programs.folder),
        target_dir: &out_dir.join("ebpf-target"),
        arch: &var("CARGO_CFG_TARGET_ARCH")?,
        big_endian: var("CARGO_CFG_TARGET_ENDIAN")? == "big",
    };
    // Quiet, cargo writes diagnostics only. A build script's own output is not shown, so they go out as its warnings.
    let mut cargo = compilation.cargo("build");
    let output = cargo.arg("--quiet").output().map_err(|error| format!("{cargo:?}: {error}"))?;
    let diagnostics = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} does not compile ({compiler:?})\n{diagnostics}", programs.folder).into());
    }
    for line in diagnostics.lines() {
        println!("cargo::warning={line}");
    }
    let object = compilation.object(programs.object);
    fs::copy(&object, out_dir.join(programs.object))
        .map_err(|error| format!("{}: {error}", object.display()))?;
    Ok(())
}
