//! The custom resources: `WorkloadDependencies`, as which the record of a workload lies in the Kubernetes API, and `ScopePolicy`, by
//! which users say what they want. Their definitions in `deploy/crds` are generated from these types.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::api::DynamicObject;
use kube::{CustomResource, CustomResourceExt, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::dependencies::Record;
use crate::model::names::{NameError, Namespace, ObjectName, WorkloadRef};
use crate::model::policy::PolicySpec;

/// Longest name of an object.
const MAX_NAME: usize = 253;
/// Kinds of which objects are named after kind and name as they are. No other kind may be the same in lower case.
const PLAIN_KINDS: [&str; 9] = [
    "CronJob",
    "DaemonSet",
    "Deployment",
    "Job",
    "Pod",
    "ReplicaSet",
    "ReplicationController",
    "Rollout",
    "StatefulSet",
];

/// Which workload of the namespace the object tells of.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sidescope.io",
    version = "v1alpha1",
    kind = "WorkloadDependencies",
    plural = "workloaddependencies",
    singular = "workloaddependencies",
    shortname = "wd",
    doc = "What a workload was seen to call, and through which time it was watched.",
    namespaced,
    derive = "PartialEq",
    status = "Record",
    printcolumn = r#"{"name": "Hosts", "type": "integer", "jsonPath": ".status.hosts"}"#,
    printcolumn = r#"{"name": "Covered", "type": "string", "jsonPath": ".status.coverage.covered"}"#,
    printcolumn = r#"{"name": "Last seen", "type": "date", "jsonPath": ".status.lastSeen"}"#,
    printcolumn = r#"{"name": "Verdict", "type": "string", "jsonPath": ".status.verdict"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// Kind of the controller of its pods, or `Pod`.
    #[schemars(length(min = 1, max = 63))]
    pub kind: String,
    /// Name of the controller.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What is wanted for workloads of the namespace; in Istio's root namespace, and without a selector, for all of the mesh.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "sidescope.io",
    version = "v1alpha1",
    kind = "ScopePolicy",
    plural = "scopepolicies",
    doc = "How far Sidescope may go with the Sidecars of workloads, and what it has to keep in their scope.",
    namespaced,
    status = "PolicyStatus",
    printcolumn = r#"{"name": "Mode", "type": "string", "jsonPath": ".spec.mode"}"#,
    printcolumn = r#"{"name": "Problem", "type": "string", "jsonPath": ".status.problem"}"#
)]
pub struct ScopePolicySpec {
    /// What is wanted.
    #[serde(flatten)]
    pub spec: PolicySpec,
}

/// What Sidescope makes of a `ScopePolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Why it has no effect, but that nothing is narrowed or taken out where it would have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub problem: Option<String>,
}

/// Why an object tells of no workload.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It has no namespace, or no resource version.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// Its namespace is none.
    #[error("its namespace {0}")]
    Namespace(#[source] NameError),
    /// It does not say which workload it tells of.
    #[error("its spec does not name a workload: {0}")]
    Spec(#[source] serde_json::Error),
    /// It is another one's.
    #[error("the object of {workload} is named {expected}")]
    Name {
        /// The workload that it names.
        workload: WorkloadRef,
        /// How the object of that is named.
        expected: String,
    },
}

/// An object as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The workload.
    pub workload: WorkloadRef,
    /// Its record.
    pub record: Record,
    /// The version of the object.
    pub resource_version: String,
    /// How many parts of the record could not be read, and are not in it. Another version of Sidescope wrote them, or somebody else.
    pub unreadable: usize,
}

/// The definition of the records' resource.
pub fn definition() -> CustomResourceDefinition {
    as_api_server_takes_it(WorkloadDependencies::crd())
}

/// The definition of the policies' resource.
pub fn policy_definition() -> CustomResourceDefinition {
    as_api_server_takes_it(ScopePolicy::crd())
}

fn as_api_server_takes_it(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            simplify(schema);
        }
    }
    definition
}

