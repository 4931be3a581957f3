//! What stands for an aggregator: the real server with real TLS, in this process. What comes is kept here.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use sidescope::certificates::plan;
use sidescope::election::Leader;
use sidescope::model::time::Time;
use sidescope::transport::counts::Counts;
use sidescope::transport::{Receipt, server};
use sidescope::trust::material::Material;
use sidescope::trust::serving::{Serving, server_config};
use sidescope::trust::tokens::{AUDIENCE, Review, Tokens};
use sidescope::wire::{Batch, Coverage, Edge, Epoch};
use sidescope_tests::wait_for;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};

use crate::scene::{Agent, SOON};

/// The name that its certificate is for.
const NAME: &str = "sidescope.mesh.svc";

pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    Time(i64::try_from(since.as_millis()).expect("before the year 292,278,994"))
}

/// Takes every token for that of an agent on a node.
struct AnyToken;

impl Review for AnyToken {
    async fn review(&self, _: &str) -> Result<TokenReviewStatus, String> {
        let extra = [("node-name", "node-1"), ("pod-name", "agent-x"), ("pod-uid", "1-2")]
            .map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
        Ok(TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:mesh:agent".to_owned()),
                extra: Some(BTreeMap::from(extra)),
                ..UserInfo::default()
            }),
        })
    }
}

/// Certificates, addresses, and all that has come in.
pub(crate) struct Aggregator {
    folder: Arc<tempfile::TempDir>,
    serving: Arc<Serving>,
    pub(crate) address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    running: Option<(Runtime, watch::Sender<Leader>)>,
}

#[derive(Default)]
struct Kept {
    batches: Vec<Batch>,
    /// What comes is not acknowledged.
    silent: bool,
    held: Vec<Receipt>,
}

/// An edge as it was told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) pod: Option<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) edge: Edge,
}

impl Aggregator {
    /// One that runs.
    pub(crate) fn start() -> Result<Self> {
        let mut aggregator = Self::away()?;
        aggregator.come()?;
        Ok(aggregator)
    }

    /// One at whose address nobody listens.
    pub(crate) fn away() -> Result<Self> {
        let (mut material, names) = (Material::default(), [NAME.to_owned()]);
        let plan = plan(&material.held()?, &names, now());
        material.carry_out(plan, &names, now())?;
        let serving = Arc::new(Serving::default());
        let pair = material.server.as_ref().context("no certificate was made")?;
        serving.show(pair.certificate.as_bytes(), pair.key.as_bytes())?;
        let folder = Arc::new(tempfile::tempdir()?);
        fs::write(folder.path().join("ca.crt"), material.bundle())?;
        fs::write(folder.path().join("token"), "a token\n")?;
        Ok(Self { folder, serving, address: free()?, kept: Arc::default(), running: None })
    }

    /// Another one with the same certificate, at whose address nobody listens yet.
    pub(crate) fn replica(&self) -> Result<Self> {
        let (folder, serving) = (Arc::clone(&self.folder), Arc::clone(&self.serving));
        Ok(Self { folder, serving, address: free()?, kept: Arc::default(), running: None })
    }

    /// Listens from here on.
    pub(crate) fn come(&mut self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (leader, leads) = watch::channel(Leader::Me);
        let listener = wait_for("the aggregator's port", SOON, || {
            Ok(runtime.block_on(tokio::net::TcpListener::bind(self.address)).ok())
        })?;
        let (deliver, mut deliveries) = mpsc::channel(4);
        let config = server::Config {
            listener,
            tls: Arc::new(server_config(Arc::clone(&self.serving))),
            tokens: Arc::new(Tokens::new(AnyToken, "mesh", "agent")),
            leader: leads,
            deliveries: deliver,
            clock: now,
            counts: Arc::new(Counts::default()),
        };
        runtime.spawn(server::run(config, std::future::pending()));
        let kept = Arc::clone(&self.kept);
        runtime.spawn(async move {
            while let Some(delivery) = deliveries.recv().await {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.batches.push(delivery.batch);
                if kept.silent {
                    kept.held.push(delivery.receipt);
                } else {
                    delivery.receipt.acknowledge(vec![]);
                }
            }
        });
        self.running = Some((runtime, leader));
        Ok(())
    }

