//! The binary contract between the kernel programs (`observer-ebpf`) and user space (`observer`).
//!
//! Every type here is read byte for byte on the other side, so all of them are `repr(C)`, use only
//! fixed-width integers, have no implicit padding (the kernel would compare or leak it) and assert their size.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

pub mod http2;
mod losses;

pub use losses::{ALL_NAMESPACES, Causes, Counter, loss_time};

/// Version of the layout of all maps and records in this crate; raised with every incompatible change.
///
/// Pins in bpffs carry it, so that an agent never adopts maps that it would misread.
pub const LAYOUT_VERSION: u32 = 1;

/// Names of the kernel programs and maps, as user space asks for them.
pub mod names {
    /// `cgroup/connect4`: every IPv4 connect.
    pub const CONNECT4: &str = "sidescope_connect4";
    /// `cgroup/connect6`: every IPv6 connect, v4-mapped ones too.
    pub const CONNECT6: &str = "sidescope_connect6";
    /// `cgroup/sendmsg4`: which sockets ask a DNS server.
    pub const SENDMSG4: &str = "sidescope_sendmsg4";
    /// `cgroup/sendmsg6`: which sockets ask a DNS server.
    pub const SENDMSG6: &str = "sidescope_sendmsg6";
    /// `cgroup_skb/egress`: which packets may name a host.
    pub const EGRESS: &str = "sidescope_egress";
    /// The part of the egress program that reads a TLS ClientHello; called by it.
    pub const EGRESS_TLS: &str = "sidescope_tls";
    /// The part of the egress program that looks for the host of an HTTP/1 request; called by it.
    pub const EGRESS_HTTP1: &str = "sidescope_http1";
    /// The part of the egress program that looks for a second request in a packet of HTTP/1; called by it.
    pub const EGRESS_PIPELINED: &str = "sidescope_pipelined";
    /// The part of the egress program that walks HTTP/2 frames; called by it.
    pub const EGRESS_HTTP2: &str = "sidescope_http2";
    /// `cgroup_skb/ingress`: DNS answers.
    pub const INGRESS: &str = "sidescope_ingress";

    /// Hash [`EdgeKey`](super::EdgeKey) -> [`EdgeState`](super::EdgeState): the edge set, the truth.
    pub const EDGES: &str = "EDGES";
    /// LRU hash [`HostKey`](super::HostKey) -> last time in ns: hosts that user space knows already.
    pub const HOSTS: &str = "HOSTS";
    /// Hash [`SourceKey`](super::SourceKey) -> [`SourceAddr`](super::SourceAddr).
    pub const SOURCES: &str = "SOURCES";
    /// Hash network namespace's cookie -> id of the cgroup of a program that connected there.
    pub const CGROUPS: &str = "CGROUPS";
    /// Hash uid -> cookie of the network namespace, or 0 for all: users whose connections are a proxy's own and no edge.
    pub const PROXY_UIDS: &str = "PROXY_UIDS";
    /// Hash socket's cookie -> [`EdgeKey`](super::EdgeKey): connections that have no search for hosts. Written by user space.
    pub const OLDER: &str = "OLDER";
    /// Array of `u64`, a bit for each port: whether [`OLDER`] has connections to it. Written by user space.
    pub const OLDER_PORTS: &str = "OLDER_PORTS";
    /// Hash network namespace's cookie, or [`ALL_NAMESPACES`](super::ALL_NAMESPACES) -> [`Causes`](super::Causes): whom losses hit.
    pub const LOSSES: &str = "LOSSES";
    /// Per-CPU array of `u64`, indexed by [`Counter`](super::Counter).
    pub const COUNTERS: &str = "COUNTERS";
    /// Program array: the parts of the egress program, by [`part`](super::part).
    pub const PARTS: &str = "PARTS";
    /// Storage of sockets: what a connect hands on to the later hooks. Only programs use it.
    pub const SEARCHES: &str = "SEARCHES";
    /// Storage of sockets that ask a DNS server. Only programs use it.
    pub const RESOLVERS: &str = "RESOLVERS";
    /// Per-CPU array: room to read packets. Only programs use it.
    pub const SCRATCH: &str = "SCRATCH";
    /// Ring buffer of [`EdgeEvent`](super::EdgeEvent), [`HeadEvent`](super::HeadEvent) and [`DnsEvent`](super::DnsEvent).
    pub const EVENTS: &str = "EVENTS";
}

