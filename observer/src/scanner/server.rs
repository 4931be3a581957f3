//! The scanner's side of the socket.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use nix::sys::stat::{Mode, umask};
use tokio::io::AsyncReadExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::protocol::{self, Frame, MAX_REQUEST};
use super::rights::{self, RightsError};
use crate::scan::{self, Found};

/// How long a client may take for its request.
const REQUEST: Duration = Duration::from_secs(2);
/// How long a client may take for one frame.
const FRAME: Duration = Duration::from_secs(5);
/// Pause after an accept that failed, for want of descriptors for example.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the scanner does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Rights are missing, or cannot be given up.
    #[error(transparent)]
    Rights(#[from] RightsError),
    /// Somebody answers there.
    #[error("another scanner answers at {0}: end it, or choose another path")]
    Taken(PathBuf),
    /// There is something else.
    #[error("{0} is no socket and is left alone: choose another path")]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen at {path}")]
    Listen {
        /// Path of the socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No signals.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
}

/// Why a client was not served.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("no request within {REQUEST:?}")]
    Silent,
    #[error("{0}")]
    Refused(String),
    #[error("an answer was not taken within {FRAME:?}")]
    Slow,
    #[error("{0}")]
    Stream(#[from] io::Error),
}

/// Serves clients until SIGTERM or SIGINT. Sockets are listed in the namespaces of the processes of `cgroup`.
///
/// # Errors
/// See [`ServeError`].
pub async fn run(socket: &Path, cgroup: &Path) -> Result<(), ServeError> {
    rights::give_up()?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let bound = Bound::new(socket)?;
    info!(socket = %socket.display(), cgroup = %cgroup.display(), "scanner ready");
    tokio::select! {
        () = serve(&bound.listener, cgroup) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("scanner ended");
    Ok(())
}

async fn serve(listener: &UnixListener, cgroup: &Path) {
    let (mut answered, mut dropped) = (0u64, 0u64);
    loop {
        let mut client = match listener.accept().await {
            Ok((client, _)) => client,
            Err(reason) => {
                warn!(%reason, "cannot accept a client");
                sleep(PAUSE).await;
                continue;
            }
        };
        match answer(&mut client, cgroup).await {
            Ok(()) => {
                answered += 1;
                debug!(answered, "client answered");
            }
            Err(reason) => {
                dropped += 1;
                warn!(%reason, answered, dropped, "client dropped");
            }
        }
    }
}

async fn answer(client: &mut UnixStream, cgroup: &Path) -> Result<(), Dropped> {
    let line = timeout(REQUEST, read_line(client)).await.map_err(|_| Dropped::Silent)??;
    let what = match protocol::parse_request(&line) {
        Ok(what) => what,
        Err(refusal) => {
            send(client, &Frame::Refused(refusal.clone())).await?;
            return Err(Dropped::Refused(refusal));
        }
    };
    let mut running = match scan::start(cgroup.to_owned(), what) {
        Ok(running) => running,
        Err(err) => return send(client, &failure(&err)).await,
    };
    while let Some(found) = running.next().await {
        let frame = match found {
            Ok(Found::Part(part)) => Frame::Part(part),
            Ok(Found::End(summary)) => Frame::End(summary),
            Err(err) => failure(&err),
        };
        send(client, &frame).await?;
    }
    Ok(())
}

fn failure(err: &dyn std::error::Error) -> Frame {
    let cause = err.source().map_or_else(String::new, |cause| format!(": {cause}"));
    Frame::Failed(format!("{err}{cause}"))
}

async fn send(client: &mut UnixStream, frame: &Frame) -> Result<(), Dropped> {
    timeout(FRAME, protocol::write(client, frame)).await.map_err(|_| Dropped::Slow)?.map_err(Dropped::Stream)
}

/// The first line, without its end. What follows it is not read.
async fn read_line(client: &mut UnixStream) -> Result<Vec<u8>, Dropped> {
    let mut line = Vec::with_capacity(MAX_REQUEST);
    loop {
        let mut piece = [0; MAX_REQUEST];
        let read = client.read(&mut piece).await?;
        if read == 0 {
            return Err(Dropped::Refused("hung up before the end of its request".to_owned()));
        }
        line.extend_from_slice(&piece[..read]);
        if let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            line.truncate(end);
            return Ok(line);
        }
        if line.len() >= MAX_REQUEST {
            // Told as what it is: no request.
            return Ok(line);
        }
    }
}

/// The socket; its file goes with it.
struct Bound {
    listener: UnixListener,
    path: PathBuf,
    file: (u64, u64),
}

impl Bound {
    fn new(path: &Path) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { path: path.to_owned(), source };
        let listener = match bind(path) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                bind(path)
            }
            other => other,
        };
        let listener = listener.map_err(failed)?;
        let file = identity(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned(), file })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Not that of a successor.
        if identity(&self.path).is_ok_and(|file| file == self.file)
            && let Err(reason) = fs::remove_file(&self.path)
        {
            warn!(socket = %self.path.display(), %reason, "cannot remove the socket");
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Only the owner may connect, from the first moment on.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener
}

fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let failed = |source| ServeError::Listen { path: path.to_owned(), source };
    if !fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(ServeError::NoSocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        Err(source) => Err(failed(source)),
        Ok(_) => Err(ServeError::Taken(path.to_owned())),
    }
}
