//! Connections that were open before anyone looked: which of them are found, and the process that looks.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sidescope::scan::{self, What};
use sidescope::scanner::Client;
use sidescope_tests::existing::{self, Programs, collect, scanner};
use sidescope_tests::inventory::{self, Deployment};
use sidescope_tests::{Bed, Cmd, Host, Proc, ServicePort, patient};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(20);
/// Patience with the start of a watch: the verifier has a second of work then, and so have those of the tests that run beside.
const START: Duration = Duration::from_secs(60);

/// The binary under test: what `SIDESCOPE_BIN` names, else what the same cargo has built beside the tests.
fn sidescope() -> Result<PathBuf> {
    let beside = || Path::new(TESTBED).with_file_name("sidescope");
    let path = std::env::var_os("SIDESCOPE_BIN").map_or_else(beside, PathBuf::from);
    let missing = "build it with `cargo build -p sidescope`, or name it in SIDESCOPE_BIN";
    ensure!(path.is_file(), "no sidescope at {}: {missing}", path.display());
    Ok(path)
}

/// Opens a connection to each address as this user and keeps them.
fn keep(from: &Host, uid: u32, addresses: &[SocketAddr]) -> Result<Proc> {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let process = from.spawn(&Cmd::new(TESTBED).arg("keep").args(&addresses).uid(uid))?;
    process.wait_for_log(&format!("{} open\n", addresses.len()), SOON)?;
    Ok(process)
}

/// Accepts connections on a port and keeps them.
fn serve(host: &Host, port: u16) -> Result<Proc> {
    let process = host.spawn(&Cmd::new(TESTBED).args(["keep", "--listen", &port.to_string()]))?;
    host.wait_listening(port, &process, SOON)?;
    Ok(process)
}

fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Owner and destination of what a scan here finds.
fn found(cgroup: &Path) -> Result<BTreeSet<(u32, SocketAddr)>> {
    let sockets = collect(|| Ok(scan::start(cgroup.to_owned(), What::Sockets)?))?;
    Ok(sockets.iter().map(|socket| (socket.uid, SocketAddr::new(socket.address, socket.port))).collect())
}

/// A scanner of a bed's pods; the folder of its socket goes with this.
struct Scanner {
    process: Proc,
    socket: PathBuf,
}

impl Scanner {
    fn start(bed: &Bed, socket: &Path) -> Result<Self> {
        let process = bed.spawn_on_machine(&scanner(&sidescope()?, socket, &bed.pods_cgroup()))?;
        process.wait_for_log("scanner ready", SOON)?;
        Ok(Self { process, socket: socket.to_owned() })
    }

    fn sockets(&self) -> Result<usize> {
        let client = Client::new(&self.socket);
        Ok(collect(|| Ok(client.start(What::Sockets)))?.len())
    }

    fn end(&self) -> Result<()> {
        let before = self.process.log()?;
        self.process.signal(Signal::SIGTERM)?;
        self.process.success(SOON)?;
        ensure!(!self.socket.exists(), "the socket is left");
        let said = self.process.log()?.split_off(before.len());
        ensure!(!said.contains("dropped"), "it has waited for a client: {said}");
        Ok(())
    }
}

fn socket_in(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("scanner.sock")
}

/// What a scanner says that must not start.
fn refusal(bed: &Bed, cmd: &Cmd) -> Result<String> {
    let process = bed.spawn_on_machine(cmd)?;
    ensure!(process.wait(SOON)?.code() == Some(2), "it starts: {}", process.log()?);
    process.log()
}

