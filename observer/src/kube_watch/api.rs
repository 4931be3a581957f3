//! Requests for one kind, and their answers, decoded straight into what is kept of the objects.

use std::error::Error as _;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use kube::api::{ListParams, WatchParams};
use kube::core::{Request, Status, WatchEvent};
use kube::{Client, Error};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use tokio_stream::{Stream, StreamExt};

use super::machine::LASTS;
use super::resources::Resource;
use crate::registry::{Kind, Unreadable, Watched};

/// Objects that are read at once.
const PAGE: u32 = 500;
/// Longest time that the API server may ask us to wait.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// An object, or why it is none.
pub(super) type Item = Result<Watched, Unreadable>;

/// A page of a list.
#[derive(Clone, Debug)]
pub(super) struct Page {
    pub(super) items: Vec<Item>,
    pub(super) resource_version: String,
    /// The token of the next page, if there is one.
    pub(super) next: Option<String>,
}

/// What a watch tells, each with the resourceVersion that it is then at.
#[derive(Clone, Debug)]
pub(super) enum Change {
    There(String, Item),
    /// `None`: it was never one that could be read.
    Gone(String, Option<Watched>),
    Bookmark(String),
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There is no such kind, or not in this version.
    NotFound,
    /// The place in the list, or in the watch, is too old.
    Expired,
    /// The aggregator may not, as the API server says.
    Forbidden(String),
    /// It may be better later, and not before this.
    Other { problem: String, retry_after: Duration },
}

impl Failure {
    pub(super) fn other(problem: impl Into<String>) -> Self {
        Self::Other { problem: problem.into(), retry_after: Duration::ZERO }
    }

    /// How long the API server asked us to wait.
    pub(super) fn retry_after(&self) -> Duration {
        match self {
            Self::Other { retry_after, .. } => *retry_after,
            Self::NotFound | Self::Expired | Self::Forbidden(_) => Duration::ZERO,
        }
    }
}

impl From<&Status> for Failure {
    fn from(status: &Status) -> Self {
        let message = if status.message.is_empty() { &status.reason } else { &status.message };
        let problem = format!("{} ({})", printable(message), status.code);
        let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        match status.code {
            401 | 403 => Self::Forbidden(problem),
            404 => Self::NotFound,
            410 => Self::Expired,
            _ => {
                let retry_after = Duration::from_secs(seconds.into()).min(LONGEST_WAIT);
                Self::Other { problem, retry_after }
            }
        }
    }
}

impl From<Error> for Failure {
    fn from(err: Error) -> Self {
        if let Error::Api(status) = &err {
            return Self::from(&**status);
        }
        let mut problem = err.to_string();
        let mut source = err.source();
        while let Some(err) = source {
            let text = err.to_string();
            if !problem.contains(&text) {
                problem = format!("{problem}: {text}");
            }
            source = err.source();
        }
        Self::other(printable(&problem))
    }
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(500).collect()
}

/// The way to the objects of one kind.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) resource: &'static Resource,
}

pub(super) type Changes = Pin<Box<dyn Stream<Item = Result<Change, Failure>> + Send>>;

impl Api {
    /// The first page, or the one with this token.
    pub(super) async fn page(&self, version: usize, next: Option<&str>) -> Result<Page, Failure> {
        let params = ListParams { continue_token: next.map(str::to_owned), ..ListParams::default() };
        let text = self.list(version, params.limit(PAGE)).await?;
        let page = read_page(self.resource.kind, &text)
            .map_err(|err| Failure::other(format!("a list cannot be read: {err}")))?;
        if page.resource_version.is_empty() {
            return Err(Failure::other("a list has no resourceVersion"));
        }
        Ok(page)
    }

    /// The current resourceVersion.
    pub(super) async fn current(&self, version: usize) -> Result<String, Failure> {
        let text = self.list(version, ListParams::default().limit(1)).await?;
        let list: ListHead = serde_json::from_str(&text)
            .map_err(|err| Failure::other(format!("a list cannot be read: {err}")))?;
        Ok(list.metadata.resource_version)
    }

