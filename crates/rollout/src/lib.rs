//! Rollouts: whether a canary goes on, waits or is taken back.
//!
//! [`step()`] is a pure function: a state and what was seen since the last look give the next state and what to do. Whoever calls it reads the
//! node and the clock, keeps the state *before* acting on it, and acts; a crash in between is made good by the next look, which compares what
//! the node runs with what the state asks. Changes weights only by asking for them.
//!
//! | file | owns |
//! |---|---|
//! | `observation` | what a look brings |
//! | `state` | what is kept, and the weights it asks for |
//! | `evidence` | counts and detectors |
//! | `gates` | evidence to answers |
//! | `guard`, `recorded` | tests against what the baseline was like, where none is beside |
//! | `step` | answers, time and words to transitions |
//! | `words` | which word can be followed when, and which one helps instead |
//! | `waiting` | what is missing, and for how long |
//! | `text` | figures in words |
//! | `stats` | the tests |

mod evidence;
mod gates;
mod guard;
mod observation;
mod recorded;
mod state;
pub mod stats;
mod step;
#[cfg(test)]
mod tests;
mod text;
mod waiting;
mod words;

pub use evidence::{Evidence, Tally};
pub use observation::*;
pub use state::{Phase, State};
pub use step::{Action, step, step_in_place};
pub use waiting::span;
pub use words::{allowed, difference};

use splitter_api::{Finding, RolloutStatus};
use splitter_policy::model::Pace;

/// What every gate says now.
pub fn findings(state: &State) -> Vec<Finding> {
    if state.is_judged() { gates::findings(state) } else { Vec::new() }
}

/// For people and scripts. `moment.passed`: since the state's last look.
pub fn status(state: &State, moment: Moment) -> RolloutStatus {
    let findings = findings(state);
    let clock = state.clock + moment.passed.max(0.0);
    let left = |until: f64| (until - clock).max(0.0);
    let deadline = state.policy.progress_deadline.filter(|_| state.phase == Phase::Running);
    RolloutStatus {
        service: state.service.clone(),
        canary: state.canary.clone(),
        baseline: state.baseline.clone(),
        phase: state.phase.name().into(),
        reason: state.reason.clone(),
        step: state.step,
        steps: state.policy.steps.iter().map(|share| evidence::ratio(*share)).collect(),
        share: evidence::ratio(state.share),
        began: state.began,
        since: state.since,
        step_seconds: state.phase.is_live().then(|| (clock - state.entered).max(0.0)),
        watched_for: state.watched_until.filter(|_| state.phase == Phase::Promoted).map(left),
        deadline: deadline.map(|deadline| (deadline.as_secs_f64() - state.tried).max(0.0)),
        attempt: state.attempt,
        retries: state.policy.retries,
        pace: match state.policy.pace {
            Pace::Fixed => "fixed",
            Pace::Adaptive => "adaptive",
        }
        .into(),
        missing: waiting::missing(state, &findings, moment),
        findings,
        points: state.evidence.points.iter().copied().collect(),
        ..RolloutStatus::default()
    }
}

/// The same with an estimate of how long it still takes, which costs more.
pub fn full_status(state: &State, moment: Moment) -> RolloutStatus {
    let mut status = status(state, moment);
    if state.phase == Phase::Running && !status.missing.is_empty() {
        let (seconds, text) = waiting::estimate(state, &status.findings, moment);
        status.estimate = seconds;
        status.missing.push(text);
    }
    status
}
