//! What makes an edge and what does not. Every test compares the whole set of edges, with one that must be there in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;
use sidescope_tests::Cmd;

use crate::fixture::{Mesh, Observer, dial, dial_cmd, port_80};
use crate::peers::Peers;

#[test]
fn what_is_not_the_applications_connection_to_another_host_makes_no_edge() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server, other) = (mesh.server("caller")?, mesh.server("server")?, mesh.server("other")?);
    // On the whole bed, so that processes outside the pods are seen as well.
    let observer = Observer::start(&mesh.bed, mesh.bed.cgroup(), &mesh.inventory()?)?;

    let proxy = caller.run(&dial_cmd("blocking", port_80(other.v4())).uid(1337))?;
    assert_eq!(proxy.stdout, b"ok\n");
    let own: [IpAddr; 3] = ["127.0.0.1".parse()?, "::1".parse()?, "0.0.0.0".parse()?];
    for address in own {
        assert_eq!(dial(&caller, "blocking", address)?, "ok", "{address}");
    }
    assert_eq!(dial(&caller, "udp", other.v4())?, "ok");
    assert_eq!(dial(&caller, "udp-connected", other.v4())?, "ok");
    assert_eq!(dial(&caller, "udp-connected", other.v6())?, "ok");
    assert_eq!(dial(&caller, "unix", other.v4())?, "ok");
    // Another user, or the same one otherwise, is seen.
    let application = caller.run(&dial_cmd("blocking", port_80(server.v4())).uid(1338))?;
    assert_eq!(application.stdout, b"ok\n");

    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(server.v4())]));
    results.must_be_complete()?;
    mesh.bed.end()
}

#[test]
fn processes_outside_the_pods_make_no_edge() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server, other) = (mesh.pod("caller")?, mesh.server("server")?, mesh.server("other")?);
    let outsider = mesh.bed.add_outsider("outsider")?;
    // Nothing that the machine itself dials here may leave it.
    let forbidden = Ipv4Addr::new(192, 0, 2, 1);
    let peers = Peers::new()?.deny(forbidden)?.attach("peer_deny4", mesh.bed.cgroup())?;

    // Watching all of the bed: the machine's own namespace is left out, others are told apart by their addresses.
    let all = Observer::start(&mesh.bed, mesh.bed.cgroup(), &mesh.inventory()?)?;
    let script = r#"echo $$ >"$0/cgroup.procs" && exec "$@""#;
    let mut on_machine = Cmd::new("sh").args(["-c", script]).arg(caller.cgroup());
    on_machine = on_machine.args([crate::fixture::TESTBED, "dial", "blocking", "192.0.2.1:80"]);
    assert_eq!(on_machine.run()?.stdout, b"EPERM\n");
    assert_eq!(dial(&caller, "blocking", server.v4())?, "ok");
    let results = all.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(server.v4())]));
    assert!(!results.graph.to_string().contains("192.0.2.1"), "{}", results.graph);
    results.must_be_complete()?;
    drop(peers);

    let all = Observer::start(&mesh.bed, mesh.bed.cgroup(), &mesh.inventory()?)?;
    assert_eq!(dial(&mesh.bed.node()?, "blocking", other.v4())?, "ok");
    assert_eq!(dial(&outsider, "blocking", other.v4())?, "ok");
    assert_eq!(dial(&caller, "blocking", server.v4())?, "ok");
    let results = all.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(server.v4())]));
    assert!(!results.graph.to_string().contains(&other.v4().to_string()), "{}", results.graph);
    assert!(results.said.contains("2 edges from outside the inventory's pods"), "{}", results.said);

    // Watching the pods only, they are not even counted.
    let pods = mesh.observe()?;
    assert_eq!(dial(&mesh.bed.node()?, "blocking", other.v4())?, "ok");
    assert_eq!(dial(&caller, "blocking", server.v4())?, "ok");
    let results = pods.stop()?;
    assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(server.v4())]));
    results.must_be_complete()?;
    mesh.bed.end()
}

