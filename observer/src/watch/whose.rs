//! Whose network namespaces they are, as scans and the programs tell it.

use sidescope_common::EdgeKey;

use super::Watch;
use crate::cgroup;
use crate::collect::address;
use crate::outbox::Whose;
use crate::probes::{ProbeError, now_ns};

impl Watch {
    /// Begins to find out whose these edges are, as far as that is not known and nobody is at it: it need not wait for the next second.
    ///
    /// # Errors
    /// When the kernel refuses to read its maps.
    pub fn look_for(&mut self, edges: impl IntoIterator<Item = EdgeKey>) -> Result<(), ProbeError> {
        let now = now_ns();
        let mut lacking = Vec::new();
        for key in edges {
            self.living.notice(key.netns, now);
            if self.sources.lacks(key.netns) {
                lacking.push(key.netns);
            }
        }
        if !self.scans.are_news(lacking) {
            return Ok(());
        }
        if self.scans.are_done_by_nobody() { self.take_sources() } else { self.scan_if_due(true) }
    }

    /// Whose network namespace it is, as far as is known.
    pub fn whose(&self, netns: u64) -> Whose {
        let addresses = self.sources.addresses(netns).into_iter().flatten().copied().collect();
        Whose { pod: self.bindings.pod(netns).cloned(), addresses }
    }

    /// What the programs know of the namespaces.
    pub(super) fn take_sources(&mut self) -> Result<(), ProbeError> {
        let now = now_ns();
        for (source, local) in self.probes.sources()? {
            self.sources.add_local(source.netns, address(local.addr));
            self.living.notice(source.netns, now);
        }
        // Last, because a program may have left its cgroup since it connected.
        let (mut pods, has_homes) = (None, self.sources.has_homes());
        for (netns, cgroup) in self.probes.cgroups()? {
            if has_homes {
                self.sources.add_by_home(netns, cgroup);
            }
            if !self.bindings.knows(netns) {
                // Where it cannot be read, nobody knows.
                let pods = pods.get_or_insert_with(|| cgroup::pods(&self.cgroup).unwrap_or_default());
                if let Some(pod) = pods.get(&cgroup) {
                    self.bindings.connected(netns, pod);
                }
            }
        }
        Ok(())
    }
}
