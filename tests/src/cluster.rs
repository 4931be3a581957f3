//! A real Kubernetes control plane without a kubelet: etcd, kube-apiserver, and as much more as a test wants.
//!
//! Nodes and pods are objects of the API whose status the test writes; all that follows from them (bound pods, owners,
//! EndpointSlices, tokens) is the work of the real programs. Everything listens on free ports of loopback, so clusters run side by
//! side; nothing of one outlives the process that made it.

mod background;
#[path = "../../xtask/src/cache_dir.rs"]
mod cache_dir;
mod certificates;
#[expect(dead_code, reason = "part of it is for the one who builds them")]
#[path = "../../xtask/src/component.rs"]
mod component;
mod control_plane;
mod data;
mod envoy;
mod istio;
mod local;
mod nodes;
mod objects;
mod ports;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::json;
use tokio::runtime::{Handle, Runtime};

pub use background::{down, hold, status, up};
pub use envoy::{Envoy, Proxy};
pub use istio::Istio;
pub use nodes::Pod;

use crate::bed::{Proc, signals};
use crate::cmd::Cmd;
use crate::wait::wait_for;
use component::Component;
use control_plane::Apiserver;
use data::Inner;
use istio::Istiod;
use local::Local;

/// How long a component may take until it is ready, on a machine that does much else.
const READY: Duration = Duration::from_secs(120);

/// What runs in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parts {
    /// etcd and kube-apiserver. Nobody makes service accounts, so pods need none.
    Api,
    /// kube-controller-manager and kube-scheduler too.
    Kubernetes,
    /// istiod too, with its custom resource definitions and the mesh that [`Istio::default`] describes.
    Mesh,
}

/// A control plane of its own, gone with everything in it when this value is dropped. Its calls block: they are for threads that run no
/// asynchronous code themselves, which take [`Cluster::config`] instead.
pub struct Cluster {
    inner: Arc<Inner>,
    /// There until the drop.
    runtime: Option<Runtime>,
    parts: Parts,
    apiserver: Apiserver,
    config: Config,
    client: Client,
    istiod: Option<Istiod>,
}

impl Cluster {
    /// Starts one and waits until it is ready. Sweeps what clusters have left whose owner is gone.
    pub fn start(parts: Parts) -> Result<Self> {
        Self::start_with(parts, None)
    }

    /// The same, where the API server logs all requests of a user into [`Self::audit_log`].
    pub fn start_audited(parts: Parts, user: &str) -> Result<Self> {
        Self::start_with(parts, Some(user))
    }

    fn start_with(parts: Parts, audited: Option<&str>) -> Result<Self> {
        let inner = signals::register(Inner::claim)?;
        // Made before anything runs, so that its drop ends it also when something fails here.
        let starting = Starting { inner };
        let cluster = starting
            .start(parts, audited)
            .with_context(|| format!("cannot start the cluster {}", starting.inner.id))?;
        std::mem::forget(starting);
        Ok(cluster)
    }

    /// The random part of its names.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The folder of its data, its logs (`NAME.log`) and its kubeconfig.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The file that an administrator's kubectl takes.
    pub fn kubeconfig(&self) -> PathBuf {
        self.inner.dir.join(control_plane::KUBECONFIG)
    }

    /// Where the API server logs the requests of the user that it audits.
    pub fn audit_log(&self) -> PathBuf {
        self.inner.dir.join(control_plane::AUDIT_LOG)
    }

    /// The administrator's way to the API, for a client in a runtime of one's own.
    pub fn config(&self) -> Config {
        self.config.clone()
    }

