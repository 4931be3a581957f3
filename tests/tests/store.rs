//! The records of workloads in a real API server: nothing of them is forgotten, whoever else writes and whatever dies meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::json;
use sidescope::crd::WorkloadDependencies;
use sidescope::ledger::{Account, Ledger, Outcome, Seen, Settings};
use sidescope::model::dependencies::{MAX_DESTINATIONS, SeenBy};
use sidescope::model::graph::{
    Dependency, DirectCall, Evidence, Pods, PortUse, Unresolved, UnresolvedReason, WorkloadNode,
};
use sidescope::model::mesh::PortProtocol;
use sidescope::model::names::{Host, Namespace, ObjectName, WorkloadRef};
use sidescope::model::time::{Span, Time};
use sidescope::store::{Loaded, Store};
use sidescope_tests::cluster::{Cluster, Parts};
use tokio::runtime::Runtime;

const DEFINITION: &str = include_str!("../../deploy/crds/workloaddependencies.yaml");
const NOW: Time = Time(1_770_000_000_000);
/// Writes at the same time.
const WRITES: usize = 32;

/// A cluster that knows the resource, and a runtime for clients of one's own.
fn cluster() -> Result<(Cluster, Runtime)> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.apply_definitions(DEFINITION)?;
    Ok((cluster, tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?))
}

fn store(cluster: &Cluster) -> Result<Store> {
    Ok(Store::new(Client::try_from(cluster.config())?))
}

fn workload(namespace: &str, name: &str) -> Result<WorkloadRef> {
    Ok(WorkloadRef {
        namespace: Namespace::new(namespace)?,
        kind: "Deployment".to_owned(),
        name: name.to_owned(),
    })
}

fn port(seen: impl IntoIterator<Item = Evidence>) -> PortUse {
    PortUse {
        protocol: PortProtocol::Http,
        seen: seen.into_iter().collect(),
        address_only: false,
        connects: 1,
        host_unknown: false,
        existing: false,
        unknown_hosts: BTreeSet::new(),
    }
}

/// The workload calls this host.
fn call(workload: &WorkloadRef, host: &str) -> Result<WorkloadNode> {
    let host = Host::new(host)?;
    let ports = BTreeMap::from([(80, port([Evidence::Host(host.clone())]))]);
    Ok(WorkloadNode {
        losses: std::collections::BTreeSet::new(),
        workload: workload.clone(),
        pods: Pods::default(),
        dependencies: vec![Dependency { host, namespace: Namespace::new("default")?, ports }],
        direct: Vec::new(),
    })
}

fn seen(by: Option<&SeenBy>) -> Seen<'_> {
    Seen { first: Span::at(NOW), last: Span::at(NOW), by }
}

fn note(ledger: &mut Ledger, workload: &WorkloadRef, host: &str) -> Result<()> {
    merge(ledger, &call(workload, host)?, &[], &seen(None));
    Ok(())
}

fn merge(ledger: &mut Ledger, node: &WorkloadNode, unresolved: &[Unresolved], seen: &Seen<'_>) {
    let uses = node.dependencies.iter().flat_map(|dependency| {
        let (host, namespace) = (&dependency.host, &dependency.namespace);
        dependency.ports.iter().map(move |(port, port_use)| ((host, namespace, *port), port_use.clone()))
    });
    let account = Account { uses: &uses.collect(), direct: &node.direct, unresolved };
    ledger.merge(&node.workload, account, seen, NOW);
}

/// Writes until nothing new is left to be written; gives the outcomes that were not expected.
async fn write_all(store: &mut Store, ledger: &mut Ledger) -> Vec<Outcome> {
    let mut others = Vec::new();
    while ledger.not_durable() > 0 || ledger.in_flight() > 0 {
        store.start(ledger.due(NOW, WRITES));
        let Some((workload, outcome)) = store.finished().await else { break };
        if !matches!(outcome, Outcome::Written(_)) {
            others.push(outcome.clone());
        }
        ledger.done(&workload, outcome, NOW);
    }
    others
}

fn hosts(ledger: &Ledger, workload: &WorkloadRef) -> Vec<String> {
    let dependencies = ledger.record(workload).into_iter().flat_map(|record| &record.dependencies);
    dependencies.map(|dependency| dependency.host.as_str().to_owned()).collect()
}

async fn load(store: &Store) -> Result<(Ledger, Loaded)> {
    let mut ledger = Ledger::new(Settings::default());
    let loaded = store.load(&mut ledger).await?;
    Ok((ledger, loaded))
}

