//! Services and ServiceEntries with their times, those that are gone and former versions too.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::endpoints::Endpoints;
use super::{LAG, ObjectKey, SKEW};
use crate::model::config::Visibility;
use crate::model::mesh::{Labels, Service, ServiceKind};
use crate::model::names::Namespace;
use crate::model::time::{Life, Presence, Span, Time};
use crate::objects::istio::VirtualServiceSpec;
use crate::objects::{
    Meta, Object, ServiceEntrySpec, ServiceEntryStatus, ServiceSpec, ServiceStatus, WorkloadEntrySpec,
};
use crate::service_index::{Known, Routed, ServiceIndex, endpoints_stand_for};
use crate::services::{WrongField, of_entry, of_service, of_virtual_service, sorted};

/// Most versions that are remembered of services that are gone or have changed since; the oldest are forgotten.
const MAX_FORMER: usize = 16_384;

#[derive(Debug, Default)]
pub(super) struct Services {
    services: HashMap<ObjectKey, Current>,
    entries: HashMap<ObjectKey, Entry>,
    workload_entries: HashMap<ObjectKey, WorkloadEntry>,
    virtual_services: HashMap<ObjectKey, Current>,
    /// What was and is no more, in the order in which it went.
    former: Vec<Version>,
    /// What follows from the rest, as of the last time that it was settled.
    settled: Settled,
    stale: bool,
}

#[derive(Debug, Default)]
struct Settled {
    index: ServiceIndex,
    headless: HashMap<ObjectKey, Vec<Known>>,
    /// ServiceEntries whose endpoints are the pods that they select.
    selecting: HashMap<Namespace, Vec<(Arc<Labels>, Known)>>,
}

/// What an object says from one change of it to the next.
#[derive(Clone, Debug)]
struct Version {
    says: Says,
    life: Life,
}

/// What an object says.
#[derive(Clone, Debug, PartialEq)]
struct Says {
    services: Vec<Arc<Service>>,
    /// What a ServiceEntry selects its endpoints by.
    selector: Option<Arc<Labels>>,
    /// To whom the hosts of a VirtualService are visible. They are no services.
    routed_for: Option<Arc<Visibility>>,
}

#[derive(Debug)]
struct Current {
    version: Version,
    listing: u32,
}

#[derive(Debug)]
struct Entry {
    object: Object<ServiceEntrySpec, ServiceEntryStatus>,
    current: Current,
}

#[derive(Debug)]
struct WorkloadEntry {
    spec: WorkloadEntrySpec,
    labels: Labels,
    listing: u32,
}

impl ObjectKey {
    fn of_service(service: &Service) -> Self {
        Self { namespace: service.namespace.clone(), name: service.name.clone() }
    }
}

impl Services {
    pub(super) fn apply(
        &mut self,
        object: &Object<ServiceSpec, ServiceStatus>,
        seen: Span,
        listing: u32,
    ) -> Result<(), WrongField> {
        let services = vec![Arc::new(of_service(object)?)];
        let says = Says { services, selector: None, routed_for: None };
        let key = ObjectKey::of(&object.metadata);
        let before = self.services.remove(&key).map(|current| current.version);
        let version = self.next_version(before, says, &object.metadata, seen);
        self.services.insert(key, Current { version, listing });
        Ok(())
    }

    /// The version that counts from now on, which is the one before where nothing has changed.
    fn next_version(&mut self, before: Option<Version>, says: Says, meta: &Meta, seen: Span) -> Version {
        let Some(before) = before else {
            self.stale = true;
            return Version { says, life: Life { from: appeared(meta, seen), until: None } };
        };
        if before.says == says {
            return before;
        }
        let changed = Span::between(seen.earliest().plus(-LAG), seen.latest());
        self.retire(before, changed);
        Version { says, life: Life { from: changed, until: None } }
    }

    fn retire(&mut self, mut version: Version, until: Span) {
        version.life.until = Some(until);
        self.former.push(version);
        if self.former.len() > MAX_FORMER {
            self.former.drain(..MAX_FORMER / 8);
        }
        self.stale = true;
    }

    pub(super) fn remove(&mut self, key: &ObjectKey, seen: Span) {
        if let Some(current) = self.services.remove(key) {
            self.retire(current.version, Span::between(seen.earliest().plus(-LAG), seen.latest()));
        }
    }

