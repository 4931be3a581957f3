//! What the aggregator knows of the cluster, and knew of its last minutes: whose an address was when something happened. Pure.
//!
//! Objects come and go as watches tell it, each with the time at which it was seen. What is gone is remembered for a while, because
//! what agents tell comes late: an event is resolved with what was true then.

mod configuration;
mod endpoints;
mod kinds;
mod pods;
mod services;
mod told;
mod unreadable;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::model::mesh::{Labels, Mesh};
use crate::model::names::{Namespace, WorkloadRef};
use crate::model::time::{Span, Time};
use crate::objects::Object;
use crate::services::WrongField;
use crate::workloads::{Controllers, reference_of};
pub use configuration::{Configuration, Kept};
use endpoints::Endpoints;
pub use kinds::{Kind, ObjectKey, Watched};
use pods::Pods;
pub use pods::Stay;
use services::Services;
pub use told::{Told, What, take};
pub use unreadable::Unreadable;
use unreadable::Unreadables;
pub use view::{NoSource, Source, View};

/// How long after something happened a watch tells of it, in milliseconds, as long as it works: the kubelet reports a pod's address
/// within this time of the start of its first container, and the API server passes that on. A pod that got another one's address sooner after it than this may be taken for ambiguous.
pub const LAG: i64 = 1_000;
/// How far a clock that writes times into objects may be from ours, in milliseconds.
const SKEW: i64 = 5_000;
/// An event is not resolved before so many milliseconds have passed, since it happened and since the last watch was back, so that all
/// watches have told what they had to.
pub const HOLD: i64 = 3_000;
/// How long after a pod its ReplicaSet or Job may become known; then it is taken for one that nobody tells of.
pub const LAST_RESORT: i64 = 10_000;
/// How long what is gone is remembered, in milliseconds.
pub const RETENTION: i64 = 600_000;

/// How much is remembered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Pods that are there.
    pub pods: usize,
    /// Pods that are gone.
    pub gone: usize,
    /// Pairs of address and pod.
    pub tenures: usize,
    /// Services that are there, and hosts of ServiceEntries.
    pub services: usize,
    /// Pods whose ReplicaSet or Job is not known.
    pub waiting: usize,
}

/// The cluster as the watches tell it.
#[derive(Debug)]
pub struct Registry {
    watches: BTreeMap<Kind, Watch>,
    pods: Pods,
    controllers: Controllers,
    services: Services,
    endpoints: Endpoints,
    namespaces: HashMap<Namespace, (Arc<Labels>, u32)>,
    configuration: Configuration,
    unreadable: Unreadables,
    /// Since when [`Self::is_synced`] has held, as far as that was noticed; `None`: it does not.
    synced_since: Option<Time>,
}

/// How far the watch of one kind is.
#[derive(Clone, Debug, Default)]
struct Watch {
    /// It has told all that there is, and goes on telling.
    synced: bool,
    /// How often it has begun to list.
    listing: u32,
    /// The controllers that the listing has told of.
    listed: HashSet<WorkloadRef>,
}

impl Registry {
    /// Nothing is known of what happened before `now`.
    pub fn new(now: Time) -> Self {
        Self {
            watches: Kind::ALL.into_iter().map(|kind| (kind, Watch::default())).collect(),
            pods: Pods::new(now),
            controllers: Controllers::default(),
            services: Services::default(),
            endpoints: Endpoints::default(),
            namespaces: HashMap::new(),
            configuration: Configuration::default(),
            unreadable: Unreadables::default(),
            synced_since: None,
        }
    }

    /// Takes over an object that is new or has changed. `seen` is when that was: from when the watch had last told that it is up to
    /// date (for the first listing, since ever) until now.
    ///
    /// # Errors
    /// When the object makes no sense. It is left as it was.
    pub fn apply(&mut self, object: Watched, seen: Span) -> Result<(), WrongField> {
        match object {
            Watched::Namespace(namespace) => {
                let listing = self.watches[&Kind::Namespace].listing;
                let name = Namespace::new(namespace.metadata.name.as_str()).map_err(|err| WrongField {
                    field: "metadata.name".to_owned(),
                    problem: err.to_string(),
                })?;
                let labels = Arc::new(namespace.metadata.labels.to_labels());
                self.namespaces.insert(name, (labels, listing));
            }
            Watched::Pod(pod) => {
                let listing = self.watches[&Kind::Pod].listing;
                self.pods.apply(&pod, seen, listing, &self.controllers)?;
            }
            Watched::Controller(kind, controller) => {
                let Object { metadata, spec, .. } = controller;
                self.add_controller(kind, reference_of(kind.name(), &metadata), |controllers| {
                    controllers.add(kind.name(), &metadata, &spec);
                });
            }
            Watched::CronJob(cron_job) => {
                let Object { metadata, spec, .. } = cron_job;
                self.add_controller(Kind::CronJob, reference_of("CronJob", &metadata), |controllers| {
                    controllers.add("CronJob", &metadata, &spec.job_template.spec);
                });
            }
            Watched::Service(service) => {
                self.services.apply(&service, seen, self.watches[&Kind::Service].listing)?;
            }
            Watched::EndpointSlice(slice) => {
                crate::services::check_slice(&slice)?;
                let listing = self.watches[&Kind::EndpointSlice].listing;
                if let Some(service) = self.endpoints.apply(&slice, seen, listing) {
                    self.services.ports_changed(&service);
                }
            }
            Watched::ServiceEntry(entry) => {
                self.services.apply_entry(entry, seen, self.watches[&Kind::ServiceEntry].listing)?;
            }
            Watched::WorkloadEntry(entry) => {
                self.services.apply_workload_entry(entry, seen, self.watches[&Kind::WorkloadEntry].listing);
            }
            object => {
                let listing = self.watches[&object.kind()].listing;
                if let Watched::VirtualService(object) = &object {
                    self.services.apply_virtual_service(object, seen, listing);
                }
                self.configuration.apply(object, listing)?;
            }
        }
        Ok(())
    }

