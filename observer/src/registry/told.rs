//! What a watch tells, and how it gets into the registry.

use super::{Kind, Registry, Unreadable, Watched};
use crate::model::time::Span;

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

/// Takes over into the registry what a watch tells.
///
/// # Errors
/// When it tells of an object that makes no sense, and did not say so before: it is to be named in the log. See
/// [`Registry::unreadable`] for all that there are. Nothing else is the worse for it.
pub fn take(registry: &mut Registry, told: Told) -> Result<(), Unreadable> {
    let Told { kind, what, seen } = told;
    match what {
        What::Begin => registry.begin_list(kind),
        What::There(object) => {
            let meta = object.metadata();
            let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
            let namespace = namespace.as_ref().map_or("", |namespace| namespace.as_str());
            match registry.apply(*object, seen) {
                Ok(()) => registry.readable(kind, namespace, name.as_str()),
                Err(err) => {
                    return registry.note(Unreadable::new(kind, namespace, name.as_str(), err));
                }
            }
        }
        What::Gone(object) => {
            registry.remove(&object, seen);
            let meta = object.metadata();
            let namespace = meta.namespace.as_ref().map_or("", |namespace| namespace.as_str());
            registry.readable(kind, namespace, meta.name.as_str());
        }
        What::Unreadable(unreadable) => return registry.note(unreadable),
        What::End => registry.end_list(kind, seen),
        What::Interrupted => registry.interrupted(kind),
        What::Resumed => registry.resumed(kind),
    }
    Ok(())
}

#[cfg(test)]
mod tests;