/// Rust's numbers have names that the API server warns of, it has a word of its own for sets, and what is not listed it drops anyway.
fn simplify(schema: &mut JSONSchemaProps) {
    if schema.format.as_ref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    if schema.unique_items.take() == Some(true) {
        schema.x_kubernetes_list_type = Some("set".to_owned());
    }
    if matches!(schema.additional_properties, Some(JSONSchemaPropsOrBool::Bool(false))) {
        schema.additional_properties = None;
    }
    let properties = schema.properties.iter_mut().flat_map(|properties| properties.values_mut());
    properties.for_each(simplify);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        simplify(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        simplify(values);
    }
}

/// Name of the object of a workload: `deployment.web`; where that would be too long or ambiguous, a hash and as much of the name as
/// there is room for.
pub fn object_name(workload: &WorkloadRef) -> String {
    let plain = format!("{}.{}", workload.kind.to_ascii_lowercase(), workload.name);
    let is_plain = PLAIN_KINDS.contains(&workload.kind.as_str());
    if is_plain && plain.len() <= MAX_NAME && ObjectName::new(plain.as_str()).is_ok() {
        return plain;
    }
    // A kind holds no zero byte, so no two pairs give the same input.
    let input = format!("{}\0{}", workload.kind, workload.name);
    let digest = ring::digest::digest(&ring::digest::SHA256, input.as_bytes());
    let hash: String = digest.as_ref()[..20].iter().map(|byte| format!("{byte:02x}")).collect();
    // No plain kind begins like this.
    let mut name = format!("x-{hash}");
    let room = MAX_NAME - name.len() - 1;
    let readable: String = plain.chars().take(room).collect();
    let readable = readable.trim_end_matches(['-', '.']);
    if ObjectName::new(readable).is_ok() {
        name = format!("{name}.{readable}");
    }
    name
}

/// The object of a workload.
pub fn object(
    workload: &WorkloadRef,
    record: Record,
    resource_version: Option<String>,
) -> WorkloadDependencies {
    let spec = Workload { kind: workload.kind.clone(), name: workload.name.clone() };
    let mut object = WorkloadDependencies::new(&object_name(workload), spec);
    object.metadata.namespace = Some(workload.namespace.as_str().to_owned());
    object.metadata.resource_version = resource_version;
    object.labels_mut().insert("app.kubernetes.io/managed-by".to_owned(), "sidescope".to_owned());
    object.status = Some(record);
    object
}

/// Reads an object, whoever wrote it.
///
/// # Errors
/// Where it tells of no workload, or is not the object of the one that it names.
pub fn read(mut object: DynamicObject) -> Result<Stored, ReadError> {
    let namespace = object.metadata.namespace.take().ok_or(ReadError::Missing("namespace"))?;
    let resource_version =
        object.metadata.resource_version.take().ok_or(ReadError::Missing("resource version"))?;
    let spec = object.data.get_mut("spec").map(Value::take).unwrap_or_default();
    let Workload { kind, name } = serde_json::from_value(spec).map_err(ReadError::Spec)?;
    let namespace = Namespace::new(namespace).map_err(ReadError::Namespace)?;
    let workload = WorkloadRef { namespace, kind, name };
    let expected = object_name(&workload);
    if object.metadata.name.as_ref() != Some(&expected) {
        return Err(ReadError::Name { workload, expected });
    }
    let status = object.data.get_mut("status").map(Value::take).unwrap_or_default();
    let (record, unreadable) = read_record(status);
    Ok(Stored { workload, record, resource_version, unreadable })
}

