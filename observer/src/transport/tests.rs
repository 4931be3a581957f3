//! Both sides over real sockets on loopback, with real TLS.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{advance, pause, resume, timeout};
use tokio_rustls::TlsConnector;
use tonic::Code;

use super::client::{Config, Outbox, Shared};
use super::connect::{ConnectError, Stream, round};
use super::counts::{Counts, Reason};
use super::{Delivery, client, limits, server};
use crate::clock::Exchange;
use crate::election::Leader;
use crate::model::time::Time;
use crate::trust::material::Material;
use crate::trust::material::tests::{material_at, names};
use crate::trust::serving::{Serving, client_config, server_config};
use crate::trust::tokens::{AUDIENCE, Review, Tokens};
use crate::wire::proto::{self, Ack, Ask, Batch, FromAgent, from_agent, to_agent};
use crate::wire::{MAX_MESSAGE_BYTES, MAX_SOURCES};

mod hostile;
mod sender;

/// What a test waits for comes within this time, or does not.
const SOON: Duration = Duration::from_secs(20);

fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    Time(i64::try_from(since.as_millis()).unwrap())
}

/// Lets time pass quicker than it does, and the sockets do what they have to meanwhile.
async fn hurry() {
    tokio::time::sleep(Duration::from_millis(1)).await;
    pause();
    advance(Duration::from_millis(100)).await;
    resume();
}

/// Knows the token `agent of NODE`, and refuses others.
struct Nodes;

impl Review for Nodes {
    async fn review(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let Some(node) = token.strip_prefix("agent-of-") else { return Ok(TokenReviewStatus::default()) };
        let extra = [("node-name", node), ("pod-name", "agent-x"), ("pod-uid", "1-2")]
            .map(|(key, value)| (format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]));
        Ok(TokenReviewStatus {
            authenticated: Some(true),
            audiences: Some(vec![AUDIENCE.to_owned()]),
            error: None,
            user: Some(UserInfo {
                username: Some("system:serviceaccount:mesh:agent".to_owned()),
                extra: Some(BTreeMap::from(extra)),
                ..UserInfo::default()
            }),
        })
    }
}

/// What servers and agents of one aggregator share.
struct Bed {
    folder: tempfile::TempDir,
    material: Material,
    serving: Arc<Serving>,
}

impl Bed {
    fn new() -> Self {
        let bed = Self {
            folder: tempfile::tempdir().unwrap(),
            material: material_at(now()),
            serving: Arc::new(Serving::default()),
        };
        bed.show(&bed.material);
        fs::write(bed.folder.path().join("ca.crt"), bed.material.bundle()).unwrap();
        bed
    }

    fn show(&self, material: &Material) {
        let pair = material.server.as_ref().unwrap();
        self.serving.show(pair.certificate.as_bytes(), pair.key.as_bytes()).unwrap();
    }

    /// An agent on a node, that looks for its aggregator there.
    fn agent(&self, node: &str, address: SocketAddr) -> Config {
        let token = self.folder.path().join(format!("token-{node}"));
        fs::write(&token, format!("agent-of-{node}\n")).unwrap();
        Config {
            address: address.to_string(),
            server_name: names()[0].clone(),
            bundle: self.folder.path().join("ca.crt"),
            token,
            clock: || 7,
        }
    }

    async fn server(&self) -> Server {
        self.server_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), 64)
    }

    fn server_on(&self, listener: TcpListener, room: usize) -> Server {
        let address = listener.local_addr().unwrap();
        let (leader, leads) = watch::channel(Leader::Me);
        let (deliver, deliveries) = mpsc::channel(room);
        let counts = Arc::new(Counts::default());
        let config = server::Config {
            listener,
            tls: Arc::new(server_config(Arc::clone(&self.serving))),
            tokens: Arc::new(Tokens::new(Nodes, "mesh", "agent")),
            leader: leads,
            deliveries: deliver,
            clock: now,
            counts: Arc::clone(&counts),
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            server::run(config, async move { drop(stopped.await) }).await.unwrap();
        });
        Server { address, leader, deliveries, counts, stop, task }
    }
}

struct Server {
    address: SocketAddr,
    leader: watch::Sender<Leader>,
    deliveries: mpsc::Receiver<Delivery>,
    counts: Arc<Counts>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn delivery(&mut self) -> Delivery {
        timeout(SOON, self.deliveries.recv()).await.expect("a batch comes").unwrap()
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        timeout(SOON, self.task).await.expect("the server ends").unwrap();
    }

    /// Waits until something was counted so often.
    async fn counted(&self, reason: Reason, times: u64) {
        let counted = async {
            while self.counts.get(reason) < times {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, counted).await.unwrap_or_else(|_| panic!("{} is counted", reason.label()));
    }
}

async fn connect(config: &Config) -> Stream {
    round(config, None).await.unwrap_or_else(|errors| panic!("{errors:?}"))
}

async fn refusal(config: &Config) -> ConnectError {
    let Err(mut errors) = round(config, None).await else { panic!("there is a stream") };
    errors.pop().unwrap().1
}

impl Stream {
    async fn say(&self, message: from_agent::Message) {
        self.out.send(FromAgent { message: Some(message) }).await.unwrap();
    }

