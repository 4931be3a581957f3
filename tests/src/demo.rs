//! The demo: Bookinfo in a bed, watched by `sidescope observe`, and what comes out of it.

use std::env;
use std::fs;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::lchown;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;

use crate::bed::{Bed, Proc};
use crate::bookinfo::{self, HTTP_PORT, Load, OUTSIDE};
use crate::cmd::{Cmd, Stream};

/// How long the programs may take to load (a second of the verifier's time, on a machine that may be busy), and `observe` to write when
/// it has been asked to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How much longer the load may take than it should.
const LOAD_PATIENCE: Duration = Duration::from_secs(120);
/// Calls a second while the bed is kept.
const KEPT_RATE: f64 = 2.0;

/// How many calls the demo makes: a number, or a multiple (`10x`) of the usual number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calls(pub u32);

impl Calls {
    /// The usual number: each version of reviews is called several times.
    pub const USUAL: u32 = 50;
}

impl FromStr for Calls {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (number, unit) = text.strip_suffix('x').map_or((text, 1), |number| (number, Self::USUAL));
        let calls = number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit));
        calls
            .filter(|calls| *calls > 0)
            .map(Self)
            .ok_or_else(|| anyhow!("expected a number of calls, or a multiple such as 10x"))
    }
}

/// What a demo shall do.
pub struct Options {
    /// The program `sidescope`.
    pub sidescope: PathBuf,
    /// The program `testbed`, which the pods run.
    pub testbed: PathBuf,
    /// Where the results go.
    pub out: PathBuf,
    /// How many calls of productpage.
    pub calls: Calls,
    /// Spread the calls evenly over this time, instead of making them as fast as answers come.
    pub spread: Option<Duration>,
    /// Stay until a signal comes.
    pub keep: bool,
}

/// Runs the demo. Results go to standard output, progress to standard error.
pub fn run(options: &Options) -> Result<()> {
    let start = Instant::now();
    let sidescope = fs::canonicalize(&options.sidescope)
        .with_context(|| format!("no sidescope at {}", options.sidescope.display()))?;
    let out = make_out(&options.out)?;

    progress("making Bookinfo out of network namespaces");
    let bed = Bed::new()?;
    bookinfo::start(&bed, &options.testbed)?;
    let inventory = out.join("inventory.yaml");
    fs::write(&inventory, bookinfo::inventory(&bed)?)
        .with_context(|| format!("cannot write {}", inventory.display()))?;
    progress(&format!("bed {}: Bookinfo listens; inventory in {}", bed.id(), inventory.display()));

    let observe = observe(&sidescope, &inventory, &out, bed.cgroup());
    progress(&format!("starting `{}`", observe.line()));
    let observer = bed.spawn_on_machine(&observe)?;
    observer.wait_for_log("watching", PATIENCE)?;

    drive(&bed, options)?;
    observer.must_run().context("sidescope has ended before it was asked to")?;
    progress("ending sidescope, which writes what it has learnt");
    observer.signal(Signal::SIGINT)?;
    finish(&observer)?;
    hand_over(&out)?;

    let shown = show(&out, &options.out)?;
    progress(&format!(
        "done in {:.1} s: the graph in {}, {shown} Sidecar(s) below {}",
        start.elapsed().as_secs_f64(),
        options.out.join("graph.json").display(),
        options.out.join("sidecars").display()
    ));
    if options.keep { keep(&bed, options, &sidescope, &observe) } else { bed.end() }
}

fn observe(sidescope: &Path, inventory: &Path, out: &Path, cgroup: &Path) -> Cmd {
    let mut cmd = Cmd::new(sidescope).arg("observe");
    for (option, value) in [("--inventory", inventory), ("--out", out), ("--cgroup", cgroup)] {
        cmd = cmd.arg(option).arg(value);
    }
    // Its report goes to our standard output untouched, so that it is coloured on a terminal; what it says on standard error
    // we have to read, to know when it watches.
    cmd.stdout(Stream::Inherit).stderr(Stream::Tee)
}

/// Makes the calls and waits for the last answer.
fn drive(bed: &Bed, options: &Options) -> Result<()> {
    let Calls(count) = options.calls;
    let rate = options.spread.map(|spread| f64::from(count) / spread.as_secs_f64());
    progress(&format!("calling productpage {count} times from outside the mesh"));
    let load = bookinfo::start_load(bed, &options.testbed, Load { count: Some(count), rate })?;
    load.success(LOAD_PATIENCE + options.spread.unwrap_or_default()).context("the load generator")?;
    progress(load.log()?.trim_end());
    Ok(())
}

