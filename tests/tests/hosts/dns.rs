//! Plain TCP to addresses outside the mesh: a name that the workload had asked for tells whose they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use sidescope_tests::{Cmd, Host};

use crate::fixture::{Mesh, Observer, Results, SOON, TESTBED, list};

const ENTRIES: &str = "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: default}
spec:
  hosts: [db.example.test, shop.example.test]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 80, name: tcp, protocol: TCP}]
";

/// How each port 80 dependency of a workload was learnt.
fn evidence(results: &Results, workload: &str) -> Result<BTreeMap<String, Vec<Value>>> {
    let mut nodes = list(&results.graph["workloads"]).iter();
    let node = nodes.find(|node| node["workload"]["name"] == workload).context("no workload")?;
    let dependencies = list(&node["dependencies"]).iter();
    let evidence = dependencies.map(|dependency| {
        let host = dependency["host"].as_str().unwrap_or_default().to_owned();
        (host, list(&dependency["ports"]["80"]["seen"]).to_vec())
    });
    Ok(evidence.collect())
}

fn unresolved(results: &Results, workload: &str) -> Vec<IpAddr> {
    let ours = list(&results.graph["unresolved"]).iter().filter(|edge| edge["workload"]["name"] == workload);
    ours.filter_map(|edge| edge["address"].as_str()?.parse().ok()).collect()
}

fn start(host: &Host, cmd: &Cmd, port: u16) -> Result<()> {
    let process = host.spawn(cmd)?;
    host.wait_listening(port, &process, SOON)
}

fn ask(host: &Host, how: &str, server: &str, name: &str, v6: bool) -> Result<IpAddr> {
    let mut cmd = Cmd::new(TESTBED).args(["ask", how, server, name, "80"]);
    if v6 {
        cmd = cmd.arg("--v6");
    }
    Ok(String::from_utf8(host.run(&cmd)?.stdout)?.trim().parse()?)
}

#[test]
fn an_external_address_is_attributed_to_the_name_it_was_asked_by() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (server, database) = (mesh.bed.add_outsider("dns")?, mesh.bed.add_outsider("database")?);
    crate::fixture::greet(&database)?;
    let records = [
        format!("db.example.test={}", database.v4()),
        format!("db.example.test={}", database.v6()),
        "shop.example.test=edge.cdn.test".to_owned(),
        "edge.cdn.test=node.cdn.test".to_owned(),
        format!("node.cdn.test={}", database.v4()),
    ];
    start(&server, &Cmd::new(TESTBED).args(["answer", "53"]).args(&records), 53)?;
    let (v4, v6) = (format!("{}:53", server.v4()), format!("[{}]:53", server.v6()));
    let ways = [
        ("udp", "udp", &v4, "db.example.test", false),
        ("udp-six", "udp", &v6, "db.example.test", true),
        ("connected", "udp-connected", &v4, "db.example.test", true),
        ("connected-six", "udp-connected", &v6, "db.example.test", false),
        ("tcp", "tcp", &v4, "db.example.test", false),
        ("tcp-six", "tcp", &v6, "db.example.test", true),
        ("chain", "udp-connected", &v4, "shop.example.test", false),
        ("proxied", "udp-connected", &v4, "db.example.test", false),
        ("proxied-tcp", "tcp", &v4, "db.example.test", false),
    ];
    let mut pods = Vec::new();
    for (pod, ..) in ways {
        pods.push(mesh.pod(pod)?);
    }
    let silent = mesh.pod("silent")?;
    for pod in &pods[7..] {
        // As Istio's DNS proxy: all questions but its own go to it.
        start(pod, &Cmd::new(TESTBED).args(["forward", "15053", &v4]).uid(1337), 15053)?;
        for protocol in ["udp", "tcp"] {
            let rule = ["-t", "nat", "-A", "OUTPUT", "-p", protocol, "--dport", "53", "-m", "owner", "!"];
            let to_proxy = ["--uid-owner", "1337", "-j", "REDIRECT", "--to-ports", "15053"];
            pod.firewall("iptables", rule.into_iter().chain(to_proxy))?;
        }
    }

    let inventory = format!("{}---{ENTRIES}", mesh.inventory()?);
    let observer = Observer::start(&mesh.bed, &mesh.bed.pods_cgroup(), &inventory)?;
    let mut addresses = Vec::new();
    for ((_, how, to, name, six), pod) in ways.iter().zip(&pods) {
        addresses.push(ask(pod, how, to, name, *six).with_context(|| pod.name().to_owned())?);
    }
    assert_eq!(crate::fixture::dial(&silent, "blocking", database.v4())?, "ok");
    assert_eq!(crate::fixture::dial(&pods[0], "blocking", database.v6())?, "ok");
    let results = observer.stop()?;

    for ((pod, _, _, name, _), address) in ways.iter().zip(&addresses) {
        assert_eq!(
            *address,
            if address.is_ipv4() { IpAddr::V4(database.v4()) } else { database.v6().into() }
        );
        let seen = evidence(&results, pod)?;
        let expect = vec![serde_json::json!({ "address": address }), serde_json::json!({ "dnsName": name })];
        assert_eq!(seen, BTreeMap::from([((*name).to_owned(), expect)]), "{pod}");
    }
    // Neither another pod's question nor one for the other family counts.
    assert_eq!(unresolved(&results, "silent"), [IpAddr::V4(database.v4())]);
    assert_eq!(unresolved(&results, "udp"), [IpAddr::V6(database.v6())]);
    results.must_be_complete()?;
    mesh.bed.end()
}
