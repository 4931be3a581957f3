//! Rules on `Cargo.toml`: which of our crates may depend on which, and that their lints are the workspace's.

use toml::{Table, Value};

use super::{Rule, Violation};

/// Our crates, and those of them that each may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("sidescope-common", &[]),
    ("sidescope-ebpf", &["sidescope-common"]),
    ("sidescope", &["sidescope-common"]),
    ("sidescope-tests", &["sidescope", "sidescope-common"]),
    ("sidescope-test-peers", &[]),
    ("xtask", &[]),
];

pub(super) fn check(file: &str, text: &str) -> Vec<Violation> {
    let violation = |line, rule, detail| Violation { file: file.to_owned(), line, rule, detail };
    let manifest: Table = match text.parse() {
        Ok(manifest) => manifest,
        Err(error) => return vec![violation(1, Rule::Readable, format!("is not TOML: {error}"))],
    };
    let Some(name) = manifest.get("package").and_then(|package| package.get("name")).and_then(Value::as_str)
    else {
        return Vec::new();
    };
    let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
        let detail = format!("crate `{name}` is not in the table in xtask/src/tidy/manifest.rs");
        return vec![violation(line_of(text, name), Rule::Dependencies, detail)];
    };

    let mut found = Vec::new();
    for dependency in dependencies(&manifest) {
        if CRATES.iter().any(|(known, _)| *known == dependency) && !allowed.contains(&dependency) {
            let detail = format!("`{name}` may not depend on `{dependency}`");
            found.push(violation(line_of(text, dependency), Rule::Dependencies, detail));
        }
    }
    // The kernel programs are a workspace of their own and have no lints to inherit.
    let has_lints = match manifest.get("lints") {
        Some(lints) if manifest.contains_key("workspace") => lints.get("rust").is_some(),
        Some(lints) => lints.get("workspace").and_then(Value::as_bool) == Some(true),
        None => false,
    };
    if !has_lints {
        found.push(violation(1, Rule::Lints, format!("`{name}` does not have `[lints] workspace = true`")));
    }
    found
}

/// The real names of all dependencies, those for tests, builds and single targets included.
fn dependencies(manifest: &Table) -> impl Iterator<Item = &str> {
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let parts = targets.filter_map(Value::as_table).chain([manifest]);
    parts
        .flat_map(|part| {
            ["dependencies", "dev-dependencies", "build-dependencies"].map(|kind| part.get(kind))
        })
        .flatten()
        .filter_map(Value::as_table)
        .flatten()
        .map(|(key, value)| value.get("package").and_then(Value::as_str).unwrap_or(key))
}

/// The first line that names `what`, or the first of all.
fn line_of(text: &str, what: &str) -> usize {
    let is_named = |line: &str| {
        line.split(|c: char| !c.is_alphanumeric() && c != '-' && c != '_').any(|word| word == what)
    };
    text.lines().position(is_named).map_or(1, |index| index + 1)
}
