//! ClusterIPs: the rules of the node's firewall that stand for kube-proxy. Rendering is pure; all rules are replaced at once.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address::SERVICES;

/// A service with its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its ClusterIP.
    pub v4: Ipv4Addr,
    /// Its second ClusterIP.
    pub v6: Ipv6Addr,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// The addresses of those who serve it.
    pub endpoints: Vec<(Ipv4Addr, Ipv6Addr)>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name, by which Istio knows the protocol.
    pub name: String,
    /// The port that clients call.
    pub port: u16,
    /// The port that the endpoints listen on.
    pub target: u16,
    /// What runs over it.
    pub protocol: Protocol,
}

impl ServicePort {
    /// A TCP port that is the same on both sides.
    pub fn tcp(name: &str, port: u16) -> Self {
        Self { name: name.to_owned(), port, target: port, protocol: Protocol::Tcp }
    }
}

/// What a service is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams, as for DNS.
    Udp,
}

impl Protocol {
    fn rule(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    fn of<'a>(self, v4: &'a Ipv4Addr, v6: &'a Ipv6Addr) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(*v4),
            Self::V6 => IpAddr::V6(*v6),
        }
    }
}

/// The input of `iptables-restore` (or `ip6tables-restore`) that makes these services, and no others.
///
/// Endpoints take turns instead of being drawn: the same run gives the same connections.
pub(crate) fn rules(services: &[&Service], family: Family) -> String {
    let mut nat = String::from(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :SERVICES - [0:0]\n-A PREROUTING -j SERVICES\n-A OUTPUT -j SERVICES\n",
    );
    for service in services {
        let cluster_ip = family.of(&service.v4, &service.v6);
        for port in &service.ports {
            let (protocol, front) = (port.protocol.rule(), port.port);
            for (index, (v4, v6)) in service.endpoints.iter().enumerate() {
                let left = service.endpoints.len() - index;
                let turn = match left {
                    1 => String::new(),
                    _ => format!(" -m statistic --mode nth --every {left} --packet 0"),
                };
                let target = match family.of(v4, v6) {
                    IpAddr::V4(address) => format!("{address}:{}", port.target),
                    IpAddr::V6(address) => format!("[{address}]:{}", port.target),
                };
                // Writing to a string cannot fail.
                writeln!(nat, "-A SERVICES -d {cluster_ip} -p {protocol} --dport {front}{turn} -j DNAT --to-destination {target}").ok();
            }
        }
        // Who calls himself through the service must see a foreign sender, or the answer never leaves him.
        for (v4, v6) in &service.endpoints {
            let address = family.of(v4, v6);
            writeln!(nat, "-A POSTROUTING -s {address} -d {address} -j MASQUERADE").ok();
        }
    }
    // What is still addressed to a ClusterIP here found no endpoint.
    let (network, kind) = match family {
        Family::V4 => (SERVICES[0], "icmp-port-unreachable"),
        Family::V6 => (SERVICES[1], "icmp6-port-unreachable"),
    };
    format!(
        "{nat}COMMIT\n*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         -A FORWARD -d {network} -j REJECT --reject-with {kind}\n-A OUTPUT -d {network} -j REJECT --reject-with {kind}\nCOMMIT\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_share_the_connections_evenly() {
        let service = Service {
            name: "a".to_owned(),
            v4: Ipv4Addr::new(10, 96, 0, 11),
            v6: "fd00:10:96::b".parse().unwrap(),
            ports: vec![ServicePort::tcp("http", 80)],
            endpoints: [2, 3]
                .map(|n| (Ipv4Addr::new(10, 244, 0, n), format!("fd00::{n}").parse().unwrap()))
                .to_vec(),
        };
        let text = rules(&[&service], Family::V6);
        let dnat: Vec<&str> = text.lines().filter(|line| line.contains("DNAT")).collect();
        assert_eq!(
            dnat,
            [
                "-A SERVICES -d fd00:10:96::b -p tcp --dport 80 -m statistic --mode nth --every 2 --packet 0 -j DNAT --to-destination [fd00::2]:80",
                "-A SERVICES -d fd00:10:96::b -p tcp --dport 80 -j DNAT --to-destination [fd00::3]:80",
            ]
        );
    }

    #[test]
    fn a_service_without_endpoints_has_no_rule_of_its_own_and_is_refused() {
        let text = rules(&[], Family::V4);
        assert!(!text.contains("DNAT"));
        assert!(text.contains("-A FORWARD -d 10.96.0.0/16 -j REJECT --reject-with icmp-port-unreachable"));
    }
}
