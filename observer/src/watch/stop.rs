//! How a watch ends: by a signal or with an error.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Why a command ended with an error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Something that the user gave, or the machine, does not allow it: nothing was watched.
    #[error(transparent)]
    Setup(anyhow::Error),
    /// It failed while it watched, or when it told the results.
    #[error(transparent)]
    Run(anyhow::Error),
}

/// The signals that end the watch.
pub struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// From here on these signals no longer end the process.
    ///
    /// # Errors
    /// When the system does not let it listen.
    pub fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    /// Waits for one of them.
    pub async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
