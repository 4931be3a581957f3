//! An agent that watches the pods of its node in Kubernetes: a real API server, a real kernel.

use std::time::Duration;

use anyhow::{Context, Result};
use sidescope_tests::cluster::{Cluster, Parts};
use sidescope_tests::{Bed, Cmd, Host, Proc, wait_for};

const TESTBED: &str = env!("CARGO_BIN_EXE_testbed");
const SOON: Duration = Duration::from_secs(60);
const APP: u32 = 1000;
/// The proxy of a pod in OpenShift has the user after the app's.
const PROXY: u32 = 1001;

/// A pod with a proxy that has a user of its own, there and here.
fn pod(cluster: &Cluster, bed: &Bed, name: &str) -> Result<Host> {
    let user = |uid: u32| format!("securityContext: {{runAsUser: {uid}}}");
    let objects = cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  nodeName: node-1\n  containers:\n  \
         - {{name: app, image: none, {}}}\n  initContainers:\n  \
         - {{name: istio-proxy, image: none, restartPolicy: Always, {}}}\n",
        user(APP),
        user(PROXY)
    ))?;
    let uid = objects.first().and_then(|pod| pod.metadata.uid.clone()).context("a pod without a uid")?;
    let host = bed.add_pod(&format!("pod{uid}"))?;
    host.unroute("203.0.113.0/24")?;
    host.spawn(&Cmd::new("sleep").arg("3600"))?;
    Ok(host)
}

fn connect(from: &Host, number: u8, uid: u32) -> Result<()> {
    from.run(&Cmd::new(TESTBED).args(["dial", "blocking", &format!("203.0.113.{number}:80")]).uid(uid))
        .map(drop)
}

fn agent(cluster: &Cluster, bed: &Bed) -> Result<Proc> {
    let binary = std::env::var_os("SIDESCOPE_BIN")
        .map_or_else(|| std::path::Path::new(TESTBED).with_file_name("sidescope"), std::path::PathBuf::from);
    let cmd = Cmd::new(binary).args(["agent", "--node", "node-1", "--bpffs"]).arg(bed.bpffs()?);
    let cmd = cmd.arg("--cgroup").arg(bed.pods_cgroup());
    let agent = bed.spawn_on_machine(&cmd.env("KUBECONFIG", cluster.kubeconfig().display().to_string()))?;
    agent.wait_for_log(" watching cgroup", SOON)?;
    Ok(agent)
}

fn tells(agent: &Proc, number: u8) -> Result<()> {
    wait_for("the edge", SOON, || {
        agent.must_run()?;
        Ok(has_told(agent, number)?.then_some(()))
    })
    .with_context(|| agent.log().unwrap_or_default())
}

fn has_told(agent: &Proc, number: u8) -> Result<bool> {
    Ok(agent.log()?.contains(&format!("\"203.0.113.{number}\"")))
}

#[test]
fn what_the_proxy_does_that_the_spec_names_is_not_told_and_the_agent_goes_on_without_an_api_server()
-> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.make_node("node-1")?;
    cluster.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: default}\n")?;
    let bed = Bed::new()?;
    let before = pod(&cluster, &bed, "before")?;
    let agent = agent(&cluster, &bed)?;
    let during = pod(&cluster, &bed, "during")?;
    for (at, pod) in [&before, &during].into_iter().enumerate() {
        let at = u8::try_from(at)? * 10;
        connect(pod, at + 1, PROXY)?;
        connect(pod, at + 2, APP)?;
        tells(&agent, at + 2)?;
        assert!(!has_told(&agent, at + 1)?, "{}", agent.log()?);
    }
    // What it knows holds while the API server is away; of what is new it waits for a while.
    cluster.kill_apiserver();
    connect(&before, 30, PROXY)?;
    connect(&before, 31, APP)?;
    tells(&agent, 31)?;
    let unknown = bed.add_pod("pod0-1")?;
    unknown.unroute("203.0.113.0/24")?;
    unknown.spawn(&Cmd::new("sleep").arg("3600"))?;
    connect(&unknown, 32, APP)?;
    tells(&agent, 32)?;
    cluster.start_apiserver()?;
    let after = pod(&cluster, &bed, "after")?;
    connect(&after, 40, PROXY)?;
    connect(&after, 41, APP)?;
    tells(&agent, 41)?;
    agent.signal(nix::sys::signal::Signal::SIGTERM)?;
    agent.success(Duration::from_secs(5))?;
    for number in [1, 11, 30, 40] {
        assert!(!has_told(&agent, number)?, "{number}: {}", agent.log()?);
    }
    bed.end()?;
    cluster.end()
}
