//! When nothing may start or advance: freeze windows of days and dates, in a time zone. Here wall time counts, as nowhere else.

use jiff::{
    Timestamp,
    civil::{Date, DateTime},
    tz::TimeZone,
};
use splitter_policy::model::Freeze;

/// When a zone's rules cannot be read any more, freezes hold: they are looked up again after this long, seconds.
const AGAIN: f64 = 60.0;

/// The end of a window that holds now, as looked up in this second.
#[derive(Default)]
pub struct Frozen {
    second: Option<i64>,
    until: Option<f64>,
    error: Option<String>,
}

impl Frozen {
    /// The end of the window that holds at `now`, Unix seconds; looked up once a second.
    pub fn until(&mut self, windows: &[Freeze], now: f64) -> Option<f64> {
        let second = now.floor() as i64;
        if windows.is_empty() || self.second == Some(second) {
            return self.until;
        }
        self.second = Some(second);
        let found = frozen_until(windows, now);
        if let Err(error) = &found
            && self.error.as_ref() != Some(error)
        {
            tracing::error!(error, "a freeze window cannot be read: it holds until it can");
        }
        self.error = found.as_ref().err().cloned();
        self.until = found.unwrap_or(Some(now + AGAIN));
        self.until
    }
}

/// The end of the window that holds `now`, Unix seconds; `None` when none does. Windows that follow each other are told one by one.
///
/// # Errors
/// When a time zone is not known to this machine.
pub fn frozen_until(windows: &[Freeze], now: f64) -> Result<Option<f64>, String> {
    for window in windows {
        if let Some(until) = one(window, now)? {
            return Ok(Some(until));
        }
    }
    Ok(None)
}

