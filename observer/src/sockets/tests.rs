use netlink_packet_sock_diag::constants::{TCP_CLOSE_WAIT, TCP_ESTABLISHED, TCP_LISTEN, TCP_TIME_WAIT};

use super::*;

/// A socket as the kernel writes it: struct inet_diag_msg.
struct Message {
    family: u8,
    state: u8,
    local: &'static str,
    peer: &'static str,
    inode: u32,
    attributes: Vec<u8>,
}

impl Message {
    fn test() -> Self {
        Self {
            family: 2,
            state: TCP_ESTABLISHED,
            local: "10.0.0.1:40000",
            peer: "10.96.0.10:80",
            inode: 7,
            attributes: Vec::new(),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let octets = |address: IpAddr| {
            let mut bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            bytes.resize(16, 0);
            bytes
        };
        let [local, peer] = [self.local, self.peer].map(|text| text.parse::<std::net::SocketAddr>().unwrap());
        let mut bytes = vec![self.family, self.state, 0, 0];
        bytes.extend(local.port().to_be_bytes());
        bytes.extend(peer.port().to_be_bytes());
        bytes.extend(octets(local.ip()));
        bytes.extend(octets(peer.ip()));
        bytes.extend([0; 4]); // interface
        bytes.extend(0x0123_4567_89ab_cdef_u64.to_ne_bytes());
        bytes.extend([0; 12]); // expires, queues
        bytes.extend(1000u32.to_ne_bytes());
        bytes.extend(self.inode.to_ne_bytes());
        bytes.extend(&self.attributes);
        bytes
    }
}

fn at(text: &str) -> (IpAddr, u16) {
    let address: std::net::SocketAddr = text.parse().unwrap();
    (address.ip(), address.port())
}

fn socket(address: &str) -> Socket {
    let (address, port) = at(address);
    Socket { uid: 1000, address, port, cookie: 0x0123_4567_89ab_cdef, state: State::Established }
}

#[test]
fn sockets_are_read_with_all_that_tells_them() {
    let v4 = Message::test();
    assert_eq!(
        decode(&v4.bytes()),
        Ok(Entry::Connected { local: at("10.0.0.1:40000"), socket: socket("10.96.0.10:80") })
    );
    let v6 = Message { family: 10, local: "[fd00::1]:4", peer: "[fd00::2]:81", ..Message::test() };
    assert_eq!(
        decode(&v6.bytes()),
        Ok(Entry::Connected { local: at("[fd00::1]:4"), socket: socket("[fd00::2]:81") })
    );
    let mapped = Message {
        family: 10,
        local: "[::ffff:10.0.0.1]:5",
        peer: "[::ffff:10.0.0.2]:82",
        state: TCP_CLOSE_WAIT,
        ..Message::test()
    };
    assert_eq!(
        decode(&mapped.bytes()),
        Ok(Entry::Connected {
            local: at("10.0.0.1:5"),
            socket: Socket { state: State::CloseWait, ..socket("10.0.0.2:82") }
        })
    );
}

#[test]
fn what_no_program_holds_or_nobody_asked_for_is_told_apart() {
    assert_eq!(decode(&Message { inode: 0, ..Message::test() }.bytes()), Ok(Entry::Orphan));
    assert_eq!(decode(&Message { state: TCP_TIME_WAIT, ..Message::test() }.bytes()), Ok(Entry::Other));
}

#[test]
fn listeners_are_read_with_their_attribute() {
    let shutdown: [u8; 8] = attribute(8, 0);
    for (attributes, v6_only) in [
        (shutdown.to_vec(), false),
        ([shutdown, attribute(V6_ONLY, 0)].concat(), false),
        ([shutdown, attribute(V6_ONLY, 1)].concat(), true),
    ] {
        let message = Message {
            family: 10,
            state: TCP_LISTEN,
            local: "[::]:80",
            peer: "[::]:0",
            attributes,
            ..Message::test()
        };
        let (address, port) = at("[::]:80");
        assert_eq!(decode(&message.bytes()), Ok(Entry::Listener(Listener { address, port, v6_only })));
    }
}

/// A netlink attribute with a one-byte value, padded.
fn attribute(kind: u16, value: u8) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&5u16.to_ne_bytes());
    bytes[2..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4] = value;
    bytes
}

#[test]
fn what_is_cut_short_or_of_another_family_is_malformed() {
    let bytes = Message::test().bytes();
    for len in 0..bytes.len() {
        assert_eq!(decode(&bytes[..len]), Err(Malformed), "{len} bytes");
    }
    assert_eq!(decode(&Message { family: 1, ..Message::test() }.bytes()), Err(Malformed));
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_are_read_or_refused(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = decode(&bytes);
    }
}

#[test]
fn accepted_sockets_are_those_on_a_listener() {
    #[rustfmt::skip]
    let table = [
        // listener, IPv6 only, local address of the socket, accepted
        ("0.0.0.0:80", false, "10.0.0.1:80", true),
        ("0.0.0.0:80", false, "10.0.0.1:81", false),
        ("0.0.0.0:80", false, "[fd00::1]:80", false),
        ("[::]:80", false, "[fd00::1]:80", true),
        ("[::]:80", false, "10.0.0.1:80", true),
        ("[::]:80", true, "[fd00::1]:80", true),
        ("[::]:80", true, "10.0.0.1:80", false),
        ("10.0.0.1:80", false, "10.0.0.1:80", true),
        ("10.0.0.1:80", false, "10.0.0.2:80", false),
        ("[fd00::1]:80", false, "[fd00::1]:80", true),
        ("[fd00::1]:80", true, "[fd00::1]:80", true),
        ("[fd00::1]:80", false, "[fd00::2]:80", false),
        ("127.0.0.1:80", false, "10.0.0.1:80", false),
        // Bound to the port of a listener and connected from there: not to be told from an accepted one.
        ("0.0.0.0:40000", false, "10.0.0.1:40000", true),
    ];
    for (listener, v6_only, local, accepted) in table {
        let (address, port) = at(listener);
        let mut listeners = Listeners::default();
        assert!(listeners.add(Listener { address, port, v6_only }));
        assert_eq!(listeners.accepted(at(local)), accepted, "{listener} (v6 only: {v6_only}), {local}");
        let socket = socket("10.96.0.10:80");
        assert_eq!(outgoing(at(local), socket.clone(), &listeners), (!accepted).then_some(socket));
    }
}

#[test]
fn loopback_is_nowhere_else() {
    let none = Listeners::default();
    for destination in ["127.0.0.1:80", "127.3.2.1:80", "[::1]:80", "0.0.0.0:80"] {
        assert_eq!(outgoing(at("127.0.0.1:40000"), socket(destination), &none), None, "{destination}");
    }
}

#[test]
fn listeners_are_bounded() {
    let mut listeners = Listeners::default();
    for i in 0..MAX_LISTENERS {
        let port = u16::try_from(i).unwrap();
        assert!(listeners.add(Listener { address: IpAddr::from([10, 0, 0, 1]), port, v6_only: false }));
    }
    let one_more = Listener { address: IpAddr::from([10, 0, 0, 2]), port: 1, v6_only: false };
    assert!(!listeners.add(one_more));
}
