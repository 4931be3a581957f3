//! Pods, those that are gone too, and which of them had an address when.

mod pod;

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use super::{LAG, Size};
use crate::interned::Interned;
use crate::model::mesh::{Labels, PodRef};
use crate::model::names::{PodUid, WorkloadRef};
use crate::model::time::{Span, Time};
use crate::objects::{Meta, Object, PodSpec, PodStatus};
use crate::owners::Owners;
use crate::services::WrongField;
use crate::workloads::{Belongs, Controllers, direct_controller};
pub(super) use pod::Pod;
pub use pod::Stay;
use pod::{Gone, began};

/// Most pods that are remembered after they are gone. In a cluster that loses more within the retention, the time that is remembered
/// is shorter.
const MAX_GONE: usize = 65_536;

/// A pod by its number: shorter than its uid, and never given again.
pub(super) type PodKey = u64;

/// A time through which a pod has an address. One that lost it and has it again has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stint {
    pub(super) pod: PodKey,
    nth: u32,
}

#[derive(Debug)]
pub(super) struct Pods {
    next: PodKey,
    pods: HashMap<PodKey, Pod>,
    /// A static pod has two: that of its object, and that under which the kubelet runs it.
    by_uid: HashMap<PodUid, PodKey>,
    owners: Owners<Stint>,
    /// Addresses of nodes with the number of pods that tell them, and when the last of them went.
    nodes: HashMap<IpAddr, (usize, Time)>,
    /// In the order in which they went.
    gone: VecDeque<(Time, PodKey)>,
    /// Pods whose ReplicaSet or Job is not known.
    waiting: HashMap<Arc<WorkloadRef>, Vec<PodKey>>,
    /// Since when they wait. What came as a last resort has left this, and may still be corrected.
    waiting_since: VecDeque<(Time, PodKey)>,
    has_listed: bool,
    labels: Interned<Labels>,
    workloads: Interned<WorkloadRef>,
    node_names: Interned<String>,
    node_lists: Interned<Vec<IpAddr>>,
    /// Pods of whose [`Stay`] something has become known since that was asked for.
    changed: HashSet<PodKey>,
    /// When they were last listed in full: what came and went before that, and was not listed, is not known.
    known_since: Option<Time>,
}

impl Pods {
    pub(super) fn new(now: Time) -> Self {
        Self {
            next: 0,
            pods: HashMap::new(),
            by_uid: HashMap::new(),
            owners: Owners::new(now),
            nodes: HashMap::new(),
            gone: VecDeque::new(),
            waiting: HashMap::new(),
            waiting_since: VecDeque::new(),
            has_listed: false,
            labels: Interned::default(),
            workloads: Interned::default(),
            node_names: Interned::default(),
            node_lists: Interned::default(),
            changed: HashSet::new(),
            known_since: None,
        }
    }

    pub(super) fn apply(
        &mut self,
        object: &Object<PodSpec, PodStatus>,
        seen: Span,
        listing: u32,
        controllers: &Controllers,
    ) -> Result<(), WrongField> {
        let Some(uid) = &object.metadata.uid else {
            return Err(WrongField { field: "metadata.uid".to_owned(), problem: "is missing".to_owned() });
        };
        let key = match self.by_uid.get(uid) {
            Some(key) => *key,
            None => self.insert(uid, object, seen, controllers),
        };
        let labels = self.labels.get(object.metadata.labels.to_labels());
        let (name, status) = (&object.spec.node_name, &object.status);
        let node = (!name.is_empty()).then(|| self.node_names.get(name.clone()));
        let host_network = object.spec.host_network;
        let mut node_addresses: Vec<IpAddr> = status.node_addresses().collect();
        let mut addresses: Vec<IpAddr> =
            if status.is_terminal() { Vec::new() } else { status.addresses().collect() };
        if host_network {
            node_addresses.append(&mut addresses);
        }
        for list in [&mut node_addresses, &mut addresses] {
            list.sort_unstable();
            list.dedup();
        }
        let node_addresses = self.node_lists.get(node_addresses);

        let pod = self.pods.get_mut(&key).expect("it was there, or was put there");
        if pod.gone.is_some_and(|(how, _)| how == Gone::Deleted) {
            return Ok(());
        }
        let was_gone = pod.gone.take().is_some();
        (pod.labels, pod.node, pod.host_network, pod.listing) = (labels, node, host_network, listing);
        if object.metadata.deletion_timestamp.0.is_some() {
            pod.leaving.get_or_insert(seen.earliest().plus(-LAG));
        }
        self.set_node_addresses(key, node_addresses, seen.latest());
        self.release(key, seen, |address| !addresses.contains(address));
        let pod = self.pods.get_mut(&key).expect("as before");
        let from = began(object, seen);
        let before = (pod.since, pod.ended);
        if !addresses.is_empty() && pod.since.is_none() {
            pod.since = Some(from.earliest());
        }
        pod.ended = status.is_terminal().then(|| pod.ended.unwrap_or(seen.latest()));
        if before != (pod.since, pod.ended) || was_gone {
            self.changed.insert(key);
        }
        for address in addresses {
            if !pod.addresses.iter().any(|(known, _)| *known == address) {
                pod.addresses.push((address, pod.nth));
                self.owners.claim(address, &Stint { pod: key, nth: pod.nth }, from);
            }
        }
        Ok(())
    }

