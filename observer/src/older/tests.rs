use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// A socket on an edge of which every connection has its search, and one on an edge where some have none.
#[derive(Clone, Copy)]
enum On {
    Searched(u64),
    Unsearched(u64),
}
use On::{Searched, Unsearched};

/// One scan: by namespace whether all of it was listed, and what. Returns what the kernel is told of, and what it may forget.
fn scan(older: &mut Older, namespaces: &[(u64, bool, &[On])], gaps: bool) -> (Vec<u64>, Vec<u64>) {
    let mut news = Vec::new();
    for (netns, whole, sockets) in namespaces {
        older.namespace(*netns, *whole);
        for socket in *sockets {
            let (socket, unsearched) = match *socket {
                Searched(socket) => (socket, false),
                Unsearched(socket) => (socket, true),
            };
            match older.sight(*netns, socket, unsearched) {
                Sight::Fine => {}
                Sight::Tell => {
                    older.told(*netns, socket);
                    news.push(socket);
                }
                Sight::NoRoom => panic!("{socket}"),
            }
        }
    }
    let mut gone = older.end(gaps);
    gone.sort_unstable();
    (news, gone)
}

#[test]
fn only_what_the_first_list_shows_is_older() {
    let mut older = Older::default();
    assert!(!older.is_complete());
    let first = [(1, true, &[Searched(10), Searched(11)][..]), (2, true, &[Searched(20)])];
    assert_eq!(scan(&mut older, &first, false), (vec![10, 11, 20], vec![]));
    assert!(older.is_complete());
    let second = [(1, true, &[Searched(10), Searched(12)][..]), (3, true, &[Searched(30)])];
    assert_eq!(scan(&mut older, &second, false), (vec![], vec![11, 20]), "20 with its namespace");
    assert_eq!(scan(&mut older, &[(1, true, &[Searched(12)])], false), (vec![], vec![10]));
    assert!(older.told.is_empty());
}

#[test]
fn a_connection_without_a_search_is_told_when_two_lists_in_a_row_show_it() {
    let mut older = Older::default();
    assert_eq!(scan(&mut older, &[(1, true, &[])], false), (vec![], vec![]));
    let pool = [(1, true, &[Unsearched(10), Searched(11), Unsearched(12)][..])];
    assert_eq!(scan(&mut older, &pool, false), (vec![], vec![]));
    assert_eq!(scan(&mut older, &[(1, true, &[Unsearched(10)])], false), (vec![10], vec![]));
    // It was away: 12 begins anew.
    assert_eq!(scan(&mut older, &pool, false), (vec![], vec![]));
    assert_eq!(scan(&mut older, &pool, false), (vec![12], vec![]));
    assert_eq!(scan(&mut older, &pool, false), (vec![], vec![]), "once");
    assert_eq!(scan(&mut older, &[(1, true, &[])], false), (vec![], vec![10, 12]));
}

#[test]
fn what_another_process_has_told_is_forgotten_when_it_is_closed() {
    let mut older = Older::adopted([(10, 1), (11, 1)], true);
    assert!(older.is_complete());
    // Nobody has told of 12: the programs saw it connect. Of 13 as well, but nobody knows whether they search it.
    let open = [(1, true, &[Searched(10), Searched(12), Unsearched(13)][..])];
    assert_eq!(scan(&mut older, &open, false), (vec![], vec![11]));
    assert_eq!(scan(&mut older, &open, false), (vec![13], vec![]));
    let mut older = Older::adopted([(10, 1), (11, 1)], false);
    assert!(!older.is_complete());
    assert_eq!(scan(&mut older, &open[..1], false), (vec![12, 13], vec![11]));
    assert!(older.is_complete());
}

#[test]
fn a_namespace_that_cannot_be_listed_keeps_no_other_one_waiting() {
    let mut older = Older::default();
    // Somewhere is a namespace that nobody can enter, and the sockets of 2 cannot be listed.
    let first = [(1, true, &[Searched(10)][..]), (2, false, &[])];
    assert_eq!(scan(&mut older, &first, true), (vec![10], vec![]));
    assert!(older.is_complete());
    let second = [(1, true, &[Searched(11)][..]), (2, true, &[Searched(20)])];
    assert_eq!(scan(&mut older, &second, true), (vec![20], vec![10]), "11 was seen to connect");
    let third = [(1, true, &[Searched(12)][..]), (2, false, &[Searched(21)])];
    assert_eq!(scan(&mut older, &third, true), (vec![], vec![]), "20 may only be out of sight");
    // One that comes now may be the one that could not be entered.
    let fourth = [(2, true, &[][..]), (3, true, &[Searched(30)])];
    assert_eq!(scan(&mut older, &fourth, false), (vec![30], vec![20]));
    let fifth = [(3, true, &[][..]), (4, true, &[Searched(40)])];
    assert_eq!(scan(&mut older, &fifth, false), (vec![], vec![30]), "nothing was out of reach by now");
}

