use super::*;
use crate::attribute::attribute;
use crate::fixture::{all_watched, bookinfo, bookinfo_flows, flow, workload};
use crate::mesh_index::MeshIndex;
use crate::plan::propose;

fn report(style: Style) -> String {
    let mesh = bookinfo();
    let mut flows = bookinfo_flows();
    let mut nowhere = flow("default/Deployment/reviews-v1", "198.51.100.1", 443, &["gone.test"]);
    nowhere.host_unknown = true;
    flows.push(nowhere);
    flows.push(flow("default/Deployment/reviews-v1", "10.0.0.2", 9080, &[]));
    flows.push(flow("default/Deployment/reviews-v2", "10.0.0.2", 9080, &["gone.test"]));
    let mut unread = flow("default/Deployment/ratings-v1", "10.96.0.2", 9080, &["gone.test"]);
    unread.host_unknown = true;
    flows.push(unread);
    let old = |address, port| {
        let mut flow = flow("default/Deployment/ratings-v1", address, port, &[]);
        (flow.existing, flow.connects) = (true, 0);
        flow
    };
    flows.extend([old("10.96.0.3", 9080), old("198.51.100.2", 443)]);
    let mut watched = all_watched(&mesh);
    for other_machine in ["mongodb-v1", "reviews-v3", "productpage-v1"] {
        watched.remove(&workload(&format!("default/Deployment/{other_machine}")));
    }
    flows.retain(|flow| watched.contains_key(&flow.source));
    let mut graph = attribute(&MeshIndex::new(&mesh), &flows, &watched);
    graph.unattributed = Unattributed { unknown: 2, ambiguous: 0, foreign: 1 };
    let plan = propose(&graph, &mesh);
    // After the plan, in which every loss is a doubt about each workload.
    graph.losses = BTreeMap::from([("edgesFull".to_owned(), 3), ("dnsAnswer".to_owned(), 1)]);
    tree(&graph, &plan, style)
}

#[test]
fn the_report_says_who_calls_whom_how_it_was_learnt_and_what_it_saves() {
    assert_eq!(
        report(Style::plain()),
        r#"Dependencies
default/details  (Deployment details-v1)
└─ calls nothing that was seen
default/ratings  (Deployment ratings-v1)
├─ details.default.svc.cluster.local
│  ├─ 9080 HTTP  learnt from address 10.96.0.2
│  ├─ 9080: Host "gone.test" is no service of the mesh
│  └─ 9080: a host could not be read; there may be more services behind this port
├─ mongodb.default.svc.cluster.local
│  └─ 27017 TCP  learnt from address 10.96.0.5
├─ reviews.default.svc.cluster.local
│  └─ 9080 HTTP  learnt from address 10.96.0.3, open since before the start
├─ not complete: a host could not be read of a request to details.default.svc.cluster.local:9080
├─ not complete: 1 destination is no object's of the inventory
└─ not complete: 2 edges on this machine have no workload, and may be this one's
default/reviews  (Deployment reviews-v1, Deployment reviews-v2, Deployment reviews-v3)  2 of 3 pods watched
├─ ratings.default.svc.cluster.local
│  └─ 9080 HTTP  learnt from address 10.96.0.4, Host "ratings"
├─ default/Deployment/details-v1 at its pod's address 10.0.0.2:9080: passes by the Sidecar (2 connections)
│  └─ 9080: Host "gone.test" is no service of the mesh
├─ not complete: 1 destination is no object's of the inventory
└─ not complete: 2 edges on this machine have no workload, and may be this one's

Services in scope
default/ratings  5 -> 3
default/reviews  5 -> 1

Without a Sidecar
default/details  no Sidecar: nothing observed that it calls (what happens to such a workload is policy)

Not attributed
default/Deployment/ratings-v1 -> 198.51.100.2:443  no object of the inventory has this address (open since before the start)
default/Deployment/reviews-v1 -> 198.51.100.1:443  no object of the inventory has this address; it named "gone.test", which nothing in the mesh has; a host could not be read (1 connection)

2 workloads were not watched (no pod on this machine and in the watched cgroup): not judged
3 connects were not recorded (edgesFull): the edge set was full: raise --edges
1 edge from outside the inventory's pods (not part of the graph)
2 edges from a network namespace that was gone before its address was known
"#
    );
}

#[test]
fn colours_are_the_only_thing_that_they_add() {
    let coloured = report(Style::coloured());
    assert!(coloured.contains("\u{1b}[32mdetails.default.svc.cluster.local\u{1b}[0m"));
    let mut stripped = String::new();
    let mut rest = coloured.as_str();
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        stripped += before;
        rest = after.split_once('m').unwrap().1;
    }
    stripped += rest;
    assert_eq!(stripped, report(Style::plain()));
    assert!(!report(Style::plain()).contains(|c: char| c.is_control() && c != '\n'));
}
