//! What a look at the node brings: counts since the last look, answers of external gates, an operator's word.

use super::stats::Counts;
use splitter_policy::model::Measure;
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

/// When a look is made.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moment {
    /// Unix seconds: for people and records. The clock may be set; nothing is measured with it.
    pub unix: f64,
    /// Seconds since the state's last look, of a clock that nobody sets. Time in which no agent ran is not in it.
    pub passed: f64,
    /// The end of the freeze window that holds now, Unix seconds.
    pub frozen: Option<f64>,
}

impl Moment {
    pub fn new(unix: f64, passed: f64) -> Self {
        Self { unix, passed, frozen: None }
    }
}

/// What an operator, or the policy, says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    pub kind: WordKind,
    /// Who, for the audit log.
    pub by: String,
    pub reason: String,
    /// Also in a freeze window: for the whole rollout.
    pub override_freeze: bool,
    /// Only to be rehearsed: whoever keeps the state does not act on it.
    pub dry_run: bool,
}

impl Word {
    pub fn new(kind: WordKind, by: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind, by: by.into(), reason: reason.into(), override_freeze: false, dry_run: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordKind {
    Start,
    Pause,
    Resume,
    /// To 100% now; the gates go on watching.
    Promote,
    Abort,
    /// After the promotion: back to the weights from before.
    Undo,
    /// Somebody set weights by hand: they stay until the rollout is resumed or ends.
    Overridden,
}
