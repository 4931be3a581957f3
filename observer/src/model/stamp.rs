//! Times and durations as an object of the Kubernetes API has them: whole seconds, as text that people read.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, SystemTime};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::model::time::Time;

/// The last second that RFC 3339 can name: the end of the year 9999.
const LAST: i64 = 253_402_300_799;

/// Why a text is no time or no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no {what}")]
pub struct StampError {
    text: String,
    what: &'static str,
}

/// A point in time, in seconds since the Unix epoch; RFC 3339 in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Timestamp(i64);

impl Timestamp {
    /// The second in which `time` is.
    pub fn floor(time: Time) -> Self {
        Self(time.0.div_euclid(1000).clamp(0, LAST))
    }

    /// The first full second that is not before `time`.
    pub fn ceil(time: Time) -> Self {
        Self::floor(time.plus(999))
    }

    /// Its beginning.
    pub fn time(self) -> Time {
        Time(self.0 * 1000)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = Duration::from_secs(self.0.unsigned_abs());
        write!(f, "{}", humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + since))
    }
}

impl From<Timestamp> for String {
    fn from(stamp: Timestamp) -> Self {
        stamp.to_string()
    }
}

impl TryFrom<String> for Timestamp {
    type Error = StampError;

    fn try_from(text: String) -> Result<Self, StampError> {
        let parsed = humantime::parse_rfc3339(&text).ok();
        let since = parsed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        let seconds = since.and_then(|since| i64::try_from(since.as_secs()).ok());
        seconds.map(Self).ok_or(StampError { text, what: "time such as 2026-01-31T12:00:00Z" })
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "format": "date-time"})
    }
}

/// A length of time in seconds; `26h10m5s` in objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Seconds(pub u64);

impl Seconds {
    /// The full seconds of so many milliseconds; none where they are negative.
    pub fn floor(millis: i64) -> Self {
        Self(u64::try_from(millis / 1000).unwrap_or(0))
    }

    /// As many seconds as it takes to hold so many milliseconds.
    pub fn ceil(millis: i64) -> Self {
        Self(u64::try_from(millis).unwrap_or(0).div_ceil(1000))
    }

    /// In milliseconds.
    pub fn millis(self) -> i64 {
        i64::try_from(self.0.saturating_mul(1000)).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, minutes, seconds) = (self.0 / 3600, self.0 / 60 % 60, self.0 % 60);
        match (hours, minutes, seconds) {
            (0, 0, _) => write!(f, "{seconds}s"),
            (0, _, _) => write!(f, "{minutes}m{seconds}s"),
            _ => write!(f, "{hours}h{minutes}m{seconds}s"),
        }
    }
}

impl From<Seconds> for String {
    fn from(seconds: Seconds) -> Self {
        seconds.to_string()
    }
}

impl TryFrom<String> for Seconds {
    type Error = StampError;

    fn try_from(text: String) -> Result<Self, StampError> {
        let parsed = humantime::parse_duration(&text);
        parsed
            .map(|length| Self(length.as_secs()))
            .map_err(|_| StampError { text, what: "duration such as 2h10m" })
    }
}

impl JsonSchema for Seconds {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Seconds".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 32, "pattern": "^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"})
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_durations_are_text_that_people_read() {
        let stamp = Timestamp::floor(Time(1_769_860_800_999));
        assert_eq!(stamp.to_string(), "2026-01-31T12:00:00Z");
        assert_eq!(Timestamp::ceil(Time(1_769_860_800_001)).to_string(), "2026-01-31T12:00:01Z");
        assert_eq!(Timestamp::ceil(Time(1_769_860_800_000)), stamp);
        for (seconds, text) in [(0, "0s"), (65, "1m5s"), (94_205, "26h10m5s"), (3600, "1h0m0s")] {
            assert_eq!(Seconds(seconds).to_string(), text);
        }
        // As another program may write it.
        assert_eq!(Timestamp::try_from("2026-01-31T12:00:00.25Z".to_owned()), Ok(stamp));
        for bad in ["", "yesterday", "1960-01-01T00:00:00Z", "2026-01-31"] {
            assert!(Timestamp::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
        for bad in ["", "soon", "99999999999999999999s"] {
            assert!(Seconds::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(time: i64, millis: i64) {
            for stamp in [Timestamp::floor(Time(time)), Timestamp::ceil(Time(time))] {
                prop_assert_eq!(Timestamp::try_from(stamp.to_string()), Ok(stamp));
            }
            for length in [Seconds::floor(millis), Seconds::ceil(millis)] {
                prop_assert_eq!(Seconds::try_from(length.to_string()), Ok(length));
                prop_assert!(length.millis() >= 0);
            }
        }
    }
}
