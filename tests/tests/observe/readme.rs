//! The README shows what the demo prints, and nothing else.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidescope_tests::{Cmd, wait_for};

use crate::fixture::{SOON, sidescope};

/// The fenced blocks of the README that show output of the demo.
fn shown(readme: &str) -> Result<Vec<&str>> {
    let (_, demo) = readme.split_once("What it prints").context("the README has no output of the demo")?;
    let (demo, _) = demo.split_once("\n## ").context("nothing follows the output of the demo")?;
    let blocks = demo.split("```").skip(1).step_by(2);
    Ok(blocks.flat_map(|block| block.lines().skip(1)).filter(|line| !line.trim().is_empty()).collect())
}

#[test]
fn every_line_that_the_readme_shows_of_the_demo_is_printed_by_it_in_this_order() -> Result<()> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let shown = shown(&readme)?;
    ensure!(shown.len() > 20, "the README shows just {shown:?}");

    let folder = tempfile::tempdir()?;
    let output = Command::new(env!("CARGO_BIN_EXE_testbed"))
        .args(["demo", "--sidescope"])
        .arg(sidescope()?)
        .args(["--out", "target/demo"])
        .current_dir(folder.path())
        .output()?;
    let printed = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));

    let mut lines = printed.lines();
    for line in shown {
        ensure!(
            lines.any(|printed| printed == line),
            "the demo does not print, or not here: {line}\n{printed}"
        );
    }
    Ok(())
}

/// The seconds of every live line that a screen has shown.
fn live_lines(screen: &str) -> Vec<u64> {
    let words: Vec<&str> = screen.split_whitespace().collect();
    let figures = "0 connections 0 edges 0 hosts 0 unresolved";
    let lines = words.windows(9).filter(|line| line[1..].join(" ") == figures);
    lines.filter_map(|line| line[0].strip_suffix('s')?.parse().ok()).collect()
}

#[test]
fn a_terminal_shows_one_live_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let [inventory, out, number] = ["inventory.yaml", "out", "number"].map(|name| folder.path().join(name));
    fs::write(&inventory, "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.1}\n")?;
    let bed = sidescope_tests::Bed::new()?;
    let observe = format!(
        "echo $$ >{}; exec {} observe --inventory {} --out {} --cgroup {}",
        number.display(),
        sidescope()?.display(),
        inventory.display(),
        out.display(),
        bed.cgroup().display()
    );
    // `script` gives it a terminal.
    let options = ["--quiet", "--return", "--flush", "--command", &observe, "/dev/null"];
    let terminal = bed.spawn_on_machine(&Cmd::new("script").args(options))?;
    let shown = wait_for("a live line that goes on", SOON, || {
        terminal.must_run()?;
        let shown = live_lines(&terminal.log()?);
        Ok(shown.iter().any(|seconds| *seconds > shown[0]).then_some(shown))
    })?;
    ensure!(shown.is_sorted(), "time goes back: {shown:?}");
    let observer: i32 = fs::read_to_string(&number)?.trim().parse()?;
    kill(Pid::from_raw(observer), Signal::SIGINT)?;
    terminal.success(SOON)?;
    bed.end()
}
