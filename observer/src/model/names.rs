//! Names that were checked at the boundary, so that nobody has to check them again.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Domain of the cluster, as istiod assumes it unless told otherwise.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// Why a text is not a name of the kind that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// Longer than the kind allows.
    #[error("is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// Bytes found.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A character that the kind does not allow.
    #[error("contains {0:?}, which is not allowed here")]
    BadCharacter(char),
    /// A label of a DNS name that is empty, too long, or starts or ends with `-`.
    #[error("has the malformed DNS label {0:?}")]
    BadLabel(String),
}

/// A Kubernetes namespace: a DNS-1123 label of at most 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(String);

impl Namespace {
    /// Checks `name` against DNS-1123.
    ///
    /// # Errors
    /// When it is empty, longer than 63 bytes, or holds anything but lower-case letters, digits and inner `-`.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        check_label(&name)?;
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A DNS name as Istio's registry holds it: lower case, at most 253 bytes, no port, no trailing dot. The first label may be
/// `*` (a wildcard ServiceEntry).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

impl Host {
    /// Longest DNS name in bytes (RFC 1035, without the root label).
    pub const MAX_LEN: usize = 253;

    /// Checks and lower-cases `name`.
    ///
    /// # Errors
    /// When it is empty, too long, or not a DNS name. An IP address in digits is a legal DNS name here: callers that need to
    /// tell them apart parse it as an address first.
    pub fn new(name: &str) -> Result<Self, NameError> {
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Self::MAX_LEN {
            return Err(NameError::TooLong { len: name.len(), max: Self::MAX_LEN });
        }
        let lower = name.to_ascii_lowercase();
        let rest = lower.strip_prefix("*.").unwrap_or(&lower);
        for label in rest.split('.') {
            if let Some(bad) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-' | '_')) {
                return Err(NameError::BadCharacter(bad));
            }
            if label.is_empty() || label.len() > 63 || label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::BadLabel(label.to_owned()));
            }
        }
        Ok(Self(lower))
    }

    /// The name of a Kubernetes Service in the mesh: `name.namespace.svc.cluster.local`.
    ///
    /// # Errors
    /// When `service` is not a DNS label.
    pub fn of_service(service: &str, namespace: &Namespace) -> Result<Self, NameError> {
        check_label(service)?;
        Self::new(&format!("{service}.{}.svc.{CLUSTER_DOMAIN}", namespace.as_str()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands behind `*.` if this is a wildcard.
    pub fn wildcard_suffix(&self) -> Option<&str> {
        self.0.strip_prefix("*.")
    }
}

/// Name of a Kubernetes object: a DNS-1123 subdomain of at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks `name` against DNS-1123.
    ///
    /// # Errors
    /// When it is empty, longer than 253 bytes, or not made of DNS-1123 labels with dots between them.
    pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
        let name = name.into();
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > Host::MAX_LEN {
            return Err(NameError::TooLong { len: name.len(), max: Host::MAX_LEN });
        }
        for label in name.split('.') {
            if let Some(bad) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
                return Err(NameError::BadCharacter(bad));
            }
            if label.is_empty() || label.starts_with('-') || label.ends_with('-') {
                return Err(NameError::BadLabel(label.to_owned()));
            }
        }
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The uid of a pod. Those of the API server are UUIDs; a static pod's is a hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PodUid(String);

impl PodUid {
    /// Longest uid in bytes: that of a UUID, and some.
    pub const MAX_LEN: usize = 64;

    /// Checks `uid`.
    ///
    /// # Errors
    /// When it is empty, longer than [`Self::MAX_LEN`], or holds anything but letters, digits and `-`.
    pub fn new(uid: impl Into<String>) -> Result<Self, NameError> {
        let uid = uid.into();
        if uid.is_empty() {
            return Err(NameError::Empty);
        }
        if uid.len() > Self::MAX_LEN {
            return Err(NameError::TooLong { len: uid.len(), max: Self::MAX_LEN });
        }
        match uid.chars().find(|c| !c.is_ascii_alphanumeric() && *c != '-') {
            Some(bad) => Err(NameError::BadCharacter(bad)),
            None => Ok(Self(uid)),
        }
    }

    /// The uid.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_label(label: &str) -> Result<(), NameError> {
    if label.is_empty() {
        return Err(NameError::Empty);
    }
    if label.len() > 63 {
        return Err(NameError::TooLong { len: label.len(), max: 63 });
    }
    if let Some(bad) = label.chars().find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '-')) {
        return Err(NameError::BadCharacter(bad));
    }
    if label.starts_with('-') || label.ends_with('-') {
        return Err(NameError::BadLabel(label.to_owned()));
    }
    Ok(())
}

/// Kind of the object that owns a workload's pods, such as `Deployment`, `StatefulSet` or `Rollout`; `Pod` for a bare pod.
pub type Kind = String;

/// A workload: the topmost controller of its pods, or a bare pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadRef {
    /// Its namespace.
    pub namespace: Namespace,
    /// Kind of the controller.
    #[schemars(length(min = 1, max = 63))]
    pub kind: Kind,
    /// Name of the controller.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

macro_rules! text_newtype {
    ($type:ident, $new:expr, $max:expr, $pattern:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", "minLength": 1, "maxLength": $max, "pattern": $pattern})
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                $new(&text)
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                $new(text)
            }
        }
    };
}
text_newtype!(Namespace, |text: &str| Namespace::new(text), 63, "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$");
text_newtype!(
    Host,
    Host::new,
    253,
    r"^(\*\.)?[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?(\.[a-z0-9_]([-a-z0-9_]*[a-z0-9_])?)*$"
);
text_newtype!(
    ObjectName,
    |text: &str| ObjectName::new(text),
    253,
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
);
text_newtype!(PodUid, |text: &str| PodUid::new(text), 64, "^[-a-zA-Z0-9]+$");

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str) -> Host {
        Host::new(name).unwrap()
    }

    #[test]
    fn hosts_are_lower_case_without_the_root_dot() {
        assert_eq!(host("Reviews.Default.svc.cluster.local.").as_str(), "reviews.default.svc.cluster.local");
    }

    #[test]
    fn names_that_dns_does_not_allow_are_refused() {
        for bad in ["", ".", "a..b", "-a.b", "a-.b", "a b", "a\n", "a/b", "ä.b", "a.*.b", "**.b", "*"] {
            assert!(Host::new(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(
            Host::new(&"a".repeat(254)),
            Err(NameError::TooLong { len: 254, max: 253 }),
            "length is checked before the labels"
        );
        for bad in ["", "A", "a..b", ".a", "a.-b", "a_b", "a\u{1b}", &"a".repeat(254)] {
            assert!(ObjectName::new(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["a", "web-1.v2", "0", &"a".repeat(100)] {
            assert!(ObjectName::new(good).is_ok(), "{good:?} was refused");
        }
        for bad in ["", "Default", "a.b", "-a", "a-", &"a".repeat(64)] {
            assert!(Namespace::new(bad).is_err(), "{bad:?} was taken");
        }
        for bad in ["", "a/b", "a_b", "a\n", &"a".repeat(65)] {
            assert!(PodUid::new(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["6f1c2b5e-0b7a-4a53-9d6e-2f0c8a4b1e77", "d8c8d4a5f0c14e6db8f1a0c2f4f5e6a7"] {
            assert!(PodUid::new(good).is_ok(), "{good:?} was refused");
        }
    }
}
