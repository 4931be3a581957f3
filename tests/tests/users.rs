//! Pods with user namespaces of their own (`hostUsers: false`): what a scan tells of their users, and what the kernel makes of it.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use sidescope::namespaces::Part;
use sidescope::probes::{Probes, Settings, netns_cookie};
use sidescope::scan::{self, Found, Running, What};
use sidescope::scanner::Client;
use sidescope::uid_map::UidMap;
use sidescope_common::MAX_PROXY_UIDS;
use sidescope_tests::existing::scanner;
use sidescope_tests::{Bed, Cmd, Host};
use tokio::runtime::{Builder, Runtime};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(20);
const PROXY: u32 = 1337;
/// The first user on the machine of the pod with users of its own.
const FIRST: u32 = 2_000_000;

/// The binary under test: what `SIDESCOPE_BIN` names, else what the same cargo has built beside the tests.
fn sidescope() -> Result<PathBuf> {
    let beside = || Path::new(TESTBED).with_file_name("sidescope");
    let path = std::env::var_os("SIDESCOPE_BIN").map_or_else(beside, PathBuf::from);
    let missing = "build it with `cargo build -p sidescope`, or name it in SIDESCOPE_BIN";
    ensure!(path.is_file(), "no sidescope at {}: {missing}", path.display());
    Ok(path)
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// All that a scan tells, which must be without a failure.
fn parts(start: impl FnOnce() -> Result<Running>) -> Result<Vec<Part>> {
    runtime()?.block_on(async {
        let mut running = start()?;
        let mut parts = Vec::new();
        loop {
            match running.next().await.context("no end")?? {
                Found::Part(part) => parts.push(part),
                Found::End(end) => {
                    ensure!(end.failed == 0, "not everything was seen: {end:?}");
                    return Ok(parts);
                }
            }
        }
    })
}

/// The cookie of a host's network namespace.
fn cookie(host: &Host) -> Result<u64> {
    let namespace = File::open(Path::new("/run/netns").join(host.netns()))?;
    // On a thread of its own, which stays in there.
    let ask = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        netns_cookie(&UdpSocket::bind("0.0.0.0:0")?)
    });
    let cookie = ask.join().expect("a panic here is a bug")?;
    cookie.context("this kernel does not tell cookies")
}

/// What a scan has told of a host. Not by its address, which other beds have too.
fn part<'p>(parts: &'p [Part], host: &Host) -> Result<&'p Part> {
    let cookie = cookie(host)?;
    let part = parts.iter().find(|part| part.cookie() == Some(cookie));
    part.with_context(|| format!("nothing of {}", host.name()))
}

/// The users of a host.
fn users(parts: &[Part], host: &Host) -> Result<Option<UidMap>> {
    Ok(part(parts, host)?.users.clone())
}

#[test]
fn a_scan_tells_the_users_of_pods_that_have_their_own() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    let (own, plain) = (bed.add_pod_with_users("own", FIRST)?, bed.add_pod("plain")?);
    let socket = folder.path().join("scanner.sock");
    let process = bed.spawn_on_machine(&scanner(&sidescope()?, &socket, &bed.pods_cgroup()))?;
    process.wait_for_log("scanner ready", SOON)?;
    let map = UidMap::parse(&format!("0 {FIRST} 65536\n"))?;
    for told in [
        parts(|| Ok(Client::new(&socket).start(What::Addresses)))?,
        parts(|| Ok(scan::start(bed.pods_cgroup(), What::Addresses)?))?,
    ] {
        assert_eq!(users(&told, &own)?, Some(map.clone()));
        assert_eq!(users(&told, &plain)?, None);
        assert_eq!(users(&told, &bed.node()?)?, None);
        // It has a process, and the other one has none.
        assert!(part(&told, &own)?.watched && !part(&told, &plain)?.watched);
    }
    let of_others = parts(|| Ok(scan::start(plain.cgroup().to_owned(), What::Addresses)?))?;
    assert_eq!(users(&of_others, &own)?, Some(UidMap::default()), "it has nobody who is watched");
    assert!(!part(&of_others, &own)?.watched);
    process.signal(Signal::SIGTERM)?;
    process.success(SOON)?;
    bed.end()
}

#[test]
fn the_kernel_leaves_out_proxies_that_it_is_told_of_while_it_watches() -> Result<()> {
    let bed = Bed::new()?;
    let (pod, other) = (bed.add_pod_with_users("pod", FIRST)?, bed.add_pod("other")?);
    let dial = |uid: u32, port: u16| {
        let address = format!("203.0.113.1:{port}");
        pod.run(&Cmd::new(TESTBED).args(["dial", "blocking", &address]).uid(uid)).map(drop)
    };
    let runtime = runtime()?;
    let _entered = runtime.enter();
    let settings = Settings::default();
    let mut probes = Probes::attach(&File::open(bed.pods_cgroup())?, &settings)?;
    dial(PROXY, 1)?;
    let netns = Some(cookie(&pod)?);
    assert!(probes.add_proxy_uid(netns, FIRST + PROXY)?);
    dial(PROXY, 2)?;
    dial(PROXY + 1, 3)?;
    let ports = probes.edges()?.into_iter().map(|(key, _)| (key.uid - FIRST, key.port));
    assert_eq!(ports.collect::<BTreeSet<_>>(), BTreeSet::from([(PROXY, 1), (PROXY + 1, 3)]));

    // Who is the same user on the machine, elsewhere, is no proxy.
    other.run(&Cmd::new(TESTBED).args(["dial", "blocking", "203.0.113.1:5"]).uid(FIRST + PROXY))?;
    assert!(probes.edges()?.iter().any(|(key, _)| key.port == 5), "hidden with the proxy");
    // Uids are given out again when a pod has ended.
    assert!(probes.add_proxy_uid(Some(cookie(&other)?), FIRST + PROXY)?);
    other.run(&Cmd::new(TESTBED).args(["dial", "blocking", "203.0.113.1:6"]).uid(FIRST + PROXY))?;
    assert!(probes.edges()?.iter().all(|(key, _)| key.port != 6), "not left out");
    assert!(probes.add_proxy_uid(netns, FIRST + PROXY)?);

    let known = settings.proxy_uids.len() as u32 + 1;
    for uid in known..MAX_PROXY_UIDS {
        assert!(probes.add_proxy_uid(None, 3_000_000 + uid)?, "{uid}");
    }
    assert!(!probes.add_proxy_uid(None, 3_000_000)?, "the map is full");
    assert!(probes.add_proxy_uid(netns, FIRST + PROXY)?, "what it holds it still holds");
    dial(PROXY, 4)?;
    assert_eq!(probes.edges()?.len(), 3);
    drop(probes);
    bed.end()
}
