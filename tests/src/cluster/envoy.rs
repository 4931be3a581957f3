//! A vanilla Envoy that gets all it does from istiod, as the sidecar of a pod would.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::component::Component;
use super::local::Local;
use super::{Cluster, READY, found};
use crate::bed::Proc;
use crate::cmd::Cmd;
use crate::wait::wait_for;

/// The pod whose sidecar an Envoy is.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// What `Sidecar`s select it by.
    pub labels: BTreeMap<String, String>,
    /// Its address, by which istiod knows which Services it serves.
    pub address: IpAddr,
}

impl Proxy {
    /// What an Envoy is started with: who it is, where its configuration comes from, and an administration port of its choice.
    pub fn bootstrap(&self, xds_port: u16) -> Value {
        let (address, pod, namespace) = (self.address, &self.pod, &self.namespace);
        let ads = json!({"ads": {}, "resource_api_version": "V3"});
        json!({
            "node": {
                "id": format!("sidecar~{address}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
                "cluster": format!("{pod}.{namespace}"),
                "metadata": {
                    "CLUSTER_ID": "Kubernetes",
                    "INSTANCE_IPS": address.to_string(),
                    "ISTIO_VERSION": "1.31.0",
                    "LABELS": self.labels,
                    "NAMESPACE": namespace,
                },
            },
            "admin": {"address": socket_address(0)},
            "dynamic_resources": {
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
                },
                "cds_config": ads,
                "lds_config": ads,
            },
            "static_resources": {
                "clusters": [{
                    "name": "xds-grpc",
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                            "explicit_http_config": {"http2_protocol_options": {}},
                        },
                    },
                    "load_assignment": {
                        "cluster_name": "xds-grpc",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(xds_port)}}]}],
                    },
                }],
            },
        })
    }
}

fn socket_address(port: u16) -> Value {
    json!({"socket_address": {"address": "127.0.0.1", "port_value": port}})
}

/// An Envoy that runs on the machine. It ends with its cluster.
pub struct Envoy {
    proc: Proc,
    admin: Local,
}

impl Envoy {
    /// Starts it and waits until it has got its configuration. Its listeners are for looking at: in the machine's own network all
    /// Envoys share their ports.
    pub fn start(cluster: &Cluster, proxy: &Proxy) -> Result<Self> {
        let name = format!("envoy-{}-{}", proxy.namespace, proxy.pod);
        let text = proxy.bootstrap(cluster.xds_port()?).to_string();
        let bootstrap = cluster.inner.write(&format!("{name}.json"), &text)?;
        let told = cluster.dir().join(format!("{name}.address"));
        let cmd = Cmd::new(found(Component::Envoy, "envoy")?)
            .arg("--config-path")
            .arg(&bootstrap)
            .arg("--admin-address-path")
            .arg(&told)
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]);
        let proc = cluster.spawn(&name, &cmd)?;
        let port = wait_for("Envoy to say where its administration is", READY, || {
            proc.must_run()?;
            let address = fs::read_to_string(&told).unwrap_or_default();
            Ok(address.rsplit_once(':').and_then(|(_, port)| port.parse().ok()))
        })?;
        let envoy = Self { proc, admin: Local::new(cluster.handle(), "http", port)? };
        wait_for("Envoy to get its configuration", READY, || {
            envoy.proc.must_run()?;
            Ok(envoy.ask("/ready").ok())
        })?;
        Ok(envoy)
    }

    /// Its process.
    pub fn proc(&self) -> &Proc {
        &self.proc
    }

    /// What it answers on this path of its administration.
    pub fn ask(&self, path: &str) -> Result<String> {
        self.admin.get(path)
    }

    /// All that it is configured with.
    pub fn config_dump(&self) -> Result<Value> {
        serde_json::from_str(&self.ask("/config_dump?include_eds")?).context("the config_dump is not JSON")
    }

    /// The names of the clusters that istiod has given it.
    pub fn clusters(&self) -> Result<BTreeSet<String>> {
        self.names("dynamic_active_clusters", "/cluster/name")
    }

    /// The names of the listeners that istiod has given it.
    pub fn listeners(&self) -> Result<BTreeSet<String>> {
        self.names("dynamic_listeners", "/name")
    }

    fn names(&self, resource: &str, pointer: &str) -> Result<BTreeSet<String>> {
        let text = self.ask(&format!("/config_dump?resource={resource}"))?;
        let dump: Value = serde_json::from_str(&text).context("the config_dump is not JSON")?;
        let all = dump["configs"].as_array().into_iter().flatten();
        Ok(all.filter_map(|one| one.pointer(pointer)?.as_str().map(str::to_owned)).collect())
    }
}
