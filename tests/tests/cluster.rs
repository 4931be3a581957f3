//! The test bed's control plane itself: what the tests of agent, aggregator and planner take for granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenReview, TokenReviewStatus};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sidescope_tests::cluster::{Cluster, Envoy, Parts, Pod, Proxy};
use sidescope_tests::{Cmd, wait_for};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(60);

fn labels(app: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("app".to_owned(), app.to_owned())])
}

fn deployment(name: &str, replicas: usize) -> String {
    let labels = labels(name);
    let container = json!({"name": "app", "image": "none"});
    let template = json!({"metadata": {"labels": labels}, "spec": {"containers": [container]}});
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
    })
    .to_string()
}

fn service(namespace: &str, name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{selector: {{app: {name}}}, ipFamilyPolicy: PreferDualStack, ports: [{{name: http, port: 80}}]}}\n"
    )
}

/// The addresses of a Service that are ready, from all its EndpointSlices.
fn endpoints(cluster: &Cluster, service: &str) -> Result<BTreeSet<IpAddr>> {
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client(), "default");
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut found = BTreeSet::new();
    for slice in cluster.run(slices.list(&of_service))?.items {
        for endpoint in slice.endpoints {
            if endpoint.conditions.is_some_and(|conditions| conditions.ready == Some(true)) {
                for address in endpoint.addresses {
                    found.insert(address.parse()?);
                }
            }
        }
    }
    Ok(found)
}

fn wait_for_endpoints(cluster: &Cluster, service: &str, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<IpAddr> = wanted.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    wait_for(&format!("the endpoints {wanted:?} of {service}"), SOON, || {
        Ok((endpoints(cluster, service)? == wanted).then_some(()))
    })
}

/// Everything of a cluster that could be left.
struct Traces {
    dir: PathBuf,
    pids: Vec<u32>,
}

impl Traces {
    fn of(cluster: &Cluster) -> Self {
        let pids = cluster.processes().iter().map(|(_, proc)| proc.pid()).collect();
        Self { dir: cluster.dir().to_owned(), pids }
    }

    /// The ids of its processes that still run. Another process may have got an id meanwhile: it does not name the cluster's folder.
    fn running(&self) -> Vec<u32> {
        let names = |pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&*self.dir.to_string_lossy())
        };
        self.pids.iter().copied().filter(names).collect()
    }
}

#[test]
fn controllers_and_scheduler_do_their_work_without_a_kubelet() -> Result<()> {
    let cluster = Cluster::start(Parts::Kubernetes)?;
    cluster.make_node("node-a")?;
    cluster.apply(&format!("{}\n---\n{}", deployment("web", 2), service("default", "web")))?;
    let pods = cluster.wait_for_bound_pods("default", "app=web", 2)?;
    assert_eq!(endpoints(&cluster, "web")?, BTreeSet::new(), "no pod runs yet");
    let addresses = [["10.244.0.2", "fd00:10:244::2"], ["10.244.0.3", "fd00:10:244::3"]];
    for (pod, addresses) in pods.iter().zip(addresses) {
        let owner = pod.owner_references().first().context("no owner")?;
        assert_eq!((owner.kind.as_str(), owner.controller), ("ReplicaSet", Some(true)));
        assert_eq!(pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()), Some("node-a"));
        let addresses = addresses.map(|address| address.parse().expect("an address"));
        cluster.run_pod("default", &pod.name_any(), &addresses)?;
    }
    wait_for_endpoints(&cluster, "web", &addresses.concat())?;

    // One goes, and the controller makes another in its place.
    cluster.delete_pod("default", &pods[0].name_any())?;
    wait_for_endpoints(&cluster, "web", &addresses[1])?;
    let pods = cluster.wait_for_bound_pods("default", "app=web", 2)?;
    let new = pods.iter().find(|pod| pod.status.as_ref().is_none_or(|status| status.pod_ip.is_none()));
    cluster.run_pod("default", &new.context("no new pod")?.name_any(), &["10.244.0.2".parse()?])?;
    wait_for_endpoints(&cluster, "web", &["10.244.0.2", "10.244.0.3", "fd00:10:244::3"])?;

    // A pod that nobody's controller made, with an address that it had before.
    cluster.delete(&deployment("web", 2))?;
    wait_for("the pods of the deployment to be deleted", SOON, || {
        // The controller deletes them, and no kubelet says that they have ended.
        for pod in cluster.run(
            Api::<k8s_openapi::api::core::v1::Pod>::default_namespaced(cluster.client())
                .list(&ListParams::default().labels("app=web")),
        )? {
            if pod.metadata.deletion_timestamp.is_some() {
                cluster.delete_pod("default", &pod.name_any())?;
            }
        }
        Ok(endpoints(&cluster, "web")?.is_empty().then_some(()))
    })?;
    cluster.make_pod(&Pod {
        namespace: "default".to_owned(),
        name: "bare".to_owned(),
        node: "node-a".to_owned(),
        labels: labels("web"),
        addresses: vec!["10.244.0.2".parse()?],
    })?;
    wait_for_endpoints(&cluster, "web", &["10.244.0.2"])?;
    cluster.finish_pod("default", "bare")?;
    wait_for_endpoints(&cluster, "web", &[])?;
    cluster.end()
}

