//! The records of all workloads, and which of them have to be written. Pure: `store` does what is decided here.
//!
//! What is new must be durable before it is acknowledged, so it is written at once; what has only become more recent waits for the
//! workload's minute of the hour, which spreads the writes of a cluster in which nothing new happens. A record changes on while it
//! is being written: each new thing gets a number, and what was written is durable up to the number that the record had then.

mod merge;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

pub use merge::{Account, Change, Seen, note};
pub use write::{Outcome, What, Write};

use crate::model::dependencies::{Coverage, MAX_DESTINATIONS, Record};
use crate::model::names::WorkloadRef;
use crate::model::stamp::Timestamp;
use crate::model::time::Time;

/// How often a record is written that has only become more recent.
pub const REFRESH_MS: i64 = 3_600_000;
/// Longest wait after writes that failed.
const MAX_BACKOFF_MS: i64 = 30_000;
/// Wait after a write that the API server does not take as it is.
const REFUSED_MS: i64 = 300_000;

/// What the ledger has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Most services of one workload, at most [`MAX_DESTINATIONS`].
    pub max_destinations: usize,
    /// How long the record of a workload is kept that is gone.
    pub retention_ms: i64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_destinations: MAX_DESTINATIONS, retention_ms: 30 * 86_400_000 }
    }
}

/// Number of something new, in the order in which all of it came.
pub type Version = u64;

/// What an account has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// To the record.
    pub change: Change,
    /// What it says is durable when this is; `None`: it is.
    pub wait_for: Option<Version>,
}

/// The records of all workloads.
#[derive(Debug, Default)]
pub struct Ledger {
    settings: Settings,
    entries: HashMap<Arc<WorkloadRef>, Entry>,
    /// When which is to be written. Those that are being written are not in it.
    schedule: BTreeSet<(Time, Arc<WorkloadRef>)>,
    last_version: Version,
    in_flight: usize,
}

#[derive(Debug, Default)]
struct Entry {
    record: Record,
    resource_version: Option<String>,
    /// Number of the last new thing in it.
    version: Version,
    durable: Version,
    /// What [`Self::version`] was when the write began that goes on.
    writing: Option<Version>,
    /// It is more recent than what was written.
    is_stale: bool,
    /// When it is to be written; as in the schedule.
    due: Option<Time>,
    /// Writes that failed, one after the other.
    failed: u32,
    is_refused: bool,
    to_delete: bool,
}

impl Entry {
    fn is_durable(&self, version: Version) -> bool {
        // Nobody is served by waiting for what cannot be written.
        self.durable >= version || self.is_refused
    }
}

impl Ledger {
    /// Without any record.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Takes over what is stored. What is known already stays.
    pub fn load(&mut self, workload: WorkloadRef, record: Record, resource_version: String) {
        let max_destinations = self.settings.max_destinations;
        let entry = self.entries.entry(Arc::new(workload)).or_default();
        if entry.record == Record::default() {
            entry.record = record;
        } else {
            entry.record.merge(&record, max_destinations);
        }
        entry.resource_version = Some(resource_version);
    }

    /// Adds what attributed flows of a workload say.
    pub fn merge(
        &mut self,
        workload: &WorkloadRef,
        account: Account<'_>,
        seen: &Seen<'_>,
        now: Time,
    ) -> Merged {
        let max_destinations = self.settings.max_destinations;
        self.change(workload, now, |record| note(record, account, seen, max_destinations))
    }

    /// Records that something of the workload's pods was lost.
    pub fn lost(&mut self, workload: &WorkloadRef, cause: &str, last: Time, now: Time) -> Merged {
        self.change(workload, now, |record| record.add_loss(cause, Timestamp::ceil(last)))
    }

    /// Records through which time the workload was watched. Its first record is new, whatever it says.
    pub fn cover(&mut self, workload: &WorkloadRef, coverage: Coverage, now: Time) -> Merged {
        self.change(workload, now, |record| {
            if record.coverage == coverage {
                return Change::Nothing;
            }
            let is_first = record.coverage.through.is_none();
            record.coverage = coverage;
            if is_first {
                // What was seen before anything was known of the coverage assumed the worst.
                for port in record.dependencies.iter_mut().flat_map(|dependency| &mut dependency.ports) {
                    let most = coverage.covered_at_most(port.last_seen);
                    port.covered_when_last_seen = port.covered_when_last_seen.min(most);
                }
            }
            Change::Refreshed
        })
    }

