//! How a watch ends: with results, and with nothing of it left in the kernel.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use aya::programs::{loaded_links, loaded_programs};
use nix::sys::signal::Signal;
use sidescope_tests::{Proc, patient, wait_for};

use crate::fixture::{Mesh, Observer, SOON, dial, port_80};

#[test]
fn signals_and_the_end_of_the_time_end_it_with_results() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server) = (mesh.pod("caller")?, mesh.server("server")?);
    for signal in [Some(Signal::SIGINT), Some(Signal::SIGTERM), None] {
        let time = format!("{}s", patient(Duration::from_secs(2)).as_secs());
        let time: &[&str] = if signal.is_none() { &["--for", &time] } else { &[] };
        let observer = Observer::start_with(&mesh.bed, &mesh.bed.pods_cgroup(), &mesh.inventory()?, time)?;
        assert_eq!(dial(&caller, "blocking", server.v4())?, "ok");
        if let Some(signal) = signal {
            observer.process.signal(signal)?;
        }
        let results = observer.results()?;
        assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(server.v4())]), "{signal:?}");
    }
    mesh.bed.end()
}

/// Ids of the programs and of the links that a process holds.
fn held(process: &Proc) -> Result<(BTreeSet<u32>, BTreeSet<u32>)> {
    let (mut programs, mut links) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(format!("/proc/{}/fdinfo", process.pid()))? {
        // A descriptor may have been closed since.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let id = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)).map(|id| id.trim().parse::<u32>())
        };
        programs.extend(id("prog_id:").transpose()?);
        links.extend(id("link_id:").transpose()?);
    }
    Ok((programs, links))
}

fn loaded() -> (BTreeSet<u32>, BTreeSet<u32>) {
    // What ends while it is listed cannot be asked any more, and is none of those that are left.
    let programs = loaded_programs().filter_map(|program| Some(program.ok()?.id())).collect();
    let links = loaded_links().filter_map(|link| Some(link.ok()?.id())).collect();
    (programs, links)
}

#[test]
fn nothing_is_left_in_the_kernel_whatever_ends_it() -> Result<()> {
    let mut mesh = Mesh::new()?;
    mesh.pod("caller")?;
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let observer = mesh.observe()?;
        let (programs, links) = held(&observer.process)?;
        assert_eq!((programs.len(), links.len()), (10, 6), "{signal}");
        let (all_programs, all_links) = loaded();
        assert!(programs.is_subset(&all_programs) && links.is_subset(&all_links), "{signal}");
        observer.process.signal(signal)?;
        observer.process.wait(SOON)?;
        wait_for("the kernel to let go of programs and links", SOON, || {
            let (all_programs, all_links) = loaded();
            Ok((programs.is_disjoint(&all_programs) && links.is_disjoint(&all_links)).then_some(()))
        })
        .with_context(|| format!("after {signal}"))?;
    }
    mesh.bed.end()
}
