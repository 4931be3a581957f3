//! How two accounts of one workload become one. Told twice, or in another order, they say the same: agents send again what was not
//! acknowledged, and two leaders may have written for a moment. Lists that are full take nothing new and leave a mark; which of the
//! many came first, only the order tells.

use std::cmp::Ordering;

use crate::attribute::Uses;
use crate::model::dependencies::{
    Coverage, Dependency, Direct, EvidenceKind, Loss, MAX_CONNECTS, MAX_DIRECT, MAX_LOSSES, MAX_PORTS,
    MAX_UNKNOWN_HOSTS, MAX_UNRESOLVED, OTHER_CAUSES, OTHER_PORTS, Port, Record, SeenBy, UnknownHost,
    Unresolved,
};
use crate::model::graph::{self, DirectCall, PortUse};
use crate::model::mesh::PortProtocol;
use crate::model::names::{Host, Namespace, WorkloadRef};
use crate::model::stamp::{Seconds, Timestamp};
use crate::model::time::Span;

/// What an account has changed in a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Change {
    /// Nothing.
    #[default]
    Nothing,
    /// It is more recent, which needs to be written only now and then.
    Refreshed,
    /// It holds something that it did not hold.
    New,
}

/// When an attributed flow was seen, and of whom.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The first connect.
    pub first: Span,
    /// The last one.
    pub last: Span,
    /// The pod that connected.
    pub by: Option<&'a SeenBy>,
}

/// What attributed flows of a workload say.
#[derive(Clone, Copy, Debug)]
pub struct Account<'a> {
    /// Which services they went to, or named.
    pub uses: &'a Uses<'a>,
    /// Calls straight to pods.
    pub direct: &'a [DirectCall],
    /// Destinations without a place in the mesh.
    pub unresolved: &'a [graph::Unresolved],
}

/// Adds what attributed flows of its workload say, all seen within the same time. Where nothing changes, nothing is allocated.
pub fn note(record: &mut Record, account: Account<'_>, seen: &Seen<'_>, max_destinations: usize) -> Change {
    let (first, last) = (Timestamp::floor(seen.first.earliest()), Timestamp::ceil(seen.last.latest()));
    let covered = record.coverage.covered_at_most(last);
    let mut change = Change::Nothing;
    for ((host, namespace, number), port_use) in account.uses {
        let port = port_of(*number, port_use, first, last, covered);
        change = change.max(record.add_port((host, namespace), seen.by, port, max_destinations, seen_again));
        for unknown in &port_use.unknown_hosts {
            change = change.max(record.add_unknown_host(unknown, Some(host), last));
        }
    }
    for direct in account.direct {
        let host_unknown = direct.host_unknown.then_some(last);
        change = change.max(record.add_direct(&direct.workload, direct.port, host_unknown, last));
        for host in &direct.unknown_hosts {
            change = change.max(record.add_unknown_host(host, None, last));
        }
    }
    for edge in account.unresolved {
        let entry = Unresolved {
            address: edge.address,
            port: edge.port,
            reason: edge.reason,
            connects: edge.connects.min(MAX_CONNECTS),
            last_seen: last,
        };
        change = change.max(record.add_unresolved(&entry, u64::saturating_add));
        for host in &edge.hosts {
            change = change.max(record.add_unknown_host(host, None, last));
        }
    }
    change
}

fn port_of(number: u16, port_use: &PortUse, first: Timestamp, last: Timestamp, covered: Seconds) -> Port {
    Port {
        port: number,
        protocol: port_use.protocol,
        seen: port_use.seen.iter().map(EvidenceKind::from).collect(),
        address_only: port_use.address_only,
        existing: port_use.existing,
        host_unknown: port_use.host_unknown.then_some(last),
        first_seen: first,
        last_seen: last,
        covered_when_last_seen: covered,
    }
}