#[test]
fn a_namespace_goes_with_all_that_is_in_it() -> Result<()> {
    let cluster = Cluster::start(Parts::Kubernetes)?;
    cluster.make_namespace("short-lived")?;
    cluster.apply(&service("short-lived", "web"))?;
    cluster.delete("apiVersion: v1\nkind: Namespace\nmetadata: {name: short-lived}\n")?;
    wait_for(
        "the end of the namespace",
        SOON,
        || Ok((!cluster.has_namespace("short-lived")?).then_some(())),
    )?;
    cluster.end()
}

/// What the API server says of a token that is shown to a server of this audience.
fn review(cluster: &Cluster, token: &str, audience: &str) -> Result<TokenReviewStatus> {
    let mut review = TokenReview::default();
    review.spec.token = Some(token.to_owned());
    review.spec.audiences = Some(vec![audience.to_owned()]);
    let reviews: Api<TokenReview> = Api::all(cluster.client());
    cluster.run(reviews.create(&PostParams::default(), &review))?.status.context("no status")
}

#[test]
fn a_token_is_good_for_its_audience_only() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: agent, namespace: default}\n")?;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(cluster.client());
    let mut request = TokenRequest::default();
    request.spec.audiences = vec!["sidescope".to_owned()];
    let params = PostParams::default();
    let created = cluster.run(accounts.create_token_request("agent", &params, &request))?;
    let token = created.status.context("no token")?.token;

    let good = review(&cluster, &token, "sidescope")?;
    assert_eq!(good.authenticated, Some(true), "{good:?}");
    let user = good.user.and_then(|user| user.username);
    assert_eq!(user.as_deref(), Some("system:serviceaccount:default:agent"));
    assert_eq!(review(&cluster, &token, "another")?.authenticated, None);
    let (head, _) = token.rsplit_once('.').context("a token has three parts")?;
    assert_eq!(review(&cluster, &format!("{head}.AAAA"), "sidescope")?.authenticated, None);
    cluster.end()
}

#[test]
fn the_api_server_waits_for_its_port() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.kill_apiserver();
    let port = cluster.config().cluster_url.port_u16().context("no port")?;
    let somebody = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    thread::scope(|scope| {
        let started = scope.spawn(|| cluster.start_apiserver());
        let log = cluster.dir().join("kube-apiserver.log");
        wait_for("the API server to find its port taken", SOON, || {
            Ok(fs::read_to_string(&log)?.contains("address already in use").then_some(()))
        })?;
        drop(somebody);
        started.join().expect("no panic")
    })?;
    assert_eq!(config_maps(&cluster)?, [""; 0]);
    cluster.end()
}

fn config_map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: default}}\n")
}

/// The names of the ConfigMaps that tests have made.
fn config_maps(cluster: &Cluster) -> Result<Vec<String>> {
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    let names = cluster.run(maps.list(&ListParams::default()))?.items.into_iter().map(|map| map.name_any());
    Ok(names.filter(|name| name != "kube-root-ca.crt").collect())
}

