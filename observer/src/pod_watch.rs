//! Watches the pods of one node in the Kubernetes API. Whoever cannot goes on without: pods are then known by what the node itself tells.

use std::pin::pin;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::core::{ApiResource, NotUsed, Object};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tracing::{debug, info, warn};

use crate::model::names::{ObjectName, PodUid};
use crate::node_pods::{Known, NodePod, NodePods, PodSpec};

/// A pod as far as it is read.
type SlimPod = Object<PodSpec, NotUsed>;

/// Tells what the pods of the node are, whenever that changes. Never ends by itself: after an error the watch begins anew, and what was
/// told holds meanwhile.
pub async fn run(client: Client, node: ObjectName, known: watch::Sender<Known>) {
    let pods: Api<SlimPod> = Api::all_with(client, &ApiResource::erase::<Pod>(&()));
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    let mut events = pin!(watcher(pods, config).default_backoff());
    let mut pods = NodePods::default();
    let mut trouble: Option<String> = None;
    while let Some(event) = events.next().await {
        let is_news = match event {
            Ok(event) => {
                if trouble.take().is_some() {
                    info!(%node, "the pods of this node can be watched again");
                }
                take(&mut pods, event, known.borrow().is_none())
            }
            Err(err) => {
                let reason = err.to_string();
                if trouble.as_ref() == Some(&reason) {
                    debug!(%node, %reason, "the pods of this node can still not be watched");
                } else {
                    warn!(
                        %node, %reason,
                        "the pods of this node cannot be watched; it is tried again, and until then a proxy with another user than 1337 \
                         counts as its workload. It takes the rights to list and watch pods"
                    );
                }
                trouble = Some(reason);
                false
            }
        };
        if is_news {
            known.send_replace(Some(Arc::new(pods.clone())));
        }
    }
}

/// Says whether there is something to tell.
fn take(pods: &mut NodePods, event: Event<SlimPod>, is_first: bool) -> bool {
    match event {
        Event::Init => {
            // What is gone since then is not told of: it is listed no more. Nobody asks for it any more either.
            *pods = NodePods::default();
            false
        }
        Event::InitApply(pod) => {
            apply(pods, &pod);
            false
        }
        Event::InitDone => true,
        Event::Apply(pod) => apply(pods, &pod) && !is_first,
        Event::Delete(pod) => uid(&pod).is_some_and(|uid| pods.remove(&uid)),
    }
}

fn apply(pods: &mut NodePods, pod: &SlimPod) -> bool {
    uid(pod).is_some_and(|uid| pods.apply(uid, NodePod::from(&pod.spec)))
}

/// One that is no uid is not the kubelet's either.
fn uid(pod: &SlimPod) -> Option<PodUid> {
    PodUid::new(pod.metadata.uid.clone()?).ok()
}
