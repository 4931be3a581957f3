//! When the network namespaces are scanned: at most one scan at a time, beside the runtime.

use std::collections::HashSet;
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
    sockets_every: Duration,
    /// Namespaces whose addresses were asked for; those of an ended one will never be known. Bounded as the edges are.
    looked_for: HashSet<u64>,
}

impl Scans {
    /// Of the processes of this cgroup; the first one is due at once.
    pub(super) fn new(cgroup: PathBuf, now: Instant) -> Self {
        Self {
            cgroup,
            running: None,
            sockets_due: now,
            sockets_every: SOCKETS_EVERY,
            looked_for: HashSet::new(),
        }
    }

    /// Whether a scan has to look for the addresses of one of these namespaces: once for each, and not while a scan is under way, which
    /// may be past it.
    pub(super) fn are_news(&mut self, missing: impl IntoIterator<Item = u64>) -> bool {
        !self.under_way() && missing.into_iter().filter(|netns| self.looked_for.insert(*netns)).count() > 0
    }

    /// Lists sockets so often from here on, and once at once.
    pub(super) fn list_sockets_every(&mut self, interval: Duration, now: Instant) {
        (self.sockets_every, self.sockets_due) = (interval, now);
    }

    /// Whether the next scan lists sockets, and may start now.
    pub(super) fn are_sockets_due(&self, now: Instant) -> bool {
        self.running.is_none() && now >= self.sockets_due
    }

    /// Starts a scan if it is time for the sockets or if `addresses` are wanted, and none is under way.
    pub(super) fn start_if_due(&mut self, addresses: bool, now: Instant) -> Result<(), ScanError> {
        let sockets = self.are_sockets_due(now);
        if self.running.is_some() || !(sockets || addresses) {
            return Ok(());
        }
        let what = if sockets { What::Sockets } else { What::Addresses };
        self.running = Some((what, scan::start(self.cgroup.clone(), what)?));
        if sockets {
            self.sockets_due = now + self.sockets_every;
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

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_namespace_that_comes_while_a_scan_is_under_way_is_looked_for_afterwards() {
        let mut scans = Scans::new(PathBuf::new(), Instant::now());
        assert!(scans.are_news([1, 2]));
        assert!(!scans.are_news([1, 2]), "once");
        let (_send, found) = mpsc::channel(1);
        scans.running = Some((What::Addresses, Running::new(found, None)));
        assert!(!scans.are_news([2, 3]), "the scan may be past it");
        scans.running = None;
        assert!(scans.are_news([2, 3]));
        assert!(!scans.are_news([2, 3]));
    }
}
