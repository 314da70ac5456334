//! How slow the machine is, so that tests can wait longer and send more slowly on one whose processor is translated by software.
//!
//! `SPLITTER_TEST_SLOWNESS=N`, a whole number from 1: patience grows by it, rates shrink by it, numbers of requests in bulk too. What is asserted
//! of a share, a version or a failure stays as it is.

use std::{sync::OnceLock, time::Duration};

/// Names the variable.
pub const SLOWNESS: &str = "SPLITTER_TEST_SLOWNESS";

/// 1 on a machine of its own.
pub fn slowness() -> u32 {
    static KNOWN: OnceLock<u32> = OnceLock::new();
    *KNOWN.get_or_init(|| std::env::var(SLOWNESS).ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1))
}

/// A time within which something must happen, as long as this machine needs.
pub fn patience(time: Duration) -> Duration {
    time * slowness()
}

/// Requests a second that this machine can send and answer.
pub fn rate(per_second: f64) -> f64 {
    per_second / f64::from(slowness())
}

/// A number of requests, fewer on a slow machine but at least 200: enough for a share to be judged.
pub fn bulk(requests: u64) -> u64 {
    (requests / u64::from(slowness())).max(requests.min(200))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_of_its_own_is_not_slow() {
        assert_eq!((slowness(), patience(Duration::from_secs(3)), bulk(5_000), bulk(7)), (1, Duration::from_secs(3), 5_000, 7));
        assert!((rate(400.0) - 400.0).abs() < f64::EPSILON);
    }
}
