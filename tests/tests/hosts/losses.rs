//! Whom a loss has hit, and whom it has not.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::fixture::{Mesh, Observer, Results, dial, list};

fn losses<'r>(results: &'r Results, workload: &str) -> Result<&'r Value> {
    let mut nodes = list(&results.graph["workloads"]).iter();
    let node = nodes.find(|node| node["workload"]["name"] == workload);
    Ok(&node.with_context(|| format!("no workload {workload}"))?["losses"])
}

#[test]
fn a_full_edge_set_is_told_of_the_pod_whose_edges_have_no_room() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let server = mesh.server("server")?;
    let service = mesh.service("server", Some(&server))?;
    let (few, many) = (mesh.pod("few")?, mesh.pod("many")?);
    // Refused at once and on the spot.
    many.unroute("203.0.113.0/24")?;
    let cgroup = mesh.bed.pods_cgroup();
    let observer = Observer::start_with(&mesh.bed, &cgroup, &mesh.inventory()?, &["--edges=8"])?;
    for pod in [&few, &many] {
        assert_eq!(dial(pod, "blocking", service.v4)?, "ok");
    }
    for number in 1..=9 {
        assert_eq!(dial(&many, "blocking", [203, 0, 113, number])?, "EHOSTUNREACH");
    }
    // An edge that has its place loses nothing.
    assert_eq!(dial(&few, "blocking", service.v4)?, "ok");
    let results = observer.stop()?;
    assert_eq!(results.graph["losses"], json!({ "edgesFull": 3 }));
    assert_eq!(losses(&results, "many")?, &json!(["edgesFull"]));
    for untouched in ["few", "server"] {
        assert_eq!(losses(&results, untouched)?, &Value::Null);
    }
    let said = results.said.matches("observations of it were lost, or may have been: edgesFull").count();
    assert_eq!(said, 1, "{}", results.said);
    mesh.bed.end()
}