/// Its report is on standard output or in what we have copied, so an error needs no more than the status.
fn finish(observer: &Proc) -> Result<()> {
    let status = observer.wait(PATIENCE)?;
    ensure!(status.success(), "`{}`: {status}", observer.line());
    Ok(())
}

/// Makes the output folder and gives its full name: the watcher runs elsewhere.
fn make_out(out: &Path) -> Result<PathBuf> {
    let made = fs::create_dir_all(out).and_then(|()| fs::canonicalize(out));
    made.with_context(|| format!("cannot make {}", out.display()))
}

/// Prints every Sidecar under its path; says how many there are.
fn show(out: &Path, named: &Path) -> Result<usize> {
    let graph = out.join("graph.json");
    ensure!(graph.is_file(), "sidescope has written no {}", graph.display());
    let files = files_below(&out.join("sidecars"))?;
    let mut stdout = std::io::stdout().lock();
    let (bold, plain) = if stdout.is_terminal() { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let path = named.join(file.strip_prefix(out).unwrap_or(file));
        writeln!(stdout, "\n{bold}# {}{plain}\n{}", path.display(), text.trim_end())?;
    }
    stdout.flush()?;
    Ok(files.len())
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    visit(folder, &mut |path, is_folder| {
        if !is_folder {
            files.push(path.to_owned());
        }
        Ok(())
    })?;
    files.sort();
    Ok(files)
}

/// Gives the results to who ran `sudo`, whose tree they lie in.
fn hand_over(out: &Path) -> Result<()> {
    let id = |name| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let (Some(uid), Some(gid)) = (id("SUDO_UID"), id("SUDO_GID")) else {
        return Ok(());
    };
    visit(out, &mut |path, _| {
        lchown(path, Some(uid), Some(gid))
            .with_context(|| format!("cannot give {} to user {uid}", path.display()))
    })
}

/// Calls back for a folder and all below it; follows no links.
fn visit(folder: &Path, call: &mut impl FnMut(&Path, bool) -> Result<()>) -> Result<()> {
    call(folder, true)?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            visit(&entry.path(), call)?;
        } else {
            call(&entry.path(), false)?;
        }
    }
    Ok(())
}

/// Keeps the bed and some load until a signal comes.
fn keep(bed: &Bed, options: &Options, sidescope: &Path, observe: &Cmd) -> Result<()> {
    bookinfo::start_load(bed, &options.testbed, Load { count: None, rate: Some(KEPT_RATE) })?;
    let (outside, pod) = (bed.host(OUTSIDE)?, bed.pod("productpage-v1")?);
    // As the user came here.
    let sudo = if env::var_os("SUDO_UID").is_some() { "sudo " } else { "" };
    let productpage = bed.service("productpage")?.v4;
    // What it leaves in the kernel goes with the bed.
    let agent = Cmd::new(sidescope).args(["agent", "--bpffs"]).arg(bed.bpffs()?);
    let agent = agent.arg("--cgroup").arg(bed.cgroup());
    let invitation = format!(
        "bed {id} stays until Ctrl-C (or `{sudo}{testbed} end {id}`), with {KEPT_RATE} calls a second\n\
         \x20   a call:        {sudo}nsenter --net=/run/netns/{outside} curl http://{productpage}:{HTTP_PORT}/productpage\n\
         \x20   in a pod:      {sudo}nsenter --net=/run/netns/{pod} ss -tnp\n\
         \x20   the pods:      ip netns list\n\
         \x20   watch again:   {sudo}{observe} --for 10s\n\
         \x20   an agent:      {sudo}{agent}",
        id = bed.id(),
        testbed = options.testbed.display(),
        outside = outside.netns(),
        pod = pod.netns(),
        observe = observe.line(),
        agent = agent.line(),
    );
    bed.stay(|| progress(&invitation))
}

fn progress(text: &str) {
    let stderr = std::io::stderr();
    let (colour, plain) = if stderr.is_terminal() { ("\x1b[1;34m", "\x1b[0m") } else { ("", "") };
    eprintln!("{colour}==>{plain} {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_a_number_or_a_multiple() {
        for (text, calls) in
            [("7", Some(7)), ("10x", Some(500)), ("0", None), ("x", None), ("99999999999x", None)]
        {
            assert_eq!(text.parse::<Calls>().ok(), calls.map(Calls), "{text}");
        }
    }
}
