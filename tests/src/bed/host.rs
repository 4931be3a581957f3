//! One namespace of a bed, and how it is joined to the others.

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use super::address::{GATEWAY, OUTSIDE, PODS, SERVICES};
use super::process::{Proc, placed};
use super::services::{Family, Service, rules};
use super::{Inner, NODE_V4, NODE_V6};
use crate::cmd::{self, Cmd};
use crate::wait::wait_for;

/// A namespace of a bed: a pod, the node, or a host outside the mesh.
#[derive(Clone)]
pub struct Host {
    inner: Arc<Inner>,
    data: Arc<HostData>,
}

pub(crate) struct HostData {
    pub(crate) name: String,
    pub(crate) netns: String,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) cgroup: PathBuf,
    /// Its user namespace, where it has one of its own.
    pub(crate) users: Option<PathBuf>,
}

impl Host {
    pub(crate) fn new(inner: &Arc<Inner>, data: &Arc<HostData>) -> Self {
        Self { inner: Arc::clone(inner), data: Arc::clone(data) }
    }

    /// Its name in the bed.
    pub fn name(&self) -> &str {
        &self.data.name
    }

    /// The name of its namespace, as `ip netns list` shows it.
    pub fn netns(&self) -> &str {
        &self.data.netns
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.data.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        self.data.v6
    }

    /// The cgroup that its processes are in.
    pub fn cgroup(&self) -> &Path {
        &self.data.cgroup
    }

    /// Starts a process here. It ends with the bed at the latest.
    pub fn spawn(&self, cmd: &Cmd) -> Result<Proc> {
        self.inner.spawn(Some(&self.data), cmd).with_context(|| format!("in {}", self.data.netns))
    }

    /// Runs a command here to its end; an exit code other than 0 is an error with command line and standard error.
    pub fn run(&self, cmd: &Cmd) -> Result<Output> {
        let placed = placed(Some(&self.data), cmd);
        let mut command = placed.command();
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if cmd.stdin.is_some() {
            command.stdin(Stdio::piped());
        }
        let start = || {
            // Only the start needs the bed to be there: waiting under its lock would stop everyone else.
            let _open = self.inner.open()?;
            cmd::spawn(command).with_context(|| format!("cannot start `{}`", cmd.line()))
        };
        start().and_then(|child| cmd.finish(child)).with_context(|| format!("in {}", self.data.netns))
    }

    /// Makes a network unreachable from here (no route), so that a connect fails before anything is sent.
    pub fn unroute(&self, network: &str) -> Result<()> {
        self.run(&Cmd::new("ip").args(["route", "add", "unreachable", network])).map(drop)
    }

    /// Changes the firewall here, by `iptables` or `ip6tables`.
    pub fn firewall<'a>(&self, program: &str, change: impl IntoIterator<Item = &'a str>) -> Result<()> {
        self.run(&Cmd::new(program).arg(WAIT).args(change)).map(drop)
    }

    /// Waits until a process listens on a TCP port here. `process` is who should: its end ends the wait.
    pub fn wait_listening(&self, port: u16, process: &Proc, timeout: Duration) -> Result<()> {
        let what = format!("port {port} in {}", self.data.netns);
        wait_for(&what, timeout, || {
            process.must_run()?;
            Ok(self.sockets(process).is_some_and(|sockets| listens(&sockets, port)).then_some(()))
        })
    }

    /// The TCP sockets of this namespace as a process shows them that is in it; none before it is there, or when it has ended.
    fn sockets(&self, process: &Proc) -> Option<String> {
        let of_process = Path::new("/proc").join(process.pid().to_string());
        let namespace = |path: &Path| fs::metadata(path).ok().map(|meta| meta.ino());
        let here = namespace(&Path::new("/run/netns").join(&self.data.netns));
        if here.is_none() || namespace(&of_process.join("ns/net")) != here {
            return None;
        }
        let [v4, v6] = ["net/tcp", "net/tcp6"].map(|table| fs::read_to_string(of_process.join(table)));
        Some(v4.ok()? + &v6.ok()?)
    }
}

