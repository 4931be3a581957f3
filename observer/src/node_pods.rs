//! What the agent has to know of the pods of its node, as their specs tell it: which are on the host's network, and who their proxy is.
//! Pure.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::model::names::PodUid;
use crate::outbox::MAX_PODS;

/// The container of Istio's proxy.
const PROXY: &str = "istio-proxy";
/// Those that Istio puts in beside it, which have ended when the workload starts.
const SET_UP: [&str; 2] = ["istio-init", "istio-validation"];

/// What is read of a pod's spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    host_network: bool,
    security_context: SecurityContext,
    containers: Vec<Container>,
    init_containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    security_context: SecurityContext,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecurityContext {
    run_as_user: Option<u32>,
}

/// A pod of this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodePod {
    /// It has no network namespace of its own, and so no sidecar.
    pub host_network: bool,
    /// The user inside the pod that its proxy is, and nobody else in it; `None` if it has no proxy, if the image says who that is (then
    /// it is Istio's usual one), or if others may be the same user.
    pub proxy_uid: Option<u32>,
}

impl From<&PodSpec> for NodePod {
    fn from(spec: &PodSpec) -> Self {
        let user = |container: &Container| {
            container.security_context.run_as_user.or(spec.security_context.run_as_user)
        };
        let all = || spec.containers.iter().chain(&spec.init_containers);
        let proxy = all().find(|container| container.name == PROXY);
        let others = || {
            all().filter(|container| container.name != PROXY && !SET_UP.contains(&container.name.as_str()))
        };
        // What the image of another container says is not known: it might be the same user.
        let proxy_uid = proxy
            .and_then(user)
            .filter(|uid| others().all(|other| user(other).is_some_and(|user| user != *uid)));
        Self { host_network: spec.host_network, proxy_uid }
    }
}

/// All pods of this node that are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodePods {
    pods: HashMap<PodUid, NodePod>,
}

impl NodePods {
    /// What is known of a pod.
    pub fn get(&self, uid: &PodUid) -> Option<&NodePod> {
        self.pods.get(uid)
    }

    /// Takes over what a pod is now; those beyond [`MAX_PODS`] stay unknown. Says whether it is news.
    pub fn apply(&mut self, uid: PodUid, pod: NodePod) -> bool {
        if self.pods.len() >= MAX_PODS && !self.pods.contains_key(&uid) {
            return false;
        }
        self.pods.insert(uid, pod) != Some(pod)
    }

    /// A pod is gone. Says whether it was known.
    pub fn remove(&mut self, uid: &PodUid) -> bool {
        self.pods.remove(uid).is_some()
    }
}

/// What was last seen of the pods of this node; `None` before the first list.
pub type Known = Option<Arc<NodePods>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: &str) -> NodePod {
        NodePod::from(&serde_json::from_str::<PodSpec>(json).unwrap())
    }

    #[test]
    fn a_proxy_is_known_by_its_container_and_the_user_that_it_runs_as() {
        let proxy = r#"{"name":"istio-proxy","securityContext":{"runAsUser":1000700001}}"#;
        let app = r#"{"name":"app","securityContext":{"runAsUser":1000700000},"image":"a"}"#;
        let uid = Some(1_000_700_001);
        for (spec, expected) in [
            (format!(r#"{{"containers":[{app},{proxy}]}}"#), uid),
            (format!(r#"{{"containers":[{app}],"initContainers":[{{"name":"istio-init"}},{proxy}]}}"#), uid),
            (
                format!(r#"{{"containers":[{{"name":"app"}},{proxy}],"securityContext":{{"runAsUser":5}}}}"#),
                uid,
            ),
            // Nobody says who the app is, or it is the same user.
            (format!(r#"{{"containers":[{{"name":"app"}},{proxy}]}}"#), None),
            (
                format!(
                    r#"{{"containers":[{{"name":"app"}},{proxy}],"securityContext":{{"runAsUser":1000700001}}}}"#
                ),
                None,
            ),
            (format!(r#"{{"containers":[{app},{{"name":"istio-proxy"}}]}}"#), None),
            (format!(r#"{{"containers":[{app}]}}"#), None),
            ("{}".to_owned(), None),
        ] {
            assert_eq!(pod(&spec), NodePod { host_network: false, proxy_uid: expected }, "{spec}");
        }
        assert!(pod(r#"{"hostNetwork":true,"containers":[]}"#).host_network);
    }

    #[test]
    fn only_what_differs_is_news() {
        let (mut pods, uid) = (NodePods::default(), PodUid::new("a").unwrap());
        let with_proxy = NodePod { proxy_uid: Some(5), ..NodePod::default() };
        assert!(pods.apply(uid.clone(), NodePod::default()));
        assert!(!pods.apply(uid.clone(), NodePod::default()));
        assert!(pods.apply(uid.clone(), with_proxy));
        assert_eq!(pods.get(&uid), Some(&with_proxy));
        assert!(pods.remove(&uid) && !pods.remove(&uid));
    }
}