/// Edges that the default set holds: 136 bytes each with the kernel's own overhead, 4.25 MiB in all.
pub const DEFAULT_EDGES: u32 = 32_768;
/// Known hosts that the default LRU holds.
pub const DEFAULT_HOSTS: u32 = 6_144;
/// Addresses and cgroups of network namespaces that the kernel keeps for user space: an address for each family.
pub const MAX_SOURCES: u32 = 4_096;
/// Connections without a search that user space can tell the kernel of: those from before the programs, and long-lived ones.
pub const MAX_OLDER: u32 = 10_240;
/// Words of 64 bits that have one for each port.
pub const PORT_WORDS: u32 = (1 << 16) / 64;
/// Network namespaces that losses have hit. Those of the others count for [`ALL_NAMESPACES`], which has the last place of a full map.
pub const MAX_HIT: u32 = 511;
/// Proxy uids that can be told to the kernel: two in each of 500 pods with user namespaces of their own, and some.
pub const MAX_PROXY_UIDS: u32 = 1_024;
/// Default size of the ring buffer in bytes.
pub const DEFAULT_RING_BYTES: u32 = 512 * 1024;

/// Most bytes of one request that are copied out of the kernel. A head that has not named its host within them counts as
/// too long in user space.
pub const HEAD_BYTES: usize = 4096;
/// Request heads with an unknown host that one edge may send to user space within [`HEAD_WINDOW_NS`].
pub const HEADS_PER_WINDOW: u16 = 64;
/// Connects of an edge that get a search for hosts, and one more for each tick of the kernel's clock that has passed: 100 to 1,000 a
/// second, by how the kernel was built. An edge on which several names were told has no such bound.
pub const SEARCHED_CONNECTS: u16 = 256;
/// DNS messages that one socket may send to user space within [`HEAD_WINDOW_NS`].
pub const DNS_PER_WINDOW: u16 = 256;
/// Length of the window of [`HEADS_PER_WINDOW`] and [`DNS_PER_WINDOW`], in nanoseconds.
pub const HEAD_WINDOW_NS: u64 = 1_000_000_000;

/// Index of the parts of the egress program. Each is a program of its own, so that each has the verifier's limits for itself.
pub mod part {
    use super::names;

    /// TLS.
    pub const TLS: u32 = 0;
    /// HTTP/2.
    pub const HTTP2: u32 = 1;
    /// A request of HTTP/1.
    pub const HTTP1: u32 = 2;
    /// Another request of HTTP/1 in the same packet.
    pub const PIPELINED: u32 = 3;
    /// Number of parts.
    pub const COUNT: u32 = 4;
    /// The program that each part is.
    pub const PROGRAMS: [(u32, &str); COUNT as usize] = [
        (TLS, names::EGRESS_TLS),
        (HTTP2, names::EGRESS_HTTP2),
        (HTTP1, names::EGRESS_HTTP1),
        (PIPELINED, names::EGRESS_PIPELINED),
    ];
}

/// An IPv6 address, or an IPv4 address in its v4-mapped form (`::ffff:a.b.c.d`), in network byte order.
pub type Addr = [u8; 16];

/// What makes an edge: who connected where.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EdgeKey {
    /// Cookie of the network namespace of the socket: the pod. Never reused while the machine is up.
    pub netns: u64,
    /// Destination as the program asked for it.
    pub addr: Addr,
    /// User id of the caller, in the initial user namespace.
    pub uid: u32,
    /// Destination port in host byte order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
}
const _: () = assert!(size_of::<EdgeKey>() == 32);

