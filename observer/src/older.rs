//! Which connections were open before the kernel programs were: those that the first list of sockets shows. Pure.
//!
//! The programs know a socket by what its connect left on it. One that was connected before has nothing, and they look at its
//! requests only if they are told its cookie and its edge.

use std::collections::HashSet;
use std::mem;

/// The sockets of which the kernel was told. Bounded by its map, and by the namespaces of this machine.
#[derive(Debug, Default)]
pub struct Older {
    told: HashSet<u64>,
    /// Those of them that the scan under way has listed.
    seen: HashSet<u64>,
    /// Namespaces that were listed by the scans before this one, and by this one.
    listed: HashSet<u64>,
    listing: HashSet<u64>,
    /// A scan has listed everything: sockets that come later were connected under the eyes of the programs.
    complete: bool,
}

impl Older {
    /// Goes on where another process has ended: the kernel was told of these sockets. `complete`: it had listed everything, so that
    /// all others were connected under the eyes of the programs.
    pub fn adopted(told: impl IntoIterator<Item = u64>, complete: bool) -> Self {
        Self { told: told.into_iter().collect(), complete, ..Self::default() }
    }

    /// Whether a scan has listed everything, here or before.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A scan lists this namespace.
    pub fn namespace(&mut self, netns: u64) {
        if !self.complete {
            self.listing.insert(netns);
        }
    }

    /// A scan lists this socket. True: it is older, and the kernel has not been told of it.
    #[must_use]
    pub fn is_news(&mut self, netns: u64, socket: u64) -> bool {
        if self.told.contains(&socket) {
            self.seen.insert(socket);
            return false;
        }
        !self.complete && !self.listed.contains(&netns)
    }

    /// The kernel was told of this socket.
    pub fn told(&mut self, socket: u64) {
        self.told.insert(socket);
        self.seen.insert(socket);
    }

    /// A scan of sockets ended; `whole` if it could look everywhere. Returns the sockets that are closed since the one before it:
    /// the kernel need not know them any longer.
    #[must_use]
    pub fn end(&mut self, whole: bool) -> Vec<u64> {
        let seen = mem::take(&mut self.seen);
        let listing = mem::take(&mut self.listing);
        if whole {
            self.complete = true;
            self.listed = HashSet::new();
            return mem::replace(&mut self.told, seen).difference(&self.told).copied().collect();
        }
        // What was not listed may only have been out of sight.
        self.listed.extend(listing);
        Vec::new()
    }

    /// Whether the kernel was told of any socket that may still be open.
    pub fn any(&self) -> bool {
        !self.told.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(older: &mut Older, sockets: &[(u64, u64)], whole: bool) -> (Vec<u64>, Vec<u64>) {
        let mut news = Vec::new();
        for (netns, socket) in sockets {
            older.namespace(*netns);
            if older.is_news(*netns, *socket) {
                older.told(*socket);
                news.push(*socket);
            }
        }
        let mut gone = older.end(whole);
        gone.sort_unstable();
        (news, gone)
    }

    #[test]
    fn only_what_the_first_whole_scan_lists_is_older() {
        let mut older = Older::default();
        assert_eq!(scan(&mut older, &[(1, 10), (1, 11), (2, 20)], true), (vec![10, 11, 20], vec![]));
        assert!(older.any());
        assert_eq!(scan(&mut older, &[(1, 10), (1, 12), (3, 30)], true), (vec![], vec![11, 20]));
        assert_eq!(scan(&mut older, &[(1, 12), (3, 30)], true), (vec![], vec![10]));
        assert!(!older.any());
    }

    #[test]
    fn what_another_process_has_told_is_forgotten_when_it_is_closed() {
        let mut older = Older::adopted([10, 11], true);
        assert!(older.is_complete() && older.any());
        // Nobody has told of 12: the programs saw it connect.
        assert_eq!(scan(&mut older, &[(1, 10), (1, 12)], true), (vec![], vec![11]));
        let mut older = Older::adopted([10, 11], false);
        assert_eq!(scan(&mut older, &[(1, 10), (1, 12)], true), (vec![12], vec![11]));
        assert!(older.is_complete());
    }

    #[test]
    fn after_a_scan_with_gaps_a_namespace_that_was_not_listed_may_still_have_older_ones() {
        let mut older = Older::default();
        assert_eq!(scan(&mut older, &[(1, 10)], false), (vec![10], vec![]));
        assert_eq!(scan(&mut older, &[(1, 11), (2, 20)], false), (vec![20], vec![]), "not a newer one of 1");
        assert_eq!(scan(&mut older, &[(1, 10)], true), (vec![], vec![20]));
    }
}
