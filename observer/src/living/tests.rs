use proptest::prelude::*;

use super::*;

const S: u64 = 1_000_000_000;
const HOUR: u64 = 3600 * S;

fn key(netns: u64, port: u16) -> EdgeKey {
    EdgeKey { netns, addr: [0; 16], uid: 0, port, reserved: 0 }
}

/// An edge with its last connect at a time.
fn used(netns: u64, port: u16, last_ns: u64) -> (EdgeKey, EdgeState) {
    let state = EdgeState {
        first_ns: last_ns,
        last_ns,
        connects: 1,
        tick: 0,
        spent: 0,
        names: 0,
        reserved: 0,
        window: 0,
        heads: 0,
        flags: 0,
        unsearched: 0,
    };
    (key(netns, port), state)
}

fn observed(set: &[(EdgeKey, EdgeState)]) -> HashMap<EdgeKey, Observed> {
    let edge = |(key, state): &(EdgeKey, EdgeState)| {
        (*key, Observed { connects: state.connects, looked_up: state.last_ns, ..Observed::default() })
    };
    set.iter().map(edge).collect()
}

/// A scan from `began` on that finds these, with somebody who is watched in the first.
fn scan(living: &mut Living, began: u64, found: &[Name]) {
    living.begin(began);
    for (at, name) in found.iter().enumerate() {
        living.found(*name, at == 0, began);
    }
    living.end(true);
}

fn gone(living: &Living) -> BTreeSet<u64> {
    living.gone().collect()
}

#[test]
fn what_was_known_before_a_scan_that_has_not_found_it_is_gone() {
    let mut living = Living::default();
    living.notice(1, S);
    living.notice(2, S);
    living.begin(2 * S);
    // Comes while the scan is under way, and may be where it was already.
    living.notice(3, 3 * S);
    assert!(living.found(Name::Cookie(1), true, 3 * S));
    assert!(!living.found(Name::Cookie(1), true, 3 * S), "once in a scan");
    assert!(living.found(Name::Cookie(4), false, 3 * S), "nobody has connected from there");
    living.end(true);
    assert_eq!(gone(&living), BTreeSet::from([2]));
    scan(&mut living, 4 * S, &[Name::Cookie(1), Name::Cookie(2)]);
    assert_eq!(gone(&living), BTreeSet::from([3, 4]), "2 was found after all");
    living.forget(3);
    assert_eq!(gone(&living), BTreeSet::from([4]));
}

#[test]
fn a_scan_that_may_not_see_the_pods_says_nothing_of_who_lives() {
    for (watched, whole) in [(true, false), (false, true)] {
        let mut living = Living::default();
        living.notice(1, S);
        living.begin(2 * S);
        living.found(Name::Cookie(9), watched, 2 * S);
        living.end(whole);
        assert!(gone(&living).is_empty() && living.is_unknown(2 * S), "{watched} {whole}");
    }
    let mut living = Living::default();
    scan(&mut living, 2 * S, &[Name::Cookie(9)]);
    assert!(!living.is_unknown(2 * S + FRESH_NS));
    assert!(living.is_unknown(2 * S + FRESH_NS + 1), "that is long ago");
}

#[test]
fn without_cookies_only_namespaces_with_other_numbers_are_missed() {
    let mut living = Living::default();
    living.notice(1, S);
    scan(&mut living, 2 * S, &[Name::Reused(100), Name::Reused(101)]);
    scan(&mut living, 3 * S, &[Name::Reused(100)]);
    assert_eq!(gone(&living), BTreeSet::from([101]));
    assert!(living.is_unknown(3 * S));
}

#[test]
fn edges_wait_for_the_scan_that_tells_whose_they_are_but_not_for_ever() {
    let mut living = Living::default();
    living.notice(1, S);
    assert!(living.is_held(1, false, S) && living.is_held(1, false, S + HOLD_NS - 1));
    assert!(!living.is_held(1, true, S), "it has told");
    assert!(!living.is_held(1, false, S + HOLD_NS));
    assert!(!living.is_held(2, false, S), "nothing is known of it");

    // Found, and whose users they are is not told: the next scan may tell.
    scan(&mut living, 2 * S, &[Name::Cookie(1)]);
    assert!(living.is_held(1, false, 3 * S));
    // A failure says nothing.
    living.begin(3 * S);
    living.end(false);
    assert!(living.is_held(1, false, 4 * S));
    // It is gone, or the kernel does not tell cookies: no scan will tell more.
    scan(&mut living, 4 * S, &[Name::Cookie(7)]);
    assert!(!living.is_held(1, false, 4 * S));
    living.notice(2, 5 * S);
    scan(&mut living, 5 * S, &[Name::Reused(7)]);
    assert!(!living.is_held(2, false, 5 * S));
    assert!(!living.is_held(7, false, 5 * S), "it is found with its users");
}

