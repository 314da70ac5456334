//! Simulated traffic: counts of one tenth of a second, drawn instead of single requests, so that a day takes a fraction of a second.

use splitter_common::histogram::locate;
use splitter_policy::model::Measure;
use splitter_rollout::{
    LatencySamples, Side, Traffic,
    stats::{Counts, bucket_of},
};
use std::collections::BTreeMap;

/// Seconds of one look.
pub const LOOK: f64 = 0.1;

/// SplitMix64 (Steele, Lea and Flood 2014): small, seeded, good enough for counts.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// By inversion up to a mean of 30 (Knuth), above it as the sum of two halves.
    pub fn poisson(&mut self, mean: f64) -> f64 {
        if mean <= 0.0 {
            return 0.0;
        }
        if mean > 30.0 {
            return self.poisson(mean / 2.0) + self.poisson(mean / 2.0);
        }
        self.poisson_given(mean, (-mean).exp())
    }

    /// `zero`: the probability of none, `exp(-mean)`.
    fn poisson_given(&mut self, mean: f64, zero: f64) -> f64 {
        let (mut left, mut mass, mut count) = (self.uniform() - zero, zero, 0.0);
        while left > 0.0 && count < 200.0 {
            count += 1.0;
            mass *= mean / count;
            left -= mass;
        }
        count
    }
}

/// One version's behaviour.
#[derive(Clone, Copy, Debug)]
pub struct Version {
    /// Requests a second.
    pub rate: f64,
    /// Share of them that fail.
    pub errors: f64,
    /// The slowest 2% take twice as long, which doubles the 99th percentile and leaves the rest alone.
    pub slow_tail: bool,
}

impl Version {
    pub fn new(rate: f64, errors: f64) -> Version {
        Version { rate, errors, slow_tail: false }
    }

    /// Arrivals of both kinds are Poisson; large numbers of good ones do not need their spread.
    fn side(&self, random: &mut Random) -> Side {
        let errors = random.poisson(self.rate * self.errors * LOOK);
        let good = random.poisson(self.rate * (1.0 - self.errors) * LOOK);
        Side { trials: errors + good, errors }
    }
}

pub fn look(random: &mut Random, canary: &Version, baseline: &Version) -> Traffic {
    let (canary, baseline) = (canary.side(random), baseline.side(random));
    Traffic { seconds: LOOK, canary, baseline, drawn: canary.trials, all: canary.trials + baseline.trials }
}

/// Latencies: a lognormal law (median 10 ms, sigma 0.6: p99 40 ms) on atoms that are finer where quantiles are judged.
pub struct Atoms {
    /// Upper end of the cumulated probability, bucket of the normal value, of the doubled one.
    atoms: Vec<(f64, u16, u16)>,
}

/// Upper quantile of each atom, and how many sigmas from the median its value lies.
const ATOMS: [(f64, f64); 20] = [
    (0.1, -1.64),
    (0.3, -0.84),
    (0.5, -0.25),
    (0.7, 0.25),
    (0.8, 0.67),
    (0.9, 1.04),
    (0.94, 1.41),
    (0.96, 1.64),
    (0.97, 1.81),
    (0.975, 1.92),
    (0.98, 2.01),
    (0.984, 2.10),
    (0.988, 2.20),
    (0.9895, 2.28),
    (0.991, 2.34),
    (0.993, 2.41),
    (0.995, 2.51),
    (0.997, 2.65),
    (0.999, 2.88),
    (1.0, 3.29),
];
const MEDIAN_MS: f64 = 10.0;
const SIGMA: f64 = 0.6;
const TAIL: f64 = 0.98;

impl Atoms {
    pub fn new() -> Atoms {
        let bucket = |ms: f64| {
            let (octave, sub) = locate((ms * 1e6) as u64);
            bucket_of(octave, sub)
        };
        let atom = |(upper, sigmas): (f64, f64)| {
            let ms = MEDIAN_MS * (SIGMA * sigmas).exp();
            (upper, bucket(ms), bucket(if upper > TAIL { 2.0 * ms } else { ms }))
        };
        Atoms { atoms: ATOMS.map(atom).to_vec() }
    }

    /// Samples of one second.
    pub fn second(&self, random: &mut Random, version: &Version) -> Counts {
        let mut below = 0.0;
        let mut found = BTreeMap::new();
        for (upper, normal, doubled) in &self.atoms {
            let count = random.poisson(version.rate * (upper - below));
            below = *upper;
            if count > 0.0 {
                *found.entry(if version.slow_tail { *doubled } else { *normal }).or_insert(0.0) += count;
            }
        }
        Counts::new(found.into_iter().collect())
    }

    pub fn look(&self, random: &mut Random, canary: &Version, baseline: &Version) -> LatencySamples {
        let sides = [self.second(random, canary), self.second(random, baseline)];
        LatencySamples { seconds: 1.0, by_measure: BTreeMap::from([(Measure::FirstByte, sides)]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_means_and_spreads() {
        let mut random = Random::new(7);
        for mean in [0.05, 3.0, 80.0] {
            let draws: Vec<f64> = (0..20_000).map(|_| random.poisson(mean)).collect();
            let average = draws.iter().sum::<f64>() / draws.len() as f64;
            let spread = draws.iter().map(|x| (x - average).powi(2)).sum::<f64>() / draws.len() as f64;
            assert!((average / mean - 1.0).abs() < 0.1 && (spread / mean - 1.0).abs() < 0.1, "{mean}: {average} {spread}");
        }
    }

    #[test]
    fn the_tail_doubles_the_99th_percentile_alone() {
        let (mut random, atoms) = (Random::new(1), Atoms::new());
        let normal = Version::new(1e6, 0.0);
        let slow = Version { slow_tail: true, ..normal };
        let [a, b] = [normal, slow].map(|version| atoms.second(&mut random, &version));
        let ratio = |q: f64| b.quantile(q).unwrap() / a.quantile(q).unwrap();
        assert!((ratio(0.99) - 2.0).abs() < 0.1 && ratio(0.95) == 1.0 && ratio(0.6) == 1.0, "{} {}", ratio(0.99), ratio(0.6));
    }
}
