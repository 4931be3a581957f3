//! What there is to tell since the last time: edges that are new or have changed, and losses. Pure; bounded as the edges are.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use serde::Serialize;
use sidescope_common::EdgeKey;

use crate::collect::{Observed, address};
use crate::losses::{CauseNames, Hit};
use crate::model::names::Host;

/// One thing to tell.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Change<'a> {
    /// All that is known of an edge.
    Edge(Edge<'a>),
    /// Losses that have hit a network namespace.
    Incomplete {
        /// Its cookie; all namespaces where there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        netns: Option<u64>,
        /// Their causes.
        incomplete: CauseNames,
    },
    /// All that was lost so far, and told by no agent before this one.
    Losses {
        /// How much, by cause.
        losses: BTreeMap<String, u64>,
    },
}

/// An edge, without what changes all the time: how often it was used, and when.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Edge<'a> {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// User id of the caller.
    pub uid: u32,
    /// Destination.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Hosts that its requests named.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub hosts: &'a BTreeSet<Host>,
    /// Names under which the address was looked up.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub names: &'a BTreeSet<Host>,
    /// There was a request whose host is not known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_unknown: bool,
    /// It is known only from a connection that is older than the programs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
}

/// What was told of an edge. Its sets only grow, so their sizes tell whether they have changed.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Told {
    hosts: usize,
    names: usize,
    host_unknown: bool,
    existing: bool,
}

/// What was told so far.
#[derive(Default)]
pub struct Changes {
    edges: HashMap<EdgeKey, Told>,
    hit: Hit,
    losses: BTreeMap<String, u64>,
}

impl Changes {
    /// What is new, in the order of the edges' keys, then of namespaces, and losses last; it counts as told from here on.
    pub fn tell<'a>(
        &mut self,
        edges: impl IntoIterator<Item = (&'a EdgeKey, &'a Observed)>,
        hit: &Hit,
        losses: &BTreeMap<String, u64>,
    ) -> Vec<Change<'a>> {
        let mut changed = BTreeMap::new();
        for (key, observed) in edges {
            let edge = edge(key, observed);
            let now = Told::of(&edge);
            if self.edges.insert(*key, now) != Some(now) {
                changed.insert(key, Change::Edge(edge));
            }
        }
        let mut changes: Vec<_> = changed.into_values().collect();
        for (netns, causes) in hit.namespaces() {
            if self.hit.namespaces().get(netns) != Some(causes) {
                changes.push(Change::Incomplete { netns: Some(*netns), incomplete: causes.clone() });
            }
        }
        if hit.everywhere() != self.hit.everywhere() {
            changes.push(Change::Incomplete { netns: None, incomplete: hit.everywhere().clone() });
        }
        self.hit.clone_from(hit);
        if *losses != self.losses {
            self.losses.clone_from(losses);
            changes.push(Change::Losses { losses: losses.clone() });
        }
        changes
    }

    /// Whether all that is known of an edge was told.
    pub fn is_told(&self, key: &EdgeKey, observed: &Observed) -> bool {
        self.edges.get(key) == Some(&Told::of(&edge(key, observed)))
    }

    /// Whether a loss by this cause was told before.
    pub fn has_told_loss(&self, cause: &str) -> bool {
        self.losses.contains_key(cause)
    }

    /// Drops what is known of edges that are gone. What comes of them again is new.
    pub fn forget(&mut self, edges: &[EdgeKey]) {
        for key in edges {
            self.edges.remove(key);
        }
    }

    /// Drops what is known of edges that are no longer known otherwise (a proxy's), so that there are never more than those.
    pub fn keep(&mut self, known: &HashMap<EdgeKey, Observed>) {
        if self.edges.len() > known.len() {
            self.edges.retain(|key, _| known.contains_key(key));
        }
    }
}

impl Told {
    fn of(edge: &Edge<'_>) -> Self {
        Self {
            hosts: edge.hosts.len(),
            names: edge.names.len(),
            host_unknown: edge.host_unknown,
            existing: edge.existing,
        }
    }
}

