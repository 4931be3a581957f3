//! What was really called, and what the records say of it. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use sidescope::model::dependencies::Record;
use sidescope::model::names::{Host, WorkloadRef};

/// Who called what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Edge {
    pub(super) from: WorkloadRef,
    pub(super) to: Destination,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Destination {
    Service {
        host: Host,
        port: u16,
    },
    /// The pods of a workload without a headless service.
    Pods {
        of: WorkloadRef,
        port: u16,
    },
}

/// How an edge was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// How often.
    pub(super) times: u64,
    /// The addresses that were called.
    pub(super) addresses: BTreeSet<IpAddr>,
    /// The addresses of pods of which the agent told no uid.
    pub(super) sources: BTreeSet<IpAddr>,
}

/// Connects of which the aggregator says that it cannot tell what they were, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Unresolved {
    /// Who called; where that is what cannot be told, the address of the pod.
    pub(super) from: Result<WorkloadRef, IpAddr>,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) reason: String,
    /// How many connects this may be.
    pub(super) connects: u64,
}

/// How the records differ from what was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// In a record, and never made.
    pub(super) wrong: Vec<Edge>,
    /// Made and acknowledged, in no record, and nothing says that it could not be told.
    pub(super) missing: Vec<Edge>,
    /// The same, of which something says so.
    pub(super) unresolved: Vec<Edge>,
    /// Workloads whose record says that it does not hold all.
    pub(super) overflowed: Vec<WorkloadRef>,
}

/// Everything that a record says was called.
pub(super) fn edges_of(workload: &WorkloadRef, record: &Record) -> impl Iterator<Item = Edge> {
    let services = record.dependencies.iter().flat_map(|dependency| {
        let host = &dependency.host;
        dependency.ports.iter().map(move |port| Destination::Service { host: host.clone(), port: port.port })
    });
    let pods = record
        .direct
        .iter()
        .map(|direct| Destination::Pods { of: direct.workload.clone(), port: direct.port });
    services.chain(pods).map(|to| Edge { from: workload.clone(), to })
}

/// Everything that a record says could not be told.
pub(super) fn unresolved_of(workload: &WorkloadRef, record: &Record) -> impl Iterator<Item = Unresolved> {
    record.unresolved.iter().map(|one| Unresolved {
        from: Ok(workload.clone()),
        address: one.address,
        port: one.port,
        reason: format!("{:?}", one.reason),
        connects: one.connects,
    })
}

/// Compares what was made and acknowledged with the records and with what is `unresolved`.
pub(super) fn compare(
    made: &BTreeMap<Edge, Told>,
    records: &BTreeMap<WorkloadRef, Record>,
    unresolved: &[Unresolved],
) -> Difference {
    let mut difference = Difference::default();
    let mut found: BTreeSet<Edge> = BTreeSet::new();
    for (workload, record) in records {
        found.extend(edges_of(workload, record));
        let marks = [record.broad, record.more_direct, record.more_unresolved, record.more_unknown_hosts];
        if marks.iter().any(Option::is_some) {
            difference.overflowed.push(workload.clone());
        }
    }
    difference.wrong = found.iter().filter(|edge| !made.contains_key(edge)).cloned().collect();
    for (edge, told) in made.iter().filter(|(edge, _)| !found.contains(edge)) {
        let is_it = |one: &Unresolved| {
            told.addresses.contains(&one.address)
                && match &one.from {
                    Ok(workload) => *workload == edge.from,
                    Err(address) => told.sources.contains(address),
                }
        };
        let list = match unresolved.iter().any(is_it) {
            true => &mut difference.unresolved,
            false => &mut difference.missing,
        };
        list.push(edge.clone());
    }
    difference
}

#[cfg(test)]
mod tests {
    use sidescope::model::dependencies::{Dependency, Direct, EvidenceKind, EvidenceKinds, Port};
    use sidescope::model::mesh::PortProtocol;
    use sidescope::model::stamp::{Seconds, Timestamp};
    use sidescope::model::time::Time;

    use super::super::world::{PORT, TARGET_PORT, World};
    use super::*;

    const WORLD: World = World::FULL;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn service(from: usize, service: usize) -> Edge {
        Edge { from: World::workload(from), to: WORLD.to_service(service, PORT) }
    }

