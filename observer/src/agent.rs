//! `sidescope agent`: watches one node for as long as it runs. Its programs stay in the kernel when it ends, and the next agent goes
//! on with them. Until there is an aggregator to report to, it prints what it learns.

use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::cgroup::{self, Cgroup};
use crate::changes::Changes;
use crate::cli::Agent;
use crate::older::Older;
use crate::probes::Settings;
use crate::probes::pins::{self, Mark, PinError, Pins, Taken};
use crate::watch::{Failure, Step, Stop, Watch, collect};

/// How long to wait for another agent, which may be about to end.
const OTHER_AGENT: Duration = Duration::from_secs(10);
/// How often to look whether it has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Watches until a signal comes, or purges.
///
/// # Errors
/// See [`Failure`]. Programs that were attached before stay attached.
pub async fn run(args: &Agent) -> Result<(), Failure> {
    if args.purge {
        return purge(&args.bpffs);
    }
    let setup = |err| Failure::Setup(err);
    let mut stop = Stop::new().map_err(Failure::Setup)?;
    let cgroup = cgroup::open(args.kernel.cgroup.as_deref()).map_err(|err| setup(err.into()))?;
    let settings =
        Settings { edges: args.kernel.edges, ring_bytes: args.kernel.ring_bytes, ..Settings::default() };
    let pins = tokio::select! {
        () = stop.told() => return Ok(()),
        pins = hold(&args.bpffs) => pins.map_err(|err| setup(err.into()))?,
    };
    let taken = pins.take_over(&cgroup.dir, &settings).map_err(|err| setup(err.into()))?;
    watch(taken, &pins, cgroup, &settings, &mut stop).await.map_err(Failure::Run)
}

/// Waits for the folder of pins until whoever has it has had time to end.
async fn hold(bpffs: &Path) -> Result<Pins, PinError> {
    let end = Instant::now() + OTHER_AGENT;
    let mut told = false;
    loop {
        if let Some(pins) = Pins::hold(bpffs)? {
            return Ok(pins);
        }
        if Instant::now() >= end {
            return Err(PinError::Held { path: bpffs.join(pins::FOLDER) });
        }
        if !told {
            info!(bpffs = %bpffs.display(), seconds = OTHER_AGENT.as_secs(), "another agent runs: waiting for its end");
            told = true;
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// From the first edge to the last.
async fn watch(
    taken: Taken,
    pins: &Pins,
    cgroup: Cgroup,
    settings: &Settings,
    stop: &mut Stop,
) -> anyhow::Result<()> {
    let Taken { mut probes, layout, adopted, others, refused } = taken;
    if let Some(reason) = refused {
        warn!(%reason, "what an agent of this version has left is not whole: programs were attached anew");
    }
    let older = match adopted {
        Some(adopted) => Older::adopted(probes.older()?, adopted.listed),
        None => Older::default(),
    };
    let killed = adopted.is_some_and(|adopted| !adopted.reported);
    layout.unmark(Mark::Reported)?;
    if killed {
        warn_of_kill();
        // What it had read, the programs would not tell again.
        probes.forget_hosts()?;
    }
    let mut watch = Watch::new(probes, settings, cgroup.path, older);
    if killed {
        watch.collector.agent_killed();
    }
    for other in &others {
        drain(other, &mut watch)?;
        pins.remove(other)?;
    }
    watch.take_all()?;
    info!(
        cgroup = %watch.cgroup.display(), layout = layout.name, adopted = adopted.is_some(), edges = watch.collector.edges().len(),
        "watching"
    );

    let mut changes = Changes::default();
    let mut listed = watch.older.is_complete();
    loop {
        tokio::select! {
            () = stop.told() => break,
            step = watch.step() => if step? == Step::Tick {
                anyhow::ensure!(
                    layout.is_pinned(),
                    "somebody has removed pins below {} while this agent ran: programs are no longer attached; start it again",
                    pins.root().display()
                );
                report(&watch, &mut changes)?;
                if !listed && watch.older.is_complete() {
                    layout.mark(Mark::Listed)?;
                    listed = true;
                }
            },
        }
    }
    watch.take_all()?;
    watch.collector.finish();
    report(&watch, &mut changes)?;
    layout.mark(Mark::Reported)?;
    info!(
        "ended; the programs stay attached and record for the next agent (`sidescope agent --purge` removes them)"
    );
    Ok(())
}

/// Takes over what another layout knew. Its programs come off only here, when those of `watch` have long been attached.
fn drain(other: &pins::Other, watch: &mut Watch) -> Result<(), PinError> {
    let collector = &mut watch.collector;
    let drained = other.drain(&mut watch.probes, |record| collect(collector, record))?;
    info!(layout = other.name, edges = drained.edges, "took over from another layout");
    collector.sweep(drained.beyond);
    if drained.killed {
        warn_of_kill();
        collector.agent_killed();
    }
    if let Some(reason) = drained.lost {
        collector.unreadable_layout();
        warn!(
            layout = other.name,
            %reason,
            "edges of an agent of another version cannot be read and are lost, as far as it had not reported them; those of connections \
             that are open come again by themselves. Before the next such change, let the agent end by SIGTERM: it then reports all"
        );
    }
    Ok(())
}

fn warn_of_kill() {
    warn!(
        "the agent before this one has not reported to its end (killed, or it failed): host names that it had read are known again \
         with the next request that names them"
    );
}

/// Prints what is new.
fn report(watch: &Watch, changes: &mut Changes) -> anyhow::Result<()> {
    let changes = changes.tell(watch.collector.edges(), watch.hit()?, watch.losses()?);
    if changes.is_empty() {
        return Ok(());
    }
    debug!(lines = changes.len(), "reporting");
    let mut out = BufWriter::new(io::stdout().lock());
    for change in &changes {
        serde_json::to_writer(&mut out, change).context("cannot print what was seen")?;
        out.write_all(b"\n").context("cannot print what was seen")?;
    }
    out.flush().context("cannot print what was seen")
}

fn purge(bpffs: &Path) -> Result<(), Failure> {
    let removed = pins::purge(bpffs).map_err(|err| match err {
        err @ PinError::Io { .. } => Failure::Run(err.into()),
        err => Failure::Setup(err.into()),
    })?;
    let mut text = String::new();
    for pins::Removed { dir, links, maps } in &removed {
        text += &format!("removed {}: {links} attached programs, {maps} maps\n", dir.display());
    }
    if removed.is_empty() {
        text = format!("nothing to remove in {}\n", bpffs.display());
    }
    io::stdout().write_all(text.as_bytes()).context("cannot print what was removed").map_err(Failure::Run)
}
