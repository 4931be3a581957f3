//! The results as a table for people and as JSON for programs.

use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};
use sidescope::probes::RunTime;
use sidescope_common::MAX_OLDER;

use crate::existing::Figures;

use super::load::Work;
use super::stats::Ratio;
use super::wire::Form;

/// All that was measured.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    pub(super) costs: Vec<Cost>,
    /// Instructions that the verifier walked, by program.
    pub(super) verified: Vec<(&'static str, Option<u32>)>,
    pub(super) edges: Vec<Edges>,
    pub(super) hosts: Vec<Hosts>,
    pub(super) existing: Figures,
    pub(super) agent: Agent,
}

/// One ratio.
pub(super) struct Row {
    pub(super) work: Work,
    pub(super) ratio: Ratio,
    /// The same of programs that do nothing on the same hooks.
    pub(super) floor: Ratio,
    pub(super) off_ns: f64,
    pub(super) on_ns: f64,
    /// How much blocks without programs differ from each other.
    pub(super) spread: f64,
}

/// Time in the programs during one work.
pub(super) struct Cost {
    pub(super) work: Work,
    pub(super) operations: u64,
    pub(super) programs: Vec<RunTime>,
    /// Nanoseconds that the kernel counts for a run of a program that does nothing.
    pub(super) count_ns: f64,
}

/// Nanoseconds in the programs, without what the count itself takes.
#[derive(Clone, Copy, Serialize)]
pub(super) struct Ns {
    /// All programs, for a connect+accept+close of a repeated edge that is only counted, its packets too.
    pub(super) connect: f64,
    /// The same where the connect gets a search for hosts.
    pub(super) connect_searched: f64,
    /// For a packet of a connection whose host search has finished, at both ends.
    pub(super) packet: f64,
}

#[derive(Serialize)]
pub(super) struct Edges {
    pub(super) distinct: u32,
    pub(super) ring_bytes: u32,
    pub(super) set_mib: f64,
    pub(super) made: u64,
    pub(super) found: u64,
    pub(super) counted_lost: u64,
    #[serde(skip)]
    pub(super) per_second: f64,
}

pub(super) struct Hosts {
    pub(super) form: Form,
    pub(super) ring_bytes: u32,
    pub(super) made: u64,
    pub(super) found: u64,
    pub(super) counted_unknown: u64,
}

pub(super) struct Agent {
    pub(super) rss_mib: f64,
    pub(super) maps_mib: f64,
    pub(super) cpu_percent: f64,
    /// What the generator got done while it was measured.
    pub(super) connects_per_second: f64,
    /// Connections from before it of which the programs are told.
    pub(super) older: usize,
}

/// Ratios of the same kind: their name, their rows, and what the upper bound may be.
const RATIOS: [(&str, &[Work], f64); 3] = [
    ("connect_ratio", &[Work::ConnectRepeated, Work::ConnectSearched, Work::ConnectNew], 1.02),
    ("rtt_ratio", &[Work::RoundTripSearched, Work::RoundTripFinished], 1.01),
    ("keepalive_ratio", &[Work::RequestSearched, Work::RequestFinished], 1.01),
];

