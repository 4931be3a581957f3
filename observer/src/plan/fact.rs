//! What stands in the way of a Sidecar, in the words in which people are told: what it is, which object causes it, and what a dependency
//! that was missed would meet.

use std::collections::BTreeSet;
use std::fmt;

use super::doubt::Doubt;
use crate::model::config::ObjectRef;
use crate::model::mesh::Labels;
use crate::model::names::{Host, Namespace, ObjectName, WorkloadRef};
use crate::model::policy::Risk;
use crate::model::stamp::{Seconds, Timestamp};

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fact {
    /// It was not seen to call anything. What happens to such a workload is policy.
    NothingObserved,
    /// It calls, but nothing of that could be attributed to a service.
    OnlyUnresolved,
    /// It calls pods at their own addresses, and nothing else.
    OnlyDirect,
    /// What was seen names services and does not show that the proxy sends anything to them.
    NothingCounts,
    /// Its pods have no label that a selector could be made from.
    NoLabels,
    /// Its labels select pods of other workloads as well.
    Overlap {
        /// The selector that it would need.
        selector: Labels,
        /// The other workloads that have these labels, at least one.
        others: Vec<WorkloadRef>,
    },
    /// A Sidecar that Sidescope did not make selects its pods.
    OwnSidecar(ObjectRef),
    /// It is a gateway or a waypoint, which Sidecars do not bear on.
    Gateway,
    /// Its pods have no proxy of their own, but that of an ambient mesh.
    Ambient(Namespace),
    /// Its pods have no proxy.
    NotInjected,
    /// istiod does not look at its namespace.
    NotDiscovered(Namespace),
    /// Its namespace is left out by policy.
    Excluded(ObjectRef),
    /// What a user wants of it cannot be told.
    BadPolicy {
        /// The object.
        object: ObjectRef,
        /// What is wrong with it.
        problem: String,
    },
    /// It needs more hosts than it may have.
    TooBroad {
        /// How many it needs; none where it calls more services than are counted.
        hosts: Option<usize>,
        /// How many it may have.
        most: usize,
    },
    /// Some of its pods are not watched.
    NotWatched {
        /// How many are.
        watched: u32,
        /// How many there are.
        pods: u32,
        /// The nodes of the others, as far as they are known.
        nodes: BTreeSet<ObjectName>,
    },
    /// Nothing was told of its pods for too long.
    Behind(Timestamp),
    /// There was a time in which not all of its pods were watched, or something was lost.
    Interrupted {
        /// The workload.
        workload: WorkloadRef,
        /// When that ended.
        until: Timestamp,
        /// Causes of losses.
        causes: BTreeSet<String>,
        /// How much was covered since.
        since: Seconds,
        /// How much has to be.
        window: Seconds,
    },
    /// Something could not be seen.
    Unseen {
        /// What.
        what: Doubt,
        /// When that was last.
        last: Timestamp,
        /// How much was covered since.
        since: Seconds,
        /// How much has to be.
        window: Seconds,
    },
    /// A dependency that was missed would be harmed.
    Risk(RiskFact),
}

/// Why, and how, a dependency that was missed would be harmed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RiskFact {
    /// The risk.
    pub risk: Risk,
    /// The object that causes it.
    pub object: Option<ObjectRef>,
    /// A service outside the scope for which it holds; none: for all.
    pub service: Option<Host>,
    /// How many more there are.
    pub others: usize,
}

impl RiskFact {
    /// What a call to such a service would meet.
    pub fn meets(&self) -> &'static str {
        match self.risk {
            Risk::Strict => "a reset, or 503: it would come in plain text",
            Risk::RegistryOnly => "502 on an HTTP port in scope, a closed connection on others",
            Risk::Authorization => "403: it would come without an identity",
            Risk::TlsOrigination => "plain text where the server expects TLS: a reset, or 400",
            Risk::Dns => "NXDOMAIN: the name is known to the proxy's DNS only",
            Risk::AutoAllocated => "a timeout: the address leads nowhere",
        }
    }

    /// Its name in a policy.
    pub fn word(&self) -> &'static str {
        match self.risk {
            Risk::Strict => "strict",
            Risk::RegistryOnly => "registryOnly",
            Risk::Authorization => "authorization",
            Risk::TlsOrigination => "tlsOrigination",
            Risk::Dns => "dns",
            Risk::AutoAllocated => "autoAllocated",
        }
    }
}