fn one(window: &Freeze, now: f64) -> Result<Option<f64>, String> {
    let zone = match &window.zone {
        None => TimeZone::UTC,
        Some(name) => TimeZone::get(name).map_err(|error| error.to_string())?,
    };
    let broken = |error: jiff::Error| error.to_string();
    let today = Timestamp::from_second(now.floor() as i64).map_err(broken)?.to_zoned_datetime(zone.clone()).date();
    let dates = window.dates.map(|dates| dates.map(|(year, month, day)| Date::new(year, month, day)));
    let dates = match dates {
        Some([Ok(first), Ok(last)]) => Some([first, last]),
        Some([first, last]) => return Err(first.and(last).err().map_or(String::new(), |error| error.to_string())),
        None => None,
    };
    let at = |date: Date, minute: u16| -> Result<f64, String> {
        let time = DateTime::from_parts(date, jiff::civil::time((minute / 60) as i8, (minute % 60) as i8, 0, 0));
        // A time that a change of the clocks leaves out, or has twice, is the later respectively the earlier one (RFC 5545).
        Ok(time.to_zoned_datetime(zone.clone()).map_err(broken)?.timestamp().as_second() as f64)
    };
    let whole = window.from == 0 && window.to == 0;
    if let (Some([first, last]), true, true) = (dates, whole, window.days.is_empty()) {
        let (begin, end) = (at(first, 0)?, at(last.tomorrow().map_err(broken)?, 0)?);
        return Ok((begin <= now && now < end).then_some(end));
    }
    // Begun today, or yesterday and not over yet.
    for day in [today, today.yesterday().map_err(broken)?] {
        let weekday = day.weekday().to_monday_zero_offset() as u8;
        let begins = window.days.is_empty() || window.days.contains(&weekday);
        if !begins || dates.is_some_and(|[first, last]| day < first || last < day) {
            continue;
        }
        let last = if window.to > window.from { day } else { day.tomorrow().map_err(broken)? };
        let (begin, end) = (at(day, window.from)?, at(last, window.to)?);
        if begin <= now && now < end {
            return Ok(Some(end));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20 is a Friday.
    const FRIDAY: f64 = 1_795_132_800.0;
    const HOUR: f64 = 3_600.0;

    fn frozen(windows: &[Freeze], now: f64) -> Option<f64> {
        frozen_until(windows, now).unwrap()
    }

    #[test]
    fn windows_of_the_week() {
        let night = [Freeze { days: vec![4], from: 22 * 60, to: 6 * 60, ..Freeze::default() }];
        for (at, until) in [
            (21.99, None),
            (22.0, Some(30.0)),
            (23.9, Some(30.0)),
            (24.5, Some(30.0)),
            (29.99, Some(30.0)),
            (30.0, None),
            (46.5, None),
            (-1.0, None),
        ] {
            assert_eq!(frozen(&night, FRIDAY + at * HOUR), until.map(|hours: f64| FRIDAY + hours * HOUR), "{at}");
        }
        let lunch = [Freeze { from: 720, to: 780, ..Freeze::default() }];
        assert_eq!(frozen(&lunch, FRIDAY + 12.5 * HOUR), Some(FRIDAY + 13.0 * HOUR));
        assert_eq!(frozen(&lunch, FRIDAY + 13.0 * HOUR), None);
        assert_eq!(frozen(&[], FRIDAY), None);
    }

    fn unix(text: &str) -> f64 {
        text.parse::<Timestamp>().unwrap().as_second() as f64
    }

    #[test]
    fn dates_in_a_time_zone() {
        let dates = Some([(2026, 12, 24), (2027, 1, 2)]);
        let holidays = Freeze { dates, zone: Some("Europe/Berlin".into()), ..Freeze::default() };
        let end = Some(unix("2027-01-02T23:00:00Z"));
        for (at, until) in [
            ("2026-12-23T22:59:59Z", None),
            ("2026-12-23T23:00:00Z", end),
            ("2026-12-31T12:00:00Z", end),
            ("2027-01-02T22:59:59Z", end),
            ("2027-01-02T23:00:00Z", None),
        ] {
            assert_eq!(frozen(std::slice::from_ref(&holidays), unix(at)), until, "{at}");
        }
        // Without a zone: UTC. With times: every night of these dates.
        let utc = Freeze { zone: None, ..holidays.clone() };
        assert_eq!(frozen(&[utc], unix("2026-12-23T23:30:00Z")), None);
        let nights = Freeze { from: 20 * 60, to: 8 * 60, ..holidays };
        assert_eq!(frozen(std::slice::from_ref(&nights), unix("2026-12-24T18:00:00Z")), None);
        assert_eq!(frozen(std::slice::from_ref(&nights), unix("2026-12-24T19:00:00Z")), Some(unix("2026-12-25T07:00:00Z")));
        assert_eq!(frozen(std::slice::from_ref(&nights), unix("2027-01-03T06:59:00Z")), Some(unix("2027-01-03T07:00:00Z")));
        assert_eq!(frozen(std::slice::from_ref(&nights), unix("2027-01-03T19:30:00Z")), None);
    }

    /// Clocks go forward on 2026-03-29 in Berlin: 18:00 is 17:00 UTC before and 16:00 after.
    #[test]
    fn summer_time_moves_a_window_with_the_people() {
        let evening = [Freeze { from: 18 * 60, to: 20 * 60, zone: Some("Europe/Berlin".into()), ..Freeze::default() }];
        assert_eq!(frozen(&evening, unix("2026-03-28T17:30:00Z")), Some(unix("2026-03-28T19:00:00Z")));
        assert_eq!(frozen(&evening, unix("2026-03-29T16:30:00Z")), Some(unix("2026-03-29T18:00:00Z")));
        assert_eq!(frozen(&evening, unix("2026-03-29T18:30:00Z")), None);
    }

    /// A zone that this machine no longer knows does not let a rollout through.
    #[test]
    fn an_unknown_zone_holds() {
        let nowhere = [Freeze { zone: Some("Nowhere/Atall".into()), ..Freeze::default() }];
        assert!(frozen_until(&nowhere, FRIDAY).unwrap_err().contains("Nowhere/Atall"));
        assert_eq!(Frozen::default().until(&nowhere, FRIDAY), Some(FRIDAY + AGAIN));
    }
}
