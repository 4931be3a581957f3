//! Rules that need only one file.

use super::{Rule, Violation, is_test_file, source::Source};

/// Lines outside tests that a file may have.
const MAX_LINES: usize = 400;

/// Where `unsafe` may stand: the types shared with the kernel, the kernel programs, and what loads them.
const UNSAFE: [&str; 5] =
    ["common/", "observer-ebpf/", "tests/ebpf/", "observer/src/probes.rs", "observer/src/probes/"];

/// Put together here, so that this file does not break its own rule.
const MACHINE_PATHS: [&str; 2] = [concat!("/ro", "ot/"), concat!("/wo", "rk/")];
const LEFT_OPEN: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")];

/// Endings of files that people write code in.
const CODE: [&str; 6] = [".rs", ".sh", ".toml", ".yaml", ".yml", ".tpl"];

/// Rules on the text of any file.
pub(super) fn text(file: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    if file == "LICENSE" || file.ends_with(".lock") {
        return found;
    }
    let is_code = CODE.iter().any(|ending| file.ends_with(ending));
    for (index, line) in text.lines().enumerate() {
        let mut violation = |rule, detail| {
            found.push(Violation { file: file.to_owned(), line: index + 1, rule, detail });
        };
        if let Some(path) = MACHINE_PATHS.iter().find(|path| line.contains(*path)) {
            violation(Rule::MachinePath, format!("names `{path}`"));
        }
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(mark) = words.find(|word| is_code && LEFT_OPEN.contains(word)) {
            violation(Rule::LeftOpen, format!("`{mark}`: do it, or open an issue"));
        }
    }
    found
}

/// Rules on the words of a Rust file.
pub(super) fn rust(file: &str, source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut violation = |line, rule, detail: String| {
        found.push(Violation { file: file.to_owned(), line, rule, detail });
    };
    if source.lines > MAX_LINES && !is_test_file(file) {
        let detail = format!(
            "{} lines without its tests, {MAX_LINES} at most: split it by what it does",
            source.lines
        );
        violation(1, Rule::Length, detail);
    }
    let may_be_unsafe = UNSAFE.iter().any(|place| file.starts_with(place));
    for word in &source.words {
        match word.text.as_str() {
            "unsafe" if !may_be_unsafe => {
                violation(word.line, Rule::Unsafe, format!("`unsafe` may stand only in {UNSAFE:?}"));
            }
            "unwrap" if word.is_method_call && !is_test_file(file) => {
                violation(word.line, Rule::Unwrap, "use `expect` and say why it cannot fail".to_owned());
            }
            name @ ("todo" | "unimplemented") if word.is_macro => {
                violation(word.line, Rule::LeftOpen, format!("`{name}!`: do it, or open an issue"));
            }
            _ => {}
        }
    }
    found
}
