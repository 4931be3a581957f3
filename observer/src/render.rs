//! A Sidecar as text: YAML as a person would write it, or JSON.

use crate::model::sidecar::Sidecar;

/// Why there is no text.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    /// The YAML serializer failed.
    #[error("cannot write the Sidecar as YAML: {0}")]
    Yaml(#[from] serde_saphyr::SerializeError),
    /// The JSON serializer failed.
    #[error("cannot write the Sidecar as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// YAML.
///
/// # Errors
/// When the serializer fails; no Sidecar is known that makes it.
pub fn yaml(sidecar: &Sidecar) -> Result<String, RenderError> {
    Ok(serde_saphyr::to_string_with_options(
        sidecar,
        serde_saphyr::ser_options! {
            compact_list_indent: true,
        },
    )?)
}

/// Indented JSON with a line break at its end.
///
/// # Errors
/// When the serializer fails; no Sidecar is known that makes it.
pub fn json(sidecar: &Sidecar) -> Result<String, RenderError> {
    let mut text = serde_json::to_string_pretty(sidecar)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::mesh::Labels;
    use crate::model::names::{Host, Namespace};
    use crate::model::sidecar::{
        API_VERSION, Egress, EgressHost, Inherited, KIND, MANAGED_BY, Metadata, Spec, WorkloadSelector,
    };

    fn sidecar(labels: &[(&str, &str)], hosts: &[&str]) -> Sidecar {
        let owned = |labels: &[(&str, &str)]| -> Labels {
            let owned = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            owned.collect()
        };
        Sidecar {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: Metadata {
                name: "reviews".to_owned(),
                namespace: Namespace::new("default").unwrap(),
                labels: owned(&[MANAGED_BY]),
            },
            spec: Spec {
                workload_selector: WorkloadSelector { labels: owned(labels) },
                egress: vec![Egress {
                    hosts: hosts
                        .iter()
                        .map(|host| EgressHost::everywhere(Host::new(host).unwrap()))
                        .collect(),
                }],
                inherited: Inherited::default(),
            },
        }
    }

    #[test]
    fn yaml_reads_as_if_written_by_hand() {
        let text =
            yaml(&sidecar(&[("app", "reviews")], &["ratings.default.svc.cluster.local", "*.wild.test"]))
                .unwrap();
        assert_eq!(
            text,
            r#"apiVersion: networking.istio.io/v1
kind: Sidecar
metadata:
  name: reviews
  namespace: default
  labels:
    app.kubernetes.io/managed-by: sidescope
spec:
  workloadSelector:
    labels:
      app: reviews
  egress:
  - hosts:
    - "*/ratings.default.svc.cluster.local"
    - "*/*.wild.test"
"#
        );
    }

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        for value in [
            "true",
            "True",
            "on",
            "off",
            "yes",
            "no",
            "y",
            "n",
            "null",
            "~",
            "1.0",
            "1",
            "0x1",
            "0o7",
            "012",
            "1e3",
            "1_000",
            ".5",
            ".inf",
            "12:30",
            "2020-01-01",
            "",
            "a",
            "v1.2-rc_3",
            "NaN",
        ] {
            // A label's key may look like something else, too.
            let written = sidecar(
                &[("version", value), (if value.is_empty() { "x" } else { value }, "x")],
                &["*.a.b", "c.d"],
            );
            let text = yaml(&written).unwrap();
            assert_eq!(serde_saphyr::from_str::<Sidecar>(&text).unwrap(), written, "{text}");
            // Read without a schema, as kubectl does, it must still be text.
            let untyped: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert_eq!(untyped, serde_json::to_value(&written).unwrap(), "{text}");
            if !matches!(value, "a" | "v1.2-rc_3") {
                assert!(text.contains(&format!("version: \"{value}\"\n")), "YAML 1.1 readers: {text}");
            }
        }
    }

    #[test]
    fn json_is_indented_and_ends_its_last_line() {
        let written = sidecar(&[("app", "reviews")], &["a.b"]);
        let text = json(&written).unwrap();
        assert!(
            text.starts_with("{\n  \"apiVersion\": \"networking.istio.io/v1\",\n  \"kind\": \"Sidecar\",\n")
        );
        assert!(text.contains("\n        \"hosts\": [\n          \"*/a.b\"\n"));
        assert!(text.ends_with("}\n"));
        assert_eq!(serde_json::from_str::<Sidecar>(&text).unwrap(), written);
    }
}
