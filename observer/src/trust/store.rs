//! Keeps [`Material`] in one Secret and the bundle that agents trust in one ConfigMap. Every replica does so; who writes first wins, by
//! the Secret's resourceVersion, and the others take what was written.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;
use tracing::{info, warn};

use super::material::{Material, MaterialError};
use super::serving::{Serving, TlsError};
use crate::certificates::plan;
use crate::model::time::Time;

/// Key of the ConfigMap under which the bundle is.
pub const BUNDLE_KEY: &str = "ca.crt";
/// How often it is looked whether something is to be renewed.
const LOOK: Duration = Duration::from_secs(600);
/// When it is tried again after an error.
const AGAIN: Duration = Duration::from_secs(5);
/// Tries, where another replica wrote in between.
const TRIES: usize = 8;

/// Where certificates are kept, and for what they are.
pub struct Store {
    /// Way to the API server.
    pub client: Client,
    /// Where Secret and ConfigMap are.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// Name of the ConfigMap.
    pub config_map: String,
    /// DNS names under which agents reach the aggregator.
    pub names: Vec<String>,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The API server refused, or was not reached.
    #[error(
        "{kind} {namespace}/{name} cannot be read or written: {source} (see whether the aggregator's role allows it)"
    )]
    Api {
        /// Of the object.
        kind: String,
        /// Of the object.
        namespace: String,
        /// Of the object.
        name: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// What the Secret holds.
    #[error(
        "Secret {namespace}/{name}: {source}; delete the Secret if it holds nothing that you need, and the aggregator makes a new one"
    )]
    Material {
        /// Of the Secret.
        namespace: String,
        /// Of the Secret.
        name: String,
        /// What is wrong.
        source: MaterialError,
    },
    /// What it holds cannot be shown.
    #[error(
        "the certificate in Secret {namespace}/{name} cannot be used: {source}; delete the Secret, and a new one is made"
    )]
    Tls {
        /// Of the Secret.
        namespace: String,
        /// Of the Secret.
        name: String,
        /// What is wrong.
        source: TlsError,
    },
    /// Others always wrote first.
    #[error("{kind} {namespace}/{name} was changed by others each time it was to be written")]
    Raced {
        /// Of the object.
        kind: String,
        /// Of the object.
        namespace: String,
        /// Of the object.
        name: String,
    },
}

impl Store {
    /// Sees to it that there are certificates that are good at `now`, and that agents can read whom to trust.
    ///
    /// # Errors
    /// When the API server cannot be reached, or holds something else under these names.
    pub async fn maintain(&self, now: Time) -> Result<Material, StoreError> {
        let mut names = self.names.clone();
        names.sort();
        names.dedup();
        let of_material = |source| StoreError::Material {
            namespace: self.namespace.clone(),
            name: self.secret.clone(),
            source,
        };
        let mut renewed = false;
        let secret = self
            .update(&self.secret, |secret: &mut Secret| {
                let mut material = Material::from_data(secret.data.as_ref().unwrap_or(&BTreeMap::new()))
                    .map_err(of_material)?;
                let plan = plan(&material.held().map_err(of_material)?, &names, now);
                renewed = !plan.is_nothing();
                if renewed {
                    material.carry_out(plan, &names, now).map_err(of_material)?;
                    secret.data = Some(material.to_data());
                }
                Ok(renewed)
            })
            .await?;
        let material = Material::from_data(&secret.data.unwrap_or_default()).map_err(of_material)?;
        if renewed {
            info!(secret = %self.secret, "certificates were renewed");
        }
        let bundle = material.bundle();
        self.update(&self.config_map, |config_map: &mut ConfigMap| {
            let data = config_map.data.get_or_insert_default();
            let changes = data.get(BUNDLE_KEY) != Some(&bundle);
            if changes {
                data.insert(BUNDLE_KEY.to_owned(), bundle.clone());
            }
            Ok(changes)
        })
        .await?;
        Ok(material)
    }

    /// Shows what is kept, and renews it in time, for as long as it is polled.
    pub async fn run(&self, serving: Arc<Serving>, clock: fn() -> Time) {
        let mut told = None;
        loop {
            let wait = match self.show(&serving, clock()).await {
                Ok(()) => {
                    told = None;
                    LOOK
                }
                Err(err) => {
                    let err = err.to_string();
                    if told.as_ref() != Some(&err) {
                        warn!(%err, "no certificate can be had; what there is is shown on");
                        told = Some(err);
                    }
                    AGAIN
                }
            };
            sleep(wait).await;
        }
    }

    /// [`Self::maintain`], and shows the result.
    ///
    /// # Errors
    /// As there, and when the certificate cannot be used.
    pub async fn show(&self, serving: &Serving, now: Time) -> Result<(), StoreError> {
        let material = self.maintain(now).await?;
        let Some(server) = material.server else { return Ok(()) };
        serving.show(server.certificate.as_bytes(), server.key.as_bytes()).map_err(|source| StoreError::Tls {
            namespace: self.namespace.clone(),
            name: self.secret.clone(),
            source,
        })
    }

    /// Changes an object, which is made where it is missing; `change` says whether there is something to write.
    async fn update<K>(
        &self,
        name: &str,
        mut change: impl FnMut(&mut K) -> Result<bool, StoreError>,
    ) -> Result<K, StoreError>
    where
        K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
            + Clone
            + Default
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.namespace);
        let kind = K::kind(&()).into_owned();
        let failed = |source| StoreError::Api {
            kind: K::kind(&()).into_owned(),
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            source: Box::new(source),
        };
        for _ in 0..TRIES {
            let found = api.get_opt(name).await.map_err(failed)?;
            let is_new = found.is_none();
            let mut object = found.unwrap_or_default();
            if !change(&mut object)? {
                return Ok(object);
            }
            let written = if is_new {
                *object.meta_mut() = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
                api.create(&PostParams::default(), &object).await
            } else {
                // With the resourceVersion that was read: it fails if somebody wrote since.
                api.replace(name, &PostParams::default(), &object).await
            };
            match written {
                Ok(written) => return Ok(written),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(err) => return Err(failed(err)),
            }
        }
        Err(StoreError::Raced { kind, namespace: self.namespace.clone(), name: name.to_owned() })
    }
}
