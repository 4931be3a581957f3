//! Which pod a network namespace is: told by the cgroups of the processes in it, which the kubelet names after the pod. Bound once, since
//! the sandbox of a pod keeps its namespace for life and no cookie is used twice. Pure.

use std::collections::HashMap;
use std::path::{Component, Path};

use crate::model::names::PodUid;

/// Most namespaces that are bound at a time; a node has a few hundred pods. More are not bound, and told by their addresses.
pub const MAX_BOUND: usize = 16_384;

/// Namespaces and their pods.
#[derive(Clone, Debug, Default)]
pub struct Bindings {
    /// What scans have told; none where they told of several pods.
    bound: HashMap<u64, Option<PodUid>>,
    /// What is known of a program that connected, for namespaces in which no scan has found a pod's. It may have come from elsewhere.
    by_program: HashMap<u64, PodUid>,
}

impl Bindings {
    /// What the cgroups of the programs in a namespace say. Where they speak of several pods (a debugging tool that entered the
    /// namespace from its own pod), nothing is bound unless it was before.
    pub fn bind<'p>(&mut self, netns: u64, pods: impl IntoIterator<Item = &'p PodUid>) {
        let mut pods = pods.into_iter();
        let Some(first) = pods.next() else { return };
        let pod = pods.all(|pod| pod == first).then(|| first.clone());
        if self.has_room_for(netns) {
            let known = self.bound.entry(netns).or_default();
            if known.is_none() {
                *known = pod;
            }
            self.by_program.remove(&netns);
        }
    }

    /// A program in the cgroup of this pod has connected in a namespace; it counts where no scan has told more.
    pub fn connected(&mut self, netns: u64, pod: &PodUid) {
        if !self.knows(netns) && self.has_room_for(netns) {
            self.by_program.insert(netns, pod.clone());
        }
    }

    /// Whether anything was told of the namespace.
    pub fn knows(&self, netns: u64) -> bool {
        self.bound.contains_key(&netns) || self.by_program.contains_key(&netns)
    }

    /// The pod that the namespace is.
    pub fn pod(&self, netns: u64) -> Option<&PodUid> {
        self.bound.get(&netns).map_or_else(|| self.by_program.get(&netns), Option::as_ref)
    }

    /// All namespaces that are bound, with their pods.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &PodUid)> {
        let bound = self.bound.iter().filter_map(|(netns, pod)| Some((*netns, pod.as_ref()?)));
        bound.chain(self.by_program.iter().map(|(netns, pod)| (*netns, pod)))
    }

    /// Forgets a namespace that is gone.
    pub fn forget(&mut self, netns: u64) {
        self.bound.remove(&netns);
        self.by_program.remove(&netns);
    }

    fn has_room_for(&self, netns: u64) -> bool {
        self.knows(netns) || self.bound.len() + self.by_program.len() < MAX_BOUND
    }
}

/// The pod whose cgroup has this path below the kubelet's (`kubepods`, `kubepods.slice`), or lies below it. The kubelet writes
/// `besteffort/pod<uid>` or, where systemd manages cgroups, `kubepods-besteffort.slice/kubepods-besteffort-pod<uid>.slice` with
/// underscores in place of dashes (kubernetes `pkg/kubelet/cm`). The first such name counts: what a container makes below its own
/// cgroup is its business.
pub fn pod_of(below_kubepods: &Path) -> Option<PodUid> {
    below_kubepods.components().find_map(|component| match component {
        Component::Normal(name) => uid_in(name.to_str()?),
        _ => None,
    })
}

fn uid_in(name: &str) -> Option<PodUid> {
    if let Some(uid) = name.strip_prefix("pod") {
        return PodUid::new(uid).ok();
    }
    let name = name.strip_suffix(".slice")?;
    let (_, uid) = name.split_once("-pod")?;
    PodUid::new(uid.replace('_', "-")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(text: &str) -> PodUid {
        PodUid::new(text).unwrap()
    }

    #[test]
    fn the_kubelet_names_cgroups_after_pods() {
        const UID: &str = "6f1c2b5e-0b7a-4a53-9d6e-2f0c8a4b1e77";
        for (path, expected) in [
            ("besteffort/pod6f1c2b5e-0b7a-4a53-9d6e-2f0c8a4b1e77/0123456789abcdef", Some(UID)),
            ("pod6f1c2b5e-0b7a-4a53-9d6e-2f0c8a4b1e77", Some(UID)),
            (
                "kubepods-burstable.slice/kubepods-burstable-pod6f1c2b5e_0b7a_4a53_9d6e_2f0c8a4b1e77.slice/cri-containerd-01.scope",
                Some(UID),
            ),
            ("kubepods-pod6f1c2b5e_0b7a_4a53_9d6e_2f0c8a4b1e77.slice", Some(UID)),
            // A static pod's uid is a hash.
            ("burstable/podd8c8d4a5f0c14e6db8f1a0c2f4f5e6a7/c", Some("d8c8d4a5f0c14e6db8f1a0c2f4f5e6a7")),
            // What a container made for itself.
            ("burstable/poda/c/podb", Some("a")),
            ("burstable", None),
            ("kubepods-besteffort.slice", None),
            ("", None),
            ("besteffort/pod", None),
            ("besteffort/pod a", None),
            ("system.slice/crio-podinfo.service", None),
        ] {
            assert_eq!(pod_of(Path::new(path)), expected.map(uid), "{path}");
        }
    }

    #[test]
    fn a_namespace_is_bound_once_and_only_where_all_say_the_same() {
        let mut bindings = Bindings::default();
        bindings.bind(1, []);
        bindings.bind(2, [&uid("a"), &uid("b")]);
        assert_eq!((bindings.pod(1), bindings.pod(2)), (None, None));
        bindings.bind(1, [&uid("a"), &uid("a")]);
        bindings.bind(1, [&uid("b")]);
        bindings.bind(1, [&uid("a"), &uid("b")]);
        assert_eq!(bindings.pod(1), Some(&uid("a")));
        // The tool is gone.
        bindings.bind(2, [&uid("a")]);
        assert_eq!(bindings.pod(2), Some(&uid("a")));
        bindings.forget(1);
        assert_eq!(bindings.pod(1), None);
    }

    #[test]
    fn a_program_that_connected_tells_where_no_scan_does() {
        let mut bindings = Bindings::default();
        bindings.connected(1, &uid("a"));
        bindings.connected(1, &uid("b"));
        assert_eq!(bindings.pod(1), Some(&uid("a")));
        bindings.bind(1, [&uid("c")]);
        bindings.connected(1, &uid("a"));
        assert_eq!(bindings.pod(1), Some(&uid("c")));
        bindings.bind(2, [&uid("c"), &uid("d")]);
        bindings.connected(2, &uid("d"));
        assert_eq!(bindings.pod(2), None, "it may be the tool");
        bindings.forget(1);
        assert!(!bindings.knows(1));
    }

    #[test]
    fn no_more_are_bound_than_there_is_room_for() {
        let mut bindings = Bindings::default();
        for netns in 0..=MAX_BOUND as u64 {
            bindings.bind(netns, [&uid("a")]);
            bindings.connected(netns, &uid("a"));
        }
        assert!(bindings.pod(MAX_BOUND as u64).is_none());
        bindings.forget(0);
        bindings.bind(MAX_BOUND as u64, [&uid("a")]);
        assert!(bindings.pod(MAX_BOUND as u64).is_some());
    }
}
