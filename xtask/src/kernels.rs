//! `cargo xtask test --kernels`: the tests that load programs into the kernel, on kernels other than this machine's.
//!
//! Each kernel boots in qemu, without hardware virtualisation and without a network, from a small initramfs with the real
//! `sidescope`, the test programs and what these call.

mod fetch;
mod initramfs;
mod modules;
mod results;
mod vm;

use std::{
    collections::BTreeMap,
    env,
    path::PathBuf,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    command::{cargo, root_dir},
    kernels::{
        fetch::Kernel,
        results::{Report, Row, seconds},
    },
};

/// A kernel of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// As it is asked for on the command line.
    pub(crate) name: &'static str,
    /// The Debian release whose cloud kernel it is.
    suite: &'static str,
    /// The rows that the full test run boots it for; those of [`ROWS`] that are not here run on another kernel of the matrix.
    in_full_run: &'static [&'static str],
}

/// How much of the matrix is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All rows on each kernel: an hour and more on two cores, most of it for the verifier.
    AllRows,
    /// Each row on one of the kernels, and on each kernel that the programs do their work.
    EachRowOnce,
}

impl Extent {
    /// What a kernel may take, emulated on two processors.
    fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::AllRows => 7200,
            Self::EachRowOnce => 3000,
        })
    }
}

/// From the oldest that is supported to the newest that Debian has as stable.
const MATRIX: [Version; 3] = [
    Version { name: "5.10", suite: "bullseye", in_full_run: &["kernels", "existing", "hosts"] },
    Version { name: "6.1", suite: "bookworm", in_full_run: &["kernels", "observe"] },
    Version { name: "6.12", suite: "trixie", in_full_run: &["kernels", "agent"] },
];

/// What runs on each kernel: names of test binaries (`tests/tests/NAME.rs` or `NAME/main.rs`), and the tests that each of them
/// leaves out there, by the beginnings of their names or any other part of them.
pub(crate) const ROWS: &[(&str, &[&str])] = &[
    ("kernels", &[]),
    ("existing", &[]),
    ("hosts", &[]),
    (
        "agent",
        &[
            // What an agent does with files and folders that are not as they should be is the same on every kernel, and other layouts
            // are drained in one way: one test of it stays.
            "end::a_second",
            "end::a_file",
            "end::one_without",
            "end::an_agent_whose",
            "end::another_agent",
            "layouts::another_layout_is_kept",
            "layouts::edges",
            "owners::",
            "layouts::a_layout_that_was",
            "layouts::a_layout_with",
            "layouts::the_layout",
            "layouts::programs_of_another_layout_come_off",
            "layouts::programs_on",
            // How an agent reports has nothing to do with the kernel, save that nothing is missed where no agent runs.
            "reports::a_loss",
            "reports::a_new_edge",
            "reports::a_replica",
            "reports::an_agent_ends",
            "reports::edges_and_hosts",
            "reports::what_",
            "restart::the_readme",
        ],
    ),
    (
        "observe",
        &[
            // What is read, written and printed, and which signals end a watch, is the same on every kernel; the edges of Bookinfo
            // are a test of their own.
            "bookinfo::bookinfo_gets_three_sidecars",
            "ends::signals_and_the_end_of_the_time",
            "input::a_kernel_that_is_too_old",
            "input::a_wrong_object",
            "input::an_inventory_that_is_not_there",
            "input::an_output_folder",
            "input::an_unknown_kind",
            "input::broken_yaml",
            "readme::",
        ],
    ),
];

/// Folders of the repository whose files tests read.
const READ_BY_TESTS: [&str; 1] = ["observer/samples"];
/// The folder of the tests, from which they look for the others.
const TESTS: &str = "tests";

/// The versions that are asked for; all, if none is.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<Version>> {
    if names.is_empty() {
        return Ok(MATRIX.to_vec());
    }
    names
        .iter()
        .map(|name| {
            MATRIX.into_iter().find(|version| version.name == name).with_context(|| {
                format!(
                    "kernel `{name}` is not in the matrix: it has {:?}",
                    MATRIX.map(|version| version.name)
                )
            })
        })
        .collect()
}

