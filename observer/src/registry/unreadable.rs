//! Objects that are there and make no sense.

use std::collections::BTreeMap;
use std::fmt;

use super::Kind;

/// Most that are remembered by name.
const MOST: usize = 1_000;
/// Longest name, and longest problem, in bytes; the API server allows no longer name.
const MAX_TEXT: usize = 253;

/// An object that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("the {kind} {namespace}/{name} cannot be read and is passed over: {problem}", kind = kind.name())]
pub struct Unreadable {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, as far as it can be printed; empty where it has none.
    pub namespace: String,
    /// Its name, as far as it can be printed.
    pub name: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Unreadable {
    /// Control characters are left out, and what is too long is cut: nobody has checked these texts.
    pub fn new(kind: Kind, namespace: &str, name: &str, problem: impl fmt::Display) -> Self {
        let printable = |text: &str| -> String {
            let mut text: String = text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
            text.truncate(text.floor_char_boundary(MAX_TEXT));
            text
        };
        Self {
            kind,
            namespace: printable(namespace),
            name: printable(name),
            problem: printable(&problem.to_string()),
        }
    }
}

/// Those of one kind by namespace and name, each with the listing that named it.
type Named = BTreeMap<(String, String), (Unreadable, u32)>;

/// Those that are there now.
#[derive(Debug, Default)]
pub(super) struct Unreadables {
    named: BTreeMap<Kind, Named>,
    /// A listing had more than are remembered.
    more: bool,
}

impl Unreadables {
    /// False: it was known to make no sense.
    pub(super) fn add(&mut self, unreadable: &Unreadable, listing: u32) -> bool {
        let is_full = self.len() >= MOST;
        let of_kind = self.named.entry(unreadable.kind).or_default();
        let key = (unreadable.namespace.clone(), unreadable.name.clone());
        if let Some((known, of)) = of_kind.get_mut(&key) {
            *of = listing;
            let is_same = known == unreadable;
            known.clone_from(unreadable);
            return !is_same;
        }
        self.more |= is_full;
        if !is_full {
            of_kind.insert(key, (unreadable.clone(), listing));
        }
        !is_full
    }

    /// It is gone, or makes sense now.
    pub(super) fn remove(&mut self, kind: Kind, namespace: &str, name: &str) {
        if let Some(of_kind) = self.named.get_mut(&kind).filter(|of_kind| !of_kind.is_empty()) {
            of_kind.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }

    pub(super) fn end_list(&mut self, kind: Kind, listing: u32) {
        if let Some(of_kind) = self.named.get_mut(&kind) {
            of_kind.retain(|_, (_, of)| *of == listing);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Unreadable> {
        self.named.values().flat_map(|of_kind| of_kind.values().map(|(unreadable, _)| unreadable))
    }

    /// There are, or were, more than are remembered.
    pub(super) fn has_more(&self) -> bool {
        self.more
    }

    fn len(&self) -> usize {
        self.named.values().map(BTreeMap::len).sum()
    }
}
