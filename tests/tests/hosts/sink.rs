//! A client that sends what it is told to a sink behind a Service. Each case has a port of its own, so that each is an edge.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use serde_json::Value;
use sidescope_tests::inventory;
use sidescope_tests::tcp::Message;
use sidescope_tests::{Cmd, Host, Service, ServicePort};

use crate::fixture::{Mesh, Results, SOON, TESTBED, list};

const FIRST_PORT: u16 = 2001;

/// What is sent on one connection, and what must come of it.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    /// Where packets end.
    pub(crate) cuts: Vec<usize>,
    pub(crate) expect: Expect,
}

/// What the graph says of an edge.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Expect {
    pub(crate) hosts: BTreeSet<String>,
    pub(crate) unknown: bool,
}

impl Expect {
    pub(crate) fn hosts<'a>(hosts: impl IntoIterator<Item = &'a str>) -> Self {
        Self { hosts: hosts.into_iter().map(str::to_owned).collect(), unknown: false }
    }

    pub(crate) fn and_unknown(self) -> Self {
        Self { unknown: true, ..self }
    }
}

pub(crate) struct Sink {
    pub(crate) mesh: Mesh,
    pub(crate) client: Host,
    pub(crate) service: Service,
}

impl Sink {
    /// A sink with a port for each of so many cases.
    pub(crate) fn new(cases: usize) -> Result<Self> {
        let mut mesh = Mesh::new()?;
        let (client, server) = (mesh.pod("client")?, mesh.pod("sink")?);
        let process = server.spawn(&Cmd::new(TESTBED).args(["sink", "80"]))?;
        server.wait_listening(80, &process, SOON)?;
        let port = |number| {
            let port = FIRST_PORT + number as u16;
            ServicePort { target: 80, ..ServicePort::tcp(&format!("tcp-{port}"), port) }
        };
        let ports: Vec<ServicePort> = (0..cases).map(port).collect();
        let service = mesh.bed.add_service("sink", &ports, &[&server])?;
        Ok(Self { mesh, client, service })
    }

    pub(crate) fn inventory(&self) -> Result<String> {
        let service = inventory::service("default", &self.service, &[("app", "sink")], std::iter::empty());
        Ok(format!("{}---\n{}", self.mesh.inventory()?, inventory::list(service)?))
    }

    /// Sends cases, of which the first is the one with this number.
    pub(crate) fn send(&self, number: usize, cases: &[Case]) -> Result<()> {
        let ports = FIRST_PORT + number as u16..;
        let messages = ports.zip(cases).map(|(port, case)| -> Message {
            (SocketAddr::new(self.service.v4.into(), port), case.bytes.clone(), case.cuts.clone())
        });
        let messages = serde_json::to_vec(&messages.collect::<Vec<_>>())?;
        self.client.run(&Cmd::new(TESTBED).arg("send-all").stdin(messages)).map(drop)
    }

    /// Sends each of these on a connection of its own, all to the port of this case.
    pub(crate) fn send_to_one(&self, number: usize, bytes: impl Iterator<Item = Vec<u8>>) -> Result<()> {
        let address = SocketAddr::new(self.service.v4.into(), FIRST_PORT + number as u16);
        let messages: Vec<Message> = bytes.map(|bytes| (address, bytes, Vec::new())).collect();
        self.client.run(&Cmd::new(TESTBED).arg("send-all").stdin(serde_json::to_vec(&messages)?)).map(drop)
    }

    /// What sends a case from its standard input, to be run by the client.
    pub(crate) fn command(&self, number: usize, case: &Case) -> Cmd {
        let address = format!("{}:{}", self.service.v4, FIRST_PORT + number as u16);
        let mut cmd = Cmd::new(TESTBED).args(["send", &address]);
        if !case.cuts.is_empty() {
            let cuts: Vec<String> = case.cuts.iter().map(usize::to_string).collect();
            cmd = cmd.args(["--cuts", &cuts.join(",")]);
        }
        cmd
    }
}

/// What the graph says of each case, by its port.
pub(crate) fn seen(results: &Results) -> Result<BTreeMap<u64, Expect>> {
    let mut found = BTreeMap::new();
    let nodes = list(&results.graph["workloads"]).iter();
    for node in nodes.filter(|node| node["workload"]["name"] == "client") {
        for dependency in list(&node["dependencies"]) {
            for (port, used) in dependency["ports"].as_object().context("no ports")? {
                let hosts = list(&used["unknownHosts"]).iter().filter_map(Value::as_str);
                let unknown = used["hostUnknown"] == true;
                found.insert(port.parse()?, Expect { unknown, ..Expect::hosts(hosts) });
            }
        }
    }
    Ok(found)
}

/// Sends all cases and compares what comes of each.
pub(crate) fn check(cases: &[Case]) -> Result<Results> {
    let sink = Sink::new(cases.len())?;
    let observer =
        crate::fixture::Observer::start(&sink.mesh.bed, &sink.mesh.bed.pods_cgroup(), &sink.inventory()?)?;
    sink.send(0, cases)?;
    compare(sink, cases, observer.stop()?)
}

/// Compares what came of all cases, and ends the bed.
pub(crate) fn compare(sink: Sink, cases: &[Case], results: Results) -> Result<Results> {
    let mut seen = seen(&results)?;
    let mut wrong = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let found = seen.remove(&(u64::from(FIRST_PORT) + number as u64));
        if found.as_ref() != Some(&case.expect) {
            wrong.push(format!("{}: {found:?}, not {:?}", case.name, case.expect));
        }
    }
    assert!(wrong.is_empty(), "{}\nlosses: {}", wrong.join("\n"), results.graph["losses"]);
    assert!(seen.is_empty(), "{seen:?}");
    sink.mesh.bed.end()?;
    Ok(results)
}

/// Cuts at every byte from one place on.
pub(crate) fn each_byte(from: usize, bytes: &[u8]) -> Vec<usize> {
    (from.max(1)..bytes.len()).collect()
}
