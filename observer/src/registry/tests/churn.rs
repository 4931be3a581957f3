//! A cluster in which pods and services come and go, told by watches that are late and in any order, and asked about events that come
//! later still and with clocks that are off.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Whose an address is, in the truth.
#[derive(Clone, Debug)]
struct Tenure {
    from: i64,
    until: i64,
    /// After how long each of the watches tells: of the object, of its address, of its ReplicaSet, of its end, of the slice.
    lags: [i64; 5],
    workload: usize,
    says_deletion: bool,
    ends_by_phase: bool,
    /// Its status says when its container started.
    tells_start: bool,
}

/// What a cluster is made to do.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// How wrong a clock may be.
    error: i64,
    /// From when to when the watch of pods does not work, and lists anew at the end.
    broken: Option<(i64, i64)>,
}

#[derive(Clone, Debug)]
struct Event {
    address: usize,
    /// Which tenure, and where in it.
    tenure: usize,
    part: f64,
    /// How wrong the clock is, of how wrong it may be.
    offset: f64,
    delay: i64,
}

/// Workloads of which the pods are endpoints of a headless service.
fn is_headless(workload: usize) -> bool {
    workload.is_multiple_of(3)
}

fn tenures(gap: std::ops::Range<i64>, tell_start: bool) -> impl Strategy<Value = Vec<Vec<Tenure>>> {
    let lag = || 0..=LAG;
    let tenure = (gap, 1i64..20_000, [lag(), lag(), lag(), lag(), lag()], 0usize..5, any::<[bool; 3]>());
    let history = prop::collection::vec(tenure, 1..30).prop_map(move |steps| {
        let mut now = 5_000;
        let tenures = steps.into_iter().map(|(gap, length, lags, workload, says)| {
            let (from, until) = (now + gap, now + gap + length);
            now = until;
            let [says_deletion, ends_by_phase, tells_start] = says;
            let tells_start = tells_start && tell_start;
            Tenure { from, until, lags, workload, says_deletion, ends_by_phase, tells_start }
        });
        tenures.collect()
    });
    prop::collection::vec(history, 1..4)
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0usize..4, 0usize..30, 0.0f64..1.0, -1.0f64..1.0, 0i64..30_000);
    let event = event.prop_map(|(address, tenure, part, offset, delay)| Event {
        address,
        tenure,
        // Half of them are near a handover.
        part: if delay % 2 == 0 { part } else { part.powi(8) },
        offset,
        delay,
    });
    prop::collection::vec(event, 64)
}

fn timestamp(time: i64) -> String {
    let since = std::time::Duration::from_millis(ms(time).0.unsigned_abs());
    humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + since).to_string()
}

/// What the watches tell of a pod and of a service that has a ClusterIP for the same time, each with when.
fn told(place: usize, nth: usize, tenure: &Tenure) -> Vec<(i64, bool, serde_json::Value)> {
    let Tenure { from, until, lags, workload, .. } = *tenure;
    let (name, replica_set) = (format!("p{place}-{nth}"), format!("rs{place}-{nth}"));
    let address = format!("10.0.0.{place}");
    let pod = |addresses: &[&str], phase: &str, deleted: bool| {
        let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
        json!({
            "kind": "Pod",
            "metadata": {
                "name": name, "uid": name, "creationTimestamp": timestamp(from - 3_000),
                "deletionTimestamp": deleted.then(|| timestamp(until)),
                "ownerReferences": [{"kind": "ReplicaSet", "name": replica_set, "controller": true}],
            },
            "status": {
                "phase": phase, "podIPs": ips,
                "containerStatuses": tenure.tells_start.then(|| json!([
                    {"state": {"running": {"startedAt": timestamp(from)}}}
                ])),
            },
        })
    };
    let set = json!({
        "kind": "ReplicaSet",
        "metadata": {"name": replica_set, "ownerReferences": [
            {"kind": "Deployment", "name": format!("w{workload}"), "controller": true}
        ]},
    });
    let service = json!({
        "kind": "Service",
        "metadata": {"name": name, "creationTimestamp": timestamp(from)},
        "spec": {"clusterIP": format!("10.96.0.{place}"), "ports": [{"port": 80}]},
    });
    let slice = json!({
        "kind": "EndpointSlice",
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "headless"}},
        "endpoints": [{"addresses": [address], "targetRef": {"kind": "Pod", "uid": name}}],
    });
    // Each object's watch tells in the order in which it happened, however late.
    let addressed = from + lags[1];
    let removed = (until + lags[3]).max(addressed);
    let mut told = vec![
        // The first that is told of a pod is that it was made, before it has an address.
        (from - 3_000 + lags[0], true, pod(&[], "Pending", false)),
        (addressed, true, pod(&[&address], "Running", false)),
        (from - 3_000 + 3 * lags[2], true, set.clone()),
        (removed, false, pod(&[&address], "Running", true)),
        ((until + lags[2]).max(from + 3_000), false, set),
        (from + lags[0], true, service.clone()),
        ((until + lags[4]).max(from + lags[0]), false, service),
    ];
    let begin = (until - 2_000).max(addressed);
    if tenure.says_deletion && begin < until {
        told.push((begin, true, pod(&[&address], "Running", true)));
    }
    if tenure.ends_by_phase {
        let ended = until + lags[3].min(lags[4]);
        told.push((ended.max(addressed).min(removed), true, pod(&[&address], "Succeeded", true)));
    }
    if is_headless(workload) {
        told.push((from + lags[4], true, slice.clone()));
        told.push((until + lags[4], false, slice));
    }
    // What is told at once is told in this order.
    told.sort_by_key(|(at, is_there, _)| (*at, !is_there));
    told
}

