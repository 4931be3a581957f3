//! `sidescope aggregator`: connects the watches, the agents, the records and the other replicas with [`crate::desk`].
//!
//! One task, the `core`, owns all that is known: the registry, and while this replica leads the desk. Everything else tells it by
//! queues, so there are no locks around what is decided. Two threads: what agents send is decrypted and decoded in the tasks of their
//! streams beside the core, and neither a thousand handshakes after a change of the leader nor a long turn of the core keep the
//! lease from being renewed. More would not help, as the core is one task.

mod core;
mod leading;

use std::env;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use kube::Client;
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use self::core::{Core, Queues};
use crate::cli::Aggregator;
use crate::election::{Holder, Leader};
use crate::ledger;
use crate::model::names::{CLUSTER_DOMAIN, Namespace, ObjectName};
use crate::model::time::Time;
use crate::registry::Kind;
use crate::transport::counts::Counts;
use crate::transport::server;
use crate::trust::files::Files;
use crate::trust::serving::{Serving, server_config};
use crate::trust::store::Store as Certificates;
use crate::trust::tokens::Tokens;
use crate::watch::{Failure, Stop};
use crate::{kube_watch, lease};

/// What the watches have told and the core has not taken over.
const TOLD: usize = 4_096;
/// Batches that the core has not taken over.
const DELIVERIES: usize = 64;
/// How long all tasks may take to end.
const END: Duration = Duration::from_secs(5);

/// What it runs on.
pub fn runtime() -> Builder {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2);
    builder
}

