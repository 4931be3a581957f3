//! What a watch tells, and how it gets into the registry.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use super::{Kind, Registry, Watched};
use crate::model::time::Span;

/// Most unreadable objects of which it is remembered that they were named in the log.
const MAX_NAMED: usize = 1_000;
/// Longest name, and longest problem, of an unreadable object in bytes; the API server allows no longer name.
const MAX_TEXT: usize = 253;

/// Something that the watch of a kind tells. What the watches of several kinds tell comes in the order in which it was seen, as long as
/// it comes through one queue; before lookups, all that waits there must have been taken over.
#[derive(Clone, Debug)]
pub struct Told {
    /// Of which kind.
    pub kind: Kind,
    /// What.
    pub what: What,
    /// When it happened, as [`Registry::apply`] takes it.
    pub seen: Span,
}

/// What a watch tells.
#[derive(Clone, Debug)]
pub enum What {
    /// It begins to list what there is. May come anew before the end of a listing: then that one counts for nothing.
    Begin,
    /// This is there: it is listed, it is new, or it has changed.
    There(Box<Watched>),
    /// This is gone. Of the object only the metadata tells something.
    Gone(Box<Watched>),
    /// This is there and cannot be read. What was known of it stays until the next listing.
    Unreadable(Unreadable),
    /// All that is there was told, and from now on what changes is.
    End,
    /// Until it is resumed, or has listed anew, nothing is told of what changes.
    Interrupted,
    /// What has changed since the interruption was told, and from now on what changes is.
    Resumed,
}

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

/// Takes over into the registry what a watch tells.
///
/// # Errors
/// When it tells of an object that makes no sense. The registry is as it was, and the watch goes on.
pub fn take(registry: &mut Registry, told: Told) -> Result<(), Unreadable> {
    let Told { kind, what, seen } = told;
    match what {
        What::Begin => registry.begin_list(kind),
        What::There(object) => {
            let meta = object.metadata();
            let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
            registry.apply(*object, seen).map_err(|err| {
                let namespace = namespace.as_ref().map_or("", |namespace| namespace.as_str());
                Unreadable::new(kind, namespace, name.as_str(), err)
            })?;
        }
        What::Gone(object) => registry.remove(&object, seen),
        What::Unreadable(unreadable) => return Err(unreadable),
        What::End => registry.end_list(kind, seen),
        What::Interrupted => registry.interrupted(kind),
        What::Resumed => registry.resumed(kind),
    }
    Ok(())
}

/// The objects that made no sense, so that each is counted, and named once.
#[derive(Clone, Debug, Default)]
pub struct Unreadables {
    counts: BTreeMap<Kind, u64>,
    named: HashSet<(Kind, String, String)>,
}

impl Unreadables {
    /// Counts one. True: it is to be named in the log.
    pub fn note(&mut self, unreadable: &Unreadable) -> bool {
        *self.counts.entry(unreadable.kind).or_default() += 1;
        let Unreadable { kind, namespace, name, .. } = unreadable;
        self.named.len() < MAX_NAMED && self.named.insert((*kind, namespace.clone(), name.clone()))
    }

    /// How often a watch told of one, by kind. Each listing tells of all that there are.
    pub fn counts(&self) -> impl Iterator<Item = (Kind, u64)> {
        self.counts.iter().map(|(kind, count)| (*kind, *count))
    }
}
