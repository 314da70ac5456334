//! Tests where no baseline is beside the canary: against what the baseline was like before. At 100%, and after the promotion.
//!
//! Nothing protects these from what moves all versions alike, a load peak or a sick database: so their limits are wide. For errors the upper
//! bound of the recorded rate, with what the policy tolerates and its margin on top; for latency twice the tail above the recorded quantile
//! with its allowance.

use super::{
    evidence::{DOUBT, Evidence, Tally, ratio},
    observation::{LatencySamples, Traffic},
    stats::{self, ALTERNATIVES, Detector, Limit, bucket_above},
};
use serde::{Deserialize, Serialize};
use splitter_policy::model::{ALL, ErrorRate, Rollout};

/// The most that one look may add, nats, as in `evidence`.
const CAP: f64 = 5.0;
const LATENCY_CAP: f64 = 3.0;
/// Requests of the baseline below which nothing is known of it.
const KNOWN: f64 = 100.0;

/// What the baseline was like while it was beside the canary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Record {
    pub errors: Tally,
    /// Of each latency gate: the baseline's quantile with its allowance, seconds.
    pub latency: Vec<Option<f64>>,
}

/// Evidence against the canary, one test for each gate that compares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Guard {
    pub errors: Detector,
    pub latency: Vec<Detector>,
    /// What was seen since it began.
    pub seen: Tally,
}

impl Record {
    /// A step with a baseline beside the canary ends.
    pub fn note(&mut self, evidence: &Evidence) {
        let baseline = evidence.step[1];
        self.errors.add(baseline.trials, baseline.events);
        self.latency.resize(evidence.latency.len(), None);
        for (known, latency) in self.latency.iter_mut().zip(&evidence.latency) {
            *known = latency.cut.or(*known);
        }
    }

    /// The rate of failures that the canary must not exceed; `None` when too little is known.
    pub fn limit(&self, gate: &ErrorRate) -> Option<f64> {
        let rate = stats::upper(self.errors.events, self.errors.trials, DOUBT).max(ratio(gate.ignore_below));
        (self.errors.trials >= KNOWN).then(|| (rate * (1.0 + ratio(gate.max_increase)) + ratio(gate.margin)).min(1.0))
    }
}

impl Guard {
    pub fn begin(policy: &Rollout) -> Self {
        let mut guard = Self { latency: vec![Detector::default(); policy.gates.latency.len()], ..Self::default() };
        guard.errors.step_begins();
        guard.latency.iter_mut().for_each(Detector::step_begins);
        guard
    }

    pub fn traffic(&mut self, policy: &Rollout, record: &Record, traffic: &Traffic) {
        let Some(limit) = policy.gates.error_rate.as_ref().and_then(|gate| record.limit(gate)) else { return };
        let (errors, trials) = (traffic.canary.errors, traffic.canary.trials.max(traffic.canary.errors));
        self.seen.add(trials, errors);
        feed(&mut self.errors, Limit::new(limit).look(errors, trials), traffic.seconds, CAP);
    }

    pub fn samples(&mut self, policy: &Rollout, record: &Record, samples: &LatencySamples) {
        for ((gate, cut), detector) in policy.gates.latency.iter().zip(&record.latency).zip(&mut self.latency) {
            let (Some(cut), Some(_), Some([canary, _])) = (cut, gate.max_increase, samples.by_measure.get(&gate.measure)) else { continue };
            let tail = 1.0 - ratio(gate.quantile);
            let wanted = tail + tail.min((1.0 - tail) / 2.0);
            feed(detector, Limit::new(wanted).look(canary.from(bucket_above(*cut)), canary.total()), samples.seconds, LATENCY_CAP);
        }
    }

    pub fn threshold(&self, policy: &Rollout) -> f64 {
        (1 + self.latency.len()) as f64 * f64::from(ALL) / f64::from(policy.false_alarm.max(1))
    }
}

fn feed(detector: &mut Detector, logs: Option<[f64; ALTERNATIVES]>, seconds: f64, cap: f64) {
    match logs {
        Some(logs) => detector.look(&logs, seconds, cap),
        None => detector.idle(seconds),
    }
}
