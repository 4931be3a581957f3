//! Which protocol istiod takes a port for.

use crate::model::mesh::PortProtocol;

/// Ports that istiod takes for TCP where neither `appProtocol` nor the name says anything, because sniffing breaks protocols
/// in which the server speaks first: SMTP, DNS, MySQL, MongoDB (istio `pkg/config/kube/conversion.go`).
const SERVER_SPEAKS_FIRST: [u16; 4] = [25, 53, 3306, 27017];

/// Protocol of a Service's port. `transport` is the port's `protocol`: TCP, UDP or SCTP (istio `ConvertProtocol`).
pub(super) fn of_service_port(
    port: u16,
    name: &str,
    transport: &str,
    app_protocol: Option<&str>,
) -> PortProtocol {
    if transport == "UDP" {
        return PortProtocol::Udp;
    }
    // Kubernetes' own names count in `appProtocol` only; a port's name cannot hold a slash.
    match app_protocol {
        Some("kubernetes.io/h2c" | "kubernetes.io/ws") => return PortProtocol::Http,
        Some("kubernetes.io/wss") => return PortProtocol::Tls,
        _ => {}
    }
    let name = app_protocol.unwrap_or(name);
    // "grpc-web" needs no case of its own: cut off at the dash it is "grpc", which is HTTP as well.
    let prefix = name.split_once('-').map_or(name, |(prefix, _)| prefix);
    match by_name(prefix) {
        PortProtocol::Unknown if SERVER_SPEAKS_FIRST.contains(&port) => PortProtocol::Tcp,
        protocol => protocol,
    }
}

/// Protocol by its name alone, as a ServiceEntry's port gives it (istio `pkg/config/protocol`, `Parse`: case does not matter).
pub(super) fn by_name(name: &str) -> PortProtocol {
    match name.to_ascii_lowercase().as_str() {
        "http" | "http2" | "http_proxy" | "grpc" | "grpc-web" => PortProtocol::Http,
        "https" | "tls" => PortProtocol::Tls,
        "tcp" | "mongo" | "mysql" | "redis" => PortProtocol::Tcp,
        "udp" => PortProtocol::Udp,
        _ => PortProtocol::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PortProtocol::{Http, Tcp, Tls, Udp, Unknown};

    #[test]
    fn ports_have_the_protocol_that_istiod_reads() {
        for (port, name, transport, app, expected) in [
            (80, "http", "TCP", None, Http),
            (80, "http-web", "TCP", None, Http),
            (80, "HTTP-web", "TCP", None, Http),
            (80, "httpweb", "TCP", None, Unknown),
            (80, "web-http", "TCP", None, Unknown),
            (80, "http2", "TCP", None, Http),
            (80, "grpc-api", "TCP", None, Http),
            (80, "grpc-web", "TCP", None, Http),
            (80, "grpc-web-x", "TCP", None, Http),
            (443, "https", "TCP", None, Tls),
            (443, "tls-x", "TCP", None, Tls),
            (9000, "tcp-x", "TCP", None, Tcp),
            (9000, "mongo", "TCP", None, Tcp),
            (9000, "mysql-db", "TCP", None, Tcp),
            (9000, "redis", "TCP", None, Tcp),
            (80, "", "TCP", None, Unknown),
            (80, "metrics", "TCP", None, Unknown),
            (53, "http", "UDP", Some("http"), Udp),
            (53, "udp-x", "TCP", None, Udp),
            (3306, "", "TCP", None, Tcp),
            (27017, "db", "TCP", None, Tcp),
            (25, "smtp", "TCP", None, Tcp),
            (53, "dns-tcp", "TCP", None, Tcp),
            (3306, "http", "TCP", None, Http),
            (6379, "", "TCP", None, Unknown),
            (80, "tcp", "TCP", Some("http"), Http),
            (80, "http", "TCP", Some("other"), Unknown),
            (3306, "http", "TCP", Some("other"), Tcp),
            (80, "", "TCP", Some("kubernetes.io/h2c"), Http),
            (80, "", "TCP", Some("kubernetes.io/ws"), Http),
            (80, "", "TCP", Some("kubernetes.io/wss"), Tls),
        ] {
            assert_eq!(
                of_service_port(port, name, transport, app),
                expected,
                "{port} {name:?} {transport} {app:?}"
            );
        }
    }

    #[test]
    fn a_service_entry_names_the_protocol_in_full() {
        for (name, expected) in [
            ("HTTPS", Tls),
            ("TLS", Tls),
            ("HTTP", Http),
            ("GRPC-Web", Http),
            ("TCP", Tcp),
            ("Mongo", Tcp),
            ("http-web", Unknown),
            ("", Unknown),
        ] {
            assert_eq!(by_name(name), expected, "{name:?}");
        }
    }
}
