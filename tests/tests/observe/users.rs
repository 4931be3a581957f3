//! Pods with user namespaces of their own (`hostUsers: false`): their proxy is another user on the machine than elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;

use anyhow::Result;
use sidescope_tests::{Cmd, Host, Proc, wait_for};

use crate::fixture::{Mesh, Observer, SOON, TESTBED, dial_cmd, port_80, sidescope};

const PROXY: u32 = 1337;
const APP: u32 = 1000;
/// The pod's first user on the machine.
const FIRST: u32 = 2_000_000;

fn connect(from: &Host, uid: u32, to: Ipv4Addr) -> Result<()> {
    let output = from.run(&dial_cmd("blocking", port_80(to)).uid(uid))?;
    assert_eq!(output.stdout, b"ok\n", "{to} as {uid}");
    Ok(())
}

/// Opens a connection and keeps it.
fn keep(from: &Host, cmd: Cmd, to: Ipv4Addr) -> Result<Proc> {
    let process = from.spawn(&cmd.args(["keep", &port_80(to).to_string()]))?;
    process.wait_for_log("1 open\n", SOON)?;
    Ok(process)
}

fn as_user(uid: u32) -> Cmd {
    Cmd::new(TESTBED).uid(uid)
}

/// The user that a process is on the machine.
fn uid_of(process: &Proc) -> Result<u32> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    Ok(uids.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Waits until the network namespaces have been scanned this often.
fn scanned(observer: &Observer, times: usize) -> Result<()> {
    wait_for(&format!("scan {times}"), SOON, || {
        observer.process.must_run()?;
        let log = observer.process.log()?;
        Ok((log.matches("network namespaces looked at").count() >= times).then_some(()))
    })
}

/// One that tells of its scans.
fn observe(mesh: &Mesh, more: &[&str]) -> Result<Observer> {
    let cmd = Cmd::new(sidescope()?).env("RUST_LOG", "debug");
    let observer = Observer::start_as(cmd, &mesh.bed, &mesh.bed.pods_cgroup(), &mesh.inventory()?, more)?;
    scanned(&observer, 1)?;
    Ok(observer)
}

#[test]
fn its_proxys_connections_are_not_the_workloads() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let caller = mesh.pod_with_users("caller", FIRST)?;
    let mut services = Vec::new();
    for name in ["called", "kept", "proxied", "proxied-before"] {
        let server = mesh.server(name)?;
        services.push(mesh.service(name, Some(&server))?.v4);
    }
    let [called, kept, proxied, proxied_before] = services[..] else { unreachable!() };
    let app = keep(&caller, as_user(APP), kept)?;
    let proxy = keep(&caller, as_user(PROXY), proxied_before)?;
    assert_eq!((uid_of(&app)?, uid_of(&proxy)?), (FIRST + APP, FIRST + PROXY));

    let observer = mesh.observe()?;
    connect(&caller, APP, called)?;
    connect(&caller, PROXY, proxied)?;
    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([called, kept].map(port_80)));
    results.must_be_complete()?;
    let sidecar = results.sidecars()["default/caller.yaml"];
    assert!(sidecar.contains("*/called.default") && !sidecar.contains("*/proxied"), "{sidecar}");
    mesh.bed.end()
}

#[test]
fn its_proxys_connections_take_no_room_once_the_proxy_is_known() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let caller = mesh.pod_with_users("caller", FIRST)?;
    let (called, proxied) = (mesh.server("called")?.v4(), mesh.server("proxied")?.v4());
    let observer = observe(&mesh, &["--edges", "1"])?;
    connect(&caller, PROXY, proxied)?;
    connect(&caller, APP, called)?;
    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(called)]));
    results.must_be_complete()?;
    mesh.bed.end()
}

#[test]
fn a_pod_whose_users_are_known_late_is_looked_at_again_with_its_first_connection() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let caller = mesh.pod_with_users("caller", FIRST)?;
    let (called, proxied) = (mesh.server("called")?.v4(), mesh.server("proxied")?.v4());
    // Nobody in the pod is watched yet, as where its namespaces are there before its first process.
    let procs = fs::read_to_string(caller.cgroup().join("cgroup.procs"))?;
    fs::write(mesh.bed.cgroup().join("cgroup.procs"), procs.trim_end())?;
    let observer = observe(&mesh, &[])?;
    let (app, proxy) = (keep(&caller, as_user(APP), called)?, keep(&caller, as_user(PROXY), proxied)?);
    scanned(&observer, 2)?;
    // Nobody tells at the end what was not told by then.
    app.kill();
    proxy.kill();
    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(called)]));
    mesh.bed.end()
}

#[test]
fn a_program_that_calls_itself_the_proxy_is_none() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, plain) = (mesh.pod_with_users("caller", FIRST)?, mesh.pod("plain")?);
    let (called, later) = (mesh.server("called")?.v4(), mesh.server("later")?.v4());
    let observer = observe(&mesh, &[])?;
    let unshare = Cmd::new("unshare").args(["--user", "--map-user", &PROXY.to_string()]);
    // In a user namespace within that of its pod.
    let nested = keep(&caller, unshare.clone().args(["--", TESTBED]), called)?;
    let map = |process: &Proc| fs::read_to_string(format!("/proc/{}/uid_map", process.pid()));
    let words = |map: &str| map.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(&map(&nested)?), ["1337", "2000000", "1"]);
    // In a pod with the machine's users, with a network namespace too: it would be the machine's root that is left out.
    let alone = plain.spawn(&unshare.args(["--net", "--", "sleep", "infinity"]))?;
    wait_for("a map of users", SOON, || {
        alone.must_run()?;
        Ok((words(&map(&alone)?) == ["1337", "0", "1"]).then_some(()))
    })?;
    connect(&plain, 0, called)?;
    // The first connection of a pod that is new brings a scan.
    connect(&mesh.bed.add_pod("new")?, 0, called)?;
    scanned(&observer, 2)?;
    connect(&plain, 0, later)?;
    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(called)]));
    assert_eq!(results.destinations("plain")?, BTreeSet::from([called, later].map(port_80)));
    mesh.bed.end()
}