    fn pods(from: usize, of: usize) -> Edge {
        let to = Destination::Pods { of: World::workload(of), port: TARGET_PORT };
        Edge { from: World::workload(from), to }
    }

    fn told(last: u8) -> Told {
        Told { times: 1, addresses: BTreeSet::from([address(last)]), sources: BTreeSet::new() }
    }

    fn records(edges: &[Edge]) -> BTreeMap<WorkloadRef, Record> {
        let mut records: BTreeMap<WorkloadRef, Record> = BTreeMap::new();
        let seen = Timestamp::floor(Time(0));
        for edge in edges {
            let record = records.entry(edge.from.clone()).or_default();
            match &edge.to {
                Destination::Service { host, port } => record.dependencies.push(Dependency {
                    host: host.clone(),
                    namespace: edge.from.namespace.clone(),
                    first_by: None,
                    ports: vec![Port {
                        port: *port,
                        protocol: PortProtocol::Http,
                        seen: EvidenceKinds::from_iter([EvidenceKind::Address]),
                        address_only: true,
                        existing: false,
                        host_unknown: None,
                        first_seen: seen,
                        last_seen: seen,
                        covered_when_last_seen: Seconds::default(),
                    }],
                }),
                Destination::Pods { of, port } => record.direct.push(Direct {
                    workload: of.clone(),
                    port: *port,
                    host_unknown: None,
                    last_seen: seen,
                }),
            }
        }
        records
    }

    #[test]
    fn records_that_hold_what_was_made_differ_in_nothing() {
        let edges = [service(1, 1), service(1, 2), service(2, 2), pods(2, 7)];
        let made = edges.iter().map(|edge| (edge.clone(), told(1))).collect();
        assert_eq!(compare(&made, &records(&edges), &[]), Difference::default());
    }

    #[test]
    fn an_edge_that_nobody_made_is_wrong_and_one_that_is_in_no_record_is_missing() {
        let made =
            BTreeMap::from([(service(1, 1), told(1)), (service(1, 2), told(2)), (pods(2, 7), told(3))]);
        // The call of another one's service, and the pods of another one.
        let planted = [service(1, 1), service(2, 2), pods(2, 8)];
        let difference = compare(&made, &records(&planted), &[]);
        assert_eq!(difference.wrong, [service(2, 2), pods(2, 8)]);
        assert_eq!(difference.missing, [service(1, 2), pods(2, 7)]);
        // A port of a service that was called on another one.
        let mut other_port = records(&[service(1, 1)]);
        for record in other_port.values_mut() {
            record.dependencies[0].ports[0].port = 81;
        }
        let difference = compare(&BTreeMap::from([(service(1, 1), told(1))]), &other_port, &[]);
        assert_eq!((difference.wrong.len(), difference.missing.len()), (1, 1));
    }

    #[test]
    fn what_is_said_to_be_untold_is_not_missing_and_excuses_nothing_else() {
        let by_address = Told { sources: BTreeSet::from([address(9)]), ..told(4) };
        let made = BTreeMap::from([
            (service(1, 1), told(1)),
            (service(1, 2), told(2)),
            (service(3, 4), by_address.clone()),
            (service(4, 4), told(4)),
        ]);
        let of = |from, last| Unresolved {
            from,
            address: address(last),
            port: PORT,
            reason: "ambiguous".to_owned(),
            connects: 1,
        };
        let unresolved = [of(Ok(World::workload(1)), 1), of(Err(address(9)), 4)];
        let difference = compare(&made, &BTreeMap::new(), &unresolved);
        assert_eq!(difference.unresolved, [service(1, 1), service(3, 4)]);
        assert_eq!(difference.missing, [service(1, 2), service(4, 4)]);
        assert_eq!(difference.wrong, []);
    }

    #[test]
    fn a_record_that_does_not_hold_all_is_told() {
        let mut records = records(&[service(1, 1)]);
        for record in records.values_mut() {
            record.more_direct = Some(Timestamp::floor(Time(0)));
        }
        let made = BTreeMap::from([(service(1, 1), told(1))]);
        assert_eq!(compare(&made, &records, &[]).overflowed, [World::workload(1)]);
    }
}
