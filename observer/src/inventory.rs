//! Reads the mesh from a text of ordinary Kubernetes objects, as `kubectl get pods,services,... -A -o yaml` prints them.
//!
//! This is what stands in for watches where there is no cluster at hand. It takes what kubectl would take (nothing but a name
//! is required of an object), and refuses what nobody could mean: a bad address, a port out of range, two different objects
//! of one name. An error says where: file, object and field.

mod document;
mod error;
mod rules;

#[cfg(test)]
mod tests;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::model::mesh::{Mesh, Pod, PodRef};
use crate::model::names::{Namespace, ObjectName};
use crate::objects;
use crate::services::{self, Endpoints, WrongField};
use crate::workloads::{Belongs, Controllers, by_template_hash, direct_controller};
use document::{NotAnObject, Position, RawObject};
pub use error::InventoryError;
use error::printable;
use rules::Rule;

/// What an inventory holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Inventory {
    /// The mesh that the objects make up.
    pub mesh: Mesh,
    /// Objects that were read, each once.
    pub objects: usize,
    /// Objects of kinds that are not read, by kind.
    pub skipped: BTreeMap<String, usize>,
}

/// Collects objects from any number of files, in any order.
#[derive(Debug, Default)]
pub struct Builder {
    objects: BTreeMap<ObjectId, Listed>,
    skipped: BTreeMap<String, usize>,
}

/// Kind, namespace and name: what makes an object the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ObjectId {
    kind: String,
    namespace: Option<Namespace>,
    name: ObjectName,
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        write!(f, "{}", self.name)
    }
}

#[derive(Debug)]
struct Listed {
    file: String,
    object: Object,
}

#[derive(Debug, PartialEq)]
enum Object {
    Namespace(objects::Object<objects::Nothing>),
    Pod(objects::Object<objects::PodSpec, objects::PodStatus>),
    Service(objects::Object<objects::ServiceSpec, objects::ServiceStatus>),
    EndpointSlice(objects::EndpointSlice),
    Controller(objects::Object<objects::ControllerSpec>),
    CronJob(objects::Object<objects::CronJobSpec>),
    ServiceEntry(objects::Object<objects::ServiceEntrySpec, objects::ServiceEntryStatus>),
    Rule(Rule),
}

impl Object {
    fn meta(&self) -> &objects::Meta {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::Controller(object) => &object.metadata,
            Self::CronJob(object) => &object.metadata,
            Self::ServiceEntry(object) => &object.metadata,
            Self::Rule(rule) => rule.meta(),
        }
    }
}

impl Builder {
    /// Adds every object of `text`. `file` is what errors call it.
    ///
    /// # Errors
    /// When the text is no YAML or JSON, an object is malformed, or one is there already with other content.
    pub fn add_text(&mut self, file: &str, text: &str) -> Result<(), InventoryError> {
        let documents = document::parse(text).map_err(|err| InventoryError::Syntax {
            file: file.to_owned(),
            line: err.line,
            message: printable(&err.message),
        })?;
        let objects = document::objects(documents).map_err(|err| not_an_object(file, err))?;
        for raw in objects {
            self.add(file, raw)?;
        }
        Ok(())
    }

    fn add(&mut self, file: &str, raw: RawObject) -> Result<(), InventoryError> {
        let context = Context { file, kind: &raw.kind, position: raw.position };
        let object = match (raw.group.as_str(), raw.kind.as_str()) {
            ("", "Namespace") => Object::Namespace(context.read(&raw.body)?),
            ("", "Pod") => Object::Pod(context.read(&raw.body)?),
            ("", "Service") => Object::Service(context.read(&raw.body)?),
            ("discovery.k8s.io", "EndpointSlice") => Object::EndpointSlice(context.read(&raw.body)?),
            ("apps", "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("batch", "Job") => {
                Object::Controller(context.read(&raw.body)?)
            }
            ("batch", "CronJob") => Object::CronJob(context.read(&raw.body)?),
            ("networking.istio.io", "ServiceEntry") => Object::ServiceEntry(context.read(&raw.body)?),
            // A kind is not unique without its group: Knative has a Service, too.
            (group, kind @ ("Namespace" | "Pod" | "Service" | "Deployment" | "Job")) => {
                *self.skipped.entry(format!("{kind}.{group}")).or_default() += 1;
                return Ok(());
            }
            (group, kind) => match Rule::read(&context, group, kind, &raw.body) {
                Some(rule) => Object::Rule(rule?),
                None => {
                    *self.skipped.entry(kind.to_owned()).or_default() += 1;
                    return Ok(());
                }
            },
        };
        let id = ObjectId {
            namespace: (raw.kind != "Namespace").then(|| object.meta().namespace()),
            name: object.meta().name.clone(),
            kind: raw.kind,
        };
        check(&object).map_err(|wrong| InventoryError::Field {
            file: file.to_owned(),
            object: id.to_string(),
            field: wrong.field,
            problem: wrong.problem,
        })?;
        match self.objects.entry(id) {
            Entry::Vacant(free) => {
                free.insert(Listed { file: file.to_owned(), object });
            }
            Entry::Occupied(taken) if taken.get().object != object => {
                return Err(InventoryError::Conflict {
                    object: taken.key().to_string(),
                    first: taken.get().file.clone(),
                    second: file.to_owned(),
                });
            }
            Entry::Occupied(_) => {}
        }
        Ok(())
    }

