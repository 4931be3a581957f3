//! The API server, asked for as little as will do: what it answers is as much work as what it is told.

use std::future::Future;

use anyhow::{Context, Result, anyhow};
use hyper::Request;
use kube::Client;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;

/// An answer without what nobody reads.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

#[derive(Deserialize)]
struct Answer {
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    uid: String,
}

/// Makes an object and says which uid it got.
pub(super) async fn create(client: &Client, path: &str, object: &Value) -> Result<String> {
    let request = Request::post(path).header("content-type", "application/json");
    send(client, request, object.to_string()).await.with_context(|| {
        format!("cannot create {} in {path}", object["metadata"]["name"].as_str().unwrap_or_default())
    })
}

/// Changes these fields of an object.
pub(super) async fn patch(client: &Client, path: &str, fields: &Value) -> Result<()> {
    let request = Request::patch(path).header("content-type", "application/merge-patch+json");
    send(client, request, fields.to_string()).await.with_context(|| format!("cannot change {path}"))?;
    Ok(())
}

/// Puts an object in the place of another one.
pub(super) async fn replace(client: &Client, path: &str, object: &Value) -> Result<()> {
    let request = Request::put(path).header("content-type", "application/json");
    send(client, request, object.to_string()).await.with_context(|| format!("cannot replace {path}"))?;
    Ok(())
}

/// Removes an object: at once, or as somebody does who leaves the rest to the kubelet.
pub(super) async fn delete(client: &Client, path: &str, at_once: bool) -> Result<()> {
    let path = format!("{path}?gracePeriodSeconds={}", if at_once { 0 } else { 30 });
    let request = Request::delete(&path).header("accept", METADATA).body(Vec::new())?;
    client.request::<Value>(request).await.with_context(|| format!("cannot delete {path}"))?;
    Ok(())
}

async fn send(client: &Client, request: hyper::http::request::Builder, body: String) -> Result<String> {
    let request = request.header("accept", METADATA).body(body.into_bytes())?;
    Ok(client.request::<Answer>(request).await?.metadata.uid)
}

/// Does this with all of them, at most so many at a time, and gives what came of them in their order.
pub(super) async fn each<I, T, F>(
    items: impl IntoIterator<Item = I>,
    most: usize,
    work: impl Fn(I) -> F,
) -> Result<Vec<T>>
where
    T: Send + 'static,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let mut done: Vec<Option<T>> = Vec::new();
    for (at, item) in items.into_iter().enumerate() {
        done.push(None);
        if running.len() == most {
            take(&mut running, &mut done).await?;
        }
        let work = work(item);
        running.spawn(async move { work.await.map(|result| (at, result)) });
    }
    while !running.is_empty() {
        take(&mut running, &mut done).await?;
    }
    done.into_iter().map(|result| result.context("a piece of work is missing")).collect()
}

async fn take<T: 'static>(running: &mut JoinSet<Result<(usize, T)>>, done: &mut [Option<T>]) -> Result<()> {
    let result = running.join_next().await.context("nothing runs")?;
    let (at, result) = result.map_err(|err| anyhow!("a task of the bench: {err}"))??;
    done[at] = Some(result);
    Ok(())
}
