//! Pods come and go, and so does what is kept of them; proxies of pods with user namespaces of their own are never told.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use nix::sched::{CloneFlags, setns};
use sidescope::probes::{Event, Probes, Settings, netns_cookie};
use sidescope_common::{Counter, EdgeKey, EdgeState, SourceAddr, SourceKey};
use sidescope_tests::{Cmd, Host, wait_for};

use crate::fixture::{dial_cmd, port_80, sidescope};
use crate::scene::{Agent, SOON, Scene};

const PROXY: u32 = 1337;
const APP: u32 = 1000;
/// The first user on the machine of a pod with users of its own.
const FIRST: u32 = 2_000_000;

/// Whether this kernel tells the cookies of namespaces, by which it is known who is gone.
pub(crate) fn tells_cookies() -> Result<bool> {
    Ok(netns_cookie(&UdpSocket::bind("127.0.0.1:0")?)?.is_some())
}

/// The cookie of a host's network namespace.
fn cookie(host: &Host) -> Result<u64> {
    let namespace = File::open(Path::new("/run/netns").join(host.netns()))?;
    // On a thread of its own, which stays in there.
    let ask = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        netns_cookie(&UdpSocket::bind("0.0.0.0:0")?)
    });
    ask.join().expect("a panic here is a bug")?.context("this kernel does not tell cookies")
}

/// Ends a pod without processes, as a runtime does.
pub(crate) fn delete(pod: &Host) -> Result<()> {
    Cmd::new("ip").args(["netns", "delete", pod.netns()]).run().map(drop)
}

/// A map of the agent.
fn map<K: aya::Pod, V: aya::Pod>(scene: &Scene, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(Map::from_map_data(MapData::from_pin(scene.bpffs.layout()?.join(name))?)?.try_into()?)
}

pub(crate) fn edges(scene: &Scene) -> Result<BTreeSet<EdgeKey>> {
    Ok(map::<EdgeKey, EdgeState>(scene, "EDGES")?.keys().collect::<Result<_, _>>()?)
}

/// The namespaces of which the agent's maps hold anything.
fn namespaces(scene: &Scene) -> Result<BTreeSet<u64>> {
    let mut found: BTreeSet<u64> = edges(scene)?.into_iter().map(|key| key.netns).collect();
    for key in map::<SourceKey, SourceAddr>(scene, "SOURCES")?.keys() {
        found.insert(key?.netns);
    }
    for netns in map::<u64, u64>(scene, "CGROUPS")?.keys() {
        found.insert(netns?);
    }
    for entry in map::<u32, u64>(scene, "PROXY_UIDS")?.iter() {
        found.insert(entry?.1);
    }
    Ok(found)
}

/// A destination of its own for each number.
fn nowhere(number: u8) -> SocketAddr {
    port_80(Ipv4Addr::new(203, 0, 113, number))
}

/// Connects; whether anybody answers or not.
fn connect(from: &Host, to: SocketAddr, uid: u32) -> Result<()> {
    from.run(&dial_cmd("blocking", to).uid(uid)).map(drop)
}

#[test]
fn pods_come_and_go_and_their_edges_with_them() -> Result<()> {
    if !tells_cookies()? {
        return Ok(());
    }
    let scene = Scene::new()?;
    // Of three pods and what stays, as a scan may be under way when one ends; all of them together have more than that.
    let agent = scene.agent(&["--edges", "17"])?;
    let stays = scene.connect(250)?;
    let mut gone = BTreeSet::new();
    for round in 0..6 {
        let pod = scene.bed.add_pod(&format!("pod-{round}"))?;
        pod.unroute("203.0.113.0/24")?;
        let mut made: Vec<_> = (0..4).map(|number| nowhere(round * 10 + number)).collect();
        // One that has a local address, which is kept as well.
        made.push(scene.server_edge());
        for to in &made {
            connect(&pod, *to, 0)?;
        }
        agent.tells(&made)?;
        gone.insert(cookie(&pod)?);
        delete(&pod)?;
    }
    // The first connect of a new pod brings the scan that misses the last one, and nothing of those that are gone is left.
    let pod = scene.bed.add_pod("last")?;
    connect(&pod, scene.server_edge(), 0)?;
    wait_for("the end of what is kept of pods that are gone", SOON, || {
        agent.process.must_run()?;
        Ok(namespaces(&scene)?.is_disjoint(&gone).then_some(()))
    })?;
    let lives = [&scene.client, &pod].into_iter().map(cookie).collect::<Result<BTreeSet<_>>>()?;
    // Zero stands for the user that is the proxy everywhere.
    let left: BTreeSet<u64> = namespaces(&scene)?.into_iter().filter(|netns| *netns != 0).collect();
    assert_eq!(left, lives);
    assert!(edges(&scene)?.iter().any(|key| key.addr[12..] == [203, 0, 113, 250]), "one that lives is gone");
    agent.tells(&[stays])?;
    assert!(agent.losses()?.is_null(), "{}", agent.process.log()?);
    scene.bed.end()
}

