//! Beside other people's programs on the same hooks: their effect stays, and ours sees what the application asked for.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::HashMap;
use aya::programs::{CgroupAttachMode, CgroupSockAddr, SockOps};
use sidescope_tests::{Cmd, Host, wait_for};

use crate::fixture::{Mesh, SOON, TESTBED, dial_cmd, port_80};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/peers"));

/// Programs of `tests/ebpf`, attached until this is dropped.
pub(crate) struct Peers(Ebpf);

impl Peers {
    pub(crate) fn new() -> Result<Self> {
        Ebpf::load(OBJECT).map(Self).context("cannot load the test's own programs: run the tests as root")
    }

    pub(crate) fn deny(mut self, address: Ipv4Addr) -> Result<Self> {
        let mut denied: HashMap<_, u32, u8> = HashMap::try_from(self.0.map_mut("DENIED").context("no map")?)?;
        denied.insert(in_network_order(address), 1, 0)?;
        Ok(self)
    }

    fn rewrite(mut self, from: Ipv4Addr, to: Ipv4Addr) -> Result<Self> {
        let map = self.0.map_mut("REWRITTEN").context("no map")?;
        let mut rewritten: HashMap<_, u32, u32> = HashMap::try_from(map)?;
        rewritten.insert(in_network_order(from), in_network_order(to), 0)?;
        Ok(self)
    }

    pub(crate) fn attach(mut self, program: &str, cgroup: &Path) -> Result<Self> {
        let cgroup = File::open(cgroup)?;
        let found = self.0.program_mut(program).with_context(|| format!("no program {program}"))?;
        if let Ok(program) = <&mut SockOps>::try_from(&mut *found) {
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        } else {
            let program: &mut CgroupSockAddr = found.try_into()?;
            program.load()?;
            program.attach(cgroup, CgroupAttachMode::Single)?;
        }
        Ok(self)
    }
}

fn in_network_order(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

#[test]
fn an_edge_has_the_destination_from_before_a_rewrite_at_the_root() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server) = (mesh.pod("caller")?, mesh.server("server")?);
    // No packet can reach it: an answer shows that the rewrite has worked.
    let front = Ipv4Addr::new(203, 0, 113, 7);
    for peer_is_first in [true, false] {
        let attach = || Peers::new()?.rewrite(front, server.v4())?.attach("peer_rewrite4", mesh.bed.cgroup());
        let before = peer_is_first.then(attach).transpose()?;
        let observer = mesh.observe_and_tell()?;
        let after = (!peer_is_first).then(attach).transpose()?;
        // A socket that is open when the sockets are listed shows where it was led to.
        observer.process.wait_for_log("network namespaces looked at", SOON)?;
        let output = caller.run(&Cmd::new(TESTBED).args(["connect", &port_80(front).to_string()]))?;
        assert_eq!(output.stdout, b"server");
        let results = observer.stop()?;
        assert_eq!(results.destinations("caller")?, BTreeSet::from([port_80(front)]));
        drop((before, after));
    }
    mesh.bed.end()
}

/// What `ss` says of the one connection to an address.
fn socket(host: &Host, address: Ipv4Addr, ready: impl Fn(&str) -> bool) -> Result<String> {
    wait_for(&format!("a socket to {address}"), SOON, || {
        let output =
            host.run(&Cmd::new("ss").args(["-Htino", "state", "all", "dst", &address.to_string()]))?;
        let text = String::from_utf8(output.stdout)?;
        Ok(ready(&text).then_some(text))
    })
}

/// Whether a tuner's answers count: its timeout of the first packet, and ECN for an established connection.
fn tuned(caller: &Host, server: &Host, silent: Ipv4Addr) -> Result<(bool, bool)> {
    let waiting = caller.spawn(&dial_cmd("held", port_80(silent)))?;
    let text = socket(caller, silent, |text| text.contains("rto:"))?;
    let figure = |name| text.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
    let rto: f64 = figure("rto:").context("no rto")?.parse()?;
    // The kernel doubles it with each packet that it sends again.
    let doubled: i32 = figure("backoff:").unwrap_or("0").parse()?;
    let rto = rto / f64::from(doubled).exp2();
    waiting.kill();

    let held = caller.spawn(&dial_cmd("held", port_80(server.v4())))?;
    held.wait_for_log("ok", SOON)?;
    let text = socket(caller, server.v4(), |text| text.contains("rto:"))?;
    held.kill();
    Ok((rto > 1000.0, text.split_whitespace().any(|word| word == "ecn")))
}

#[test]
fn a_tuners_answers_keep_their_effect() -> Result<()> {
    let mut mesh = Mesh::new()?;
    let (caller, server, silent) = (mesh.pod("caller")?, mesh.server("server")?, mesh.pod("silent")?);
    let drop_all = ["-I", "FORWARD", "-d", &silent.v4().to_string(), "-j", "DROP"];
    mesh.bed.node()?.firewall("iptables", drop_all)?;
    assert_eq!(tuned(&caller, &server, silent.v4())?, (false, false), "nobody tunes");

    for cgroup in [mesh.bed.pods_cgroup(), mesh.bed.cgroup().to_owned()] {
        for peer_is_first in [true, false] {
            let attach = || Peers::new()?.attach("peer_tune", &cgroup);
            let before = peer_is_first.then(attach).transpose()?;
            let observer = mesh.observe()?;
            let after = (!peer_is_first).then(attach).transpose()?;
            let place = format!("{}, first: {peer_is_first}", cgroup.display());
            assert_eq!(tuned(&caller, &server, silent.v4())?, (true, true), "{place}");
            let results = observer.stop()?;
            let expected = BTreeSet::from([server.v4(), silent.v4()].map(port_80));
            assert_eq!(results.destinations("caller")?, expected, "{place}");
            drop((before, after));
        }
    }
    mesh.bed.end()
}
