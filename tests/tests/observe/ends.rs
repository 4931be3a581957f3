//! How a watch ends: with results, and with nothing of it left in the kernel.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use aya::programs::{loaded_links, loaded_programs};
use nix::sys::signal::Signal;
use sidescope_tests::{Cmd, Proc, wait_for};

use crate::fixture::{Mesh, Observer, SOON, TESTBED, dial, port_80};

#[test]
fn signals_and_the_end_of_the_time_end_it_with_results() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server) = (mesh.pod("caller")?, mesh.server("server")?);
    let expected = BTreeSet::from([port_80(server.v4())]);
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let observer = mesh.observe()?;
        assert_eq!(dial(&caller, "blocking", server.v4())?, "ok");
        observer.process.signal(signal)?;
        assert_eq!(observer.results()?.destinations("caller")?, expected, "{signal}");
    }
    // It connects all the while: how much of the time is left when the start of the watch is known here depends on the machine.
    let again = format!("while {TESTBED} dial blocking {}; do :; done", port_80(server.v4()));
    let connecting = caller.spawn(&Cmd::new("sh").args(["-c", &again]))?;
    let (cgroup, inventory) = (mesh.bed.pods_cgroup(), mesh.inventory()?);
    let observer = Observer::start_with(&mesh.bed, &cgroup, &inventory, &["--for", "2s"])?;
    assert_eq!(observer.results()?.destinations("caller")?, expected);
    connecting.must_run()?;
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
