//! A mesh in a bed, an observer that watches it, and what that has found out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use sidescope_tests::inventory::{self, Deployment};
use sidescope_tests::{Bed, Cmd, Host, Proc, Service, ServicePort};
use tempfile::TempDir;

pub(crate) const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
/// Patience with what takes well under a second on an idle machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
/// Patience with the start of a watch: the verifier has a second of work then, and so have those of the tests that run beside.
pub(crate) const START: Duration = Duration::from_secs(60);

/// The binary under test: what `SIDESCOPE_BIN` names, else what the same cargo has built beside the tests.
pub(crate) fn sidescope() -> Result<PathBuf> {
    let path = match std::env::var_os("SIDESCOPE_BIN") {
        Some(path) => PathBuf::from(path),
        None => Path::new(TESTBED).with_file_name("sidescope"),
    };
    ensure!(
        path.is_file(),
        "no sidescope at {}: build it with `cargo build -p sidescope`, or name it in SIDESCOPE_BIN",
        path.display()
    );
    Ok(path)
}

/// Deployments of one pod each, and services, all in the namespace `default`.
pub(crate) struct Mesh {
    pub(crate) bed: Bed,
    deployments: Vec<Deployment>,
    services: Vec<(Service, &'static str)>,
}

impl Mesh {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { bed: Bed::new()?, deployments: Vec::new(), services: Vec::new() })
    }

    pub(crate) fn pod(&mut self, name: &str) -> Result<Host> {
        let pod = self.bed.add_pod(name)?;
        Ok(self.deploy(name, pod))
    }

    /// A pod with users of its own.
    pub(crate) fn pod_with_users(&mut self, name: &str, first_uid: u32) -> Result<Host> {
        let pod = self.bed.add_pod_with_users(name, first_uid)?;
        Ok(self.deploy(name, pod))
    }

    fn deploy(&mut self, name: &str, pod: Host) -> Host {
        self.deployments.push(Deployment {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            labels: vec![("app".to_owned(), name.to_owned())],
            container: name.to_owned(),
            port: 80,
            pods: vec![pod.clone()],
        });
        pod
    }

    /// A pod that sends each connection on port 80 its name.
    pub(crate) fn server(&mut self, name: &str) -> Result<Host> {
        let pod = self.pod(name)?;
        greet(&pod)?;
        Ok(pod)
    }

    /// A service with TCP port 80 in front of a pod, or of none.
    pub(crate) fn service(&mut self, name: &'static str, pod: Option<&Host>) -> Result<Service> {
        let pods: Vec<&Host> = pod.into_iter().collect();
        let service = self.bed.add_service(name, &[ServicePort::tcp("tcp", 80)], &pods)?;
        self.services.push((service.clone(), name));
        Ok(service)
    }

    pub(crate) fn inventory(&self) -> Result<String> {
        let mut items = vec![inventory::namespace("default", true)];
        items.extend(self.deployments.iter().flat_map(Deployment::objects));
        for (service, app) in &self.services {
            let behind = self.deployments.iter().filter(|deployment| deployment.container == *app);
            items.extend(inventory::service("default", service, &[("app", app)], behind));
        }
        inventory::list(items)
    }

    /// Watches the pods' cgroup.
    pub(crate) fn observe(&self) -> Result<Observer> {
        Observer::start(&self.bed, &self.bed.pods_cgroup(), &self.inventory()?)
    }

    /// The same; it says more of what it does.
    pub(crate) fn observe_and_tell(&self) -> Result<Observer> {
        let cmd = Cmd::new(sidescope()?).env("RUST_LOG", "debug");
        Observer::start_as(cmd, &self.bed, &self.bed.pods_cgroup(), &self.inventory()?, &[])
    }
}

pub(crate) fn greet(pod: &Host) -> Result<()> {
    let process = pod.spawn(&Cmd::new(TESTBED).args(["greet", "80", pod.name()]))?;
    pod.wait_listening(80, &process, SOON)
}

pub(crate) fn dial_cmd(how: &str, address: SocketAddr) -> Cmd {
    Cmd::new(TESTBED).args(["dial", how, &address.to_string()])
}

/// Opens a connection and says what came of it.
pub(crate) fn dial(from: &Host, how: &str, to: impl Into<IpAddr>) -> Result<String> {
    let output = from.run(&dial_cmd(how, port_80(to)))?;
    Ok(String::from_utf8(output.stdout)?.trim_end().to_owned())
}