#[test]
fn the_destination_is_the_one_that_the_program_asked_for() -> Result<()> {
    let bed = Bed::new()?;
    let (client, server) = (bed.add_pod("client")?, bed.add_pod("server")?);
    serve(&server, 80)?;
    let service = bed.add_service("server", &[ServicePort::tcp("tcp", 80)], &[&server])?;
    // As Istio's sidecar does it: every connection ends at a local port, whoever it was for.
    serve(&client, 15001)?;
    for (iptables, network) in [("iptables", "203.0.113.0/24"), ("ip6tables", "2001:db8::/32")] {
        let rule = ["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-d", network, "-j", "REDIRECT"];
        client.firewall(iptables, rule.into_iter().chain(["--to-ports", "15001"]))?;
    }
    let beyond: [IpAddr; 2] = ["203.0.113.9".parse()?, "2001:db8::9".parse()?];
    let mut asked: Vec<_> = beyond.map(|address| at(address, 443)).into();
    asked.extend([at(service.v4, 80), at(service.v6, 80), at(server.v4(), 80)]);
    let mapped = at(server.v4().to_ipv6_mapped(), 80);
    keep(&client, 1000, &asked)?;
    keep(&client, 1001, &[mapped])?;
    keep(&client, 1002, &[at([127, 0, 0, 1], 15001), "[::1]:15001".parse()?])?;

    let mut expected: BTreeSet<_> = asked.iter().map(|address| (1000, *address)).collect();
    expected.insert((1001, at(server.v4(), 80)));
    assert_eq!(found(&bed.pods_cgroup())?, expected, "no accepted sockets, no loopback");
    bed.end()
}

#[test]
fn a_file_where_a_namespace_is_about_to_be_is_no_failure() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    let pod = bed.add_pod("pod")?;
    serve(&pod, 80)?;
    keep(&pod, 1, &[at(pod.v4(), 80)])?;
    // Whoever makes a named namespace makes the file before the mount, and for nobody to read: the scanner has given up the right to
    // read it all the same, which a scan as root has.
    let file = tempfile::Builder::new().prefix("ss-no-namespace-").tempfile_in("/run/netns")?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o000))?;
    assert_eq!(found(&bed.pods_cgroup())?.len(), 1);
    let scanner = Scanner::start(&bed, &socket_in(&folder))?;
    assert_eq!(scanner.sockets()?, 1);
    scanner.end()?;
    file.close()?;
    bed.end()
}

#[test]
fn only_namespaces_of_watched_processes_count_and_never_the_nodes_own() -> Result<()> {
    let bed = Bed::new()?;
    let (pod, outsider) = (bed.add_pod("pod")?, bed.add_outsider("outsider")?);
    serve(&pod, 80)?;
    keep(&pod, 1, &[at(pod.v4(), 80)])?;
    keep(&outsider, 2, &[at(pod.v4(), 80)])?;
    // In the pods' cgroup and on the machine's own network, as a pod with hostNetwork is.
    let on_host = bed.spawn_on_machine(&Cmd::new(TESTBED).args(["keep", "--listen", "0"]))?;
    on_host.wait_for_log("open", SOON)?;
    fs::write(pod.cgroup().join("cgroup.procs"), on_host.pid().to_string())?;
    assert_eq!(found(&bed.pods_cgroup())?, BTreeSet::from([(1, at(pod.v4(), 80))]));
    assert_eq!(found(bed.cgroup())?.len(), 2);
    bed.end()
}

