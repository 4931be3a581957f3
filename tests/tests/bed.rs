//! The test bed itself: what the other end-to-end tests take for granted.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sidescope_tests::bookinfo::{self, Load};
use sidescope_tests::{Bed, Cmd, Host, ServicePort, wait_for};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(10);

/// A server on port 80 that says its pod's name.
fn greeter(bed: &Bed, name: &str) -> Result<Host> {
    let pod = bed.add_pod(name)?;
    let process = pod.spawn(&Cmd::new(TESTBED).args(["greet", "80", name]))?;
    pod.wait_listening(80, &process, SOON)?;
    Ok(pod)
}

fn connect(from: &Host, address: impl Into<IpAddr>) -> Result<String> {
    let address = SocketAddr::from((address.into(), 80)).to_string();
    let output = from.run(&Cmd::new(TESTBED).args(["connect", &address]))?;
    Ok(String::from_utf8(output.stdout)?)
}

/// The error of a connect that must fail at once: every packet is answered. The kernel forgets an answer that comes while connect()
/// still holds the socket, as in a bed it may, and sends the first packet once more.
fn refusal(from: &Host, address: impl Into<IpAddr>) -> Result<String> {
    let before = sent_again(from)?;
    let error = match connect(from, address) {
        Ok(text) => return Err(anyhow!("connected, and read `{text}`")),
        Err(error) => format!("{error:#}"),
    };
    ensure!(sent_again(from)? <= before + 1, "not every packet is answered: {error}");
    Ok(error)
}

/// How many TCP packets were sent once more from here, as their answer did not come in time.
fn sent_again(host: &Host) -> Result<u64> {
    let output = host.run(&Cmd::new("cat").arg("/proc/net/snmp"))?.stdout;
    let text = String::from_utf8(output)?;
    let mut tcp = text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).map(str::split_whitespace);
    let (names, values) = tcp.next().zip(tcp.next()).context("no counters of TCP")?;
    let (_, count) = names.zip(values).find(|(name, _)| *name == "RetransSegs").context("no such counter")?;
    Ok(count.parse()?)
}

/// The rules of the machine's own firewall and its network devices.
fn machine() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for program in ["iptables-save", "ip6tables-save"] {
        let output = Cmd::new(program).run()?.stdout;
        lines.extend(
            String::from_utf8(output)?.lines().filter(|line| line.starts_with('-')).map(str::to_owned),
        );
    }
    let output = Cmd::new("ip").args(["-o", "link"]).run()?.stdout;
    let names = String::from_utf8(output)?;
    lines.extend(names.lines().filter_map(|line| line.split_whitespace().nth(1)).map(str::to_owned));
    Ok(lines)
}