#[test]
fn a_set_that_was_full_takes_edges_again_when_who_filled_it_is_gone() -> Result<()> {
    if !tells_cookies()? {
        return Ok(());
    }
    let scene = Scene::new()?;
    let agent = scene.agent(&["--edges", "4"])?;
    let greedy = scene.bed.add_pod("greedy")?;
    greedy.unroute("203.0.113.0/24")?;
    for number in 0..8 {
        connect(&greedy, nowhere(number), 0)?;
    }
    wait_for("the loss", SOON, || Ok((agent.losses()?["edgesFull"] == 4).then_some(())))?;
    agent.process.wait_for_log("raise --edges", SOON)?;
    delete(&greedy)?;
    wait_for("room", SOON, || {
        agent.process.must_run()?;
        let wanted = scene.connect(100)?;
        Ok(agent.edges()?.contains_key(&wanted).then_some(()))
    })
    .with_context(|| agent.process.log().unwrap_or_default())?;
    scene.bed.end()
}

/// An error if it has not told what the app did, or has told what the proxy did.
fn has_told_only_the_app(agent: &Agent, app: SocketAddr, proxied: SocketAddr) -> Result<()> {
    let edges = agent.edges()?;
    let only = edges.contains_key(&app) && !edges.contains_key(&proxied);
    ensure!(only, "not {app}, or the proxy's {proxied} too: {}", agent.process.log()?);
    Ok(())
}

#[test]
fn edges_of_a_pods_own_proxy_are_not_told_before_a_scan_has_said_who_it_is() -> Result<()> {
    let scene = Scene::new()?;
    let agent = scene.agent(&[])?;
    let pod = scene.bed.add_pod_with_users("caller", FIRST)?;
    pod.unroute("203.0.113.0/24")?;
    connect(&pod, nowhere(1), PROXY)?;
    connect(&pod, nowhere(2), APP)?;
    agent.tells(&[nowhere(2)])?;
    has_told_only_the_app(&agent, nowhere(2), nowhere(1))?;
    // It takes no room in the set either.
    wait_for("the end of the proxy's edge", SOON, || {
        Ok(edges(&scene)?.iter().all(|key| key.uid != FIRST + PROXY).then_some(()))
    })?;
    // The same at the end: an agent that has no time left looks once more.
    let late = scene.bed.add_pod_with_users("late", 2 * FIRST)?;
    late.unroute("203.0.113.0/24")?;
    connect(&late, nowhere(3), PROXY)?;
    connect(&late, nowhere(4), APP)?;
    agent.terminate()?;
    has_told_only_the_app(&agent, nowhere(4), nowhere(3))?;
    scene.bed.end()
}

#[test]
fn what_an_agent_knew_of_proxies_the_next_one_knows() -> Result<()> {
    if !tells_cookies()? {
        return Ok(());
    }
    for more in [&[][..], &["--edges", "1024"]] {
        let scene = Scene::new()?;
        let first = scene.agent(&[])?;
        first.process.kill();
        let pod = scene.bed.add_pod("caller")?;
        pod.unroute("203.0.113.0/24")?;
        connect(&pod, nowhere(1), FIRST + PROXY)?;
        connect(&pod, nowhere(2), FIRST + APP)?;
        // As if the first one had come to know it just before it was killed.
        map::<u32, u64>(&scene, "PROXY_UIDS")?.insert(FIRST + PROXY, cookie(&pod)?, 0)?;
        // No scan will tell it again.
        delete(&pod)?;
        assert_eq!(edges(&scene)?.len(), 2);
        let second = scene.agent(more)?;
        second.tells(&[nowhere(2)])?;
        scene.drained(&second)?;
        has_told_only_the_app(&second, nowhere(2), nowhere(1))?;
        assert!(edges(&scene)?.iter().all(|key| key.uid != FIRST + PROXY), "it still takes room");
        scene.bed.end()?;
    }
    Ok(())
}

