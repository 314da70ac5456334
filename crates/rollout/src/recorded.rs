//! What the tests of `guard` say of a rollout.

use super::{
    state::State,
    stats::Detector,
    text::{percent, quantile_name, seconds_text},
};
use splitter_api::{Answer, Finding};
use splitter_policy::model::ALL;

/// It is the canary's turn alone.
pub fn is_active(state: &State) -> bool {
    state.share >= ALL && state.is_judged()
}

pub fn fails(state: &State) -> bool {
    let (guard, limit) = (&state.guard, state.guard.threshold(&state.policy));
    is_active(state) && (guard.errors.evidence() >= limit || guard.latency.iter().any(|detector| detector.evidence() >= limit))
}

/// Those tests that have something to compare with. Never *unknown*: nothing has to be shown to them.
pub fn findings(state: &State) -> Vec<Finding> {
    if !is_active(state) {
        return Vec::new();
    }
    let (policy, guard, record, threshold) = (&state.policy, &state.guard, &state.record, state.guard.threshold(&state.policy));
    let mut found = Vec::new();
    let answer = |detector: &Detector| if detector.evidence() >= threshold { Answer::Fail } else { Answer::Pass };
    if let Some(limit) = policy.gates.error_rate.as_ref().and_then(|gate| record.limit(gate)) {
        let (canary, baseline) = (state.evidence.recent[0].rate(), record.errors.rate());
        let shown = [canary, baseline].map(|rate| percent(rate.unwrap_or(0.0)));
        found.push(Finding {
            gate: "errorRate recorded".into(),
            answer: answer(&guard.errors),
            canary,
            baseline,
            counts: Some([[guard.seen.trials, guard.seen.events], [record.errors.trials, record.errors.events]]),
            limit: Some(limit),
            p_value: Some(guard.errors.p_value()),
            text: format!(
                "the canary fails {} of the requests; the baseline failed {} before, {} is tolerated",
                shown[0],
                shown[1],
                percent(limit)
            ),
            ..Finding::default()
        });
    }
    for (((gate, cut), detector), latency) in
        policy.gates.latency.iter().zip(&record.latency).zip(&guard.latency).zip(&state.evidence.latency)
    {
        let (Some(cut), Some(_)) = (*cut, gate.max_increase) else { continue };
        let name = quantile_name(gate);
        found.push(Finding {
            answer: answer(detector),
            canary: latency.shown[0],
            baseline: Some(cut),
            p_value: Some(detector.p_value()),
            text: format!("{name} of the canary against {} that the baseline had before, with its allowance", seconds_text(cut)),
            gate: format!("{name} recorded"),
            ..Finding::default()
        });
    }
    found
}
