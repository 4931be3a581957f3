//! The agent's side of the socket.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::protocol::{self, Frame};
use crate::scan::{Found, QUEUE, Running, ScanError, What};

/// How long the scanner may take to accept; others may be served before.
const CONNECT: Duration = Duration::from_secs(2);
/// How long the next frame may take.
const FRAME: Duration = Duration::from_secs(10);

/// Why the scanner did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not there, or no right to ask it.
    #[error(
        "cannot reach the scanner at {socket}: start `sidescope scanner --socket {socket}` as the same user; in Kubernetes look \
         whether its container runs and shares the socket's folder with this one"
    )]
    Connect {
        /// Path of the socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Broken off.
    #[error("the scanner at {socket} broke off")]
    Stream {
        /// Path of the socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It refused, or failed.
    #[error("the scanner at {socket}: {reason}")]
    Failed {
        /// Path of the socket.
        socket: PathBuf,
        /// What it said.
        reason: String,
    },
}

/// Asks the scanner.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the scanner at this path. Nothing happens yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Starts a scan there. What goes wrong comes as its last word.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self, what: What) -> Running {
        let (send, found) = mpsc::channel(QUEUE);
        let socket = self.socket.clone();
        let task = tokio::spawn(async move {
            if let Err(err) = ask(&socket, what, &send).await {
                // Where nobody waits for it, nobody needs to know.
                drop(send.send(Err(err.into())).await);
            }
        });
        Running::new(found, Some(task.abort_handle()))
    }
}

async fn ask(
    socket: &Path,
    what: What,
    send: &mpsc::Sender<Result<Found, ScanError>>,
) -> Result<(), ClientError> {
    let unreachable = |source| ClientError::Connect { socket: socket.to_owned(), source };
    let broken = |source| ClientError::Stream { socket: socket.to_owned(), source };
    let late = |_| io::Error::from(io::ErrorKind::TimedOut);
    let connected = timeout(CONNECT, UnixStream::connect(socket)).await;
    let mut stream = connected.map_err(late).flatten().map_err(unreachable)?;
    stream.write_all(protocol::request(what).as_bytes()).await.map_err(broken)?;
    loop {
        let frame = timeout(FRAME, protocol::read(&mut stream)).await.map_err(late).flatten();
        let (found, last) = match frame.map_err(broken)? {
            Frame::Part(part) => (Found::Part(part), false),
            Frame::End(summary) => (Found::End(summary), true),
            Frame::Failed(reason) | Frame::Refused(reason) => {
                return Err(ClientError::Failed { socket: socket.to_owned(), reason });
            }
        };
        if send.send(Ok(found)).await.is_err() || last {
            return Ok(());
        }
    }
}
