//! Objects of the API, as YAML.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{self, ApiResource, Scope};
use serde_json::{Value, json};

use super::{Cluster, Parts};
use crate::wait::wait_for;

/// Who the API server is told has written what the tests write.
const MANAGER: &str = "sidescope-tests";
const SOON: Duration = Duration::from_secs(30);

impl Cluster {
    /// Applies every document of this text, server-side, and returns what the API server made of them.
    pub fn apply(&self, yaml: &str) -> Result<Vec<DynamicObject>> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("cannot read the YAML")?;
        documents.into_iter().filter(|document| !document.is_null()).map(|one| self.apply_one(one)).collect()
    }

    /// Deletes every object that a document of this text names, at once; what is not there is no error.
    pub fn delete(&self, yaml: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("cannot read the YAML")?;
        for document in documents.into_iter().filter(|document| !document.is_null()) {
            let (api, name) = self.api_of(&document)?;
            match self.run(api.delete(&name, &DeleteParams::default().grace_period(0))) {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                deleted => drop(deleted.with_context(|| format!("cannot delete {name}"))?),
            }
        }
        Ok(())
    }

    /// A new namespace, in which pods can be made.
    pub fn make_namespace(&self, name: &str) -> Result<()> {
        self.apply_one(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))?;
        if self.parts == Parts::Api { Ok(()) } else { self.wait_for_service_account(name) }
    }

    /// Whether there is a namespace of this name.
    pub fn has_namespace(&self, name: &str) -> Result<bool> {
        let found = self.run(Api::<Namespace>::all(self.client()).get_opt(name));
        Ok(found.with_context(|| format!("cannot look for the namespace {name}"))?.is_some())
    }

    /// Without it no pod is let in.
    pub(super) fn wait_for_service_account(&self, namespace: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        wait_for(&format!("the service account of namespace {namespace}"), SOON, || {
            Ok(self.run(accounts.get_opt("default"))?.map(drop))
        })
    }

    /// Applies custom resource definitions and waits until the API server serves them.
    pub fn apply_definitions(&self, yaml: &str) -> Result<()> {
        let applied = self.apply(yaml)?;
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client());
        wait_for("the custom resources to be served", SOON, || {
            let all = self.run(definitions.list(&ListParams::default()))?.items;
            let served =
                all.iter().filter(|one| is_established(one)).filter_map(|one| one.metadata.name.as_ref());
            let served: Vec<&String> = served.collect();
            let is_served =
                |one: &DynamicObject| one.metadata.name.as_ref().is_some_and(|name| served.contains(&name));
            Ok(applied.iter().all(is_served).then_some(()))
        })
    }

    fn apply_one(&self, document: Value) -> Result<DynamicObject> {
        let (api, name) = self.api_of(&document)?;
        let params = PatchParams::apply(MANAGER).force();
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        let applied = self.run(api.patch(&name, &params, &Patch::Apply(document)));
        applied.with_context(|| format!("cannot apply {kind} {name}"))
    }

    /// Where an object is to be read and written, and its name.
    fn api_of(&self, document: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value, what: &str| -> Result<String> {
            Ok(value.as_str().with_context(|| format!("an object has no {what}"))?.to_owned())
        };
        let version = text(&document["apiVersion"], "apiVersion")?;
        let kind = text(&document["kind"], "kind")?;
        let name = text(&document["metadata"]["name"], "name")?;
        let (group, version) = version.split_once('/').unwrap_or(("", &version));
        let (resource, scope) = self.resource(&GroupVersionKind::gvk(group, version, &kind))?;
        let namespace = document["metadata"]["namespace"].as_str();
        ensure!(scope == Scope::Namespaced || namespace.is_none(), "{kind} {name} can be in no namespace");
        let api = match scope {
            Scope::Cluster => Api::all_with(self.client(), &resource),
            Scope::Namespaced => {
                Api::namespaced_with(self.client(), namespace.unwrap_or("default"), &resource)
            }
        };
        Ok((api, name))
    }

    /// Waits a little: a custom resource is made known later than its definition says that it is served.
    fn resource(&self, kind: &GroupVersionKind) -> Result<(ApiResource, Scope)> {
        let what = format!("the API server to know {} of `{}`", kind.kind, kind.api_version());
        wait_for(&what, Duration::from_secs(10), || {
            let found = self.run(discovery::pinned_kind(&self.client, kind));
            Ok(found.ok().map(|(resource, capabilities)| (resource, capabilities.scope)))
        })
    }
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
    let is_true = |conditions: &Vec<_>| {
        conditions.iter().any(
            |one: &k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinitionCondition| {
                one.type_ == "Established" && one.status == "True"
            },
        )
    };
    conditions.is_some_and(is_true)
}