#[test]
fn the_api_server_is_killed_and_has_forgotten_nothing() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.apply(&config_map("kept"))?;
    let pid = |cluster: &Cluster| {
        let processes = cluster.processes();
        let found = processes.iter().find(|(name, _)| name == "kube-apiserver");
        found.map(|(_, proc)| proc.pid()).context("no API server")
    };
    let before = pid(&cluster)?;
    cluster.kill_apiserver();
    assert!(config_maps(&cluster).is_err(), "nobody should answer");
    cluster.start_apiserver()?;
    assert_ne!(pid(&cluster)?, before);
    assert_eq!(config_maps(&cluster)?, ["kept"]);
    cluster.restart_apiserver()?;
    assert_eq!(config_maps(&cluster)?, ["kept"]);
    // On the same port, so a client that knew it before finds it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        Client::try_from(cluster.config())?.apiserver_version().await?;
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn clusters_side_by_side_know_nothing_of_each_other() -> Result<()> {
    let (one, other) = (Cluster::start(Parts::Api)?, Cluster::start(Parts::Api)?);
    one.apply(&config_map("one"))?;
    other.apply(&config_map("other"))?;
    assert_eq!(config_maps(&one)?, ["one"]);
    assert_eq!(config_maps(&other)?, ["other"]);
    // The end of one is not the other's.
    one.end()?;
    assert_eq!(config_maps(&other)?, ["other"]);
    other.end()
}

#[test]
fn nothing_is_left_of_a_cluster_that_was_dropped() -> Result<()> {
    let cluster = Cluster::start(Parts::Kubernetes)?;
    cluster.spawn("sleeper", &Cmd::new("sh").args(["-c", "sleep 1000; : $0"]).arg(cluster.dir()))?;
    let traces = Traces::of(&cluster);
    // All of them name the folder, or this test sees nothing.
    wait_for("five processes", SOON, || Ok((traces.running().len() == 5).then_some(())))?;
    drop(cluster);
    assert_eq!(traces.running(), [0; 0]);
    assert!(!traces.dir.exists());
    Ok(())
}

#[test]
fn nothing_is_left_of_a_cluster_after_a_panic() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    let traces = Traces::of(&cluster);
    let panic = catch_unwind(AssertUnwindSafe(move || {
        assert!(cluster.dir().exists());
        panic!("as a test that fails");
    }));
    assert!(panic.is_err());
    assert_eq!(traces.running(), [0; 0]);
    assert!(!traces.dir.exists());
    Ok(())
}

/// A process of its own with a cluster.
fn owner() -> Result<(Child, Traces)> {
    let mut owner = Command::new(TESTBED).args(["cluster", "hold-api"]).stdout(Stdio::piped()).spawn()?;
    // It prints when it is ready: the folder, the ids of its processes, an empty line.
    let mut lines = BufReader::new(owner.stdout.take().context("no pipe")?).lines();
    let dir = PathBuf::from(lines.next().context("it has said nothing")??);
    let mut pids = Vec::new();
    for line in lines.map_while(Result::ok).take_while(|line| !line.is_empty()) {
        pids.push(line.parse::<u32>()?);
    }
    let traces = Traces { dir, pids };
    ensure!(traces.running().len() == 2, "etcd and the API server, or this sees nothing");
    Ok((owner, traces))
}

#[test]
fn nothing_is_left_of_a_cluster_whose_owner_was_killed() -> Result<()> {
    let (mut owner, traces) = owner()?;
    owner.kill()?;
    owner.wait()?;
    wait_for("the end of its processes", SOON, || Ok(traces.running().is_empty().then_some(())))?;
    // Its folder goes with the next cluster, which another test may have made already.
    Cluster::start(Parts::Api)?.end()?;
    assert!(!traces.dir.exists());
    Ok(())
}

