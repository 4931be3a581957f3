//! Gathers what the kernel reports: edges, their hosts, and what was lost. Pure; bounded by the size of the kernel's edge set
//! and by [`MAX_EXISTING`].

mod observed;

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::net::{IpAddr, Ipv6Addr};

use sidescope_common::{Addr, DnsEvent, EdgeEvent, EdgeKey, EdgeState, HeadEvent, edge_flags};

use crate::answers::Answers;
use crate::heads::{Heads, Outcome, Unreadable};
use crate::losses::{Hit, Loss};
use crate::model::names::Host;
use crate::sockets::Socket;
pub use observed::{Changed, MAX_CHANGED, Observed};

/// Most hosts that are kept of one edge. More than that is a proxy or a scanner: the edge counts as incomplete.
pub const MAX_HOSTS_PER_EDGE: usize = 256;

/// Most DNS names that are kept of one edge; more of them tell nothing about which was meant.
const MAX_NAMES_PER_EDGE: usize = 8;
/// Most edges that are known only from connections that were open before, as many as the kernel's own set holds.
pub const MAX_EXISTING: usize = sidescope_common::DEFAULT_EDGES as usize;
/// Most proxies of pods with user namespaces of their own that are known; more pods than a machine has in weeks.
pub const MAX_PROXIES: usize = 16_384;

/// What a request told.
enum Told {
    /// It named this host.
    Host(Host),
    /// It named none, or an address.
    Unnamed,
    /// It may have named one, which cannot be known.
    Unknown,
}

/// All edges of this machine.
#[derive(Debug, Default)]
pub struct Collector {
    edges: HashMap<EdgeKey, Observed>,
    heads: Heads,
    answers: Answers,
    /// Namespace and user of proxies that the kernel did not know from the start; without a namespace it is this user in all of them.
    proxies: HashSet<(Option<u64>, u32)>,
    losses: BTreeMap<Loss, u64>,
    hit: Hit,
    /// What of that is new since somebody asked.
    new_hit: Hit,
    changed: Changed,
    /// See [`Collector::is_unsearched`].
    unsearched: HashSet<(Addr, u32, u16)>,
    hosts: usize,
    existing: usize,
}

impl Collector {
    /// A new edge.
    pub fn edge(&mut self, event: &EdgeEvent) {
        if self.is_left_out(&event.key) {
            return;
        }
        let observed = self.edges.entry(event.key).or_default();
        observed.connects = observed.connects.max(1);
        observed.used_at(event.time_ns, event.time_ns);
        self.changed.add(event.key);
        look_up(&self.answers, &event.key, observed, event.time_ns);
    }

    /// A DNS message that a workload received.
    pub fn dns(&mut self, event: &DnsEvent, bytes: &[u8]) {
        for netns in self.answers.take(event, bytes) {
            self.note(Some(netns), Loss::DnsAnswer.name());
        }
    }

    /// A piece of a request head.
    pub fn head(&mut self, event: &HeadEvent, piece: &[u8]) {
        if self.is_left_out(&event.key) {
            return;
        }
        let mut evicted = None;
        let outcome = self.heads.feed(event, piece, |key| evicted = Some(key));
        if let Some(key) = evicted {
            self.unreadable(key, Unreadable::Crowded);
        }
        match outcome {
            Outcome::Host(host) => self.told(event.key, Told::Host(host)),
            // Later pieces of a head whose host has been told come to this as well, and only first ones say it of themselves.
            Outcome::NoName if event.offset == 0 => self.told(event.key, Told::Unnamed),
            Outcome::NoName | Outcome::NoRequest | Outcome::Waiting => {}
            Outcome::Unreadable(why) => self.unreadable(event.key, why),
        }
    }

    /// A record that makes no sense.
    pub fn malformed_record(&mut self) {
        self.count(Loss::MalformedRecord, None);
    }

