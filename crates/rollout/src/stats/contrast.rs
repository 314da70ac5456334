//! Canary against baseline over the same time: of the events of one look, how many are the canary's?
//!
//! Let a look hold K events (failures, or samples above a cut), x of them the canary's, which got the share r of the requests. When both versions
//! fail alike, each event is the canary's with probability r, *whatever the common rate is at that moment*: load, time of day and a sick
//! database move both, and drop out. This is the conditional test of Lindon and Malek (arXiv 2011.03567) for time-varying rates; for two
//! Bernoulli streams see Lindon et al. (KDD 2022, arXiv 2205.14762) and Turner, Ly and Grünwald (arXiv 2106.02693). Within one look the events are
//! drawn without replacement; Hoeffding (1963, theorem 4) bounds their generating function by the binomial one, so that
//! `t^x / (1 + r (t - 1))^K` is an e-value for every ratio t > 1.

use super::detector::ALTERNATIVES;

/// Ratios, above the tolerated one, that are watched for.
const RATIOS: [f64; ALTERNATIVES] = [1.3, 1.7, 2.5, 4.0, 7.0, 15.0, 50.0, 200.0];

/// The hypothesis that the canary's odds of an event are at most `tolerated` times the baseline's. Exact for 1; above 1 it is exact to first
/// order while events are rare, and conservative when they are not.
#[derive(Clone, Copy, Debug)]
pub struct Contrast {
    pub tolerated: f64,
}

impl Contrast {
    /// Logarithms of the e-values of one look. `share`: the canary's of all requests of the look, 0..=1. `None`: the look says nothing.
    pub fn look(&self, share: f64, canary: f64, baseline: f64) -> Option<[f64; ALTERNATIVES]> {
        let events = canary + baseline;
        if events <= 0.0 || share <= 0.0 || share >= 1.0 {
            return None;
        }
        let share = self.tolerated * share / (self.tolerated * share + 1.0 - share);
        Some(RATIOS.map(|ratio| canary * ratio.ln() - events * (share * (ratio - 1.0)).ln_1p()))
    }
}
