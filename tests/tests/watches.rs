//! The aggregator's watches at a real API server: whatever breaks meanwhile, what they tell ends up as what there is.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use kube::{Client, Config};
use serde_json::json;
use sidescope::kube_watch;
use sidescope::model::time::Time;
use sidescope::registry::{Kind, Registry, Told, What, take};
use sidescope_tests::cluster::{Cluster, Parts};
use sidescope_tests::wait::patient;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What should happen at once.
const SOON: Duration = Duration::from_secs(20);
/// How long a watch that has died may be taken for a working one, and some.
const DEAD: Duration = Duration::from_secs(45);
/// How long it may take until a kind is looked for again, or counts as gone, and some.
const AGAIN: Duration = Duration::from_secs(60);

/// ServiceEntries as an older Istio serves them, and without a schema, so that any garbage is let in.
const SERVICE_ENTRIES: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: serviceentries.networking.istio.io}
spec:
  group: networking.istio.io
  names: {kind: ServiceEntry, plural: serviceentries, singular: serviceentry}
  scope: Namespaced
  versions:
  - name: v1beta1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is right");
    Time(i64::try_from(since.as_millis()).expect("not that far in the future"))
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Watches that go on, and what they have told.
struct Watches {
    runtime: Runtime,
    told: mpsc::Receiver<Told>,
    registry: Registry,
    /// What was told, in words, but for the objects.
    steps: Vec<&'static str>,
}

impl Watches {
    fn start(config: Config, kinds: &[Kind]) -> Result<Self> {
        Self::with_queue(config, kinds, 1_024)
    }

    fn with_queue(mut config: Config, kinds: &[Kind], queue: usize) -> Result<Self> {
        config.default_retry = false;
        let runtime = runtime()?;
        let (tell, told) = mpsc::channel(queue);
        let client = {
            let _within = runtime.enter();
            Client::try_from(config)?
        };
        let config = kube_watch::Config { client, kinds: kinds.to_vec(), told: tell, clock: now };
        runtime.spawn(kube_watch::run(config, std::future::pending()));
        Ok(Self { runtime, told, registry: Registry::new(now()), steps: Vec::new() })
    }

    /// Takes over what is told until `done` says of something that this was it.
    fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut done: impl FnMut(&Self, &Told) -> bool,
    ) -> Result<Told> {
        let end = Instant::now() + patient(limit);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let told = self.runtime.block_on(async { timeout(left, self.told.recv()).await });
            let told = told.with_context(|| format!("{what}: was not told in time, but {:?}", self.steps))?;
            let told = told.context("the watches have ended")?;
            match &told.what {
                What::Begin => self.steps.push("begin"),
                What::End => self.steps.push("end"),
                What::Interrupted => self.steps.push("interrupted"),
                What::Resumed => self.steps.push("resumed"),
                What::There(_) | What::Gone(_) | What::Unreadable(_) => {}
            }
            let _known = take(&mut self.registry, told.clone());
            if done(self, &told) {
                return Ok(told);
            }
        }
    }

    fn until_synced(&mut self, kind: Kind, limit: Duration) -> Result<()> {
        self.until("all", limit, |watches, _| !watches.is_missing(kind)).map(drop)
    }

    fn until_there(&mut self, name: &str) -> Result<Told> {
        self.until(name, SOON, |_, told| is_there(told, name))
    }

    fn is_missing(&self, kind: Kind) -> bool {
        self.registry.missing().any(|missing| missing == kind)
    }

    /// The names of all services that the registry has.
    fn services(&self) -> BTreeSet<String> {
        self.registry.mesh().services.iter().map(|service| service.name.clone()).collect()
    }
}

fn is_there(told: &Told, name: &str) -> bool {
    matches!(&told.what, What::There(object) if object.metadata().name.as_str() == name)
}

fn service(name: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]},
    })
    .to_string()
}

fn entry(name: &str, hosts: &serde_json::Value) -> String {
    json!({
        "apiVersion": "networking.istio.io/v1beta1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "default"}, "spec": {"hosts": hosts},
    })
    .to_string()
}