/// What bears a bed's name.
fn traces(id: &str, cgroup: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let namespaces = String::from_utf8(Cmd::new("ip").args(["netns", "list"]).run()?.stdout)?;
    found.extend(namespaces.lines().filter(|line| line.contains(&format!("ss-{id}-"))).map(str::to_owned));
    for path in [cgroup.to_owned(), Path::new("/run/sidescope-bed").join(id)] {
        if path.exists() {
            found.push(path.display().to_string());
        }
    }
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("cgroup");
        // Most entries are no processes, and a process may end while we look. In a cgroup that is deleted there can be only
        // zombies, which wait for who adopted them.
        let text = fs::read_to_string(&path).unwrap_or_default();
        let within =
            |line: &str| line.contains(&format!("sidescope-bed-{id}")) && !line.ends_with(" (deleted)");
        if text.lines().any(within) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

#[test]
fn bookinfo_answers_through_all_tiers() -> Result<()> {
    let bed = Bed::new()?;
    bookinfo::start(&bed, Path::new(TESTBED))?;
    let outside = bed.host(bookinfo::OUTSIDE)?;
    let url = format!("http://{}:9080/productpage", bed.service("productpage")?.v4);
    let mut versions = BTreeMap::<String, usize>::new();
    for _ in 0..6 {
        let page: serde_json::Value =
            serde_json::from_str(&bookinfo::wait_http(&outside, Path::new(TESTBED), &url, SOON)?)?;
        assert_eq!(page["details"]["year"], 1595);
        let reviews = &page["reviews"];
        let version = reviews["podname"].as_str().context("no podname")?.to_owned();
        let stars = if version == "reviews-v1" { serde_json::Value::Null } else { serde_json::json!([5, 4]) };
        assert_eq!(reviews["ratings"]["ratings"], stars, "{version}");
        *versions.entry(version).or_default() += 1;
    }
    assert_eq!(versions.values().copied().collect::<Vec<_>>(), [2, 2, 2], "{versions:?}");
    let load = bookinfo::start_load(&bed, Path::new(TESTBED), Load { count: Some(20), rate: None })?;
    load.success(SOON)?;
    assert!(load.log()?.starts_with("20 calls in "), "{}", load.log()?);
    bed.end()
}

#[test]
fn the_inventory_tells_what_runs() -> Result<()> {
    let bed = Bed::new()?;
    bookinfo::start(&bed, Path::new(TESTBED))?;
    let text = bookinfo::inventory(&bed)?;
    assert_eq!(text, bookinfo::inventory(&bed)?);
    let list: serde_json::Value = serde_saphyr::from_str(&text)?;
    let items = list["items"].as_array().context("no items")?;
    let count = |kind: &str| items.iter().filter(|item| item["kind"] == kind).count();
    let kinds = ["Namespace", "Deployment", "ReplicaSet", "Pod", "Service", "EndpointSlice"];
    assert_eq!(kinds.map(count), [1, 7, 7, 7, 6, 11]);
    let productpage = bed.pod("productpage-v1")?.v4().to_string();
    let pod = items.iter().find(|item| item["status"]["podIP"] == *productpage).context("no productpage")?;
    assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-name"], "productpage");
    let set = &pod["metadata"]["ownerReferences"][0];
    let set = items.iter().find(|item| item["metadata"]["uid"] == set["uid"]).context("no owner")?;
    assert_eq!(set["metadata"]["ownerReferences"][0]["name"], "productpage-v1");
    bed.end()
}

#[test]
fn a_cluster_ip_takes_its_endpoints_in_turn_and_follows_them() -> Result<()> {
    let bed = Bed::new()?;
    let (a, b, c) = (greeter(&bed, "a")?, greeter(&bed, "b")?, greeter(&bed, "c")?);
    let client = bed.add_pod("client")?;
    let service = bed.add_service("greeters", &[ServicePort::tcp("tcp", 80)], &[&a, &b, &c])?;
    for address in [IpAddr::from(service.v4), IpAddr::from(service.v6)] {
        let answers = (0..6).map(|_| connect(&client, address)).collect::<Result<Vec<_>>>()?;
        assert_eq!(answers, ["a", "b", "c", "a", "b", "c"], "{address}");
    }
    bed.set_endpoints("greeters", &[&b])?;
    assert_eq!(connect(&client, service.v4)?, "b");
    assert_eq!(connect(&b, service.v4)?, "b", "a pod reaches itself through its service");
    assert_eq!(connect(&b, service.v6)?, "b");
    assert_eq!(connect(&bed.node()?, service.v4)?, "b", "the node has ClusterIPs too");
    assert_eq!(connect(&client, a.v4())?, "a", "pods reach each other directly");
    assert_eq!(connect(&client, a.v6())?, "a");
    bed.end()
}

#[test]
fn what_cannot_be_reached_says_so_at_once() -> Result<()> {
    let bed = Bed::new()?;
    let client = bed.add_pod("client")?;
    let service = bed.add_service("nobody", &[ServicePort::tcp("tcp", 80)], &[])?;
    for _ in 0..10 {
        assert!(refusal(&client, service.v4)?.contains("refused"), "a service without endpoints");
    }
    assert!(refusal(&client, service.v6)?.contains("refused"), "a service without endpoints");
    assert!(refusal(&bed.node()?, service.v4)?.contains("refused"), "the same from the node");
    let beyond: [IpAddr; 2] = ["203.0.113.1".parse()?, "2001:db8::1".parse()?];
    for address in beyond {
        assert!(refusal(&client, address)?.contains("unreachable"), "the node has no route");
        client.unroute(&address.to_string())?;
        let refused = refusal(&client, address)?;
        assert!(
            refused.contains("unreachable") || refused.contains("No route"),
            "no route of its own: {refused}"
        );
    }
    bed.end()
}

#[test]
fn beds_stand_side_by_side() -> Result<()> {
    let (one, two) = (Bed::new()?, Bed::new()?);
    let (here, there) = (greeter(&one, "here")?, greeter(&two, "there")?);
    assert_eq!(here.v4(), there.v4());
    assert_eq!(connect(&one.add_pod("client")?, here.v4())?, "here");
    assert_eq!(connect(&two.add_pod("client")?, there.v4())?, "there");
    one.end()?;
    assert_eq!(connect(&two.pod("client")?, there.v4())?, "there");
    two.end()
}

#[test]
fn a_process_has_the_place_and_the_user_that_were_asked_for() -> Result<()> {
    let bed = Bed::new()?;
    let pod = bed.add_pod("a")?;
    let script = "id -u; id -g; id -G; cat /proc/self/cgroup; readlink /proc/self/ns/net";
    let output = pod.run(&Cmd::new("sh").args(["-c", script]).uid(1337))?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.starts_with("1337\n1337\n1337\n"), "{text}");
    assert!(text.contains(&format!("sidescope-bed-{}/kubepods/a\n", bed.id())), "{text}");
    let own = fs::read_link("/proc/self/ns/net")?.display().to_string();
    assert!(!text.contains(&own), "{text}");
    bed.end()
}

