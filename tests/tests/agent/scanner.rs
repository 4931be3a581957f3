//! Who enters the network namespaces for an agent: a process of its own, or nobody.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use sidescope_tests::{Cmd, Host, Proc, existing, wait_for};
use tempfile::TempDir;

use crate::fixture::{TESTBED, dial_cmd, port_80, sidescope};
use crate::scene::{Agent, SOON, Scene};

/// All that an agent needs which has others enter namespaces. SYS_RESOURCE is for kernels before 5.11.
const RIGHTS: &str = "-all,+bpf,+net_admin,+perfmon,+sys_resource";
const PROXY: u32 = 1337;
const APP: u32 = 1000;
/// The first user on the machine of a pod with users of its own.
const FIRST: u32 = 3_000_000;

const FAILED: &str = "WARN network namespaces could not be looked at";
const AGAIN: &str = "all network namespaces can be looked at again";

/// An agent that cannot enter any namespace itself.
fn agent(scene: &Scene, scanner: &[&str]) -> Result<Agent> {
    let cmd = Cmd::new("setpriv").args(["--bounding-set", RIGHTS, "--"]).arg(sidescope()?);
    let cmd = cmd.args(["agent", "--bpffs"]).arg(scene.bpffs.path()).arg("--cgroup");
    let cmd = cmd.arg(scene.bed.pods_cgroup()).args(scanner).env("RUST_LOG", "debug");
    let process = scene.bed.spawn_on_machine(&cmd)?;
    process.wait_for_log(" watching ", SOON)?;
    Ok(Agent { process })
}

fn start_scanner(scene: &Scene, socket: &Path) -> Result<Proc> {
    let cmd = existing::scanner(&sidescope()?, socket, &scene.bed.pods_cgroup());
    let process = scene.bed.spawn_on_machine(&cmd)?;
    process.wait_for_log("scanner ready", SOON)?;
    Ok(process)
}

fn socket() -> Result<(TempDir, PathBuf, String)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("scanner.sock");
    let text = path.display().to_string();
    Ok((folder, path, text))
}

/// A pod that keeps what comes on port 80.
fn keeper(scene: &Scene, name: &str) -> Result<Host> {
    let pod = scene.bed.add_pod(name)?;
    let process = pod.spawn(&Cmd::new(TESTBED).args(["keep", "--listen", "80"]))?;
    pod.wait_listening(80, &process, SOON)?;
    Ok(pod)
}

fn keep(from: &Host, uid: u32, to: &Host) -> Result<()> {
    let cmd = Cmd::new(TESTBED).args(["keep", &port_80(to.v4()).to_string()]).uid(uid);
    from.spawn(&cmd)?.wait_for_log("1 open\n", SOON)
}

fn connect(from: &Host, uid: u32, to: &Host) -> Result<()> {
    let output = from.run(&dial_cmd("blocking", port_80(to.v4())).uid(uid))?;
    ensure!(output.stdout == b"ok\n", "{output:?}");
    Ok(())
}

/// Waits until an agent has said something so often.
fn says(agent: &Agent, text: &str, times: usize) -> Result<()> {
    wait_for(&format!("`{text}`, {times} times"), SOON, || {
        agent.process.must_run()?;
        Ok((agent.process.log()?.matches(text).count() >= times).then_some(()))
    })
}

#[test]
fn a_scanner_finds_older_connections_and_pods_for_an_agent_without_the_rights_to() -> Result<()> {
    let scene = Scene::new()?;
    let (folder, path, socket) = socket()?;
    let caller = scene.bed.add_pod_with_users("caller", FIRST)?;
    let [called, proxied, called_later, proxied_later] =
        ["called", "proxied", "called-later", "proxied-later"].map(|name| keeper(&scene, name));
    let (called, proxied) = (called?, proxied?);
    keep(&caller, APP, &called)?;
    keep(&caller, PROXY, &proxied)?;
    let sender = scene.requests("one.test", "two.test", folder.path())?;

    let scanner = start_scanner(&scene, &path)?;
    let agent = agent(&scene, &["--scanner", &socket])?;
    let status = fs::read_to_string(format!("/proc/{}/status", agent.process.pid()))?;
    let rights = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap_or_default();
    let (ptrace, admin) = (1 << 19, 1 << 21);
    ensure!(u64::from_str_radix(rights, 16)? & (ptrace | admin) == 0, "{status}");
    agent.tells(&[scene.server_edge(), port_80(called.v4())])?;
    assert_eq!(agent.edges()?[&scene.server_edge()]["existing"], true);
    says(&agent, "network namespaces looked at", 1)?;
    // The programs were told of it.
    fs::write(folder.path().join("go"), "go on")?;
    sender.success(SOON)?;
    agent.tells_host(scene.server_edge(), "two.test")?;

    // What was learnt of the pod: who its proxy is.
    let (called_later, proxied_later) = (called_later?, proxied_later?);
    connect(&caller, PROXY, &proxied_later)?;
    connect(&caller, APP, &called_later)?;
    agent.tells(&[port_80(called_later.v4())])?;
    let edges = agent.edges()?;
    for proxied in [proxied, proxied_later] {
        ensure!(!edges.contains_key(&port_80(proxied.v4())), "{edges:?}");
    }
    ensure!(!agent.process.log()?.contains(FAILED), "{}", agent.process.log()?);
    agent.terminate()?;
    scanner.must_run()?;
    scene.bed.end()
}

