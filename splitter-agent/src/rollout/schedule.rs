//! When nothing may start or advance: freeze windows of the week, in UTC.

use crate::model::Freeze;

const DAY: f64 = 86_400.0;
const MINUTES: u32 = 24 * 60;
/// 1970-01-01 was a Thursday; 0 is Monday.
const EPOCH_DAY: u32 = 3;

/// The end of the window that holds `now`, Unix seconds; `None` when none does. Windows that follow each other are told one by one.
pub fn frozen_until(windows: &[Freeze], now: f64) -> Option<f64> {
    let day = (now / DAY).floor();
    let weekday = (day as i64 as u32).wrapping_add(EPOCH_DAY) % 7;
    let minute = ((now - day * DAY) / 60.0) as u32;
    let midnight = day * DAY;
    windows.iter().find_map(|window| {
        let (from, to) = (u32::from(window.from), u32::from(window.to));
        let begins = |weekday: u32| window.days.is_empty() || window.days.contains(&(weekday as u8));
        let length = if to > from { to - from } else { to + MINUTES - from };
        // Begun today, or yesterday and not over yet.
        if begins(weekday) && minute >= from && minute < from + length {
            return Some(midnight + f64::from(from + length) * 60.0);
        }
        let yesterday = (weekday + 6) % 7;
        (begins(yesterday) && minute + MINUTES < from + length).then(|| midnight + f64::from(from + length - MINUTES) * 60.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-20 is a Friday.
    const FRIDAY: f64 = 1_795_132_800.0;
    const HOUR: f64 = 3_600.0;

    #[test]
    fn windows_of_the_week() {
        let night = [Freeze { days: vec![4], from: 22 * 60, to: 6 * 60 }];
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
            assert_eq!(frozen_until(&night, FRIDAY + at * HOUR), until.map(|hours: f64| FRIDAY + hours * HOUR), "{at}");
        }
        let lunch = [Freeze { days: Vec::new(), from: 720, to: 780 }];
        assert_eq!(frozen_until(&lunch, FRIDAY + 12.5 * HOUR), Some(FRIDAY + 13.0 * HOUR));
        assert_eq!(frozen_until(&lunch, FRIDAY + 13.0 * HOUR), None);
        assert_eq!(frozen_until(&[], FRIDAY), None);
    }
}
