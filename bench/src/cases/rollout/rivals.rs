//! Rules of others, replayed on the same streams: Flagger's counted checks, Kayenta's Mann-Whitney, a fixed threshold. Written from their
//! documents; what is simplified is said.

use splitter_rollout::{LatencySamples, Traffic, stats::Counts};
use std::collections::VecDeque;

/// Seconds between two checks, and of one point of a series.
pub const INTERVAL: f64 = 10.0;

/// Flagger: every 10 s the success rate of the last minute must be at least 99%; five checks that failed take the canary back. The number of
/// failed checks is never taken down again by good ones.
#[derive(Default)]
pub struct Flagger {
    points: VecDeque<[f64; 2]>,
    point: [f64; 2],
    time: f64,
    failed: u32,
}

impl Flagger {
    const WINDOW: usize = 6;
    const THRESHOLD: u32 = 5;
    const MAX_ERRORS: f64 = 0.01;

    /// Whether the canary is taken back now.
    pub fn look(&mut self, traffic: &Traffic) -> bool {
        self.point[0] += traffic.canary.trials;
        self.point[1] += traffic.canary.errors;
        self.time += traffic.seconds;
        if self.time + 1e-9 < INTERVAL {
            return false;
        }
        self.time = 0.0;
        self.points.push_back(std::mem::take(&mut self.point));
        if self.points.len() > Self::WINDOW {
            self.points.pop_front();
        }
        let [trials, errors] = self.points.iter().fold([0.0, 0.0], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
        self.failed += u32::from(trials > 0.0 && errors / trials > Self::MAX_ERRORS);
        self.failed >= Self::THRESHOLD
    }
}

/// Kayenta: a point of each series every 10 s, judged once a minute over all points since the begin: the canary is *high* when a Mann-Whitney test
/// (98% confidence, two-sided) says so and its mean is more than a quarter above the baseline's. Simplified: the effect by means instead of the
/// Hodges-Lehmann interval, one metric, and one *high* fails.
#[derive(Default)]
pub struct Kayenta {
    series: [Vec<f64>; 2],
    point: [[f64; 2]; 2],
    time: f64,
}

impl Kayenta {
    /// One-sided normal quantile of 98% two-sided.
    const Z: f64 = 2.326;
    const LEAST_POINTS: usize = 6;
    const PER_JUDGEMENT: usize = 6;
    const TOLERANCE: f64 = 1.25;

    pub fn look(&mut self, traffic: &Traffic) -> bool {
        for (point, side) in self.point.iter_mut().zip([traffic.canary, traffic.baseline]) {
            point[0] += side.trials;
            point[1] += side.errors;
        }
        self.time += traffic.seconds;
        if self.time + 1e-9 < INTERVAL {
            return false;
        }
        self.time = 0.0;
        for (series, [trials, errors]) in self.series.iter_mut().zip(std::mem::take(&mut self.point)) {
            series.push(if trials > 0.0 { errors / trials } else { 0.0 });
        }
        let [canary, baseline] = &self.series;
        if canary.len() < Self::LEAST_POINTS || canary.len() % Self::PER_JUDGEMENT != 0 {
            return false;
        }
        let mean = |series: &[f64]| series.iter().sum::<f64>() / series.len() as f64;
        mean(canary) > Self::TOLERANCE * mean(baseline) && mann_whitney(canary, baseline) > Self::Z
    }
}

/// The statistic of Mann and Whitney (1947), standardised with the correction for ties; large when `a` tends to be larger.
pub fn mann_whitney(a: &[f64], b: &[f64]) -> f64 {
    let mut all: Vec<(f64, bool)> = a.iter().map(|x| (*x, true)).chain(b.iter().map(|x| (*x, false))).collect();
    all.sort_by(|x, y| x.0.total_cmp(&y.0));
    let groups = all.chunk_by(|x, y| x.0 == y.0).map(|group| (group.iter().filter(|(_, is_a)| *is_a).count() as f64, group.len() as f64));
    standardised(groups)
}

/// From groups of equal values in rising order: how many of them are `a`'s, and how many there are.
fn standardised(groups: impl Iterator<Item = (f64, f64)>) -> f64 {
    let (mut rank, mut sum, mut ties, mut n_a, mut n) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (own, size) in groups {
        sum += own * (rank + (size + 1.0) / 2.0);
        rank += size;
        ties += size * size * size - size;
        n_a += own;
        n += size;
    }
    let n_b = n - n_a;
    let u = sum - n_a * (n_a + 1.0) / 2.0;
    let variance = n_a * n_b / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)));
    if variance > 0.0 { (u - n_a * n_b / 2.0) / variance.sqrt() } else { 0.0 }
}