    fn add_controller(&mut self, kind: Kind, reference: WorkloadRef, add: impl FnOnce(&mut Controllers)) {
        add(&mut self.controllers);
        self.pods.controller_known(&reference, &self.controllers);
        if let Some(watch) = self.watches.get_mut(&kind).filter(|watch| !watch.synced) {
            watch.listed.insert(reference);
        }
    }

    /// Takes over that an object is gone; `object` is the last that was seen of it, `seen` as in [`Self::apply`].
    pub fn remove(&mut self, object: &Watched, seen: Span) {
        match object {
            Watched::Namespace(namespace) => {
                self.namespaces.retain(|name, _| name.as_str() != namespace.metadata.name.as_str());
            }
            Watched::Pod(pod) => self.pods.remove(&pod.metadata, seen),
            Watched::Controller(kind, controller) => {
                self.controllers.remove(&reference_of(kind.name(), &controller.metadata), seen.latest());
            }
            Watched::CronJob(cron_job) => {
                self.controllers.remove(&reference_of("CronJob", &cron_job.metadata), seen.latest());
            }
            Watched::Service(service) => self.services.remove(&ObjectKey::of(&service.metadata), seen),
            Watched::EndpointSlice(slice) => {
                if let Some(service) = self.endpoints.remove(&ObjectKey::of(&slice.metadata), seen) {
                    self.services.ports_changed(&service);
                }
            }
            Watched::ServiceEntry(entry) => {
                self.services.remove_entry(&ObjectKey::of(&entry.metadata), seen);
            }
            Watched::WorkloadEntry(entry) => {
                self.services.remove_workload_entry(&ObjectKey::of(&entry.metadata), seen);
            }
            object => {
                let key = ObjectKey::of(object.metadata());
                if object.kind() == Kind::VirtualService {
                    self.services.remove_virtual_service(&key, seen);
                }
                self.configuration.remove(object.kind(), &key);
            }
        }
    }

    /// The watch of a kind begins to list what there is.
    pub fn begin_list(&mut self, kind: Kind) {
        let watch = self.watch(kind);
        watch.synced = false;
        watch.listing = watch.listing.wrapping_add(1);
        watch.listed.clear();
    }

    /// It has listed everything, within `seen` as in [`Self::apply`]: what it did not name is gone. A kind that the cluster does not
    /// have is listed without an object.
    pub fn end_list(&mut self, kind: Kind, seen: Span) {
        let watch = self.watch(kind);
        watch.synced = true;
        let (listing, listed) = (watch.listing, std::mem::take(&mut watch.listed));
        match kind {
            Kind::Namespace => self.namespaces.retain(|_, (_, of)| *of == listing),
            Kind::Pod => self.pods.end_list(listing, seen),
            Kind::Service => self.services.end_list(listing, seen),
            Kind::ServiceEntry => self.services.end_list_of_entries(listing, seen),
            Kind::WorkloadEntry => self.services.end_list_of_workload_entries(listing, seen),
            Kind::EndpointSlice => {
                for service in self.endpoints.end_list(listing, seen) {
                    self.services.ports_changed(&service);
                }
            }
            Kind::ReplicaSet
            | Kind::Job
            | Kind::Deployment
            | Kind::StatefulSet
            | Kind::DaemonSet
            | Kind::CronJob => {
                let there = self.controllers.of_kind(kind.name());
                let gone: Vec<_> = there.filter(|controller| !listed.contains(controller)).cloned().collect();
                for controller in gone {
                    self.controllers.remove(&controller, seen.latest());
                }
            }
            kind => {
                if kind == Kind::VirtualService {
                    self.services.end_list_of_virtual_services(listing, seen);
                }
                self.configuration.end_list(kind, listing);
            }
        }
        self.unreadable.end_list(kind, listing);
    }

