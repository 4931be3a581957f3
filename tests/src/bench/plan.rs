//! `cargo xtask bench plan`: how long it takes to plan a large mesh, all of it and after one new edge, and with how much memory. On one
//! core, and with nothing of the cluster but what plans are made from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidescope::model::config::{Config, HostPattern, ObjectRef, Route, Routes, Visibility};
use sidescope::model::dependencies::{Coverage, Dependency, EvidenceKind, Port, Record};
use sidescope::model::mesh::{
    AddressRange, Labels, Mesh, Pod, PodRef, PortProtocol, Service, ServiceKind, ServicePort, Workload,
};
use sidescope::model::names::{Host, Namespace, WorkloadRef};
use sidescope::model::policy::{Mode, Policy, PolicySpec};
use sidescope::model::stamp::{Seconds, Timestamp};
use sidescope::model::time::Time;
use sidescope::plan::{Basis, Current, Planner, Recorded, Seen};

/// Workloads, each with a pod and a service.
const WORKLOADS: usize = 20_000;
/// Services that each calls.
const CALLS: usize = 10;
/// Workloads of a namespace.
const IN_NAMESPACE: usize = 50;
/// One service of so many has a VirtualService that leads to another one.
const ROUTED: usize = 10;
/// How often all is planned, and how many workloads alone.
const ROUNDS: usize = 5;
const EDGES: usize = 2_000;
const NOW: Time = Time(1_800_000_000_000);

/// Measures, prints and writes the JSON.
pub fn run(out: &Path) -> Result<()> {
    let mesh = mesh()?;
    let records = records(&mesh);
    let mut full = Vec::new();
    let mut edges = Vec::new();
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let mut seen = Recorded { records: records.iter().collect(), ..Recorded::default() };
        let planner = Planner::new(&mesh, records.keys(), Basis::Records);
        let plan = planner.plan(&seen, &Current::default(), NOW);
        full.push(begin.elapsed().as_secs_f64());
        ensure!(plan.changes.len() == WORKLOADS, "only {} Sidecars are planned", plan.changes.len());
        drop(plan);
        if round > 0 {
            continue;
        }
        let changed: Vec<(WorkloadRef, Record)> = records
            .iter()
            .enumerate()
            .step_by(WORKLOADS / EDGES)
            .map(|(at, (workload, record))| {
                let mut record = record.clone();
                record.dependencies.push(dependency(&mesh, (at * 7 + 3) % WORKLOADS));
                (workload.clone(), record)
            })
            .collect();
        for (workload, record) in &changed {
            let begin = Instant::now();
            seen.records.insert(workload, record);
            let replanned = planner.replan(workload, &seen, &Current::default(), NOW);
            edges.push(begin.elapsed().as_secs_f64() * 1e3);
            ensure!(replanned.is_some_and(|plan| plan.changes.len() == 1), "{workload} is not planned anew");
        }
        ensure!(seen.workloads().count() == WORKLOADS, "a workload is lost");
    }
    full.sort_by(f64::total_cmp);
    edges.sort_by(f64::total_cmp);
    let (full_s, one_edge_ms) = (full[ROUNDS / 2], edges[edges.len() * 99 / 100]);
    let rss_mib = peak_mib()?;
    println!("{WORKLOADS} workloads x {CALLS} dependencies: all in {full_s:.2} s, at most {rss_mib} MiB;");
    println!("after one new edge its workload in {one_edge_ms:.3} ms (99 of 100)");
    let report = json!({
        "workloads": WORKLOADS,
        "dependencies": CALLS,
        "full_s": full_s,
        "rss_mib": rss_mib,
        "one_edge_ms": one_edge_ms,
        "one_edge_ms_longest": edges.last(),
    });
    if let Some(folder) = out.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = format!("{report:#}\n");
    fs::write(out, text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("written to {}", out.display());
    Ok(())
}

fn namespace(at: usize) -> Result<Namespace> {
    Ok(Namespace::new(format!("ns-{}", at / IN_NAMESPACE))?)
}

