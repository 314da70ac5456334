//! A rate against a fixed limit.

use super::detector::ALTERNATIVES;

/// Factors on the odds of the limit that are watched for.
const ODDS: [f64; ALTERNATIVES] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1000.0];

/// The hypothesis that the probability of an event is at most `rate` (0 < rate < 1) at every request, given what came before. Nothing else is
/// assumed: requests may depend on each other and the rate may move below the limit. e-values: the likelihood ratio `(q/p)^x ((1-q)/(1-p))^(n-x)`
/// (Wald 1945; its mean is at most 1 for every true rate up to p, since it grows with the rate).
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    hit: [f64; ALTERNATIVES],
    miss: [f64; ALTERNATIVES],
}

impl Limit {
    pub fn new(rate: f64) -> Self {
        let p = rate.clamp(1e-9, 1.0 - 1e-9);
        let odds = p / (1.0 - p);
        let alternative = ODDS.map(|factor| factor * odds / (1.0 + factor * odds));
        Self { hit: alternative.map(|q| (q / p).ln()), miss: alternative.map(|q| ((1.0 - q) / (1.0 - p)).ln()) }
    }

    /// Logarithms of the e-values of one look with `events` among `trials`. `None` without trials.
    pub fn look(&self, events: f64, trials: f64) -> Option<[f64; ALTERNATIVES]> {
        (trials > 0.0).then(|| std::array::from_fn(|i| events * self.hit[i] + (trials - events).max(0.0) * self.miss[i]))
    }
}