#[test]
fn a_namespace_with_more_sockets_than_are_listed_has_no_newer_ones_that_count_as_older() {
    let mut older = Older::default();
    assert_eq!(scan(&mut older, &[(1, false, &[Searched(10)])], true), (vec![10], vec![]));
    assert_eq!(scan(&mut older, &[(1, false, &[Searched(11)])], true), (vec![], vec![]));
}

#[test]
fn a_scan_that_is_cut_short_closes_nothing() {
    let mut older = Older::default();
    let open = [(1, true, &[Searched(10)][..]), (2, true, &[Searched(20)])];
    scan(&mut older, &open, false);
    older.namespace(1, true);
    older.cut_short();
    assert_eq!(scan(&mut older, &open, false), (vec![], vec![]));
}

#[test]
fn what_has_no_room_is_counted_once_and_told_when_there_is_some() {
    let mut older = Older::default();
    let list = |older: &mut Older, room: bool| {
        older.namespace(1, true);
        assert_eq!(older.sight(1, 10, false), Sight::Tell);
        let news = !room && older.refused(1, 10);
        if room {
            older.told(1, 10);
        }
        assert!(older.end(false).is_empty());
        news
    };
    assert!(list(&mut older, false));
    assert!(!list(&mut older, false));
    list(&mut older, true);
    assert_eq!(scan(&mut older, &[(1, true, &[])], false), (vec![], vec![10]));
    assert!(older.beyond.is_empty());
}

#[test]
fn all_that_is_remembered_is_bounded() {
    let mut older = Older::default();
    assert!(older.end(false).is_empty());
    older.namespace(1, true);
    for socket in 0..MAX as u64 {
        assert_eq!(older.sight(1, socket, true), Sight::Fine);
    }
    for socket in MAX as u64..3 * MAX as u64 {
        assert_eq!(older.sight(1, socket, true), Sight::NoRoom);
        assert!(older.refused(1, socket));
    }
    assert!(older.end(false).is_empty());
    assert_eq!((older.young.len(), older.beyond.len()), (MAX, MAX));
}

/// Which of a few sockets, four to a namespace, are open and which namespaces can be listed, scan after scan.
fn scans() -> impl Strategy<Value = Vec<(BTreeSet<u64>, BTreeMap<u64, bool>)>> {
    let open = prop::collection::btree_set(0..12u64, 0..12);
    let namespaces = prop::collection::btree_map(0..3u64, prop::bool::weighted(0.8), 0..4);
    prop::collection::vec((open, namespaces), 1..8)
}

proptest! {
    #[test]
    fn whatever_can_be_listed_the_kernel_knows_what_it_has_to(scans in scans()) {
        let mut older = Older::default();
        let mut told = BTreeSet::new();
        let mut before: Option<(BTreeSet<u64>, BTreeMap<u64, bool>)> = None;
        let mut listed: BTreeSet<u64> = BTreeSet::new();
        for (open, namespaces) in scans {
            // Even ones are on edges where some connection has no search.
            let on = |socket: u64| if socket.is_multiple_of(2) { Unsearched(socket) } else { Searched(socket) };
            let of = |netns: u64| open.iter().copied().filter(move |socket| socket / 4 == netns);
            let sockets: BTreeMap<u64, Vec<On>> = namespaces
                .iter()
                .map(|(netns, whole)| (*netns, if *whole { of(*netns).map(on).collect() } else { Vec::new() }))
                .collect();
            let lists: Vec<_> =
                namespaces.iter().map(|(netns, whole)| (*netns, *whole, &sockets[netns][..])).collect();
            let gaps = namespaces.values().any(|whole| !whole);
            let (news, gone) = scan(&mut older, &lists, gaps);
            for socket in &news {
                prop_assert!(told.insert(*socket), "{socket} was told twice");
                prop_assert!(socket % 2 == 0 || !listed.contains(&(socket / 4)), "{socket} was seen to connect");
            }
            for socket in gone {
                prop_assert!(told.remove(&socket) && namespaces.get(&(socket / 4)) != Some(&false));
            }
            for (netns, _) in namespaces.iter().filter(|(_, whole)| **whole) {
                for socket in of(*netns) {
                    let twice = before.as_ref().is_some_and(|(open, namespaces)| {
                        open.contains(&socket) && namespaces.get(netns) == Some(&true)
                    });
                    prop_assert!(told.contains(&socket) || socket % 2 == 1 || !twice, "{socket} is blind");
                }
                prop_assert!(
                    told.iter().all(|socket| socket / 4 != *netns || open.contains(socket)),
                    "a closed one is kept"
                );
                if before.is_none() {
                    prop_assert!(of(*netns).all(|socket| told.contains(&socket)), "of the first list");
                }
            }
            prop_assert!(told.iter().all(|socket| namespaces.contains_key(&(socket / 4))));
            listed.retain(|netns| namespaces.contains_key(netns));
            listed.extend(namespaces.iter().filter(|(_, whole)| **whole).map(|(netns, _)| *netns));
            before = Some((open, namespaces));
        }
    }
}