/// Whether /proc/net/tcp has a socket in the state LISTEN (0A) on this port.
fn listens(sockets: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|local| local.ends_with(&end)) && fields.nth(1) == Some("0A")
    })
}

/// The older iptables have one lock for all namespaces of the machine, and fail where they are not told to wait for it.
const WAIT: &str = "--wait";

/// Settings that links take over when they are made. Addresses are ours to give, so nobody looks for duplicates: while a bridge
/// does that with its link-local address it asks for no neighbour, and the first seconds lose packets.
const FROM_THE_FIRST_PACKET: [(&str, &str); 4] = [
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/dad_transmits", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/default/accept_redirects", "0"),
];

/// How long the kernel may take for what it does after it has said that a link or an address is there.
const READY: Duration = Duration::from_secs(10);

/// Makes the node: bridge, gateway, forwarding, and a route for ClusterIPs, without which none would get as far as the rules.
pub(crate) fn make_node(node: &HostData) -> Result<()> {
    add_netns(node)?;
    sysctl(node, &FROM_THE_FIRST_PACKET)?;
    let mut batch = String::from(
        // A fixed hardware address: a bridge otherwise takes a new one from its ports, and the pods' caches are wrong then.
        "link set lo up\n\
         link add br0 address 02:00:00:00:00:01 type bridge stp_state 0 forward_delay 0 mcast_snooping 0\n",
    );
    for (network, gateway) in PODS.into_iter().zip([GATEWAY.0.to_string(), GATEWAY.1.to_string()]) {
        let bits = network.rsplit('/').next().unwrap_or_default();
        writeln!(batch, "addr add {gateway}/{bits} dev br0{}", nodad(&gateway))?;
    }
    writeln!(batch, "addr add {NODE_V4}/32 dev lo\naddr add {NODE_V6}/128 dev lo nodad\nlink set br0 up")?;
    for network in OUTSIDE.into_iter().chain(SERVICES) {
        writeln!(batch, "route add {network} dev br0")?;
    }
    ip_batch(node, batch)?;
    sysctl(
        node,
        &[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // Packets leave by the bridge that they came from; nobody shall be told a shorter way.
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/br0/send_redirects", "0"),
            // Every refusal is told: a test must not wait for a timeout because the one before was refused too.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ],
    )?;
    // Where this module is loaded it runs the rules on the bridge already and hands packets on past the node's routing, and
    // what a pod sends to itself through a service is lost. The setting is the namespace's own.
    for name in ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"] {
        if Path::new("/proc/sys/net").join(name).exists() {
            sysctl(node, &[(name, "0")])?;
        }
    }
    program(node, &[])
}

/// What a lone host holds to be itself: four million addresses.
pub const LONE_NETWORK: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 10);

/// Makes a host that is joined to nothing. Its own address is the source of what it sends, whatever the destination.
pub(crate) fn make_lone(host: &HostData) -> Result<()> {
    add_netns(host)?;
    let ((network, bits), v4, v6) = (LONE_NETWORK, host.v4, host.v6);
    ip_batch(
        host,
        format!(
            "addr add {v4}/32 dev lo\n\
             addr add {v6}/128 dev lo nodad\n\
             link set lo up\n\
             route add local {network}/{bits} dev lo table local src {v4}\n"
        ),
    )?;
    wait_own(host)?;
    // Ports for many connections; none of them is ever sent to another machine.
    sysctl(host, &[("ipv4/ip_local_port_range", "2048\t65000")])
}

