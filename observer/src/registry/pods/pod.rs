//! One pod, and how long it was there.

use std::net::IpAddr;
use std::sync::Arc;

use crate::model::mesh::{self, Labels, PodRef};
use crate::model::names::{PodUid, WorkloadRef};
use crate::model::time::{Span, Time};
use crate::objects::{Object, PodSpec, PodStatus};
use crate::registry::{LAG, SKEW};
use crate::workloads::by_template_hash;

/// A pod's time in the cluster, through which it may connect to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stay<'r> {
    /// The uid of its object.
    pub pod: &'r PodUid,
    /// Its workload.
    pub workload: &'r Arc<WorkloadRef>,
    /// It had no address before.
    pub from: Time,
    /// It had ended by then.
    pub until: Option<Time>,
}

#[derive(Debug)]
pub(in crate::registry) struct Pod {
    pub(in crate::registry) uid: PodUid,
    pub(super) static_uid: Option<PodUid>,
    pub(in crate::registry) name: PodRef,
    pub(in crate::registry) node: Option<Arc<String>>,
    pub(in crate::registry) labels: Arc<Labels>,
    pub(in crate::registry) host_network: bool,
    /// `None`: not known yet.
    pub(in crate::registry) workload: Option<Arc<WorkloadRef>>,
    pub(super) direct: Arc<WorkloadRef>,
    /// Those that it has now, each with the number of the stint.
    pub(super) addresses: Vec<(IpAddr, u32)>,
    pub(super) node_addresses: Arc<Vec<IpAddr>>,
    /// Counts the times that it lost an address.
    pub(super) nth: u32,
    /// Not before this it began to end.
    pub(super) leaving: Option<Time>,
    /// How and when it went.
    pub(super) gone: Option<(Gone, Time)>,
    /// From when on it may have had an address. `None`: it has had none.
    pub(super) since: Option<Time>,
    /// When its containers were seen to have ended for good.
    pub(super) ended: Option<Time>,
    pub(super) listing: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// A listing did not name it.
    Missing,
    /// It was deleted, and never comes back.
    Deleted,
}

impl Pod {
    /// In the form that plans are made from.
    pub(in crate::registry) fn to_mesh(&self) -> mesh::Pod {
        mesh::Pod {
            workload: self.workload_or_guess(),
            labels: self.labels.clone(),
            addresses: self.addresses.iter().map(|(address, _)| *address).collect(),
            host_network: self.host_network,
        }
    }

    /// `None`: it is in its node's network namespace, has had no address, or its workload is not known yet.
    pub(super) fn stay(&self) -> Option<Stay<'_>> {
        let (workload, from) = (self.workload.as_ref()?, self.since?);
        let until = self.ended.or(self.gone.map(|(_, gone)| gone));
        (!self.host_network).then_some(Stay { pod: &self.uid, workload, from, until })
    }

    pub(super) fn workload_or_guess(&self) -> WorkloadRef {
        let known = self.workload.as_deref().cloned();
        known.unwrap_or_else(|| by_template_hash(&self.direct, &self.labels))
    }
}

/// When a pod got an address that was seen now. It has it when its first container starts. Times in objects are cut to whole seconds,
/// so each is the earliest that it can be; they are of clocks that differ, so that they only tell what is far from now.
pub(super) fn began(object: &Object<PodSpec, PodStatus>, seen: Span) -> Span {
    let started = object.status.started();
    let by_watch = seen.earliest().min(started.unwrap_or(Time(i64::MAX))).plus(-LAG);
    let created = object.metadata.creation_timestamp.0.unwrap_or(Time(i64::MIN)).plus(-SKEW);
    let latest = started.map_or(seen.latest(), |started| seen.latest().min(started.plus(1_000 + SKEW)));
    Span::between(by_watch.max(created).min(latest), latest)
}
