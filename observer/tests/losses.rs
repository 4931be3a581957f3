//! Every cause of a loss is explained to whoever finds it in the results.

use std::collections::BTreeSet;

use sidescope_common::Counter;

const EXPLAINED: &str = include_str!("../../docs/losses.md");
/// Losses in user space; their names are the strings of one match, which the compiler keeps complete.
const LOSSES: &str = include_str!("../src/losses.rs");

fn causes() -> BTreeSet<&'static str> {
    let (_, names) = LOSSES.split_once("impl Loss {").expect("causes have names");
    let (names, _) = names.split_once("\n}").expect("an end of the names");
    let named = names.lines().filter_map(|line| line.split_once("=> \"")?.1.split_once('"'));
    let named: BTreeSet<_> = named.map(|(name, _)| name).collect();
    assert!(named.contains("agentKilled") && named.len() >= 12, "not read: {named:?}");
    let counters = Counter::ALL.into_iter().filter(|counter| counter.is_loss());
    named.into_iter().chain(counters.map(Counter::name)).collect()
}

#[test]
fn the_table_of_losses_has_every_cause_and_no_other() {
    let rows = EXPLAINED.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let explained: BTreeSet<_> = rows
        .map(|(cause, rest)| {
            let cells: Vec<_> = rest.trim_end_matches(" |").split(" | ").collect();
            assert!(cells.len() == 2 && cells.iter().all(|cell| !cell.is_empty()), "{cause}: {cells:?}");
            cause
        })
        .collect();
    assert_eq!(explained, causes());
}