/// What the kernel has announced: edges by their port, and hosts.
fn announced(probes: &mut Probes) -> (usize, Vec<String>) {
    let (mut edges, mut hosts) = (0, Vec::new());
    probes.drain(|record| match record {
        Ok(Event::Edge(_)) => edges += 1,
        Ok(Event::Head(_, bytes)) => hosts.push(String::from_utf8_lossy(bytes).into_owned()),
        other => panic!("{other:?}"),
    });
    (edges, hosts)
}

#[test]
fn an_edge_that_was_forgotten_is_announced_anew_with_its_hosts() -> Result<()> {
    let scene = Scene::new()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _entered = runtime.enter();
    let mut probes = Probes::attach(&File::open(scene.bed.pods_cgroup())?, &Settings::default())?;
    let folder = tempfile::tempdir()?;
    scene.request("one.test")?;
    let open = scene.requests("one.test", "two.test", folder.path())?;
    assert_eq!(announced(&mut probes), (1, vec!["one.test".to_owned()]));
    let forget = |probes: &mut Probes| -> Result<()> {
        let keys: Vec<EdgeKey> = probes.edges()?.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys.len(), 1);
        let netns = keys.iter().map(|key| key.netns).collect();
        probes.forget_edges(&keys)?;
        probes.forget_namespaces(&netns)?;
        assert!(probes.edges()?.is_empty() && probes.sources()?.is_empty() && probes.cgroups()?.is_empty());
        // What is not there is as good as forgotten.
        probes.forget_edges(&keys)?;
        Ok(probes.forget_namespaces(&netns)?)
    };
    forget(&mut probes)?;
    // A connection that is still open: what the edge no longer holds is counted.
    fs::write(folder.path().join("go"), "go on")?;
    open.success(SOON)?;
    assert_eq!(announced(&mut probes), (0, Vec::new()));
    // More than one where TCP sends it again.
    assert!(probes.counter(Counter::HeadBudget)? >= 1);
    scene.request("one.test")?;
    assert_eq!(announced(&mut probes), (1, vec!["one.test".to_owned()]));
    assert_eq!(probes.edges()?.len(), 1);
    assert!(!probes.sources()?.is_empty() && !probes.cgroups()?.is_empty());
    forget(&mut probes)?;
    drop(probes);
    scene.bed.end()
}

#[test]
fn where_no_namespace_can_be_entered_edges_wait_for_a_while_and_are_told_and_so_is_what_to_do() -> Result<()>
{
    let scene = Scene::new()?;
    // All that the programs take, and not what a scan takes.
    let rights = "-all,+bpf,+perfmon,+net_admin,+sys_resource";
    let cmd = Cmd::new("setpriv").args(["--bounding-set", rights, "--"]).arg(sidescope()?);
    let cmd = cmd.args(["agent", "--bpffs"]).arg(scene.bpffs.path());
    let process = scene.bed.spawn_on_machine(&cmd.arg("--cgroup").arg(scene.bed.pods_cgroup()))?;
    process.wait_for_log(" watching ", SOON)?;
    let agent = Agent { process };
    let start = Instant::now();
    let seen = scene.connect(1)?;
    agent.tells(&[seen])?;
    assert!(start.elapsed() >= Duration::from_secs(9), "after {:?}", start.elapsed());
    let said = agent.process.log()?;
    let warning = said.lines().find(|line| line.contains("could not be looked at")).context(said.clone())?;
    assert!(warning.contains("SYS_ADMIN and SYS_PTRACE") && warning.contains("hostPID"), "{warning}");
    scene.bed.end()
}