    /// Puts the objects together.
    ///
    /// # Errors
    /// When an object that was let in turns out to make no sense among the others: a Namespace whose name is no label.
    pub fn build(self) -> Result<Inventory, InventoryError> {
        let mut mesh = Mesh::default();
        let mut controllers = Controllers::default();
        let mut pods = Vec::new();
        let mut found = Vec::new();
        let mut slices: BTreeMap<_, Endpoints> = BTreeMap::new();
        let (mut rules, mut namespaces) = (Vec::new(), Vec::new());
        let count = self.objects.len();
        for (id, listed) in self.objects {
            match listed.object {
                Object::Namespace(object) => {
                    // A namespace's name is a label, which is less than other objects may have.
                    let name = Namespace::new(id.name.as_str()).map_err(|err| InventoryError::Field {
                        file: listed.file,
                        object: id.to_string(),
                        field: "metadata.name".to_owned(),
                        problem: err.to_string(),
                    })?;
                    namespaces.push((name, object.metadata.labels.to_labels()));
                }
                Object::Rule(rule) => rules.push(rule),
                Object::Pod(pod) => pods.push(pod),
                Object::Controller(controller) => {
                    controllers.add(&id.kind, &controller.metadata, &controller.spec);
                }
                Object::CronJob(cron_job) => {
                    controllers.add(&id.kind, &cron_job.metadata, &cron_job.spec.job_template.spec);
                }
                Object::Service(service) => found.push(services::of_service(&service).expect(CHECKED)),
                Object::EndpointSlice(slice) => {
                    if let Some(service) = services::service_of(&slice) {
                        slices.entry(service).or_default().add(&slice);
                    }
                }
                Object::ServiceEntry(entry) => {
                    found.extend(services::of_entry(&entry, std::iter::empty()).expect(CHECKED));
                }
            }
        }
        for service in &mut found {
            if let Some(endpoints) = slices.get(&(service.namespace.clone(), service.name.clone())) {
                endpoints.join(service);
            }
        }
        mesh.services = services::sorted(found);
        for pod in pods {
            add_pod(&mut mesh, &controllers, &pod);
        }
        mesh.workloads = controllers.workloads(mesh.pods.values().map(|pod| (&pod.workload, &*pod.labels)));
        mesh.config = rules::config(rules, namespaces);
        Ok(Inventory { mesh, objects: count, skipped: self.skipped })
    }
}

const CHECKED: &str = "checked when it was added";

/// Checks what types alone do not: names that become host names, addresses that may also be something else.
fn check(object: &Object) -> Result<(), WrongField> {
    match object {
        Object::Service(service) => services::of_service(service).map(drop),
        Object::EndpointSlice(slice) => services::check_slice(slice),
        Object::ServiceEntry(entry) => services::of_entry(entry, std::iter::empty()).map(drop),
        Object::Rule(rule) => rule.check(),
        _ => Ok(()),
    }
}

fn add_pod(
    mesh: &mut Mesh,
    controllers: &Controllers,
    object: &objects::Object<objects::PodSpec, objects::PodStatus>,
) {
    let labels = object.metadata.labels.to_labels();
    let workload = match controllers.workload_of(direct_controller(&object.metadata)) {
        Belongs::To(workload) => workload,
        Belongs::ToOwnerOf(direct) => by_template_hash(&direct, &labels),
    };
    let status = &object.status;
    let addresses: BTreeSet<_> =
        if status.is_terminal() { BTreeSet::new() } else { status.addresses().collect() };
    mesh.node_addresses.extend(status.node_addresses());
    if object.spec.host_network {
        mesh.node_addresses.extend(&addresses);
    }
    let name =
        PodRef { namespace: object.metadata.namespace(), name: object.metadata.name.as_str().to_owned() };
    let pod = Pod { workload, labels: Arc::new(labels), addresses, host_network: object.spec.host_network };
    mesh.pods.insert(name, pod);
}

/// Where an object is, for errors.
struct Context<'a> {
    file: &'a str,
    kind: &'a str,
    position: Position,
}

impl Context<'_> {
    fn read<T: DeserializeOwned>(&self, body: &Value) -> Result<T, InventoryError> {
        // The name is wanted only for an error, so it is looked up only then.
        serde_path_to_error::deserialize(body).map_err(|err| {
            let field = match err.path().to_string() {
                path if path == "." => "metadata".to_owned(),
                path => printable(&path),
            };
            InventoryError::Field {
                file: self.file.to_owned(),
                object: self.name_of(body),
                field,
                problem: printable(&err.inner().to_string()),
            }
        })
    }

    fn name_of(&self, body: &Value) -> String {
        #[derive(Deserialize)]
        struct Named {
            metadata: NamedMeta,
        }
        #[derive(Deserialize)]
        struct NamedMeta {
            name: ObjectName,
            namespace: Option<Namespace>,
        }
        match Named::deserialize(body) {
            Ok(Named { metadata }) => {
                ObjectId { kind: self.kind.to_owned(), namespace: metadata.namespace, name: metadata.name }
                    .to_string()
            }
            Err(_) => format!("{} ({})", self.kind, self.position),
        }
    }
}

fn not_an_object(file: &str, err: NotAnObject) -> InventoryError {
    InventoryError::NotAnObject {
        file: file.to_owned(),
        document: err.position.to_string(),
        field: if err.field.is_empty() { "it".to_owned() } else { format!("field {}", err.field) },
        problem: err.problem,
    }
}
