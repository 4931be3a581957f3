//! A scan of all network namespaces while the runtime goes on: in this process on a thread of its own, or in the scanner process
//! (see [`scanner`](crate::scanner)). What it finds comes in the same way from both.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::{io, thread};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use crate::namespaces::What;
use crate::namespaces::{Part, Summary, look};
use crate::scanner::{Client, ClientError};

/// Parts that may wait for their reader; the scan waits when there are more.
pub(crate) const QUEUE: usize = 4;

/// What a scan yields: any number of parts, then the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Found {
    /// A namespace, or more sockets of it.
    Part(Part),
    /// It is through.
    End(Summary),
}

/// Why a scan is not through.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// Not even begun.
    #[error("cannot start a thread for the scan of the network namespaces")]
    Thread(#[source] io::Error),
    /// It cannot be told where to look.
    #[error(
        "cannot scan the network namespaces (it takes the capabilities SYS_ADMIN and SYS_PTRACE; `sidescope agent --scanner` has \
         another process do it)"
    )]
    Look(#[source] io::Error),
    /// It panicked.
    #[error("the scan of the network namespaces ended before it was through")]
    CutShort,
    /// See there.
    #[error(transparent)]
    Client(#[from] ClientError),
}

/// Who enters the network namespaces.
#[derive(Clone, Debug)]
pub enum By {
    /// This process.
    ThisProcess,
    /// The scanner: a process of its own.
    Scanner(Client),
    /// Nobody.
    Nobody,
}

impl By {
    /// Starts a scan; none where nobody does any. In this process sockets are those of the processes of `cgroup`; a scanner was
    /// told which when it was started.
    ///
    /// # Errors
    /// When it cannot even be begun.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(&self, cgroup: &Path, what: What) -> Result<Option<Running>, ScanError> {
        match self {
            Self::ThisProcess => start(cgroup.to_owned(), what).map(Some),
            Self::Scanner(client) => Ok(Some(client.start(what))),
            Self::Nobody => Ok(None),
        }
    }
}

/// A scan under way. Dropping it ends it.
pub struct Running {
    found: mpsc::Receiver<Result<Found, ScanError>>,
    through: bool,
    task: Option<AbortHandle>,
}

impl Running {
    pub(crate) fn new(found: mpsc::Receiver<Result<Found, ScanError>>, task: Option<AbortHandle>) -> Self {
        Self { found, through: false, task }
    }

    /// What comes next; none after the end or an error. May be dropped half-way without loss.
    pub async fn next(&mut self) -> Option<Result<Found, ScanError>> {
        if self.through {
            return None;
        }
        let next = self.found.recv().await.unwrap_or(Err(ScanError::CutShort));
        self.through = !matches!(next, Ok(Found::Part(_)));
        Some(next)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Starts a scan in this process, which takes the rights that [`look`] names. Sockets are those of the processes of `cgroup`.
///
/// # Errors
/// When the thread cannot be started.
pub fn start(cgroup: PathBuf, what: What) -> Result<Running, ScanError> {
    let (send, found) = mpsc::channel(QUEUE);
    let scan = move || {
        let hand_on = |part| match send.blocking_send(Ok(Found::Part(part))) {
            Ok(()) => ControlFlow::Continue(()),
            // Nobody wants it any more.
            Err(_) => ControlFlow::Break(()),
        };
        let end = look(&cgroup, what, hand_on).map(Found::End).map_err(ScanError::Look);
        drop(send.blocking_send(end));
    };
    // The thread needs no one to join it: it ends with the scan, and when nobody takes the next part.
    thread::Builder::new().name("netns-scan".to_owned()).spawn(scan).map_err(ScanError::Thread)?;
    Ok(Running::new(found, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_scan_that_ends_without_its_end_says_so_once() {
        let (send, found) = mpsc::channel(QUEUE);
        send.send(Ok(Found::Part(Part::default()))).await.unwrap();
        drop(send);
        let mut running = Running::new(found, None);
        assert!(matches!(running.next().await, Some(Ok(Found::Part(_)))));
        assert!(matches!(running.next().await, Some(Err(ScanError::CutShort))));
        assert!(running.next().await.is_none());
    }
}
