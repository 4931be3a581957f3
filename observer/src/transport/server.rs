//! The aggregator's side: takes connections, finds out whose they are, and hands batches on.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use http::header::AUTHORIZATION;
use http::request::Parts;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;
use tracing::{debug, warn};

use super::counts::{Counts, Reason};
use super::listener::{self, Use};
use super::metered::{Charges, Metered};
use super::nodes::{Node, Nodes};
use super::session::{Delivery, Session};
use super::{LEADER, limits};
use crate::election::Leader;
use crate::model::time::Time;
use crate::trust::tokens::{Refused, Reporter, Review, Tokens};
use crate::wire::MAX_MESSAGE_BYTES;
use crate::wire::proto::{FromAgent, ToAgent};

/// The service as the build script makes it.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic, reason = "made by the build script")]
pub(super) mod service {
    include!(concat!(env!("OUT_DIR"), "/services/sidescope.v1.rs"));
}

use service::reports_server::{Reports, ReportsServer};

/// The only method there is.
const METHOD: &str = "/sidescope.v1.Reports/Report";
/// Answers that wait to be sent to one agent.
const ANSWERS: usize = 8;

/// What a server needs.
pub struct Config<R> {
    /// Where agents connect to.
    pub listener: TcpListener,
    /// The certificate, see [`crate::trust::serving`].
    pub tls: Arc<rustls::ServerConfig>,
    /// Knows agents by their tokens.
    pub tokens: Arc<Tokens<R>>,
    /// Who leads. Only the leader takes batches.
    pub leader: watch::Receiver<Leader>,
    /// Takes batches. Its bound is that of the batches that wait; none is lost when it is full.
    pub deliveries: mpsc::Sender<Delivery>,
    /// The aggregator's clock.
    pub clock: fn() -> Time,
    /// Counts what is refused.
    pub counts: Arc<Counts>,
}

/// Serves until `shutdown`, and at most [`limits::SHUTDOWN`] longer.
///
/// # Errors
/// When tonic gives up; no peer can make it.
pub async fn run<R: Review>(
    config: Config<R>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), tonic::transport::Error> {
    let (stop, stopping) = watch::channel(false);
    let (connections, incoming) = mpsc::channel(1);
    let accepting = listener::accept(
        config.listener,
        TlsAcceptor::from(config.tls),
        Arc::clone(&config.counts),
        connections,
    );
    let shared = Arc::new(Shared {
        tokens: config.tokens,
        leader: config.leader,
        deliveries: config.deliveries,
        clock: config.clock,
        counts: config.counts,
        stopping: stopping.clone(),
        nodes: Nodes::default(),
        bytes: Arc::new(Semaphore::new(limits::ALL_BYTES)),
        sessions: Mutex::new(JoinSet::new()),
    });
    let mut stopped = stopping;
    let serving = tonic::transport::Server::builder()
        .max_concurrent_streams(limits::STREAMS)
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .http2_max_header_list_size(limits::HEADER_BYTES)
        .http2_max_pending_accept_reset_streams(Some(16))
        .http2_keepalive_interval(Some(limits::PING))
        .http2_keepalive_timeout(Some(limits::PING))
        .serve_with_incoming_shutdown(
            Front(Arc::clone(&shared)),
            ReceiverStream::new(incoming),
            async move {
                // An error is the end as well.
                drop(stopped.wait_for(|stopped| *stopped).await);
            },
        );
    tokio::pin!(serving);
    tokio::select! {
        () = accepting => {}
        () = shutdown => {}
        ended = &mut serving => return ended,
    }
    stop.send_replace(true);
    // What is left after that ends with its task.
    let ended = timeout(limits::SHUTDOWN, serving).await.unwrap_or(Ok(()));
    let mut sessions = std::mem::take(&mut *shared.sessions.lock().unwrap_or_else(PoisonError::into_inner));
    sessions.shutdown().await;
    ended
}

struct Shared<R> {
    tokens: Arc<Tokens<R>>,
    leader: watch::Receiver<Leader>,
    deliveries: mpsc::Sender<Delivery>,
    clock: fn() -> Time,
    counts: Arc<Counts>,
    stopping: watch::Receiver<bool>,
    nodes: Nodes,
    bytes: Arc<Semaphore>,
    sessions: Mutex<JoinSet<()>>,
}

/// What is known of a request before its first message is read.
#[derive(Clone)]
struct Admission {
    reporter: Arc<Reporter>,
    node: Arc<Node>,
    charges: Charges,
    connection: Arc<Use>,
}

impl<R: Review> Shared<R> {
    fn refuse(&self, reason: Reason, status: Status) -> Status {
        self.counts.add(reason);
        status
    }

