//! HTTP of the applications, and names without DNS: who calls `details:9080` sends that as Host and connects to its ClusterIP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name as DnsName;
use hyper_util::client::legacy::{Client as HyperClient, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::wait::patient;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// One thread is enough for an application of the demo.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start the asynchronous runtime")
}

/// A service's name and its addresses: `details=10.96.0.11,fd00:10:96::b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name as callers write it.
    pub name: String,
    /// Its addresses; the first one's family is tried first.
    pub addresses: Vec<IpAddr>,
}

impl FromStr for Name {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, list) = text.split_once('=').ok_or_else(|| anyhow!("expected NAME=ADDRESS[,ADDRESS]"))?;
        let address = |text: &str| text.parse().with_context(|| format!("`{text}` is no address"));
        Ok(Self { name: name.to_owned(), addresses: list.split(',').map(address).collect::<Result<_>>()? })
    }
}

/// Names and their addresses.
#[derive(Clone)]
pub(crate) struct Names(Arc<BTreeMap<String, Vec<IpAddr>>>);

impl Names {
    pub(crate) fn new(names: Vec<Name>) -> Self {
        Self(Arc::new(names.into_iter().map(|name| (name.name, name.addresses)).collect()))
    }

    /// Where to connect to for `name` and a port.
    pub(crate) fn addresses(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let known = self.0.get(name).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, format!("no address for `{name}`: give --resolve"))
        })?;
        Ok(known.iter().map(|address| SocketAddr::new(*address, port)).collect())
    }
}

impl tower_service::Service<DnsName> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: DnsName) -> Self::Future {
        // The connector puts the port of the request in place of this one.
        ready(self.addresses(name.as_str(), 0).map(Vec::into_iter))
    }
}

/// Whether a client uses a connection again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    /// As most clients do.
    KeepAlive,
    /// As Python's `requests` does without a session, which Bookinfo's productpage uses.
    Never,
}

/// An HTTP client.
#[derive(Clone)]
pub(crate) struct Client(HyperClient<HttpConnector<Names>, Empty<Bytes>>);

impl Client {
    pub(crate) fn new(names: &Names, reuse: Reuse) -> Self {
        let mut connector = HttpConnector::new_with_resolver(names.clone());
        connector.set_connect_timeout(Some(patient(TIMEOUT)));
        // One address after the other: on a busy machine a second try beside a slow first one would be a second edge.
        connector.set_happy_eyeballs_timeout(None);
        connector.set_nodelay(true);
        let mut builder = HyperClient::builder(TokioExecutor::new());
        if reuse == Reuse::Never {
            builder.pool_max_idle_per_host(0);
        }
        Self(builder.build(connector))
    }

    /// The body of a page; any status but 200 is an error.
    pub(crate) async fn get(&self, url: &str) -> Result<Bytes> {
        let request = Request::get(url)
            .header("user-agent", "sidescope-testbed")
            .body(Empty::new())
            .with_context(|| format!("`{url}` is no address of a page"))?;
        let answer = async {
            let response = self.0.request(request).await.map_err(flat)?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            if status != StatusCode::OK {
                bail!("{status}: {}", String::from_utf8_lossy(&body));
            }
            Ok(body)
        };
        let answer = tokio::time::timeout(patient(TIMEOUT), answer).await;
        answer
            .unwrap_or_else(|_| Err(anyhow!("no answer within {:?}", patient(TIMEOUT))))
            .with_context(|| format!("GET {url}"))
    }
}

/// An error that says whether connecting failed.
fn flat(error: ClientError) -> anyhow::Error {
    let connecting = error.is_connect();
    let error = anyhow::Error::new(error);
    if connecting { error.context("cannot connect") } else { error }
}

/// What a server answers with.
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) kind: &'static str,
    pub(crate) body: Bytes,
}

/// Serves pages by their paths on all addresses, IPv4 and IPv6, until the process ends.
pub(crate) async fn serve<H, F>(port: u16, handler: H) -> Result<()>
where
    H: Fn(String) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Page> + Send + 'static,
{
    let listener = listen(port).await?;
    loop {
        let (stream, peer) = listener.accept().await.context("cannot accept")?;
        stream.set_nodelay(true).ok();
        let handler = handler.clone();
        // Ends with its connection, and all of them with the process, which the bed kills.
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let page = handler(request.uri().path().to_owned());
                async move { Ok::<_, Infallible>(respond(page.await)) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
            if let Err(error) = served {
                eprintln!("connection of {peer}: {error}");
            }
        });
    }
}

/// A listener on all addresses of both families.
pub(crate) async fn listen(port: u16) -> Result<TcpListener> {
    let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn respond(page: Page) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(page.body));
    *response.status_mut() = page.status;
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(page.kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_addresses_of_both_families() {
        let name: Name = "details=10.96.0.11,fd00:10:96::b".parse().unwrap();
        assert_eq!(name.name, "details");
        assert_eq!(name.addresses.len(), 2);
        let error = "details=here".parse::<Name>().unwrap_err();
        assert_eq!(error.to_string(), "`here` is no address");
        assert!("details".parse::<Name>().is_err());
    }
}