/// The watches of a cluster, and how far they are.
struct Playing {
    registry: Registry,
    /// What they will tell, in the order of time.
    told: std::iter::Peekable<std::vec::IntoIter<(i64, bool, serde_json::Value)>>,
    /// The pods that the API server has.
    pods: BTreeMap<String, serde_json::Value>,
    broken: Option<(i64, i64)>,
}

impl Playing {
    fn new(histories: &[Vec<Tenure>], broken: Option<(i64, i64)>) -> Self {
        let mut registry = Registry::new(ms(0));
        for kind in Kind::ALL {
            registry.begin_list(kind);
            registry.end_list(kind, Span::between(Time(i64::MIN), ms(0)));
        }
        let headless =
            json!({"kind": "Service", "metadata": {"name": "headless"}, "spec": {"clusterIP": "None"}});
        registry.apply(read(headless), Span::at(ms(1))).unwrap();
        let mut all = Vec::new();
        for (place, tenures) in histories.iter().enumerate() {
            all.extend(tenures.iter().enumerate().flat_map(|(nth, tenure)| told(place, nth, tenure)));
        }
        all.sort_by_key(|(at, ..)| *at);
        registry.settle(ms(0));
        Self { registry, told: all.into_iter().peekable(), pods: BTreeMap::new(), broken }
    }

    /// Goes on to a time.
    fn until(&mut self, now: i64) {
        if let Some((from, end)) = self.broken.filter(|(_, end)| *end <= now) {
            self.tell_until(end, Some(from));
            let seen = Span::between(ms(from), ms(end));
            self.registry.begin_list(Kind::Pod);
            for pod in self.pods.values() {
                self.registry.apply(read(pod.clone()), seen).unwrap();
            }
            self.registry.end_list(Kind::Pod, seen);
            self.registry.settle(ms(end));
            self.broken = None;
        }
        self.tell_until(now, None);
        self.registry.settle(ms(now));
        self.registry.forget(ms(now));
    }

    fn tell_until(&mut self, now: i64, broken_since: Option<i64>) {
        while let Some((at, is_there, object)) = self.told.next_if(|(at, ..)| *at <= now) {
            let is_pod = object["kind"] == "Pod";
            if is_pod {
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                match is_there {
                    true => drop(self.pods.insert(name, object.clone())),
                    false => drop(self.pods.remove(&name)),
                }
            }
            if is_pod && broken_since.is_some_and(|since| at > since) {
                continue;
            }
            match is_there {
                true => self.registry.apply(read(object), Span::at(ms(at))).unwrap(),
                false => self.registry.remove(&read(object), Span::at(ms(at))),
            }
        }
    }
}