    /// Whose request it is.
    async fn admit(&self, request: &Parts) -> Result<Admission, Status> {
        if request.uri.path() != METHOD {
            return Err(self.refuse(Reason::UnknownMethod, Status::unimplemented("there is no such method")));
        }
        // Before the token: a replica that does not lead has nothing to protect, and all agents try it when a leader is gone, which
        // would be a review for each.
        let leader = *self.leader.borrow();
        if leader != Leader::Me {
            return Err(self.refuse(Reason::NotLeader, not_leader(leader)));
        }
        let token = request
            .headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer "))
            .ok_or_else(|| {
                self.refuse(
                    Reason::TokenMissing,
                    Status::unauthenticated("no bearer token in `authorization`"),
                )
            })?;
        let reporter = match timeout(limits::AUTHENTICATION, self.tokens.authenticate(token)).await {
            Ok(Ok(reporter)) => reporter,
            Ok(Err(refused)) => return Err(self.not_authenticated(&refused)),
            Err(_) => {
                return Err(
                    self.not_authenticated(&Refused::Unchecked("it did not answer in time".to_owned()))
                );
            }
        };
        let connection = request.extensions.get::<Arc<Use>>();
        let connection = connection.ok_or_else(|| Status::internal("the connection is not known"))?;
        Ok(Admission {
            node: self.nodes.get(&reporter.node),
            reporter,
            charges: Charges::default(),
            connection: Arc::clone(connection),
        })
    }

    fn not_authenticated(&self, refused: &Refused) -> Status {
        let reason = match refused {
            Refused::Invalid(_) => Reason::TokenInvalid,
            Refused::Audience => Reason::TokenAudience,
            Refused::Account(_) => Reason::TokenAccount,
            Refused::WithoutNode(_) => Reason::TokenWithoutNode,
            Refused::Unchecked(_) => Reason::TokenUnchecked,
        };
        debug!(%refused, "a token was refused");
        let status = match refused {
            Refused::Unchecked(_) => Status::unavailable(refused.to_string()),
            Refused::Account(_) | Refused::WithoutNode(_) => Status::permission_denied(refused.to_string()),
            Refused::Invalid(_) | Refused::Audience => Status::unauthenticated(refused.to_string()),
        };
        self.refuse(reason, status)
    }
}

/// What a replica says that does not lead.
pub(super) fn not_leader(leader: Leader) -> Status {
    let mut metadata = MetadataMap::new();
    if let Leader::Other(address) = leader
        && let Ok(address) = address.to_string().parse()
    {
        metadata.insert(LEADER, address);
    }
    Status::with_metadata(tonic::Code::Unavailable, "this aggregator does not lead", metadata)
}

/// Stands before the service: lets a request in, and puts a meter on its body.
struct Front<R>(Arc<Shared<R>>);

impl<R> Clone for Front<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Review> Service<http::Request<Body>> for Front<R> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let (mut parts, body) = request.into_parts();
            let admission = match shared.admit(&parts).await {
                Ok(admission) => admission,
                Err(status) => return Ok(status.into_http()),
            };
            let (node, all, charges) =
                (Arc::clone(&admission.node), Arc::clone(&shared.bytes), admission.charges.clone());
            parts.extensions.insert(admission);
            let body = Body::new(Metered::new(body, node, all, charges));
            let request = http::Request::from_parts(parts, body);
            ReportsServer::new(Streams(shared))
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .call(request)
                .await
        })
    }
}

/// The service itself, for requests that were let in.
struct Streams<R>(Arc<Shared<R>>);

#[tonic::async_trait]
impl<R: Review> Reports for Streams<R> {
    type ReportStream = ReceiverStream<Result<ToAgent, Status>>;

    async fn report(
        &self,
        mut request: Request<Streaming<FromAgent>>,
    ) -> Result<Response<Self::ReportStream>, Status> {
        let shared = &self.0;
        let admission = request.extensions_mut().remove::<Admission>();
        let admission = admission.ok_or_else(|| Status::internal("the request was not let in"))?;
        let (answers, stream) = mpsc::channel(ANSWERS);
        let session = Session {
            replaced: admission.node.replace(),
            reporter: admission.reporter,
            node: admission.node,
            charges: admission.charges,
            counts: Arc::clone(&shared.counts),
            deliveries: shared.deliveries.clone(),
            leader: shared.leader.clone(),
            stopping: shared.stopping.clone(),
            clock: shared.clock,
            _in_use: admission.connection.begin(),
        };
        let mut sessions = shared.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(ended) = sessions.try_join_next() {
            if let Err(err) = ended {
                warn!(%err, "a stream's task broke down");
            }
        }
        sessions.spawn(session.run(request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