#[test]
fn observe_learns_what_was_open_before_and_tells_it() -> Result<()> {
    let bed = Bed::new()?;
    let pods = ["client", "server"].map(|name| bed.add_pod(name));
    let [client, server] = pods.map(|pod| pod.expect("a bed makes pods"));
    let outsider = bed.add_outsider("outsider")?;
    serve(&server, 80)?;
    let ports = [ServicePort::tcp("tcp", 80)];
    let services = ["called", "proxied"].map(|name| bed.add_service(name, &ports, &[&server]));
    let [called, proxied] = services.map(|service| service.expect("a bed makes services"));
    keep(&client, 1000, &[at(called.v4, 80), at(called.v6, 80)])?;
    keep(&client, 1337, &[at(proxied.v4, 80)])?;
    keep(&outsider, 0, &[at(server.v4(), 80)])?;

    let deployment = |name: &str, pod: &Host| Deployment {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        labels: vec![("app".to_owned(), name.to_owned())],
        container: name.to_owned(),
        port: 80,
        pods: vec![pod.clone()],
    };
    let deployments = [deployment("client", &client), deployment("server", &server)];
    let mut items = vec![inventory::namespace("default", true)];
    items.extend(deployments.iter().flat_map(Deployment::objects));
    for service in [&called, &proxied] {
        items.extend(inventory::service("default", service, &[("app", "server")], deployments[1..].iter()));
    }
    let folder = tempfile::tempdir()?;
    let [file, out] = ["inventory.yaml", "out"].map(|name| folder.path().join(name));
    fs::write(&file, inventory::list(items)?)?;
    let mut observe = Cmd::new(sidescope()?).arg("observe");
    for (option, path) in
        [("--inventory", file.as_path()), ("--out", out.as_path()), ("--cgroup", bed.cgroup())]
    {
        observe = observe.arg(option).arg(path);
    }
    let observer = bed.spawn_on_machine(&observe)?;
    observer.wait_for_log("watching", START)?;
    // At once: what the scan under way finds counts.
    observer.signal(Signal::SIGINT)?;
    observer.success(SOON)?;

    let graph: Value = serde_json::from_str(&fs::read_to_string(out.join("graph.json"))?)?;
    let workloads = graph["workloads"].as_array().context("no workloads")?;
    let workload = |name: &str| workloads.iter().find(|node| node["workload"]["name"] == name);
    let dependencies = &workload("client").context("no client")?["dependencies"];
    assert_eq!(dependencies.as_array().map(Vec::len), Some(1), "not what the proxy opened: {dependencies}");
    assert_eq!(dependencies[0]["host"], "called.default.svc.cluster.local");
    let port = &dependencies[0]["ports"]["80"];
    assert_eq!((&port["existing"], &port["connects"]), (&Value::Bool(true), &Value::from(0)));
    assert_eq!(port["seen"].as_array().map(Vec::len), Some(2), "{port}");
    let server = workload("server").context("no server")?;
    assert_eq!(server["dependencies"], Value::Array(Vec::new()), "what it accepted is none");
    assert!(server.get("direct").is_none(), "what it accepted is none: {server}");
    let said = observer.log()?;
    assert!(said.contains("open since before the start"), "{said}");
    assert!(said.contains("1 edge from outside the inventory's pods"), "{said}");
    bed.end()
}

#[test]
fn the_scanner_answers_its_owner_and_goes_without_a_trace() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    let pod = bed.add_pod("pod")?;
    serve(&pod, 80)?;
    keep(&pod, 1000, &[at(pod.v4(), 80), at(pod.v6(), 80)])?;
    let scanner = Scanner::start(&bed, &socket_in(&folder))?;
    let meta = fs::metadata(&scanner.socket)?;
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    for _ in 0..3 {
        assert_eq!(scanner.sockets()?, 2);
    }
    scanner.end()?;
    let error = scanner.sockets().unwrap_err().to_string();
    assert!(error.contains("cannot reach the scanner at"), "{error}");
    bed.end()
}

#[test]
fn a_client_that_is_none_is_dropped_and_counted() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    let scanner = Scanner::start(&bed, &socket_in(&folder))?;
    for (said, answer) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not a request"),
        (&[0xff; 4096], "not a request"),
        (b"sidescope-scan 1 sockets\n", "version 2"),
    ] {
        let mut client = UnixStream::connect(&scanner.socket)?;
        client.write_all(said)?;
        let mut bytes = Vec::new();
        // The scanner may hang up before all that was sent is read.
        if let Err(error) = client.read_to_end(&mut bytes) {
            ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
        }
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(answer), "{text}");
    }
    // One that says nothing, and one that does not listen, keep the next waiting for a while only.
    let silent = UnixStream::connect(&scanner.socket)?;
    let start = Instant::now();
    assert_eq!(scanner.sockets()?, 0);
    assert!(start.elapsed() < patient(Duration::from_secs(10)), "it took {:?}", start.elapsed());
    drop(silent);
    let log = scanner.process.log()?;
    assert!(log.contains("no request within 2s"), "{log}");
    assert!(log.contains("dropped=4"), "{log}");
    let busy = UnixStream::connect(&scanner.socket)?;
    scanner.end()?;
    drop(busy);
    bed.end()
}