/// Joins a host to the node's bridge. Its namespace is made already where it has users of its own.
pub(crate) fn join(node: &HostData, host: &HostData, number: usize) -> Result<()> {
    if host.users.is_none() {
        add_netns(host)?;
    }
    let (v4, v6, netns) = (host.v4, host.v6, &host.netns);
    sysctl(host, &FROM_THE_FIRST_PACKET)?;
    ip_batch(
        node,
        format!(
            "link add v{number} type veth peer name eth0 netns {netns}\n\
             link set v{number} master br0 up\n"
        ),
    )?;
    ip_batch(
        host,
        format!(
            "link set lo up\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {}/32 dev eth0\n\
             route add {}/128 dev eth0\n\
             route add 0.0.0.0/0 via {} dev eth0\n\
             route add ::/0 via {} dev eth0\n",
            GATEWAY.0, GATEWAY.1, GATEWAY.0, GATEWAY.1
        ),
    )?;
    wait_up(node, &format!("v{number}"))?;
    // Up with the first of its ports.
    wait_up(node, "br0")?;
    wait_up(host, "eth0")?;
    wait_own(host)
}

/// Waits until a link takes packets. The kernel sees to that after it has said that the link is set up, and drops what comes before.
fn wait_up(host: &HostData, link: &str) -> Result<()> {
    wait_for(&format!("link {link} in {}", host.netns), READY, || {
        let shown = Cmd::new("ip").args(["-n", &host.netns, "-o", "link", "show", link]).run()?.stdout;
        Ok(String::from_utf8_lossy(&shown).contains(" state UP ").then_some(()))
    })
}

/// Waits until a host takes what is sent to its IPv6 address: that is there a moment before the route to it.
fn wait_own(host: &HostData) -> Result<()> {
    let address = host.v6.to_string();
    wait_for(&format!("a route to {address} in {}", host.netns), READY, || {
        let route =
            Cmd::new("ip").args(["-n", &host.netns, "-6", "route", "show", "table", "local", &address]);
        Ok((!route.run()?.stdout.is_empty()).then_some(()))
    })
}

/// Puts the rules of these services in place of those that were there.
pub(crate) fn program(node: &HostData, services: &[&Service]) -> Result<()> {
    for (restore, family) in [("iptables-restore", Family::V4), ("ip6tables-restore", Family::V6)] {
        inside(node, Cmd::new(restore).arg(WAIT).stdin(rules(services, family))).run()?;
    }
    Ok(())
}

fn nodad(address: &str) -> &'static str {
    if address.contains(':') { " nodad" } else { "" }
}

fn add_netns(host: &HostData) -> Result<()> {
    Cmd::new("ip").args(["netns", "add", &host.netns]).run().map(drop)
}

fn ip_batch(host: &HostData, batch: String) -> Result<()> {
    let ip = Cmd::new("ip").args(["-n", &host.netns, "-batch", "-"]);
    ip.stdin(batch.clone()).run().with_context(|| format!("with these commands:\n{batch}")).map(drop)
}

/// Writes settings below /proc/sys/net, which shows those of the reader's namespace.
fn sysctl(host: &HostData, settings: &[(&str, &str)]) -> Result<()> {
    let script = r#"while [ $# -gt 0 ]; do echo "$2" >"/proc/sys/net/$1" || exit 1; shift 2; done"#;
    let pairs = settings.iter().flat_map(|(name, value)| [*name, *value]);
    inside(host, Cmd::new("sh").args(["-c", script, "sh"]).args(pairs)).run().map(drop)
}

/// A command in a namespace, for the making of the bed: in no cgroup of it.
fn inside(host: &HostData, cmd: Cmd) -> Cmd {
    let mut outer = Cmd::new("nsenter")
        .arg(format!("--net=/run/netns/{}", host.netns))
        .arg("--")
        .arg(&cmd.program)
        .args(&cmd.args);
    outer.stdin = cmd.stdin;
    outer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_listening_socket_on_the_port_counts() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
                     \x20  0: 00000000:2378 00000000:0000 0A 00000000:00000000\n\
                     \x20  1: 0200F40A:1F90 0300F40A:C350 01 00000000:00000000\n";
        assert!(listens(table, 9080));
        assert!(!listens(table, 8080), "connected, not listening");
        assert!(!listens(table, 0x378));
    }
}
