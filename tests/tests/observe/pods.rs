//! Pods that come while it watches, and pods that are gone before it ends.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use sidescope_tests::{Cmd, Host, wait_for};

use crate::fixture::{Mesh, Observer, SOON, dial, port_80};

/// Deletes a pod's network namespace, as a runtime does when a pod ends.
fn delete(pod: &Host) -> Result<()> {
    Cmd::new("ip").args(["netns", "delete", pod.netns()]).run()?;
    let file = Path::new("/run/netns").join(pod.netns());
    wait_for("the namespace to be gone", SOON, || Ok((!file.exists()).then_some(())))
}

#[test]
fn pods_that_come_late_or_go_early_are_attributed() -> Result<()> {
    let names = ["server", "early", "late", "brief"];
    // Addresses are the same in every bed, so another one tells those of pods that are not there yet.
    let mut planned = Mesh::new()?;
    for name in names {
        planned.pod(name)?;
    }
    let inventory = planned.inventory()?;
    planned.bed.end()?;

    let mut mesh = Mesh::new()?;
    let (server, early) = (mesh.server(names[0])?, mesh.pod(names[1])?);
    let observer = Observer::start(&mesh.bed, &mesh.bed.pods_cgroup(), &inventory)?;
    assert_eq!(dial(&early, "blocking", server.v4())?, "ok");
    delete(&early)?;
    let late = mesh.pod(names[2])?;
    assert_eq!(dial(&late, "blocking", server.v4())?, "ok");
    let brief = mesh.pod(names[3])?;
    assert_eq!(dial(&brief, "blocking", server.v4())?, "ok");
    delete(&brief)?;

    let results = observer.stop()?;
    for name in &names[1..] {
        assert_eq!(results.destinations(name)?, BTreeSet::from([port_80(server.v4())]), "{name}");
    }
    results.must_be_complete()?;
    mesh.bed.end()
}
