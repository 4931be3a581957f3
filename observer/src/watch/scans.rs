//! When the network namespaces are scanned: at most one scan at a time, beside the runtime. Tells what goes wrong once, until
//! something else does or all is well again.

use std::collections::HashSet;
use std::error::Error;
use std::future::pending;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use crate::namespaces::Summary;
use crate::scan::{By, Found, Running, ScanError, What};

/// How often sockets are listed. Addresses are looked at whenever one is missing.
const SOCKETS_EVERY: Duration = Duration::from_secs(60);
/// How long after a scan that failed as a whole the next one is due, which lists sockets whatever that one did.
const RETRY: Duration = Duration::from_secs(5);

/// What to do where this process cannot look at network namespaces.
const REMEDY: &str = "it takes the capabilities SYS_ADMIN and SYS_PTRACE, and in a container the host's process namespace (hostPID: true)";

/// The scans of one watch.
pub(super) struct Scans {
    by: By,
    cgroup: PathBuf,
    running: Option<(What, Running)>,
    sockets_due: Instant,
    sockets_every: Duration,
    /// Namespaces whose addresses were asked for; those of an ended one will never be known. Bounded as the edges are.
    looked_for: HashSet<u64>,
    /// What was wrong with the last scan.
    trouble: Option<String>,
}

impl Scans {
    /// Of the processes of this cgroup; the first one is due at once.
    pub(super) fn new(by: By, cgroup: PathBuf, now: Instant) -> Self {
        if matches!(by, By::Nobody) {
            info!(
                "nobody looks into the network namespaces (--scanner none): connections from before the programs are missing, pods are \
                 known by their connections' own address, and what the proxy of a pod with hostUsers: false does counts as its \
                 workload's"
            );
        }
        let looked_for = HashSet::new();
        Self {
            by,
            cgroup,
            running: None,
            sockets_due: now,
            sockets_every: SOCKETS_EVERY,
            looked_for,
            trouble: None,
        }
    }

    /// Whether there are none.
    pub(super) fn are_done_by_nobody(&self) -> bool {
        matches!(self.by, By::Nobody)
    }

    /// Whether a scan has to look for the addresses of one of these namespaces: once for each, and not while a scan is under way, which
    /// may be past it.
    pub(super) fn are_news(&mut self, missing: impl IntoIterator<Item = u64>) -> bool {
        !self.under_way() && missing.into_iter().filter(|netns| self.looked_for.insert(*netns)).count() > 0
    }

    /// Whether the addresses of a namespace were asked for.
    pub(super) fn were_looked_for(&self, netns: u64) -> bool {
        self.looked_for.contains(&netns)
    }

