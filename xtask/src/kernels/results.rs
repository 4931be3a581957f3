//! What the console of a virtual machine says about the rows. Pure.

use std::{fmt::Write as _, time::Duration};

/// Begins every line that the machine's own script prints.
pub(super) const MARK: &str = "@@sidescope";

/// One test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) program: String,
    pub(super) test: String,
    pub(super) passed: bool,
}

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    ByItself,
    /// It was stopped after the time it is given.
    TimedOut,
}

/// What became of one kernel.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// Seconds that each program took.
    pub(super) seconds: Vec<(String, u64)>,
    pub(super) console: String,
    pub(super) ended: Ended,
    pub(super) took: Duration,
}

/// Lines of the console that are shown when something failed.
const TAIL: usize = 60;

impl Row {
    /// All rows of the programs, and one that failed for each program that did not come to a good end.
    pub(super) fn all(console: &str, programs: &[&str]) -> Vec<Self> {
        let mut rows = Vec::new();
        for program in programs {
            let row =
                |test: &str, passed| Self { program: (*program).to_owned(), test: test.to_owned(), passed };
            let begin = format!("{MARK} begin {program}\n");
            let end = format!("{MARK} end {program} ");
            let said = console.split_once(&begin).map_or("", |(_, rest)| rest);
            let (said, exit) = said.split_once(&end).unwrap_or((said, ""));
            let before = rows.len();
            rows.extend(said.lines().filter_map(|line| {
                let (test, outcome) = line.strip_prefix("test ")?.split_once(" ... ")?;
                match outcome.split_whitespace().next()? {
                    "ok" => Some(row(test, true)),
                    "FAILED" => Some(row(test, false)),
                    _ => None,
                }
            }));
            let failed = rows[before..].iter().any(|row| !row.passed);
            let exit = exit.split_whitespace().next().unwrap_or("");
            if rows.len() == before {
                rows.push(row("(no test was run)", false));
            } else if exit != "0" && !failed {
                rows.push(row("(did not come to its end)", false));
            }
        }
        rows
    }
}

/// Seconds of the programs that came to an end, as their last lines have them.
pub(super) fn seconds(console: &str, programs: &[&str]) -> Vec<(String, u64)> {
    let of = |program: &&str| {
        let (_, end) = console.split_once(&format!("{MARK} end {program} "))?;
        let seconds = end.lines().next()?.split_whitespace().nth(1)?.parse().ok()?;
        Some(((*program).to_owned(), seconds))
    };
    programs.iter().filter_map(of).collect()
}

impl Report {
    pub(super) fn passed(&self) -> bool {
        self.ended == Ended::ByItself && self.rows.iter().all(|row| row.passed)
    }

    /// One line per row; what the console said, where one failed.
    pub(super) fn text(&self, release: &str) -> String {
        let mut text = format!("    kernel {release}, {:.0} s", self.took.as_secs_f64());
        // Writing to a String does not fail.
        for (number, (program, seconds)) in self.seconds.iter().enumerate() {
            let before = if number == 0 { ": " } else { ", " };
            let _ = write!(text, "{before}{program} {seconds} s");
        }
        text.push('\n');
        for row in &self.rows {
            let word = if row.passed { "ok" } else { "FAILED" };
            let _ = writeln!(text, "      {word:<6} {}::{}", row.program, row.test);
        }
        if self.passed() {
            return text;
        }
        if self.ended == Ended::TimedOut {
            text.push_str("      FAILED it hung and was stopped\n");
        }
        text.push_str("      the end of its console:\n");
        let lines: Vec<&str> = self.console.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            let _ = writeln!(text, "      | {line}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(lines: &[&str]) -> String {
        lines.iter().map(|line| format!("{line}\n")).collect::<String>().replace("@@", MARK)
    }

    fn said(rows: &[Row]) -> Vec<(&str, bool)> {
        rows.iter().map(|row| (row.test.as_str(), row.passed)).collect()
    }

    #[test]
    fn each_test_is_a_row_of_its_program() {
        let text = console(&[
            "@@ begin one",
            "running 3 tests",
            "test a ... ok",
            "test b::c ... ok",
            "test d ... ignored, why",
            "@@ end one 0 12",
            "@@ begin two",
            "test a ... FAILED",
            "@@ end two 101 3",
        ]);
        assert_eq!(said(&Row::all(&text, &["one"])), [("a", true), ("b::c", true)]);
        assert_eq!(said(&Row::all(&text, &["two"])), [("a", false)]);
        let times = [("one".to_owned(), 12), ("two".to_owned(), 3)];
        assert_eq!(seconds(&text, &["one", "two", "three"]), times);
    }

    #[test]
    fn a_program_that_does_not_end_well_failed() {
        let hung = console(&["@@ begin one", "test a ... ok"]);
        assert_eq!(said(&Row::all(&hung, &["one"])), [("a", true), ("(did not come to its end)", false)]);
        let killed = console(&["@@ begin one", "test a ... ok", "@@ end one 137"]);
        assert_eq!(said(&Row::all(&killed, &["one"])), [("a", true), ("(did not come to its end)", false)]);
        assert_eq!(said(&Row::all("Kernel panic", &["one"])), [("(no test was run)", false)]);
    }

    #[test]
    fn a_failure_shows_the_end_of_the_console() {
        let report = |ended| Report {
            rows: Vec::new(),
            seconds: vec![("a".to_owned(), 3), ("b".to_owned(), 4)],
            console: "the panic\n".to_owned(),
            ended,
            took: Duration::from_secs(7),
        };
        assert_eq!(report(Ended::ByItself).text("6.1.0"), "    kernel 6.1.0, 7 s: a 3 s, b 4 s\n");
        assert!(report(Ended::TimedOut).text("6.1.0").ends_with("| the panic\n"));
        assert!(!report(Ended::TimedOut).passed());
    }
}