#[test]
fn only_what_was_told_is_forgotten_and_only_if_nobody_has_connected_since() {
    let mut living = Living::default();
    for netns in [1, 2, 3, 4] {
        living.notice(netns, S);
    }
    scan(&mut living, 10 * S, &[Name::Cookie(1)]);
    assert_eq!(gone(&living), BTreeSet::from([2, 3, 4]));
    let set = [used(1, 1, S), used(2, 1, S), used(2, 2, S), used(3, 1, S), used(3, 2, 11 * S), used(4, 1, S)];
    let edges = observed(&set);
    let told = |key: &EdgeKey, _: &Observed| *key != self::key(2, 2);
    let mut over = living.forgettable(&set, &edges, told, false, 12 * S);
    over.edges.sort();
    let namespaces = BTreeSet::from([4]);
    assert_eq!(over, Forgettable { edges: vec![key(2, 1), key(4, 1)], namespaces });
    assert_eq!(gone(&living), BTreeSet::from([2, 4]), "3 lives");
    // A connect in the scan's first moments may bear a time from before it.
    scan(&mut living, 20 * S, &[Name::Cookie(1)]);
    let late = [used(2, 2, 20 * S - EARLY_NS)];
    assert_eq!(living.forgettable(&late, &observed(&late), |_, _| true, false, 21 * S).edges, []);
    // Nothing was seen of it but its addresses.
    living.forget(2);
    living.forget(4);
    living.notice(5, S);
    scan(&mut living, 30 * S, &[Name::Cookie(1), Name::Cookie(3)]);
    let over = living.forgettable(&[], &HashMap::new(), |_, _| true, false, 31 * S);
    assert_eq!(over, Forgettable { edges: vec![], namespaces: BTreeSet::from([5]) });
}

#[test]
fn an_edge_that_nobody_uses_is_forgotten_where_it_is_not_known_who_lives() {
    let now = 10 * HOUR;
    let old = now - IDLE_NS;
    let with = |change: &dyn Fn(&mut EdgeState)| {
        let (key, mut state) = used(1, 1, old);
        change(&mut state);
        (key, state)
    };
    let idle = |state: (EdgeKey, EdgeState), change: &dyn Fn(&mut Observed)| {
        let mut living = Living::default();
        let mut edges = observed(&[state]);
        edges.values_mut().for_each(change);
        let with_told = |told: bool, idle: bool, living: &mut Living| {
            living.forgettable(&[state], &edges, |_, _| told, idle, now).edges.len()
        };
        assert_eq!(with_told(false, true, &mut living), 0, "not told");
        assert_eq!(with_told(true, false, &mut living), 0, "no need");
        with_told(true, true, &mut living) == 1
    };
    assert!(idle(with(&|_| {}), &|_| {}));
    assert!(!idle(used(1, 1, old + 1), &|observed| observed.looked_up = 0), "connected to within the hour");
    assert!(!idle(with(&|state| state.first_ns = old + 1), &|_| {}), "made within the hour");
    assert!(!idle(with(&|state| state.window = ((old + S) / S) as u32), &|_| {}), "named a host");
    assert!(!idle(with(&|_| {}), &|observed| observed.existing = true), "a connection may be open");

    // Where no edge is left, and no scan has found it for as long, the namespace is forgotten, unless it is known who lives.
    let set = [used(1, 1, old), used(2, 1, old), used(2, 2, now), used(3, 1, old)];
    let edges = observed(&set);
    let mut living = Living::default();
    for netns in [1, 2, 3, 4] {
        living.notice(netns, old);
    }
    living.found(Name::Cookie(3), true, old + 1);
    let over = living.forgettable(&set, &edges, |_, _| true, true, now);
    assert_eq!((over.edges.len(), over.namespaces), (3, BTreeSet::from([1, 4])));
    scan(&mut living, now, &[Name::Cookie(1), Name::Cookie(2), Name::Cookie(3), Name::Cookie(4)]);
    let over = living.forgettable(&set, &edges, |_, _| true, true, now);
    assert_eq!((over.edges.len(), over.namespaces), (3, BTreeSet::new()));
}

#[test]
fn a_connection_is_over_when_scans_of_its_namespace_have_not_listed_it_for_an_hour() {
    let set = [used(1, 1, S)];
    for (listed, found, over) in [
        // Scans go on, and list it.
        (9 * HOUR, 9 * HOUR, false),
        (9 * HOUR, 10 * HOUR - 1, false),
        (9 * HOUR, 10 * HOUR, true),
        // They do not come there any more.
        (2 * HOUR, 2 * HOUR + S, false),
        // An agent before this one had listed it; nothing has happened since this one began.
        (0, 0, false),
        (0, 6 * HOUR - 1, false),
        (0, 6 * HOUR, true),
    ] {
        let mut living = Living::default();
        living.notice(1, 5 * HOUR);
        if found > 0 {
            living.found(Name::Cookie(1), true, found);
        }
        let mut edges = observed(&set);
        edges.values_mut().for_each(|observed| (observed.existing, observed.listed) = (true, listed));
        let forgettable = living.forgettable(&set, &edges, |_, _| true, true, 20 * HOUR);
        assert_eq!(forgettable.edges.len(), usize::from(over), "{listed} {found}");
    }
}

