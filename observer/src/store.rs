//! The records in the Kubernetes API: reads them all at the start, and writes what the ledger says.
//!
//! Each write holds only if the object is still what it was (optimistic locking), so what another leader wrote is never lost; what
//! to do then is the ledger's business, as is everything else that has to be decided.

use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use kube::core::Status;
use kube::{Client, Error};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, error, warn};

use crate::crd::{self, WorkloadDependencies, object, object_name};
use crate::ledger::{Ledger, Outcome, What, Write};
use crate::model::dependencies::Record;
use crate::model::names::WorkloadRef;

/// Objects that are read at once.
const PAGE: u32 = 200;
/// Longest time of one write.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the list is begun anew because it became too old while it was read.
const LISTS: usize = 5;

/// What was found at the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Records.
    pub records: usize,
    /// Objects that tell of no workload. They are left alone.
    pub foreign: usize,
    /// Parts of records that cannot be read.
    pub unreadable: usize,
}

/// The records in the API, and the writes that go on.
pub struct Store {
    api: Records,
    writes: JoinSet<(Arc<WorkloadRef>, Outcome)>,
    /// The last write failed, and it was said.
    is_failing: bool,
}

/// The ways to the objects. They are read as they are, because one that cannot be read is no reason not to read the others.
#[derive(Clone)]
struct Records {
    client: Client,
    resource: ApiResource,
}

impl Store {
    /// Nothing is read or written yet.
    pub fn new(client: Client) -> Self {
        let resource = ApiResource::erase::<WorkloadDependencies>(&());
        Self { api: Records { client, resource }, writes: JoinSet::new(), is_failing: false }
    }

    /// Reads all records.
    ///
    /// # Errors
    /// Where the API server does not answer, or does not know the resource.
    pub async fn load(&self, ledger: &mut Ledger) -> Result<Loaded, Error> {
        let api: Api<DynamicObject> = Api::all_with(self.api.client.clone(), &self.api.resource);
        let mut loaded = Loaded::default();
        let mut page = ListParams::default().limit(PAGE);
        let mut lists = 1;
        loop {
            let list = match api.list(&page).await {
                // The list is older than what the API server keeps. What was read is not wrong, so the rest is merged with it.
                Err(Error::Api(status)) if status.code == 410 && lists < LISTS => {
                    lists += 1;
                    page.continue_token = None;
                    loaded = Loaded::default();
                    continue;
                }
                other => other?,
            };
            for item in list.items {
                loaded.add(item, ledger);
            }
            page.continue_token = list.metadata.continue_.filter(|token| !token.is_empty());
            if page.continue_token.is_none() {
                return Ok(loaded);
            }
        }
    }

    /// Starts writes. How many go on at the same time is what the ledger was asked for.
    pub fn start(&mut self, writes: Vec<Write>) {
        for write in writes {
            let api = self.api.clone();
            self.writes.spawn(async move {
                let workload = Arc::clone(&write.workload);
                let outcome = timeout(PATIENCE, api.write(write)).await.unwrap_or(Ok(Outcome::Failed));
                let outcome = outcome.unwrap_or_else(|err| failure(&workload, &err));
                (workload, outcome)
            });
        }
    }

    /// Waits for the end of a write; `None` where none goes on. May be dropped at any time.
    pub async fn finished(&mut self) -> Option<(Arc<WorkloadRef>, Outcome)> {
        let finished = self.writes.join_next().await?;
        let (workload, outcome) = match finished {
            Ok(finished) => finished,
            Err(err) => std::panic::resume_unwind(err.into_panic()),
        };
        let has_failed = outcome == Outcome::Failed;
        if has_failed && !self.is_failing {
            warn!(%workload, "records cannot be written; they are kept and tried again");
        }
        self.is_failing = has_failed;
        Some((workload, outcome))
    }
}

impl Loaded {
    fn add(&mut self, item: DynamicObject, ledger: &mut Ledger) {
        let (namespace, name) = (item.metadata.namespace.clone(), item.metadata.name.clone());
        match crd::read(item) {
            Ok(stored) => {
                self.records += 1;
                self.unreadable += stored.unreadable;
                if stored.unreadable > 0 {
                    error!(workload = %stored.workload, parts = stored.unreadable, "a part of the record cannot be read");
                }
                ledger.load(stored.workload, stored.record, stored.resource_version);
            }
            Err(err) => {
                self.foreign += 1;
                error!(?namespace, ?name, %err, "a WorkloadDependencies object is no workload's, and is left alone");
            }
        }
    }
}