/// Builds, boots the kernels and prints what passed; fails when a row did on any of them.
pub(crate) fn run(versions: &[Version], extent: Extent) -> Result<()> {
    ensure!(
        cfg!(target_arch = "x86_64"),
        "the kernel matrix is of x86-64 kernels and holds programs of this machine: run it on x86-64"
    );
    let rows = rows(build()?)?;
    let kernels = versions.iter().map(|version| fetch::kernel(*version)).collect::<Result<Vec<_>>>()?;
    // All at once: a kernel has two processors, and keeps one of this machine's busy.
    let boot = |kernel: &Kernel| {
        let wanted =
            |row: &&Program| extent == Extent::AllRows || kernel.version.in_full_run.contains(&row.name);
        let report = boot(kernel, &rows.iter().filter(wanted).collect::<Vec<_>>(), extent.limit())?;
        print!("{}", report.text(&kernel.release));
        anyhow::Ok(usize::from(!report.passed()))
    };
    let failed = thread::scope(|scope| {
        let running: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || boot(kernel))).collect();
        let failed = running.into_iter().map(|run| run.join().expect("a panic here is a bug"));
        failed.sum::<Result<usize>>()
    })?;
    ensure!(failed == 0, "{failed} of {} kernels failed; see above", kernels.len());
    Ok(())
}

/// One test binary in the virtual machine.
pub(crate) struct Program {
    name: &'static str,
    path: PathBuf,
    skip: &'static [&'static str],
}

fn boot(kernel: &Kernel, rows: &[&Program], limit: Duration) -> Result<Report> {
    let start = Instant::now();
    let failed = || format!("kernel {}", kernel.version.name);
    let image = initramfs::make(kernel, rows).with_context(failed)?;
    let run = vm::run(kernel, &image, limit).with_context(failed)?;
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    Ok(Report {
        rows: Row::all(&run.console, &names),
        seconds: seconds(&run.console, &names),
        console: run.console,
        ended: run.ended,
        took: start.elapsed(),
    })
}

/// Builds `sidescope` and the test binaries; returns the latter by name.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    crate::command::run(&mut cargo(["build", "--quiet", "-p", "sidescope"]))?;
    let mut build = cargo([
        "test",
        "--quiet",
        "-p",
        "sidescope-tests",
        "--no-run",
        "--message-format=json-render-diagnostics",
    ]);
    let output = build.stderr(Stdio::inherit()).output().context("cargo test --no-run")?;
    ensure!(output.status.success(), "the tests do not compile: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let message: serde_json::Value = serde_json::from_str(line).context("a message of cargo")?;
        let is_test = message["target"]["kind"][0] == "test";
        if let (true, Some(name), Some(path)) =
            (is_test, message["target"]["name"].as_str(), message["executable"].as_str())
        {
            found.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    Ok(found)
}

fn rows(mut built: BTreeMap<String, PathBuf>) -> Result<Vec<Program>> {
    let mut rows = Vec::new();
    for (name, skip) in ROWS {
        let Some(path) = built.remove(*name) else {
            bail!("ROWS in xtask/src/kernels.rs names `{name}`, but there is no tests/tests/{name}.rs");
        };
        rows.push(Program { name, path, skip });
    }
    Ok(rows)
}

/// The programs under test, at the place where the test binaries look for them.
fn under_test() -> [PathBuf; 2] {
    ["sidescope", "testbed"].map(|name| root_dir().join("target/debug").join(name))
}

/// The absolute path of a command, where root would find it.
fn command_path(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let of_root = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let path = env::split_paths(&path).chain(of_root).map(|dir| dir.join(name)).find(|file| file.is_file());
    path.with_context(|| {
        format!("no command `{name}` on this machine: `cargo xtask test --kernels` installs it")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_run_has_each_row_on_some_kernel_and_knows_all_that_it_names() {
        let named: Vec<&str> = MATRIX.iter().flat_map(|version| version.in_full_run).copied().collect();
        assert!(ROWS.iter().all(|(row, _)| named.contains(row)));
        assert!(named.iter().all(|name| ROWS.iter().any(|(row, _)| row == name)));
    }

    #[test]
    fn no_version_means_all_and_an_unknown_one_is_refused() {
        assert_eq!(chosen(&[]).unwrap(), MATRIX);
        assert_eq!(chosen(&["6.1".to_owned()]).unwrap(), [MATRIX[1]]);
        let error = chosen(&["4.19".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("4.19") && error.contains("5.10"), "{error}");
    }
}
