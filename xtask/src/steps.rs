//! Steps that are announced, timed and summed up; the first that fails ends the run.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(&'static str, Outcome, Duration)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
}

impl Steps {
    /// Does one step.
    pub(crate) fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("==> {name}");
        let start = Instant::now();
        let result = work();
        let took = start.elapsed();
        let outcome = if result.is_ok() { Outcome::Passed } else { Outcome::Failed };
        println!("    {name}: {}, {:.1} s", outcome.word(), took.as_secs_f64());
        self.done.push((name, outcome, took));
        result.with_context(|| format!("step `{name}`"))
    }

    /// One line per step that was begun.
    pub(crate) fn summary(&self) -> String {
        let mut table = String::from("\nsummary\n");
        for (name, outcome, took) in &self.done {
            // Writing to a String does not fail.
            let _ = writeln!(table, "  {:<32} {:<6} {:>7.1} s", name, outcome.word(), took.as_secs_f64());
        }
        table
    }
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn the_summary_names_every_step_and_the_one_that_failed() {
        let mut steps = Steps::default();
        steps.step("good", || Ok(())).unwrap();
        let error = steps.step("bad", || Err(anyhow!("broken"))).unwrap_err();
        assert_eq!(format!("{error:#}"), "step `bad`: broken");
        let summary = steps.summary();
        let words: Vec<Vec<&str>> =
            summary.lines().skip(2).map(|line| line.split_whitespace().take(2).collect()).collect();
        assert_eq!(words, [["good", "ok"], ["bad", "FAILED"]]);
    }
}