#[test]
fn without_cookies_an_open_connection_keeps_the_edges_to_its_destination() {
    let now = 10 * HOUR;
    let set = [used(1, 80, S), used(2, 80, S), used(2, 81, S)];
    let mut edges = observed(&set);
    edges.insert(key(100, 80), Observed { existing: true, listed: now, ..Observed::default() });
    let mut living = Living::default();
    for (name, kept) in [(Name::Cookie(100), 0), (Name::Reused(100), 2)] {
        living.found(name, true, now);
        let over = living.forgettable(&set, &edges, |_, _| true, true, now);
        assert_eq!(over.edges.len(), 3 - kept, "{name:?}");
    }
}

/// What happens on a machine.
#[derive(Clone, Debug)]
enum Happens {
    Connect { netns: u64, port: u16 },
    Ends(u64),
    Tell,
    Begin,
    End { whole: bool },
    Forget,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (1..6u64, 1..4u16).prop_map(|(netns, port)| Happens::Connect { netns, port }),
        1 => (1..6u64).prop_map(Happens::Ends),
        2 => Just(Happens::Tell),
        2 => Just(Happens::Begin),
        2 => proptest::bool::weighted(0.8).prop_map(|whole| Happens::End { whole }),
        2 => Just(Happens::Forget),
    ]
}

proptest! {
    /// The kernel and an agent as a model: a pod that ends never comes again (cookies are not reused), and a scan finds whoever lives
    /// from its begin to its end.
    #[test]
    fn no_edge_is_lost_and_nothing_stays_of_what_is_gone(events in proptest::collection::vec(happens(), 0..120)) {
        let mut living = Living::default();
        let (mut kernel, mut told) = (HashMap::new(), HashSet::new());
        let (mut ended, mut ever_made) = (HashSet::new(), HashSet::new());
        let mut ended_in_scan = None::<HashSet<u64>>;
        let mut now = S;
        let swept = |kernel: &HashMap<EdgeKey, EdgeState>| {
            let set: Vec<_> = kernel.iter().map(|(key, state)| (*key, *state)).collect();
            let edges = observed(&set);
            (set, edges)
        };
        let finish = [Happens::End { whole: false }, Happens::Tell, Happens::Begin, Happens::End { whole: true }, Happens::Forget];
        for event in events.into_iter().chain(finish) {
            now += S;
            for key in kernel.keys() {
                let key: &EdgeKey = key;
                living.notice(key.netns, now);
            }
            match event {
                Happens::Connect { netns, port } if !ended.contains(&netns) => {
                    let (key, state) = used(netns, port, now);
                    if kernel.insert(key, state).is_none() {
                        // The ring brings it anew.
                        told.remove(&key);
                    }
                    ever_made.insert(key);
                }
                Happens::Connect { .. } => {}
                Happens::Ends(netns) => {
                    ended.insert(netns);
                    if let Some(ended) = &mut ended_in_scan {
                        ended.insert(netns);
                    }
                }
                Happens::Tell => told.extend(kernel.keys().copied()),
                Happens::Begin => {
                    living.begin(now);
                    ended_in_scan = Some(HashSet::new());
                }
                Happens::End { whole } => {
                    if ended_in_scan.take().is_some() {
                        living.found(Name::Cookie(99), true, now);
                        for netns in (1..6).filter(|netns| !ended.contains(netns)) {
                            living.found(Name::Cookie(netns), false, now);
                        }
                    }
                    living.end(whole);
                }
                Happens::Forget => {
                    let (set, edges) = swept(&kernel);
                    let over = living.forgettable(&set, &edges, |key, _| told.contains(key), false, now);
                    for key in &over.edges {
                        prop_assert!(ended.contains(&key.netns), "{key:?} lives");
                        prop_assert!(told.contains(key), "{key:?} was never told");
                        kernel.remove(key);
                    }
                    for netns in &over.namespaces {
                        prop_assert!(kernel.keys().all(|key: &EdgeKey| key.netns != *netns));
                        living.forget(*netns);
                    }
                }
            }
        }
        let lost = ever_made.iter().find(|key| !kernel.contains_key(key) && !told.contains(key));
        prop_assert_eq!(lost, None);
        let left = kernel.keys().find(|key| ended.contains(&key.netns));
        prop_assert_eq!(left, None);
        prop_assert!(living.known.keys().all(|netns| !ended.contains(netns)), "{:?}", living);
    }
}
