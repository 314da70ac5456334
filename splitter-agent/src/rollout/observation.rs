//! What a look at the node brings: counts since the last look, answers of external gates, an operator's word.

use super::stats::Counts;
use crate::model::Measure;
use std::collections::BTreeMap;

/// Weights by version name.
pub type Weights = BTreeMap<String, u32>;

#[derive(Clone, Debug, Default)]
pub struct Observation {
    /// Since the last look; `None` when the kernel was not read.
    pub traffic: Option<Traffic>,
    pub latency: Option<LatencySamples>,
    /// New answers of external gates.
    pub readings: Vec<Reading>,
    pub word: Option<Word>,
    /// What the node runs now; `None` when it is not known.
    pub weights: Option<Weights>,
    /// Changes whenever backends of canary or baseline come or go.
    pub backends: u64,
}

/// Counts of one look.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Since the last look.
    pub seconds: f64,
    pub canary: Side,
    pub baseline: Side,
    /// Trials begun that the weights drew: the canary's, and of all versions together.
    pub drawn: f64,
    pub all: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Side {
    /// Requests, or connections where the kernel does not see requests, that were answered or failed. Those that still wait say nothing yet.
    pub trials: f64,
    /// Of them failed: what clients suffered.
    pub errors: f64,
}

/// Histograms since the last look at them, canary and baseline.
#[derive(Clone, Debug, Default)]
pub struct LatencySamples {
    pub seconds: f64,
    pub by_measure: BTreeMap<Measure, [Counts; 2]>,
}

/// An external gate's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub gate: String,
    /// `None`: nobody could be asked, or it did not answer in time.
    pub passed: Option<bool>,
    pub value: Option<f64>,
    pub text: String,
}

/// What an operator, or the policy, says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub kind: WordKind,
    /// Who, for the audit log.
    pub by: String,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordKind {
    Start,
    Pause,
    Resume,
    /// To 100% now; the gates go on watching.
    Promote,
    Abort,
    /// Somebody set weights by hand: they stay until the rollout is resumed or ends.
    Overridden,
}
