//! Text to objects: YAML streams, JSON, and the lists that `kubectl get` prints, still without a meaning.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Where an object stands in its file, counted from 1 as a person would.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    document: usize,
    item: Option<usize>,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "document {}", self.document)?;
        self.item.map_or(Ok(()), |item| write!(f, ", item {item}"))
    }
}

/// One object as it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RawObject {
    pub(super) position: Position,
    pub(super) group: String,
    pub(super) kind: String,
    pub(super) body: Value,
}

/// A text that is neither YAML nor JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: Option<u64>,
    pub(super) message: String,
}

/// A document that is no Kubernetes object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NotAnObject {
    pub(super) position: Position,
    pub(super) field: &'static str,
    pub(super) problem: String,
}

/// Splits `text` into documents; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Value>, SyntaxError> {
    // JSON is YAML, but the JSON parser is many times faster, and large inventories come as JSON. What it refuses may
    // still be YAML in flow style: then the YAML parser's word counts.
    if text.trim_start().starts_with('{') {
        let documents: Result<Vec<Slim>, _> = serde_json::Deserializer::from_str(text).into_iter().collect();
        if let Ok(documents) = documents {
            return Ok(documents.into_iter().map(|slim| slim.0).collect());
        }
    }
    let documents: Vec<Slim> = serde_saphyr::from_str_multiple_with_options(text, options(text.len()))
        .map_err(|err| {
            let location = err.location();
            // The line is said once, in front, where editors find it.
            let place =
                location.map_or(String::new(), |l| format!(" at line {}, column {}", l.line(), l.column()));
            let message = err.to_string();
            SyntaxError {
                line: location.map(|location| location.line()),
                message: message.strip_suffix(&place).unwrap_or(&message).to_owned(),
            }
        })?;
    Ok(documents.into_iter().map(|slim| slim.0).filter(|v| !v.is_null()).collect())
}

/// The parser's own limits are for configuration files; an inventory may be hundreds of megabytes. So what the text holds is
/// bounded by its size, and only what can grow beyond it (aliases, nesting) by numbers. kubectl prints no aliases.
fn options(bytes: usize) -> serde_saphyr::Options {
    let at_most = bytes.saturating_mul(2).saturating_add(1_000);
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_reader_input_bytes: None,
            max_events: at_most,
            max_nodes: at_most,
            max_documents: at_most,
            max_total_scalar_bytes: at_most,
            max_total_comment_bytes: at_most,
            max_depth: 128,
            max_aliases: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 100_000,
        },
        with_snippet: false,
    }
}

/// Takes lists apart and reads the kind of each object.
pub(super) fn objects(documents: Vec<Value>) -> Result<Vec<RawObject>, NotAnObject> {
    let mut found = Vec::new();
    for (at, body) in documents.into_iter().enumerate() {
        let position = Position { document: at + 1, item: None };
        let (group, kind) = type_of(&body, position, None)?;
        // A resource may be called `AllowList` and be none.
        let element =
            kind.strip_suffix("List").filter(|element| element.is_empty() || body.get("items").is_some());
        let Some(element) = element else {
            found.push(RawObject { position, group, kind, body });
            continue;
        };
        // Typed lists (`PodList`, as the API answers) leave kind and version out of their items.
        let inherited = (!element.is_empty()).then_some((group.as_str(), element));
        let items = match body {
            Value::Object(mut list) => list.remove("items"),
            _ => None,
        };
        let items = match items {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => Vec::new(),
            Some(_) => {
                return Err(NotAnObject { position, field: "items", problem: "is no list".to_owned() });
            }
        };
        for (at, body) in items.into_iter().enumerate() {
            let position = Position { item: Some(at + 1), ..position };
            let (group, kind) = type_of(&body, position, inherited)?;
            found.push(RawObject { position, group, kind, body });
        }
    }
    Ok(found)
}