#[test]
fn a_scanner_that_is_away_is_told_once_and_asked_until_it_is_back() -> Result<()> {
    let scene = Scene::new()?;
    let (folder, path, socket) = socket()?;
    let _sender = scene.requests("one.test", "two.test", folder.path())?;
    let agent = agent(&scene, &["--scanner", &socket])?;
    let said = |text: &str| -> Result<usize> { Ok(agent.process.log()?.matches(text).count()) };
    says(&agent, "could still not be looked at", 1)?;
    ensure!(said(FAILED)? == 1, "{}", agent.process.log()?);
    let advice = format!("start `sidescope scanner --socket {socket}`");
    ensure!(said(&advice)? >= 1 && said("No such file")? >= 1, "{}", agent.process.log()?);
    ensure!(agent.edges()?.is_empty(), "{:?}", agent.edges()?);

    let scanner = start_scanner(&scene, &path)?;
    agent.tells(&[scene.server_edge()])?;
    assert_eq!(agent.edges()?[&scene.server_edge()]["existing"], true);
    says(&agent, AGAIN, 1)?;

    scanner.kill();
    let stills = said("could still not be looked at")?;
    // A pod of which nothing is known brings a scan.
    connect(&scene.bed.add_pod("new")?, APP, &scene.server)?;
    says(&agent, "could still not be looked at", stills + 1)?;
    ensure!(said(FAILED)? == 2, "{}", agent.process.log()?);
    ensure!(said("Connection refused")? >= 1, "{}", agent.process.log()?);
    let scanner = start_scanner(&scene, &path)?;
    says(&agent, AGAIN, 2)?;
    ensure!(said(FAILED)? == 2, "{}", agent.process.log()?);
    agent.terminate()?;
    scanner.must_run()?;
    scene.bed.end()
}

#[test]
fn without_a_scan_only_older_connections_are_missing_and_that_is_told_once() -> Result<()> {
    let scene = Scene::new()?;
    let folder = tempfile::tempdir()?;
    let older = keeper(&scene, "older")?;
    keep(&scene.client, APP, &older)?;
    let sender = scene.requests("one.test", "two.test", folder.path())?;
    let agent = agent(&scene, &["--scanner", "none"])?;
    fs::write(folder.path().join("go"), "go on")?;
    sender.success(SOON)?;
    scene.request("three.test")?;
    agent.tells_host(scene.server_edge(), "three.test")?;
    let edges = agent.edges()?;
    let hosts = &edges[&scene.server_edge()]["hosts"];
    assert_eq!((edges.len(), hosts), (1, &serde_json::json!(["three.test"])), "{edges:?}");
    agent.terminate()?;
    let log = agent.process.log()?;
    assert_eq!(log.matches("nobody looks into the network namespaces").count(), 1, "{log}");
    for other in ["could not be looked at", "looked at again", "ERROR", "WARN"] {
        ensure!(!log.contains(other), "{log}");
    }
    scene.bed.end()
}

#[test]
fn an_agent_without_the_rights_to_look_itself_says_so_once() -> Result<()> {
    let scene = Scene::new()?;
    let agent = agent(&scene, &[])?;
    says(&agent, "could still not be looked at", 1)?;
    let log = agent.process.log()?;
    assert_eq!(log.matches(FAILED).count(), 1, "{log}");
    ensure!(log.contains("`sidescope agent --scanner` has another process do it"), "{log}");
    agent.terminate()?;
    scene.bed.end()
}