fn mesh() -> Result<Mesh> {
    let mut mesh = Mesh::default();
    let mut routes = Vec::new();
    for at in 0..WORKLOADS {
        let namespace = namespace(at)?;
        let name = format!("app-{at}");
        let workload =
            WorkloadRef { namespace: namespace.clone(), kind: "Deployment".to_owned(), name: name.clone() };
        let labels = |more: &[(&str, &str)]| -> Labels {
            let own = [("app", name.as_str()), ("version", "v1")];
            own.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let [high, low] = u16::try_from(at)?.to_be_bytes();
        let address = |net: u8| std::net::IpAddr::from([10, net, high, low]);
        mesh.pods.insert(
            PodRef { namespace: namespace.clone(), name: format!("{name}-5f4-abc") },
            Pod {
                workload: workload.clone(),
                labels: Arc::new(labels(&[("security.istio.io/tlsMode", "istio")])),
                addresses: BTreeSet::from([address(0)]),
                host_network: false,
            },
        );
        let template =
            Workload { template_labels: labels(&[]), match_labels: labels(&[]), ..Workload::default() };
        mesh.workloads.insert(workload, template);
        let host = Host::of_service(&name, &namespace)?;
        if at % ROUTED == 0 {
            let to = Host::of_service(&format!("app-{}", at + 1), &namespace)?;
            routes.push(Arc::new(Routes {
                object: ObjectRef {
                    kind: "VirtualService",
                    namespace: namespace.clone(),
                    name: name.clone(),
                },
                hosts: vec![HostPattern::Name(host.clone())],
                visible: Visibility::All,
                for_mesh: true,
                is_strict: false,
                routes: vec![Route { to: BTreeSet::from([host.clone(), to]), ..Route::default() }],
            }));
        }
        mesh.services.push(Arc::new(Service {
            host,
            namespace,
            name,
            kind: ServiceKind::Virtual,
            addresses: BTreeSet::from([AddressRange::single(address(96))]),
            endpoints: BTreeSet::from([address(0)]),
            endpoint_ports: BTreeMap::from([(8080, 80)]),
            ports: vec![ServicePort {
                port: 80,
                node_port: None,
                name: "http".to_owned(),
                protocol: PortProtocol::Http,
            }],
        }));
    }
    let spec = PolicySpec { mode: Some(Mode::Enforce), ..PolicySpec::default() };
    let policy =
        Policy { namespace: Namespace::new("istio-system")?, name: "mesh".to_owned(), spec: Ok(spec) };
    mesh.config = Config { routes, policies: vec![policy], ..Config::default() };
    Ok(mesh)
}

fn records(mesh: &Mesh) -> BTreeMap<WorkloadRef, Record> {
    let workloads = mesh.workloads.keys().enumerate();
    let record = |(at, workload): (usize, &WorkloadRef)| {
        // Spread over the mesh, no two the same.
        let called = (1..=CALLS).map(|nth| (at * 31 + nth * 1_999) % WORKLOADS);
        let record = Record {
            coverage: Coverage {
                covered: Seconds(360_000),
                through: Some(Timestamp::floor(NOW)),
                watched_pods: 1,
                pods: 1,
                ..Coverage::default()
            },
            dependencies: called.map(|to| dependency(mesh, to)).collect(),
            ..Record::default()
        };
        (workload.clone(), record)
    };
    workloads.map(record).collect()
}

fn dependency(mesh: &Mesh, to: usize) -> Dependency {
    let service = &mesh.services[to];
    Dependency {
        host: service.host.clone(),
        namespace: service.namespace.clone(),
        first_by: None,
        ports: vec![Port {
            port: 80,
            protocol: PortProtocol::Http,
            seen: [EvidenceKind::Address, EvidenceKind::Host].into_iter().collect(),
            address_only: false,
            existing: false,
            host_unknown: None,
            first_seen: Timestamp::default(),
            last_seen: Timestamp::floor(NOW),
            covered_when_last_seen: Seconds(360_000),
        }],
    }
}

/// The most memory that this process has had.
fn peak_mib() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 =
        line.and_then(|line| line.trim().strip_suffix(" kB")).context("no VmHWM")?.trim().parse()?;
    Ok(kib.div_ceil(1024))
}