    /// Ends at once, like a process that is killed.
    pub(crate) fn go(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_background();
        }
        self.kept().held.clear();
    }

    /// Says who leads.
    pub(crate) fn lead(&self, leader: Leader) {
        if let Some((_, lead)) = &self.running {
            lead.send_replace(leader);
        }
    }

    /// Whether it acknowledges what comes from here on.
    pub(crate) fn acknowledge(&self, acknowledges: bool) {
        self.kept().silent = !acknowledges;
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an agent is started with that reports here.
    pub(crate) fn options(&self) -> Vec<String> {
        let file = |name: &str| self.folder.path().join(name).display().to_string();
        let (address, ca, token) = (self.address.to_string(), file("ca.crt"), file("token"));
        [
            ["--aggregator", &address],
            ["--aggregator-name", NAME],
            ["--aggregator-ca", &ca],
            ["--token", &token],
        ]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
    }

    /// Epochs and sequences of all batches, in the order in which they came.
    pub(crate) fn sequences(&self) -> Vec<(Epoch, u64)> {
        self.kept().batches.iter().map(|batch| (batch.epoch, batch.sequence)).collect()
    }

    /// All that was told of connections to this destination, in order; what came again not again.
    pub(crate) fn told(&self, to: SocketAddr) -> Vec<Told> {
        let mut told = Vec::new();
        for batch in self.batches() {
            for source in batch.sources {
                let pod = source.pod.map(String::from);
                for edge in source.edges {
                    if (edge.address, edge.port) == (to.ip(), to.port()) {
                        told.push(Told { pod: pod.clone(), addresses: source.addresses.clone(), edge });
                    }
                }
            }
        }
        told
    }

    /// All times through which a pod was watched, in order; what came again not again.
    pub(crate) fn coverage(&self, pod: &str) -> Vec<Coverage> {
        let batches = self.batches().into_iter().flat_map(|batch| batch.sources);
        let of_it = batches.filter(|source| source.pod.as_ref().is_some_and(|uid| uid.as_str() == pod));
        of_it.flat_map(|source| source.coverage).collect()
    }

    fn batches(&self) -> Vec<Batch> {
        let mut batches: Vec<Batch> = Vec::new();
        for batch in &self.kept().batches {
            if !batches.iter().any(|known| (known.epoch, known.sequence) == (batch.epoch, batch.sequence)) {
                batches.push(batch.clone());
            }
        }
        batches
    }

    /// Waits until something was told.
    pub(crate) fn wait<T>(
        &self,
        agent: &Agent,
        what: &str,
        mut find: impl FnMut(&Self) -> Option<T>,
    ) -> Result<T> {
        let found = wait_for(what, SOON, || {
            agent.process.must_run()?;
            Ok(find(self))
        });
        found.with_context(|| agent.process.log().unwrap_or_default())
    }

    /// Waits until all of these edges were told.
    pub(crate) fn wait_for_edges(&self, agent: &Agent, edges: &[SocketAddr]) -> Result<()> {
        self.wait(agent, "the edges", |here| {
            edges.iter().all(|edge| !here.told(*edge).is_empty()).then_some(())
        })
    }

    /// Waits until a host of an edge was told.
    pub(crate) fn wait_for_host(&self, agent: &Agent, edge: SocketAddr, host: &str) -> Result<()> {
        self.wait(agent, "the host", |here| {
            let told = here.told(edge);
            told.iter().any(|told| told.edge.hosts.iter().any(|known| known.as_str() == host)).then_some(())
        })
    }
}

impl Drop for Aggregator {
    fn drop(&mut self) {
        self.go();
    }
}

/// An address where nobody listens.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
