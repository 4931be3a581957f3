//! Which pods and addresses were endpoints of a Service when, as EndpointSlices tell it.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::{LAG, ObjectKey, SKEW};
use crate::interned::Interned;
use crate::model::mesh::Service;
use crate::model::names::PodUid;
use crate::model::time::{Life, Presence, Span, Time};
use crate::objects::EndpointSlice;
use crate::services::{EndpointPorts, add_ports, endpoint_address, join_ports, service_of};

/// Most times that are remembered through which one pod or address was an endpoint; the first are forgotten.
const MAX_MEMBERSHIPS: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Endpoints {
    slices: HashMap<ObjectKey, Slice>,
    of_pods: HashMap<PodUid, Vec<Membership>>,
    /// Endpoints that are no pods.
    of_addresses: HashMap<IpAddr, Vec<Membership>>,
    names: Interned<ObjectKey>,
}

#[derive(Debug)]
struct Slice {
    service: Arc<ObjectKey>,
    endpoints: Vec<Endpoint>,
    ports: EndpointPorts,
    listing: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Endpoint {
    address: IpAddr,
    pod: Option<PodUid>,
}

/// A time through which something was an endpoint.
#[derive(Debug)]
struct Membership {
    service: Arc<ObjectKey>,
    life: Life,
    /// In how many slices it is now.
    slices: u32,
}

impl Endpoints {
    /// Returns the Service if its ports may be others now.
    pub(super) fn apply(&mut self, slice: &EndpointSlice, seen: Span, listing: u32) -> Option<ObjectKey> {
        let key = ObjectKey::of(&slice.metadata);
        let Some((namespace, name)) = service_of(slice) else { return self.remove(&key, seen) };
        let service = self.names.get(ObjectKey { namespace, name });
        let mut ports = EndpointPorts::new();
        add_ports(&mut ports, slice);
        let mut endpoints = Vec::new();
        for endpoint in &slice.endpoints {
            let target = &endpoint.target_ref;
            let pod = target.uid.as_ref().filter(|_| target.kind == "Pod");
            let addresses = endpoint.addresses.iter().filter_map(|address| endpoint_address(address));
            endpoints.extend(addresses.map(|address| Endpoint { address, pod: pod.cloned() }));
        }
        endpoints.sort_unstable();
        endpoints.dedup();
        let created = slice.metadata.creation_timestamp.0.unwrap_or(Time(i64::MIN));
        let earliest = seen.earliest().plus(-LAG).max(created.plus(-SKEW));
        let from = Span::between(earliest.min(seen.latest()), seen.latest());
        let new = Slice { service, endpoints, ports, listing };
        let before = self.slices.remove(&key);
        let same_service = before.as_ref().filter(|before| before.service == new.service);
        let known = same_service.map_or(&[][..], |before| &before.endpoints);
        let joined: Vec<_> =
            new.endpoints.iter().filter(|endpoint| known.binary_search(endpoint).is_err()).cloned().collect();
        for endpoint in joined {
            self.join(&endpoint, &new.service, from);
        }
        if let Some(before) = &before {
            let still = if same_service.is_some() { &new.endpoints[..] } else { &[] };
            let left = before.endpoints.iter().filter(|endpoint| still.binary_search(endpoint).is_err());
            for endpoint in left {
                self.leave(endpoint, &before.service, seen);
            }
        }
        let changed = before.is_none_or(|before| before.ports != new.ports || before.service != new.service);
        let service = changed.then(|| ObjectKey::clone(&new.service));
        self.slices.insert(key, new);
        service
    }

    /// Returns the Service if its ports may be others now.
    pub(super) fn remove(&mut self, key: &ObjectKey, seen: Span) -> Option<ObjectKey> {
        let slice = self.slices.remove(key)?;
        for endpoint in &slice.endpoints {
            self.leave(endpoint, &slice.service, seen);
        }
        Some(ObjectKey::clone(&slice.service))
    }

