//! From what is there to what is wanted: in steps that never take from a pod what another object was to give it.

use std::sync::Arc;

use super::*;
use crate::model::config::{ExistingEgress, ExistingSidecar};
use crate::model::dependencies::{Coverage, Dependency, EvidenceKind, Port, Record};
use crate::model::policy::{Policy, PolicySpec};
use crate::model::stamp::{Seconds, Timestamp};

const NOW: Time = Time(1_800_000_000_000);

fn existing(sidecar: &Sidecar) -> ExistingSidecar {
    let hosts = sidecar.spec.egress[0].hosts.iter().map(|host| String::from(host.clone()));
    ExistingSidecar {
        namespace: sidecar.metadata.namespace.clone(),
        name: sidecar.metadata.name.clone(),
        is_ours: true,
        created: None,
        selector: Some(sidecar.spec.workload_selector.labels.clone()),
        egress: vec![ExistingEgress { hosts: hosts.collect(), is_special: false }],
        ingress: sidecar.spec.inherited.ingress.clone(),
        inbound_connection_pool: sidecar.spec.inherited.inbound_connection_pool.clone(),
        outbound_traffic_policy: sidecar.spec.inherited.outbound_traffic_policy.clone(),
        outbound: None,
    }
}

/// What is there after a change.
fn apply(current: &mut Current, change: &Change) {
    match &change.what {
        What::Create(sidecar) | What::Update(sidecar) => current.insert(Arc::new(existing(sidecar))),
        What::Delete(key) => current.remove(key),
    }
}

/// What is there after all of them.
pub(super) fn current_of(changes: &[Change], current: &Current) -> Current {
    let mut current = current.clone();
    changes.iter().for_each(|change| apply(&mut current, change));
    current
}

fn there(name: &str, labels: &[(&str, &str)], hosts: &[&str]) -> Arc<ExistingSidecar> {
    Arc::new(ExistingSidecar {
        namespace: ns("ns"),
        name: name.to_owned(),
        is_ours: true,
        created: None,
        selector: Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()),
        egress: vec![ExistingEgress {
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            is_special: false,
        }],
        ingress: None,
        inbound_connection_pool: None,
        outbound_traffic_policy: None,
        outbound: None,
    })
}

/// A record of 100 hours of calls to these services of `ns`.
fn record(hosts: &[&str]) -> Record {
    let port = Port {
        port: 80,
        protocol: PortProtocol::Http,
        seen: [EvidenceKind::Host].into_iter().collect(),
        address_only: false,
        existing: false,
        host_unknown: None,
        first_seen: Timestamp::default(),
        last_seen: Timestamp::default(),
        covered_when_last_seen: Seconds(360_000),
    };
    let dependency = |name: &&str| Dependency {
        host: host(&format!("{name}.test")),
        namespace: ns("ns"),
        first_by: None,
        ports: vec![port],
    };
    Record {
        coverage: Coverage {
            covered: Seconds(360_000),
            through: Some(Timestamp::floor(NOW)),
            watched_pods: 1,
            pods: 1,
            ..Coverage::default()
        },
        dependencies: hosts.iter().map(dependency).collect(),
        ..Record::default()
    }
}

fn enforced(mesh: &mut Mesh) {
    let spec = PolicySpec { mode: Some(Mode::Enforce), ..PolicySpec::default() };
    let policy = Policy { namespace: ns("istio-system"), name: "mesh".to_owned(), spec: Ok(spec) };
    mesh.config.policies = vec![policy];
}

fn step_of(mesh: &Mesh, records: &BTreeMap<WorkloadRef, Record>, current: &Current) -> Plan {
    let seen = Recorded { records: records.iter().collect(), ..Recorded::default() };
    Planner::new(mesh, seen.workloads(), Basis::Records).plan(&seen, current, NOW)
}

/// `effect name hosts`
fn told(plan: &Plan) -> Vec<String> {
    let line = |change: &Change| match &change.what {
        What::Delete((_, name)) => format!("{:?} -{name}", change.effect),
        What::Create(sidecar) | What::Update(sidecar) => {
            let hosts: Vec<_> = sidecar.spec.egress[0].hosts.iter().map(|h| h.host().to_string()).collect();
            let new = if matches!(change.what, What::Create(_)) { "+" } else { "" };
            let labels: Vec<_> = sidecar.spec.workload_selector.labels.values().cloned().collect();
            format!(
                "{:?} {new}{} {} {}",
                change.effect,
                sidecar.metadata.name,
                labels.join(","),
                hosts.join(" ")
            )
        }
    };
    plan.changes.iter().map(line).collect()
}

fn two() -> (Mesh, BTreeMap<WorkloadRef, Record>) {
    let mut mesh = Mesh::default();
    for app in ["a", "b"] {
        add(&mut mesh, &format!("ns/Deployment/{app}"), &[("app", app)], &[("app", app)], &[("app", app)]);
    }
    enforced(&mut mesh);
    let records = ["a", "b"].map(|app| (workload(&format!("ns/Deployment/{app}")), record(&["x"])));
    (mesh, records.into())
}

