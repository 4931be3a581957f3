//! `sidescope aggregator` on a cluster of its own, and agents that a test speaks for over the real protocol.

mod agent;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod as PodObject, ServiceAccount};
use kube::api::{Api, PostParams};
use nix::sys::signal::Signal;
use serde_json::json;
use sidescope::crd::{WorkloadDependencies, object_name};
use sidescope::election::Holder;
use sidescope::model::dependencies::Record;
use sidescope::model::names::WorkloadRef;
use sidescope::transport::client;

pub use agent::{Agent, batch, coverage, edge, now, source};

use crate::cluster::{Cluster, Parts, Pod};
use crate::wait::wait_for;
use crate::{Cmd, Proc};

/// Where aggregator and agents are.
pub const NAMESPACE: &str = "sidescope";
/// Name of the aggregator's Service, Lease and so on.
pub const SERVICE: &str = "sidescope-aggregator";
/// Service account of the agents.
pub const ACCOUNT: &str = "sidescope-agent";
/// The audience of their tokens.
pub const AUDIENCE: &str = "sidescope";
const DEFINITION: &str = include_str!("../../deploy/crds/workloaddependencies.yaml");
/// What a test waits for comes within this time, or does not. An edge takes three seconds, a change of the leader up to twenty.
pub const SOON: Duration = Duration::from_secs(60);

/// A cluster with the custom resource and what agents need.
pub struct Scene {
    /// The cluster.
    pub cluster: Cluster,
}

/// A replica of the aggregator.
pub struct Replica {
    /// Its name.
    pub name: String,
    /// The process.
    pub proc: Proc,
    /// Where agents reach it.
    pub address: SocketAddr,
}

impl Scene {
    /// Starts the cluster.
    pub fn start(parts: Parts) -> Result<Self> {
        let scene = Self::without_definition(parts)?;
        scene.define()?;
        Ok(scene)
    }

    /// The same, before somebody has applied `deploy/crds`.
    pub fn without_definition(parts: Parts) -> Result<Self> {
        let cluster = Cluster::start(parts)?;
        cluster.make_namespace(NAMESPACE)?;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": NAMESPACE}});
        cluster.apply(&account.to_string())?;
        Ok(Self { cluster })
    }

    /// Applies `deploy/crds`.
    pub fn define(&self) -> Result<()> {
        self.cluster.apply_definitions(DEFINITION)
    }

