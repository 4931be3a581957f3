//! From when on pods are watched: it is kept beside the pins, so that an agent knows it of programs that another one has attached.

use std::path::Path;

use aya::maps::{Array, MapData};

use super::other::pinned;
use super::{ProbeError, Probes, map_error, now_ns, typed};

/// Array of `u64`, by place. No program uses it.
pub(super) const TIMES: &str = "TIMES";
const ATTACHED: u32 = 0;
const NEWEST: u32 = 1;
const LISTED: u32 = 2;
const TOLD: u32 = 3;
const PLACES: u32 = 4;

/// From when on pods are watched. Nanoseconds of CLOCK_MONOTONIC, which begins anew when the machine does, and so do pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// The programs are on their cgroup since then.
    pub attached_ns: u64,
    /// No cgroup that was there then has a larger number.
    pub newest_cgroup: u64,
    /// All connections that are older had been listed by then; 0 if they were not.
    pub listed_ns: u64,
    /// Agents have told all up to then; 0 if none has told anything.
    pub told_ns: u64,
}

impl Times {
    /// What holds of programs that go on where others have ended, which were attached until then.
    fn after(self, earlier: Self) -> Self {
        if earlier.attached_ns >= self.attached_ns {
            return self;
        }
        let listed_ns = if self.listed_ns > 0 { self.listed_ns } else { earlier.listed_ns };
        Self { listed_ns, told_ns: self.told_ns.max(earlier.told_ns), ..earlier }
    }
}

/// Makes the map for programs that have just been attached. As long as nobody has said which cgroups there were, it may have been any.
pub(super) fn make(dir: &Path) -> Result<(), ProbeError> {
    let mut map: Array<MapData, u64> = Array::create(PLACES, 0).map_err(map_error(TIMES))?;
    for (place, value) in [(ATTACHED, now_ns()), (NEWEST, u64::MAX), (LISTED, 0), (TOLD, 0)] {
        map.set(place, value, 0).map_err(map_error(TIMES))?;
    }
    map.pin(dir.join(TIMES)).map_err(|err| ProbeError::Pin { name: TIMES, source: Box::new(err) })
}

pub(super) fn open(dir: &Path) -> Result<Array<MapData, u64>, ProbeError> {
    pinned(dir, TIMES).and_then(|map| typed(map, TIMES))
}

pub(super) fn read(map: &Array<MapData, u64>) -> Result<Times, ProbeError> {
    let at = |place| map.get(&place, 0).map_err(map_error(TIMES));
    Ok(Times {
        attached_ns: at(ATTACHED)?,
        newest_cgroup: at(NEWEST)?,
        listed_ns: at(LISTED)?,
        told_ns: at(TOLD)?,
    })
}

impl Probes {
    /// From when on pods are watched. Where nobody keeps it: from now on, and all there is may be older.
    ///
    /// # Errors
    /// When the kernel refuses to read the map.
    pub fn times(&self) -> Result<Times, ProbeError> {
        let now = Times { attached_ns: now_ns(), newest_cgroup: u64::MAX, listed_ns: 0, told_ns: 0 };
        self.times.as_ref().map_or(Ok(now), read)
    }

    /// The programs go on where others have ended that are attached still.
    pub(super) fn go_on_after(&mut self, earlier: Times) -> Result<(), ProbeError> {
        let times = self.times()?.after(earlier);
        self.set_time(ATTACHED, times.attached_ns)?;
        self.set_time(NEWEST, times.newest_cgroup)?;
        self.set_time(LISTED, times.listed_ns)?;
        self.set_time(TOLD, times.told_ns)
    }

    /// Of the cgroups that were there when the programs were attached, none had a larger number.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn keep_newest_cgroup(&mut self, number: u64) -> Result<(), ProbeError> {
        self.set_time(NEWEST, number)
    }

    /// All connections that are older than the programs have been listed.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn keep_listed(&mut self, at_ns: u64) -> Result<(), ProbeError> {
        self.set_time(LISTED, at_ns)
    }

    /// All up to this time was told, and need not be told by the next agent.
    ///
    /// # Errors
    /// When the kernel refuses to write the map.
    pub fn keep_told(&mut self, until_ns: u64) -> Result<(), ProbeError> {
        self.set_time(TOLD, until_ns)
    }

    fn set_time(&mut self, place: u32, value: u64) -> Result<(), ProbeError> {
        self.times.as_mut().map_or(Ok(()), |times| times.set(place, value, 0)).map_err(map_error(TIMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_go_on_after_others_have_watched_since_those_were_attached() {
        let own = Times { attached_ns: 50, newest_cgroup: u64::MAX, listed_ns: 0, told_ns: 0 };
        let earlier = Times { attached_ns: 10, newest_cgroup: 7, listed_ns: 12, told_ns: 40 };
        assert_eq!(own.after(earlier), earlier);
        assert_eq!(earlier.after(own), earlier, "others that came later tell nothing");
        // Half a takeover was made before.
        let own = Times { listed_ns: 60, told_ns: 70, ..earlier };
        assert_eq!(
            own.after(Times { attached_ns: 5, newest_cgroup: 6, listed_ns: 6, told_ns: 8 }),
            Times { attached_ns: 5, newest_cgroup: 6, listed_ns: 60, told_ns: 70 }
        );
    }
}