#[test]
fn nothing_is_left_of_a_cluster_whose_owner_was_told_to_end() -> Result<()> {
    let (mut owner, traces) = owner()?;
    kill(Pid::from_raw(i32::try_from(owner.id())?), Signal::SIGTERM)?;
    assert_eq!(owner.wait()?.code(), Some(128 + 15));
    assert_eq!(traces.running(), [0; 0]);
    assert!(!traces.dir.exists());
    Ok(())
}

#[test]
fn what_fails_at_the_start_is_told_and_leaves_nothing() -> Result<()> {
    let empty = tempfile::tempdir()?;
    // A program of that name which says why it does not work, before all others.
    let broken = empty.path().join("kube-apiserver");
    fs::write(&broken, "#!/bin/sh\necho out of order >&2\nexit 3\n")?;
    fs::set_permissions(&broken, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let temporary = empty.path().join("tmp");
    fs::create_dir(&temporary)?;
    let mut command = Command::new(TESTBED);
    command.args(["cluster", "hold-api"]).env("KUBEBUILDER_ASSETS", empty.path()).env("TMPDIR", &temporary);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("kube-apiserver") && said.contains("out of order"), "{said}");
    let left = folders(&temporary.join(format!("sidescope-clusters-{}", nix::unistd::geteuid())))?;
    assert_eq!(left, [""; 0]);
    Ok(())
}

fn folders(parent: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// A cluster of each Service that is not Istio's own, as an Envoy names it.
fn services(envoy: &Envoy) -> Result<BTreeSet<String>> {
    let of_service = |name: &String| name.starts_with("outbound|80|") && !name.contains("istio-system");
    let host = |name: String| name.rsplit('|').next().unwrap_or_default().to_owned();
    Ok(envoy.clusters()?.into_iter().filter(of_service).map(host).collect())
}

fn wait_for_services(envoy: &Envoy, wanted: &[&str]) -> Result<()> {
    let wanted: BTreeSet<String> =
        wanted.iter().map(|name| format!("{name}.default.svc.cluster.local")).collect();
    wait_for(&format!("exactly {wanted:?} in Envoy"), SOON, || {
        envoy.proc().must_run()?;
        Ok((services(envoy)? == wanted).then_some(()))
    })
}

#[test]
fn a_sidecar_object_narrows_what_istiod_gives_an_envoy() -> Result<()> {
    let cluster = Cluster::start(Parts::Mesh)?;
    cluster.make_node("node-a")?;
    for (name, address) in [("caller", "10.244.0.2"), ("near", "10.244.0.3"), ("far", "10.244.0.4")] {
        cluster.apply(&service("default", name))?;
        cluster.make_pod(&Pod {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            node: "node-a".to_owned(),
            labels: labels(name),
            addresses: vec![address.parse()?],
        })?;
    }
    let proxy = |name: &str, address: &str| -> Result<Proxy> {
        Ok(Proxy {
            namespace: "default".to_owned(),
            pod: name.to_owned(),
            labels: labels(name),
            address: address.parse()?,
        })
    };
    let caller = Envoy::start(&cluster, &proxy("caller", "10.244.0.2")?)?;
    let near = Envoy::start(&cluster, &proxy("near", "10.244.0.3")?)?;
    for envoy in [&caller, &near] {
        wait_for_services(envoy, &["caller", "near", "far"])?;
        ensure!(envoy.listeners()?.contains("virtualOutbound"), "{:?}", envoy.listeners()?);
    }
    wait_for("the endpoint of near", SOON, || {
        Ok(caller.config_dump()?.to_string().contains("10.244.0.3").then_some(()))
    })?;

    let sidecar = "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: caller, namespace: default}\n\
                   spec:\n  workloadSelector: {labels: {app: caller}}\n  egress: [{hosts: ['*/near.default.svc.cluster.local']}]\n";
    cluster.apply(sidecar)?;
    wait_for_services(&caller, &["near"])?;
    wait_for_services(&near, &["caller", "near", "far"])?;
    cluster.delete(sidecar)?;
    wait_for_services(&caller, &["caller", "near", "far"])?;

    assert!(cluster.ask_istiod("/metrics")?.contains("pilot_xds_pushes"));
    cluster.end()
}
