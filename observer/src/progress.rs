//! What a person sees while `observe` runs: one live line on a terminal, a log line now and then elsewhere.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use tracing::info;

/// Time between two log lines.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The figures of one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Time since the programs were attached.
    pub elapsed: Duration,
    /// Connects of workloads.
    pub connections: u64,
    /// Distinct edges.
    pub edges: usize,
    /// Distinct hosts, per edge.
    pub hosts: usize,
    /// Edges without a source or destination in the mesh.
    pub unresolved: usize,
}

/// Where the figures go.
pub enum Progress {
    /// A line on the terminal that is rewritten; it goes away when this is dropped.
    Line(ProgressBar),
    /// The log, and when it was written to.
    Log(Instant),
}

impl Progress {
    /// Chooses by whether standard error is a terminal.
    pub fn start() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Log(Instant::now());
        }
        let style = ProgressStyle::with_template("{spinner} {msg}").expect("a constant template");
        Self::Line(ProgressBar::new_spinner().with_style(style))
    }

    /// Shows the figures, which are only asked for if it is time to.
    ///
    /// # Errors
    /// Those of `snapshot`.
    pub fn show<E>(&mut self, snapshot: impl FnOnce() -> Result<Snapshot, E>) -> Result<(), E> {
        match self {
            Self::Line(bar) => {
                let Snapshot { elapsed, connections, edges, hosts, unresolved } = snapshot()?;
                let elapsed = humantime::format_duration(Duration::from_secs(elapsed.as_secs()));
                bar.set_message(format!(
                    "{elapsed}  {connections} connections  {edges} edges  {hosts} hosts  {unresolved} unresolved"
                ));
                bar.tick();
            }
            Self::Log(last) if last.elapsed() >= LOG_EVERY => {
                *last = Instant::now();
                let Snapshot { elapsed, connections, edges, hosts, unresolved } = snapshot()?;
                info!(elapsed_s = elapsed.as_secs(), connections, edges, hosts, unresolved, "watching");
            }
            Self::Log(_) => {}
        }
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Line(bar) = self {
            bar.finish_and_clear();
        }
    }
}