fn edge<'a>(key: &EdgeKey, observed: &'a Observed) -> Edge<'a> {
    Edge {
        netns: key.netns,
        uid: key.uid,
        address: address(key.addr),
        port: key.port,
        hosts: &observed.hosts,
        names: &observed.names,
        host_unknown: observed.host_unknown,
        // Of an edge that was seen to connect, nothing is to be told.
        existing: observed.existing && observed.connects == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::host;

    fn key(port: u16) -> EdgeKey {
        let addr = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        EdgeKey { netns: 7, addr, uid: 5, port, reserved: 0 }
    }

    fn lines(
        changes: &mut Changes,
        edges: &HashMap<EdgeKey, Observed>,
        losses: &[(&str, u64)],
    ) -> Vec<String> {
        let losses = losses.iter().map(|(cause, count)| ((*cause).to_owned(), *count)).collect();
        let changes = changes.tell(edges, &Hit::default(), &losses);
        changes.iter().map(|change| serde_json::to_string(change).unwrap()).collect()
    }

    #[test]
    fn a_namespace_is_told_again_when_another_cause_has_hit_it() {
        let (mut changes, edges, mut hit) = (Changes::default(), HashMap::new(), Hit::default());
        let mut lines = |hit: &Hit| -> Vec<String> {
            let changes = changes.tell(&edges, hit, &BTreeMap::new());
            changes.iter().map(|change| serde_json::to_string(change).unwrap()).collect()
        };
        hit.note(Some(7), "edgesFull");
        hit.note(Some(5), "headBudget");
        let five = r#"{"netns":5,"incomplete":["headBudget"]}"#;
        assert_eq!(lines(&hit), [five, r#"{"netns":7,"incomplete":["edgesFull"]}"#]);
        assert!(lines(&hit).is_empty());
        hit.note(Some(7), "dnsAnswer");
        hit.note(None, "agentKilled");
        let seven = r#"{"netns":7,"incomplete":["dnsAnswer","edgesFull"]}"#;
        assert_eq!(lines(&hit), [seven, r#"{"incomplete":["agentKilled"]}"#]);
        assert!(lines(&hit).is_empty());
    }

    #[test]
    fn only_what_has_changed_is_told_again() {
        let mut changes = Changes::default();
        let mut edges = HashMap::from([
            (key(2), Observed { existing: true, ..Observed::default() }),
            (key(1), Observed { connects: 1, existing: true, ..Observed::default() }),
        ]);
        let bare = |port| format!(r#"{{"netns":7,"uid":5,"address":"10.0.0.1","port":{port}"#);
        assert_eq!(
            lines(&mut changes, &edges, &[]),
            [format!("{}}}", bare(1)), format!(r#"{},"existing":true}}"#, bare(2))]
        );
        // Repeated connects are none.
        edges.get_mut(&key(1)).unwrap().connects = 100;
        assert!(lines(&mut changes, &edges, &[]).is_empty());

        let edge = edges.get_mut(&key(1)).unwrap();
        edge.hosts.extend([host("b"), host("a")]);
        edge.names.insert(host("c"));
        assert_eq!(
            lines(&mut changes, &edges, &[("edgesFull", 3)]),
            [
                format!(r#"{},"hosts":["a","b"],"names":["c"]}}"#, bare(1)),
                r#"{"losses":{"edgesFull":3}}"#.to_owned()
            ]
        );
        edges.get_mut(&key(1)).unwrap().host_unknown = true;
        edges.get_mut(&key(2)).unwrap().connects = 1;
        assert_eq!(
            lines(&mut changes, &edges, &[("edgesFull", 3)]),
            [
                format!(r#"{},"hosts":["a","b"],"names":["c"],"hostUnknown":true}}"#, bare(1)),
                format!("{}}}", bare(2))
            ]
        );
        assert!(lines(&mut changes, &edges, &[("edgesFull", 3)]).is_empty());
        assert!(changes.has_told_loss("edgesFull") && !changes.has_told_loss("dnsBudget"));
    }

    #[test]
    fn an_edge_is_told_until_something_of_it_changes_and_told_anew_when_it_was_forgotten() {
        let mut changes = Changes::default();
        let mut edges = HashMap::from([(key(1), Observed { connects: 1, ..Observed::default() })]);
        assert!(!changes.is_told(&key(1), &edges[&key(1)]));
        assert_eq!(lines(&mut changes, &edges, &[]).len(), 1);
        assert!(changes.is_told(&key(1), &edges[&key(1)]));
        edges.get_mut(&key(1)).unwrap().hosts.insert(host("a"));
        assert!(!changes.is_told(&key(1), &edges[&key(1)]));
        assert_eq!(lines(&mut changes, &edges, &[]).len(), 1);
        changes.forget(&[key(1)]);
        assert!(!changes.is_told(&key(1), &edges[&key(1)]));
        assert_eq!(lines(&mut changes, &edges, &[]).len(), 1);
        changes.keep(&edges);
        assert_eq!(changes.edges.len(), 1);
        changes.keep(&HashMap::new());
        assert!(changes.edges.is_empty());
    }
}
