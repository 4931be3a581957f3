//! One try to get a stream to the leader, and what to say when it fails.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fs, io};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::CertificateError;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status, Streaming};
use tower_service::Service;

use super::client::Config;
use super::server::service::reports_client::ReportsClient;
use super::{LEADER, limits};
use crate::trust::serving::{TlsError, client_config};
use crate::wire::proto::{FromAgent, ToAgent};

/// Addresses that are tried in one round.
const MOST: usize = 16;
/// How long the TCP connection may take.
const TCP: Duration = Duration::from_secs(3);
/// How long each further step may take, but for the last, in which the server checks the token.
const STEP: Duration = Duration::from_secs(5);
/// Longest answer of a server, in bytes.
const ANSWER: usize = 64 << 10;
/// Messages that wait to be sent: as many batches as may be unacknowledged, a question, and some.
const OUTGOING: usize = limits::UNACKNOWLEDGED + 4;

/// A stream to the leader.
pub(super) struct Stream {
    pub(super) address: SocketAddr,
    pub(super) out: mpsc::Sender<FromAgent>,
    pub(super) answers: Streaming<ToAgent>,
}

/// Why there is no stream: what happened where, and what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(
        "the aggregator's name {host:?} cannot be resolved: {source}; is its Service there, and DNS working?"
    )]
    Resolve { host: String, source: io::Error },
    #[error("no address is known for the aggregator's name {host:?}; is a replica of it ready?")]
    NoAddress { host: String },
    #[error("the name {name:?}, under which the aggregator's certificate is expected, is no DNS name")]
    Name { name: String },
    #[error("the token {path} cannot be read: {source}; is a projected service-account token mounted there?")]
    Token { path: PathBuf, source: io::Error },
    #[error("the token in {path} is empty, or holds what no token does")]
    TokenForm { path: PathBuf },
    #[error(
        "the authorities in {path} cannot be read: {source}; the aggregator writes them into a ConfigMap"
    )]
    Bundle { path: PathBuf, source: io::Error },
    #[error("the authorities in {path} cannot be used: {source}")]
    BundleForm { path: PathBuf, source: TlsError },
    #[error(
        "cannot connect: {source}; does an aggregator listen there, and does a network policy let the agent through?"
    )]
    Tcp { source: io::Error },
    #[error("no answer within {0:?}; does a network policy let the agent through?")]
    TooSlow(Duration),
    #[error("TLS: {problem}")]
    Tls { problem: String },
    #[error("HTTP/2: {0}")]
    Http(tonic::transport::Error),
    #[error("this replica of the aggregator does not lead, and knows of none that does")]
    NotLeader { leader: Option<SocketAddr> },
    #[error("refused: {message} ({code:?})")]
    Refused { code: Code, message: String },
}

/// Tries the leader that was named last, then all that the name stands for, in no order, and whoever they say leads.
pub(super) async fn round(
    config: &Config,
    leader: Option<SocketAddr>,
) -> Result<Stream, Vec<(String, ConnectError)>> {
    let mut errors = Vec::new();
    let mut waiting: VecDeque<SocketAddr> = leader.into_iter().collect();
    match resolve(&config.address).await {
        Ok(addresses) => waiting.extend(addresses),
        Err(err) => errors.push((config.address.clone(), err)),
    }
    let mut tried = HashSet::new();
    while let Some(address) = waiting.pop_front() {
        if tried.len() == MOST || !tried.insert(address) {
            continue;
        }
        match open(config, address).await {
            Ok(stream) => return Ok(stream),
            Err(err) => {
                if let ConnectError::NotLeader { leader: Some(leader) } = err {
                    waiting.push_front(leader);
                }
                errors.push((address.to_string(), err));
            }
        }
    }
    Err(errors)
}

async fn resolve(host: &str) -> Result<Vec<SocketAddr>, ConnectError> {
    let found = match timeout(STEP, tokio::net::lookup_host(host)).await {
        Ok(found) => found.map_err(|source| ConnectError::Resolve { host: host.to_owned(), source })?,
        Err(_) => {
            let source = io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
            return Err(ConnectError::Resolve { host: host.to_owned(), source });
        }
    };
    let mut addresses: Vec<SocketAddr> = found.collect();
    if addresses.is_empty() {
        return Err(ConnectError::NoAddress { host: host.to_owned() });
    }
    fastrand::shuffle(&mut addresses);
    Ok(addresses)
}