    /// The administrator's client. It works within [`Self::run`].
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Waits for what a client does.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.handle().block_on(work)
    }

    /// Its processes by name.
    pub fn processes(&self) -> Vec<(String, Proc)> {
        self.inner.processes()
    }

    /// Starts a process that ends with the cluster and writes into the log of this name.
    pub fn spawn(&self, name: &str, cmd: &Cmd) -> Result<Proc> {
        self.inner.spawn(name, cmd)
    }

    /// Kills the API server, as a node that dies would. What it has answered is in etcd.
    pub fn kill_apiserver(&self) {
        self.inner.kill(control_plane::APISERVER);
    }

    /// Starts the API server again, on the same port, and waits until it is ready.
    pub fn start_apiserver(&self) -> Result<()> {
        let cmd = self.apiserver.command(&self.inner.dir, self.parts)?;
        self.inner.serve_again(control_plane::APISERVER, &cmd, || self.wait_until_ready())
    }

    /// Kills the API server and starts it again.
    pub fn restart_apiserver(&self) -> Result<()> {
        self.kill_apiserver();
        self.start_apiserver()
    }

    /// A free port of loopback for a program beside the cluster. Outgoing connections do not take it while the program is away.
    pub fn free_port() -> Result<u16> {
        let [port]: [u16; 1] = ports::pick()?;
        Ok(port)
    }

    /// Lets etcd forget whatever is not the latest. The API server may still have some of it in its memory, until it is restarted.
    pub fn forget_history(&self) -> Result<()> {
        let etcd = Local::new(self.handle(), "http", self.apiserver.etcd)?;
        // Any key will do; this is a zero byte in base64.
        let found = etcd.ask("/v3/kv/range", &json!({"key": "AA==", "keys_only": true}))?;
        let revision = &found["header"]["revision"];
        etcd.ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true}))?;
        Ok(())
    }

    /// Starts istiod with a mesh of one's own, in a cluster without one.
    pub fn start_istiod(&mut self, istio: &Istio) -> Result<()> {
        self.istiod = Some(istio::start(self, istio)?);
        Ok(())
    }

    /// The port of loopback where istiod serves its configuration in plaintext.
    pub fn xds_port(&self) -> Result<u16> {
        Ok(self.istiod()?.xds)
    }

    /// What istiod answers on this path of its HTTP port, or of the one with its metrics.
    pub fn ask_istiod(&self, path: &str) -> Result<String> {
        self.istiod()?.ask(path)
    }

    /// Ends the cluster and says what could not be cleaned up. Dropping it does the same, and prints that.
    pub fn end(self) -> Result<()> {
        self.inner.tear_down()
    }

    fn istiod(&self) -> Result<&Istiod> {
        self.istiod.as_ref().ok_or_else(|| anyhow!("the cluster {} has no istiod", self.inner.id))
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("only the drop takes it").handle()
    }

    fn wait_until_ready(&self) -> Result<()> {
        let proc = self.inner.process(control_plane::APISERVER)?;
        wait_for("the API server to be ready", READY, || {
            proc.must_run()?;
            let request = http_get("/readyz")?;
            Ok(self.run(self.client.request_text(request)).ok().map(drop))
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.inner.tear_down_or_say();
        // Waits for nobody: what still runs in there has lost its cluster, and the one who drops may be asynchronous.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A cluster that is not whole yet.
struct Starting {
    inner: Arc<Inner>,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.inner.tear_down_or_say();
    }
}

impl Starting {
    fn start(&self, parts: Parts, audited: Option<&str>) -> Result<Cluster> {
        let inner = Arc::clone(&self.inner);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.context("cannot start the asynchronous runtime")?;
        let handle = runtime.handle();
        let admin = certificates::make(&inner.dir)?;
        let etcd = control_plane::start_etcd(&inner, handle)?;
        let apiserver = control_plane::start_apiserver(&inner, handle, etcd, parts, audited)?;
        let kubeconfig = admin.kubeconfig(apiserver.port);
        let text = serde_json::to_string_pretty(&kubeconfig)?;
        inner.write(control_plane::KUBECONFIG, &text)?;
        let config = config(handle, serde_json::from_value(kubeconfig)?)?;
        let client = {
            let _within = handle.enter();
            Client::try_from(config.clone()).context("cannot make a client")?
        };
        let mut cluster =
            Cluster { inner, runtime: Some(runtime), parts, apiserver, config, client, istiod: None };
        cluster.wait_until_ready()?;
        if parts >= Parts::Kubernetes {
            let (inner, handle) = (&cluster.inner, cluster.handle());
            thread::scope(|scope| {
                let manager = scope.spawn(|| control_plane::start_controller_manager(inner, handle));
                control_plane::start_scheduler(inner, handle)?;
                manager.join().map_err(|_| anyhow!("the thread that starts it panicked"))?
            })?;
            cluster.wait_for_service_account("default")?;
        }
        if parts == Parts::Mesh {
            cluster.start_istiod(&Istio::default())?;
        }
        Ok(cluster)
    }
}

fn config(handle: &Handle, kubeconfig: Kubeconfig) -> Result<Config> {
    let config = handle.block_on(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()));
    let mut config = config.context("the kubeconfig cannot be used")?;
    // Whatever the environment says: it is on loopback.
    config.proxy_url = None;
    Ok(config)
}

fn http_get(path: &str) -> Result<hyper::Request<Vec<u8>>> {
    hyper::Request::get(path).body(Vec::new()).with_context(|| format!("`{path}` is no path"))
}

/// A program or file of a component, or what to do.
fn found(component: Component, file: &str) -> Result<PathBuf> {
    component.find(file).with_context(|| {
        format!(
            "no {file}, neither in KUBEBUILDER_ASSETS nor on PATH nor in the cache: `cargo xtask setup` builds {} {}",
            component.name(),
            component.version()
        )
    })
}
