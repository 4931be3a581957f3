//! Rules of the code's structure that no compiler knows, checked on every file that git knows of or would add.

mod layers;
mod manifest;
mod rules;
mod source;

use std::{fmt, fs, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::command::stdout;
use source::Source;

/// A breach of a rule.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Violation {
    file: String,
    /// From 1 on.
    line: usize,
    rule: Rule,
    detail: String,
}

/// What the code must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// A file of the observer uses only its own layer and those below.
    Layering,
    /// Pure layers do no IO and read no clock.
    Pure,
    /// `unsafe` stands only where the kernel's interface asks for it.
    Unsafe,
    /// Crates depend on each other one way.
    Dependencies,
    /// A file can be read in one go.
    Length,
    /// Lints are the workspace's.
    Lints,
    /// Nothing of one machine is in the repository.
    MachinePath,
    /// Nothing is left open.
    LeftOpen,
    /// What cannot fail says why.
    Unwrap,
    /// The file can be checked at all.
    Readable,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {:?}: {}", self.file, self.line, self.rule, self.detail)
    }
}

/// Checks the repository in the current folder and prints every violation.
pub(crate) fn run() -> Result<()> {
    let mut violations = Vec::new();
    for file in files()? {
        // Git lists a file that was deleted, but not yet from its index.
        if !Path::new(&file).is_file() {
            continue;
        }
        let bytes = fs::read(&file).with_context(|| file.clone())?;
        if let Ok(text) = std::str::from_utf8(&bytes) {
            violations.extend(check(&file, text));
        }
    }
    if violations.is_empty() {
        return Ok(());
    }
    violations.sort();
    for violation in &violations {
        println!("{violation}");
    }
    bail!("tidy found {} violations", violations.len())
}

fn files() -> Result<Vec<String>> {
    // A clone that another user made is safe to list.
    let mut git = Command::new("git");
    git.args(["-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed =
        stdout(&mut git).context("`git ls-files` failed: tidy needs git and a clone of the repository")?;
    Ok(listed.lines().map(str::to_owned).collect())
}

/// All rules on one file, named by its path in the repository.
fn check(file: &str, text: &str) -> Vec<Violation> {
    let mut found = rules::text(file, text);
    if file.ends_with("Cargo.toml") {
        found.extend(manifest::check(file, text));
    }
    if file.ends_with(".rs") {
        match Source::parse(text) {
            Ok(source) => {
                found.extend(rules::rust(file, &source));
                found.extend(layers::check(file, &source));
            }
            Err(detail) => {
                found.push(Violation { file: file.to_owned(), line: 1, rule: Rule::Readable, detail })
            }
        }
    }
    found
}

/// Whether a whole file is test code: the crate of the tests, or a module `tests` with a file of its own.
fn is_test_file(file: &str) -> bool {
    file.starts_with("tests/")
        || file.contains("/tests/")
        || file.ends_with("/tests.rs")
        || file.ends_with("/fixture.rs")
}

#[cfg(test)]
mod tests;
