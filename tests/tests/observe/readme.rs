//! The README shows what the demo prints, and nothing else.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidescope_tests::{Cmd, wait_for};

use crate::fixture::{SOON, START, sidescope};

/// The fenced blocks of the README that show output of the demo.
fn shown(readme: &str) -> Result<Vec<&str>> {
    let (_, demo) =
        readme.split_once("What the demo prints").context("the README has no output of the demo")?;
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

/// The lines of the README's section on a demo that is kept: what is said of it, and what its agent prints.
fn shown_of_kept_demo(readme: &str) -> Result<(Vec<&str>, Vec<&str>)> {
    let (_, kept) =
        readme.split_once("cargo xtask demo --keep\n```").context("no kept demo in the README")?;
    let (kept, _) = kept.split_once("\n## ").context("nothing follows the kept demo")?;
    let blocks = kept.split("```text").skip(1).map(|block| block.split("```").next().unwrap_or_default());
    let [said, agent] = blocks.collect::<Vec<_>>()[..] else { anyhow::bail!("not two outputs: {kept}") };
    Ok((said.trim().lines().collect(), agent.trim().lines().collect()))
}

/// The command that a kept demo gives for something.
fn command<'a>(said: &'a str, label: &str) -> Result<&'a str> {
    let line = said.lines().find_map(|line| line.trim_start().strip_prefix(label));
    line.map(str::trim).with_context(|| format!("no `{label}` in {said}"))
}

#[test]
fn the_commands_that_a_kept_demo_gives_work_and_the_readme_shows_them() -> Result<()> {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md"))?;
    let (shown, shown_of_agent) = shown_of_kept_demo(&readme)?;
    let folder = tempfile::tempdir()?;
    let bed = sidescope_tests::Bed::without_node()?;
    let out = folder.path().join("out");
    let demo = Cmd::new(env!("CARGO_BIN_EXE_testbed")).args(["demo", "--keep", "--sidescope"]);
    let demo = bed.spawn_on_machine(&demo.arg(sidescope()?).arg("--out").arg(&out))?;
    demo.wait_for_log("an agent: ", START)?;
    let said = demo.log()?;
    for line in shown {
        let label = line.trim_start().split_once(": ").map_or(line, |(label, _)| label);
        ensure!(said.contains(label), "the demo does not say `{label}`: {said}");
    }

    let watched = Cmd::new("sh").args(["-c", command(&said, "watch again:")?]).run()?;
    let watched = String::from_utf8(watched.stdout)?;
    for line in ["default/productpage  6 -> 2", "default/reviews      6 -> 1"] {
        ensure!(watched.lines().any(|printed| printed == line), "{watched}");
    }
    Cmd::new("sh").args(["-c", command(&said, "in a pod:")?]).run()?;
    Cmd::new("sh").args(["-c", command(&said, "a call:")?]).run()?;

    let agent = bed
        .spawn_on_machine(&Cmd::new("sh").args(["-c", &format!("exec {}", command(&said, "an agent:")?)]))?;
    let without_netns = |line: &str| line.trim_start_matches(|c| c != ',').to_owned();
    for line in shown_of_agent {
        agent.wait_for_log(&without_netns(line), START)?;
    }
    agent.signal(Signal::SIGTERM)?;
    agent.success(SOON)?;
    demo.signal(Signal::SIGINT)?;
    demo.success(SOON)?;
    bed.end()
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
