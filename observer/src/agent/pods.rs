//! The task that watches the pods of this node in Kubernetes, where that is possible.

use std::env;

use anyhow::Context as _;
use kube::Client;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::model::names::ObjectName;
use crate::node_pods::Known;
use crate::pod_watch;

/// Names the node, where no option does.
const NODE_NAME: &str = "NODE_NAME";

/// The name of this node, as far as anybody tells it.
pub(super) fn node(option: Option<&ObjectName>) -> anyhow::Result<Option<ObjectName>> {
    if let Some(name) = option {
        return Ok(Some(name.clone()));
    }
    let name = env::var(NODE_NAME).ok().filter(|name| !name.is_empty());
    name.map(ObjectName::new).transpose().with_context(|| format!("{NODE_NAME} does not name a node"))
}

/// A watch of pods, which ends when this is dropped.
pub(super) struct PodWatch {
    known: watch::Receiver<Known>,
    task: JoinHandle<()>,
}

impl PodWatch {
    /// Begins to watch. `None` where there is no API server to ask, which is said.
    pub(super) async fn start(node: ObjectName) -> Option<Self> {
        match Client::try_default().await {
            Ok(client) => {
                info!(%node, "watching the pods of this node in Kubernetes");
                let (tell, known) = watch::channel(None);
                Some(Self { known, task: tokio::spawn(pod_watch::run(client, node, tell)) })
            }
            Err(reason) => {
                warn!(
                    %node, %reason,
                    "there is no Kubernetes API to ask for the pods of this node: a proxy with another user than 1337 counts as its workload"
                );
                None
            }
        }
    }

    /// Waits until there is something new, and returns it.
    pub(super) async fn next(&mut self) -> Known {
        if self.known.changed().await.is_err() {
            // The task has broken down: what it told holds.
            std::future::pending::<()>().await;
        }
        self.known.borrow_and_update().clone()
    }
}

impl Drop for PodWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
