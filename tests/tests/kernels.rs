//! What differs from kernel to kernel: that the programs load, see every kind of connect, and that user space can tell whose it
//! was. Part of the kernel matrix (`cargo xtask test --kernels`), and of the tests on this machine.

use std::collections::BTreeMap;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sidescope::probes::netns_cookie;
use sidescope_tests::inventory::{self, Deployment};
use sidescope_tests::{Bed, Cmd, Host, Proc, Service, ServicePort, wait_for};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(20);
/// To load the programs takes that long on a busy machine with two processors.
const START: Duration = Duration::from_secs(60);
const PORT: u16 = 9080;

/// A bed with a server and its service, and `sidescope observe` on its pods.
struct Scene {
    bed: Bed,
    server: Host,
    details: Service,
    dir: PathBuf,
}

impl Scene {
    fn new(name: &str) -> Result<Self> {
        let bed = Bed::new()?;
        let server = bed.add_pod("details")?;
        let process = server.spawn(&Cmd::new(TESTBED).args(["app", "details"]))?;
        server.wait_listening(PORT, &process, SOON)?;
        let details = bed.add_service("details", &[ServicePort::tcp("http", PORT)], &[&server])?;
        let dir = std::env::temp_dir().join(format!("sidescope-kernels-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir)?;
        Ok(Self { bed, server, details, dir })
    }

    /// Starts watching; `clients` are the pods of the inventory beside the server.
    fn watch(&self, clients: &[&Host]) -> Result<Proc> {
        let workload = |name: &str, pod: &Host| Deployment {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            container: name.to_owned(),
            port: PORT,
            pods: vec![pod.clone()],
        };
        let server = workload("details", &self.server);
        let mut items = vec![inventory::namespace("default", true)];
        items.extend(server.objects());
        items.extend(clients.iter().flat_map(|client| workload(client.name(), client).objects()));
        let behind = std::iter::once(&server);
        items.extend(inventory::service("default", &self.details, &[("app", "details")], behind));
        let inventory = self.dir.join("inventory.yaml");
        fs::write(&inventory, inventory::list(items)?)?;
        let sidescope = std::env::var("SIDESCOPE_BIN").context("SIDESCOPE_BIN names the binary to test")?;
        let observe = Cmd::new(sidescope).env("RUST_LOG", "sidescope=debug");
        let observe = observe.arg("observe").arg("--inventory").arg(&inventory);
        let observe =
            observe.arg("--out").arg(self.dir.join("out")).arg("--cgroup").arg(self.bed.pods_cgroup());
        let watcher = self.bed.spawn_on_machine(&observe)?;
        watcher.wait_for_log("watching", START)?;
        Ok(watcher)
    }

    /// Ends the watch and gives the graph and what the watcher said.
    fn end(self, watcher: &Proc) -> Result<(Value, String)> {
        watcher.signal(Signal::SIGINT)?;
        watcher.success(SOON)?;
        let graph = serde_json::from_str(&fs::read_to_string(self.dir.join("out/graph.json"))?)?;
        let said = watcher.log()?;
        fs::remove_dir_all(&self.dir)?;
        self.bed.end()?;
        Ok((graph, said))
    }
}

fn get(from: &Host, url: &str, resolve: &str) -> Result<()> {
    from.run(&Cmd::new(TESTBED).args(["get", url, "--resolve", resolve])).map(drop)
}

fn fails(from: &Host, address: &str) -> Result<()> {
    let result = from.run(&Cmd::new(TESTBED).args(["connect", address]));
    ensure!(result.is_err(), "a connect to {address} did not fail");
    Ok(())
}

fn workload<'g>(graph: &'g Value, name: &str) -> Result<&'g Value> {
    let found =
        graph["workloads"].as_array().into_iter().flatten().find(|node| node["workload"]["name"] == name);
    found.with_context(|| format!("no workload `{name}` in {graph:#}"))
}

/// Connects by address, of a workload's edges that lead to no service.
fn unresolved(graph: &Value, name: &str) -> BTreeMap<String, u64> {
    let all = graph["unresolved"].as_array().into_iter().flatten();
    let own = all.filter(|edge| edge["workload"]["name"] == name);
    own.map(|edge| {
        let address = format!("{}:{}", edge["address"].as_str().unwrap_or("?"), edge["port"]);
        (address, edge["connects"].as_u64().unwrap_or(0))
    })
    .collect()
}

#[test]
fn connects_are_seen_with_their_pod_their_host_and_their_count() -> Result<()> {
    let scene = Scene::new("edges")?;
    let client = scene.bed.add_pod("client")?;
    let nobody = scene.bed.add_service("nobody", &[ServicePort::tcp("tcp", 80)], &[])?;
    let watcher = scene.watch(&[&client])?;
    let (v4, v6) = (scene.details.v4, scene.details.v6);
    get(&client, "http://details:9080/details/0", &format!("details={v4}"))?;
    get(&client, "http://details.default:9080/details/0", &format!("details.default={v6}"))?;
    fails(&client, &format!("{}:80", nobody.v4))?;
    fails(&client, &format!("[{}]:80", nobody.v6))?;
    fails(&client, &format!("[::ffff:{}]:81", nobody.v4))?;
    client.unroute("203.0.113.1")?;
    fails(&client, "203.0.113.1:443")?;
    // None of these is an edge.
    fails(&client, "127.0.0.1:9")?;
    fails(&client, "[::1]:9")?;
    let proxy = Cmd::new(TESTBED).args(["connect", "203.0.113.1:444"]).uid(1337);
    ensure!(client.run(&proxy).is_err(), "a connect without a route did not fail");

    let (graph, said) = scene.end(&watcher)?;
    let node = workload(&graph, "client")?;
    assert_eq!(node["dependencies"].as_array().map(Vec::len), Some(1), "{graph:#}");
    let dependency = &node["dependencies"][0];
    assert_eq!(dependency["host"], "details.default.svc.cluster.local", "{graph:#}");
    let port = dependency["ports"].to_string();
    for seen in ["details", "details.default", &v4.to_string(), &v6.to_string()] {
        assert!(port.contains(&format!("\"{seen}\"")), "`{seen}` is not in {port}");
    }
    let expected = [
        (format!("{}:80", nobody.v4), 1),
        (format!("{}:80", nobody.v6), 1),
        (format!("{}:81", nobody.v4), 1),
        ("203.0.113.1:443".to_owned(), 1),
    ];
    assert_eq!(unresolved(&graph, "client"), BTreeMap::from(expected), "{graph:#}\n{said}");
    Ok(())
}