/// What the kernel knows of an edge.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeState {
    /// Time of the first connect, nanoseconds of CLOCK_MONOTONIC. With the CPU in its low byte it is also the edge's id in
    /// [`HostKey`].
    pub first_ns: u64,
    /// Time of the last connect, nanoseconds of CLOCK_MONOTONIC; up to one tick of the kernel's clock early.
    pub last_ns: u64,
    /// Number of connects.
    pub connects: u64,
    /// The kernel's tick (jiffies, low half) of the last connect that got a search.
    pub tick: u32,
    /// How much of [`SEARCHED_CONNECTS`] was spent at that tick.
    pub spent: u16,
    /// Names that were handed on; those beyond the second count no more.
    pub names: u8,
    /// Always zero.
    pub reserved: u8,
    /// Start of the window in which [`heads`](Self::heads) counts, in units of [`HEAD_WINDOW_NS`]; wraps.
    pub window: u32,
    /// Heads sent to user space in this window.
    pub heads: u16,
    /// Bits of [`edge_flags`].
    pub flags: u8,
    /// Not 0: some connection of this edge has no search for hosts on its socket, because [`SEARCHED_CONNECTS`] were spent.
    pub unsearched: u8,
}
const _: () = assert!(size_of::<EdgeState>() == 40);

/// Bits of [`EdgeState::flags`]. There must never be two: CPUs that set them at once would lose one.
pub mod edge_flags {
    /// A request was seen whose host could not be handed on: the hosts of this edge are not complete.
    pub const HOST_UNKNOWN: u8 = 2;
}

/// One host of one edge, in the set of hosts that user space knows already.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostKey {
    /// [`EdgeState::first_ns`] of the edge.
    pub edge: u64,
    /// Hash of the host's bytes as they were sent.
    pub host: u64,
}
const _: () = assert!(size_of::<HostKey>() == 16);

/// Key of the map of source addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// 4 or 6.
    pub family: u32,
    /// Always zero.
    pub reserved: u32,
}
const _: () = assert!(size_of::<SourceKey>() == 16);

/// Local address of the first connection that the kernel saw from a network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceAddr {
    /// The address.
    pub addr: Addr,
}
const _: () = assert!(size_of::<SourceAddr>() == 16);

/// First word of every record in the ring.
pub mod event_kind {
    /// An [`EdgeEvent`](super::EdgeEvent).
    pub const EDGE: u32 = 1;
    /// A [`HeadEvent`](super::HeadEvent), followed by its bytes.
    pub const HEAD: u32 = 2;
    /// A [`DnsEvent`](super::DnsEvent), followed by its bytes.
    pub const DNS: u32 = 3;
}

/// A new edge.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgeEvent {
    /// [`event_kind::EDGE`].
    pub kind: u32,
    /// Always zero.
    pub reserved: u32,
    /// Time of the connect, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The edge.
    pub key: EdgeKey,
}
const _: () = assert!(size_of::<EdgeEvent>() == 48);

/// Bytes from which the host of a request can be told; the bytes follow the header in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadEvent {
    /// [`event_kind::HEAD`].
    pub kind: u32,
    /// Number of bytes that follow, at most [`HEAD_BYTES`].
    pub len: u16,
    /// One of [`head_format`].
    pub format: u16,
    /// Cookie of the socket.
    pub socket: u64,
    /// Place of the first byte in what belongs together.
    pub offset: u16,
    /// Bytes that belong together, where the kernel knows it; else 0.
    pub total: u16,
    /// Number of the request on this socket; wraps.
    pub request: u32,
    /// [`HostKey::host`] if the bytes are the whole of a name; else 0.
    pub host: u64,
    /// The edge.
    pub key: EdgeKey,
}
const _: () = assert!(size_of::<HeadEvent>() == 64);