    pub(super) fn end_list(&mut self, listing: u32, seen: Span) {
        let missing = self.services.iter().filter(|(_, current)| current.listing != listing);
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove(&key, seen);
        }
    }

    pub(super) fn apply_entry(
        &mut self,
        object: Object<ServiceEntrySpec, ServiceEntryStatus>,
        seen: Span,
        listing: u32,
    ) -> Result<(), WrongField> {
        let says = self.said_by(&object)?;
        let key = ObjectKey::of(&object.metadata);
        let before = self.entries.remove(&key).map(|entry| entry.current.version);
        let version = self.next_version(before, says, &object.metadata, seen);
        self.entries.insert(key, Entry { object, current: Current { version, listing } });
        Ok(())
    }

    fn said_by(&self, object: &Object<ServiceEntrySpec, ServiceEntryStatus>) -> Result<Says, WrongField> {
        let selector = object.spec.workload_selector.as_ref();
        let selector = selector.map(|selector| Arc::new(selector.labels.to_labels()));
        let namespace = object.metadata.namespace();
        // In the order of their names, as which of them is the first may matter.
        let mut selected: Vec<_> = match &selector {
            None => Vec::new(),
            Some(selector) => {
                let entries = self.workload_entries.iter();
                let here = entries
                    .filter(|(key, entry)| key.namespace == namespace && selects(selector, &entry.labels));
                here.collect()
            }
        };
        selected.sort_by_key(|(key, _)| *key);
        let services = of_entry(object, selected.iter().map(|(_, entry)| &entry.spec))?;
        let services = services.into_iter().map(Arc::new).collect();
        Ok(Says { services, selector, routed_for: None })
    }

    pub(super) fn remove_entry(&mut self, key: &ObjectKey, seen: Span) {
        if let Some(entry) = self.entries.remove(key) {
            self.retire(entry.current.version, Span::between(seen.earliest().plus(-LAG), seen.latest()));
        }
    }

    pub(super) fn end_list_of_entries(&mut self, listing: u32, seen: Span) {
        let missing = self.entries.iter().filter(|(_, entry)| entry.current.listing != listing);
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove_entry(&key, seen);
        }
    }

    pub(super) fn apply_virtual_service(
        &mut self,
        object: &Object<VirtualServiceSpec>,
        seen: Span,
        listing: u32,
    ) {
        let (hosts, visible) = of_virtual_service(object);
        let services = hosts.into_iter().map(Arc::new).collect();
        let says = Says { services, selector: None, routed_for: Some(Arc::new(visible)) };
        let key = ObjectKey::of(&object.metadata);
        let before = self.virtual_services.remove(&key).map(|current| current.version);
        let version = self.next_version(before, says, &object.metadata, seen);
        self.virtual_services.insert(key, Current { version, listing });
    }

    pub(super) fn remove_virtual_service(&mut self, key: &ObjectKey, seen: Span) {
        if let Some(current) = self.virtual_services.remove(key) {
            self.retire(current.version, Span::between(seen.earliest().plus(-LAG), seen.latest()));
        }
    }

    pub(super) fn end_list_of_virtual_services(&mut self, listing: u32, seen: Span) {
        let missing = self.virtual_services.iter().filter(|(_, current)| current.listing != listing);
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove_virtual_service(&key, seen);
        }
    }

    pub(super) fn apply_workload_entry(
        &mut self,
        object: Object<WorkloadEntrySpec>,
        seen: Span,
        listing: u32,
    ) {
        let key = ObjectKey::of(&object.metadata);
        // Istio takes both, and those of the metadata before the others.
        let mut labels = object.spec.labels.to_labels();
        labels.extend(object.metadata.labels.to_labels());
        let namespace = key.namespace.clone();
        let new = WorkloadEntry { spec: object.spec, labels: labels.clone(), listing };
        let before = self.workload_entries.insert(key, new);
        self.select_anew(&namespace, [Some(labels), before.map(|before| before.labels)], seen);
    }

    pub(super) fn remove_workload_entry(&mut self, key: &ObjectKey, seen: Span) {
        if let Some(before) = self.workload_entries.remove(key) {
            self.select_anew(&key.namespace, [Some(before.labels), None], seen);
        }
    }

    pub(super) fn end_list_of_workload_entries(&mut self, listing: u32, seen: Span) {
        let missing = self.workload_entries.iter().filter(|(_, entry)| entry.listing != listing);
        for key in missing.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove_workload_entry(&key, seen);
        }
    }

    /// Looks again at the ServiceEntries that select a WorkloadEntry with one of these labels.
    fn select_anew(&mut self, namespace: &Namespace, labels: [Option<Labels>; 2], seen: Span) {
        let concerned = self.entries.iter().filter(|(key, entry)| {
            let selector = &entry.current.version.says.selector;
            key.namespace == *namespace
                && selector
                    .as_ref()
                    .is_some_and(|selector| labels.iter().flatten().any(|labels| selects(selector, labels)))
        });
        for key in concerned.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            let entry = self.entries.remove(&key).expect("just found");
            let listing = entry.current.listing;
            let says = self.said_by(&entry.object).expect("it was taken over with the same hosts");
            let version = self.next_version(Some(entry.current.version), says, &entry.object.metadata, seen);
            let current = Current { version, listing };
            self.entries.insert(key, Entry { object: entry.object, current });
        }
    }

    /// The ports of the endpoints of a Service may have changed, which bears on lookups only where callers connect to these.
    pub(super) fn ports_changed(&mut self, service: &ObjectKey) {
        let is_headless = |current: &Current| {
            current.version.says.services.iter().any(|service| service.kind == ServiceKind::Headless)
        };
        self.stale |= self.services.get(service).is_some_and(is_headless);
    }

    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Puts the index together anew if something has changed.
    pub(super) fn settle(&mut self, endpoints: &Endpoints) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        let is_headless = |service: &&Arc<Service>| service.kind == ServiceKind::Headless;
        let current = || self.services.values().flat_map(|current| &current.version.says.services);
        let headless = current().filter(is_headless);
        let mut with_ports: HashMap<ObjectKey, Service> =
            headless.map(|service| (ObjectKey::of_service(service), Service::clone(service))).collect();
        endpoints.fill_in_ports(&mut with_ports);

        let mut settled = Settled::default();
        let mut all = Vec::new();
        let versions = self.services.values().map(|current| &current.version);
        let versions = versions.chain(self.entries.values().map(|entry| &entry.current.version));
        let versions = versions.chain(self.virtual_services.values().map(|current| &current.version));
        let mut routed = Vec::new();
        for version in versions.chain(&self.former) {
            for service in &version.says.services {
                let mut known = Known { service: service.clone(), life: version.life };
                if let Some(visible) = &version.says.routed_for {
                    routed.push(Routed { known, visible: visible.clone() });
                    continue;
                }
                if is_headless(&service) {
                    let key = ObjectKey::of_service(service);
                    // The ports of one that is gone are those of its successor, if it has one.
                    if let Some(filled) = with_ports.get(&key) {
                        let endpoint_ports = filled.endpoint_ports.clone();
                        known.service = Arc::new(Service { endpoint_ports, ..Service::clone(service) });
                    }
                    settled.headless.entry(key).or_default().push(known.clone());
                }
                if let Some(selector) =
                    version.says.selector.as_ref().filter(|_| endpoints_stand_for(service))
                {
                    let selecting = settled.selecting.entry(service.namespace.clone()).or_default();
                    selecting.push((selector.clone(), known.clone()));
                }
                all.push(known);
            }
        }
        settled.index = ServiceIndex::new(all, routed);
        self.settled = settled;
    }

    pub(super) fn index(&self) -> &ServiceIndex {
        &self.settled.index
    }

    /// The headless service of that name, as it was at `when`.
    pub(super) fn headless<'a>(
        &'a self,
        key: &ObjectKey,
        when: Span,
    ) -> impl Iterator<Item = &'a Known> + use<'a> {
        let all = self.settled.headless.get(key).into_iter().flatten();
        all.filter(move |known| known.life.at(when) != Presence::No)
    }

    /// The ServiceEntries that selected a pod with these labels at `when`.
    pub(super) fn selecting<'a>(
        &'a self,
        namespace: &Namespace,
        labels: &'a Labels,
        when: Span,
    ) -> impl Iterator<Item = &'a Known> + use<'a> {
        let here = self.settled.selecting.get(namespace).into_iter().flatten();
        here.filter(move |(selector, known)| selects(selector, labels) && known.life.at(when) != Presence::No)
            .map(|(_, known)| known)
    }

    /// All that are there now, with their endpoints.
    pub(super) fn with_endpoints(&self, endpoints: &Endpoints) -> Vec<Arc<Service>> {
        let current = self.services.values().flat_map(|current| &current.version.says.services);
        let mut services: HashMap<ObjectKey, Service> =
            current.map(|service| (ObjectKey::of_service(service), Service::clone(service))).collect();
        endpoints.fill_in_ports(&mut services);
        endpoints.fill_in_addresses(&mut services);
        let entries = self.entries.values().flat_map(|entry| &entry.current.version.says.services);
        let all = services.into_values().chain(entries.map(|service| Service::clone(service)));
        sorted(all.collect())
    }

    pub(super) fn len(&self) -> usize {
        let hosts: BTreeSet<_> = self.entries.values().flat_map(|entry| &entry.object.spec.hosts).collect();
        self.services.len() + hosts.len()
    }

    pub(super) fn forget(&mut self, time: Time) {
        // The index may know them until it is made anew for another reason.
        self.former.retain(|version| version.life.until.is_none_or(|until| until.latest() >= time));
    }
}

/// When an object came that was not known before. What the first listing says of it, it is taken to have said since it was made: a
/// ClusterIP never changes.
fn appeared(meta: &Meta, seen: Span) -> Span {
    let created = meta.creation_timestamp.0;
    let earliest = seen.earliest().plus(-LAG).max(created.unwrap_or(Time(i64::MIN)).plus(-SKEW));
    // Cut to a whole second.
    let latest = created.map_or(seen.latest(), |created| seen.latest().min(created.plus(1_000 + SKEW)));
    Span::between(earliest.min(latest), latest)
}

fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
