//! Latencies of one run in userspace, in the same log-linear buckets as the kernel's, so that the two can be compared bucket by bucket.

use splitter_common::histogram::{MAX_OCTAVE, MIN_OCTAVE, SUBBUCKETS, locate, midpoint};
use std::{fmt, time::Duration};

const BUCKETS: usize = ((MAX_OCTAVE - MIN_OCTAVE + 1) * SUBBUCKETS) as usize;

/// Within 1.6% of every value from 32 ns to 137 s.
#[derive(Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples, p50 {:?}, p99 {:?}", self.count, self.quantile(0.5), self.quantile(0.99))
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; BUCKETS], count: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, value: Duration) {
        let (octave, sub) = locate(u64::try_from(value.as_nanos()).unwrap_or(u64::MAX));
        self.buckets[((octave - MIN_OCTAVE) * SUBBUCKETS + sub) as usize] += 1;
        self.count += 1;
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    /// The value that a share `q` (0..=1) of the samples does not exceed; `None` without samples.
    pub fn quantile(&self, q: f64) -> Option<Duration> {
        let rank = (q * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let index = self.buckets.iter().position(|bucket| {
            seen += bucket;
            seen >= rank
        })? as u32;
        Some(Duration::from_nanos(midpoint(MIN_OCTAVE + index / SUBBUCKETS, index % SUBBUCKETS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_known_sample() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), None);
        for ms in 1..=1000 {
            histogram.record(Duration::from_millis(ms));
        }
        for (q, expected) in [(0.5, 0.5), (0.99, 0.99), (1.0, 1.0), (0.0, 0.001)] {
            let got = histogram.quantile(q).unwrap().as_secs_f64();
            assert!((got - expected).abs() / expected < 0.02, "q{q}: {got}");
        }
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.quantile(0.5)), (2000, histogram.quantile(0.5)));
    }
}