    /// A namespace is gone; should it come again, it is looked for again.
    pub(super) fn forget(&mut self, netns: u64) {
        self.looked_for.remove(&netns);
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
    pub(super) fn start_if_due(&mut self, addresses: bool, now: Instant) {
        let sockets = self.are_sockets_due(now);
        if self.running.is_some() || !(sockets || addresses) {
            return;
        }
        let what = if sockets { What::Sockets } else { What::Addresses };
        if sockets {
            self.sockets_due = now + self.sockets_every;
        }
        match self.by.start(&self.cgroup, what) {
            Ok(running) => self.running = running.map(|running| (what, running)),
            Err(reason) => self.failed(&reason, now),
        }
    }

    /// A scan came to its end.
    pub(super) fn ended(&mut self, what: What, summary: &Summary) {
        let Summary { namespaces, sockets, failed, first_failure, .. } = summary;
        debug!(namespaces, sockets, failed, "network namespaces looked at");
        // One for addresses alone does not tell that sockets can be listed again.
        let tells = what == What::Sockets || first_failure.is_some();
        if tells && self.is_news(first_failure.clone()) {
            match first_failure {
                Some(reason) => warn!(
                    failed,
                    %reason,
                    remedy = REMEDY,
                    "network namespaces could not be looked at; their pods are told by the connections' own address, and connections \
                     that were open before are missing"
                ),
                None => info!("all network namespaces can be looked at again"),
            }
        }
    }

    /// A scan failed as a whole.
    pub(super) fn failed(&mut self, reason: &ScanError, now: Instant) {
        // An answer that came to no end may have looked for the addresses of some only.
        self.sockets_due = self.sockets_due.min(now + RETRY);
        let reason = chain(reason);
        if self.is_news(Some(reason.clone())) {
            warn!(
                %reason,
                remedy = matches!(self.by, By::ThisProcess).then_some(REMEDY),
                "network namespaces could not be looked at; until they can, which is tried every {} s, pods are told by their \
                 connections' own address, and connections that were open before are missing",
                RETRY.as_secs()
            );
        } else {
            debug!(%reason, "network namespaces could still not be looked at");
        }
    }

    fn is_news(&mut self, trouble: Option<String>) -> bool {
        let is_news = self.trouble != trouble;
        self.trouble = trouble;
        is_news
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

/// An error with its causes.
fn chain(err: &dyn Error) -> String {
    let mut text = err.to_string();
    let mut cause = err.source();
    while let Some(err) = cause {
        text += &format!(": {err}");
        cause = err.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[test]
    fn a_namespace_that_comes_while_a_scan_is_under_way_is_looked_for_afterwards() {
        let mut scans = Scans::new(By::ThisProcess, PathBuf::new(), Instant::now());
        assert!(scans.are_news([1, 2]));
        assert!(!scans.are_news([1, 2]), "once");
        let (_send, found) = mpsc::channel(1);
        scans.running = Some((What::Addresses, Running::new(found, None)));
        assert!(!scans.are_news([2, 3]), "the scan may be past it");
        scans.running = None;
        assert!(scans.are_news([2, 3]));
        assert!(!scans.are_news([2, 3]));
    }

    #[test]
    fn what_goes_wrong_is_told_once_until_it_changes() {
        let mut scans = Scans::new(By::ThisProcess, PathBuf::new(), Instant::now());
        let told = ["", "a", "a", "b", "", "", "b"].map(|reason| {
            let reason = Some(reason.to_owned()).filter(|reason| !reason.is_empty());
            scans.is_news(reason)
        });
        assert_eq!(told, [false, true, false, true, true, false, true]);
    }

    #[test]
    fn only_a_scan_that_lists_sockets_ends_the_trouble() {
        let mut scans = Scans::new(By::ThisProcess, PathBuf::new(), Instant::now());
        scans.failed(&ScanError::CutShort, Instant::now());
        scans.ended(What::Addresses, &Summary::default());
        assert!(scans.trouble.is_some());
        scans.ended(What::Sockets, &Summary::default());
        assert!(scans.trouble.is_none());
    }

    #[test]
    fn a_scan_that_failed_is_repeated_soon_and_lists_sockets() {
        let now = Instant::now();
        let mut scans = Scans::new(By::Nobody, PathBuf::new(), now);
        scans.start_if_due(false, now);
        assert_eq!(scans.sockets_due, now + SOCKETS_EVERY);
        scans.failed(&ScanError::CutShort, now);
        assert_eq!(scans.sockets_due, now + RETRY);
        let just_before = now + SOCKETS_EVERY - Duration::from_secs(1);
        scans.sockets_due = now + SOCKETS_EVERY;
        scans.failed(&ScanError::CutShort, just_before);
        assert_eq!(scans.sockets_due, now + SOCKETS_EVERY, "not put off");
    }

    #[test]
    fn an_error_is_told_with_its_causes() {
        let err = ScanError::Look(std::io::ErrorKind::NotFound.into());
        assert_eq!(
            chain(&err),
            "cannot scan the network namespaces (it takes the capabilities SYS_ADMIN and SYS_PTRACE; `sidescope agent --scanner` has \
             another process do it): entity not found"
        );
    }
}