/// Makes so many services, named by their numbers, some at the same time.
fn make_services(cluster: &Cluster, count: usize) -> Result<()> {
    let runtime = runtime()?;
    runtime.block_on(async {
        let services: Api<Service> = Api::namespaced(Client::try_from(cluster.config())?, "default");
        for first in (0..count).step_by(50) {
            let mut made = JoinSet::new();
            for n in first..count.min(first + 50) {
                let (services, object) =
                    (services.clone(), serde_json::from_str(&service(&format!("s{n}")))?);
                made.spawn(async move { services.create(&PostParams::default(), &object).await });
            }
            while let Some(done) = made.join_next().await {
                done??;
            }
        }
        Ok(())
    })
}

#[test]
fn what_there_is_comes_in_pages_and_what_changes_then_at_once() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    make_services(&cluster, 1_100)?;
    let kinds =
        [Kind::Service, Kind::Namespace, Kind::Pod, Kind::Deployment, Kind::CronJob, Kind::EndpointSlice];
    let mut watches = Watches::start(cluster.config(), &kinds)?;
    watches.until("all", SOON, |watches, _| !kinds.iter().any(|kind| watches.is_missing(*kind)))?;
    let there = watches.services();
    ensure!((0..1_100).all(|n| there.contains(&format!("s{n}"))), "{}", there.len());

    cluster.apply(&service("late"))?;
    let told = watches.until_there("late")?;
    ensure!(now().since(told.seen.latest()) < 5_000, "{:?}", told.seen);
    cluster.apply(&service("later"))?;
    watches.until_there("later")?;
    cluster.delete(&(service("late") + "\n---\n" + &service("s7")))?;
    watches.until(
        "the end of s7",
        SOON,
        |_, told| matches!(&told.what, What::Gone(object) if object.metadata().name.as_str() == "s7"),
    )?;
    let there = watches.services();
    ensure!(!there.contains("late") && !there.contains("s7") && there.contains("later"));
    cluster.end()
}

#[test]
fn an_api_server_that_dies_is_noticed_at_once_and_nothing_is_missed() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    cluster.apply(&(service("a") + "\n---\n" + &service("b")))?;
    let mut watches = Watches::start(cluster.config(), &[Kind::Service])?;
    watches.until_synced(Kind::Service, SOON)?;
    let killed = now();
    cluster.kill_apiserver();
    watches.until("the interruption", SOON, |watches, _| watches.is_missing(Kind::Service))?;
    cluster.start_apiserver()?;
    cluster.delete(&service("a"))?;
    cluster.apply(&service("c"))?;
    let told = watches.until_there("c")?;
    ensure!(told.seen.earliest() <= now() && told.seen.latest() > killed);
    if watches.is_missing(Kind::Service) {
        watches.until_synced(Kind::Service, SOON)?;
    }
    let expected: BTreeSet<String> = ["b", "c", "kubernetes"].map(str::to_owned).into();
    ensure!(watches.services() == expected, "{:?}", watches.services());
    cluster.end()
}

#[test]
fn a_listing_that_becomes_too_old_is_begun_anew() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    make_services(&cluster, 1_100)?;
    // The first page is there, and has no place in the queue.
    let mut watches = Watches::with_queue(cluster.config(), &[Kind::Service], 1)?;
    watches.until("an object", SOON, |_, told| matches!(told.what, What::There(_)))?;
    cluster.delete(&service("s1099"))?;
    cluster.forget_history()?;
    cluster.restart_apiserver()?;
    watches.until_synced(Kind::Service, SOON)?;
    ensure!(watches.steps == ["begin", "begin", "end"], "{:?}", watches.steps);
    let there = watches.services();
    ensure!((0..1_099).all(|n| there.contains(&format!("s{n}"))) && !there.contains("s1099"));
    cluster.end()
}

