//! Pods that come while it watches, and pods that are gone before it ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use sidescope_tests::{Cmd, Host, wait_for};

use crate::fixture::{Mesh, Observer, SOON, dial, list, port_80};

/// Deletes a pod's network namespace, as a runtime does when a pod ends.
fn delete(pod: &Host) -> Result<()> {
    Cmd::new("ip").args(["netns", "delete", pod.netns()]).run()?;
    let file = Path::new("/run/netns").join(pod.netns());
    wait_for("the namespace to be gone", SOON, || Ok((!file.exists()).then_some(())))
}

#[test]
fn pods_that_come_late_or_go_early_are_attributed() -> Result<()> {
    let names = ["server", "early", "late", "brief"];
    // Addresses are the same in every bed, so another one tells those of pods that are not there yet.
    let mut planned = Mesh::new()?;
    for name in names {
        planned.pod(name)?;
    }
    let inventory = planned.inventory()?;
    planned.bed.end()?;

    let mut mesh = Mesh::new()?;
    let (server, early) = (mesh.server(names[0])?, mesh.pod(names[1])?);
    let observer = Observer::start(&mesh.bed, &mesh.bed.pods_cgroup(), &inventory)?;
    assert_eq!(dial(&early, "blocking", server.v4())?, "ok");
    delete(&early)?;
    let late = mesh.pod(names[2])?;
    assert_eq!(dial(&late, "blocking", server.v4())?, "ok");
    let brief = mesh.pod(names[3])?;
    assert_eq!(dial(&brief, "blocking", server.v4())?, "ok");
    delete(&brief)?;

    let results = observer.stop()?;
    for name in &names[1..] {
        assert_eq!(results.destinations(name)?, BTreeSet::from([port_80(server.v4())]), "{name}");
    }
    results.must_be_complete()?;
    mesh.bed.end()
}

#[test]
fn pods_outside_the_cgroup_are_not_watched_and_not_said_to_call_nothing() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (inside, server) = (mesh.server("inside")?, mesh.server("outside")?);
    mesh.server("idle")?;
    let observer = Observer::start(&mesh.bed, inside.cgroup(), &mesh.inventory()?)?;
    for caller in [&inside, &server] {
        assert_eq!(dial(caller, "blocking", server.v4())?, "ok");
    }
    let results = observer.stop()?;
    let watched = list(&results.graph["workloads"]).iter().map(|node| node["workload"]["name"].as_str());
    assert_eq!(watched.collect::<Vec<_>>(), [Some("inside")], "{}", results.said);
    assert!(results.said.contains("2 workloads were not watched"), "{}", results.said);
    assert!(!results.said.contains("calls nothing that was seen"), "{}", results.said);
    mesh.bed.end()
}

#[test]
fn one_that_is_watched_and_calls_nobody_is_said_to_call_nothing() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let quiet = mesh.server("quiet")?;
    let results = Observer::start(&mesh.bed, quiet.cgroup(), &mesh.inventory()?)?.stop()?;
    assert!(results.said.contains("calls nothing that was seen"), "{}", results.said);
    mesh.bed.end()
}

#[test]
fn who_needs_more_room_for_edges_is_told_so() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server) = (mesh.pod("caller")?, mesh.server("server")?);
    let observer =
        Observer::start_with(&mesh.bed, &mesh.bed.pods_cgroup(), &mesh.inventory()?, &["--edges", "1"])?;
    for server in [server.v4().into(), IpAddr::from(server.v6())] {
        assert_eq!(dial(&caller, "blocking", server)?, "ok");
    }
    let results = observer.stop()?;
    assert_eq!(results.graph["losses"]["edgesFull"], 1, "{}", results.said);
    let said = |line: &str, of: &[&str]| of.iter().all(|word| line.contains(word));
    for words in
        [&["WARN", "edgesFull", "raise --edges"][..], &["1 connect was not recorded", "raise --edges"]]
    {
        assert!(results.said.lines().any(|line| said(line, words)), "{words:?} in {}", results.said);
    }
    mesh.bed.end()
}
