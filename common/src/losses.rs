//! What is counted, and what of it is a loss: the causes, and when each has hit a network namespace.

/// Stands for every network namespace in [`names::LOSSES`](crate::names::LOSSES), where it always has an entry. No namespace has this cookie.
pub const ALL_NAMESPACES: u64 = 0;

/// By [`Counter`], when that loss has last hit a network namespace, as [`loss_time`] has it; 0: never. A word for each, so that two CPUs
/// cannot undo each other's.
pub type Causes = [u32; 16];
const _: () = assert!(Counter::ALL.len() <= size_of::<Causes>() / size_of::<u32>());

/// A time of CLOCK_MONOTONIC in nanoseconds as it is kept of losses: in seconds, and never 0.
#[inline(always)]
pub const fn loss_time(ns: u64) -> u32 {
    (ns / 1_000_000_000) as u32 + 1
}

/// What is counted in the kernel; the index into the map [`names::COUNTERS`](crate::names::COUNTERS).
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// TCP connects of workloads, repeated ones too.
    Connects = 0,
    /// Edges that the full edge set could not hold.
    EdgesFull = 1,
    /// New edges that the full ring could not announce; the sweep finds them.
    EdgeRingFull = 2,
    /// Request heads that the full ring could not carry.
    HeadRingFull = 3,
    /// Request heads over [`HEADS_PER_WINDOW`](crate::HEADS_PER_WINDOW), or of an edge that is no longer in the set.
    HeadBudget = 4,
    /// Sockets without memory for the search state.
    SearchNoMemory = 5,
    /// Source addresses that the full map could not hold.
    SourcesFull = 6,
    /// Packets whose bytes could not be read, or for which no room was left to read them.
    PacketUnreadable = 7,
    /// HTTP/2 streams of frames whose thread was lost.
    FramesLost = 8,
    /// DNS messages that the full ring could not carry.
    DnsRingFull = 9,
    /// DNS messages over [`DNS_PER_WINDOW`](crate::DNS_PER_WINDOW).
    DnsBudget = 10,
    /// Packets of HTTP/1 that may hold more requests than are looked at: 17.
    Pipelined = 11,
    /// Requests that refer to what was sent on their connection before it was watched.
    BeforeStart = 12,
    /// Edges that have named a host and had more connects than [`SEARCHED_CONNECTS`](crate::SEARCHED_CONNECTS) allows to look at; each counts once.
    SearchBudget = 13,
}

impl Counter {
    /// All counters, in the order of their index.
    pub const ALL: [Self; 14] = [
        Self::Connects,
        Self::EdgesFull,
        Self::EdgeRingFull,
        Self::HeadRingFull,
        Self::HeadBudget,
        Self::SearchNoMemory,
        Self::SourcesFull,
        Self::PacketUnreadable,
        Self::FramesLost,
        Self::DnsRingFull,
        Self::DnsBudget,
        Self::Pipelined,
        Self::BeforeStart,
        Self::SearchBudget,
    ];

    /// Whether it means that something is missing or marked as incomplete.
    pub const fn is_loss(self) -> bool {
        // An edge that could not be announced is found by the sweep.
        !matches!(self, Self::Connects | Self::EdgeRingFull)
    }

    /// Its name in `graph.json`, in logs and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connects => "connects",
            Self::EdgesFull => "edgesFull",
            Self::EdgeRingFull => "edgeRingFull",
            Self::HeadRingFull => "headRingFull",
            Self::HeadBudget => "headBudget",
            Self::SearchNoMemory => "searchNoMemory",
            Self::SourcesFull => "sourcesFull",
            Self::PacketUnreadable => "packetUnreadable",
            Self::FramesLost => "framesLost",
            Self::DnsRingFull => "dnsRingFull",
            Self::DnsBudget => "dnsBudget",
            Self::Pipelined => "pipelined",
            Self::BeforeStart => "headBeforeStart",
            Self::SearchBudget => "searchBudget",
        }
    }
}