pub(crate) fn port_80(address: impl Into<IpAddr>) -> SocketAddr {
    SocketAddr::from((address.into(), 80))
}

/// `sidescope observe` while it watches.
pub(crate) struct Observer {
    pub(crate) process: Proc,
    folder: TempDir,
}

impl Observer {
    /// Returns when it watches.
    pub(crate) fn start(bed: &Bed, cgroup: &Path, inventory: &str) -> Result<Self> {
        Self::start_with(bed, cgroup, inventory, &[])
    }

    pub(crate) fn start_with(bed: &Bed, cgroup: &Path, inventory: &str, more: &[&str]) -> Result<Self> {
        Self::start_as(Cmd::new(sidescope()?), bed, cgroup, inventory, more)
    }

    /// The same with a command that has an environment, say.
    pub(crate) fn start_as(
        cmd: Cmd,
        bed: &Bed,
        cgroup: &Path,
        inventory: &str,
        more: &[&str],
    ) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("inventory.yaml");
        fs::write(&file, inventory)?;
        let mut cmd = cmd.arg("observe");
        for (option, path) in
            [("--inventory", file.as_path()), ("--out", &folder.path().join("out")), ("--cgroup", cgroup)]
        {
            cmd = cmd.arg(option).arg(path);
        }
        let process = bed.spawn_on_machine(&cmd.args(more))?;
        process.wait_for_log("watching", START)?;
        Ok(Self { process, folder })
    }

    /// Asks it to end, and reads what it has written.
    pub(crate) fn stop(self) -> Result<Results> {
        self.process.must_run()?;
        self.process.signal(Signal::SIGINT)?;
        self.results()
    }

    /// Waits for its end, which must be a success.
    pub(crate) fn results(self) -> Result<Results> {
        self.process.success(SOON)?;
        let files = files(&self.folder.path().join("out"))?;
        let graph = files.get("graph.json").context("no graph.json")?;
        Ok(Results { graph: serde_json::from_str(graph)?, said: self.process.log()?, files })
    }
}

/// What an observer has left.
pub(crate) struct Results {
    pub(crate) graph: Value,
    /// Its standard output and standard error.
    pub(crate) said: String,
    /// All files of the output folder, by their path in it.
    pub(crate) files: BTreeMap<String, String>,
}

impl Results {
    /// The Sidecars, by their path below `sidecars/`.
    pub(crate) fn sidecars(&self) -> BTreeMap<&str, &str> {
        let sidecar = |(path, text): (_, _)| Some((str::strip_prefix(path, "sidecars/")?, text));
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str())).filter_map(sidecar).collect()
    }

    /// Where a workload has connected to, in whatever part of the graph that is.
    pub(crate) fn destinations(&self, workload: &str) -> Result<BTreeSet<SocketAddr>> {
        let mut found = BTreeSet::new();
        let ours = |node: &&Value| node["workload"]["name"] == workload;
        let nodes = self.graph["workloads"].as_array().context("no workloads")?;
        let node = nodes.iter().find(ours).with_context(|| format!("no workload {workload}"))?;
        for dependency in list(&node["dependencies"]) {
            for (port, used) in dependency["ports"].as_object().context("no ports")? {
                for address in list(&used["seen"]).iter().filter_map(|seen| seen["address"].as_str()) {
                    found.insert(SocketAddr::from((address.parse::<IpAddr>()?, port.parse()?)));
                }
            }
        }
        let unresolved = list(&self.graph["unresolved"]).iter().filter(ours);
        for edge in list(&node["direct"]).iter().chain(unresolved) {
            let address: IpAddr = edge["address"].as_str().context("no address")?.parse()?;
            let port = edge["port"].as_u64().context("no port")?;
            found.insert(SocketAddr::from((address, u16::try_from(port)?)));
        }
        Ok(found)
    }

    /// An error if anything was lost, or was seen without a workload that it belongs to.
    pub(crate) fn must_be_complete(&self) -> Result<()> {
        ensure!(self.graph.get("losses").is_none(), "losses: {}", self.graph["losses"]);
        ensure!(
            self.graph.get("unattributed").is_none(),
            "edges without a workload: {}",
            self.graph["unattributed"]
        );
        Ok(())
    }
}

/// A list that is left out when it is empty.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// All files below a folder, with their texts.
pub(crate) fn files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))? {
            let path = entry?.path();
            let name = path.strip_prefix(folder)?.display().to_string();
            if path.is_dir() {
                open.push(path);
            } else {
                found.insert(name, fs::read_to_string(&path)?);
            }
        }
    }
    Ok(found)
}