    /// Takes over what the kernel's edge set says now. The set is the truth: edges whose event was lost come in here. Returns those of
    /// it that are a proxy's, which need not take room there.
    pub fn sweep(&mut self, set: impl IntoIterator<Item = (EdgeKey, EdgeState)>) -> Vec<EdgeKey> {
        let mut left_out = Vec::new();
        self.unsearched.clear();
        for (key, state) in set {
            if self.is_left_out(&key) {
                left_out.push(key);
                continue;
            }
            let observed = self.edges.entry(key).or_default();
            observed.connects = state.connects + observed.elsewhere;
            look_at_state(&self.answers, &key, observed, &state);
            if state.unsearched != 0 {
                self.unsearched.insert(destination(&key));
            }
        }
        left_out
    }

    /// Takes over what other programs have in their sets, which are read once; what came from there before is out of date.
    pub fn elsewhere(&mut self, sets: impl IntoIterator<Item = (EdgeKey, EdgeState)>) {
        for observed in self.edges.values_mut() {
            observed.connects -= mem::take(&mut observed.elsewhere);
        }
        for (key, state) in sets {
            if self.is_left_out(&key) {
                continue;
            }
            let observed = self.edges.entry(key).or_default();
            observed.elsewhere += state.connects;
            observed.connects += state.connects;
            look_at_state(&self.answers, &key, observed, &state);
        }
    }