#[test]
fn the_scanner_takes_over_a_stale_socket_and_nothing_else() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    let first = Scanner::start(&bed, &socket_in(&folder))?;
    let again = scanner(&sidescope()?, &first.socket, &bed.pods_cgroup());
    let said = refusal(&bed, &again)?;
    assert!(said.contains("another scanner answers at"), "{said}");
    assert_eq!(first.sockets()?, 0, "the first is as it was");

    first.process.kill();
    assert!(first.socket.exists());
    let second = Scanner::start(&bed, &first.socket)?;
    assert_eq!(second.sockets()?, 0);
    second.end()?;

    fs::write(&first.socket, "precious")?;
    let said = refusal(&bed, &again)?;
    assert!(said.contains("is no socket and is left alone"), "{said}");
    assert_eq!(fs::read_to_string(&first.socket)?, "precious");
    let said = refusal(&bed, &scanner(&sidescope()?, Path::new("/no/such/dir/s"), &bed.pods_cgroup()))?;
    assert!(said.contains("cannot listen at /no/such/dir/s"), "{said}");
    bed.end()
}

/// The same command with no other capabilities than these.
fn with_rights(rights: &str, program: &Path, args: &[&str]) -> Cmd {
    Cmd::new("setpriv").args(["--bounding-set", rights, "--"]).arg(program).args(args)
}

#[test]
fn the_scanner_needs_two_capabilities_and_keeps_no_more() -> Result<()> {
    let (bed, folder) = (Bed::new()?, tempfile::tempdir()?);
    // One pod for each way of being out of reach: of root, with all rights, and of somebody else.
    for (name, uid) in [("root", 0), ("user", 1000)] {
        let pod = bed.add_pod(name)?;
        serve(&pod, 80)?;
        keep(&pod, uid, &[at(pod.v4(), 80)])?;
    }
    let (socket, cgroup, sidescope) = (socket_in(&folder), bed.pods_cgroup(), sidescope()?);
    let (socket_text, cgroup_text) = (socket.display().to_string(), cgroup.display().to_string());
    let args = ["scanner", "--socket", &socket_text, "--cgroup", &cgroup_text];
    let both = "-all,+sys_admin,+sys_ptrace";
    for cmd in [with_rights(both, &sidescope, &args), scanner(&sidescope, &socket, &cgroup)] {
        let process = bed.spawn_on_machine(&cmd)?;
        process.wait_for_log("scanner ready", SOON)?;
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
        for line in [
            "CapPrm:\t0000000000280000",
            "CapEff:\t0000000000280000",
            "CapAmb:\t0000000000000000",
            "NoNewPrivs:\t1",
        ] {
            assert!(status.contains(line), "{line}:\n{status}");
        }
        let scanner = Scanner { process, socket: socket.clone() };
        assert_eq!(scanner.sockets()?, 2);
        scanner.end()?;
    }
    for (rights, missing) in
        [("-all,+sys_ptrace", "needs CAP_SYS_ADMIN:"), ("-all,+sys_admin", "needs CAP_SYS_PTRACE:")]
    {
        let said = refusal(&bed, &with_rights(rights, &sidescope, &args))?;
        assert!(said.contains(missing), "{said}");
    }
    // And why it asks for both.
    for (rights, works) in [(both, true), ("-all,+sys_ptrace", false), ("-all,+sys_admin", false)] {
        let look = bed.spawn_on_machine(&with_rights(rights, Path::new(TESTBED), &["look", &cgroup_text]))?;
        let status = look.wait(SOON)?;
        let complete = status.success() && look.log()? == "2 0\n";
        assert_eq!(complete, works, "{rights}: {}", look.log()?);
    }
    bed.end()
}

#[test]
#[ignore = "a measurement; `testbed existing` prints it"]
fn ten_thousand_connections_in_two_hundred_namespaces_are_found_within_two_seconds() -> Result<()> {
    let programs = Programs { sidescope: sidescope()?, testbed: TESTBED.into() };
    let figures = existing::run(&programs, 200, 10_000)?;
    assert_eq!((figures.made, figures.found), (10_000, 10_000));
    assert!(figures.ms <= 2000.0, "{figures:?}");
    Ok(())
}

#[test]
fn every_connection_is_found_in_every_namespace() -> Result<()> {
    let programs = Programs { sidescope: sidescope()?, testbed: TESTBED.into() };
    let figures = existing::run(&programs, 5, 200)?;
    assert_eq!((figures.made, figures.found), (200, 200));
    Ok(())
}