    /// A node with a pod of the agent.
    pub fn make_node(&self, name: &str) -> Result<()> {
        self.cluster.make_node(name)?;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("agent-{name}"), "namespace": NAMESPACE},
            "spec": {
                "nodeName": name, "serviceAccountName": ACCOUNT, "hostNetwork": true,
                "containers": [{"name": "agent", "image": "none"}],
            },
        });
        self.cluster.apply(&pod.to_string()).map(drop)
    }

    /// A pod in `default` that no controller made, and its uid.
    pub fn make_pod(&self, name: &str, node: &str, address: &str) -> Result<String> {
        let pod = Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            node: node.to_owned(),
            labels: [("app".to_owned(), name.to_owned())].into(),
            addresses: vec![address.parse()?],
        };
        self.cluster.make_pod(&pod)?;
        self.uid("default", name)
    }

    /// The uid of a pod.
    pub fn uid(&self, namespace: &str, name: &str) -> Result<String> {
        let pods: Api<PodObject> = Api::namespaced(self.cluster.client(), namespace);
        let pod = self.cluster.run(pods.get(name)).with_context(|| format!("no pod {namespace}/{name}"))?;
        pod.metadata.uid.context("a pod has a uid")
    }

    /// A Service in `default` with one port of plain HTTP, and its address.
    pub fn make_service(&self, name: &str) -> Result<String> {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
        });
        let made = self.cluster.apply(&service.to_string())?;
        let address = made.first().and_then(|made| made.data["spec"]["clusterIP"].as_str());
        Ok(address.context("a Service has an address")?.to_owned())
    }

    /// Starts a replica and waits until it is ready.
    pub fn aggregator(&self, name: &str) -> Result<Replica> {
        let replica = self.start_aggregator(name, &[])?;
        replica.proc.wait_for_log("ready ", SOON)?;
        Ok(replica)
    }

    /// Starts a replica. One of the same name must have ended.
    pub fn start_aggregator(&self, name: &str, more: &[&str]) -> Result<Replica> {
        let cmd = Cmd::new(binary()?)
            .args(["aggregator", "--listen", "127.0.0.1:0", "--namespace", NAMESPACE, "--pod-name", name])
            .args(more)
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .env("RUST_LOG", "debug,h2=info,hyper_util=info,tower=info,kube=info,rustls=info");
        let log = format!("aggregator-{name}");
        let before = fs::metadata(self.cluster.dir().join(format!("{log}.log"))).map_or(0, |log| log.len());
        let proc = self.cluster.spawn(&log, &cmd)?;
        let address = wait_for(&format!("{name} to listen"), SOON, || {
            proc.must_run()?;
            let said = proc.log()?;
            let said = said.get(usize::try_from(before)?..).unwrap_or_default();
            let line = said.lines().find(|line| line.contains("aggregator started"));
            let word =
                line.and_then(|line| line.split_whitespace().find_map(|word| word.strip_prefix("address=")));
            word.map(|word| Ok(word.parse()?)).transpose()
        })?;
        Ok(Replica { name: name.to_owned(), proc, address })
    }

    /// Waits until this replica holds the lease.
    pub fn wait_for_leader(&self, replica: &Replica) -> Result<()> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client(), NAMESPACE);
        wait_for(&format!("{} to lead", replica.name), SOON, || {
            replica.proc.must_run()?;
            let lease = self.cluster.run(leases.get_opt(SERVICE)).ok().flatten();
            let holder = lease.and_then(|lease| Holder::parse(&lease.spec?.holder_identity?));
            Ok(holder.filter(|holder| holder.address == replica.address).map(drop))
        })
    }

    /// An agent on a node, that looks for its aggregator at this replica.
    pub fn agent(&self, node: &str, at: &Replica) -> Result<Agent> {
        let token = self.token(&format!("agent-{node}"), AUDIENCE)?;
        self.agent_with(&token, node, at)
    }

    /// The same with a token of one's own.
    pub fn agent_with(&self, token: &str, node: &str, at: &Replica) -> Result<Agent> {
        Agent::start(self.way(token, node, at)?)
    }

    /// How an agent with this token finds this replica.
    pub fn way(&self, token: &str, node: &str, at: &Replica) -> Result<client::Config> {
        let path = self.cluster.dir().join(format!("token-{node}"));
        fs::write(&path, token).context("cannot write the token")?;
        Ok(client::Config {
            address: at.address.to_string(),
            server_name: format!("{SERVICE}.{NAMESPACE}.svc"),
            bundle: self.bundle()?,
            token: path,
            clock: agent::monotonic,
        })
    }

    /// A token of the agents' service account, bound to a pod in [`NAMESPACE`].
    pub fn token(&self, pod: &str, audience: &str) -> Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let mut request = TokenRequest::default();
        request.spec.audiences = vec![audience.to_owned()];
        request.spec.bound_object_ref = Some(BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.to_owned()),
            uid: Some(self.uid(NAMESPACE, pod)?),
        });
        let made = self.cluster.run(accounts.create_token_request(ACCOUNT, &PostParams::default(), &request));
        Ok(made.context("cannot make a token")?.status.context("it has a token")?.token)
    }

    /// The authorities that the aggregator has published, in a file.
    pub fn bundle(&self) -> Result<PathBuf> {
        let maps: Api<ConfigMap> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let name = format!("{SERVICE}-ca");
        let bundle = wait_for("the aggregator's authorities", SOON, || {
            let map = self.cluster.run(maps.get_opt(&name)).ok().flatten();
            Ok(map.and_then(|map| map.data?.remove("ca.crt")))
        })?;
        let path = self.cluster.dir().join("aggregator-ca.crt");
        fs::write(&path, bundle).context("cannot write the authorities")?;
        Ok(path)
    }

    /// The record of a bare pod in `default`, as the API server has it.
    pub fn record(&self, pod: &str) -> Result<Option<Record>> {
        let namespace = "default".parse()?;
        self.record_of(&WorkloadRef { namespace, kind: "Pod".to_owned(), name: pod.to_owned() })
    }

    /// The record of a workload.
    pub fn record_of(&self, workload: &WorkloadRef) -> Result<Option<Record>> {
        let api: Api<WorkloadDependencies> =
            Api::namespaced(self.cluster.client(), workload.namespace.as_str());
        let found = self.cluster.run(api.get_opt(&object_name(workload)));
        Ok(found.context("cannot read the record")?.and_then(|found| found.status))
    }

    /// What the record of a bare pod in `default` says it calls: the first labels of hosts.
    pub fn calls(&self, pod: &str) -> Result<Vec<String>> {
        let record = self.record(pod)?.unwrap_or_default();
        let label = |host: &str| host.split('.').next().unwrap_or_default().to_owned();
        Ok(record.dependencies.iter().map(|dependency| label(dependency.host.as_str())).collect())
    }

    /// Waits until the record of a pod says that it calls exactly these.
    pub fn wait_for_calls(&self, pod: &str, expected: &[&str]) -> Result<()> {
        let mut last = Vec::new();
        let waited = wait_for(&format!("{pod} to call {expected:?}"), SOON, || {
            last = self.calls(pod)?;
            Ok((last == expected).then_some(()))
        });
        waited.with_context(|| format!("it calls {last:?}"))
    }
}

impl Replica {
    /// Ends it as Kubernetes does, and gives what it has said.
    pub fn end(&self) -> Result<String> {
        self.proc.signal(Signal::SIGTERM)?;
        self.proc.success(Duration::from_secs(8))?;
        self.proc.log()
    }

    /// What it has counted, from its last line: of edges by reason, and of what was refused.
    pub fn counts(&self) -> Result<(serde_json::Value, serde_json::Value)> {
        let said = self.end()?;
        let line =
            said.lines().rfind(|line| line.contains("aggregator ended")).context("it has a last line")?;
        let field = |name: &str| -> Result<serde_json::Value> {
            let (_, rest) =
                line.split_once(&format!("{name}=")).with_context(|| format!("no {name} in {line}"))?;
            let first = serde_json::Deserializer::from_str(rest).into_iter().next();
            first.context("a value")?.with_context(|| format!("in {line}"))
        };
        Ok((field("decided")?, field("refused")?))
    }

    /// Its memory in MiB.
    pub fn rss(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.proc.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib / 1024)
    }
}

/// The binary under test: what `SIDESCOPE_BIN` names, else what the same cargo has built beside the tests.
pub fn binary() -> Result<PathBuf> {
    let beside = || -> Result<PathBuf> {
        let own = std::env::current_exe().context("cannot find this program")?;
        let folder = own.ancestors().nth(2).context("tests are in target/PROFILE/deps")?;
        Ok(folder.join("sidescope"))
    };
    let path = std::env::var_os("SIDESCOPE_BIN").map_or_else(beside, |path| Ok(path.into()))?;
    ensure!(
        path.is_file(),
        "no sidescope at {}: build it with `cargo build -p sidescope`, or name it in SIDESCOPE_BIN",
        path.display()
    );
    Ok(path)
}
