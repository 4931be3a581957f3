//! Connections that are older than the kernel programs: the kernel tells them by the cookie of their socket only, and the list of
//! sockets says which edges they are. Either may come first. Pure.

use std::collections::HashMap;

use sidescope_common::EdgeKey;

use crate::model::names::Host;

/// Sockets whose edge is remembered, at most.
const MAX_SOCKETS: usize = 32_768;
/// What is kept of sockets that are not listed yet, at most.
const MAX_WAITING: usize = 4_096;

/// What a request on a connection told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It named this host.
    Host(Host),
    /// It named none, or an address.
    Unnamed,
    /// It may have named one, which cannot be known.
    Unknown,
}

/// What is known of older connections.
#[derive(Debug, Default)]
pub struct Older {
    edges: HashMap<u64, EdgeKey>,
    waiting: HashMap<u64, Vec<Told>>,
    waiting_count: usize,
}

impl Older {
    /// The edge of a socket, if the socket was listed.
    pub fn edge(&self, socket: u64) -> Option<EdgeKey> {
        self.edges.get(&socket).copied()
    }

    /// Keeps what a request told until its socket is listed. False: there is no room.
    #[must_use]
    pub fn keep(&mut self, socket: u64, told: Told) -> bool {
        let known = self.waiting.entry(socket).or_default();
        if known.contains(&told) {
            return true;
        }
        if self.waiting_count >= MAX_WAITING {
            return false;
        }
        self.waiting_count += 1;
        known.push(told);
        true
    }

    /// A socket was listed: remembers its edge, and gives what was kept for it. Sockets beyond the bound are learnt again with the
    /// next list.
    pub fn listed(&mut self, socket: u64, edge: EdgeKey) -> Vec<Told> {
        if self.edges.len() >= MAX_SOCKETS && !self.edges.contains_key(&socket) {
            self.edges.clear();
        }
        self.edges.insert(socket, edge);
        let told = self.waiting.remove(&socket).unwrap_or_default();
        self.waiting_count -= told.len();
        told
    }

    /// Number of things that were told of sockets that were never listed: accepted ones, or those of processes outside of pods.
    pub fn waiting(&self) -> usize {
        self.waiting_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edge(port: u16) -> EdgeKey {
        EdgeKey { netns: 1, addr: [0; 16], uid: 0, port, reserved: 0 }
    }

    fn host(name: &str) -> Told {
        Told::Host(Host::new(name).unwrap())
    }

    #[test]
    fn what_was_told_before_the_socket_was_listed_is_kept_once() {
        let mut older = Older::default();
        for told in [host("a"), host("a"), Told::Unknown, host("b")] {
            assert!(older.keep(7, told));
        }
        assert_eq!(older.edge(7), None);
        assert_eq!(older.listed(7, edge(80)), [host("a"), Told::Unknown, host("b")]);
        assert_eq!(older.edge(7), Some(edge(80)));
        assert_eq!((older.listed(7, edge(80)), older.waiting()), (Vec::new(), 0));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut older = Older::default();
        let kept = (0..MAX_WAITING as u64 * 2).filter(|socket| older.keep(*socket, Told::Unnamed)).count();
        assert_eq!(kept, MAX_WAITING);
        for socket in 0..MAX_SOCKETS as u64 * 2 {
            older.listed(socket, edge(80));
        }
        assert!(older.edges.len() <= MAX_SOCKETS);
        assert_eq!(older.waiting(), 0);
    }
}
