//! Rollouts as the admin API, the audit log and the hooks tell them. The keys are a stable surface. Times are Unix seconds, shares 0..=1.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a gate says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    Pass,
    Fail,
    /// Not enough data.
    #[default]
    Unknown,
}

/// One gate, with what it stands on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// `errorRate`, `latency p99`, `share`, or the name in the policy.
    pub gate: String,
    pub answer: Answer,
    /// What was seen: a rate, seconds, a share; null where the gate sees one thing only.
    pub canary: Option<f64>,
    pub baseline: Option<f64>,
    /// Canary and baseline: requests and those that failed (or exceeded).
    pub counts: Option<[[f64; 2]; 2]>,
    /// The canary is below this with 99% confidence, at all looks together.
    pub bound: Option<f64>,
    /// What the bound must fall below to pass.
    pub limit: Option<f64>,
    /// Smallest p-value of the tests that the canary is no worse; valid at every look.
    pub p_value: Option<f64>,
    /// One sentence: why, or what is missing.
    pub text: String,
}

/// What can happen to a rollout: a closed set.
pub const EVENTS: [&str; 11] =
    ["started", "waiting", "advanced", "promoted", "watched", "rolled-back", "undone", "aborted", "paused", "resumed", "freeze-overridden"];

/// One line of the audit log; also what hooks are given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutEvent {
    pub at: f64,
    pub service: String,
    pub canary: String,
    /// One of [`EVENTS`], or `weights`: set by hand or by the policy.
    pub event: String,
    /// `operator (uid 0)`, `gate errorRate`, `gates`, `steps`, `schedule`, `deadline`, `retry`, `policy`, `restart`.
    pub by: String,
    /// Share of the canary before and after.
    pub from: f64,
    pub to: f64,
    /// By version.
    pub weights_from: BTreeMap<String, u32>,
    pub weights_to: BTreeMap<String, u32>,
    pub step: usize,
    pub attempt: u32,
    pub reason: String,
    pub evidence: Vec<Finding>,
}

/// A point of the sparklines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RolloutPoint {
    /// Failed share of the requests of canary and baseline; null without requests.
    pub errors: [Option<f64>; 2],
    /// First quantile that the policy names, seconds.
    pub latency: [Option<f64>; 2],
}

/// `GET /v1/rollouts` and `/v1/rollouts/NAME`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RolloutStatus {
    pub service: String,
    pub canary: String,
    pub baseline: String,
    /// `idle`, `waiting`, `running`, `paused`, `promoted`, `rolled-back`, `aborted`.
    pub phase: String,
    pub reason: String,
    pub step: usize,
    pub steps: Vec<f64>,
    /// Asked share of the canary.
    pub share: f64,
    /// Connections of the service that are pinned to their backends, whatever the share is.
    #[serde(default)]
    pub pinned: u64,
    pub began: f64,
    /// Begin of the step, or of the phase when it is over.
    pub since: f64,
    /// Seconds of the step on the judge's own clock, which stands still while no agent runs and which nobody sets; null when nothing runs.
    #[serde(default)]
    pub step_seconds: Option<f64>,
    /// Seconds for which a promoted canary is still judged; null when it is not.
    #[serde(default)]
    pub watched_for: Option<f64>,
    /// Seconds until the step takes the canary back (`progressDeadline`); null without one.
    #[serde(default)]
    pub deadline: Option<f64>,
    /// Seconds until everything that is missing is there, at the present rate of requests; null when that cannot be told.
    #[serde(default)]
    pub estimate: Option<f64>,
    /// What the word that this answers did, or would do, to the versions' shares; empty when nothing.
    #[serde(default)]
    pub note: String,
    pub attempt: u32,
    pub retries: u32,
    pub pace: String,
    pub findings: Vec<Finding>,
    /// What is missing before the next step, one line each; empty when nothing is, or nothing runs.
    pub missing: Vec<String>,
    /// Every two seconds, the last at the end.
    pub points: Vec<RolloutPoint>,
}

/// Body of `POST /v1/rollouts/NAME/ACTION`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RolloutRequest {
    /// Why, for the audit log.
    #[serde(default)]
    pub reason: String,
    /// Also in a freeze window; told in the audit log.
    #[serde(default)]
    pub override_freeze: bool,
    /// Only say what would happen.
    #[serde(default)]
    pub dry_run: bool,
}