    async fn list(&self, version: usize, params: ListParams) -> Result<String, Failure> {
        let request = Request::new(self.resource.path(version)).list(&params).map_err(Error::BuildRequest)?;
        Ok(self.client.request_text(request).await?)
    }

    /// What changes from this resourceVersion on.
    pub(super) async fn changes(&self, version: usize, from: &str) -> Result<Changes, Failure> {
        let seconds = u32::try_from(LASTS.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().timeout(seconds);
        let request =
            Request::new(self.resource.path(version)).watch(&params, from).map_err(Error::BuildRequest)?;
        let events = self.client.request_events::<Value>(request).await?;
        let kind = self.resource.kind;
        Ok(Box::pin(events.map(move |event| read_change(kind, event?))))
    }
}

fn read_change(kind: Kind, event: WatchEvent<Value>) -> Result<Change, Failure> {
    let version = |object: &Value| {
        let version = object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        version.ok_or_else(|| Failure::other("a watch tells of an object without a resourceVersion"))
    };
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            Ok(Change::There(version(&object)?, read(kind, object)))
        }
        WatchEvent::Deleted(object) => {
            // The rest of it does not matter, and may be what cannot be read.
            let field = |name: &str| object["metadata"][name].clone();
            let metadata = serde_json::json!({
                "name": field("name"), "namespace": field("namespace"), "uid": field("uid"),
            });
            let gone = read(kind, serde_json::json!({ "metadata": metadata }));
            Ok(Change::Gone(version(&object)?, gone.ok()))
        }
        WatchEvent::Bookmark(bookmark) => Ok(Change::Bookmark(bookmark.metadata.resource_version)),
        WatchEvent::Error(status) => Err(Failure::from(&*status)),
    }
}

fn read(kind: Kind, object: Value) -> Item {
    let field = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (field("namespace"), field("name"));
    let mut track = serde_path_to_error::Track::new();
    let read = kind.deserialize(serde_path_to_error::Deserializer::new(object, &mut track));
    read.map_err(|err| {
        Unreadable::new(kind, &namespace, &name, format_args!("field {}: {err}", track.path()))
    })
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Deserialize)]
struct ListHead {
    metadata: ListMeta,
}

/// Reads a list. Where that fails it is read again, each object by itself, so that one which makes no sense hides no other.
fn read_page(kind: Kind, text: &str) -> serde_json::Result<Page> {
    let all = |each| ListVisitor { kind, each }.deserialize(&mut serde_json::Deserializer::from_str(text));
    all(Each::AsItIs).or_else(|_| all(Each::ByItself))
}

/// How the objects of a list are read.
#[derive(Clone, Copy)]
enum Each {
    /// An error in one is an error of the list.
    AsItIs,
    /// An error in one is that one's. Each is put together in memory as a whole, one after the other.
    ByItself,
}

#[derive(Clone, Copy)]
struct ListVisitor {
    kind: Kind,
    each: Each,
}

impl<'de> DeserializeSeed<'de> for ListVisitor {
    type Value = Page;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Page, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Page;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Page, A::Error> {
        let (mut metadata, mut items) = (ListMeta::default(), Vec::new());
        while let Some(key) = entries.next_key::<String>()? {
            match key.as_str() {
                "metadata" => metadata = entries.next_value()?,
                "items" => items = entries.next_value_seed(Items(self))?,
                _ => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        let next = metadata.next.filter(|token| !token.is_empty());
        Ok(Page { items, resource_version: metadata.resource_version, next })
    }
}

struct Items(ListVisitor);

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<Item>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<Item>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<Item>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("objects")
    }

    fn visit_unit<E>(self) -> Result<Vec<Item>, E> {
        Ok(Vec::new())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut objects: A) -> Result<Vec<Item>, A::Error> {
        let Self(ListVisitor { kind, each }) = self;
        let mut items = Vec::new();
        match each {
            Each::AsItIs => {
                while let Some(object) = objects.next_element_seed(kind)? {
                    items.push(Ok(object));
                }
            }
            Each::ByItself => {
                while let Some(object) = objects.next_element::<Value>()? {
                    items.push(read(kind, object));
                }
            }
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests;