impl Record {
    /// Takes over what another record of the same workload says, save what follows from the rest of the cluster (the verdict, and
    /// whether the workload is gone). What was learnt longest ago or last counts, and of both the smaller claim of time that was
    /// covered without use.
    pub fn merge(&mut self, other: &Self, max_destinations: usize) -> Change {
        let mut change = Change::Nothing;
        // Counted anew from the longer sum, each dependency keeps the time that it is known to be out of use.
        let covered = self.coverage.covered.max(other.coverage.covered);
        let raise = |port: &mut Port, from: Seconds| {
            let since = covered.0 - from.0;
            port.covered_when_last_seen.0 = port.covered_when_last_seen.0.saturating_add(since);
        };
        if covered > self.coverage.covered {
            let from = self.coverage.covered;
            self.dependencies.iter_mut().flat_map(|d| &mut d.ports).for_each(|port| raise(port, from));
        }
        for dependency in &other.dependencies {
            for port in &dependency.ports {
                let mut port = *port;
                raise(&mut port, other.coverage.covered);
                let to = (&dependency.host, &dependency.namespace);
                let by = dependency.first_by.as_ref();
                change = change.max(self.add_port(to, by, port, max_destinations, merge_ports));
            }
        }
        for direct in &other.direct {
            let Direct { workload, port, host_unknown, last_seen } = direct;
            change = change.max(self.add_direct(workload, *port, *host_unknown, *last_seen));
        }
        for unknown in &other.unknown_hosts {
            let UnknownHost { host, to, last_seen } = unknown;
            change = change.max(self.add_unknown_host(host, to.as_ref(), *last_seen));
        }
        for unresolved in &other.unresolved {
            change = change.max(self.add_unresolved(unresolved, u64::max));
        }
        for loss in &other.losses {
            change = change.max(self.add_loss(&loss.cause, loss.last));
        }
        for (mark, other) in [
            (&mut self.more_direct, other.more_direct),
            (&mut self.more_unknown_hosts, other.more_unknown_hosts),
            (&mut self.more_unresolved, other.more_unresolved),
        ] {
            change = change.max(other.map_or(Change::Nothing, |last| mark_later(mark, last)));
        }
        if let Some(last) = other.last_seen.filter(|last| self.last_seen < Some(*last)) {
            self.last_seen = Some(last);
            change = change.max(Change::Refreshed);
        }
        if let Some(since) = other.broad {
            if self.broad.is_none() {
                change = Change::New;
            }
            self.broad = Some(self.broad.map_or(since, |known| known.min(since)));
        }
        change.max(self.coverage.merge(&other.coverage))
    }

    /// Records that something of its pods was lost.
    pub fn add_loss(&mut self, cause: &str, last: Timestamp) -> Change {
        let is_full = self.losses.len() >= MAX_LOSSES - 1;
        let is_known = self.losses.binary_search_by(|loss| loss.cause.as_str().cmp(cause)).is_ok();
        let cause = if is_full && !is_known { OTHER_CAUSES } else { cause };
        let added = upsert(
            &mut self.losses,
            MAX_LOSSES,
            |loss| loss.cause.as_str().cmp(cause),
            || Loss { cause: cause.to_owned(), last },
            |loss| later(&mut loss.last, last),
        );
        added.unwrap_or_default()
    }

    fn add_port(
        &mut self,
        (host, namespace): (&Host, &Namespace),
        by: Option<&SeenBy>,
        port: Port,
        max_destinations: usize,
        merge: fn(&mut Port, Port) -> Change,
    ) -> Change {
        let mut change = self.last_seen.as_mut().map_or(Change::Refreshed, |at| later(at, port.last_seen));
        let added = upsert(
            &mut self.dependencies,
            max_destinations,
            |dependency| (&dependency.host, &dependency.namespace).cmp(&(host, namespace)),
            || {
                let (host, namespace) = (host.clone(), namespace.clone());
                Dependency { host, namespace, first_by: by.cloned(), ports: vec![port] }
            },
            |dependency| {
                let mut port = port;
                let ports = &mut dependency.ports;
                let first = ports.iter().map(|port| port.first_seen).min();
                let is_first = match first.map_or(Ordering::Greater, |first| first.cmp(&port.first_seen)) {
                    Ordering::Less => false,
                    Ordering::Greater => true,
                    // Of two that were seen in the same second, either will do, but always the same.
                    Ordering::Equal => {
                        by.is_some_and(|by| dependency.first_by.as_ref().is_none_or(|was| by < was))
                    }
                };
                if is_first {
                    dependency.first_by = by.cloned();
                }
                let apart =
                    ports.len() - usize::from(ports.first().is_some_and(|port| port.port == OTHER_PORTS));
                if apart >= MAX_PORTS && ports.binary_search_by_key(&port.port, |port| port.port).is_err() {
                    port.port = OTHER_PORTS;
                    port.protocol = PortProtocol::Unknown;
                }
                let number = port.port;
                let known = |known: &Port| known.port.cmp(&number);
                upsert(ports, MAX_PORTS + 1, known, || port, |known| merge(known, port)).unwrap_or_default()
            },
        );
        let Some(added) = added else {
            if self.broad.is_some() {
                return change;
            }
            self.broad = Some(port.last_seen);
            return Change::New;
        };
        self.last_seen = self.last_seen.max(Some(port.last_seen));
        self.hosts = u16::try_from(self.dependencies.len()).unwrap_or(u16::MAX);
        change = change.max(added);
        change
    }

    fn add_direct(
        &mut self,
        workload: &WorkloadRef,
        port: u16,
        host_unknown: Option<Timestamp>,
        last_seen: Timestamp,
    ) -> Change {
        let added = upsert(
            &mut self.direct,
            MAX_DIRECT,
            |direct| (&direct.workload, direct.port).cmp(&(workload, port)),
            || Direct { workload: workload.clone(), port, host_unknown, last_seen },
            |direct| {
                let unknown = host_unknown.map(|last| mark_later(&mut direct.host_unknown, last));
                later(&mut direct.last_seen, last_seen).max(unknown.unwrap_or_default())
            },
        );
        added.unwrap_or_else(|| mark_later(&mut self.more_direct, last_seen))
    }

