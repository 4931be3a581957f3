//! Which connections have no search for hosts on their socket, so that the kernel has to be told of them. Pure.
//!
//! The programs know a socket by what its connect left on it. They look at the requests of one that has nothing only if they are told
//! its cookie and its edge. There are two kinds:
//! - connections that were open before the programs were: those that the first list of their namespace's sockets shows;
//! - connections on an edge that had more connects than get a search. Most of them are over soon; one that two lists in a row show
//!   stays, as those of a pool do.

use std::collections::{HashMap, HashSet};
use std::mem;

use sidescope_common::MAX_OLDER;

/// Most sockets of each kind that are remembered.
const MAX: usize = MAX_OLDER as usize;

/// What is to be done about a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Nothing: it has a search, the kernel knows of it, or it may be over soon.
    Fine,
    /// The kernel has to be told.
    Tell,
    /// There is no room to remember it until the next list.
    NoRoom,
}

/// The sockets of which the kernel was told, and those that may be next. Bounded by `MAX`, and by the namespaces of this machine.
#[derive(Debug, Default)]
pub struct Older {
    /// The kernel was told of them; by socket its namespace.
    told: HashMap<u64, u64>,
    /// The kernel had no room for them, which was counted.
    beyond: HashMap<u64, u64>,
    /// Sockets without a search, perhaps, that the last list was the first to show.
    young: HashSet<u64>,
    /// Namespaces whose sockets were listed by now.
    listed: HashSet<u64>,
    scan: Scan,
    /// A scan went through.
    complete: bool,
    /// The last scan could not look everywhere: a namespace that comes later may be an old one.
    gaps: bool,
}

/// What the scan under way has shown.
#[derive(Debug, Default)]
struct Scan {
    /// Of those that are told or beyond.
    sockets: HashSet<u64>,
    young: HashSet<u64>,
    /// Namespaces, and whether all their sockets are shown.
    namespaces: HashMap<u64, bool>,
    /// Namespaces with sockets.
    in_use: HashSet<u64>,
}

impl Older {
    /// Goes on where another process has ended: the kernel was told of these sockets, each with its namespace. `complete`: it had
    /// listed all that could be listed, so that all others were connected under the eyes of the programs.
    pub fn adopted(told: impl IntoIterator<Item = (u64, u64)>, complete: bool) -> Self {
        Self { told: told.into_iter().collect(), complete, ..Self::default() }
    }

    /// Whether a scan has listed all that it could, here or before.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// A scan lists this namespace; `whole`: all its sockets.
    pub fn namespace(&mut self, netns: u64, whole: bool) {
        *self.scan.namespaces.entry(netns).or_insert(true) &= whole;
    }

    /// A scan lists this socket. `unsearched`: some connection of its edge has no search.
    #[must_use]
    pub fn sight(&mut self, netns: u64, socket: u64, unsearched: bool) -> Sight {
        self.scan.in_use.insert(netns);
        if self.told.contains_key(&socket) {
            self.scan.sockets.insert(socket);
            return Sight::Fine;
        }
        let is_first_list = !self.listed.contains(&netns) && (!self.complete || self.gaps);
        if is_first_list || self.beyond.contains_key(&socket) {
            return Sight::Tell;
        }
        if !unsearched {
            return Sight::Fine;
        }
        if self.young.contains(&socket) {
            return Sight::Tell;
        }
        if self.scan.young.len() >= MAX {
            return Sight::NoRoom;
        }
        self.scan.young.insert(socket);
        Sight::Fine
    }

    /// The kernel was told of this socket.
    pub fn told(&mut self, netns: u64, socket: u64) {
        self.beyond.remove(&socket);
        self.told.insert(socket, netns);
        self.scan.sockets.insert(socket);
    }

    /// There is no room for this socket. True: that is news.
    pub fn refused(&mut self, netns: u64, socket: u64) -> bool {
        self.scan.sockets.insert(socket);
        let is_news = !self.beyond.contains_key(&socket);
        if is_news && self.beyond.len() < MAX {
            self.beyond.insert(socket, netns);
        }
        is_news
    }

    /// A scan of sockets ended; `gaps`: it could not look everywhere. Returns the sockets that are closed, or whose namespace is
    /// gone: the kernel need not know them any longer.
    #[must_use]
    pub fn end(&mut self, gaps: bool) -> Vec<u64> {
        let Scan { sockets, young, namespaces, in_use } = mem::take(&mut self.scan);
        // What was not shown of a namespace may only have been out of sight.
        let is_partial = |netns: &u64| namespaces.get(netns) == Some(&false);
        let is_closed = |socket: &u64, netns: &u64| !sockets.contains(socket) && !is_partial(netns);
        let closed = self.told.extract_if(|socket, netns| is_closed(socket, netns));
        let closed = closed.map(|(socket, _)| socket).collect();
        self.beyond.retain(|socket, netns| !is_closed(socket, netns));
        let before = mem::take(&mut self.listed);
        let is_listed = |netns: &u64| !is_partial(netns) || in_use.contains(netns) || before.contains(netns);
        self.listed = namespaces.keys().copied().filter(is_listed).collect();
        self.young = young;
        self.complete = true;
        self.gaps = gaps;
        closed
    }

    /// A scan ended before it was through: what it has not shown may be there.
    pub fn cut_short(&mut self) {
        self.scan = Scan::default();
    }
}

#[cfg(test)]
mod tests;
