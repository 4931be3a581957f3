//! Istio's Bookinfo: who calls whom, and the Sidecars that come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use sidescope_tests::Bed;
use sidescope_tests::bookinfo::{self, Load};

use crate::fixture::{Observer, Results, SOON, TESTBED, list};

/// The whole of one file, as a person would write it.
const REVIEWS: &str = r#"apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: reviews
  namespace: default
  labels:
    app.kubernetes.io/managed-by: sidescope
spec:
  workloadSelector:
    labels:
      app: reviews
  egress:
  - hosts:
    - "*/ratings.default.svc.cluster.local"
"#;

fn observe(bed: &Bed, calls: u32, format: &str) -> Result<Results> {
    let observer =
        Observer::start_with(bed, bed.cgroup(), &bookinfo::inventory(bed)?, &["--format", format])?;
    let load = bookinfo::start_load(bed, Path::new(TESTBED), Load { count: Some(calls), rate: None })?;
    load.success(SOON * 3)?;
    observer.stop()
}

fn start() -> Result<Bed> {
    let bed = Bed::new()?;
    bookinfo::start(&bed, Path::new(TESTBED))?;
    Ok(bed)
}

#[test]
fn bookinfo_gets_three_sidecars_and_ten_times_the_load_gives_the_same() -> Result<()> {
    let bed = start()?;
    let results = observe(&bed, 30, "yaml")?;
    let sidecars = results.sidecars();
    let names = ["productpage", "ratings", "reviews"].map(|name| format!("default/{name}.yaml"));
    assert_eq!(sidecars.keys().copied().collect::<Vec<_>>(), names);
    assert_eq!(sidecars["default/reviews.yaml"], REVIEWS);
    for (name, hosts) in
        [("productpage", &["details", "reviews"][..]), ("reviews", &["ratings"]), ("ratings", &["mongodb"])]
    {
        let path = format!("default/{name}.yaml");
        let sidecar: serde_json::Value = serde_saphyr::from_str(sidecars[path.as_str()])?;
        let expected: Vec<_> =
            hosts.iter().map(|host| format!("*/{host}.default.svc.cluster.local")).collect();
        let seen = list(&sidecar["spec"]["egress"]).iter().flat_map(|egress| list(&egress["hosts"]));
        let seen: Vec<_> = seen.filter_map(|host| host.as_str()).collect();
        assert_eq!(seen, expected, "{name}");
        assert_eq!(sidecar["spec"]["workloadSelector"]["labels"], serde_json::json!({ "app": name }));
    }
    for name in ["details", "mongodb"] {
        let (_, reasons) = results.said.split_once("Without a Sidecar\n").context("no reasons")?;
        let line = reasons.lines().find(|line| line.starts_with(&format!("default/{name} ")));
        assert!(
            line.context(name)?.ends_with(
                "no Sidecar: nothing observed that it calls (what happens to such a workload is policy)"
            ),
            "{reasons}"
        );
    }

    bed.end()?;

    // From the start again: connections that stay open from before the watch are not what this is about.
    let bed = start()?;
    let more = observe(&bed, 300, "yaml")?;
    assert_eq!(more.sidecars(), sidecars);
    bed.end()
}

#[test]
fn every_edge_of_bookinfo_tells_address_and_host() -> Result<()> {
    let bed = start()?;
    let results = observe(&bed, 12, "json")?;
    let mut expected = BTreeMap::new();
    for (from, to) in [
        ("productpage-v1", &["details", "reviews"][..]),
        ("reviews-v2", &["ratings"]),
        ("reviews-v3", &["ratings"]),
        ("ratings-v2", &["mongodb"]),
    ] {
        for service in to {
            let mut seen = BTreeSet::from([format!("address {}", bed.service(service)?.v4)]);
            if *service != "mongodb" {
                seen.insert(format!("host {service}"));
            }
            expected.insert((from.to_owned(), format!("{service}.default.svc.cluster.local")), seen);
        }
    }
    assert_eq!(evidence(&results)?, expected);

    let names = ["productpage", "ratings", "reviews"].map(|name| format!("default/{name}.json"));
    assert_eq!(results.sidecars().keys().copied().collect::<Vec<_>>(), names);
    let ratings: serde_json::Value = serde_json::from_str(results.sidecars()["default/ratings.json"])?;
    assert_eq!(ratings["kind"], "Sidecar");
    assert_eq!(ratings["spec"]["egress"][0]["hosts"][0], "*/mongodb.default.svc.cluster.local");
    bed.end()
}

/// By source and destination, how an edge was learnt.
fn evidence(results: &Results) -> Result<BTreeMap<(String, String), BTreeSet<String>>> {
    let mut found = BTreeMap::<_, BTreeSet<String>>::new();
    for node in list(&results.graph["workloads"]) {
        for dependency in list(&node["dependencies"]) {
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let edge = (text(&node["workload"]["name"]), text(&dependency["host"]));
            for used in dependency["ports"].as_object().context("no ports")?.values() {
                let seen = list(&used["seen"]).iter().filter_map(|seen| seen.as_object());
                let seen = seen.flatten().map(|(kind, value)| format!("{kind} {}", text(value)));
                found.entry(edge.clone()).or_default().extend(seen);
            }
        }
    }
    Ok(found)
}
