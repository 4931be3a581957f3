//! `cargo xtask test`: every check and test, in the order of what they cost.

use std::{
    env,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, Compilation, Compiler},
    command::{self, Root, cargo, root_dir, stdout},
    components, kernel_object,
    kernels::{self, Extent},
    setup::{self, Needs, Parts},
    steps::Steps,
    tidy,
};

/// The crates whose tests need no root.
const UNIT_TESTED: [&str; 6] = ["-p", "sidescope-common", "-p", "sidescope", "-p", "xtask"];
/// The crates of kernel programs: ours, and those that the tests attach beside them.
const OURS: &str = "observer-ebpf";
const KERNEL_CRATES: [&str; 2] = [OURS, "tests/ebpf"];
/// Name of the binary of [`OURS`].
const OBJECT: &str = "sidescope-ebpf";
/// Where the end-to-end tests find the binary to test.
const BINARY_VAR: &str = "SIDESCOPE_BIN";

pub(crate) fn run(quick: bool) -> Result<()> {
    let mut steps = Steps::default();
    let result = if quick { quick_steps(&mut steps) } else { all_steps(&mut steps) };
    println!("{}", steps.summary());
    result
}

fn quick_steps(steps: &mut Steps) -> Result<()> {
    let mut parts = None;
    steps.step("setup", || {
        parts = Some(setup::run(Needs::QuickTests)?);
        Ok(())
    })?;
    let parts = parts.expect("the step before has set it");
    static_checks(steps, &parts)?;
    steps.step("unit tests", unit_tests)
}

fn all_steps(steps: &mut Steps) -> Result<()> {
    // Told at once, not after ten minutes of compilation.
    let root = Root::obtain().context("the tests that load programs into the kernel")?;
    let mut parts = None;
    steps.step("setup", || {
        parts = Some(setup::run(Needs::Tests)?);
        Ok(())
    })?;
    let parts = parts.expect("the step before has set it");
    // Once on a machine, for minutes: the checks do not need them.
    let components = components::build_in_background();
    static_checks(steps, &parts)?;
    steps.step("licences and dependencies", dependencies)?;
    steps.step("documentation", || {
        command::run(cargo(["doc", "--workspace", "--no-deps", "--quiet"]).env("RUSTDOCFLAGS", "-Dwarnings"))
    })?;
    steps.step("unit tests", unit_tests)?;
    steps.step("kernel programs, both ways", || both_ways(&parts))?;
    steps.step("build", || command::run(&mut cargo(["build", "--quiet", "-p", "sidescope"])))?;
    steps.step("real components", || components::wait(components))?;
    steps.step("tests in the kernel, as root", || kernel_tests(root))?;
    steps.step("tests in other kernels", || kernels::run(&kernels::chosen(&[])?, Extent::EachRowOnce))
}

/// Only the kernel matrix, or a part of it.
pub(crate) fn run_kernels(names: &[String]) -> Result<()> {
    let versions = kernels::chosen(names)?;
    let mut steps = Steps::default();
    let result = steps
        .step("setup", || setup::run(Needs::Kernels).map(drop))
        .and_then(|()| steps.step("tests in other kernels", || kernels::run(&versions, Extent::AllRows)));
    println!("{}", steps.summary());
    result
}

fn static_checks(steps: &mut Steps, parts: &Parts) -> Result<()> {
    steps.step("formatting", || {
        command::run(&mut cargo(["fmt", "--all", "--check"]))?;
        KERNEL_CRATES.iter().try_for_each(|folder| {
            command::run(&mut cargo(["fmt", &format!("--manifest-path={folder}/Cargo.toml"), "--check"]))
        })
    })?;
    steps.step("tidy", tidy::run)?;
    steps.step("clippy", || {
        command::run(&mut cargo([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    })?;
    steps.step("clippy on the kernel programs", || {
        KERNEL_CRATES.iter().try_for_each(|folder| {
            kernel_programs(folder, parts.compiler, parts, "clippy", |clippy, _| {
                command::run(clippy.args(["--quiet", "--", "-D", "warnings"]))
            })
        })
    })
}

fn unit_tests() -> Result<()> {
    command::run(cargo(["test", "--quiet"]).args(UNIT_TESTED))
}

/// cargo-deny, on the workspace and on the kernel programs.
fn dependencies() -> Result<()> {
    let deny = bpf::tool("cargo-deny").context("setup has not left a cargo-deny")?;
    let mut fetch = Command::new("timeout");
    fetch.arg("60").arg(&deny).args(["fetch", "db"]);
    let mut checks = vec!["licenses", "bans", "sources"];
    if stdout(&mut fetch).is_some() {
        checks.push("advisories");
    } else {
        println!("    the database of advisories cannot be reached: advisories are not checked");
    }
    for manifest in ["Cargo.toml", "observer-ebpf/Cargo.toml", "tests/ebpf/Cargo.toml"] {
        // The check below is offline and wants the crates of all platforms.
        command::run(&mut cargo(["fetch", "--quiet", "--locked", "--manifest-path", manifest]))?;
        let mut check = Command::new(&deny);
        check.args(["--offline", "--config=deny.toml", "--manifest-path", manifest]);
        command::run(check.args(["check", "--hide-inclusion-graph"]).args(&checks))?;
    }
    Ok(())
}

/// With a prebuilt `core` and with one built from source, the kernel must be offered the same.
fn both_ways(parts: &Parts) -> Result<()> {
    let other = [Compiler::Nightly, Compiler::DebianBuildStd].into_iter().find(|compiler| compiler.is_here());
    let ways = [Some(parts.compiler), other.filter(|other| *other != parts.compiler)];
    let mut built = Vec::new();
    for compiler in ways.into_iter().flatten() {
        kernel_programs(OURS, compiler, parts, "build", |build, compilation| {
            command::run(build.arg("--quiet").stdin(Stdio::null()))?;
            let entries = kernel_object::entries(&compilation.object(OBJECT))?;
            println!("    {compiler:?}: {} programs and maps", entries.len());
            built.push(entries);
            Ok(())
        })?;
    }
    match &built[..] {
        [one, other] => kernel_object::ensure_same(one, other),
        _ => {
            println!("    {:?} is the only compiler here", parts.compiler);
            Ok(())
        }
    }
}

/// Prepares `cargo SUBCOMMAND` over a crate of kernel programs and hands it to `run`.
fn kernel_programs(
    folder: &str,
    compiler: Compiler,
    parts: &Parts,
    subcommand: &str,
    run: impl FnOnce(&mut Command, &Compilation<'_>) -> Result<()>,
) -> Result<()> {
    let root = root_dir();
    let compilation = Compilation {
        compiler,
        linker: &parts.linker,
        source: &root.join(folder),
        target_dir: &root.join("target/ebpf").join(folder).join(format!("{compiler:?}")),
        arch: env::consts::ARCH,
        big_endian: cfg!(target_endian = "big"),
    };
    run(&mut compilation.cargo(subcommand), &compilation)
}

/// Built as the user; only the test binaries themselves run as root.
fn kernel_tests(root: Root) -> Result<()> {
    let mut tests = cargo(["test", "-p", "sidescope-tests"]);
    if root != Root::Already {
        let runner: Vec<String> = root.prefix().iter().map(|word| format!("{word:?}")).collect();
        tests.args(["--config", &format!("target.'cfg(unix)'.runner=[{}]", runner.join(","))]);
    }
    command::run(tests.env(BINARY_VAR, root_dir().join(Path::new("target/debug/sidescope"))))
}