    /// A connection that is open now, from the list of sockets. It is no connect; it keeps its edge alive, and makes one if it is
    /// older than the watch. Returns the edge; `None` where there is no room for it.
    pub fn existing(&mut self, netns: u64, socket: &Socket, now: u64) -> Option<EdgeKey> {
        let key =
            EdgeKey { netns, addr: mapped(socket.address), uid: socket.uid, port: socket.port, reserved: 0 };
        if self.is_left_out(&key) {
            return None;
        }
        let observed = match self.edges.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if self.existing >= MAX_EXISTING => {
                self.count(Loss::TooManyExisting, Some(netns));
                return None;
            }
            Entry::Vacant(new) => {
                self.existing += 1;
                new.insert(Observed::default())
            }
        };
        observed.existing = true;
        observed.listed = now;
        if observed.first_ns == 0 {
            observed.first_ns = now;
        }
        Some(key)
    }

    /// Whether the set has said by now that some connection of this edge has no search. `cookie` is that of the edge's namespace; where
    /// the kernel does not tell it, the set has the edge under another number, and one of any namespace counts.
    pub fn is_unsearched(&self, cookie: Option<u64>, key: &EdgeKey) -> bool {
        match cookie {
            Some(_) => self.edges.get(key).is_some_and(|observed| observed.unsearched),
            None => self.unsearched.contains(&destination(key)),
        }
    }

    /// The kernel programs could not be told of a connection that has no search, perhaps: hosts of its requests may not be known.
    pub fn unwatched(&mut self, key: &EdgeKey) {
        self.count(Loss::UnwatchedExisting, Some(key.netns));
        if let Some(observed) = self.edges.get_mut(key) {
            observed.host_unknown = true;
        }
    }

    /// This user is a proxy in this network namespace, or in all of them where the kernel does not tell their cookies: what it
    /// did is forgotten, and what it does is left out. Says whether that is news.
    pub fn leave_out(&mut self, netns: Option<u64>, uid: u32) -> bool {
        if self.proxies.contains(&(netns, uid)) {
            return false;
        }
        if self.proxies.len() >= MAX_PROXIES {
            self.too_many_proxies(netns);
            return false;
        }
        self.proxies.insert((netns, uid));
        self.remove(|key| key.uid == uid && netns.is_none_or(|netns| key.netns == netns));
        true
    }

    /// These namespaces are gone: no more pieces of their requests will come.
    pub fn close(&mut self, gone: &HashSet<u64>) {
        for key in self.heads.give_up(|key| gone.contains(&key.netns)) {
            self.unreadable(key, Unreadable::MissingPiece);
        }
    }

    /// Drops what is known of these edges, and of these namespaces.
    pub fn forget(&mut self, edges: &[EdgeKey], namespaces: &BTreeSet<u64>) {
        let edges: HashSet<EdgeKey> = edges.iter().copied().collect();
        for key in self.heads.give_up(|key| edges.contains(key)) {
            self.count(Loss::Head(Unreadable::MissingPiece), Some(key.netns));
        }
        self.remove(|key| edges.contains(key));
        self.proxies.retain(|(netns, _)| netns.is_none_or(|netns| !namespaces.contains(&netns)));
        for netns in namespaces {
            self.answers.forget(*netns);
            self.hit.forget(*netns);
        }
    }

    fn remove(&mut self, of: impl Fn(&EdgeKey) -> bool) {
        for (_, gone) in self.edges.extract_if(|key, _| of(key)) {
            self.hosts -= gone.hosts.len();
            let was_made_by_it = gone.existing && gone.connects == 0;
            self.existing = self.existing.saturating_sub(usize::from(was_made_by_it));
        }
    }

    /// A namespace that there is no room for.
    pub fn too_many_namespaces(&mut self) {
        self.count(Loss::TooManyNamespaces, None);
    }

    /// A proxy that the kernel has no room for.
    pub fn too_many_proxies(&mut self, netns: Option<u64>) {
        self.count(Loss::TooManyProxies, netns);
    }

    /// The agent before this one was killed.
    pub fn agent_killed(&mut self) {
        self.count(Loss::AgentKilled, None);
    }

    /// What an agent of another version had recorded cannot be read.
    pub fn unreadable_layout(&mut self) {
        self.count(Loss::UnreadableLayout, None);
    }

    /// Another layout was given up before all open connections were listed.
    pub fn unlisted_at_change(&mut self) {
        self.count(Loss::UnlistedAtChange, None);
    }

    /// Connections that were open and could not be listed.
    pub fn unlisted(&mut self, count: u64) {
        if count > 0 {
            *self.losses.entry(Loss::TooManyExisting).or_default() += count;
            self.note(None, Loss::TooManyExisting.name());
        }
    }

    /// No more pieces will come: heads that still wait for one count as unknown.
    pub fn finish(&mut self) {
        for key in self.heads.give_up(|_| true) {
            self.unreadable(key, Unreadable::MissingPiece);
        }
    }

    /// The edges.
    pub fn edges(&self) -> &HashMap<EdgeKey, Observed> {
        &self.edges
    }

    /// Edges that events have told something new of since this was last asked. Those that only the set or a scan has told are not among
    /// them.
    pub fn take_changed(&mut self) -> Changed {
        mem::take(&mut self.changed)
    }

    /// Number of hosts of all edges.
    pub fn hosts(&self) -> usize {
        self.hosts
    }

    /// What was lost in user space.
    pub fn losses(&self) -> BTreeMap<Loss, u64> {
        let mut losses = self.losses.clone();
        let dns = self.answers.losses();
        if dns > 0 {
            losses.insert(Loss::DnsAnswer, dns);
        }
        losses
    }

    /// Which network namespaces these losses have hit.
    pub fn hit(&self) -> &Hit {
        &self.hit
    }

    /// Which of them they have hit since this was last asked.
    pub fn take_new_hit(&mut self) -> Hit {
        mem::take(&mut self.new_hit)
    }

    fn is_left_out(&self, key: &EdgeKey) -> bool {
        let known = |netns| self.proxies.contains(&(netns, key.uid));
        known(Some(key.netns)) || known(None)
    }

    fn unreadable(&mut self, key: EdgeKey, why: Unreadable) {
        if !self.is_left_out(&key) {
            self.count(Loss::Head(why), Some(key.netns));
            self.told(key, Told::Unknown);
        }
    }

    fn told(&mut self, key: EdgeKey, told: Told) {
        if self.is_left_out(&key) {
            return;
        }
        let observed = self.edges.entry(key).or_default();
        self.changed.add(key);
        let host = match told {
            Told::Host(host) => host,
            Told::Unnamed => {
                observed.unnamed = true;
                return;
            }
            Told::Unknown => {
                observed.host_unknown = true;
                return;
            }
        };
        if observed.hosts.len() < MAX_HOSTS_PER_EDGE {
            self.hosts += usize::from(observed.hosts.insert(host));
        } else if !observed.hosts.contains(&host) {
            observed.host_unknown = true;
            self.count(Loss::TooManyHosts, Some(key.netns));
        }
    }

    /// `None`: it may have hit any namespace.
    fn count(&mut self, loss: Loss, netns: Option<u64>) {
        *self.losses.entry(loss).or_default() += 1;
        self.note(netns, loss.name());
    }

    fn note(&mut self, netns: Option<u64>, cause: &'static str) {
        self.hit.note(netns, cause);
        self.new_hit.note(netns, cause);
    }
}