    pub(super) fn end_list(&mut self, listing: u32, seen: Span) -> Vec<ObjectKey> {
        let missing: Vec<_> = self
            .slices
            .iter()
            .filter(|(_, slice)| slice.listing != listing)
            .map(|(key, _)| key.clone())
            .collect();
        missing.iter().filter_map(|key| self.remove(key, seen)).collect()
    }

    fn join(&mut self, endpoint: &Endpoint, service: &Arc<ObjectKey>, from: Span) {
        let memberships = match &endpoint.pod {
            Some(uid) => self.of_pods.entry(uid.clone()).or_default(),
            None => self.of_addresses.entry(endpoint.address).or_default(),
        };
        let now = memberships.iter_mut().find(|known| known.slices > 0 && known.service == *service);
        if let Some(known) = now {
            known.slices += 1;
            return;
        }
        if memberships.len() == MAX_MEMBERSHIPS {
            let first = memberships.iter().position(|known| known.slices == 0).unwrap_or(0);
            memberships.remove(first);
        }
        let life = Life { from, until: None };
        memberships.push(Membership { service: service.clone(), life, slices: 1 });
    }

    fn leave(&mut self, endpoint: &Endpoint, service: &Arc<ObjectKey>, seen: Span) {
        let memberships = match &endpoint.pod {
            Some(uid) => self.of_pods.get_mut(uid),
            None => self.of_addresses.get_mut(&endpoint.address),
        };
        let of_service = memberships.into_iter().flatten();
        let mut of_service = of_service.filter(|known| known.slices > 0 && known.service == *service);
        if let Some(known) = of_service.next() {
            known.slices -= 1;
            if known.slices == 0 {
                known.life.until = Some(Span::between(seen.earliest().plus(-LAG), seen.latest()));
            }
        }
    }

    /// The Services of which the pod may have been an endpoint at `when`.
    pub(super) fn of_pod(&self, uid: &PodUid, when: Span) -> impl Iterator<Item = &ObjectKey> {
        present(self.of_pods.get(uid), when)
    }

    /// The Services of which the address may have been an endpoint at `when` without being a pod's.
    pub(super) fn of_address(&self, address: IpAddr, when: Span) -> impl Iterator<Item = &ObjectKey> {
        present(self.of_addresses.get(&address), when)
    }

    /// Fills in which endpoints services have.
    pub(super) fn fill_in_addresses(&self, services: &mut HashMap<ObjectKey, Service>) {
        for slice in self.slices.values() {
            if let Some(service) = services.get_mut(&*slice.service) {
                service.endpoints.extend(slice.endpoints.iter().map(|endpoint| endpoint.address));
            }
        }
    }

    /// Fills in on which ports the endpoints of services listen.
    pub(super) fn fill_in_ports(&self, services: &mut HashMap<ObjectKey, Service>) {
        let mut all_ports: HashMap<&ObjectKey, EndpointPorts> = HashMap::new();
        for slice in self.slices.values().filter(|slice| services.contains_key(&*slice.service)) {
            let ports = all_ports.entry(&slice.service).or_default();
            for (name, numbers) in &slice.ports {
                ports.entry(name.clone()).or_default().extend(numbers);
            }
        }
        for (key, ports) in all_ports {
            if let Some(service) = services.get_mut(key) {
                join_ports(&ports, service);
            }
        }
    }

    pub(super) fn forget(&mut self, time: Time) {
        forget(&mut self.of_pods, time);
        forget(&mut self.of_addresses, time);
        self.names.sweep();
    }
}

fn forget<K: Eq + Hash>(memberships: &mut HashMap<K, Vec<Membership>>, time: Time) {
    memberships.retain(|_, of_one| {
        of_one.retain(|known| known.life.until.is_none_or(|until| until.latest() >= time));
        !of_one.is_empty()
    });
}

fn present(memberships: Option<&Vec<Membership>>, when: Span) -> impl Iterator<Item = &ObjectKey> {
    let all = memberships.into_iter().flatten();
    all.filter(move |known| known.life.at(when) != Presence::No).map(|known| &*known.service)
}