    /// Records the verdict on the workload, cut where it is too long. Written when the record is.
    pub fn judge(&mut self, workload: &WorkloadRef, verdict: &str, now: Time) -> Merged {
        let most = crate::model::dependencies::MAX_VERDICT;
        let verdict = &verdict[..verdict.floor_char_boundary(most)];
        self.change(workload, now, |record| {
            if record.verdict == verdict {
                return Change::Nothing;
            }
            verdict.clone_into(&mut record.verdict);
            Change::Refreshed
        })
    }

    /// Whether anything is left of the workload that could call: pods, or what makes some. Of one without a record nothing is kept.
    pub fn set_present(&mut self, workload: &WorkloadRef, is_present: bool, now: Time) {
        let Some(entry) = self.entries.get_mut(workload) else { return };
        if is_present == entry.record.gone.is_none() {
            return;
        }
        entry.record.gone = (!is_present).then(|| Timestamp::floor(now));
        entry.to_delete &= !is_present;
        entry.is_stale = true;
        let due = next_refresh(workload, now);
        self.schedule_by(workload, due);
    }

    /// Has the records removed of workloads that are gone for long enough.
    pub fn retire(&mut self, now: Time) {
        let retention = self.settings.retention_ms;
        let mut retired = Vec::new();
        for (workload, entry) in &mut self.entries {
            let is_over = entry.record.gone.is_some_and(|gone| now.since(gone.time()) > retention);
            if is_over && !entry.to_delete {
                entry.to_delete = true;
                retired.push(Arc::clone(workload));
            }
        }
        for workload in retired {
            self.schedule_by(&workload, now);
        }
    }

    /// What is to be written now, so that no more than `most` writes go on at the same time. For each, [`Self::done`] must be called.
    pub fn due(&mut self, now: Time, most: usize) -> Vec<Write> {
        let mut writes = Vec::new();
        while self.in_flight < most {
            if self.schedule.first().is_none_or(|(due, _)| *due > now) {
                break;
            }
            let Some((_, workload)) = self.schedule.pop_first() else { break };
            let Some(entry) = self.entries.get_mut(&workload) else { continue };
            entry.due = None;
            entry.writing = Some(entry.version);
            entry.is_stale = false;
            self.in_flight += 1;
            let resource_version = entry.resource_version.clone();
            let what = if entry.to_delete { What::Delete } else { What::Put(Box::new(entry.record.clone())) };
            writes.push(Write { workload, resource_version, what });
        }
        writes
    }

    /// When the next write is due, if any is.
    pub fn next_due(&self) -> Option<Time> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// A write has ended.
    pub fn done(&mut self, workload: &WorkloadRef, outcome: Outcome, now: Time) {
        let max_destinations = self.settings.max_destinations;
        let Some(entry) = self.entries.get_mut(workload) else { return };
        let Some(writing) = entry.writing.take() else { return };
        self.in_flight -= 1;
        if !matches!(outcome, Outcome::Failed | Outcome::Refused) {
            (entry.failed, entry.is_refused) = (0, false);
        }
        let again = match outcome {
            Outcome::Written(resource_version) => {
                entry.resource_version = Some(resource_version);
                entry.durable = writing;
                (entry.version > entry.durable || entry.to_delete).then_some(now)
            }
            Outcome::Deleted => {
                entry.resource_version = None;
                // A workload that is back meanwhile needs its record again.
                if entry.to_delete && entry.version == writing {
                    self.forget(workload);
                    return;
                }
                Some(now)
            }
            Outcome::Conflict(stored) => {
                entry.resource_version = stored.as_ref().map(|(_, version)| version.clone());
                if let Some((record, _)) = stored {
                    entry.record.merge(&record, max_destinations);
                }
                Some(now)
            }
            Outcome::Failed => {
                entry.failed += 1;
                // Not all at the same moment, once the API server is back.
                let longest = (100i64 << entry.failed.min(10)).min(MAX_BACKOFF_MS);
                let part = phase(workload).rem_euclid(longest / 2);
                Some(now.plus(longest / 2 + part))
            }
            Outcome::Refused => {
                (entry.failed, entry.is_refused) = (1, true);
                Some(now.plus(REFUSED_MS))
            }
            Outcome::NoNamespace => {
                self.forget(workload);
                return;
            }
        };
        let again = again.or_else(|| entry.is_stale.then(|| next_refresh(workload, now)));
        if let Some(due) = again {
            self.schedule_by(workload, due);
        }
    }

