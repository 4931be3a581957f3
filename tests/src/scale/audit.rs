//! What the aggregator asks of the API server, as that one has logged it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

/// A log that grows.
pub(super) struct Audit {
    pub(super) log: PathBuf,
}

/// How many requests of each kind were answered, by verb and resource.
pub(super) type Requests = BTreeMap<(String, String), u64>;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    #[serde(default)]
    object_ref: Option<ObjectRef>,
}

#[derive(Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
}

impl Audit {
    /// Where it ends now.
    pub(super) fn end(&self) -> Result<u64> {
        let meta =
            std::fs::metadata(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        Ok(meta.len())
    }

    /// Requests since an end.
    pub(super) fn since(&self, end: u64) -> Result<Requests> {
        let mut file =
            File::open(&self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        file.seek(SeekFrom::Start(end))?;
        let mut requests = Requests::new();
        for line in BufReader::new(file).lines() {
            let line = line?;
            // The last one may be half written.
            let Ok(Line { verb, object_ref }) = serde_json::from_str(&line) else { continue };
            let resource = object_ref.map_or("other".to_owned(), |object| object.resource);
            *requests.entry((verb, resource)).or_default() += 1;
        }
        Ok(requests)
    }
}

/// All of them, and those that write.
pub(super) fn sums(requests: &Requests) -> (u64, u64) {
    let writes = requests.iter().filter(|((verb, _), _)| !matches!(&**verb, "get" | "list" | "watch"));
    // A review is asked for like a write, and writes nothing.
    let writes = writes.filter(|((_, resource), _)| resource != "tokenreviews");
    (requests.values().sum(), writes.map(|(_, count)| count).sum())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn requests_since_a_time_are_counted_by_kind() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let line = |verb: &str, resource: &str| {
            format!(
                "{{\"verb\":\"{verb}\",\"stage\":\"ResponseComplete\",\"objectRef\":{{\"resource\":\"{resource}\"}}}}\n"
            )
        };
        file.write_all(line("list", "pods").as_bytes()).unwrap();
        let audit = Audit { log: file.path().to_owned() };
        let end = audit.end().unwrap();
        let new = [
            line("update", "leases"),
            line("update", "leases"),
            line("create", "tokenreviews"),
            line("get", "pods"),
        ];
        file.write_all(new.concat().as_bytes()).unwrap();
        file.write_all(b"{\"verb\":\"upd").unwrap();
        let requests = audit.since(end).unwrap();
        assert_eq!(requests[&("update".to_owned(), "leases".to_owned())], 2);
        assert_eq!(sums(&requests), (4, 2));
    }
}
