//! Moments as people say them: `14:03`, `10m ago`, `2026-11-21 14:03:30`, or RFC 3339.

use std::{str::FromStr, time::Duration};

use jiff::{
    SignedDuration, Timestamp, Zoned,
    civil::{DateTime, Time},
};

/// A moment, before anybody has looked at the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// So long ago.
    Ago(Duration),
    /// The last time that the clock on the wall showed this.
    Clock(Time),
    /// By the calendar and the clock on the wall.
    Local(DateTime),
    /// With its offset from UTC.
    Exact(Timestamp),
}

/// What can't be understood as a moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 14:03, 14:03:30, 10m (ago), 2026-11-21 14:03, or 2026-11-21T14:03:00Z")]
pub struct BadMoment;

impl FromStr for When {
    type Err = BadMoment;

    fn from_str(text: &str) -> Result<Self, BadMoment> {
        let text = text.trim();
        if text == "now" {
            return Ok(Self::Ago(Duration::ZERO));
        }
        let ago = text.strip_suffix("ago").unwrap_or(text).trim_end();
        if let Ok(duration) = humantime::parse_duration(ago) {
            return Ok(Self::Ago(duration));
        }
        if let Ok(exact) = text.parse() {
            return Ok(Self::Exact(exact));
        }
        // A date alone is no moment.
        if !text.contains(':') {
            return Err(BadMoment);
        }
        // First the longer one: a time is read out of it, too.
        if let Ok(local) = text.parse() {
            return Ok(Self::Local(local));
        }
        text.parse().map(Self::Clock).map_err(|_| BadMoment)
    }
}

impl When {
    /// Which moment it is, for somebody whose clock shows `now`. What the clock never showed, or
    /// showed twice, is the moment after, or the first of both.
    ///
    /// # Errors
    /// If it lies beyond the calendar.
    pub fn moment(self, now: &Zoned) -> Result<Timestamp, jiff::Error> {
        match self {
            Self::Ago(duration) => now.timestamp().checked_sub(SignedDuration::try_from(duration)?),
            Self::Exact(exact) => Ok(exact),
            Self::Local(local) => Ok(local.to_zoned(now.time_zone().clone())?.timestamp()),
            Self::Clock(time) => {
                let on =
                    |day: DateTime| day.date().to_datetime(time).to_zoned(now.time_zone().clone());
                let today = on(now.datetime())?;
                let last = if today <= *now { today } else { on(now.datetime().yesterday()?)? };
                Ok(last.timestamp())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> String {
        let now: Zoned = "2026-11-21T14:10:00+01:00[Europe/Berlin]".parse().expect("a moment");
        let when: When = text.parse().expect(text);
        when.moment(&now).expect(text).to_string()
    }

    #[test]
    fn moments_are_understood_as_people_say_them() {
        let cases = [
            ("now", "2026-11-21T13:10:00Z"),
            ("10m ago", "2026-11-21T13:00:00Z"),
            ("10m", "2026-11-21T13:00:00Z"),
            ("1h 30s ago", "2026-11-21T12:09:30Z"),
            ("14:03", "2026-11-21T13:03:00Z"),
            ("14:10:00", "2026-11-21T13:10:00Z"),
            ("14:10:01", "2026-11-20T13:10:01Z"),
            ("23:59:30", "2026-11-20T22:59:30Z"),
            ("2026-11-20 14:03", "2026-11-20T13:03:00Z"),
            ("2026-07-01T14:03:05", "2026-07-01T12:03:05Z"),
            ("2026-11-21T14:03:00Z", "2026-11-21T14:03:00Z"),
            ("2026-11-21T14:03:00-05:00", "2026-11-21T19:03:00Z"),
        ];
        for (text, expected) in cases {
            assert_eq!(moment(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused() {
        for text in ["", "soon", "25:00", "14:03:61", "2026-11-21", "10", "-5m", "2026-13-01 00:00"]
        {
            assert_eq!(text.parse::<When>(), Err(BadMoment), "{text}");
        }
    }

    #[test]
    fn what_lies_beyond_the_calendar_is_an_error() {
        let when: When = "400000y ago".parse().expect("a duration");
        assert!(when.moment(&Zoned::now()).is_err());
    }
}
