//! Edges that are not told yet, and those that are of no use any more.

use std::time::{Duration, Instant};

use sidescope_common::{Counter, EdgeKey};

use super::Watch;
use crate::collect::Observed;
use crate::probes::{ProbeError, now_ns};

/// How often it is looked for edges that nobody uses, where that is needed.
const LOOK_FOR_IDLE_EVERY: Duration = Duration::from_secs(60);

/// How often to scan because the set is full.
const SCAN_FULL_EVERY: Duration = Duration::from_secs(5);

impl Watch {
    /// Edges that may be told. The others wait for the scan that says whether they are a proxy's, but not for ever.
    pub fn tellable(&self) -> impl Iterator<Item = (&EdgeKey, &Observed)> {
        let now = now_ns();
        self.collector.edges().iter().filter(move |(key, _)| !self.is_held(key.netns, now))
    }

    /// Of these edges, those that may be told.
    pub fn tellable_of<'a>(
        &'a self,
        keys: impl IntoIterator<Item = &'a EdgeKey>,
    ) -> impl Iterator<Item = (&'a EdgeKey, &'a Observed)> {
        let now = now_ns();
        let known = keys.into_iter().filter_map(|key| self.collector.edges().get_key_value(key));
        known.filter(move |(key, _)| !self.is_held(key.netns, now))
    }

    /// Whether edges of this namespace may not be told yet.
    pub fn holds(&self, netns: u64) -> bool {
        self.is_held(netns, now_ns())
    }

    /// Since when the namespace is known that waits for the longest time; `None` where none waits.
    pub fn holds_since(&self) -> Option<u64> {
        let now = now_ns();
        let held = self.collector.edges().keys().filter(|key| self.is_held(key.netns, now));
        held.map(|key| self.living.known_since(key.netns).unwrap_or(0)).min()
    }

    /// Whether there are edges that may not be told yet.
    pub fn holds_any(&self) -> bool {
        let now = now_ns();
        self.collector.edges().keys().any(|key| self.is_held(key.netns, now))
    }

    fn is_held(&self, netns: u64, now: u64) -> bool {
        if self.scans.are_done_by_nobody() {
            // What the programs know of it has to be looked up.
            return !self.scans.were_looked_for(netns);
        }
        let is_known = self.sources.knows_users(netns) && self.knows_proxy(netns);
        self.living.is_held(netns, is_known, now)
    }

    /// Forgets what is gone, here and in the kernel, as far as `told` says that all that is known of an edge was told, and acknowledged
    /// where that is of weight. Returns these edges. Whoever connects on one of them again makes it anew, and nothing is lost.
    ///
    /// Call it now and then; it does nothing where nothing is gone.
    ///
    /// # Errors
    /// When the kernel refuses to read or write its maps.
    pub fn forget(&mut self, told: impl Fn(&EdgeKey, &Observed) -> bool) -> Result<Vec<EdgeKey>, ProbeError> {
        let now = now_ns();
        self.scan_if_full()?;
        let idle = self.looks_for_idle(now);
        if !idle && self.living.gone().next().is_none() {
            return Ok(Vec::new());
        }
        // What has come since then is not told.
        self.drain();
        let set = self.sweep()?;
        let over = self.living.forgettable(&set, self.collector.edges(), told, idle, now);
        self.probes.forget_edges(&over.edges)?;
        self.collector.forget(&over.edges, &over.namespaces);
        if !over.namespaces.is_empty() {
            self.probes.forget_namespaces(&over.namespaces)?;
        }
        for netns in over.namespaces {
            self.sources.forget(netns);
            self.bindings.forget(netns);
            self.pods.forget(netns);
            self.scans.forget(netns);
            self.living.forget(netns);
        }
        Ok(over.edges)
    }

    /// What is gone takes the room of what comes: it need not wait for the next scan.
    fn scan_if_full(&mut self) -> Result<(), ProbeError> {
        let beyond = self.probes.counter(Counter::EdgesFull)?;
        let is_due = self.full_scanned.is_none_or(|last| last.elapsed() >= SCAN_FULL_EVERY);
        if beyond > self.beyond && is_due && !self.scans.under_way() {
            self.beyond = beyond;
            self.full_scanned = Some(Instant::now());
            self.scan_if_due(true)?;
        }
        Ok(())
    }

    /// Where it is not known who lives, and where the set is three quarters full.
    fn looks_for_idle(&mut self, now: u64) -> bool {
        let is_crowded = self.collector.edges().len() >= self.room / 4 * 3;
        let is_due = self.idle_looked_for.is_none_or(|last| last.elapsed() >= LOOK_FOR_IDLE_EVERY);
        let looks = is_due && (is_crowded || self.living.is_unknown(now));
        if looks {
            self.idle_looked_for = Some(Instant::now());
        }
        looks
    }
}