impl Report {
    fn rows_of(&self, works: &[Work]) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| works.contains(&row.work))
    }

    /// The fields of `kernel.json`. A ratio's own numbers are those of its worst row.
    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "program_ns": self.program_ns(),
            "edges": self.edges,
            "hosts": self.hosts.iter().map(|row| json!({
                "kind": format!("{}, ring {}", row.form.name(), row.ring_bytes),
                "made": row.made, "found": row.found, "counted_unknown": row.counted_unknown,
            })).collect::<Vec<_>>(),
            "existing": self.existing,
            "rss_mib": self.agent.rss_mib,
            "maps_mib": self.agent.maps_mib,
            "cpu_percent": self.agent.cpu_percent,
        });
        for (name, works, _) in RATIOS {
            let worst = self.rows_of(works).max_by(|a, b| a.ratio.high.total_cmp(&b.ratio.high));
            let mut ratio = json!(worst.map(|row| row.ratio));
            let named = |row: &Row| {
                let mut json = json!(row.ratio);
                json["name"] = json!(row.work.name());
                json["floor"] = json!(row.floor);
                json
            };
            ratio["rows"] = self.rows_of(works).map(named).collect();
            json[name] = ratio;
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
        writeln!(
            out,
            "with the programs / without, DNS hook attached throughout; 95% interval net of the control; floor: programs that do \
             nothing on the same hooks / without\n\
             counted: the edge has had 256 connects at once and another one in this tick of the kernel's clock; this one is only \
             counted. searched: it has not, so the socket gets a search for hosts"
        )?;
        writeln!(
            out,
            "{:<38} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9} {:>7}  target",
            "", "median", "low", "high", "control", "floor", "off ns", "on ns", "spread"
        )?;
        for (name, works, target) in RATIOS {
            for Row { work, ratio, floor, off_ns, on_ns, spread } in self.rows_of(works) {
                let name = format!("{}: {}", name.trim_end_matches("_ratio"), work.name());
                let Ratio { median, low, high, control } = ratio;
                writeln!(
                    out,
                    "{name:<38} {median:>8.4} {low:>8.4} {high:>8.4} {control:>8.4} {:>8.4} {off_ns:>9.0} {on_ns:>9.0} {:>6.1}%  \
                     high <= {target}: {}",
                    floor.median,
                    spread * 100.0,
                    verdict(*high <= target)
                )?;
            }
        }
        writeln!(
            out,
            "\ntime in the programs: as the kernel counts it for a run, and for an operation and a packet without the count itself"
        )?;
        for cost in &self.costs {
            let name =
                RATIOS.iter().find(|(_, works, _)| works.contains(&cost.work)).map_or("", |(name, ..)| name);
            let (name, total) = (name.trim_end_matches("_ratio"), cost.per_operation());
            writeln!(
                out,
                "  {name}: {}, {total:.0} ns an operation, {:.0} a packet; the count of a run takes {:.0}",
                cost.work.name(),
                cost.per_packet(),
                cost.count_ns
            )?;
            for program in &cost.programs {
                let (runs, time) = (program.runs as f64, program.time.as_nanos() as f64);
                let each = runs / cost.operations as f64;
                writeln!(
                    out,
                    "    {:<22} {:>6.0} ns a run, {each:>5.2} runs an operation",
                    program.program,
                    time / runs
                )?;
            }
        }
        let ns = self.program_ns();
        for (name, value, target) in [
            ("a connect, repeated edge, counted, with its packets", ns.connect, 500.0),
            ("a connect, repeated edge, searched, with its packets", ns.connect_searched, 500.0),
            ("a packet, host search finished", ns.packet, 100.0),
        ] {
            writeln!(out, "  {name}: {value:.0} ns, target {target:.0}: {}", verdict(value <= target))?;
        }
        writeln!(out, "\ninstructions that the verifier walked, of 1,000,000 at most")?;
        for (program, count) in &self.verified {
            writeln!(
                out,
                "  {program:<22} {}",
                count.map_or("not told".to_owned(), |count| count.to_string())
            )?;
        }
        writeln!(
            out,
            "\nedges    distinct      ring  set MiB      made     found  counted lost  connects/s"
        )?;
        for row in &self.edges {
            let Edges { distinct, ring_bytes, set_mib, made, found, counted_lost, per_second } = row;
            writeln!(
                out,
                "        {distinct:>9} {ring_bytes:>9} {set_mib:>8.1} {made:>9} {found:>9} {counted_lost:>13} {per_second:>11.0}  {}",
                verdict(found + counted_lost == *made)
            )?;
        }
        writeln!(out, "\nhosts                    ring      made     found  counted unknown")?;
        for Hosts { form, ring_bytes, made, found, counted_unknown } in &self.hosts {
            writeln!(
                out,
                "  {:<18} {ring_bytes:>9} {made:>9} {found:>9} {counted_unknown:>16}  {}",
                form.name(),
                verdict(found + counted_unknown == *made)
            )?;
        }
        let Figures { made, found, ms } = self.existing;
        writeln!(
            out,
            "\nconnections that were open before, in 200 namespaces: {made} made, {found} found in {ms:.0} ms, target all in 2000: {}",
            verdict(found == made && ms <= 2000.0)
        )?;
        let Agent { rss_mib, maps_mib, cpu_percent, connects_per_second, older } = self.agent;
        writeln!(
            out,
            "\n`sidescope agent` with 10,000 edges and {older} connections from before it (room for {MAX_OLDER}), while \
             {connects_per_second:.0} repeated connects a second passed"
        )?;
        for (name, value, target) in
            [("RSS MiB", rss_mib, 30.0), ("maps MiB", maps_mib, 8.0), ("CPU %", cpu_percent, 1.0)]
        {
            writeln!(out, "  {name:<9} {value:>7.2}, target {target}: {}", verdict(value <= target))?;
        }
        Ok(())
    }
}

fn verdict(is_met: bool) -> &'static str {
    if is_met { "met" } else { "MISSED" }
}