impl Records {
    fn of(&self, workload: &WorkloadRef) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), workload.namespace.as_str(), &self.resource)
    }

    async fn write(&self, write: Write) -> Result<Outcome, Error> {
        let Write { workload, resource_version, what } = write;
        match what {
            What::Put(record) => match resource_version {
                Some(version) => self.replace(&workload, *record, version).await,
                None => self.create(&workload, *record).await,
            },
            What::Delete => self.delete(&workload, resource_version).await,
        }
    }

    /// The status is a resource of its own, so this takes two steps. After the first one the object is there and empty, which the
    /// next try merges with.
    async fn create(&self, workload: &WorkloadRef, record: Record) -> Result<Outcome, Error> {
        let api: Api<WorkloadDependencies> =
            Api::namespaced(self.client.clone(), workload.namespace.as_str());
        let mut empty = object(workload, Record::default(), None);
        empty.status = None;
        match api.create(&PostParams::default(), &empty).await {
            Ok(created) => {
                self.replace(workload, record, created.metadata.resource_version.unwrap_or_default()).await
            }
            Err(Error::Api(status)) if status.code == 409 => self.conflict(workload).await,
            Err(Error::Api(status)) if status.code == 404 || is_terminating(&status) => {
                Ok(Outcome::NoNamespace)
            }
            Err(err) => Err(err),
        }
    }

    async fn replace(
        &self,
        workload: &WorkloadRef,
        record: Record,
        version: String,
    ) -> Result<Outcome, Error> {
        let api: Api<WorkloadDependencies> =
            Api::namespaced(self.client.clone(), workload.namespace.as_str());
        let object = object(workload, record, Some(version));
        match api.replace_status(&object_name(workload), &PostParams::default(), &object).await {
            Ok(written) => Ok(Outcome::Written(written.metadata.resource_version.unwrap_or_default())),
            Err(Error::Api(status)) if matches!(status.code, 404 | 409) => self.conflict(workload).await,
            Err(err) => Err(err),
        }
    }

    async fn delete(&self, workload: &WorkloadRef, version: Option<String>) -> Result<Outcome, Error> {
        let Some(resource_version) = version else { return Ok(Outcome::Deleted) };
        let unchanged = Preconditions { resource_version: Some(resource_version), uid: None };
        let params = DeleteParams::default().preconditions(unchanged);
        match self.of(workload).delete(&object_name(workload), &params).await {
            Ok(_) => Ok(Outcome::Deleted),
            Err(Error::Api(status)) if status.code == 404 => Ok(Outcome::Deleted),
            Err(Error::Api(status)) if status.code == 409 => self.conflict(workload).await,
            Err(err) => Err(err),
        }
    }

    /// What is there now.
    async fn conflict(&self, workload: &WorkloadRef) -> Result<Outcome, Error> {
        let Some(found) = self.of(workload).get_opt(&object_name(workload)).await? else {
            return Ok(Outcome::Conflict(None));
        };
        let version = found.metadata.resource_version.clone().unwrap_or_default();
        let record = match crd::read(found) {
            Ok(stored) => stored.record,
            Err(err) => {
                // Of its name there can be only one object, and what is learnt must have a place.
                error!(%workload, %err, "the object of the workload cannot be read, and is written anew");
                Record::default()
            }
        };
        Ok(Outcome::Conflict(Some((Box::new(record), version))))
    }
}

/// Whether it is worth trying again soon.
fn failure(workload: &WorkloadRef, err: &Error) -> Outcome {
    match err {
        Error::Api(status) if matches!(status.code, 400 | 413 | 422) => {
            error!(%workload, %err, "the API server does not take the record");
            Outcome::Refused
        }
        err => {
            debug!(%workload, %err, "a record was not written");
            Outcome::Failed
        }
    }
}

/// Whether it was refused because the namespace is about to go.
fn is_terminating(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403 && causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