    async fn batch(&self, sequence: u64) {
        self.say(from_agent::Message::Batch(batch(sequence))).await;
    }

    async fn hear(&mut self) -> Result<Option<to_agent::Message>, tonic::Status> {
        let heard = timeout(SOON, self.answers.message()).await.expect("an answer comes")?;
        Ok(heard.and_then(|answer| answer.message))
    }

    async fn acknowledged(&mut self) -> u64 {
        match self.hear().await.unwrap() {
            Some(to_agent::Message::Ack(ack)) => ack.sequence,
            other => panic!("{other:?}"),
        }
    }

    /// Whether the stream is alive: it answers a question.
    async fn answers(&mut self) {
        self.say(from_agent::Message::Ask(Ask { asked_ns: 5 })).await;
        assert!(matches!(self.hear().await.unwrap(), Some(to_agent::Message::Answer(_))));
    }

    async fn end(&mut self) -> tonic::Status {
        loop {
            match self.hear().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream ends without a reason"),
                Err(status) => return status,
            }
        }
    }
}

fn batch(sequence: u64) -> Batch {
    Batch { epoch: vec![1; 16], sequence, clock_error_ms: 0, sources: vec![] }
}

/// A batch of about so many bytes, within the bounds of a message.
fn large(sequence: u64, bytes: usize) -> Batch {
    let source = |_| proto::Source {
        coverage: vec![proto::Coverage { from: 1, until: 2, losses: vec!["a".repeat(64); 64] }; 16],
        ..proto::Source::default()
    };
    let one = prost::Message::encoded_len(&source(0));
    Batch { sources: (0..bytes / one).map(source).collect(), ..batch(sequence) }
}

#[tokio::test]
async fn clocks_are_compared_and_a_batch_is_acknowledged_when_it_is_durable() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    let before = now();
    stream.say(from_agent::Message::Ask(Ask { asked_ns: 77 })).await;
    let Some(to_agent::Message::Answer(answer)) = stream.hear().await.unwrap() else { panic!() };
    assert_eq!(answer.asked_ns, 77);
    assert!(before.0 <= answer.received && answer.received <= answer.replied && answer.replied <= now().0);

    stream.batch(1).await;
    stream.batch(2).await;
    let (first, second) = (server.delivery().await, server.delivery().await);
    assert_eq!((first.reporter.node.as_str(), first.batch.sequence), ("n1", 1));
    // Neither that they were taken nor that the second is durable is enough.
    second.receipt.acknowledge(vec![]);
    stream.answers().await;
    first.receipt.acknowledge(vec![proto::Refusal { reason: "foreign".to_owned(), count: 3 }]);
    let Some(to_agent::Message::Ack(ack)) = stream.hear().await.unwrap() else { panic!() };
    assert_eq!(
        ack,
        Ack { sequence: 2, refusals: vec![proto::Refusal { reason: "foreign".to_owned(), count: 3 }] }
    );
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_newer_stream_of_a_node_takes_the_place_of_the_older() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let config = bed.agent("n1", server.address);
    let mut first = connect(&config).await;
    first.answers().await;
    let mut other = connect(&bed.agent("n2", server.address)).await;
    let mut second = connect(&config).await;
    assert_eq!(first.end().await.code(), Code::Aborted);
    assert_eq!(server.counts.get(Reason::Replaced), 1);
    second.batch(1).await;
    server.delivery().await.receipt.acknowledge(vec![]);
    assert_eq!(second.acknowledged().await, 1);
    other.answers().await;
}

#[tokio::test]
async fn a_batch_that_is_dropped_ends_the_stream() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    stream.batch(1).await;
    drop(server.delivery().await);
    assert_eq!(stream.end().await.code(), Code::Unavailable);
    assert_eq!(server.counts.get(Reason::BatchDropped), 1);
}

#[tokio::test]
async fn an_owner_that_is_slow_holds_batches_back_but_no_questions() {
    let bed = Bed::new();
    let mut server = bed.server_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), 1);
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    for sequence in 1..=4 {
        stream.batch(sequence).await;
    }
    stream.answers().await;
    assert_eq!(server.deliveries.len(), 1);
    for sequence in 1..=4 {
        server.delivery().await.receipt.acknowledge(vec![]);
        assert_eq!(stream.acknowledged().await, sequence);
    }
}

