//! The README shows what the demo prints, and nothing else.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::fixture::sidescope;

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

#[test]
fn a_terminal_shows_one_live_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let inventory = folder.path().join("inventory.yaml");
    fs::write(&inventory, "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 10.0.0.1}\n")?;
    let bed = sidescope_tests::Bed::new()?;
    let observe = format!(
        "{} observe --for 2500ms --inventory {} --out {} --cgroup {}",
        sidescope()?.display(),
        inventory.display(),
        folder.path().join("out").display(),
        bed.cgroup().display()
    );
    // `script` gives it a terminal.
    let output =
        Command::new("script").args(["--quiet", "--return", "--command", &observe, "/dev/null"]).output()?;
    let screen = String::from_utf8(output.stdout)?;
    ensure!(output.status.success(), "{screen}");
    let live = "connections  0 edges  0 hosts  0 unresolved";
    ensure!(
        screen.contains(&format!("1s  0 {live}")) && screen.contains(&format!("2s  0 {live}")),
        "{screen:?}"
    );
    bed.end()
}
