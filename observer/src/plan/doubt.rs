//! What says that a workload may call more than was learnt. Where it is known when that was last, the time since then is enough or it is
//! not; of what was watched once, whether to apply the Sidecar is for the reader to decide, who has to be told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use crate::model::graph::{Graph, Unresolved, UnresolvedReason, WorkloadNode};
use crate::model::names::{Host, WorkloadRef};

/// One reason why there may be more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doubt {
    /// The host of a request to this service and port could not be read.
    HostUnknown(Host, u16),
    /// The host of a request to a pod's own address could not be read.
    DirectHostUnknown(SocketAddr),
    /// The same, of a pod of this workload.
    DirectHostUnknownOf(WorkloadRef, u16),
    /// Whose this address was cannot be told.
    NotTold(SocketAddr),
    /// More hosts or destinations than a record holds.
    More,
    /// So many destinations are no object's of the inventory.
    Unresolved(usize),
    /// So many destinations are several objects', all of which are taken for called as far as they are services.
    AmbiguousAddress(usize),
    /// Observations of its pods were lost, or may have been where it is not known whose they were; the causes.
    Lost(BTreeSet<String>),
    /// So many edges of this machine have no workload, and may be this one's.
    Unattributed(usize),
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostUnknown(host, port) => {
                write!(f, "a host could not be read of a request to {host}:{port}")
            }
            Self::DirectHostUnknown(socket) => write!(f, "a host could not be read of a request to {socket}"),
            Self::DirectHostUnknownOf(workload, port) => {
                write!(f, "a host could not be read of a request to a pod of {workload}, port {port}")
            }
            Self::NotTold(socket) => write!(f, "whose {socket} was cannot be told"),
            Self::More => f.write_str("there are more unknown hosts or destinations than its record holds"),
            Self::Unresolved(1) => f.write_str("1 destination is no object's of the inventory"),
            Self::Unresolved(n) => write!(f, "{n} destinations are no object's of the inventory"),
            Self::AmbiguousAddress(1) => f.write_str("1 destination is several objects'"),
            Self::AmbiguousAddress(n) => write!(f, "{n} destinations are several objects'"),
            Self::Lost(causes) => {
                f.write_str("observations of it were lost, or may have been:")?;
                for (at, cause) in causes.iter().enumerate() {
                    write!(f, "{} {cause}", if at > 0 { "," } else { "" })?;
                }
                Ok(())
            }
            Self::Unattributed(1) => {
                f.write_str("1 edge on this machine has no workload, and may be this one's")
            }
            Self::Unattributed(n) => {
                write!(f, "{n} edges on this machine have no workload, and may be this one's")
            }
        }
    }
}

/// What of a graph says so.
pub(super) struct Doubts<'a> {
    unresolved: BTreeMap<&'a WorkloadRef, Vec<&'a Unresolved>>,
    unattributed: usize,
}

impl<'a> Doubts<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        let mut unresolved: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for entry in &graph.unresolved {
            unresolved.entry(&entry.workload).or_default().push(entry);
        }
        Self {
            unresolved,
            // Foreign ones are known to be nobody's.
            unattributed: graph.unattributed.unknown + graph.unattributed.ambiguous,
        }
    }

    pub(super) fn any_unresolved(&self, members: &[&WorkloadNode]) -> bool {
        members.iter().any(|node| self.unresolved.contains_key(&node.workload))
    }

    /// Hosts that were named on the way to what is not attributed.
    pub(super) fn unknown_hosts<'s>(
        &'s self,
        members: &'s [&WorkloadNode],
    ) -> impl Iterator<Item = &'a Host> + 's {
        let entries = members.iter().filter_map(|node| self.unresolved.get(&node.workload)).flatten();
        entries.flat_map(|entry| &entry.hosts)
    }

    /// The reasons that bear on a canonical workload, in a stable order.
    pub(super) fn of(&self, members: &[&WorkloadNode]) -> Vec<Doubt> {
        let mut reasons = BTreeSet::new();
        for dependency in members.iter().flat_map(|node| &node.dependencies) {
            for (port, _) in dependency.ports.iter().filter(|(_, port_use)| port_use.host_unknown) {
                reasons.insert(Doubt::HostUnknown(dependency.host.clone(), *port));
            }
        }
        for call in members.iter().flat_map(|node| &node.direct).filter(|call| call.host_unknown) {
            reasons.insert(Doubt::DirectHostUnknown(SocketAddr::new(call.address, call.port)));
        }
        let destinations = |reasons: &[UnresolvedReason]| {
            let entries = members.iter().filter_map(|node| self.unresolved.get(&node.workload)).flatten();
            let matching = entries.filter(|entry| reasons.contains(&entry.reason));
            matching.map(|entry| (entry.address, entry.port)).collect::<BTreeSet<_>>().len()
        };
        let lost: BTreeSet<String> = members.iter().flat_map(|node| &node.losses).cloned().collect();
        let counted = [
            Doubt::Unresolved(destinations(&[UnresolvedReason::UnknownAddress, UnresolvedReason::NotKnown])),
            Doubt::AmbiguousAddress(destinations(&[UnresolvedReason::AmbiguousAddress])),
            Doubt::Lost(lost),
            Doubt::Unattributed(self.unattributed),
        ];
        let none = |reason: &Doubt| match reason {
            Doubt::Unresolved(count) | Doubt::AmbiguousAddress(count) | Doubt::Unattributed(count) => {
                *count == 0
            }
            Doubt::Lost(causes) => causes.is_empty(),
            _ => false,
        };
        reasons.into_iter().chain(counted.into_iter().filter(|reason| !none(reason))).collect()
    }
}