#[test]
fn a_failure_names_place_command_and_what_it_said() -> Result<()> {
    let bed = Bed::new()?;
    let error = bed.add_pod("a")?.run(&Cmd::new("cat").arg("/no such file")).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains(&format!("in ss-{}-a: `cat '/no such file'`: exit status: 1", bed.id())), "{text}");
    assert!(text.contains("No such file or directory"), "{text}");
    bed.end()
}

#[test]
fn a_bed_that_is_dropped_in_a_panic_leaves_nothing() -> Result<()> {
    let before = machine()?;
    let bed = Bed::new()?;
    let (id, cgroup) = (bed.id().to_owned(), bed.cgroup().to_owned());
    let pod = greeter(&bed, "a")?;
    // One that has left its process group, and one that is on the machine.
    pod.spawn(&Cmd::new("setsid").args(["sh", "-c", "sleep 1000 & sleep 1000"]))?;
    let watcher = bed.spawn_on_machine(&Cmd::new("sleep").arg("1000"))?;
    bed.add_service("greeter", &[ServicePort::tcp("tcp", 80)], &[&pod])?;
    assert!(traces(&id, &cgroup)?.len() > 3);
    assert_eq!(machine()?, before, "the machine's own network stays as it is");

    let panicked = std::thread::spawn(move || {
        let _bed = bed;
        panic!("this panic is part of the test");
    });
    assert!(panicked.join().is_err());
    assert_eq!(traces(&id, &cgroup)?, Vec::<String>::new());
    assert!(!PathBuf::from(format!("/proc/{}", watcher.pid())).exists());
    assert_eq!(machine()?, before);
    assert!(pod.spawn(&Cmd::new("true")).is_err(), "the bed has been ended");
    Ok(())
}

/// The program of that name, which ends with us: it has beds of its own, that nobody sweeps while it lives.
fn testbed() -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--", TESTBED]);
    command
}