    fn add_unknown_host(&mut self, host: &Host, to: Option<&Host>, last_seen: Timestamp) -> Change {
        let added = upsert(
            &mut self.unknown_hosts,
            MAX_UNKNOWN_HOSTS,
            |unknown| (&unknown.host, unknown.to.as_ref()).cmp(&(host, to)),
            || UnknownHost { host: host.clone(), to: to.cloned(), last_seen },
            |unknown| later(&mut unknown.last_seen, last_seen),
        );
        added.unwrap_or_else(|| mark_later(&mut self.more_unknown_hosts, last_seen))
    }

    fn add_unresolved(&mut self, edge: &Unresolved, count: fn(u64, u64) -> u64) -> Change {
        let key = (edge.address, edge.port, edge.reason);
        let added = upsert(
            &mut self.unresolved,
            MAX_UNRESOLVED,
            |known| (known.address, known.port, known.reason).cmp(&key),
            || edge.clone(),
            |known| {
                let connects = count(known.connects, edge.connects).min(MAX_CONNECTS);
                let counted = if connects == known.connects { Change::Nothing } else { Change::Refreshed };
                known.connects = connects;
                later(&mut known.last_seen, edge.last_seen).max(counted)
            },
        );
        added.unwrap_or_else(|| mark_later(&mut self.more_unresolved, edge.last_seen))
    }
}

impl Coverage {
    /// Most that the sum can have been at `time`, if nothing that is not part of it yet was missed.
    pub fn covered_at_most(&self, time: Timestamp) -> Seconds {
        let through = self.through.unwrap_or_default();
        let after = time.time().since(through.time()).max(0);
        // Both were cut to seconds.
        Seconds(self.covered.0.saturating_add(Seconds::ceil(after).0).saturating_add(2))
    }

    /// Each is a sum of times that were really covered, until the later of the two times at most.
    fn merge(&mut self, other: &Self) -> Change {
        let before = *self;
        let since = match (self.through, other.through) {
            (_, None) => self.since_interruption(),
            (None, _) => other.since_interruption(),
            _ => self.since_interruption().min(other.since_interruption()),
        };
        self.covered = self.covered.max(other.covered);
        self.covered_when_interrupted = Seconds(self.covered.0 - since.0);
        self.through = self.through.max(other.through);
        self.interrupted = self.interrupted.max(other.interrupted);
        if before == *self { Change::Nothing } else { Change::Refreshed }
    }
}

/// Looks for the element in a sorted list and merges, or puts in a new one. `None`: the list is full.
fn upsert<T>(
    list: &mut Vec<T>,
    most: usize,
    compare: impl Fn(&T) -> Ordering,
    make: impl FnOnce() -> T,
    merge: impl FnOnce(&mut T) -> Change,
) -> Option<Change> {
    match list.binary_search_by(compare) {
        Ok(at) => Some(merge(&mut list[at])),
        Err(_) if list.len() >= most => None,
        Err(at) => {
            if list.len() == list.capacity() {
                // Twice the room, as a list takes by itself, is too much for a million short ones.
                list.reserve_exact(list.len() / 4 + 1);
            }
            list.insert(at, make());
            Some(Change::New)
        }
    }
}

fn later(known: &mut Timestamp, told: Timestamp) -> Change {
    if told <= *known {
        return Change::Nothing;
    }
    *known = told;
    Change::Refreshed
}

fn mark_later(known: &mut Option<Timestamp>, told: Timestamp) -> Change {
    match known {
        Some(known) => later(known, told),
        None => {
            *known = Some(told);
            Change::New
        }
    }
}

/// The same as [`merge_ports`] for what an agent tells. Told again, it says nothing of the time that was covered since.
fn seen_again(known: &mut Port, mut told: Port) -> Change {
    if told.last_seen <= known.last_seen {
        told.covered_when_last_seen = Seconds(0);
    }
    merge_ports(known, told)
}

fn merge_ports(known: &mut Port, told: Port) -> Change {
    let before = *known;
    if known.protocol != told.protocol {
        // Two answers: then evidence of either kind counts, which is the safe side.
        known.protocol = PortProtocol::Unknown;
    }
    known.seen = known.seen.union(told.seen);
    known.address_only |= told.address_only;
    known.existing |= told.existing;
    let learnt = (known.protocol, known.seen, known.address_only, known.existing)
        != (before.protocol, before.seen, before.address_only, before.existing);
    let unknown = told.host_unknown.map_or(Change::Nothing, |last| mark_later(&mut known.host_unknown, last));
    known.first_seen = known.first_seen.min(told.first_seen);
    known.last_seen = known.last_seen.max(told.last_seen);
    known.covered_when_last_seen = known.covered_when_last_seen.max(told.covered_when_last_seen);
    match learnt {
        true => Change::New,
        false if *known != before => unknown.max(Change::Refreshed),
        false => unknown,
    }
}
