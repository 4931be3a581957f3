//! What the ledger asks for, and what it is told of how that ended.

use std::sync::Arc;

use crate::model::dependencies::Record;
use crate::model::names::WorkloadRef;

/// A record that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Whose.
    pub workload: Arc<WorkloadRef>,
    /// What the stored object must still have; `None`: there is none.
    pub resource_version: Option<String>,
    /// What to do.
    pub what: What,
}

/// What to do with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Make it this.
    Put(Box<Record>),
    /// Remove it: the workload is gone for long enough.
    Delete,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The object is as asked for, and has this version now.
    Written(String),
    /// The object is removed, or was not there.
    Deleted,
    /// It had another version: this is what it holds and its version. `None`: there is none.
    Conflict(Option<(Box<Record>, String)>),
    /// The API server could not be asked, or had no time.
    Failed,
    /// The API server takes no such object.
    Refused,
    /// There is no such namespace, or it is about to go with everything in it.
    NoNamespace,
}
