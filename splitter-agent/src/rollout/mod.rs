//! Rollouts: whether a canary goes on, waits or is taken back.
//!
//! [`step`] is a pure function: a state and what was seen since the last look give the next state and what to do. Whoever calls it reads the
//! node and the clock, keeps the state *before* acting on it, and acts; a crash in between is made good by the next look, which compares what
//! the node runs with what the state asks. Changes weights only by asking for them.
//!
//! | file | owns |
//! |---|---|
//! | `observation` | what a look brings |
//! | `state` | what is kept, and the weights it asks for |
//! | `evidence` | counts and detectors |
//! | `gates` | evidence to answers |
//! | `step` | answers, time and words to transitions |
//! | `schedule` | freeze windows |
//! | `stats` | the tests |

mod evidence;
mod gates;
mod observation;
mod schedule;
mod state;
pub mod stats;
mod step;
#[cfg(test)]
mod tests;

pub use evidence::{Evidence, Tally};
pub use observation::*;
pub use state::{Phase, State};
pub use step::{Action, allowed, step, step_in_place};

use crate::{
    model::Pace,
    observed::{Finding, RolloutStatus},
};

/// What every gate says now.
pub fn findings(state: &State) -> Vec<Finding> {
    if state.phase.is_live() { gates::findings(state) } else { Vec::new() }
}

/// For people and scripts.
pub fn status(state: &State, now: f64) -> RolloutStatus {
    let findings = findings(state);
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
        attempt: state.attempt,
        retries: state.policy.retries,
        pace: match state.policy.pace {
            Pace::Fixed => "fixed",
            Pace::Adaptive => "adaptive",
        }
        .into(),
        missing: step::missing(state, &findings, now),
        findings,
        points: state.evidence.points.iter().copied().collect(),
    }
}