/// Starts another process with a bed; gives its own pid, the bed's id and the pid of a process in that bed.
fn other_owner() -> Result<(std::process::Child, String, i32)> {
    let mut owner = testbed().arg("hold").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(owner.stdout.take().context("no pipe")?).read_line(&mut line)?;
    let (id, pid) = line.trim().split_once(' ').with_context(|| format!("`{line}`"))?;
    Ok((owner, id.to_owned(), pid.parse()?))
}

fn cgroup_of(id: &str, like: &Bed) -> PathBuf {
    like.cgroup().with_file_name(format!("sidescope-bed-{id}"))
}

#[test]
fn a_bed_whose_owner_was_killed_is_swept_by_the_next() -> Result<()> {
    let (mut owner, id, sleeper) = other_owner()?;
    owner.kill()?;
    owner.wait()?;
    wait_for("the end of the orphan", SOON, || {
        Ok(kill(Pid::from_raw(sleeper), None).is_err().then_some(()))
    })?;
    let next = Bed::new()?;
    assert_eq!(traces(&id, &cgroup_of(&id, &next))?, Vec::<String>::new());
    next.end()
}

#[test]
fn a_signal_to_the_owner_ends_the_bed() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut owner, id, _) = other_owner()?;
        let like = Bed::new()?;
        assert!(traces(&id, &cgroup_of(&id, &like))?.len() > 3, "a bed with an owner is not swept");
        kill(Pid::from_raw(i32::try_from(owner.id())?), signal)?;
        assert!(owner.wait()?.success());
        assert_eq!(traces(&id, &cgroup_of(&id, &like))?, Vec::<String>::new());
        like.end()?;
    }
    Ok(())
}

#[test]
fn the_demo_shows_what_the_watcher_wrote_and_leaves_nothing() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("sidescope-demo-{}", std::process::id()));
    let watcher = folder.join("sidescope");
    fs::create_dir_all(&folder)?;
    // Not written by this process: what another test starts meanwhile would hold it open, and what is open for writing cannot be run.
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/watcher.sh");
    Cmd::new("install").args(["-m", "755", script]).arg(&watcher).run()?;

    let out = folder.join("out");
    let demo = |more: &[&str]| {
        let mut demo = testbed();
        demo.args(["demo", "--load", "6", "--sidescope"]).arg(&watcher).arg("--out").arg(&out).args(more);
        demo.env("SUDO_UID", "1000").env("SUDO_GID", "1001").stdout(Stdio::piped()).stderr(Stdio::piped());
        demo
    };
    let output = demo(&[]).output()?;
    let (said, told) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    assert!(output.status.success(), "{said}\n{told}");
    assert!(said.starts_with("the report\n"), "{said}");
    assert!(said.contains("sidecars/default/reviews.yaml\nkind: Sidecar\n"), "{said}");
    assert!(told.contains("6 calls in "), "{told}");
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(out.join("graph.json"))?), 1000);
    let id = told.split("bed ").nth(1).and_then(|rest| rest.split(':').next()).context("no id")?.to_owned();
    let like = Bed::new()?;
    assert_eq!(traces(&id, &cgroup_of(&id, &like))?, Vec::<String>::new());

    let output = demo(&[]).env("FAIL", "yes").output()?;
    let told = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("it does not work"), "{told}");

    let mut kept = demo(&["--keep"]).spawn()?;
    let mut lines = BufReader::new(kept.stderr.take().context("no pipe")?).lines();
    let id = loop {
        let line = lines.next().context("the demo has ended")??;
        if let Some((_, rest)) = line.split_once("==> bed ").filter(|(_, rest)| rest.contains("stays until"))
        {
            break rest.split(' ').next().context("no id")?.to_owned();
        }
    };
    assert!(Command::new(TESTBED).args(["end", &id]).status()?.success());
    let rest = lines.collect::<Result<Vec<_>, _>>()?;
    let status = kept.wait()?;
    assert!(status.success(), "{status}: {rest:?}");
    assert_eq!(traces(&id, &cgroup_of(&id, &like))?, Vec::<String>::new());
    fs::remove_dir_all(&folder)?;
    like.end()
}