#[test]
fn a_scope_is_widened_first_and_narrowed_in_the_next_step() {
    let (mesh, records) = two();
    let mut current = Current::default();
    let plan = step_of(&mesh, &records, &current);
    assert_eq!(told(&plan), ["Narrows +a a x.test", "Narrows +b b x.test"]);
    current = current_of(&plan.changes, &current);
    assert!(step_of(&mesh, &records, &current).changes.is_empty(), "twice gives no change");

    current.insert(there("a", &[("app", "a")], &["*/old.test"]));
    let plan = step_of(&mesh, &records, &current);
    assert_eq!((told(&plan), plan.deferred), (vec!["Widens a a old.test x.test".to_owned()], 1));
    current = current_of(&plan.changes, &current);
    let plan = step_of(&mesh, &records, &current);
    assert_eq!((told(&plan), plan.deferred), (vec!["Narrows a a x.test".to_owned()], 0));
}

#[test]
fn a_workload_leaves_one_sidecar_before_it_gets_another() {
    let (mesh, records) = two();
    let mut current = Current::default();
    // One that was made for both.
    current.insert(there("a", &[("app", "a")], &["*/x.test"]));
    current.insert(there("old", &[("app", "b")], &["*/x.test"]));
    let plan = step_of(&mesh, &records, &current);
    assert_eq!((told(&plan), plan.deferred), (vec!["Widens -old".to_owned()], 1));
    current = current_of(&plan.changes, &current);
    let plan = step_of(&mesh, &records, &current);
    assert_eq!((told(&plan), plan.deferred), (vec!["Narrows +b b x.test".to_owned()], 0));
}

#[test]
fn two_that_have_each_other_s_pods_begin_anew() {
    let (mesh, records) = two();
    let mut current = Current::default();
    current.insert(there("a", &[("app", "b")], &["*/x.test"]));
    current.insert(there("b", &[("app", "a")], &["*/x.test"]));
    let plan = step_of(&mesh, &records, &current);
    assert_eq!(told(&plan), ["Widens -a", "Widens -b"]);
    current = current_of(&plan.changes, &current);
    assert_eq!(told(&step_of(&mesh, &records, &current)), ["Narrows +a a x.test", "Narrows +b b x.test"]);
}

#[test]
fn what_somebody_wrote_into_ours_is_put_right_only_when_it_may_be_narrowed() {
    let (mesh, mut records) = two();
    let mut current = current_of(&step_of(&mesh, &records, &Current::default()).changes, &Current::default());
    current.insert(there("a", &[("app", "a")], &["./*", "*/x.test"]));
    assert_eq!(told(&step_of(&mesh, &records, &current)), ["Narrows a a x.test"]);
    records.get_mut(&workload("ns/Deployment/a")).unwrap().coverage.pods = 2;
    assert!(step_of(&mesh, &records, &current).changes.is_empty());
}

#[test]
fn while_something_is_not_known_a_sidecar_stays_and_is_only_widened() {
    let (mesh, mut records) = two();
    let current = current_of(&step_of(&mesh, &records, &Current::default()).changes, &Current::default());
    let mut unknown = record(&["y"]);
    unknown.coverage.pods = 2;
    records.insert(workload("ns/Deployment/a"), unknown);
    let plan = step_of(&mesh, &records, &current);
    assert_eq!((told(&plan), plan.deferred), (vec!["Widens a a x.test y.test".to_owned()], 0));
    let after = current_of(&plan.changes, &current);
    assert!(step_of(&mesh, &records, &after).changes.is_empty());
    // Records that are gone are no reason either.
    records.clear();
    assert!(step_of(&mesh, &records, &after).changes.is_empty());
}

#[test]
fn a_sidecar_of_a_workload_that_is_gone_goes() {
    let (mut mesh, records) = two();
    let current = current_of(&step_of(&mesh, &records, &Current::default()).changes, &Current::default());
    mesh.workloads.remove(&workload("ns/Deployment/b"));
    mesh.pods.retain(|_, pod| pod.workload.name != "b");
    let only_a: BTreeMap<_, _> = records.into_iter().filter(|(workload, _)| workload.name == "a").collect();
    assert_eq!(told(&step_of(&mesh, &only_a, &current)), ["Widens -b"]);
}