/// What a set says of an edge beside the connects.
fn look_at_state(answers: &Answers, key: &EdgeKey, observed: &mut Observed, state: &EdgeState) {
    // Only user space puts an edge without a connect into the set, for a connection that is older.
    observed.existing |= state.connects == 0;
    if state.connects > 0 {
        observed.used_at(state.first_ns, state.last_ns);
    }
    if observed.looked_up != state.last_ns {
        look_up(answers, key, observed, state.last_ns);
    }
    observed.host_unknown |= state.flags & edge_flags::HOST_UNKNOWN != 0;
    observed.unsearched |= state.unsearched != 0;
}

/// An edge without its namespace.
fn destination(key: &EdgeKey) -> (Addr, u32, u16) {
    (key.addr, key.uid, key.port)
}

/// Adds the names that the address of an edge had at a time.
fn look_up(answers: &Answers, key: &EdgeKey, observed: &mut Observed, time_ns: u64) {
    observed.looked_up = time_ns;
    for name in answers.names_at(key.netns, address(key.addr), time_ns) {
        if observed.names.len() < MAX_NAMES_PER_EDGE && !observed.names.contains(name) {
            observed.names.insert(name.clone());
        }
    }
}

/// The address of a key as the rest of the program knows it: v4-mapped ones as IPv4.
pub fn address(addr: Addr) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(addr)).to_canonical()
}