/// Runs until a signal comes.
///
/// # Errors
/// See [`Failure`].
pub async fn run(args: &Aggregator) -> Result<(), Failure> {
    let mut stop = Stop::new().map_err(Failure::Setup)?;
    let setup = Setup::new(args).await.map_err(Failure::Setup)?;
    let (end, ending) = watch::channel(false);
    let counts = Arc::new(Counts::default());
    let (mut tasks, core) = start(setup, &counts, &ending);
    let failed = tokio::select! {
        () = stop.told() => None,
        ended = tasks.join_next() => Some(match ended {
            Some(Ok(name)) => anyhow!("{name} has ended by itself"),
            Some(Err(err)) => anyhow!(err).context("a task broke down"),
            None => anyhow!("there are no tasks"),
        }),
    };
    end.send_replace(true);
    // The core ends last: it answers until the others have ended.
    let ended = timeout(END, async { while tasks.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        warn!("not everything has ended in time");
    }
    let decided = core.await.map_err(|err| Failure::Run(anyhow!(err).context("the core broke down")))?;
    let refused = counts.labelled();
    info!(decided = %core::json(&decided), refused = %core::json(&refused), "aggregator ended");
    failed.map_or(Ok(()), |err| Err(Failure::Run(err)))
}

/// What the tasks are made of.
struct Setup {
    client: Client,
    listener: TcpListener,
    namespace: Namespace,
    me: Holder,
    service: ObjectName,
    account: ObjectName,
    files: Option<Files>,
    settings: ledger::Settings,
}

impl Setup {
    async fn new(args: &Aggregator) -> anyhow::Result<Self> {
        let mut config = kube::Config::infer().await.context(
            "no way to the API server: neither is this a pod with a service account, nor does KUBECONFIG name a usable file",
        )?;
        // Whoever asks decides when to ask again.
        config.default_retry = false;
        let namespace = match (&args.namespace, variable("POD_NAMESPACE")) {
            (Some(namespace), _) => namespace.clone(),
            (None, given) => Namespace::new(given.as_deref().unwrap_or(&config.default_namespace))
                .context("POD_NAMESPACE, or the namespace of the service account or kubeconfig,")?,
        };
        let client = Client::try_from(config).context("no way to the API server")?;
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("cannot listen at {}; --listen names another address", args.listen))?;
        let name = match (&args.pod_name, variable("POD_NAME")) {
            (Some(name), _) => name.clone(),
            (None, Some(name)) => ObjectName::new(name).context("POD_NAME")?,
            (None, None) => {
                let machine = nix::sys::utsname::uname().context("cannot read the name of the machine")?;
                ObjectName::new(machine.nodename().to_string_lossy().to_lowercase())
                    .context("the name of the machine, in place of which --pod-name can be given,")?
            }
        };
        let port = listener.local_addr().context("cannot read the address that is listened at")?.port();
        let address = SocketAddr::new(address(args)?, port);
        let files = args.certificate.clone().zip(args.key.clone());
        Ok(Self {
            client,
            listener,
            namespace,
            me: Holder { name: name.as_str().to_owned(), address },
            service: args.service.clone(),
            account: args.agent_service_account.clone(),
            files: files.map(|(certificate, key)| Files { certificate, key }),
            settings: ledger::Settings {
                max_destinations: usize::from(args.max_destinations),
                retention_ms: i64::try_from(args.retention.as_millis()).unwrap_or(i64::MAX),
            },
        })
    }
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where agents reach this replica.
fn address(args: &Aggregator) -> anyhow::Result<IpAddr> {
    if let Some(address) = args.pod_ip {
        return Ok(address);
    }
    if let Some(text) = variable("POD_IP") {
        return text.parse().with_context(|| format!("POD_IP is {text:?}, which is no address"));
    }
    let address = args.listen.ip();
    if address.is_unspecified() {
        return Err(anyhow!(
            "agents have to know at which address they reach this replica: give --pod-ip, or POD_IP from the downward API, or an address of its own with --listen"
        ));
    }
    Ok(address)
}

/// Starts all tasks. The core is apart from the others, as it ends after them.
fn start(
    setup: Setup,
    counts: &Arc<Counts>,
    ending: &watch::Receiver<bool>,
) -> (JoinSet<&'static str>, tokio::task::JoinHandle<crate::desk::Counts>) {
    let Setup { client, listener, namespace, me, service, account, files, settings } = setup;
    info!(%namespace, name = me.name, address = %me.address, "aggregator started");
    let (tell, told) = mpsc::channel(TOLD);
    let (deliver, deliveries) = mpsc::channel(DELIVERIES);
    let (lead, leader) = watch::channel(Leader::Unknown);
    let serving = Arc::new(Serving::default());
    let mut tasks = JoinSet::new();

    let watches =
        kube_watch::Config { client: client.clone(), kinds: Kind::ALL.to_vec(), told: tell, clock: now };
    let until = ended(ending);
    tasks.spawn(async move {
        kube_watch::run(watches, until).await;
        "the watches"
    });
    let config = lease::Config {
        client: client.clone(),
        namespace: namespace.as_str().to_owned(),
        name: service.as_str().to_owned(),
        me,
    };
    let until = ended(ending);
    tasks.spawn(async move {
        lease::run(config, lead, until).await;
        "the election"
    });
    let certificates = Certificates {
        client: client.clone(),
        namespace: namespace.as_str().to_owned(),
        secret: format!("{service}-tls"),
        config_map: format!("{service}-ca"),
        names: dns_names(&service, &namespace),
    };
    let (until, shown) = (ended(ending), Arc::clone(&serving));
    tasks.spawn(async move {
        let shows = async {
            match files {
                Some(files) => files.run(shown, now).await,
                None => certificates.run(shown, now).await,
            }
        };
        tokio::select! {
            () = shows => {}
            () = until => {}
        }
        "the certificate"
    });
    let config = server::Config {
        listener,
        tls: Arc::new(server_config(serving)),
        tokens: Arc::new(Tokens::new(client.clone(), namespace.as_str(), account.as_str())),
        leader: leader.clone(),
        deliveries: deliver,
        clock: now,
        counts: Arc::clone(counts),
    };
    let until = ended(ending);
    tasks.spawn(async move {
        if let Err(err) = server::run(config, until).await {
            warn!(%err, "agents cannot be served any more");
        }
        "the server"
    });
    let queues = Queues { told, deliveries, leader };
    let core = tokio::spawn(Core::new(client, settings, Arc::clone(counts), now()).run(queues));
    (tasks, core)
}

/// Ends when all is to end.
fn ended(ending: &watch::Receiver<bool>) -> impl Future<Output = ()> + use<> {
    let mut ending = ending.clone();
    async move {
        // An error is the end as well.
        drop(ending.wait_for(|ending| *ending).await);
    }
}

/// All names under which pods may look for a Service.
fn dns_names(service: &ObjectName, namespace: &Namespace) -> Vec<String> {
    vec![
        format!("{service}.{namespace}.svc"),
        format!("{service}.{namespace}.svc.{CLUSTER_DOMAIN}"),
        format!("{service}.{namespace}"),
        service.as_str().to_owned(),
    ]
}

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