    /// The watch of a kind does not tell anything for now.
    pub fn interrupted(&mut self, kind: Kind) {
        self.watch(kind).synced = false;
    }

    /// It goes on where it was interrupted, without listing anew.
    pub fn resumed(&mut self, kind: Kind) {
        self.watch(kind).synced = true;
    }

    fn watch(&mut self, kind: Kind) -> &mut Watch {
        if kind.bears_on_attribution() {
            // Whoever goes on after an interruption, however short, has first to tell what he missed.
            self.synced_since = None;
        }
        self.watches.get_mut(&kind).expect("every kind has its watch from the start")
    }

    /// The kinds of which the watch has not told all.
    pub fn missing(&self) -> impl Iterator<Item = Kind> {
        self.watches.iter().filter(|(_, watch)| !watch.synced).map(|(kind, _)| *kind)
    }

    /// Makes what was taken over count for lookups. Called before a round of them: many objects may have changed since the last.
    pub fn settle(&mut self, now: Time) {
        self.services.settle(&self.endpoints);
        self.synced_since = if self.is_synced() { self.synced_since.or(Some(now)) } else { None };
        if self.watches[&Kind::ReplicaSet].synced && self.watches[&Kind::Job].synced {
            self.pods.last_resort(now.plus(-LAST_RESORT));
        }
    }

    /// Everything that bears on what happened before this must be known by `now`. `None`: a watch does not tell, or did not until a
    /// moment ago.
    pub fn settled_through(&self, now: Time) -> Option<Time> {
        let since = self.synced_since.filter(|_| !self.services.is_stale())?;
        (now.since(since) >= HOLD).then(|| now.plus(-HOLD))
    }

    /// Forgets what is gone for longer than [`RETENTION`].
    pub fn forget(&mut self, now: Time) {
        let time = now.plus(-RETENTION);
        self.pods.forget(time);
        self.controllers.forget(time);
        self.services.forget(time);
        self.endpoints.forget(time);
    }

    /// The cluster as it was at `when`.
    pub fn view(&self, when: Span) -> View<'_> {
        View::new(self, when)
    }

    /// The labels of a namespace that is there.
    pub fn namespace(&self, name: &Namespace) -> Option<&Labels> {
        self.namespaces.get(name).map(|(labels, _)| &**labels)
    }

    /// Istio's and the Gateway API's objects that plans are made from.
    pub fn configuration(&self) -> &Configuration {
        &self.configuration
    }

    /// The objects that are there and make no sense: what they say is not known.
    pub fn unreadable(&self) -> impl Iterator<Item = &Unreadable> {
        self.unreadable.iter()
    }

    /// Whether there are, or were, more of them than are remembered.
    pub fn has_more_unreadable(&self) -> bool {
        self.unreadable.has_more()
    }

    fn note(&mut self, unreadable: Unreadable) -> Result<(), Unreadable> {
        let listing = self.watches[&unreadable.kind].listing;
        if self.unreadable.add(&unreadable, listing) { Err(unreadable) } else { Ok(()) }
    }

    fn readable(&mut self, kind: Kind, namespace: &str, name: &str) {
        self.unreadable.remove(kind, namespace, name);
    }

    /// What there is now, in the form that plans are made from.
    pub fn mesh(&self) -> Mesh {
        let mut mesh = Mesh {
            services: self.services.with_endpoints(&self.endpoints),
            node_addresses: self.pods.node_addresses().collect(),
            pods: self.pods.living().map(|pod| (pod.name.clone(), pod.to_mesh())).collect(),
            ..Mesh::default()
        };
        let pods = mesh.pods.values().map(|pod| (&pod.workload, &*pod.labels));
        mesh.workloads = self.controllers.workloads(pods);
        mesh
    }

    /// Whether all watches that bear on who calls whom have told all, and go on telling.
    pub fn is_synced(&self) -> bool {
        let mut bearing = self.watches.iter().filter(|(kind, _)| kind.bears_on_attribution());
        bearing.all(|(_, watch)| watch.synced)
    }

    /// The stays of pods of which something has become known since this was last asked.
    pub fn changed_stays(&mut self) -> impl Iterator<Item = Stay<'_>> {
        self.pods.changed()
    }

    /// The stays of all pods that are remembered.
    pub fn stays(&self) -> impl Iterator<Item = Stay<'_>> {
        self.pods.stays()
    }

    /// When all pods were last listed; what came and went before may not be known. `None`: they were not listed yet.
    pub fn pods_listed(&self) -> Option<Time> {
        self.pods.known_since()
    }

    /// The workloads of which something is left that could call: pods, or what makes some.
    pub fn present(&self) -> HashSet<&WorkloadRef> {
        let living = self.pods.living().filter_map(|pod| pod.workload.as_deref());
        living.chain(self.controllers.living()).collect()
    }

    /// How much is remembered.
    pub fn size(&self) -> Size {
        Size { services: self.services.len(), ..self.pods.size() }
    }
}

#[cfg(test)]
mod tests;