/// The same the other way round.
fn mapped(address: IpAddr) -> Addr {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use sidescope_common::{event_kind, head_format};

    use super::*;
    use crate::losses::CauseNames;

    fn key(port: u16) -> EdgeKey {
        EdgeKey { netns: 1, addr: [0; 16], uid: 0, port, reserved: 0 }
    }

    fn head(port: u16, socket: u64) -> HeadEvent {
        HeadEvent {
            kind: event_kind::HEAD,
            len: 0,
            format: head_format::HTTP1,
            socket,
            offset: 0,
            total: 0,
            request: 1,
            host: 0,
            key: key(port),
        }
    }

    fn state(connects: u64, flags: u8) -> EdgeState {
        EdgeState {
            first_ns: 1,
            last_ns: 2,
            connects,
            tick: 0,
            spent: 0,
            names: 0,
            reserved: 0,
            window: 0,
            heads: 0,
            flags,
            unsearched: 0,
        }
    }

    #[test]
    fn an_edge_whose_event_was_lost_comes_in_by_the_sweep() {
        let mut collector = Collector::default();
        collector.edge(&EdgeEvent { kind: event_kind::EDGE, reserved: 0, time_ns: 0, key: key(1) });
        collector.sweep([(key(1), state(5, 0)), (key(2), state(3, 0))]);
        let connects: BTreeMap<u16, u64> =
            collector.edges().iter().map(|(key, observed)| (key.port, observed.connects)).collect();
        assert_eq!(connects, BTreeMap::from([(1, 5), (2, 3)]));
    }

    #[test]
    fn connects_of_other_sets_are_added_once_and_their_marks_stay() {
        let mut collector = Collector::default();
        collector.sweep([(key(1), state(0, 0)), (key(2), state(3, 0))]);
        let unknown = edge_flags::HOST_UNKNOWN;
        collector.elsewhere([(key(1), state(5, unknown)), (key(2), state(6, 0)), (key(2), state(7, 0))]);
        let check = |collector: &Collector, expected: [(u64, bool); 2]| {
            let of = |port| collector.edges()[&key(port)].clone();
            assert_eq!([of(1), of(2)].map(|edge| (edge.connects, edge.host_unknown)), expected);
        };
        check(&collector, [(5, true), (16, false)]);
        // The own set tells only what it has itself.
        collector.sweep([(key(1), state(1, 0)), (key(2), state(4, 0))]);
        check(&collector, [(6, true), (17, false)]);
        // The other sets are read once more, when one of the edges has moved into the own.
        collector.elsewhere([(key(1), state(8, 0))]);
        collector.sweep([(key(1), state(1, 0)), (key(2), state(17, 0))]);
        check(&collector, [(9, true), (17, false)]);
        assert!(collector.leave_out(None, 0));
        collector.elsewhere([(key(1), state(8, 0))]);
        assert!(collector.edges().is_empty());
    }

    #[test]
    fn an_edge_has_connections_without_a_search_as_the_set_says() {
        let mut collector = Collector::default();
        collector.sweep([(key(1), state(5, 0)), (key(2), EdgeState { unsearched: 1, ..state(5, 0) })]);
        for port in [1, 2, 3] {
            assert_eq!(collector.is_unsearched(Some(1), &key(port)), port == 2);
            let elsewhere = EdgeKey { netns: 9, ..key(port) };
            assert!(!collector.is_unsearched(Some(9), &elsewhere));
            assert_eq!(collector.is_unsearched(None, &elsewhere), port == 2, "whose it is cannot be told");
        }
    }

    #[test]
    fn what_cannot_be_read_marks_its_edge_and_is_counted() {
        let mut collector = Collector::default();
        collector.head(&head(1, 1), b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
        collector.head(&head(2, 2), b"GET / HTTP/1.1\r\nHo");
        collector.head(&head(3, 3), b"GET / HTTP/1.1\r\nHost: fine\r\n\r\n");
        collector.sweep([(key(4), state(1, edge_flags::HOST_UNKNOWN))]);
        collector.finish();
        let unknown: BTreeSet<u16> = collector
            .edges()
            .iter()
            .filter(|(_, observed)| observed.host_unknown)
            .map(|(key, _)| key.port)
            .collect();
        assert_eq!(unknown, BTreeSet::from([1, 2, 4]));
        let causes = CauseNames::from(["headMalformed", "headMissingPiece"]);
        assert_eq!(collector.hit().namespaces(), &BTreeMap::from([(1, causes)]));
        assert!(collector.hit().everywhere().is_empty());
        assert_eq!(
            collector.losses(),
            BTreeMap::from([
                (Loss::Head(Unreadable::Malformed), 1),
                (Loss::Head(Unreadable::MissingPiece), 1)
            ])
        );
    }

    #[test]
    fn a_request_that_names_no_name_is_remembered_beside_one_that_does() {
        let mut collector = Collector::default();
        let named = b"GET / HTTP/1.1\r\nHost: a\r\n".as_slice();
        for (port, second) in [
            (1, b"GET / HTTP/1.0\r\n\r\n".as_slice()),
            (2, b"GET / HTTP/1.1\r\nHost: 10.0.0.1\r\n\r\n"),
            (3, named),
        ] {
            collector.head(&head(port, 1), named);
            collector.head(&head(port, 2), second);
        }
        // The rest of a head whose host was told.
        collector.head(&HeadEvent { offset: named.len() as u16, ..head(3, 1) }, b"Cookie: b\r\n\r\n");
        let unnamed: BTreeSet<u16> = collector
            .edges()
            .iter()
            .filter(|(_, observed)| observed.unnamed)
            .map(|(key, _)| key.port)
            .collect();
        assert_eq!(unnamed, BTreeSet::from([1, 2]));
        assert!(collector.losses().is_empty());
    }

    #[test]
    fn hosts_of_an_edge_are_bounded() {
        let mut collector = Collector::default();
        for i in 0..MAX_HOSTS_PER_EDGE + 10 {
            collector.head(&head(1, 1), format!("GET / HTTP/1.1\r\nHost: h{i}\r\n\r\n").as_bytes());
        }
        assert_eq!(collector.hosts(), MAX_HOSTS_PER_EDGE);
        assert!(collector.edges()[&key(1)].host_unknown);
        assert_eq!(collector.losses()[&Loss::TooManyHosts], 10);
    }

    fn socket(address: &str, port: u16) -> Socket {
        let state = crate::sockets::State::Established;
        Socket { uid: 5, address: address.parse().unwrap(), port, cookie: 1, state }
    }

    #[test]
    fn a_connection_from_before_makes_an_edge_without_a_connect() {
        let mut collector = Collector::default();
        collector.existing(7, &socket("10.0.0.1", 80), 5);
        collector.existing(7, &socket("10.0.0.1", 80), 5);
        collector.existing(7, &socket("fd00::1", 80), 5);
        let addr = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        let key = EdgeKey { netns: 7, addr, uid: 5, port: 80, reserved: 0 };
        assert_eq!(collector.edges().len(), 2);
        assert_eq!(
            collector.edges()[&key],
            Observed { existing: true, listed: 5, first_ns: 5, ..Observed::default() }
        );
        collector.sweep([(key, state(3, 0))]);
        let observed = &collector.edges()[&key];
        assert_eq!((observed.existing, observed.connects), (true, 3));
        assert!(collector.losses().is_empty());
    }

    #[test]
    fn an_edge_without_a_connect_in_the_set_is_that_of_a_connection_from_before() {
        let mut collector = Collector::default();
        collector.sweep([(key(1), state(0, 0)), (key(2), state(1, 0))]);
        let existing = |port| collector.edges()[&key(port)].existing;
        assert_eq!((existing(1), existing(2)), (true, false));
    }

    #[test]
    fn a_connection_from_before_of_which_the_kernel_does_not_know_has_unknown_hosts() {
        let mut collector = Collector::default();
        let key = collector.existing(7, &socket("10.0.0.1", 80), 5).unwrap();
        assert!(!collector.edges()[&key].host_unknown);
        collector.unwatched(&key);
        assert!(collector.edges()[&key].host_unknown);
        assert_eq!(collector.losses(), BTreeMap::from([(Loss::UnwatchedExisting, 1)]));
    }

    fn of(netns: u64, uid: u32) -> EdgeKey {
        EdgeKey { netns, uid, ..key(80) }
    }

    #[test]
    fn what_a_proxy_did_is_forgotten_and_what_it_does_is_left_out() {
        let others = [of(1, 6), of(2, 5)];
        for (netns, left) in [(Some(1), others.as_slice()), (None, &others[..1])] {
            let mut collector = Collector::default();
            let say = |collector: &mut Collector| {
                for key in [of(1, 5), others[0], others[1]] {
                    collector.edge(&EdgeEvent { kind: event_kind::EDGE, reserved: 0, time_ns: 0, key });
                    collector.sweep([(key, state(3, edge_flags::HOST_UNKNOWN))]);
                    collector.head(&HeadEvent { key, ..head(80, 7) }, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                }
                collector.existing(1, &socket("10.0.0.1", 80), 5);
            };
            say(&mut collector);
            assert_eq!((collector.edges().len(), collector.hosts()), (4, 3));
            assert!(collector.leave_out(netns, 5));
            let check = |collector: &Collector| {
                let mut keys: Vec<_> = collector.edges().keys().copied().collect();
                keys.sort();
                assert_eq!(keys, left, "{netns:?}");
                assert_eq!((collector.hosts(), collector.existing), (left.len(), 0));
            };
            check(&collector);
            say(&mut collector);
            check(&collector);
            assert!(!collector.leave_out(netns, 5), "no news");
            assert!(collector.losses().is_empty());
        }
    }

    #[test]
    fn edges_of_a_proxy_take_no_room_in_the_kernels_set() {
        let mut collector = Collector::default();
        let set = [(of(1, 5), state(3, 0)), (of(1, 6), state(3, 0)), (of(2, 5), state(3, 0))];
        assert_eq!(collector.sweep(set), []);
        assert!(collector.leave_out(Some(1), 5));
        assert_eq!(collector.sweep(set), [of(1, 5)]);
    }

    #[test]
    fn nothing_is_left_of_what_is_forgotten() {
        let mut collector = Collector::default();
        let [gone, lives] = [of(1, 6), of(2, 6)];
        for key in [gone, lives] {
            collector.sweep([(key, state(1, 0))]);
            collector.head(&HeadEvent { key, ..head(80, key.netns) }, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            // One that waits for its rest.
            let waits = HeadEvent { key, ..head(80, key.netns + 10) };
            collector.head(&waits, b"GET / HTTP/1.1\r\nHo");
            collector.leave_out(Some(key.netns), 5);
            collector.existing(key.netns, &Socket { uid: 7, ..socket("10.0.0.1", 80) }, 5);
        }
        collector.close(&HashSet::from([1]));
        assert!(collector.edges()[&gone].host_unknown, "it must be told before");
        assert!(!collector.edges()[&lives].host_unknown);
        assert_eq!(collector.losses(), BTreeMap::from([(Loss::Head(Unreadable::MissingPiece), 1)]));

        let edges: Vec<_> = collector.edges().keys().filter(|key| key.netns == 1).copied().collect();
        collector.forget(&edges, &BTreeSet::from([1]));
        assert!(collector.edges().keys().all(|key| key.netns == 2));
        assert_eq!((collector.edges().len(), collector.hosts(), collector.existing), (2, 1, 1));
        assert_eq!(collector.proxies, HashSet::from([(Some(2), 5)]));
        // The same again is new.
        collector.sweep([(gone, state(1, 0))]);
        assert_eq!(
            collector.edges()[&gone],
            Observed { connects: 1, first_ns: 1, last_ns: 2, looked_up: 2, ..Observed::default() }
        );
        collector.finish();
        assert_eq!(collector.losses()[&Loss::Head(Unreadable::MissingPiece)], 2);
    }

    #[test]
    fn what_cannot_be_read_of_a_proxys_requests_is_no_loss() {
        let mut collector = Collector::default();
        // One that waits for its rest, and one that comes when it is known whose it is.
        collector.head(&HeadEvent { key: of(7, 5), ..head(80, 9) }, b"GET / HTTP/1.1\r\nHo");
        assert!(collector.leave_out(Some(7), 5));
        collector.head(&HeadEvent { key: of(7, 5), ..head(80, 3) }, b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n");
        collector.finish();
        assert!(collector.edges().is_empty() && collector.losses().is_empty(), "{:?}", collector.losses());
    }

    #[test]
    fn proxies_are_bounded_and_what_is_beyond_is_counted() {
        let mut collector = Collector::default();
        let news = (0..MAX_PROXIES as u64 + 3).filter(|netns| collector.leave_out(Some(*netns), 5)).count();
        collector.too_many_proxies(None);
        assert_eq!(news, MAX_PROXIES);
        assert_eq!(collector.losses(), BTreeMap::from([(Loss::TooManyProxies, 4)]));
    }

    #[test]
    fn edges_from_before_are_bounded_and_what_is_beyond_is_counted() {
        let mut collector = Collector::default();
        for i in 0..MAX_EXISTING as u32 + 3 {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + i).to_string();
            collector.existing(7, &socket(&address, 80), 5);
        }
        collector.unlisted(0);
        collector.unlisted(4);
        assert_eq!(collector.edges().len(), MAX_EXISTING);
        assert_eq!(collector.losses(), BTreeMap::from([(Loss::TooManyExisting, 7)]));
    }

    #[test]
    fn v4_mapped_destinations_are_ipv4() {
        let mapped = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(address(mapped), IpAddr::from([10, 0, 0, 1]));
        assert_eq!(address([0x20; 16]).to_string(), "2020:2020:2020:2020:2020:2020:2020:2020");
    }
}
