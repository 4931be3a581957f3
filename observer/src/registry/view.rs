//! The cluster as it was at one time: whose address, which service, which pod.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Registry;
use super::pods::{Pod, PodKey, Stint};
use crate::model::names::{Host, Namespace, PodUid, WorkloadRef};
use crate::model::time::Span;
use crate::owners::Owner;
use crate::service_index::{Destination, Headless, Known, Lookup, Pods, Target, Whose};

/// The cluster as it was at one time.
#[derive(Clone, Copy, Debug)]
pub struct View<'r> {
    registry: &'r Registry,
    when: Span,
}

/// Who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'r> {
    /// The pod.
    pub pod: &'r PodUid,
    /// Its workload.
    pub workload: &'r Arc<WorkloadRef>,
    /// Its name.
    pub name: &'r str,
    /// The node that it runs on, or ran on.
    pub node: Option<&'r str>,
}

/// Why it cannot be told who connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
pub enum NoSource {
    /// No pod with that uid is known, yet or any more.
    #[error("the pod is not known")]
    PodNotKnown,
    /// Its ReplicaSet or Job is not known yet.
    #[error("the workload of the pod is not known yet")]
    WorkloadNotKnown,
    /// It is from before anything was known of the addresses.
    #[error("it is not known whose the addresses were at that time")]
    AddressNotKnown,
    /// The pod lives in the node's network namespace.
    #[error("the pod is in the network namespace of its node")]
    HostNetwork,
    /// No pod had the addresses.
    #[error("no pod had the addresses at that time")]
    Nobody,
    /// Several pods may have had them.
    #[error("several pods may have had the addresses at that time")]
    Ambiguous,
}

impl NoSource {
    /// Whether what is to become known may change it.
    pub fn may_pass(self) -> bool {
        self != Self::HostNetwork
    }
}

impl<'r> View<'r> {
    pub(super) fn new(registry: &'r Registry, when: Span) -> Self {
        Self { registry, when }
    }

    /// Who connected, by the uid that the agent names. Only where it names none, by the addresses of the network namespace.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn source(&self, uid: Option<&PodUid>, addresses: &[IpAddr]) -> Result<Source<'r>, NoSource> {
        let pod = match uid {
            Some(uid) => self.registry.pods.by_uid(uid).ok_or(NoSource::PodNotKnown)?,
            None => self.pod_with(addresses)?,
        };
        if pod.host_network {
            return Err(NoSource::HostNetwork);
        }
        let workload = pod.workload.as_ref().ok_or(NoSource::WorkloadNotKnown)?;
        let node = pod.node.as_ref().map(|node| node.as_str());
        Ok(Source { pod: &pod.uid, workload, name: &pod.name.name, node })
    }

    /// The pod that had all of these addresses that a pod had.
    fn pod_with(&self, addresses: &[IpAddr]) -> Result<&'r Pod, NoSource> {
        let mut possible: Option<BTreeSet<PodKey>> = None;
        let mut is_known = true;
        for address in addresses {
            let pods = match self.owner(*address) {
                Owner::One(stint) => BTreeSet::from([stint.pod]),
                Owner::Several(stints) => stints.into_iter().map(|stint| stint.pod).collect(),
                // A namespace has addresses that are no pod's, such as those of its loopback.
                Owner::Nobody => continue,
                Owner::NotKnown => {
                    is_known = false;
                    continue;
                }
            };
            possible = Some(possible.map_or_else(|| pods.clone(), |known| &known & &pods));
        }
        match possible.as_ref().map(|pods| (pods.len(), pods.first())) {
            Some((1, Some(key))) => self.registry.pods.get(*key).ok_or(NoSource::PodNotKnown),
            Some(_) => Err(NoSource::Ambiguous),
            None if is_known => Err(NoSource::Nobody),
            None => Err(NoSource::AddressNotKnown),
        }
    }

    fn owner(&self, address: IpAddr) -> Owner<Stint> {
        self.registry.pods.owners().at(address, self.when)
    }

    /// The services whose callers connect to the pod itself.
    fn headless_of(&self, pod: &'r Pod) -> Vec<&'r Known> {
        let Registry { services, endpoints, .. } = self.registry;
        let of_slices = endpoints.of_pod(&pod.uid, self.when);
        let of_slices = of_slices.flat_map(|key| services.headless(key, self.when));
        of_slices.chain(services.selecting(&pod.name.namespace, &pod.labels, self.when)).collect()
    }
}

impl Pods for View<'_> {
    fn at(&self, address: IpAddr) -> Whose<'_> {
        let stints = match self.owner(address) {
            Owner::One(stint) => vec![stint],
            Owner::Several(stints) => stints,
            Owner::Nobody => return Whose::Nobody,
            Owner::NotKnown => return Whose::NotKnown,
        };
        let mut found: Option<&WorkloadRef> = None;
        for stint in stints {
            let pod = self.registry.pods.get(stint.pod);
            let Some(workload) = pod.and_then(|pod| pod.workload.as_deref()) else {
                return Whose::NotKnown;
            };
            // Which pod of a workload it was does not matter.
            if found.replace(workload).is_some_and(|other| other != workload) {
                return Whose::Ambiguous;
            }
        }
        found.map_or(Whose::Nobody, Whose::Workload)
    }

    fn headless(&self, address: IpAddr) -> Headless<'_> {
        let Registry { services, endpoints, pods, .. } = self.registry;
        let of_address = endpoints.of_address(address, self.when);
        let mut found: Vec<_> = of_address.flat_map(|key| services.headless(key, self.when)).collect();
        match self.owner(address) {
            Owner::One(stint) => {
                found.extend(pods.get(stint.pod).into_iter().flat_map(|pod| self.headless_of(pod)));
            }
            Owner::Several(stints) => {
                let mut each = stints
                    .iter()
                    .map(|stint| pods.get(stint.pod).map_or(Vec::new(), |pod| self.headless_of(pod)));
                let first = each.next().unwrap_or_default();
                if !each.all(|other| objects(&other) == objects(&first)) {
                    return Headless::Ambiguous;
                }
                found.extend(first);
            }
            Owner::Nobody | Owner::NotKnown => {}
        }
        Headless::Services(found)
    }

    fn is_node(&self, address: IpAddr) -> bool {
        self.registry.pods.is_node(address)
    }
}

fn objects<'a>(known: &[&'a Known]) -> BTreeSet<(&'a Namespace, &'a str)> {
    known.iter().map(|known| (&known.service.namespace, known.service.name.as_str())).collect()
}

impl Lookup for View<'_> {
    fn destination(&self, address: IpAddr, port: u16) -> Destination<'_> {
        self.registry.services.index().destination(self, address, port, self.when)
    }

    fn service_named(&self, host: &Host, namespace: &Namespace, port: u16) -> Option<Target<'_>> {
        self.registry.services.index().service_named(host, namespace, port, self.when)
    }
}