    fn insert(
        &mut self,
        uid: &PodUid,
        object: &Object<PodSpec, PodStatus>,
        seen: Span,
        controllers: &Controllers,
    ) -> PodKey {
        let key = self.next;
        self.next += 1;
        let meta = &object.metadata;
        let static_uid = meta.annotations.static_uid.as_ref().and_then(|uid| PodUid::new(uid.as_str()).ok());
        let direct = self.workloads.get(direct_controller(meta));
        let workload = match controllers.workload_of(WorkloadRef::clone(&direct)) {
            Belongs::To(workload) => Some(self.workloads.get(workload)),
            Belongs::ToOwnerOf(_) => {
                self.waiting.entry(direct.clone()).or_default().push(key);
                self.waiting_since.push_back((seen.latest(), key));
                None
            }
        };
        let pod = Pod {
            uid: uid.clone(),
            static_uid,
            name: PodRef { namespace: meta.namespace(), name: meta.name.as_str().to_owned() },
            node: None,
            labels: Arc::default(),
            host_network: false,
            workload,
            direct,
            addresses: Vec::new(),
            node_addresses: Arc::default(),
            nth: 0,
            leaving: None,
            gone: None,
            since: None,
            ended: None,
            listing: 0,
        };
        for uid in [Some(&pod.uid), pod.static_uid.as_ref()].into_iter().flatten() {
            self.by_uid.insert(uid.clone(), key);
        }
        self.pods.insert(key, pod);
        key
    }

    fn set_node_addresses(&mut self, key: PodKey, addresses: Arc<Vec<IpAddr>>, now: Time) {
        let pod = self.pods.get_mut(&key).expect("asked for by who has it");
        let before = std::mem::replace(&mut pod.node_addresses, addresses.clone());
        if Arc::ptr_eq(&before, &addresses) {
            return;
        }
        for address in addresses.iter() {
            self.nodes.entry(*address).or_insert((0, now)).0 += 1;
        }
        for address in before.iter() {
            if let Some((count, last)) = self.nodes.get_mut(address) {
                *count -= 1;
                *last = now;
            }
        }
    }

    /// The pod has lost some of its addresses.
    fn release(&mut self, key: PodKey, seen: Span, is_lost: impl Fn(&IpAddr) -> bool) {
        let pod = self.pods.get_mut(&key).expect("asked for by who has it");
        let (lost, kept): (Vec<_>, _) = pod.addresses.iter().partition(|(address, _)| is_lost(address));
        if lost.is_empty() {
            return;
        }
        pod.addresses = kept;
        // What it gets from now on, even the same again, it has anew.
        pod.nth += 1;
        let by_watch = seen.earliest().plus(-LAG);
        let until =
            Span::between(pod.leaving.map_or(by_watch, |leaving| leaving.min(by_watch)), seen.latest());
        for (address, nth) in lost {
            self.owners.release(address, &Stint { pod: key, nth }, until);
        }
    }

    pub(super) fn remove(&mut self, meta: &Meta, seen: Span) {
        if let Some(key) = meta.uid.as_ref().and_then(|uid| self.by_uid.get(uid)).copied() {
            self.lose(key, Gone::Deleted, seen);
        }
    }

    fn lose(&mut self, key: PodKey, how: Gone, seen: Span) {
        let pod = self.pods.get_mut(&key).expect("asked for by who has it");
        if let Some((known, _)) = &mut pod.gone {
            if how == Gone::Deleted {
                *known = how;
            }
            return;
        }
        pod.gone = Some((how, seen.latest()));
        if pod.ended.is_none() {
            self.changed.insert(key);
        }
        self.release(key, seen, |_| true);
        self.set_node_addresses(key, Arc::default(), seen.latest());
        self.gone.push_back((seen.latest(), key));
        if self.gone.len() > MAX_GONE {
            // By many at once, as it means a look at all that is remembered.
            let (time, _) = self.gone[MAX_GONE / 8];
            self.forget(time.plus(1));
        }
    }