    /// Whether what got this number in this workload's record is durable. It is also where the record is gone: with its namespace.
    pub fn is_durable(&self, workload: &WorkloadRef, version: Version) -> bool {
        self.entries.get(workload).is_none_or(|entry| entry.is_durable(version))
    }

    /// The record of a workload.
    pub fn record(&self, workload: &WorkloadRef) -> Option<&Record> {
        self.entries.get(workload).map(|entry| &entry.record)
    }

    /// All records, in no order.
    pub fn records(&self) -> impl Iterator<Item = (&WorkloadRef, &Record)> {
        self.entries.iter().map(|(workload, entry)| (&**workload, &entry.record))
    }

    /// How many records hold something new that is not durable, those that the API server refuses among them.
    pub fn not_durable(&self) -> usize {
        self.entries.values().filter(|entry| entry.version > entry.durable).count()
    }

    /// How many writes go on.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn change(
        &mut self,
        workload: &WorkloadRef,
        now: Time,
        change: impl FnOnce(&mut Record) -> Change,
    ) -> Merged {
        let (entry, is_new) = match self.entries.get_mut(workload) {
            Some(entry) => (entry, false),
            None => (self.entries.entry(Arc::new(workload.clone())).or_default(), true),
        };
        let mut change = change(&mut entry.record);
        if is_new {
            change = Change::New;
        }
        let due = match change {
            Change::Nothing => None,
            Change::Refreshed => {
                // Once it is scheduled it stays so.
                let is_first = !entry.is_stale;
                entry.is_stale = true;
                is_first.then(|| next_refresh(workload, now))
            }
            Change::New => {
                self.last_version += 1;
                entry.version = self.last_version;
                // It is back, as whatever calls is there.
                entry.to_delete = false;
                (entry.failed == 0).then_some(now)
            }
        };
        let wait_for = (!entry.is_durable(entry.version)).then_some(entry.version);
        if let Some(due) = due {
            self.schedule_by(workload, due);
        }
        Merged { change, wait_for }
    }

    /// Schedules a write no later than `due`, unless one goes on.
    fn schedule_by(&mut self, workload: &WorkloadRef, due: Time) {
        let Some((workload, _)) = self.entries.get_key_value(workload) else { return };
        let workload = Arc::clone(workload);
        let Some(entry) = self.entries.get_mut(&workload) else { return };
        if entry.writing.is_some() || entry.due.is_some_and(|known| known <= due) {
            return;
        }
        if let Some(known) = entry.due.replace(due) {
            let scheduled = (known, workload);
            self.schedule.remove(&scheduled);
            self.schedule.insert((due, scheduled.1));
        } else {
            self.schedule.insert((due, workload));
        }
    }

    fn forget(&mut self, workload: &WorkloadRef) {
        if let Some((workload, entry)) = self.entries.remove_entry(workload) {
            self.in_flight -= usize::from(entry.writing.is_some());
            if let Some(due) = entry.due {
                self.schedule.remove(&(due, workload));
            }
        }
    }
}

/// Where in the hour a workload's record is written.
fn phase(workload: &WorkloadRef) -> i64 {
    let mut hasher = DefaultHasher::new();
    workload.hash(&mut hasher);
    (hasher.finish() >> 1).cast_signed() % REFRESH_MS
}

fn next_refresh(workload: &WorkloadRef, now: Time) -> Time {
    let since = (now.0 - phase(workload)).rem_euclid(REFRESH_MS);
    now.plus(REFRESH_MS - since)
}

#[cfg(test)]
mod tests;