#[test]
fn a_kind_that_comes_and_goes_and_an_object_that_makes_no_sense_stop_nothing() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    let mut watches = Watches::start(cluster.config(), &[Kind::ServiceEntry])?;
    watches.until_synced(Kind::ServiceEntry, SOON)?;
    ensure!(watches.steps == ["begin", "end"], "a kind that is not there is empty: {:?}", watches.steps);

    cluster.apply_definitions(SERVICE_ENTRIES)?;
    let objects = [entry("a", &json!(["a.test"])), entry("odd", &json!(3)), entry("z", &json!(["z.test"]))];
    cluster.apply(&objects.join("\n---\n"))?;
    watches.until("the listing", AGAIN, |watches, told| {
        matches!(told.what, What::End) && watches.services().len() == 2
    })?;
    let unreadable: Vec<String> = watches.registry.unreadable().map(ToString::to_string).collect();
    ensure!(unreadable.len() == 1 && unreadable[0].contains("ServiceEntry default/odd"), "{unreadable:?}");
    ensure!(unreadable[0].contains("spec.hosts"), "{unreadable:?}");

    // As changes, too.
    cluster.apply(&entry("a", &json!(["a b"])))?;
    watches.until(
        "another one",
        SOON,
        |_, told| matches!(&told.what, What::Unreadable(one) if one.name == "a"),
    )?;
    cluster.apply(&entry("a", &json!(["b.test"])))?;
    watches.until_there("a")?;
    cluster.delete(&entry("odd", &json!(3)))?;
    watches.until("the end of the odd one", SOON, |_, told| matches!(told.what, What::Gone(_)))?;
    ensure!(watches.registry.unreadable().next().is_none());

    cluster.delete(SERVICE_ENTRIES)?;
    watches.until("the end of the kind", AGAIN, |watches, _| watches.services().is_empty())?;
    watches.until("an empty kind", AGAIN, |watches, told| {
        matches!(told.what, What::End) && !watches.is_missing(Kind::ServiceEntry)
    })?;
    cluster.end()
}

#[test]
fn a_kind_that_may_not_be_watched_is_not_known_until_it_may() -> Result<()> {
    let cluster = Cluster::start(Parts::Api)?;
    let mut config = cluster.config();
    config.auth_info.impersonate = Some("stranger".to_owned());
    let mut watches = Watches::start(config, &[Kind::Pod])?;
    let told = watches.until("nothing", Duration::from_secs(2), |_, _| true);
    ensure!(told.is_err() && watches.is_missing(Kind::Pod), "{told:?}");
    let rights = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "watch-pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "watch-pods"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "watch-pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "stranger"}],
    });
    cluster.apply(&format!("{rights}\n---\n{binding}"))?;
    watches.until_synced(Kind::Pod, AGAIN)?;
    cluster.end()
}

/// Passes connections on until it is told to keep them open and pass on nothing any more; then, the new ones again.
async fn pass_on(listener: TcpListener, to: u16, mut is_dead: watch::Receiver<bool>) {
    let mut passed = JoinSet::new();
    while let Ok((here, _)) = listener.accept().await {
        let was_dead = *is_dead.borrow_and_update();
        let mut is_dead = is_dead.clone();
        passed.spawn(async move {
            if was_dead {
                return std::future::pending().await;
            }
            let mut here = here;
            let Ok(mut there) = TcpStream::connect(("127.0.0.1", to)).await else { return };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut here, &mut there) => return,
                _ = is_dead.wait_for(|is_dead| *is_dead) => {}
            }
            std::future::pending().await
        });
    }
}

#[test]
fn a_connection_that_dies_without_a_word_is_noticed_and_what_was_missed_is_told_with_its_time() -> Result<()>
{
    let cluster = Cluster::start(Parts::Api)?;
    let mut config = cluster.config();
    let real = config.cluster_url.port_u16().context("the API server has a port")?;
    let proxies = runtime()?;
    let (kill, is_dead) = watch::channel(false);
    let listener = proxies.block_on(TcpListener::bind("127.0.0.1:0"))?;
    config.cluster_url = format!("https://{}", listener.local_addr()?).parse()?;
    proxies.spawn(pass_on(listener, real, is_dead));

    let mut watches = Watches::start(config, &[Kind::Service])?;
    watches.until_synced(Kind::Service, SOON)?;
    cluster.apply(&service("before"))?;
    watches.until_there("before")?;
    kill.send(true)?;
    cluster.apply(&service("missed"))?;
    let made = now();
    watches.until("the interruption", DEAD, |watches, _| watches.is_missing(Kind::Service))?;
    ensure!(!watches.services().contains("missed"));
    kill.send(false)?;
    let told = watches.until("what was missed", AGAIN, |_, told| is_there(told, "missed"))?;
    ensure!(told.seen.earliest() <= made && told.seen.latest() >= made, "{:?} {made:?}", told.seen);
    if watches.is_missing(Kind::Service) {
        watches.until_synced(Kind::Service, SOON)?;
    }
    cluster.end()
}