#[tokio::test]
async fn what_is_in_flight_of_a_node_is_bounded_over_its_streams() {
    let bed = Bed::new();
    let mut server = bed.server().await;
    let config = bed.agent("n1", server.address);
    let size = MAX_MESSAGE_BYTES - (1 << 18);
    let mut held = Vec::new();
    let old = connect(&config).await;
    for sequence in 1..=2 {
        old.say(from_agent::Message::Batch(large(sequence, size))).await;
        held.push(server.delivery().await);
    }
    // The node's bytes are used up. A new stream does not bring new ones.
    let mut stream = connect(&config).await;
    stream.answers().await;
    stream.say(from_agent::Message::Batch(large(1, size))).await;
    let other = connect(&bed.agent("n2", server.address)).await;
    // Another node is not held up, and by the time that two as large came in, the first would have, too.
    for sequence in [8, 9] {
        other.say(from_agent::Message::Batch(large(sequence, size))).await;
        let delivery = server.delivery().await;
        assert_eq!((delivery.reporter.node.as_str(), delivery.batch.sequence), ("n2", sequence));
        delivery.receipt.acknowledge(vec![]);
    }
    assert_eq!(server.deliveries.len(), 0);
    held.pop().unwrap().receipt.acknowledge(vec![]);
    let delivery = server.delivery().await;
    assert_eq!((delivery.reporter.node.as_str(), delivery.batch.sequence), ("n1", 1));
    // Of small ones there are not more than for one stream, either.
    let mut newer = connect(&config).await;
    for sequence in 1..=4 {
        newer.batch(sequence).await;
    }
    newer.answers().await;
    held.extend([server.delivery().await, server.delivery().await]);
    newer.answers().await;
    assert_eq!(server.deliveries.len(), 0);
    drop(delivery);
    assert_eq!(server.delivery().await.batch.sequence, 3);
}

#[tokio::test]
async fn a_replica_that_does_not_lead_tells_who_does() {
    let bed = Bed::new();
    let (mut leading, other) = (bed.server().await, bed.server().await);
    other.leader.send_replace(Leader::Other(leading.address));
    let config = bed.agent("n1", other.address);
    let mut stream = connect(&config).await;
    assert_eq!(stream.address, leading.address);
    assert_eq!(other.counts.get(Reason::NotLeader), 1);
    stream.batch(1).await;
    let delivery = leading.delivery().await;

    // It stops leading: its streams end at once, and say where to go.
    leading.leader.send_replace(Leader::Other(other.address));
    let status = stream.end().await;
    assert_eq!(status.metadata().get(super::LEADER).unwrap(), other.address.to_string().as_str());
    delivery.receipt.acknowledge(vec![]);
    other.leader.send_replace(Leader::Unknown);
    assert!(matches!(refusal(&config).await, ConnectError::NotLeader { leader: None }));
}

#[tokio::test]
async fn a_server_that_ends_says_so_and_ends_in_time() {
    let bed = Bed::new();
    let server = bed.server().await;
    let mut stream = connect(&bed.agent("n1", server.address)).await;
    stream.answers().await;
    server.stop().await;
    assert_eq!(stream.end().await.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_new_certificate_is_shown_without_a_restart() {
    let bed = Bed::new();
    let server = bed.server().await;
    let config = bed.agent("n1", server.address);
    let mut stream = connect(&config).await;
    let other = material_at(now());
    bed.show(&other);
    let err = refusal(&config).await.to_string();
    assert!(err.contains("no authority in") && err.contains("ca.crt"), "{err}");
    fs::write(&config.bundle, format!("{}{}", bed.material.bundle(), other.bundle())).unwrap();
    stream.answers().await;
    connect(&config).await.answers().await;
}

#[tokio::test]
async fn errors_say_what_where_and_what_to_do() {
    let bed = Bed::new();
    let server = bed.server().await;
    let good = bed.agent("n1", server.address);
    let wrong = |change: fn(&mut Config)| {
        let mut config = good.clone();
        change(&mut config);
        config
    };
    let missing = good.token.with_file_name("missing");
    let cases: [(Config, &[&str]); 6] = [
        (wrong(|config| config.server_name = "other.mesh.svc".to_owned()), &["other.mesh.svc", "Service"]),
        (wrong(|config| config.server_name = "a b".to_owned()), &["a b", "DNS name"]),
        (Config { token: missing.clone(), ..good.clone() }, &["missing", "mounted"]),
        (Config { bundle: missing, ..good.clone() }, &["missing", "ConfigMap"]),
        (wrong(|config| config.bundle = config.token.clone()), &["token-n1", "no certificate"]),
        (wrong(|config| config.address = "nowhere.invalid:1".to_owned()), &["nowhere.invalid", "resolved"]),
    ];
    for (config, words) in cases {
        let err = refusal(&config).await.to_string();
        assert!(words.iter().all(|word| err.contains(word)), "{words:?}: {err}");
    }
    fs::write(&good.token, "somebody-else").unwrap();
    let err = refusal(&good).await.to_string();
    assert!(err.contains("does not accept the token"), "{err}");
    assert_eq!(server.counts.get(Reason::TokenInvalid), 1);
    server.stop().await;
    let err = refusal(&good).await.to_string();
    assert!(err.contains("cannot connect") && err.contains("network policy"), "{err}");
}