/// What can be read of a record, and how much cannot: one bad element is no reason to forget all others.
fn read_record(status: Value) -> (Record, usize) {
    if status.is_null() {
        return (Record::default(), 0);
    }
    if let Ok(record) = Record::deserialize(&status) {
        return (record, 0);
    }
    let Value::Object(fields) = status else { return (Record::default(), 1) };
    let is_good = |field: &str, value: &Value| {
        let alone = Value::Object([(field.to_owned(), value.clone())].into_iter().collect());
        Record::deserialize(alone).is_ok()
    };
    let mut unreadable = 0;
    let mut good = serde_json::Map::new();
    for (field, value) in fields {
        match value {
            Value::Array(elements) => {
                let before = elements.len();
                let alone = |element: &Value| is_good(&field, &Value::Array(vec![element.clone()]));
                let elements: Vec<Value> = elements.into_iter().filter(alone).collect();
                unreadable += before - elements.len();
                good.insert(field, Value::Array(elements));
            }
            value if is_good(&field, &value) => drop(good.insert(field, value)),
            _ => unreadable += 1,
        }
    }
    match Record::deserialize(Value::Object(good)) {
        Ok(record) => (record, unreadable),
        Err(_) => (Record::default(), unreadable + 1),
    }
}

#[cfg(test)]
mod tests {
    use std::{env, fs};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/crds");

    fn workload(kind: &str, name: &str) -> WorkloadRef {
        let namespace = Namespace::new("default").unwrap();
        WorkloadRef { namespace, kind: kind.to_owned(), name: name.to_owned() }
    }

    fn as_dynamic(object: &WorkloadDependencies) -> DynamicObject {
        serde_json::from_value(serde_json::to_value(object).unwrap()).unwrap()
    }

    fn definitions() -> [(&'static str, &'static str, CustomResourceDefinition); 2] {
        [
            ("workloaddependencies.yaml", "observer/src/model/dependencies.rs", definition()),
            ("scopepolicies.yaml", "observer/src/model/policy.rs", policy_definition()),
        ]
    }

    /// `SIDESCOPE_UPDATE=1` writes them.
    #[test]
    fn the_definitions_in_deploy_are_what_the_types_say() {
        for (name, source, definition) in definitions() {
            let head = format!("# Generated from observer/src/crd.rs and {source}; do not edit.\n");
            let expected = head + &serde_saphyr::to_string(&definition).unwrap();
            let file = format!("{FOLDER}/{name}");
            if env::var_os("SIDESCOPE_UPDATE").is_some() {
                fs::write(&file, &expected).unwrap();
            }
            let found = fs::read_to_string(&file).unwrap_or_default();
            assert!(
                found == expected,
                "deploy/crds/{name} is not what the types say: \
                 run SIDESCOPE_UPDATE=1 cargo test -p sidescope --lib crd"
            );
            let read: CustomResourceDefinition = serde_saphyr::from_str(&found).unwrap();
            assert_eq!(read, definition);
        }
    }

    #[test]
    fn every_list_and_every_text_of_the_schema_is_bounded() {
        fn check(schema: &JSONSchemaProps, path: &str) {
            let is_bounded = match schema.type_.as_deref() {
                Some("array") => schema.max_items.is_some(),
                Some("string") => {
                    schema.max_length.is_some() || schema.format.is_some() || schema.enum_.is_some()
                }
                Some("integer") => {
                    schema.minimum.is_some() && schema.maximum.is_some() && schema.format.is_none()
                }
                _ => true,
            };
            assert!(is_bounded, "{path}: {schema:?}");
            for (name, property) in schema.properties.iter().flatten() {
                check(property, &format!("{path}.{name}"));
            }
            if let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items {
                check(items, &format!("{path}[]"));
            }
        }
        for (name, _, definition) in definitions() {
            let schema = definition.spec.versions[0].schema.as_ref().unwrap();
            let schema = schema.open_api_v3_schema.as_ref().unwrap();
            for part in ["spec", "status"] {
                check(&schema.properties.as_ref().unwrap()[part], &format!("{name}: {part}"));
            }
        }
    }