#[test]
fn the_proxy_of_a_pod_with_users_of_its_own_is_left_out() -> Result<()> {
    let scene = Scene::new("users")?;
    let client = scene.bed.add_pod_with_users("client", 2_000_000)?;
    client.unroute("203.0.113.1")?;
    // The first scan finds nobody there whose users it could look at, so that the proxy is seen before it is known.
    let first = fs::read_to_string(client.cgroup().join("cgroup.procs"))?;
    fs::write(scene.bed.cgroup().join("cgroup.procs"), first.trim_end())?;
    let watcher = scene.watch(&[&client])?;
    watcher.wait_for_log("network namespaces looked at", SOON)?;
    let keep = Cmd::new(TESTBED).args(["keep", &format!("{}:{PORT}", scene.server.v4())]);
    let proxy = client.spawn(&keep.uid(1337))?;
    proxy.wait_for_log("1 open\n", SOON)?;
    let app = Cmd::new(TESTBED).args(["connect", "203.0.113.1:443"]).uid(1000);
    ensure!(client.run(&app).is_err(), "a connect without a route did not fail");
    let (graph, said) = scene.end(&watcher)?;
    let expected = BTreeMap::from([("203.0.113.1:443".to_owned(), 1)]);
    assert_eq!(unresolved(&graph, "client"), expected, "{graph:#}\n{said}");
    let node = workload(&graph, "client")?;
    ensure!(node["dependencies"] == Value::Array(Vec::new()) && node.get("direct").is_none(), "{node:#}");
    Ok(())
}

#[test]
fn a_pod_whose_every_connect_fails_before_anything_is_sent_is_known() -> Result<()> {
    let scene = Scene::new("denied")?;
    let client = scene.bed.add_pod("client")?;
    client.unroute("203.0.113.1")?;
    let watcher = scene.watch(&[&client])?;
    // A pod has a process for as long as it lives; the connects come from others of its cgroup, which are gone at once.
    let process = client.spawn(&Cmd::new("sh").args(["-c", "echo here; exec sleep 1000"]))?;
    process.wait_for_log("here", SOON)?;
    fails(&client, "203.0.113.1:443")?;
    let (graph, said) = scene.end(&watcher)?;
    let expected = BTreeMap::from([("203.0.113.1:443".to_owned(), 1)]);
    assert_eq!(unresolved(&graph, "client"), expected, "{graph:#}\n{said}");
    Ok(())
}

/// The rest of the exception for kernels before 5.14: what takes the place of the namespace's cookie needs a process in the pod
/// while it is looked for. That of the connect itself may or may not be there long enough.
#[test]
fn a_pod_without_a_process_whose_every_connect_fails_is_known_or_counted() -> Result<()> {
    let scene = Scene::new("empty")?;
    let client = scene.bed.add_pod("client")?;
    client.unroute("203.0.113.1")?;
    let watcher = scene.watch(&[&client])?;
    fails(&client, "203.0.113.1:443")?;
    let (graph, said) = scene.end(&watcher)?;
    let known = unresolved(&graph, "client") == BTreeMap::from([("203.0.113.1:443".to_owned(), 1)]);
    let counted = graph["unattributed"]["unknown"] == 1;
    let tells_cookies = netns_cookie(&UdpSocket::bind("127.0.0.1:0")?)?.is_some();
    assert!(known != counted && (known || !tells_cookies), "{graph:#}\n{said}");
    Ok(())
}

#[test]
fn a_pod_that_was_gone_before_its_address_was_asked_for_is_known_by_its_connection() -> Result<()> {
    let scene = Scene::new("gone")?;
    let client = scene.bed.add_pod("client")?;
    let url = format!("http://{}:{PORT}/details/0", scene.details.v4);
    let watcher = scene.watch(&[&client])?;
    get(&client, &url, &format!("details={}", scene.details.v4))?;
    remove_netns(client.netns())?;
    let (graph, said) = scene.end(&watcher)?;
    let node = workload(&graph, "client")?;
    assert_eq!(node["dependencies"][0]["host"], "details.default.svc.cluster.local", "{graph:#}\n{said}");
    Ok(())
}

fn remove_netns(name: &str) -> Result<()> {
    Cmd::new("ip").args(["netns", "delete", name]).run()?;
    let path = Path::new("/run/netns").join(name);
    wait_for("the end of the namespace", SOON, || Ok((!path.exists()).then_some(())))
}
