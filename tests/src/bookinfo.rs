//! Istio's Bookinfo as real processes, one per pod, and a load generator outside the mesh.
//!
//! The applications are `testbed app ROLE` ([`app`]): the bed runs its own program in each pod. What is called how follows the
//! original: productpage asks details and reviews by HTTP, reviews v2 and v3 ask ratings, ratings asks a MongoDB.

pub mod app;
mod http;
pub mod load;
mod mongo;

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::bed::{Bed, Host, Proc, Service, ServicePort};
use crate::cmd::Cmd;
use crate::inventory::{self, Deployment};
use crate::wait::wait_for;

pub use http::Name;

/// The port of the HTTP applications.
pub const HTTP_PORT: u16 = 9080;
/// The port of MongoDB.
pub const MONGO_PORT: u16 = 27017;
/// The host that the load comes from.
pub const OUTSIDE: &str = "loadgen";

/// How long an application may take until it listens.
const START: Duration = Duration::from_secs(10);

/// One deployment of one pod: application, version, and the role of its process.
struct Part {
    app: &'static str,
    version: &'static str,
    role: &'static str,
}

/// In the order of Bookinfo's manifests.
const PARTS: [Part; 7] = [
    Part { app: "details", version: "v1", role: "details" },
    Part { app: "ratings", version: "v2", role: "ratings" },
    Part { app: "mongodb", version: "v1", role: "mongodb" },
    Part { app: "reviews", version: "v1", role: "reviews-v1" },
    Part { app: "reviews", version: "v2", role: "reviews-v2" },
    Part { app: "reviews", version: "v3", role: "reviews-v3" },
    Part { app: "productpage", version: "v1", role: "productpage" },
];

/// The services, in the order in which they get their ClusterIPs.
const SERVICES: [&str; 5] = ["details", "ratings", "mongodb", "reviews", "productpage"];

impl Part {
    fn pod(&self) -> String {
        format!("{}-{}", self.app, self.version)
    }
}

fn port(app: &str) -> ServicePort {
    match app {
        "mongodb" => ServicePort::tcp("mongo", MONGO_PORT),
        _ => ServicePort::tcp("http", HTTP_PORT),
    }
}

/// Makes pods and services, starts the applications and waits until each listens. `testbed` is the program of that name.
pub fn start(bed: &Bed, testbed: &Path) -> Result<()> {
    let pods = PARTS.iter().map(|part| bed.add_pod(&part.pod())).collect::<Result<Vec<Host>>>()?;
    for app in SERVICES {
        let endpoints: Vec<&Host> =
            PARTS.iter().zip(&pods).filter(|(part, _)| part.app == app).map(|(_, pod)| pod).collect();
        bed.add_service(app, &[port(app)], &endpoints)?;
    }
    bed.add_outsider(OUTSIDE)?;
    let names = resolve(bed)?;
    let mut started = Vec::new();
    for (part, pod) in PARTS.iter().zip(&pods) {
        let cmd = Cmd::new(testbed).args(["app", part.role]).args(&names);
        started.push((pod, port(part.app).port, pod.spawn(&cmd)?));
    }
    started.iter().try_for_each(|(pod, port, process)| pod.wait_listening(*port, process, START))
}

/// What a load generator shall do.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many calls; without it, calls until it is ended.
    pub count: Option<u32>,
    /// How many calls a second at most; without it, as fast as answers come.
    pub rate: Option<f64>,
}

/// Starts the load generator, outside the mesh.
pub fn start_load(bed: &Bed, testbed: &Path, load: Load) -> Result<Proc> {
    let mut cmd = Cmd::new(testbed).args(["load", &url("productpage", "/productpage")]).args(resolve(bed)?);
    if let Some(count) = load.count {
        cmd = cmd.args(["--count", &count.to_string()]);
    }
    if let Some(rate) = load.rate {
        cmd = cmd.args(["--rate", &rate.to_string()]);
    }
    bed.host(OUTSIDE)?.spawn(&cmd)
}

/// Waits until a page answers 200 to a host of the bed, and gives its body. `testbed` is the program of that name.
pub fn wait_http(host: &Host, testbed: &Path, url: &str, timeout: Duration) -> Result<String> {
    let get = Cmd::new(testbed).args(["get", url]);
    let mut last = None;
    let page = wait_for(&format!("200 from {url}"), timeout, || {
        Ok(host.run(&get).map_err(|error| last = Some(error)).ok())
    });
    match (page, last) {
        (Ok(output), _) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        (Err(error), Some(last)) => Err(last.context(error)),
        (Err(error), None) => Err(error),
    }
}

/// The Kubernetes objects of exactly this deployment, as `kubectl get ... -A -o yaml` prints them.
pub fn inventory(bed: &Bed) -> Result<String> {
    let mut items = vec![inventory::namespace("default", true)];
    let services = SERVICES.iter().map(|app| bed.service(app)).collect::<Result<Vec<Service>>>()?;
    let mut deployments = Vec::new();
    for part in &PARTS {
        let service_port = port(part.app);
        deployments.push(Deployment {
            namespace: "default".to_owned(),
            name: part.pod(),
            labels: vec![
                ("app".to_owned(), part.app.to_owned()),
                ("version".to_owned(), part.version.to_owned()),
            ],
            container: part.app.to_owned(),
            port: service_port.target,
            pods: vec![bed.pod(&part.pod())?],
        });
    }
    items.extend(deployments.iter().flat_map(Deployment::objects));
    items.extend(inventory::kubernetes_service());
    for service in &services {
        let behind = deployments.iter().filter(|deployment| deployment.container == service.name);
        items.extend(inventory::service("default", service, &[("app", &service.name)], behind));
    }
    inventory::list(items)
}

/// `--resolve` for every service: the applications' stand-in for DNS.
fn resolve(bed: &Bed) -> Result<Vec<String>> {
    let mut args = Vec::new();
    for app in SERVICES {
        let service = bed.service(app)?;
        args.extend(["--resolve".to_owned(), format!("{app}={},{}", service.v4, service.v6)]);
    }
    Ok(args)
}

/// The address of a page, by the service's name as the applications write it.
fn url(app: &str, path: &str) -> String {
    format!("http://{app}:{HTTP_PORT}{path}")
}