async fn open(config: &Config, address: SocketAddr) -> Result<Stream, ConnectError> {
    // Both are read each time: the kubelet renews the token, and the aggregator its authorities.
    let token = fs::read_to_string(&config.token)
        .map_err(|source| ConnectError::Token { path: config.token.clone(), source })?;
    let no_token = || ConnectError::TokenForm { path: config.token.clone() };
    let token = Some(token.trim()).filter(|token| !token.is_empty()).ok_or_else(no_token)?;
    let mut authorization: tonic::metadata::AsciiMetadataValue =
        format!("Bearer {token}").parse().map_err(|_| no_token())?;
    authorization.set_sensitive(true);
    let bundle = fs::read(&config.bundle)
        .map_err(|source| ConnectError::Bundle { path: config.bundle.clone(), source })?;
    let tls = client_config(&bundle)
        .map_err(|source| ConnectError::BundleForm { path: config.bundle.clone(), source })?;

    let tcp =
        within(TCP, TcpStream::connect(address)).await?.map_err(|source| ConnectError::Tcp { source })?;
    // Only a matter of delay.
    drop(tcp.set_nodelay(true));
    let name = ServerName::try_from(config.server_name.clone())
        .map_err(|_| ConnectError::Name { name: config.server_name.clone() })?;
    let stream = within(STEP, TlsConnector::from(Arc::new(tls)).connect(name, tcp))
        .await?
        .map_err(|err| ConnectError::Tls { problem: tls_problem(&err, config) })?;

    // The stream is TLS already; tonic is not to add its own, which is what `https` would mean to it.
    let endpoint = Endpoint::from_static("http://aggregator")
        .http2_keep_alive_interval(limits::PING)
        .keep_alive_timeout(limits::PING)
        .keep_alive_while_idle(true);
    let channel = within(STEP, endpoint.connect_with_connector(Once(Some(stream))))
        .await?
        .map_err(ConnectError::Http)?;
    let (out, outgoing) = mpsc::channel(OUTGOING);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert("authorization", authorization);
    let mut client = ReportsClient::new(channel).max_decoding_message_size(ANSWER);
    let answers = within(limits::AUTHENTICATION + STEP, client.report(request)).await?.map_err(of_status)?;
    Ok(Stream { address, out, answers: answers.into_inner() })
}

async fn within<T>(time: Duration, done: impl Future<Output = T>) -> Result<T, ConnectError> {
    timeout(time, done).await.map_err(|_| ConnectError::TooSlow(time))
}

/// What the end of a stream, or the refusal of one, means.
#[expect(clippy::needless_pass_by_value, reason = "as errors are mapped")]
pub(super) fn of_status(status: Status) -> ConnectError {
    let leader = status.metadata().get(LEADER).and_then(|leader| leader.to_str().ok()?.parse().ok());
    if leader.is_some() || (status.code() == Code::Unavailable && status.message().contains("does not lead"))
    {
        return ConnectError::NotLeader { leader };
    }
    let message = status.message().chars().filter(|c| !c.is_control()).take(300).collect();
    ConnectError::Refused { code: status.code(), message }
}

fn tls_problem(err: &io::Error, config: &Config) -> String {
    let bundle = config.bundle.display();
    let inner = err.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        )) => {
            format!(
                "no authority in {bundle} signed the certificate; is that the bundle of this aggregator, and up to date?"
            )
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => {
            format!(
                "the certificate is not for the name {:?}; is that the name of this aggregator's Service?",
                config.server_name
            )
        }
        Some(rustls::Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => "the certificate has ended; see the aggregator's log for why it was not renewed, and this node's clock"
            .to_owned(),
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => "the certificate is not valid yet; is this node's clock right?".to_owned(),
        Some(other) => other.to_string(),
        None => format!("{err}; does an aggregator listen there?"),
    }
}

/// Hands out a connection that is there already.
pub(super) struct Once(pub(super) Option<TlsStream<TcpStream>>);

impl Service<Uri> for Once {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let stream = self.0.take().map(TokioIo::new);
        Box::pin(async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) })
    }
}
