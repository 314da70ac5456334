//! A rollout as it is kept on disk: everything that the next step needs, and nothing else.

use super::{evidence::Evidence, observation::Weights};
use crate::model::{ALL, Ppm, Rollout};
use serde::{Deserialize, Serialize};
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

    /// The canary gets traffic and is judged.
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
    /// Unix seconds, as all times.
    pub began: f64,
    pub since: f64,
    /// Latency and promotion do not count before this.
    pub warm_until: f64,
    /// When a canary was last taken back by a gate.
    pub failed_at: Option<f64>,
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
            warm_until: 0.0,
            failed_at: None,
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

    pub fn is_last(&self) -> bool {
        self.step + 1 >= self.policy.steps.len()
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
