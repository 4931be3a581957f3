//! Labels: checked as the API server checks them, and cleaned of what controllers and the injector add to a pod.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::model::mesh::Labels;
use crate::model::names::ObjectName;

/// Why a label is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// A key that is no `name` or `domain/name`.
    #[error("has the malformed label key {0:?}")]
    Key(String),
    /// A value with characters that are not allowed, or more than 63.
    #[error("is the malformed label value {0:?}")]
    Value(String),
}

/// Labels that were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct CheckedLabels(BTreeMap<LabelKey, LabelValue>);

impl CheckedLabels {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k.0 == key).map(|(_, v)| v.0.as_str())
    }

    pub fn to_labels(&self) -> Labels {
        self.0.iter().map(|(k, v)| (k.0.clone(), v.0.clone())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
struct LabelKey(String);

impl TryFrom<String> for LabelKey {
    type Error = LabelError;

    fn try_from(key: String) -> Result<Self, LabelError> {
        let (prefix_ok, name) = match key.split_once('/') {
            Some((prefix, name)) => (ObjectName::new(prefix).is_ok(), name),
            None => (true, key.as_str()),
        };
        if prefix_ok && !name.is_empty() && is_qualified(name) {
            Ok(Self(key))
        } else {
            Err(LabelError::Key(key))
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Option<String>")]
struct LabelValue(String);

impl TryFrom<Option<String>> for LabelValue {
    type Error = LabelError;

    fn try_from(value: Option<String>) -> Result<Self, LabelError> {
        // kubectl takes `key:` for an empty value.
        let value = value.unwrap_or_default();
        if is_qualified(&value) { Ok(Self(value)) } else { Err(LabelError::Value(value)) }
    }
}

/// At most 63 letters, digits, `-`, `_`, `.`; the first and last a letter or digit. Empty is fine.
fn is_qualified(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}

/// Takes out what controllers add to the template of what they make: a ReplicaSet's hash, a Job's identity.
pub fn without_controller_labels(mut labels: Labels) -> Labels {
    labels.retain(|key, _| !is_added_by_controller(key));
    labels
}

/// Takes out what is not from the template, as far as a pod alone can tell.
pub fn without_added_labels(labels: &Labels) -> Labels {
    let mut labels = without_controller_labels(labels.clone());
    labels.retain(|key, _| !is_added_by_injector(key));
    labels
}

fn is_added_by_controller(key: &str) -> bool {
    matches!(
        key,
        "pod-template-hash"
            | "pod-template-generation"
            | "controller-revision-hash"
            | "rollouts-pod-template-hash"
            | "statefulset.kubernetes.io/pod-name"
            | "apps.kubernetes.io/pod-index"
            | "controller-uid"
            | "job-name"
    ) || key.starts_with("batch.kubernetes.io/")
}

fn is_added_by_injector(key: &str) -> bool {
    matches!(
        key,
        "security.istio.io/tlsMode"
            | "service.istio.io/canonical-name"
            | "service.istio.io/canonical-revision"
            | "istio.io/rev"
    ) || ["sidecar.istio.io/", "topology.istio.io/", "networking.istio.io/"]
        .iter()
        .any(|prefix| key.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_checked_as_the_api_server_does() {
        let long = "a".repeat(64);
        for (key, value, ok) in [
            ("app", "reviews", true),
            ("app.kubernetes.io/name", "Reviews_1.0", true),
            ("app", "", true),
            ("", "x", false),
            ("a/", "x", false),
            ("A/b", "x", false),
            ("a/b/c", "x", false),
            ("-a", "x", false),
            ("a", "x-", false),
            ("a", "\u{1b}[31m", false),
            ("a\n", "x", false),
            (&long, "x", false),
            ("a", &long, false),
        ] {
            let read: Result<CheckedLabels, _> = serde_json::from_value(serde_json::json!({ key: value }));
            assert_eq!(read.is_ok(), ok, "{key:?}: {value:?}");
        }
        let read: CheckedLabels = serde_json::from_value(serde_json::json!({ "a": null })).unwrap();
        assert_eq!(read.get("a"), Some(""));
    }

    #[test]
    fn only_what_the_template_has_is_left() {
        let pod: Labels = [
            "app",
            "version",
            "pod-template-hash",
            "controller-revision-hash",
            "statefulset.kubernetes.io/pod-name",
            "apps.kubernetes.io/pod-index",
            "batch.kubernetes.io/job-name",
            "controller-uid",
            "job-name",
            "security.istio.io/tlsMode",
            "service.istio.io/canonical-name",
            "service.istio.io/canonical-revision",
            "istio.io/rev",
            "sidecar.istio.io/inject",
        ]
        .into_iter()
        .map(|key| (key.to_owned(), "x".to_owned()))
        .collect();
        let left: Vec<_> = without_added_labels(&pod).into_keys().collect();
        assert_eq!(left, ["app", "version"]);
        assert!(
            without_controller_labels(pod).contains_key("service.istio.io/canonical-name"),
            "a template may set it"
        );
    }
}
