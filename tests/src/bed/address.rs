//! Which addresses are handed out. They are the same in every bed: each has a node of its own, so they cannot meet.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The pods' networks.
pub(crate) const PODS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/64"];
/// The networks of hosts outside the mesh.
pub(crate) const OUTSIDE: [&str; 2] = ["10.240.0.0/16", "fd00:10:240::/64"];
/// The ClusterIPs.
pub(crate) const SERVICES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];
/// The bridge's address in the pods' networks, which is everyone's gateway.
pub(crate) const GATEWAY: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 244, 0, 1), Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1));

/// Address of the pod with this number, from 1 on.
pub(crate) fn pod_v4(number: u16) -> Ipv4Addr {
    v4(244, number, 1)
}

/// Second address of that pod.
pub(crate) fn pod_v6(number: u16) -> Ipv6Addr {
    v6(0x244, number, 1)
}

/// Address of the outsider with this number, from 1 on.
pub(crate) fn outside_v4(number: u16) -> Ipv4Addr {
    v4(240, number, 1)
}

/// Second address of that outsider.
pub(crate) fn outside_v6(number: u16) -> Ipv6Addr {
    v6(0x240, number, 1)
}

/// ClusterIP of the service with this number, from 1 on. The first ten belong to the cluster itself (`kubernetes`, DNS).
pub(crate) fn service_v4(number: u16) -> Ipv4Addr {
    v4(96, number, 10)
}

/// Second ClusterIP of that service.
pub(crate) fn service_v6(number: u16) -> Ipv6Addr {
    v6(0x96, number, 10)
}

fn v4(net: u8, number: u16, after: u16) -> Ipv4Addr {
    let [high, low] = number.saturating_add(after).to_be_bytes();
    Ipv4Addr::new(10, net, high, low)
}

fn v6(net: u16, number: u16, after: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0x10, net, 0, 0, 0, 0, number.saturating_add(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lie_in_their_networks() {
        assert_eq!(pod_v4(1).to_string(), "10.244.0.2");
        assert_eq!(pod_v4(300).to_string(), "10.244.1.45");
        assert_eq!(pod_v6(1).to_string(), "fd00:10:244::2");
        assert_eq!(service_v4(1).to_string(), "10.96.0.11");
        assert_eq!(service_v6(1).to_string(), "fd00:10:96::b");
        assert_eq!(outside_v4(1).to_string(), "10.240.0.2");
    }
}
