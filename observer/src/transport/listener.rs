//! Connections up to the end of their TLS handshake, and what ends one that does nothing.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use super::counts::{Counts, Reason};
use super::limits;

/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(5);

/// Takes connections for as long as somebody takes them from `connections`.
pub(super) async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    counts: Arc<Counts>,
    connections: mpsc::Sender<io::Result<Connection>>,
) {
    let open = Arc::new(Semaphore::new(limits::CONNECTIONS));
    let mut handshakes: JoinSet<()> = JoinSet::new();
    loop {
        while handshakes.len() >= limits::HANDSHAKES {
            handshakes.join_next().await;
        }
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = handshakes.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(err) => {
                // Such as too many open files: what is open has to end first.
                warn!(%err, "a connection could not be accepted");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let Ok(open) = Arc::clone(&open).try_acquire_owned() else {
            counts.add(Reason::ConnectionsFull);
            continue;
        };
        let (tls, counts, connections) = (tls.clone(), Arc::clone(&counts), connections.clone());
        handshakes.spawn(async move {
            match timeout(limits::HANDSHAKE, tls.accept(stream)).await {
                Err(_) => counts.add(Reason::HandshakeSlow),
                Ok(Err(err)) => {
                    debug!(%peer, %err, "a TLS handshake failed");
                    counts.add(Reason::HandshakeFailed);
                }
                Ok(Ok(stream)) => {
                    let connection = Connection::new(stream, counts, open);
                    // Nobody takes it: the server ends.
                    drop(connections.send(Ok(connection)).await);
                }
            }
        });
    }
}

/// A connection that ends itself when it is of no use.
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    use_: Arc<Use>,
    heard: Instant,
    look: Pin<Box<Sleep>>,
    counts: Arc<Counts>,
    _open: OwnedSemaphorePermit,
}

/// Whether agents have streams on a connection.
#[derive(Debug)]
pub(super) struct Use {
    sessions: AtomicUsize,
    had_one: AtomicBool,
    none_since: Mutex<Instant>,
}

/// A stream of an agent, for as long as this lives.
#[derive(Debug)]
pub(super) struct InUse(Arc<Use>);

impl Use {
    pub(super) fn begin(self: &Arc<Self>) -> InUse {
        self.sessions.fetch_add(1, Ordering::AcqRel);
        self.had_one.store(true, Ordering::Release);
        InUse(Arc::clone(self))
    }

    fn without_session(&self) -> bool {
        self.sessions.load(Ordering::Acquire) == 0
            && self.none_since.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
                >= limits::WITHOUT_SESSION
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        *self.0.none_since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.sessions.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, counts: Arc<Counts>, open: OwnedSemaphorePermit) -> Self {
        // Only a matter of delay.
        drop(stream.get_ref().0.set_nodelay(true));
        let use_ = Use {
            sessions: AtomicUsize::new(0),
            had_one: AtomicBool::new(false),
            none_since: Mutex::new(Instant::now()),
        };
        Self {
            stream,
            use_: Arc::new(use_),
            heard: Instant::now(),
            look: Box::pin(sleep(LOOK)),
            counts,
            _open: open,
        }
    }

    fn check(&self) -> io::Result<()> {
        if self.use_.without_session() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no stream of an agent"));
        }
        if self.heard.elapsed() >= limits::SILENCE {
            self.counts.add(Reason::Silent);
            return Err(io::Error::new(io::ErrorKind::TimedOut, "silent"));
        }
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if !self.use_.had_one.load(Ordering::Acquire) {
            self.counts.add(Reason::NoSession);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Use>;

    fn connect_info(&self) -> Arc<Use> {
        Arc::clone(&self.use_)
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Also where bytes keep coming: they do not make a stream.
        while this.look.as_mut().poll(cx).is_ready() {
            this.check()?;
            this.look.as_mut().reset(Instant::now() + LOOK);
        }
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        if read.is_ready() {
            this.heard = Instant::now();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