type Made = (Vec<(&'static str, &'static str)>, Vec<&'static str>, bool);

fn made() -> impl Strategy<Value = Made> {
    let hosts = prop::sample::subsequence(vec!["w", "x", "y", "z"], 0..=3);
    (any_labels(), hosts, prop::bool::weighted(0.8))
}

/// A mesh of these workloads, and their records.
fn built(workloads: &[Made]) -> (Mesh, BTreeMap<WorkloadRef, Record>) {
    let mut mesh = Mesh::default();
    let mut records = BTreeMap::new();
    for (n, (template, hosts, is_known)) in workloads.iter().enumerate() {
        let name = format!("ns/D/{}", ["a", "b", "c", "d", "e", "f"][n]);
        add(&mut mesh, &name, template, &template[..template.len().min(1)], template);
        let mut record = record(hosts);
        record.coverage.pods = if *is_known { 1 } else { 2 };
        records.insert(workload(&name), record);
    }
    enforced(&mut mesh);
    (mesh, records)
}

/// The hosts that a pod is told of; `None`: all.
fn scope_of(
    current: &Current,
    mesh: &Mesh,
    name: &WorkloadRef,
) -> Result<Option<BTreeSet<String>>, TestCaseError> {
    let labels = &mesh.workloads[name].template_labels;
    let hit: Vec<_> = current
        .all()
        .filter(|sidecar| sidecar.selector.iter().all(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v))))
        .collect();
    prop_assert!(hit.len() <= 1, "{name} is selected by {hit:?}");
    Ok(hit.first().map(|sidecar| sidecar.egress[0].hosts.iter().cloned().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn steps_lead_to_what_is_wanted_without_a_pod_ever_losing_what_it_calls(
        before in prop::collection::vec(made(), 1..6),
        after in prop::collection::vec(made(), 1..6),
        order in any::<u64>(),
    ) {
        let mut current = Current::default();
        let (mesh, records) = built(&before);
        for _ in 0..12 {
            let plan = step_of(&mesh, &records, &current);
            if plan.changes.is_empty() { break; }
            current = current_of(&plan.changes, &current);
        }
        // Everything changes: labels, calls, who is known.
        let (mesh, records) = built(&after);
        let wanted: BTreeMap<_, _> = records.iter().map(|(name, record)| {
            let hosts: BTreeSet<_> = record.dependencies.iter().map(|d| format!("*/{}", d.host)).collect();
            (name, hosts)
        }).collect();
        let mut steps = 0;
        loop {
            let plan = step_of(&mesh, &records, &current);
            prop_assert_eq!(&plan, &step_of(&mesh, &records, &current), "the same input, the same plan");
            if plan.changes.is_empty() {
                prop_assert_eq!(plan.deferred, 0);
                break;
            }
            steps += 1;
            prop_assert!(steps < 24, "no end: {:?}", told(&plan));
            let mut changes = plan.changes.clone();
            let shift = usize::try_from(order % 7).unwrap() % changes.len();
            changes.rotate_left(shift);
            // Before the step labels of pods may have changed under Sidecars that are there; what the step does makes nothing worse.
            let missing = |current: &Current| -> Result<BTreeMap<WorkloadRef, BTreeSet<String>>, TestCaseError> {
                let mut missing = BTreeMap::new();
                for (name, wanted) in &wanted {
                    let hit = current.all().filter(|s| s.selector.iter().all(|s| s.iter().all(|(k, v)| mesh.workloads[*name].template_labels.get(k) == Some(v))));
                    let lacks: BTreeSet<_> = hit.flat_map(|s| {
                        let hosts: BTreeSet<_> = s.egress[0].hosts.iter().cloned().collect();
                        wanted.difference(&hosts).cloned().collect::<Vec<_>>()
                    }).collect();
                    missing.insert((*name).clone(), lacks);
                }
                Ok(missing)
            };
            for change in &changes {
                let before = missing(&current)?;
                let selected_before: usize = selections(&current, &mesh);
                apply(&mut current, change);
                for (name, lacks) in missing(&current)? {
                    prop_assert!(lacks.is_subset(&before[&name]), "{name} loses {lacks:?} by {change:?}");
                }
                prop_assert!(selections(&current, &mesh) <= selected_before, "two select one pod by {change:?}");
            }
        }
        for name in records.keys() {
            if let Some(hosts) = scope_of(&current, &mesh, name)? {
                prop_assert!(wanted[name].is_subset(&hosts), "{name}");
            }
        }
    }

    #[test]
    fn the_order_in_which_things_come_does_not_matter(workloads in prop::collection::vec(made(), 1..6)) {
        let (mesh, records) = built(&workloads);
        let plan = step_of(&mesh, &records, &Current::default());
        // What is a map keeps no order; lists of rules and policies do.
        let mut turned = mesh.clone();
        turned.services.reverse();
        turned.config.policies.reverse();
        let mut backwards = records.clone();
        for record in backwards.values_mut() {
            record.dependencies.reverse();
        }
        prop_assert_eq!(plan, step_of(&turned, &backwards, &Current::default()));
    }
}

/// How often a pod has more Sidecars than one.
fn selections(current: &Current, mesh: &Mesh) -> usize {
    let count = |labels: &Labels| {
        let hit = |sidecar: &&Arc<ExistingSidecar>| {
            sidecar.selector.iter().all(|s| s.iter().all(|(k, v)| labels.get(k) == Some(v)))
        };
        current.all().filter(hit).count().saturating_sub(1)
    };
    mesh.workloads.values().map(|workload| count(&workload.template_labels)).sum()
}
