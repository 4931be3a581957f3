//! Who has which address when, and which connects are made meanwhile. Pure but for the dice.
//!
//! Addresses rest between two pods, as they do where a network plugin hands them out: nearly always for longer than a watch may be late.
//! Some do not rest, and what happens around those handovers is what nobody can tell.

use std::ops::Range;

use super::super::world::World;

/// Within so many milliseconds of its beginning or end a tenure is near a handover.
pub(super) const NEAR_MS: u64 = 2_000;
/// Connects in one tenure: of its pod, to its pod, and elsewhere.
const CALLS: usize = 5;
const CALLED: usize = 5;
const OTHERS: usize = 2;
/// Share of those of its pod and to its pod that are near a handover. Of all connects it is a tenth.
const NEAR: f64 = 0.13;
/// Longest time until an agent tells of a connect.
const DELAY_MS: u64 = 30_000;

/// Milliseconds that a pod has its address, and that the address rests afterwards: nine seconds together.
const LENGTH_MS: Range<u64> = 4_500..7_500;
const REST_MS: Range<u64> = 2_300..3_700;
/// The same where it does not rest, and the share of those.
const NO_REST_MS: Range<u64> = 0..1_000;
const NO_REST: f64 = 0.005;
/// How long after the fact the kubelet tells of an address, and of the end of a pod.
const KUBELET_MS: Range<u64> = 0..500;
/// How long before its end a pod is told to end, where somebody deletes it and does not just kill it.
const NOTICE_MS: Range<u64> = 500..2_000;

/// A time through which one pod has an address. All times are milliseconds from the start of the churn.
#[derive(Clone, Debug)]
pub(super) struct Tenure {
    /// Which of the shared addresses.
    pub(super) shared: usize,
    pub(super) workload: usize,
    pub(super) from: u64,
    pub(super) until: u64,
    /// When the kubelet tells of the address.
    pub(super) told: u64,
    /// When somebody asks for its end.
    pub(super) asked_to_end: Option<u64>,
    /// When the kubelet tells of its end.
    pub(super) gone: u64,
    /// In the order in which agents tell of them.
    pub(super) connects: Vec<Planned>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Planned {
    pub(super) at: u64,
    /// When the agent tells of it.
    pub(super) told: u64,
    pub(super) what: What,
    pub(super) is_near: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The pod calls the nth service of those that its workload calls.
    Calls { nth: usize, by_uid: bool },
    /// A pod of this calm workload calls the pod.
    Called { by: usize, any: usize },
    /// A pod of this calm workload calls the nth of its services.
    Other { by: usize, any: usize, nth: usize },
}

/// Everything that happens, in the order in which pods get addresses.
pub(super) fn plan(world: &World) -> Vec<Tenure> {
    let end = u64::try_from(world.churn.as_millis()).unwrap_or(u64::MAX);
    let mut tenures = Vec::new();
    for shared in 0..world.shared {
        let mut from = fastrand::u64(1_000..LENGTH_MS.end);
        let mut workload = fastrand::usize(world.calm()..world.workloads);
        loop {
            let until = from + fastrand::u64(LENGTH_MS);
            if until > end {
                break;
            }
            tenures.push(tenure(world, shared, workload, from, until));
            from = until + fastrand::u64(if fastrand::f64() < NO_REST { NO_REST_MS } else { REST_MS });
            // Never the same one twice: that would be no mix-up.
            let others = fastrand::usize(1..world.restless);
            workload = world.calm() + (workload - world.calm() + others) % world.restless;
        }
    }
    tenures.sort_by_key(|tenure| tenure.from);
    tenures
}

fn tenure(world: &World, shared: usize, workload: usize, from: u64, until: u64) -> Tenure {
    let callers: Vec<usize> = world.callers_of(workload).collect();
    let mut connects: Vec<Planned> = (0..CALLS + CALLED + OTHERS)
        .map(|number| {
            let near = number < CALLS + CALLED && fastrand::f64() < NEAR;
            let what = match number {
                0..CALLS => What::Calls { nth: fastrand::usize(0..world.calls), by_uid: fastrand::bool() },
                CALLS.. if number < CALLS + CALLED => {
                    What::Called { by: callers[fastrand::usize(0..callers.len())], any: fastrand::usize(..) }
                }
                _ => What::Other {
                    by: fastrand::usize(0..world.calm()),
                    any: fastrand::usize(..),
                    nth: fastrand::usize(0..world.calls),
                },
            };
            let at = if near {
                // Nearer ones more often.
                let apart = (fastrand::f64().powi(2) * NEAR_MS as f64) as u64;
                if fastrand::bool() { from + apart } else { until - apart }
            } else {
                fastrand::u64(from + NEAR_MS..until - NEAR_MS)
            };
            let longest = if fastrand::bool() { 1_000 } else { DELAY_MS };
            Planned { at, told: at + fastrand::u64(0..=longest), what, is_near: near }
        })
        .collect();
    connects.sort_by_key(|connect| connect.told);
    Tenure {
        shared,
        workload,
        from,
        until,
        told: from + fastrand::u64(KUBELET_MS),
        asked_to_end: fastrand::bool().then(|| until - fastrand::u64(NOTICE_MS)),
        gone: until + fastrand::u64(KUBELET_MS),
        connects,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn addresses_change_hands_as_often_and_as_hard_as_the_target_asks() {
        let world = World::FULL;
        let tenures = plan(&world);
        let mut of_address: BTreeMap<usize, Vec<&Tenure>> = BTreeMap::new();
        for tenure in &tenures {
            of_address.entry(tenure.shared).or_default().push(tenure);
        }
        assert!(of_address.values().all(|owners| owners.len() >= 20));
        for owners in of_address.values() {
            for pair in owners.windows(2) {
                assert!(pair[0].until <= pair[1].from && pair[0].workload != pair[1].workload);
            }
        }
        let connects =
            || tenures.iter().flat_map(|tenure| tenure.connects.iter().map(move |one| (tenure, one)));
        let (all, near) = (connects().count(), connects().filter(|(_, one)| one.is_near).count());
        assert!(all >= 100_000 && near * 10 >= all, "{near} of {all}");
        for (tenure, one) in connects() {
            assert!(
                (tenure.from..=tenure.until).contains(&one.at) && (0..=30_000).contains(&(one.told - one.at))
            );
            let apart = (one.at - tenure.from).min(tenure.until - one.at);
            assert!(
                matches!(one.what, What::Other { .. })
                    || one.is_near == (apart <= NEAR_MS)
                    || apart == NEAR_MS
            );
        }
        let per_second = tenures.len() as f64 / world.churn.as_secs_f64();
        assert!((world.churn_per_s * 0.93..world.churn_per_s * 1.1).contains(&per_second), "{per_second}");
    }
}