#[test]
fn a_connection_that_comes_to_nothing_makes_an_edge() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, silent) = (mesh.pod("caller")?, mesh.server("silent")?);
    let blocked = mesh.pod("blocked")?;
    // A pod has a process for as long as it lives. Before 5.14 nothing else tells whose a connect is that was denied.
    blocked.spawn(&Cmd::new("sleep").arg("1000"))?;
    let nobody = mesh.service("nobody", None)?;
    let dropping = mesh.service("silent", Some(&silent))?;
    let (unrouted, beyond) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
    let denied = Ipv4Addr::new(203, 0, 113, 3);
    caller.unroute(&unrouted.to_string())?;
    let drop_all = ["-I", "FORWARD", "-d", &silent.v4().to_string(), "-j", "DROP"];
    mesh.bed.node()?.firewall("iptables", drop_all)?;
    let _peers = Peers::new()?.deny(denied)?.attach("peer_deny4", &mesh.bed.pods_cgroup())?;

    let observer = mesh.observe()?;
    assert_eq!(dial(&caller, "blocking", nobody.v4)?, "ECONNREFUSED");
    assert_eq!(dial(&caller, "blocking", nobody.v6)?, "ECONNREFUSED");
    assert!(dial(&caller, "blocking", unrouted)?.ends_with("UNREACH"));
    assert_eq!(dial(&caller, "blocking", beyond)?, "ENETUNREACH", "the node has no route");
    assert_eq!(dial(&caller, "blocking", denied)?, "EPERM");
    // Of this pod the kernel shows no other socket, so nothing but its namespace tells whose it is.
    assert_eq!(dial(&blocked, "blocking", denied)?, "EPERM");
    assert_eq!(dial(&caller, "impatient", dropping.v4)?, "TimedOut");
    assert_eq!(dial(&caller, "abandoned", silent.v4())?, "ok");

    let results = observer.stop()?;
    let expected: [IpAddr; 7] = [
        nobody.v4.into(),
        nobody.v6.into(),
        unrouted.into(),
        beyond.into(),
        denied.into(),
        dropping.v4.into(),
        silent.v4().into(),
    ];
    assert_eq!(results.destinations("caller")?, BTreeSet::from(expected.map(port_80)));
    assert_eq!(results.destinations("blocked")?, BTreeSet::from([port_80(denied)]));
    results.must_be_complete()?;
    let sidecar = results.sidecars()["default/caller.yaml"];
    for service in ["nobody", "silent"] {
        assert!(sidecar.contains(&format!("\"*/{service}.default.svc.cluster.local\"")), "{sidecar}");
    }
    mesh.bed.end()
}

#[test]
fn every_way_to_connect_makes_an_edge() -> Result<()> {
    let mut mesh = Mesh::new()?;
    // One target for each way, so that no edge stands for two of them.
    let ways =
        ["blocking", "nonblocking", "abandoned", "mapped", "fast-open", "fast-open-connect", "io-uring"];
    let caller = mesh.pod("caller")?;
    let server = mesh.server("server")?;
    let names: [&'static str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let mut services = Vec::new();
    for name in names {
        services.push(mesh.bed.add_service(
            name,
            &[sidescope_tests::ServicePort::tcp("tcp", 80)],
            &[&server],
        )?);
    }
    let observer = mesh.observe()?;
    let mut expected = BTreeSet::new();
    for (how, service) in ways.into_iter().zip(&services) {
        assert_eq!(dial(&caller, how, service.v4)?, "ok", "{how}");
        expected.insert(port_80(service.v4));
        if how != "mapped" {
            assert_eq!(dial(&caller, how, service.v6)?, "ok", "{how} with IPv6");
            expected.insert(port_80(service.v6));
        }
    }
    let results = observer.stop()?;
    assert_eq!(results.destinations("caller")?, expected);
    results.must_be_complete()?;
    mesh.bed.end()
}
