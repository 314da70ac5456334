//! When to raise the alarm: a weighted sum of e-processes, one begun at every look.
//!
//! An e-value is a nonnegative statistic whose mean is at most 1 while nothing is wrong. A product of e-values, one a look, stays so; by Ville's
//! inequality it ever exceeds 1/a with probability at most a, however often one looks (Howard et al., arXiv 1810.08240; Waudby-Smith and Ramdas,
//! arXiv 2010.09686). A product that begins with the rollout forgets slowly: after an hour of good traffic a canary that turns bad would first
//! have to pay back an hour. So a product is begun at every look, each with a small weight, and their sum is watched:
//! `M(t) = (M(t-1) + w(t)) * e(t)`. That is the Shiryaev-Roberts form of an e-detector (Shin, Ramdas and Rinaldo, arXiv 2203.03532). The mean of
//! M is at most the weights spent so far. Half of the weight goes to the beginnings of steps, where most bad canaries show; the other half is
//! spent evenly over time, so that `P(false alarm within D days) <= a * (1 + D) / 2`.

use serde::{Deserialize, Serialize};

/// Sizes of effect that are watched for at once; the alarm is raised on their mean (a mixture; Robbins 1970).
pub const ALTERNATIVES: usize = 8;

const DAY: f64 = 86_400.0;
/// Products are kept below this, far from overflow.
const CEILING: f64 = 1e200;
/// The sum of `1/s^2` over all steps s is `pi^2 / 6`.
const STEP_WEIGHT: f64 = 0.5 * 6.0 / (std::f64::consts::PI * std::f64::consts::PI);
/// Time that one look can stand for, seconds: after a pause nothing is owed.
const LONGEST: f64 = 10.0;

/// Evidence so far. Serialises, so that it survives a restart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Detector {
    sums: [f64; ALTERNATIVES],
    /// Largest evidence ever seen: its inverse is a p-value that is valid at every look.
    peak: f64,
    steps: u32,
}

impl Detector {
    /// A new step begins: bad canaries show here.
    pub fn step_begins(&mut self) {
        self.steps = self.steps.saturating_add(1);
        let weight = STEP_WEIGHT / (f64::from(self.steps) * f64::from(self.steps));
        self.sums.iter_mut().for_each(|sum| *sum = (*sum + weight).min(CEILING));
    }

    /// Takes the logarithms of one look's e-values, one for each alternative. `seconds`: since the last look. `cap`: the most that one look may
    /// add, in nats: an e-value made smaller is still one, and a burst within one look (a pause of one process, one client that retries) cannot
    /// raise the alarm alone.
    pub fn look(&mut self, logs: &[f64; ALTERNATIVES], seconds: f64, cap: f64) {
        let weight = 0.5 * seconds.clamp(0.0, LONGEST) / DAY;
        for (sum, log) in self.sums.iter_mut().zip(logs) {
            *sum = ((*sum + weight) * log.min(cap).exp()).min(CEILING);
        }
        self.peak = self.peak.max(self.evidence());
    }

    /// A look without an event that matters: every e-value is 1.
    pub fn idle(&mut self, seconds: f64) {
        let weight = 0.5 * seconds.clamp(0.0, LONGEST) / DAY;
        self.sums.iter_mut().for_each(|sum| *sum = (*sum + weight).min(CEILING));
    }

    /// Mean over the alternatives. An alarm at level `a` is raised when it reaches `1/a`.
    pub fn evidence(&self) -> f64 {
        self.sums.iter().sum::<f64>() / ALTERNATIVES as f64
    }

    /// At most this is the probability of so much evidence, had nothing been wrong (for the first day).
    pub fn p_value(&self) -> f64 {
        if self.peak > 1.0 { 1.0 / self.peak } else { 1.0 }
    }
}
