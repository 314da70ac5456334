//! A rollout as it is kept on disk: everything that the next step needs, and nothing else.
//!
//! Time is measured on the state's own clock: seconds in which an agent looked after it. A wall clock that somebody sets moves nothing, and
//! while no agent runs nothing is judged, so no dwell, cool-down or deadline runs either.

use super::{
    evidence::Evidence,
    guard::{Guard, Record},
    observation::Weights,
};
use serde::{Deserialize, Serialize};
use splitter_policy::model::{ALL, Ppm, Rollout};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Nothing was asked yet.
    #[default]
    Idle,
    /// Asked to start, in a freeze window or cool-down.
    Waiting,
    Running,
    /// Weights stay, nothing advances; a gate that fails still takes the canary back.
    Paused,
    Promoted,
    RolledBack,
    Aborted,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Idle => "idle",
            Phase::Waiting => "waiting",
            Phase::Running => "running",
            Phase::Paused => "paused",
            Phase::Promoted => "promoted",
            Phase::RolledBack => "rolled-back",
            Phase::Aborted => "aborted",
        }
    }

    /// The canary gets traffic and may get more.
    pub fn is_live(self) -> bool {
        matches!(self, Phase::Running | Phase::Paused)
    }
}

/// One service's rollout. It runs by the policy that it was started with; a changed policy counts from the next start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub service: String,
    pub canary: String,
    pub baseline: String,
    pub policy: Rollout,
    pub phase: Phase,
    /// Index into the policy's steps.
    pub step: usize,
    /// Asked share of the canary.
    pub share: Ppm,
    /// Unix seconds, for people: nothing is measured from these.
    pub began: f64,
    pub since: f64,
    /// The rollout's own clock, seconds; the times below are on it.
    #[serde(default)]
    pub clock: f64,
    /// When the present step, or the phase when it is over, began.
    #[serde(default)]
    pub entered: f64,
    /// Latency and promotion do not count before this.
    #[serde(default)]
    pub warm: f64,
    /// When a canary was last taken back by a gate or the deadline.
    #[serde(default)]
    pub failed: Option<f64>,
    /// It was a gate: `retries` count.
    #[serde(default)]
    pub retry: bool,
    /// Seconds of this step in which it could have gone on: running, not frozen.
    #[serde(default)]
    pub tried: f64,
    /// In a pause of `steps`; with its end, when it has one.
    #[serde(default)]
    pub pausing: Option<Option<f64>>,
    /// The pause that ends this step is over.
    #[serde(default)]
    pub confirmed: bool,
    /// Freeze windows do not count for this rollout.
    #[serde(default)]
    pub override_freeze: bool,
    /// Promoted, and still judged until then.
    #[serde(default)]
    pub watched_until: Option<f64>,
    /// What the baseline was like, and the tests against that where none is beside the canary.
    #[serde(default)]
    pub record: Record,
    #[serde(default)]
    pub guard: Guard,
    /// Weights of the other versions before the rollout.
    pub base: Weights,
    pub attempt: u32,
    pub reason: String,
    /// Whether the node is known to run what this state asks, and an ended rollout no longer cares.
    pub settled: bool,
    /// Weights were set by hand: they are left alone.
    pub yielded: bool,
    pub backends: Option<u64>,
    pub evidence: Evidence,
    pub external: BTreeMap<String, ExternalState>,
}

/// What an external gate said last in this step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExternalState {
    pub passed: bool,
    /// In a row.
    pub failures: u32,
    pub value: Option<f64>,
    pub text: String,
}

impl State {
    /// A rollout that nobody has started. `weights`: what the service's versions have now.
    pub fn new(service: &str, canary: &str, baseline: &str, policy: Rollout, weights: &Weights) -> Self {
        let base = weights.iter().filter(|(name, _)| *name != canary).map(|(name, weight)| (name.clone(), *weight)).collect();
        Self {
            service: service.into(),
            canary: canary.into(),
            baseline: baseline.into(),
            policy,
            phase: Phase::Idle,
            step: 0,
            share: 0,
            began: 0.0,
            since: 0.0,
            clock: 0.0,
            entered: 0.0,
            warm: 0.0,
            failed: None,
            retry: false,
            tried: 0.0,
            pausing: None,
            confirmed: false,
            override_freeze: false,
            watched_until: None,
            record: Record::default(),
            guard: Guard::default(),
            base,
            attempt: 0,
            reason: String::new(),
            settled: true,
            yielded: false,
            backends: None,
            evidence: Evidence::default(),
            external: BTreeMap::new(),
        }
    }

    /// Every version's weight: the canary has exactly its share, the others split the rest as they did before (largest remainders).
    pub fn weights(&self) -> Weights {
        let mut weights = self.base.clone();
        if self.share == 0 {
            // As it was: also when all other weights were 0, somebody must serve.
            if weights.values().all(|weight| *weight == 0) {
                weights.insert(self.baseline.clone(), 1);
            }
            weights.insert(self.canary.clone(), 0);
            return weights;
        }
        let rest = u64::from(ALL - self.share);
        let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        if total == 0 {
            weights.insert(self.baseline.clone(), ALL - self.share);
        } else {
            let mut remainders = Vec::new();
            let mut left = rest;
            for (name, weight) in &mut weights {
                let exact = rest * u64::from(*weight);
                remainders.push((exact % total, name.clone()));
                *weight = (exact / total) as u32;
                left -= u64::from(*weight);
            }
            remainders.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
            for (_, name) in remainders.iter().take(left as usize) {
                weights.entry(name.clone()).and_modify(|weight| *weight += 1);
            }
        }
        weights.insert(self.canary.clone(), self.share);
        let divisor = weights.values().fold(0, |a, b| gcd(a, *b)).max(1);
        weights.values_mut().for_each(|weight| *weight /= divisor);
        weights
    }

    /// Steps, and the share of the one after this.
    pub fn next_share(&self) -> Option<Ppm> {
        self.policy.steps.get(self.step + 1).copied()
    }

    /// Whether the weights that the node runs come from this rollout.
    pub fn is_owner(&self) -> bool {
        self.phase.is_live() || matches!(self.phase, Phase::Promoted | Phase::RolledBack | Phase::Aborted)
    }

    /// Gates count: the canary is taken back when one fails.
    pub fn is_judged(&self) -> bool {
        self.phase.is_live() || self.phase == Phase::Promoted && self.watched_until.is_some()
    }

    /// It would be tried again by itself.
    pub fn retries(&self) -> bool {
        self.phase == Phase::RolledBack && self.retry && self.attempt < self.policy.retries
    }

    pub fn is_last(&self) -> bool {
        self.step + 1 >= self.policy.steps.len()
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