/// What the bytes of a [`HeadEvent`] are.
pub mod head_format {
    /// A piece of an HTTP/1 request from its first byte on.
    pub const HTTP1: u16 = 1;
    /// A piece of a TLS stream from its first byte on.
    pub const TLS: u16 = 2;
    /// A host as it was written, perhaps with a port.
    pub const NAME: u16 = 3;
    /// A host in HPACK's Huffman code.
    pub const HUFFMAN: u16 = 4;
}

/// A DNS message that a workload received; the bytes follow the header in the ring.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsEvent {
    /// [`event_kind::DNS`].
    pub kind: u32,
    /// Number of bytes that follow, at most [`HEAD_BYTES`].
    pub len: u32,
    /// Cookie of the network namespace of the socket.
    pub netns: u64,
    /// Cookie of the socket.
    pub socket: u64,
    /// When it came, nanoseconds of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// Sequence number of the first byte (TCP).
    pub seq: u32,
    /// 17: one datagram. 6: a segment of a stream of messages with their lengths.
    pub transport: u32,
}
const _: () = assert!(size_of::<DnsEvent>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    /// A hash as the kernel makes it: buckets, entries that the allocator rounds up where they are not made beforehand, and one more
    /// for each CPU where they are.
    fn hash(entries: u32, key: usize, value: usize, cpus: usize, is_preallocated: bool) -> usize {
        let entry = 48 + key.next_multiple_of(8) + value.next_multiple_of(8);
        let buckets = 16 * entries.next_power_of_two() as usize;
        let entries = entries as usize;
        buckets
            + if is_preallocated { (entries + cpus) * entry } else { entries * entry.next_multiple_of(96) }
    }

    /// Bytes of all maps at their default sizes, when they are full.
    fn all_maps(cpus: usize) -> usize {
        let edges = hash(DEFAULT_EDGES, size_of::<EdgeKey>(), size_of::<EdgeState>(), cpus, true);
        let hosts = hash(DEFAULT_HOSTS, size_of::<HostKey>(), 8, 0, true);
        let sources = hash(MAX_SOURCES, size_of::<SourceKey>(), size_of::<SourceAddr>(), cpus, true);
        let cgroups = hash(MAX_SOURCES, 8, 8, cpus, true);
        let proxies = hash(MAX_PROXY_UIDS, 4, 8, cpus, true);
        let older = hash(MAX_OLDER, 8, size_of::<EdgeKey>(), cpus, false);
        let losses = hash(MAX_HIT + 1, 8, size_of::<Causes>(), cpus, false);
        let ring = DEFAULT_RING_BYTES as usize + 4 * 4096;
        // Two slots of scratch: what is read, its header, and 32 bytes for the walk.
        let each_cpu = 2 * (HEAD_BYTES + size_of::<HeadEvent>() + 32) + 8 * Counter::ALL.len();
        let ports = 8 * PORT_WORDS as usize;
        let small_ones = 4 * 1024;
        edges
            + hosts
            + sources
            + cgroups
            + proxies
            + older
            + losses
            + ring
            + each_cpu * cpus
            + ports
            + small_ones
    }

    #[test]
    fn all_maps_take_at_most_8_mib_on_64_cpus() {
        const MIB: usize = 1024 * 1024;
        assert!(all_maps(64) <= 8 * MIB, "{}", all_maps(64));
        // As the documents have it, in hundredths.
        assert_eq!([4, 64].map(|cpus| (100 * all_maps(cpus)).div_ceil(MIB)), [742, 792]);
    }
}

#[cfg(feature = "user")]
#[expect(unsafe_code, reason = "aya's marker for types that are plain old data is an unsafe trait")]
mod pod {
    use super::{EdgeKey, EdgeState, HostKey, SourceAddr, SourceKey};

    // SAFETY: repr(C), integers only, no padding (the size asserts above), every bit pattern valid.
    unsafe impl aya::Pod for EdgeKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for EdgeState {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HostKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for SourceAddr {}
}
