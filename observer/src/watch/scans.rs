//! When the network namespaces are scanned: at most one scan at a time, beside the runtime.

use std::future::pending;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::scan::{self, Found, Running, ScanError, What};

/// How often sockets are listed. Addresses are looked at whenever one is missing.
const SOCKETS_EVERY: Duration = Duration::from_secs(60);

/// The scans of one watch.
pub(super) struct Scans {
    cgroup: PathBuf,
    running: Option<(What, Running)>,
    sockets_due: Instant,
}

impl Scans {
    /// Of the processes of this cgroup; the first one is due at once.
    pub(super) fn new(cgroup: PathBuf, now: Instant) -> Self {
        Self { cgroup, running: None, sockets_due: now }
    }

    /// Starts a scan if it is time for the sockets or if `addresses` are wanted, and none is under way.
    pub(super) fn start_if_due(&mut self, addresses: bool, now: Instant) -> Result<(), ScanError> {
        let sockets = now >= self.sockets_due;
        if self.running.is_some() || !(sockets || addresses) {
            return Ok(());
        }
        let what = if sockets { What::Sockets } else { What::Addresses };
        self.running = Some((what, scan::start(self.cgroup.clone(), what)?));
        if sockets {
            self.sockets_due = now + SOCKETS_EVERY;
        }
        Ok(())
    }

    /// Whether a scan is under way.
    pub(super) fn under_way(&self) -> bool {
        self.running.is_some()
    }

    /// What the scan under way looks for, and finds next. Waits for ever where there is none; may be dropped half-way without loss.
    pub(super) async fn next(&mut self) -> (What, Result<Found, ScanError>) {
        loop {
            match &mut self.running {
                None => pending().await,
                Some((what, running)) => match running.next().await {
                    Some(found) => {
                        let what = *what;
                        if !matches!(found, Ok(Found::Part(_))) {
                            self.running = None;
                        }
                        return (what, found);
                    }
                    None => self.running = None,
                },
            }
        }
    }
}
