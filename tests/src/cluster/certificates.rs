//! The keys of a cluster: one authority for servers and clients, and the key that signs service-account tokens.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::data::write;

pub(super) const CA: &str = "ca.crt";
pub(super) const CA_KEY: &str = "ca.key";
pub(super) const SERVER: &str = "apiserver.crt";
pub(super) const SERVER_KEY: &str = "apiserver.key";
pub(super) const ACCOUNTS_KEY: &str = "service-accounts.key";
pub(super) const ACCOUNTS_PUBLIC_KEY: &str = "service-accounts.pub";
const ADMIN: &str = "admin.crt";
const ADMIN_KEY: &str = "admin.key";

/// Every name and address under which clients may reach the API server.
const NAMES: [&str; 6] = [
    "127.0.0.1",
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The administrator's certificate, and the authority that the servers' are of.
pub(super) struct Admin {
    files: [String; 3],
}

/// Makes all and writes them into the folder of the cluster.
fn write_all(dir: &Path) -> Result<Admin> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.distinguished_name.push(DnType::CommonName, "sidescope test cluster");
    let authority_key = KeyPair::generate()?;
    write(dir, CA_KEY, &authority_key.serialize_pem())?;
    let authority = CertifiedIssuer::self_signed(params, authority_key)?;
    let ca = write(dir, CA, &authority.pem())?;
    let accounts = KeyPair::generate()?;
    write(dir, ACCOUNTS_KEY, &accounts.serialize_pem())?;
    write(dir, ACCOUNTS_PUBLIC_KEY, &accounts.public_key_pem())?;

    let signed = |common_name: &str,
                  group: Option<&str>,
                  names: &[&str],
                  usage,
                  files: [&str; 2]|
     -> Result<[String; 2]> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &authority)?;
        let certificate = write(dir, files[0], &certificate.pem())?;
        let key = write(dir, files[1], &key.serialize_pem())?;
        Ok([certificate, key].map(|path| path.display().to_string()))
    };
    signed("kube-apiserver", None, &NAMES, ExtendedKeyUsagePurpose::ServerAuth, [SERVER, SERVER_KEY])?;
    let [certificate, key] = signed(
        "admin",
        Some("system:masters"),
        &[],
        ExtendedKeyUsagePurpose::ClientAuth,
        [ADMIN, ADMIN_KEY],
    )?;
    Ok(Admin { files: [ca.display().to_string(), certificate, key] })
}

/// As [`write_all`], with the error that a user is told.
pub(super) fn make(dir: &Path) -> Result<Admin> {
    write_all(dir).context("cannot make the certificates of the cluster")
}

impl Admin {
    /// A kubeconfig for the API server on this port.
    pub(super) fn kubeconfig(&self, port: u16) -> Value {
        let [ca, certificate, key] = &self.files;
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "sidescope",
                "cluster": {"server": format!("https://127.0.0.1:{port}"), "certificate-authority": ca},
            }],
            "users": [{"name": "admin", "user": {"client-certificate": certificate, "client-key": key}}],
            "contexts": [{"name": "sidescope", "context": {"cluster": "sidescope", "user": "admin"}}],
            "current-context": "sidescope",
        })
    }
}
