//! Why an inventory cannot be read, so that one can mend it.

use std::fmt;

/// Why an inventory cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// Neither YAML nor JSON.
    #[error("{file}:{} not valid YAML or JSON: {message}; correct it, or write it anew with `kubectl get ... -A -o yaml`", LineOf(*.line))]
    Syntax {
        /// The file.
        file: String,
        /// Line, where the parser knows it.
        line: Option<u64>,
        /// What the parser says.
        message: String,
    },
    /// A document that is no Kubernetes object.
    #[error("{file}: {document}: {field} {problem}; every object needs apiVersion and kind")]
    NotAnObject {
        /// The file.
        file: String,
        /// Which document, and which item of a list.
        document: String,
        /// The field, or `the document`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A field that does not hold what it should.
    #[error("{file}: {object}: field {field}: {problem}; correct it, or take the object out")]
    Field {
        /// The file.
        file: String,
        /// Kind, namespace and name, or the place of an object without a name.
        object: String,
        /// Path of the field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Two objects of one kind, namespace and name that are not the same.
    #[error("{object} is in {first} and, with other content, in {second}; keep one of them")]
    Conflict {
        /// Kind, namespace and name.
        object: String,
        /// File that has it first.
        first: String,
        /// File that has another one.
        second: String,
    },
}

struct LineOf(Option<u64>);

impl fmt::Display for LineOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, " line {line}:"))
    }
}

/// Messages of parsers quote the text; none of its control characters may reach a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let escaped = c.is_control().then(|| c.escape_default());
            let plain = escaped.is_none().then_some(c);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}
