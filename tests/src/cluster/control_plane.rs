//! The command lines of Kubernetes' own components.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::runtime::Handle;

use super::certificates::{ACCOUNTS_KEY, ACCOUNTS_PUBLIC_KEY, CA, CA_KEY, SERVER, SERVER_KEY};
use super::component::Component;
use super::data::{Inner, Ready};
use super::{Parts, found};
use crate::cmd::Cmd;

pub(super) const KUBECONFIG: &str = "kubeconfig";
pub(super) const APISERVER: &str = "kube-apiserver";
/// The requests of one user, a line of JSON each.
pub(super) const AUDIT_LOG: &str = "audit.log";
const AUDIT_POLICY: &str = "audit-policy";
const ETCD: &str = "etcd";
const CONTROLLER_MANAGER: &str = "kube-controller-manager";
const SCHEDULER: &str = "kube-scheduler";

/// Where ClusterIPs come from, as `bed` has them.
const SERVICE_NETWORKS: &str = "10.96.0.0/16,fd00:10:96::/112";
/// What a test with thousands of objects needs; the defaults are for a control plane that others share.
const RATE: [&str; 2] = ["--kube-api-qps=500", "--kube-api-burst=1000"];

/// What it takes to start the API server again.
pub(super) struct Apiserver {
    pub(super) port: u16,
    pub(super) etcd: u16,
    is_audited: bool,
}

/// Starts etcd and returns the port for its clients.
pub(super) fn start_etcd(inner: &Inner, handle: &Handle) -> Result<u16> {
    let program = found(Component::Etcd, ETCD)?;
    let ready = Ready { scheme: "http", path: "/health" };
    let [client, _] = inner.serve(handle, ETCD, &ready, |[client, peer]: [u16; 2]| {
        let data = inner.dir.join("etcd");
        // Of a start on other ports, which are in it.
        if data.exists() {
            fs::remove_dir_all(&data).with_context(|| format!("cannot remove {}", data.display()))?;
        }
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        Ok(Cmd::new(&program)
            .args([flag("data-dir", data.display()), flag("listen-client-urls", &client)])
            .args([flag("advertise-client-urls", &client), flag("listen-peer-urls", &peer)])
            .args([
                flag("initial-advertise-peer-urls", &peer),
                flag("initial-cluster", format!("default={peer}")),
            ])
            // Nothing here has to survive the machine.
            .args(["--unsafe-no-fsync", "--log-level=warn"]))
    })?;
    Ok(client)
}

/// Starts the API server. Whoever asks is told that it is ready, once it has made the roles that allow so. What `audited` asks for is
/// logged.
pub(super) fn start_apiserver(
    inner: &Inner,
    handle: &Handle,
    etcd: u16,
    parts: Parts,
    audited: Option<&str>,
) -> Result<Apiserver> {
    if let Some(user) = audited {
        let policy = json!({
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived", "ResponseStarted"],
            "rules": [{"level": "Metadata", "users": [user]}, {"level": "None"}],
        });
        inner.write(AUDIT_POLICY, &policy.to_string())?;
    }
    let is_audited = audited.is_some();
    let ready = Ready { scheme: "https", path: "/readyz" };
    let [port] = inner.serve(handle, APISERVER, &ready, |[port]: [u16; 1]| {
        Apiserver { port, etcd, is_audited }.command(&inner.dir, parts)
    })?;
    Ok(Apiserver { port, etcd, is_audited })
}

impl Apiserver {
    pub(super) fn command(&self, dir: &Path, parts: Parts) -> Result<Cmd> {
        let file = |name: &str, file: &str| flag(name, dir.join(file).display());
        // No kubelet says that a node is there, so nobody may take it for gone. Without controllers there are no service accounts.
        let disabled = match parts {
            Parts::Api => "ServiceAccount,TaintNodesByCondition",
            Parts::Kubernetes | Parts::Mesh => "TaintNodesByCondition",
        };
        let audit = [file("audit-policy-file", AUDIT_POLICY), file("audit-log-path", AUDIT_LOG)];
        Ok(Cmd::new(found(Component::Kubernetes, APISERVER)?)
            .args(audit.into_iter().filter(|_| self.is_audited))
            .args([flag("etcd-servers", format!("http://127.0.0.1:{}", self.etcd))])
            .args([flag("secure-port", self.port), "--bind-address=127.0.0.1".to_owned()])
            // There is no address under which pods could reach it, so nobody is told one.
            .args(["--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
            .args([file("tls-cert-file", SERVER), file("tls-private-key-file", SERVER_KEY)])
            .args([file("client-ca-file", CA), flag("cert-dir", dir.display())])
            .args([file("service-account-key-file", ACCOUNTS_PUBLIC_KEY)])
            .args([file("service-account-signing-key-file", ACCOUNTS_KEY)])
            .args(["--service-account-issuer=https://kubernetes.default.svc.cluster.local"])
            .args([flag("service-cluster-ip-range", SERVICE_NETWORKS)])
            .args([flag("disable-admission-plugins", disabled)])
            .args(["--authorization-mode=Node,RBAC", "--allow-privileged=true"]))
    }
}

pub(super) fn start_controller_manager(inner: &Inner, handle: &Handle) -> Result<()> {
    let program = found(Component::Kubernetes, CONTROLLER_MANAGER)?;
    let file = |name: &str, file: &str| flag(name, inner.dir.join(file).display());
    let ready = Ready { scheme: "https", path: "/healthz" };
    inner.serve(handle, CONTROLLER_MANAGER, &ready, |[port]: [u16; 1]| {
        Ok(Cmd::new(&program)
            .args([file("kubeconfig", KUBECONFIG), flag("secure-port", port)])
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
            .args([file("root-ca-file", CA), file("service-account-private-key-file", ACCOUNTS_KEY)])
            .args([file("cluster-signing-cert-file", CA), file("cluster-signing-key-file", CA_KEY)])
            // Otherwise it makes a folder on the machine.
            .args([file("flex-volume-plugin-dir", "flexvolume")])
            // It would wait for the kubelets of nodes that have none, and evict their pods.
            .args(["--controllers=*,-node-lifecycle-controller"])
            .args(RATE))
    })?;
    Ok(())
}

pub(super) fn start_scheduler(inner: &Inner, handle: &Handle) -> Result<()> {
    let program = found(Component::Kubernetes, SCHEDULER)?;
    let kubeconfig = flag("kubeconfig", inner.dir.join(KUBECONFIG).display());
    let ready = Ready { scheme: "https", path: "/readyz" };
    inner.serve(handle, SCHEDULER, &ready, |[port]: [u16; 1]| {
        Ok(Cmd::new(&program)
            .args([&kubeconfig, &flag("secure-port", port)])
            .args(["--bind-address=127.0.0.1", "--leader-elect=false"])
            .args(RATE))
    })?;
    Ok(())
}

pub(super) fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}