fn type_of(
    body: &Value,
    position: Position,
    inherited: Option<(&str, &str)>,
) -> Result<(String, String), NotAnObject> {
    let wrong = |field, problem: String| NotAnObject { position, field, problem };
    let Value::Object(map) = body else {
        return Err(wrong(
            "",
            "is no Kubernetes object (a mapping with apiVersion and kind was expected)".to_owned(),
        ));
    };
    let field = |name: &'static str, inherited: Option<&str>, allowed: fn(char) -> bool| match map.get(name) {
        Some(Value::String(text)) if text.is_empty() => Err(wrong(name, "is empty".to_owned())),
        Some(Value::String(text)) => match text.chars().find(|c| !allowed(*c)) {
            Some(bad) => Err(wrong(name, format!("contains {bad:?}, which is not allowed here"))),
            None => Ok(text.clone()),
        },
        None => inherited.map(str::to_owned).ok_or_else(|| wrong(name, "is missing".to_owned())),
        Some(_) => Err(wrong(name, "is no text".to_owned())),
    };
    let kind = field("kind", inherited.map(|(_, kind)| kind), |c| c.is_ascii_alphanumeric())?;
    let version = field("apiVersion", inherited.map(|(group, _)| group), |c| {
        c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '/')
    })?;
    // The core group is written without a name: `v1`. For an inherited group nothing is to be cut off.
    let group = match version.split_once('/') {
        Some((group, _)) => group.to_owned(),
        None if map.contains_key("apiVersion") => String::new(),
        None => version,
    };
    Ok((group, kind))
}

/// A value without the large parts that no decision needs (half of a pod is its containers): they are read past.
struct Slim(Value);

/// Mappings and lists under these keys are dropped; a label or another scalar of that name stays.
const DROPPED: [&str; 11] = [
    "affinity",
    "conditions",
    "containers",
    "containerStatuses",
    "env",
    "ephemeralContainers",
    "initContainers",
    "initContainerStatuses",
    "managedFields",
    "tolerations",
    "volumes",
];

/// Of mappings under these keys only the texts under those keys stay.
const CHOSEN: [(&str, &[&str]); 2] =
    [("annotations", &["kubernetes.io/config.hash", "sidescope.io/static-hosts"]), ("data", &["mesh"])];

impl<'de> Deserialize<'de> for Slim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SlimVisitor(Keep::All))
    }
}

/// What of a mapping or a list stays.
#[derive(Clone, Copy)]
enum Keep {
    All,
    /// Texts and other scalars under these keys.
    Only(&'static [&'static str]),
    Nothing,
}

impl<'de> DeserializeSeed<'de> for Keep {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(SlimVisitor(self)).map(|slim| slim.0)
    }
}

struct SlimVisitor(Keep);

impl<'de> Visitor<'de> for SlimVisitor {
    type Value = Slim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML or JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Slim, E> {
        Ok(Slim(Value::Bool(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Slim, E> {
        Ok(Slim(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Slim, E> {
        Ok(Slim(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Slim, E> {
        Ok(Slim(Number::from_f64(value).map_or(Value::Null, Value::Number)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Slim, E> {
        Ok(Slim(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Slim, E> {
        Ok(Slim(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Slim, E> {
        Ok(Slim(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Slim, E> {
        Ok(Slim(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Slim, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Slim, A::Error> {
        if !matches!(self.0, Keep::All) {
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Slim(Value::Null));
        }
        let mut list = Vec::new();
        while let Some(Slim(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Slim(Value::Array(list)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Slim, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            let chosen = CHOSEN.iter().find(|(name, _)| *name == key).map(|(_, keys)| Keep::Only(keys));
            let keep = match self.0 {
                Keep::All if DROPPED.contains(&key.as_str()) => Keep::Nothing,
                Keep::All => chosen.unwrap_or(Keep::All),
                Keep::Only(keys) if keys.contains(&key.as_str()) => Keep::Nothing,
                Keep::Only(_) | Keep::Nothing => {
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.insert(key, entries.next_value_seed(keep)?);
        }
        Ok(Slim(match self.0 {
            Keep::Nothing => Value::Null,
            Keep::All | Keep::Only(_) => Value::Object(map),
        }))
    }
}
