//! Sparse histograms in the kernel's log-linear buckets, and where a quantile cuts them.

use serde::{Deserialize, Serialize};
use splitter_common::histogram::{MAX_OCTAVE, MIN_OCTAVE, SUBBUCKETS, locate, upper};

/// Buckets of a histogram.
pub const BUCKETS: u16 = ((MAX_OCTAVE - MIN_OCTAVE + 1) * SUBBUCKETS) as u16;

/// Bucket of an octave and sub-bucket.
pub fn bucket_of(octave: u32, sub: u32) -> u16 {
    (octave.clamp(MIN_OCTAVE, MAX_OCTAVE) - MIN_OCTAVE) as u16 * SUBBUCKETS as u16 + (sub % SUBBUCKETS) as u16
}

/// The first bucket that holds nothing below `seconds`: samples from here on exceed it.
pub fn bucket_above(seconds: f64) -> u16 {
    let ns = (seconds * 1e9).clamp(0.0, 1e18) as u64;
    let (octave, sub) = locate(ns);
    bucket_of(octave, sub) + 1
}

/// The value at the upper end of the bucket before `cut`: what samples from `cut` on exceed, seconds.
pub fn cut_seconds(cut: u16) -> f64 {
    let bucket = u32::from(cut.saturating_sub(1));
    upper(MIN_OCTAVE + bucket / SUBBUCKETS, bucket % SUBBUCKETS) as f64 * 1e-9
}

/// Samples by bucket, only where there are any, in order. Counts are real numbers, since old ones may fade.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Counts(Vec<(u16, f64)>);

impl Counts {
    /// `buckets` in rising order.
    pub fn new(buckets: Vec<(u16, f64)>) -> Self {
        debug_assert!(buckets.is_sorted_by(|a, b| a.0 < b.0));
        Self(buckets)
    }

    pub fn total(&self) -> f64 {
        self.0.iter().map(|(_, count)| count).sum()
    }

    /// Samples in `cut` and above.
    pub fn from(&self, cut: u16) -> f64 {
        self.0[self.0.partition_point(|(bucket, _)| *bucket < cut)..].iter().map(|(_, count)| count).sum()
    }

    pub fn add(&mut self, other: &Counts) {
        for (bucket, count) in &other.0 {
            match self.0.binary_search_by_key(bucket, |(bucket, _)| *bucket) {
                Ok(at) => self.0[at].1 += count,
                Err(at) => self.0.insert(at, (*bucket, *count)),
            }
        }
    }

    /// Makes every count smaller; drops what has faded away.
    pub fn fade(&mut self, factor: f64) {
        self.0.iter_mut().for_each(|(_, count)| *count *= factor);
        self.0.retain(|(_, count)| *count > 0.01);
    }

    /// The cut that a share `1 - q` of the samples lie on or above, at most. `None` without samples.
    pub fn cut(&self, q: f64) -> Option<u16> {
        let rank = q * self.total();
        let mut below = 0.0;
        let at = self.0.iter().find(|(_, count)| {
            below += count;
            below >= rank
        })?;
        Some(at.0 + 1)
    }

    /// The quantile as a value: upper end of its bucket, seconds.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.cut(q).map(cut_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_and_values_agree() {
        let mut counts = Counts::default();
        for ms in 1..=1000u64 {
            let (octave, sub) = locate(ms * 1_000_000);
            counts.add(&Counts::new(vec![(bucket_of(octave, sub), 1.0)]));
        }
        let cut = counts.cut(0.99).unwrap();
        assert!((cut_seconds(cut) - 0.99).abs() < 0.04, "{}", cut_seconds(cut));
        assert!(counts.from(cut) <= 10.0 && counts.from(cut - 1) > 10.0 && counts.total() == 1000.0);
        // A limit cuts so that no sample at or below it counts.
        assert!(cut_seconds(bucket_above(0.5)) >= 0.5 && counts.from(bucket_above(0.5)) <= 500.0);
        counts.fade(0.0001);
        assert_eq!(counts.cut(0.5), Counts::default().cut(0.5), "all have faded");
        assert!(u32::from(BUCKETS) == 1024);
    }
}
