//! Values of which many are the same, each kept once: twenty thousand pods have a few thousand different sets of labels. Pure.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;

/// The values that are in use.
#[derive(Clone, Debug)]
pub struct Interned<T>(HashSet<Arc<T>>);

impl<T> Default for Interned<T> {
    fn default() -> Self {
        Self(HashSet::new())
    }
}

impl<T: Eq + Hash> Interned<T> {
    /// The one that is equal to `value`.
    pub fn get(&mut self, value: T) -> Arc<T> {
        if let Some(known) = self.0.get(&value) {
            return known.clone();
        }
        let new = Arc::new(value);
        self.0.insert(new.clone());
        new
    }

    /// Drops what nobody uses any more.
    pub fn sweep(&mut self) {
        self.0.retain(|value| Arc::strong_count(value) > 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_are_one_as_long_as_somebody_has_it() {
        let mut interned = Interned::default();
        let first = interned.get("a".to_owned());
        assert!(Arc::ptr_eq(&first, &interned.get("a".to_owned())));
        interned.sweep();
        assert_eq!(interned.0.len(), 1);
        drop(first);
        interned.sweep();
        assert!(interned.0.is_empty());
    }
}
