//! HTTP on loopback: what the components say about themselves.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::{Client, Config};
use serde_json::Value;
use tokio::runtime::Handle;

use super::http_get;
use crate::wait::patient;

/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Asks one port.
pub(super) struct Local {
    handle: Handle,
    client: Client,
    address: String,
}

impl Local {
    /// `scheme` is http or https. The certificates are not looked at: some components make their own, which nobody has signed.
    pub(super) fn new(handle: &Handle, scheme: &str, port: u16) -> Result<Self> {
        let address = format!("{scheme}://127.0.0.1:{port}");
        let mut config = Config::new(address.parse().with_context(|| format!("`{address}` is no address"))?);
        config.accept_invalid_certs = true;
        config.read_timeout = Some(patient(TIMEOUT));
        let _within = handle.enter();
        let client =
            Client::try_from(config).with_context(|| format!("cannot make a client for {address}"))?;
        Ok(Self { handle: handle.clone(), client, address })
    }

    /// The text at this path; any other status than success is an error.
    pub(super) fn get(&self, path: &str) -> Result<String> {
        let answer = self.handle.block_on(self.client.request_text(http_get(path)?));
        answer.with_context(|| format!("GET {}{path}", self.address))
    }

    /// The answer to a question in JSON at this path.
    pub(super) fn ask(&self, path: &str, question: &Value) -> Result<Value> {
        let request = hyper::Request::post(path).body(question.to_string().into_bytes());
        let request = request.with_context(|| format!("`{path}` is no path"))?;
        let answer = self.handle.block_on(self.client.request(request));
        answer.with_context(|| format!("POST {}{path}", self.address))
    }
}
