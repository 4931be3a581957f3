//! The aggregator: the real program, with an account of its own.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sidescope::trust::store::BUNDLE_KEY;
use tokio::time::sleep;

use super::fleet::Target;
use super::objects::{AGENT, AGGREGATOR as SERVICE, NAMESPACE};
use crate::bed::Proc;
use crate::cluster::Cluster;
use crate::cmd::Cmd;

/// Its name among the processes of the cluster.
pub(super) const PROCESS: &str = "sidescope";
/// How long it may take until it is ready, and until it has ended.
const READY: Duration = Duration::from_secs(180);
const END: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);
/// What it says once all watches have told all that there is, and once it leads and has read all records.
const SAYS: [&str; 2] = [" ready seconds=", "the records were read"];
/// Lines of its log that are told where something fails.
const LAST_WORDS: usize = 30;

/// One that runs, or has been stopped.
pub(super) struct Aggregator {
    proc: Proc,
    started: Instant,
    address: SocketAddr,
    /// How long its log was when it started: one before it has written the first part.
    log_before: usize,
}

impl Aggregator {
    /// Starts one at this address, as the account with this token.
    pub(super) fn start(
        cluster: &Cluster,
        program: &Path,
        address: SocketAddr,
        token: &str,
        folder: &Path,
    ) -> Result<Self> {
        let kubeconfig = kubeconfig(cluster, token, folder)?;
        let cmd = Cmd::new(program)
            .args(["aggregator", "--listen", &address.to_string(), "--pod-name", "aggregator-0"])
            .args(["--namespace", NAMESPACE, "--service", SERVICE, "--agent-service-account", AGENT])
            .env("KUBECONFIG", kubeconfig)
            .env("NO_COLOR", "1");
        let before = cluster.processes().into_iter().find(|(name, _)| name == PROCESS);
        let log_before = before.map_or(Ok(0), |(_, proc)| proc.log().map(|log| log.len()))?;
        let started = Instant::now();
        Ok(Self { proc: cluster.spawn(PROCESS, &cmd)?, started, address, log_before })
    }

    /// Waits until it knows the whole cluster, has all records and takes what agents tell. Gives how long that took from its start.
    pub(super) async fn ready(&self) -> Result<Duration> {
        loop {
            self.proc.must_run()?;
            let log = self.proc.log()?;
            let new = log.get(self.log_before..).unwrap_or_default();
            let took = self.started.elapsed();
            if SAYS.iter().all(|text| new.contains(text)) {
                return Ok(took);
            }
            ensure!(took < READY, "the aggregator is not ready {READY:?} after its start");
            sleep(PAUSE).await;
        }
    }

    /// Ends it as a cluster does.
    pub(super) async fn stop(&self) -> Result<()> {
        self.proc.signal(Signal::SIGTERM)?;
        let since = Instant::now();
        while self.proc.exited()?.is_none() {
            ensure!(since.elapsed() < END, "the aggregator has not ended {END:?} after SIGTERM");
            sleep(PAUSE).await;
        }
        Ok(())
    }

    /// How agents reach it. It makes its certificates itself.
    pub(super) async fn target(&self, client: &Client, folder: &Path) -> Result<Target> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
        let map = maps.get(&format!("{SERVICE}-ca")).await.context("no authorities for the agents")?;
        let text = map.data.and_then(|mut data| data.remove(BUNDLE_KEY)).context("the ConfigMap is empty")?;
        let bundle = folder.join(BUNDLE_KEY);
        fs::write(&bundle, text).with_context(|| format!("cannot write {}", bundle.display()))?;
        let server_name = format!("{SERVICE}.{NAMESPACE}.svc");
        Ok(Target { address: self.address, server_name, bundle })
    }
}

/// The administrator's, with another user.
fn kubeconfig(cluster: &Cluster, token: &str, folder: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(cluster.kubeconfig()).context("cannot read the kubeconfig")?;
    let mut kubeconfig: Value = serde_json::from_str(&text).context("the kubeconfig is no JSON")?;
    kubeconfig["users"][0]["user"] = json!({"token": token});
    let path = folder.join("kubeconfig");
    fs::write(&path, kubeconfig.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// An error with what the aggregator said last: its log goes with the cluster.
pub(super) fn with_last_words(cluster: &Cluster, error: Error) -> Error {
    let processes = cluster.processes();
    let Some((_, proc)) = processes.iter().find(|(name, _)| name == PROCESS) else { return error };
    let log = proc.log().unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n");
    error.context(format!("the last lines of the aggregator:\n{last}\n"))
}
