//! istiod beside the control plane: without certificates and webhooks, with its configuration in plaintext for a vanilla Envoy.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use super::component::{Component, ISTIO_CRDS};
use super::control_plane::{KUBECONFIG, flag};
use super::data::Ready;
use super::local::Local;
use super::{Cluster, found};
use crate::cmd::Cmd;

const ISTIOD: &str = "istiod";
const PROGRAM: &str = "pilot-discovery";
/// Istio's root namespace.
pub(super) const NAMESPACE: &str = "istio-system";

/// What a vanilla Envoy does not have, what needs a cluster's nodes, and what other processes would have to wait for.
const SWITCHES: [(&str, &str); 9] = [
    ("ENABLE_CA_SERVER", "false"),
    ("ENABLE_LEADER_ELECTION", "false"),
    ("INJECT_ENABLED", "false"),
    ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
    ("PILOT_CERT_PROVIDER", "none"),
    ("PILOT_ENABLE_ALPN_FILTER", "false"),
    ("PILOT_ENABLE_GATEWAY_API", "false"),
    ("PILOT_ENABLE_METADATA_EXCHANGE", "false"),
    ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
];

/// How istiod is set up.
#[derive(Clone, Debug)]
pub struct Istio {
    /// The MeshConfig, in YAML. It becomes the ConfigMap that istiod watches, so it can be changed there.
    pub mesh: String,
    /// Variables for istiod besides, or instead of, those that it needs to run here.
    pub env: Vec<(String, String)>,
    /// Objects to apply before it starts.
    pub objects: String,
}

impl Default for Istio {
    /// A mesh whose Envoys speak plaintext to each other.
    fn default() -> Self {
        let plaintext = json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": NAMESPACE},
            "spec": {"mtls": {"mode": "DISABLE"}},
        });
        Self {
            mesh: "enableAutoMtls: false\nenableTracing: false\ningressControllerMode: \"OFF\"\n".to_owned(),
            env: Vec::new(),
            objects: plaintext.to_string(),
        }
    }
}

/// An istiod that runs.
pub(super) struct Istiod {
    pub(super) xds: u16,
    http: Local,
    monitoring: Local,
}

impl Istiod {
    pub(super) fn ask(&self, path: &str) -> Result<String> {
        if path.starts_with("/metrics") { self.monitoring.get(path) } else { self.http.get(path) }
    }
}

pub(super) fn start(cluster: &Cluster, istio: &Istio) -> Result<Istiod> {
    let program = found(Component::Istiod, PROGRAM)?;
    let definitions = found(Component::Istiod, ISTIO_CRDS)?;
    let text =
        fs::read_to_string(&definitions).with_context(|| format!("cannot read {}", definitions.display()))?;
    cluster.apply_definitions(&text)?;
    cluster.make_namespace(NAMESPACE)?;
    let mesh = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "istio", "namespace": NAMESPACE},
        "data": {"mesh": istio.mesh},
    });
    cluster.apply(&mesh.to_string())?;
    cluster.apply(&istio.objects)?;

    let (inner, handle) = (&cluster.inner, cluster.handle());
    let ready = Ready { scheme: "http", path: "/ready" };
    let [http, xds, monitoring] =
        inner.serve(handle, ISTIOD, &ready, |[http, xds, monitoring]: [u16; 3]| {
            let mut cmd = Cmd::new(&program)
                .arg("discovery")
                .args([
                    flag("kubeconfig", inner.dir.join(KUBECONFIG).display()),
                    flag("namespace", NAMESPACE),
                ])
                .args([
                    flag("httpAddr", format!("127.0.0.1:{http}")),
                    flag("grpcAddr", format!("127.0.0.1:{xds}")),
                ])
                .args([flag("monitoringAddr", format!("127.0.0.1:{monitoring}"))])
                // Any port will do: nobody asks it there.
                .args(["--secureGRPCAddr=", "--httpsAddr=", "--ctrlz_port=0", "--clusterID=Kubernetes"])
                .env("POD_NAMESPACE", NAMESPACE)
                .env("POD_NAME", ISTIOD);
            for (name, value) in SWITCHES {
                cmd = cmd.env(name, value);
            }
            for (name, value) in &istio.env {
                cmd = cmd.env(name, value);
            }
            Ok(cmd)
        })?;
    let local = |port| Local::new(handle, "http", port);
    Ok(Istiod { xds, http: local(http)?, monitoring: local(monitoring)? })
}
