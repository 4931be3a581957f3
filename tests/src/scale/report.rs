//! The results as a table for people and as JSON for programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::audit::{Requests, sums};
use super::truth::Unresolved;

/// One figure, and what it may be.
pub(super) struct Figure {
    /// Its name in `scale.json`.
    pub(super) name: &'static str,
    /// What it is, for people.
    pub(super) what: &'static str,
    pub(super) value: f64,
    pub(super) target: Target,
}

#[derive(Clone, Copy)]
pub(super) enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// It only explains others.
    None,
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
            Self::None => true,
        }
    }
}

/// One part of the run, and what the processes took of the machine meanwhile.
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) took: Duration,
    /// CPU time by process.
    pub(super) cpu: BTreeMap<&'static str, Duration>,
    /// What the aggregator asked of the API server.
    pub(super) requests: Requests,
    /// Memory of the aggregator at the end of it, and the most that it had since its start.
    pub(super) rss_mib: Option<(f64, f64)>,
}

pub(super) struct Report {
    /// Of the full size.
    pub(super) scale: f64,
    pub(super) figures: Vec<Figure>,
    pub(super) phases: Vec<Phase>,
    pub(super) wrong: Vec<String>,
    pub(super) missing: Vec<String>,
    pub(super) unresolved: Vec<Unresolved>,
}

/// How many of a list are printed; the JSON has all.
const PRINTED: usize = 20;

impl Report {
    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "scale": self.scale,
            "phases": self.phases.iter().map(Phase::json).collect::<Vec<_>>(),
            "wrong_listed": self.wrong,
            "missing_listed": self.missing,
            "unresolved_listed": self.unresolved.iter().map(shown).collect::<Vec<_>>(),
        });
        for figure in &self.figures {
            json[figure.name] = json!(figure.value);
        }
        json
    }

    pub(super) fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        if self.scale < 1.0 {
            writeln!(out, "at {} of the full size: the targets mean the full size only", self.scale)?;
        }
        for figure in &self.figures {
            let Figure { what, value, target, .. } = figure;
            write!(out, "{what:<66} {:>10}", number(*value))?;
            match target {
                Target::AtLeast(least) => write!(out, "  at least {:<8}", number(*least))?,
                Target::AtMost(most) => write!(out, "  at most  {:<8}", number(*most))?,
                Target::None => {}
            }
            let verdict = match (target, target.is_met(*value)) {
                (Target::None, _) => "",
                (_, true) => "  met",
                (_, false) => "  MISSED",
            };
            writeln!(out, "{verdict}")?;
        }
        writeln!(
            out,
            "\n{:<12} {:>6}  CPU in % of one, by process; requests of the aggregator a second",
            "", "s"
        )?;
        for phase in &self.phases {
            phase.write(out)?;
        }
        list(out, "edges that nobody made", &self.wrong)?;
        list(out, "edges that are in no record", &self.missing)?;
        list(
            out,
            "connects of which it cannot be told what they were",
            &self.unresolved.iter().map(shown).collect::<Vec<_>>(),
        )
    }
}

impl Phase {
    fn json(&self) -> Value {
        let (requests, writes) = sums(&self.requests);
        let seconds = self.took.as_secs_f64();
        json!({
            "name": self.name,
            "seconds": seconds,
            "cpu_seconds": self.cpu.iter().map(|(of, time)| (*of, time.as_secs_f64())).collect::<BTreeMap<_, _>>(),
            "api_requests_per_s": requests as f64 / seconds,
            "api_writes_per_s": writes as f64 / seconds,
            "api_requests": self.requests.iter().map(|((verb, resource), count)| (format!("{verb} {resource}"), *count)).collect::<BTreeMap<_, _>>(),
            "rss_mib": self.rss_mib.map(|(now, _)| now),
            "peak_rss_mib": self.rss_mib.map(|(_, peak)| peak),
        })
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(out, "{:<12} {seconds:>6.1} ", self.name)?;
        for (of, time) in &self.cpu {
            write!(out, " {of} {:.0}", time.as_secs_f64() / seconds * 100.0)?;
        }
        if let Some((now, peak)) = self.rss_mib {
            write!(out, "; RSS {now:.0} MiB, at most {peak:.0}")?;
        }
        let (all, writes) = sums(&self.requests);
        if all > 0 {
            write!(
                out,
                "; {:.1} a second, {:.2} of them writes:",
                all as f64 / seconds,
                writes as f64 / seconds
            )?;
            let mut largest: Vec<_> = self.requests.iter().collect();
            largest.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
            for ((verb, resource), count) in largest.into_iter().take(4) {
                write!(out, " {count} {verb} {resource}")?;
            }
        }
        writeln!(out)
    }
}

fn number(value: f64) -> String {
    match value {
        value if value.fract() == 0.0 || value >= 1_000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value if value >= 0.1 => format!("{value:.2}"),
        value => format!("{value:.5}"),
    }
}

fn list(out: &mut String, what: &str, items: &[String]) -> std::fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{what}: {}", items.len())?;
    for item in items.iter().take(PRINTED) {
        writeln!(out, "  {item}")?;
    }
    if items.len() > PRINTED {
        writeln!(out, "  and {} more, see the JSON", items.len() - PRINTED)?;
    }
    Ok(())
}

fn shown(one: &Unresolved) -> String {
    let Unresolved { from, address, port, reason, connects } = one;
    let from = match from {
        Ok(workload) => workload.to_string(),
        Err(address) => format!("the pod with {address}"),
    };
    format!("{from} to {address}:{port}: {reason}, {connects} connects")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_beyond_its_target_is_missed() {
        let figure = |value, target| Figure { name: "rss_mib", what: "RSS", value, target };
        let report = |figure| {
            let figures = vec![figure];
            let (wrong, missing) = (vec!["a".to_owned(); 25], Vec::new());
            Report { scale: 1.0, figures, phases: Vec::new(), wrong, missing, unresolved: Vec::new() }
        };
        for (value, target, verdict) in [
            (256.0, Target::AtMost(256.0), "  met"),
            (256.1, Target::AtMost(256.0), "  MISSED"),
            (4_999.0, Target::AtLeast(5_000.0), "  MISSED"),
            (1.0, Target::None, ""),
        ] {
            let table = report(figure(value, target)).table();
            assert!(table.lines().next().unwrap().ends_with(verdict), "{table}");
            assert!(table.contains("and 5 more"), "{table}");
        }
        assert_eq!(report(figure(200.5, Target::None)).json()["rss_mib"], 200.5);
    }
}