/// Plays it, and says of how many events it could not be told whose they were.
fn play(histories: &[Vec<Tenure>], events: &[Event], rules: Rules) -> Result<usize, TestCaseError> {
    let mut playing = Playing::new(histories, rules.broken);
    let error = rules.error;
    let mut asked: Vec<_> = events
        .iter()
        .map(|event| {
            let tenures = &histories[event.address % histories.len()];
            let tenure = &tenures[event.tenure % tenures.len()];
            let time = tenure.from + ((tenure.until - tenure.from) as f64 * event.part) as i64;
            let seen = time + (event.offset * error as f64) as i64;
            let when = Span::around(ms(seen), error);
            let at = (time + event.delay).max(when.latest().since(ms(0)) + HOLD);
            // While a watch is broken, and for a moment after it, everything waits.
            let after = rules.broken.filter(|(from, end)| (*from..*end + HOLD).contains(&at));
            (after.map_or(at, |(_, end)| end + HOLD), event, time, when)
        })
        .collect();
    asked.sort_by_key(|(at, ..)| *at);

    let mut unresolved = 0;
    for (at, event, time, when) in asked {
        playing.until(at);
        let registry = &playing.registry;
        prop_assert!(registry.settled_through(ms(at)) >= Some(when.latest()));
        let place = event.address % histories.len();
        let nth = event.tenure % histories[place].len();
        let tenure = &histories[place][nth];
        let (name, workload) = (format!("p{place}-{nth}"), format!("w{}", tenure.workload));
        let view = registry.view(when);
        let pod_address: IpAddr = format!("10.0.0.{place}").parse().unwrap();
        let context = format!("{name} at {time} by {when:?}: {:?}", histories[place]);
        let may_be_unknown = rules.broken.is_some();
        match view.destination(pod_address, 80) {
            Destination::Pod(found) => prop_assert_eq!(&found.name, &workload, "{}", context),
            Destination::Services(found) => {
                prop_assert_eq!(&found[0].service.name, "headless");
                prop_assert!(is_headless(tenure.workload), "{}", context);
            }
            Destination::Ambiguous => unresolved += 1,
            Destination::NotKnown if may_be_unknown => unresolved += 1,
            other => prop_assert!(false, "{other:?} for {context}"),
        }
        match view.source(None, &[pod_address]) {
            Ok(source) => prop_assert_eq!(source.pod.as_str(), &name, "{}", context),
            Err(NoSource::Ambiguous) => unresolved += 1,
            Err(NoSource::AddressNotKnown) if may_be_unknown => unresolved += 1,
            Err(other) => prop_assert!(false, "{other:?} for {context}"),
        }
        match view.source(Some(&PodUid::new(name.as_str()).unwrap()), &[]) {
            Ok(source) => prop_assert_eq!(&source.workload.name, &workload),
            Err(NoSource::PodNotKnown) if may_be_unknown => unresolved += 1,
            Err(other) => prop_assert!(false, "{other:?} for {context}"),
        }
        match view.destination(format!("10.96.0.{place}").parse().unwrap(), 80) {
            Destination::Services(found) => prop_assert_eq!(&found[0].service.name, &name, "{}", context),
            Destination::Ambiguous => unresolved += 1,
            other => prop_assert!(false, "{other:?} for {context}"),
        }
    }
    Ok(unresolved)
}

/// How wrong a clock may be.
const ERROR: i64 = 500;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn nobody_is_taken_for_another_however_fast_addresses_change_hands(
        histories in tenures(0..3_000, true),
        events in events(),
        error in 0i64..=ERROR,
    ) {
        play(&histories, &events, Rules { error, broken: None })?;
    }

    #[test]
    fn nobody_is_taken_for_another_while_a_watch_is_broken(
        histories in tenures(0..10_000, true),
        events in events(),
        error in 0i64..=ERROR,
        from in 0i64..100_000,
        length in 0i64..60_000,
    ) {
        play(&histories, &events, Rules { error, broken: Some((from, from + length)) })?;
    }

    #[test]
    fn everything_is_told_where_addresses_rest_between_two_pods(
        histories in tenures(LAG + 2 * ERROR + 1..20_000, false),
        events in events(),
        error in 0i64..=ERROR,
    ) {
        prop_assert_eq!(play(&histories, &events, Rules { error, broken: None })?, 0);
    }
}
