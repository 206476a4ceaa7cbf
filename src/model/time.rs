//! Wall-clock time, in the form of the wire.

use std::fmt;
use std::str::FromStr;

use super::json_text::json_text;

/// A point in wall-clock time, in milliseconds since 1970, UTC.
///
/// The text form, in JSON as elsewhere, is RFC 3339 with exactly three decimals and `Z`:
/// `2026-11-22T06:25:01.114Z`. Times before the year 1 and after 9999 are clamped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

/// Range of four-digit years, with a day to spare for any time zone.
const MIN_MILLIS: i64 = -62_135_596_800_000;
const MAX_MILLIS: i64 = 253_402_207_199_999;

impl Timestamp {
    /// A time in milliseconds since 1970, clamped.
    pub fn from_millis(millis: i64) -> Self {
        // A client may report any number; a year of five digits would not be RFC 3339.
        Self(millis.clamp(MIN_MILLIS, MAX_MILLIS))
    }

    /// A time in seconds since 1970, clamped.
    pub fn from_seconds(seconds: i64) -> Self {
        Self::from_millis(seconds.saturating_mul(1000))
    }

    /// Returns milliseconds since 1970.
    pub fn as_millis(self) -> i64 {
        self.0
    }

    /// Returns the milliseconds since `earlier`; 0 if that is later, because the clock stepped back.
    pub fn millis_since(self, earlier: Self) -> u64 {
        u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0)
    }

    /// Returns the time that many milliseconds later, clamped.
    pub fn plus_millis(self, millis: u64) -> Self {
        Self::from_millis(self.0.saturating_add(i64::try_from(millis).unwrap_or(i64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = jiff::Timestamp::from_millisecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        write!(out, "{moment:.3}")
    }
}

impl FromStr for Timestamp {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::from_millis(text.parse::<jiff::Timestamp>()?.as_millisecond()))
    }
}

json_text!(Timestamp, Timestamp::from_str, {
    "description": "Time in UTC: RFC 3339 with milliseconds.",
    "type": "string",
    "format": "date-time",
    "pattern": r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$",
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_three_decimals_and_reads_back() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_328_701_114, "2026-11-22T06:25:01.114Z"),
            (1_795_328_701_100, "2026-11-22T06:25:01.100Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            let time = Timestamp::from_millis(millis);
            assert_eq!(time.to_string(), text);
            assert_eq!(text.parse::<Timestamp>().unwrap(), time);
        }
    }

    #[test]
    fn times_beyond_the_calendar_are_clamped_and_still_read_back() {
        for time in [Timestamp::from_seconds(i64::MAX), Timestamp::from_seconds(i64::MIN)] {
            assert_eq!(time.to_string().parse::<Timestamp>().unwrap(), time);
        }
    }
}