    #[test]
    fn objects_are_named_after_their_workload() {
        assert_eq!(object_name(&workload("Deployment", "web")), "deployment.web");
        assert_eq!(object_name(&workload("StatefulSet", "db.v2")), "statefulset.db.v2");
        let own = object_name(&workload("Tenant", "web"));
        assert!(own.starts_with("x-") && own.ends_with(".tenant.web"), "{own}");
        let long = object_name(&workload("Deployment", &format!("{}-b{}", "a".repeat(199), "c".repeat(40))));
        assert!(long.len() <= 253 && long.ends_with("ccc"), "{long}");
        let cut = object_name(&workload("Deployment", &format!("{}-b{}", "a".repeat(198), "c".repeat(53))));
        assert!(cut.len() <= 253 && cut.ends_with('a'), "{cut}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let record = Record { verdict: "ready".to_owned(), hosts: 3, ..Record::default() };
        let written = object(&workload("Deployment", "web"), record.clone(), Some("7".to_owned()));
        let stored = read(as_dynamic(&written)).unwrap();
        assert_eq!(stored.workload, workload("Deployment", "web"));
        assert_eq!((stored.record, stored.resource_version.as_str(), stored.unreadable), (record, "7", 0));
    }

    #[test]
    fn one_bad_part_is_no_reason_to_forget_the_others() {
        let port = json!({
            "port": 80, "protocol": "http", "seen": ["host"],
            "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-02T00:00:00Z",
        });
        let dependency = |host: &str| json!({"host": host, "namespace": "default", "ports": [port]});
        let mut written =
            as_dynamic(&object(&workload("Deployment", "web"), Record::default(), Some("7".to_owned())));
        written.data["status"] = json!({
            "dependencies": [dependency("a.test"), dependency("not a host"), dependency("b.test")],
            "unresolved": [{"address": "10.0.0.1", "reason": "madeUp"}],
            "coverage": "much",
            "hosts": 2,
            "aFieldOfTheFuture": [1, 2],
        });
        let stored = read(written).unwrap();
        let hosts: Vec<&str> = stored.record.dependencies.iter().map(|d| d.host.as_str()).collect();
        assert_eq!((hosts, stored.record.hosts, stored.unreadable), (vec!["a.test", "b.test"], 2, 3));
    }

    #[test]
    fn an_object_that_is_no_workload_s_is_refused() {
        let good =
            as_dynamic(&object(&workload("Deployment", "web"), Record::default(), Some("7".to_owned())));
        type Change = fn(&mut DynamicObject);
        let changes: [(&str, Change); 4] = [
            ("namespace", |object| object.metadata.namespace = None),
            ("spec", |object| object.data["spec"] = json!({"kind": 3})),
            ("deployment.web", |object| object.metadata.name = Some("web".to_owned())),
            ("resource version", |object| object.metadata.resource_version = None),
        ];
        for (what, change) in changes {
            let mut object = good.clone();
            change(&mut object);
            let err = read(object).unwrap_err().to_string();
            assert!(err.contains(what), "{what}: {err}");
        }
    }

    fn kinds() -> impl Strategy<Value = String> {
        prop_oneof![
            prop::sample::select(&PLAIN_KINDS[..]).prop_map(str::to_owned),
            prop::sample::select(&["DEPLOYMENT", "deployment", "x", "X-a", "Deploymenta"][..])
                .prop_map(str::to_owned),
            "[A-Za-z.-]{1,63}",
        ]
    }

    proptest! {
        #[test]
        fn names_of_objects_are_legal_and_apart(
            one in (kinds(), prop_oneof!["[a-z0-9.-]{1,253}", "[a-z]{1,3}", "[a-c.]{240,253}", "\\PC{0,20}"]),
            other in (kinds(), prop_oneof!["[a-z0-9.-]{1,253}", "[a-z]{1,3}", "[a-c.]{240,253}"]),
        ) {
            let names = [&one, &other].map(|(kind, name)| object_name(&workload(kind, name)));
            for name in &names {
                prop_assert!(ObjectName::new(name.as_str()).is_ok(), "{}", name);
            }
            prop_assert_eq!(one == other, names[0] == names[1]);
            // Cut at the same place, they would be the same.
            let longer = object_name(&workload(&one.0, &format!("{}a", one.1)));
            prop_assert_ne!(&names[0], &longer);
        }
    }
}