/// Statistics of latency over time, to be compared with a threshold that is calibrated to a rate of false alarms.
pub trait Statistic {
    /// A new value, when one is due.
    fn look(&mut self, canary: &Counts, baseline: &Counts) -> Option<f64>;
}

/// The canary's p99 of the last 30 s, every 10 s: what a fixed threshold is compared with.
#[derive(Default)]
pub struct Fixed {
    seconds: VecDeque<Counts>,
    looks: u32,
}

impl Statistic for Fixed {
    fn look(&mut self, canary: &Counts, _: &Counts) -> Option<f64> {
        self.seconds.push_back(canary.clone());
        if self.seconds.len() > 30 {
            self.seconds.pop_front();
        }
        self.looks += 1;
        let due = self.looks.is_multiple_of(10);
        due.then(|| {
            let mut all = Counts::default();
            self.seconds.iter().for_each(|second| all.add(second));
            // Between the buckets' steps the share above the 99th percentile's bucket decides.
            all.quantile(0.99).unwrap_or(0.0)
        })
    }
}

/// Mann-Whitney on points of p99, one every 10 s, over all points since the begin.
#[derive(Default)]
pub struct Points {
    point: [Counts; 2],
    series: [Vec<f64>; 2],
    looks: u32,
}

impl Statistic for Points {
    fn look(&mut self, canary: &Counts, baseline: &Counts) -> Option<f64> {
        self.point[0].add(canary);
        self.point[1].add(baseline);
        self.looks += 1;
        if !self.looks.is_multiple_of(10) {
            return None;
        }
        for (series, point) in self.series.iter_mut().zip(std::mem::take(&mut self.point)) {
            series.push(point.quantile(0.99).unwrap_or(0.0));
        }
        Some(mann_whitney(&self.series[0], &self.series[1]))
    }
}

/// Mann-Whitney on all samples since the begin.
#[derive(Default)]
pub struct Whole {
    all: [Counts; 2],
    looks: u32,
}

impl Statistic for Whole {
    fn look(&mut self, canary: &Counts, baseline: &Counts) -> Option<f64> {
        self.all[0].add(canary);
        self.all[1].add(baseline);
        self.looks += 1;
        self.looks.is_multiple_of(10).then(|| {
            let buckets = 0..splitter_rollout::stats::BUCKETS;
            let groups = buckets.map(|bucket| {
                let count = |counts: &Counts| counts.from(bucket) - counts.from(bucket + 1);
                (count(&self.all[0]), count(&self.all[0]) + count(&self.all[1]))
            });
            standardised(groups.filter(|(_, size)| *size > 0.0))
        })
    }
}

/// The histograms of a look.
pub fn sides(samples: &LatencySamples) -> Option<&[Counts; 2]> {
    samples.by_measure.values().next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_rollout::Side;

    #[test]
    fn mann_whitney_by_hand() {
        // U = 9 of 9, mean 4.5, variance 5.25.
        assert!((mann_whitney(&[4.0, 5.0, 6.0], &[1.0, 2.0, 3.0]) - 4.5 / 5.25f64.sqrt()).abs() < 1e-9);
        assert_eq!(mann_whitney(&[1.0, 1.0], &[1.0, 1.0]), 0.0);
        assert!(mann_whitney(&[1.0, 2.0], &[2.0, 3.0]) < 0.0);
    }

    #[test]
    fn flagger_needs_five_failed_checks() {
        let bad = Traffic { seconds: 1.0, canary: Side { trials: 50.0, errors: 5.0 }, ..Traffic::default() };
        let mut flagger = Flagger::default();
        let looks = (1..1000).find(|_| flagger.look(&bad)).unwrap();
        assert_eq!(looks, 50);
        let mut kayenta = Kayenta::default();
        let noisy = |i: u32| Traffic { baseline: Side { trials: 950.0, errors: f64::from(i % 3) }, ..bad };
        assert_eq!((1..1000).find(|i| kayenta.look(&noisy(*i))), Some(60));
    }
}