#[test]
fn what_was_written_is_there_after_a_restart_on_more_than_one_page() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    runtime.block_on(async {
        let mut store = store(&cluster)?;
        let mut ledger = Ledger::new(Settings::default());
        for n in 0..450 {
            note(&mut ledger, &workload("default", &format!("w{n}"))?, "a.test")?;
        }
        ensure!(write_all(&mut store, &mut ledger).await.is_empty());
        for n in 0..450 {
            note(&mut ledger, &workload("default", &format!("w{n}"))?, &format!("b{n}.test"))?;
        }
        ensure!(write_all(&mut store, &mut ledger).await.is_empty(), "each knows the version of its object");

        let (again, loaded) = load(&store).await?;
        assert_eq!(loaded, Loaded { records: 450, ..Loaded::default() });
        for (workload, record) in ledger.records() {
            assert_eq!(again.record(workload), Some(record));
        }
        let api: Api<WorkloadDependencies> = Api::default_namespaced(Client::try_from(cluster.config())?);
        let object = api.get("deployment.w7").await?;
        assert_eq!((object.spec.name.as_str(), object.status.context("no status")?.hosts), ("w7", 2));
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn of_two_leaders_neither_undoes_what_the_other_wrote() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    runtime.block_on(async {
        let web = workload("default", "web")?;
        let (mut one, mut other) = (store(&cluster)?, store(&cluster)?);
        let (mut ours, mut theirs) = (Ledger::new(Settings::default()), Ledger::new(Settings::default()));
        let mut conflicts = 0;
        for n in 0..20 {
            note(&mut ours, &web, &format!("a{n}.test"))?;
            note(&mut theirs, &web, &format!("b{n}.test"))?;
            let both = tokio::join!(write_all(&mut one, &mut ours), write_all(&mut other, &mut theirs));
            let others = [both.0, both.1].concat();
            ensure!(others.iter().all(|outcome| matches!(outcome, Outcome::Conflict(_))), "{others:?}");
            conflicts += others.len();
        }
        ensure!(conflicts >= 20, "{conflicts}");
        assert_eq!(hosts(&load(&one).await?.0, &web).len(), 40);
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn while_the_api_server_is_away_everything_is_kept() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    let web = workload("default", "web")?;
    let mut ledger = Ledger::new(Settings::default());
    let mut store = runtime.block_on(async { store(&cluster) })?;
    note(&mut ledger, &web, "before.test")?;
    ensure!(runtime.block_on(write_all(&mut store, &mut ledger)).is_empty());
    cluster.kill_apiserver();
    note(&mut ledger, &web, "meanwhile.test")?;
    let fail = async {
        store.start(ledger.due(NOW, WRITES));
        store.finished().await
    };
    let (workload, outcome) = runtime.block_on(fail).context("nothing was written")?;
    assert_eq!(outcome, Outcome::Failed);
    ledger.done(&workload, outcome, NOW);
    assert_eq!(ledger.not_durable(), 1);
    cluster.start_apiserver()?;
    let again = ledger.next_due().context("it is not tried again")?;
    runtime.block_on(async {
        store.start(ledger.due(again, WRITES));
        let (workload, outcome) = store.finished().await.context("nothing was written")?;
        ledger.done(&workload, outcome, again);
        assert_eq!(ledger.not_durable(), 0);
        assert_eq!(hosts(&load(&store).await?.0, &web), ["before.test", "meanwhile.test"]);
        anyhow::Ok(())
    })?;
    cluster.end()
}

/// As much as an agent can tell of a workload, with the longest names that there are.
fn largest(ledger: &mut Ledger, workload: &WorkloadRef) -> Result<()> {
    let long = |n: usize| format!("{n:03}{}", "x".repeat(60));
    let host = |n: usize| Host::new(&[long(n), long(n), long(n), "x".repeat(61)].join("."));
    let by = SeenBy { pod: ObjectName::new("p".repeat(253))?, node: ObjectName::new("n".repeat(253))? };
    for n in 0..MAX_DESTINATIONS + 50 {
        let mut node = call(workload, host(n)?.as_str())?;
        let (dependency, address) =
            (&mut node.dependencies[0], IpAddr::V6(Ipv6Addr::from(u128::MAX - n as u128)));
        dependency.namespace = Namespace::new(&long(n)[..63])?;
        for number in 0..20 {
            let all = [Evidence::Address(address), Evidence::Host(host(n)?), Evidence::DnsName(host(n)?)];
            let mut port = PortUse { address_only: true, existing: true, host_unknown: true, ..port(all) };
            port.unknown_hosts.insert(host(500 + n)?);
            dependency.ports.insert(60_000 + number, port);
        }
        let other = WorkloadRef {
            namespace: Namespace::new(&long(n)[..63])?,
            kind: "K".repeat(63),
            name: format!("{n:03}{}", "w".repeat(250)),
        };
        node.direct.push(DirectCall {
            workload: other,
            address,
            port: 65_535,
            connects: 1,
            host_unknown: true,
            unknown_hosts: BTreeSet::new(),
        });
        let unresolved = Unresolved {
            workload: workload.clone(),
            address,
            port: 65_535,
            hosts: BTreeSet::new(),
            host_unknown: true,
            reason: UnresolvedReason::AmbiguousAddress,
            connects: u64::MAX,
        };
        merge(ledger, &node, &[unresolved], &seen(Some(&by)));
        ledger.lost(workload, &format!("{n:03}{}", "c".repeat(61)), NOW, NOW);
    }
    ledger.judge(workload, &"ä".repeat(10_000), NOW);
    Ok(())
}

#[test]
fn the_largest_record_is_taken_and_one_that_is_not_holds_nobody_up() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    runtime.block_on(async {
        let mut store = store(&cluster)?;
        let mut ledger = Ledger::new(Settings::default());
        let web = workload("default", "web")?;
        largest(&mut ledger, &web)?;
        let bytes = serde_json::to_vec(ledger.record(&web).context("no record")?)?.len();
        ensure!((500_000..1 << 20).contains(&bytes), "{bytes}");
        assert_eq!(write_all(&mut store, &mut ledger).await, []);
        assert_eq!(load(&store).await?.0.record(&web), ledger.record(&web));

        // More than the definition has room for.
        let mut ledger = Ledger::new(Settings { max_destinations: 300, ..Settings::default() });
        let broad = workload("default", "broad")?;
        largest(&mut ledger, &broad)?;
        store.start(ledger.due(NOW, WRITES));
        let (_, outcome) = store.finished().await.context("nothing was written")?;
        assert_eq!(outcome, Outcome::Refused);
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn records_go_with_their_namespace_and_after_the_retention() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    cluster.make_namespace("short-lived")?;
    let (gone, missing) = (workload("short-lived", "web")?, workload("nowhere", "web")?);
    let mut ledger = Ledger::new(Settings::default());
    let mut store = runtime.block_on(async { store(&cluster) })?;
    // Nobody is there to end the deletion, so the namespace stays as it is.
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: short-lived}\n";
    cluster.delete(namespace)?;
    runtime.block_on(async {
        note(&mut ledger, &gone, "a.test")?;
        note(&mut ledger, &missing, "a.test")?;
        let outcomes = write_all(&mut store, &mut ledger).await;
        assert_eq!(outcomes, [Outcome::NoNamespace, Outcome::NoNamespace]);

        let web = workload("default", "web")?;
        note(&mut ledger, &web, "a.test")?;
        ensure!(write_all(&mut store, &mut ledger).await.is_empty());
        ledger.set_present(&web, false, NOW);
        let over = NOW.plus(31 * 86_400_000);
        ledger.retire(over);
        store.start(ledger.due(over, WRITES));
        let (_, outcome) = store.finished().await.context("nothing was written")?;
        assert_eq!(outcome, Outcome::Deleted);
        assert_eq!(load(&store).await?.1, Loaded::default());
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn an_object_that_somebody_else_made_is_left_alone() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    cluster.apply(
        &json!({
            "apiVersion": "sidescope.io/v1alpha1",
            "kind": "WorkloadDependencies",
            "metadata": {"name": "mine", "namespace": "default"},
            "spec": {"kind": "Deployment", "name": "web"},
        })
        .to_string(),
    )?;
    runtime.block_on(async {
        let mut store = store(&cluster)?;
        let (mut ledger, loaded) = load(&store).await?;
        assert_eq!(loaded, Loaded { foreign: 1, ..Loaded::default() });
        note(&mut ledger, &workload("default", "web")?, "a.test")?;
        ensure!(write_all(&mut store, &mut ledger).await.is_empty());
        let api: Api<WorkloadDependencies> = Api::default_namespaced(Client::try_from(cluster.config())?);
        let names =
            api.list(&ListParams::default()).await?.items.into_iter().filter_map(|item| item.metadata.name);
        assert_eq!(names.collect::<Vec<_>>(), ["deployment.web", "mine"]);
        anyhow::Ok(())
    })?;
    cluster.end()
}

#[test]
fn new_records_are_durable_fast_enough() -> Result<()> {
    let (cluster, runtime) = cluster()?;
    runtime.block_on(async {
        let mut store = store(&cluster)?;
        let mut ledger = Ledger::new(Settings::default());
        let workloads: Vec<WorkloadRef> =
            (0..500).map(|n| workload("default", &format!("w{n}"))).collect::<Result<_>>()?;
        for (round, what) in ["made", "written again"].into_iter().enumerate() {
            for workload in &workloads {
                for n in 0..10 {
                    note(&mut ledger, workload, &format!("s{round}-{n}.test"))?;
                }
            }
            let start = std::time::Instant::now();
            ensure!(write_all(&mut store, &mut ledger).await.is_empty());
            let took = start.elapsed();
            println!("500 records of 10 new edges {what} in {took:?}");
            ensure!(took < sidescope_tests::patient(Duration::from_secs(60)), "{took:?}");
        }
        anyhow::Ok(())
    })?;
    cluster.end()
}