impl Fact {
    /// Whether a Sidecar that is there stays as it is while this holds, and is only widened: nothing shows that it is wrong.
    pub(super) fn holds(&self) -> bool {
        match self {
            Self::NoLabels
            | Self::Overlap { .. }
            | Self::OwnSidecar(_)
            | Self::Gateway
            | Self::Ambient(_)
            | Self::NotInjected
            | Self::NotDiscovered(_)
            | Self::Excluded(_)
            | Self::TooBroad { .. } => false,
            Self::NothingObserved
            | Self::OnlyUnresolved
            | Self::OnlyDirect
            | Self::NothingCounts
            | Self::BadPolicy { .. }
            | Self::NotWatched { .. }
            | Self::Behind(_)
            | Self::Interrupted { .. }
            | Self::Unseen { .. }
            | Self::Risk(_) => true,
        }
    }
}

impl fmt::Display for RiskFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.service, self.others) {
            (None, _) => f.write_str("a call to anything that is not in its scope")?,
            (Some(service), 0) => write!(f, "a call to {service}, which is not in its scope,")?,
            (Some(service), others) => {
                write!(f, "a call to {service} or {others} more that are not in its scope")?
            }
        }
        write!(f, " would meet {}", self.meets())?;
        if let Some(object) = &self.object {
            write!(f, " ({object})")?;
        }
        write!(f, " [{}]", self.word())
    }
}

/// A list with commas.
struct Listed<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, one) in self.0.iter().enumerate() {
            write!(f, "{}{one}", if at > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// A length of time without the parts that are zero.
pub(super) struct Short(pub(super) Seconds);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.0;
        let parts = [(seconds / 3600, 'h'), (seconds / 60 % 60, 'm'), (seconds % 60, 's')];
        if seconds == 0 {
            return f.write_str("0s");
        }
        // Nobody counts the seconds of an hour.
        let shown = if seconds >= 3600 { &parts[..2] } else { &parts[..] };
        shown.iter().filter(|(value, _)| *value > 0).try_for_each(|(value, unit)| write!(f, "{value}{unit}"))
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingObserved => {
                f.write_str("nothing observed that it calls (what happens to such a workload is policy)")
            }
            Self::OnlyUnresolved => f.write_str(
                "it calls what could not be attributed to a service, and no other (complete the inventory)",
            ),
            Self::OnlyDirect => f.write_str(
                "it calls pods at their own addresses only, which a Sidecar does not bear on",
            ),
            Self::NothingCounts => f.write_str(
                "nothing shows that its proxy sends anything to the services that it names (their ports are routed by address)",
            ),
            Self::NoLabels => {
                f.write_str("its pods have no label that could select them; give its pod template one")
            }
            Self::Overlap { selector, others } => {
                let labels: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
                write!(
                    f,
                    "its labels {} select pods of {} as well; give them labels that tell them apart",
                    labels.join(","),
                    Listed(others)
                )
            }
            Self::OwnSidecar(object) => write!(f, "{object} selects its pods, and Sidescope did not make that"),
            Self::Gateway => f.write_str("it is a gateway or a waypoint, which a Sidecar does not bear on"),
            Self::Ambient(namespace) => {
                write!(f, "its pods are in an ambient mesh (Namespace {namespace}), which a Sidecar does not bear on")
            }
            Self::NotInjected => f.write_str("its pods have no proxy"),
            Self::NotDiscovered(namespace) => {
                write!(f, "istiod does not look at its namespace (discoverySelectors do not select {namespace})")
            }
            Self::Excluded(object) => write!(f, "its namespace is left out ({object})"),
            Self::BadPolicy { object, problem } => write!(f, "{object} is not valid: {problem}"),
            Self::TooBroad { hosts: Some(hosts), most } => {
                write!(f, "too broad: it needs {hosts} hosts, {most} are allowed")
            }
            Self::TooBroad { hosts: None, most } => write!(f, "too broad: it calls more than {most} services"),
            Self::NotWatched { watched, pods, nodes } => {
                write!(f, "not observed: {watched} of {pods} pods are watched")?;
                let nodes: Vec<_> = nodes.iter().take(5).collect();
                if nodes.is_empty() {
                    return Ok(());
                }
                write!(f, " (no agent on {})", Listed(&nodes))
            }
            Self::Behind(through) => {
                write!(f, "not observed: nothing was told of its pods since {through}")
            }
            Self::Interrupted { workload, until, causes, since, window } => {
                write!(f, "not observed: {workload} was not watched, or not wholly, until {until}")?;
                let causes: Vec<_> = causes.iter().collect();
                if !causes.is_empty() {
                    write!(f, " (lost: {})", Listed(&causes))?;
                }
                write!(f, "; {} of {} covered since", Short(*since), Short(*window))
            }
            Self::Unseen { what, last, since, window } => {
                write!(f, "not observed: {what} (last at {last}; {} of {} covered since)", Short(*since), Short(*window))
            }
            Self::Risk(risk) => risk.fmt(f),
        }
    }
}
