//! Who the proxy of a pod is: the user that Istio's image says, or the one that the pod's spec does.

use std::collections::HashMap;
use std::sync::Arc;

use super::Watch;
use crate::node_pods::{Known, NodePods};
use crate::probes::ProbeError;
use crate::uid_map::UidMap;

/// What Kubernetes says of the pods, and what that has to be joined with.
#[derive(Default)]
pub(super) struct Pods {
    /// Somebody watches them.
    are_watched: bool,
    known: Known,
    /// The users of namespaces that are bound to a pod; none where they are the node's. As many as are bound.
    users: HashMap<u64, Option<UidMap>>,
}

impl Pods {
    /// A namespace is gone.
    pub(super) fn forget(&mut self, netns: u64) {
        self.users.remove(&netns);
    }
}

impl Watch {
    /// From here on somebody watches the pods in Kubernetes: what is to be told waits for a while until that has told of its pod.
    pub fn expect_pods(&mut self) {
        self.pods.are_watched = true;
    }

    /// What Kubernetes says of the pods of this node now.
    ///
    /// # Errors
    /// When the kernel refuses to write its maps.
    pub fn take_pods(&mut self, pods: Arc<NodePods>) -> Result<(), ProbeError> {
        self.pods.known = Some(pods);
        let namespaces: Vec<u64> = self.pods.users.keys().copied().collect();
        for netns in namespaces {
            self.leave_out_own(netns)?;
        }
        self.sweep_proxies()
    }

    /// What is known of the pods of this node.
    pub fn pods(&self) -> Option<&NodePods> {
        self.pods.known.as_deref()
    }

    /// Whether it is known who the proxy in a namespace is, as far as Kubernetes tells it.
    pub(super) fn knows_proxy(&self, netns: u64) -> bool {
        let known = |pod| self.pods().is_some_and(|pods| pods.get(pod).is_some());
        !self.pods.are_watched || self.bindings.pod(netns).is_none_or(known)
    }

    /// A scan tells the users of a namespace; none where they are the node's.
    pub(super) fn look_for_proxies(
        &mut self,
        netns: u64,
        cookie: Option<u64>,
        users: Option<UidMap>,
    ) -> Result<(), ProbeError> {
        let uids = users.as_ref().map_or_else(Vec::new, |users| match cookie {
            Some(_) => users.of_pod(&self.proxy_uids),
            None => users.of_pod_everywhere(&self.proxy_uids),
        });
        self.leave_out(cookie, uids)?;
        if cookie.is_some() && self.bindings.pod(netns).is_some() {
            self.pods.users.insert(netns, users);
            self.leave_out_own(netns)?;
        }
        Ok(())
    }

    /// Leaves out the proxy that the spec of a namespace's pod names.
    fn leave_out_own(&mut self, netns: u64) -> Result<(), ProbeError> {
        let pod = self.bindings.pod(netns).and_then(|pod| self.pods()?.get(pod));
        let Some(inside) = pod.and_then(|pod| pod.proxy_uid) else { return Ok(()) };
        let uids = match self.pods.users.get(&netns) {
            // The programs leave these out everywhere.
            Some(None) if self.proxy_uids.contains(&inside) => Vec::new(),
            Some(None) => vec![inside],
            Some(Some(users)) => users.of_pod(&[inside]),
            None => Vec::new(),
        };
        self.leave_out(Some(netns), uids)
    }

    fn leave_out(&mut self, netns: Option<u64>, uids: Vec<u32>) -> Result<(), ProbeError> {
        for uid in uids {
            if self.collector.leave_out(netns, uid) {
                self.proxies_are_news = true;
                if !self.probes.add_proxy_uid(netns, uid)? {
                    self.collector.too_many_proxies(netns);
                }
            }
        }
        Ok(())
    }

    /// Takes edges of proxies that have just become known out of the kernel's set.
    pub(super) fn sweep_proxies(&mut self) -> Result<(), ProbeError> {
        if std::mem::take(&mut self.proxies_are_news) {
            self.sweep()?;
        }
        Ok(())
    }
}