    /// Those that the listing did not name are gone.
    pub(super) fn end_list(&mut self, listing: u32, seen: Span) {
        let missing: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.gone.is_none() && pod.listing != listing)
            .map(|(key, _)| *key)
            .collect();
        for key in missing {
            self.lose(key, Gone::Missing, seen);
        }
        if self.has_listed {
            self.owners.missed(Span::between(seen.earliest().plus(-LAG), seen.latest()));
        } else {
            self.owners.forget(seen.latest());
        }
        self.has_listed = true;
        self.known_since = Some(seen.latest());
    }

    /// The stays of which something has become known since this was last asked.
    pub(super) fn changed(&mut self) -> impl Iterator<Item = Stay<'_>> {
        let changed = std::mem::take(&mut self.changed);
        let pods = &self.pods;
        changed.into_iter().filter_map(|key| pods.get(&key)?.stay())
    }

    /// All stays that are remembered.
    pub(super) fn stays(&self) -> impl Iterator<Item = Stay<'_>> {
        self.pods.values().filter_map(Pod::stay)
    }

    pub(super) fn known_since(&self) -> Option<Time> {
        self.known_since
    }

    /// The object of a controller has become known.
    pub(super) fn controller_known(&mut self, controller: &WorkloadRef, controllers: &Controllers) {
        let Some(keys) = self.waiting.remove(controller) else { return };
        let Belongs::To(workload) = controllers.workload_of(controller.clone()) else { return };
        let workload = self.workloads.get(workload);
        for key in keys {
            if let Some(pod) = self.pods.get_mut(&key) {
                pod.workload = Some(workload.clone());
                self.changed.insert(key);
            }
        }
    }

    /// Of those that have waited since before `time`, the controllers will not become known.
    pub(super) fn last_resort(&mut self, time: Time) {
        while let Some((_, key)) = self.waiting_since.pop_front_if(|(since, _)| *since <= time) {
            if let Some(pod) = self.pods.get_mut(&key).filter(|pod| pod.workload.is_none()) {
                pod.workload = Some(self.workloads.get(pod.workload_or_guess()));
                self.changed.insert(key);
            }
        }
    }

    /// Forgets pods that were gone before `time`.
    pub(super) fn forget(&mut self, time: Time) {
        while let Some((since, key)) = self.gone.pop_front_if(|(gone, _)| *gone < time) {
            // One that came back is there, or was lost anew and stands further behind.
            let is_gone = |pod: &Pod| pod.gone.is_some_and(|(_, gone)| gone == since);
            if self.pods.get(&key).is_some_and(is_gone)
                && let Some(pod) = self.pods.remove(&key)
            {
                for uid in [Some(pod.uid), pod.static_uid].into_iter().flatten() {
                    // A static pod's may be that of its next object already.
                    if let Entry::Occupied(known) = self.by_uid.entry(uid)
                        && *known.get() == key
                    {
                        known.remove();
                    }
                }
            }
        }
        let pods = &self.pods;
        for keys in self.waiting.values_mut() {
            keys.retain(|key| pods.contains_key(key));
        }
        self.waiting.retain(|_, keys| !keys.is_empty());
        self.waiting_since.retain(|(_, key)| pods.contains_key(key));
        self.owners.forget(time);
        self.nodes.retain(|_, (count, last)| *count > 0 || *last >= time);
        self.labels.sweep();
        self.workloads.sweep();
        self.node_names.sweep();
        self.node_lists.sweep();
    }

    pub(super) fn get(&self, key: PodKey) -> Option<&Pod> {
        self.pods.get(&key)
    }

    pub(super) fn by_uid(&self, uid: &PodUid) -> Option<&Pod> {
        self.pods.get(self.by_uid.get(uid)?)
    }

    pub(super) fn owners(&self) -> &Owners<Stint> {
        &self.owners
    }

    pub(super) fn is_node(&self, address: IpAddr) -> bool {
        self.nodes.contains_key(&address.to_canonical())
    }

    pub(super) fn living(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter(|pod| pod.gone.is_none())
    }

    pub(super) fn node_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nodes.iter().filter(|(_, (count, _))| *count > 0).map(|(address, _)| *address)
    }

    pub(super) fn size(&self) -> Size {
        let pods = self.living().count();
        Size {
            pods,
            gone: self.pods.len() - pods,
            tenures: self.owners.len(),
            waiting: self.pods.values().filter(|pod| pod.workload.is_none()).count(),
            services: 0,
        }
    }
}
