//! The step function: time, evidence and words -> transitions.
//!
//! What holds at every step, and is property-tested: the weights asked for always sum to the whole; the canary's share never grows unless every
//! gate passed (or an operator said so), and then only to the next step; a gate that fails always ends at zero; a state that was kept and read
//! back goes on as if nothing had happened.

use super::{
    evidence::Evidence,
    gates,
    observation::{Observation, Reading, Weights, Word, WordKind},
    schedule::frozen_until,
    state::{Phase, State},
};
use crate::{
    model::{ALL, Ppm},
    observed::{Answer, Finding, RolloutEvent},
};

/// What the caller does, in this order, after the state is on disk.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// One map write. Asked for again until the node is seen to run it.
    SetWeights(Weights),
    /// One line of the audit log, then the hooks.
    Tell(Box<RolloutEvent>),
}

/// Whether a word can be followed now. The text is for the operator.
///
/// # Errors
/// What is the matter and what to do.
pub fn allowed(state: &State, word: WordKind) -> Result<(), String> {
    let phase = state.phase;
    let service = &state.service;
    let fine = match word {
        WordKind::Start => !phase.is_live() && phase != Phase::Waiting,
        WordKind::Pause => phase == Phase::Running,
        WordKind::Resume => phase == Phase::Paused,
        WordKind::Promote => phase.is_live(),
        WordKind::Abort => phase.is_live() || phase == Phase::Waiting,
        WordKind::Overridden => true,
    };
    if fine {
        return Ok(());
    }
    let (now, todo) = (
        phase.name(),
        match word {
            WordKind::Start => "abort it first",
            WordKind::Pause | WordKind::Promote | WordKind::Abort => "start it first",
            WordKind::Resume => "only a paused rollout can be resumed",
            WordKind::Overridden => "",
        },
    );
    Err(format!("the rollout of {service} is {now}: {todo}"))
}

/// One look. Words that are not [`allowed`] are ignored.
pub fn step(mut state: State, observation: &Observation, now: f64) -> (State, Vec<Action>) {
    let actions = step_in_place(&mut state, observation, now);
    (state, actions)
}

/// The same where the state stands.
pub fn step_in_place(state: &mut State, observation: &Observation, now: f64) -> Vec<Action> {
    let mut actions = Vec::new();
    let before = state.backends.replace(observation.backends);
    if before.is_some_and(|before| before != observation.backends) {
        // Autoscaling, or a deployment: new processes warm up again, and nothing advances meanwhile.
        state.warm_until = state.warm_until.max(now + state.policy.warm_up.as_secs_f64());
    }
    let warm = now >= state.warm_until;
    if state.phase.is_live() {
        if let Some(traffic) = &observation.traffic {
            state.evidence.traffic(&state.policy, state.share, traffic, warm);
        }
        if let Some(samples) = &observation.latency {
            state.evidence.samples(&state.policy, samples, warm);
        }
        observation.readings.iter().for_each(|reading| note(state, reading));
    }
    if let Some(word) = &observation.word
        && allowed(state, word.kind).is_ok()
    {
        follow(state, word, observation.weights.as_ref(), now, &mut actions);
    } else if state.phase.is_live() && gates::any_fails(state) {
        take_back(state, now, &mut actions);
    } else {
        by_time(state, warm, now, &mut actions);
    }
    converge(state, observation.weights.as_ref(), &mut actions);
    actions
}

fn note(state: &mut State, reading: &Reading) {
    let known = state.external.entry(reading.gate.clone()).or_default();
    known.text.clone_from(&reading.text);
    known.value = reading.value;
    match reading.passed {
        Some(true) => (known.passed, known.failures) = (true, 0),
        Some(false) => known.failures += 1,
        // Nobody answered: not a failure of the canary, but no pass either.
        None => known.passed = false,
    }
}

fn follow(state: &mut State, word: &Word, weights: Option<&Weights>, now: f64, actions: &mut Vec<Action>) {
    let by = word.by.as_str();
    match word.kind {
        WordKind::Start => {
            state.attempt = 0;
            if let Some(weights) = weights {
                let others = weights.iter().filter(|(name, _)| **name != state.canary);
                state.base = others.map(|(name, weight)| (name.clone(), *weight)).collect();
            }
            begin(state, by, &word.reason, now, actions);
        }
        WordKind::Pause => enter(state, Phase::Paused, "paused", by, &word.reason, actions, now),
        WordKind::Resume if state.yielded => {
            // Back to the step's own share.
            state.yielded = false;
            state.phase = Phase::Running;
            let share = state.policy.steps.get(state.step).copied().unwrap_or(ALL);
            change_share(state, share, "resumed", by, &word.reason, now, actions);
        }
        WordKind::Resume => enter(state, Phase::Running, "resumed", by, &word.reason, actions, now),
        WordKind::Promote => {
            state.yielded = false;
            state.step = state.policy.steps.len() - 1;
            state.phase = Phase::Running;
            change_share(state, ALL, "advanced", by, &word.reason, now, actions);
        }
        WordKind::Abort => {
            state.yielded = false;
            let waiting = state.phase == Phase::Waiting;
            state.phase = Phase::Aborted;
            if waiting {
                enter(state, Phase::Aborted, "aborted", by, &word.reason, actions, now);
            } else {
                change_share(state, 0, "aborted", by, &word.reason, now, actions);
            }
        }
        WordKind::Overridden => {
            if !state.phase.is_live() {
                // An ended rollout does not mind.
                state.settled = true;
                return;
            }
            state.yielded = true;
            if let Some(share) = weights.and_then(|weights| share_of(weights, &state.canary)) {
                state.share = share;
            }
            state.evidence.step_begins();
            if state.phase == Phase::Running {
                enter(state, Phase::Paused, "paused", by, &word.reason, actions, now);
            }
        }
    }
}

/// The share that weights give to a version; `None` when all are 0.
fn share_of(weights: &Weights, version: &str) -> Option<Ppm> {
    let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let own = u64::from(weights.get(version).copied().unwrap_or(0));
    (own * u64::from(ALL)).checked_div(total).map(|share| share as Ppm)
}

/// When the schedule lets something begin: cool-down and freeze windows over.
fn held_until(state: &State, now: f64) -> Option<f64> {
    let cool = state.failed_at.map(|at| at + state.policy.cool_down.as_secs_f64()).filter(|until| *until > now);
    let frozen = frozen_until(&state.policy.freeze, now);
    match (cool, frozen) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// First step, or waiting for it.
fn begin(state: &mut State, by: &str, reason: &str, now: f64, actions: &mut Vec<Action>) {
    if let Some(until) = held_until(state, now) {
        let reason = format!("{reason}{}begins in {:.0} s", if reason.is_empty() { "" } else { "; " }, until - now);
        enter(state, Phase::Waiting, "waiting", by, &reason, actions, now);
        return;
    }
    state.phase = Phase::Running;
    (state.step, state.began, state.yielded) = (0, now, false);
    state.evidence = Evidence::new(&state.policy);
    let first = state.policy.steps.first().copied().unwrap_or(ALL);
    change_share(state, first, "started", by, reason, now, actions);
}

/// What happens by itself.
fn by_time(state: &mut State, warm: bool, now: f64, actions: &mut Vec<Action>) {
    match state.phase {
        Phase::Waiting if held_until(state, now).is_none() => {
            let reason = std::mem::take(&mut state.reason);
            begin(state, "schedule", &reason, now, actions);
        }
        Phase::RolledBack if state.settled && state.attempt < state.policy.retries && held_until(state, now).is_none() => {
            state.attempt += 1;
            let reason = format!("attempt {} of {}", state.attempt + 1, state.policy.retries + 1);
            begin(state, "retry", &reason, now, actions);
        }
        Phase::Running if ready(state, warm, now) => {
            let findings = gates::findings(state);
            if findings.iter().all(|finding| finding.answer == Answer::Pass) {
                advance(state, now, actions);
            }
        }
        _ => {}
    }
}

/// The least time of the step.
fn least(state: &State) -> f64 {
    if state.is_last() { state.policy.watch } else { state.policy.dwell }.as_secs_f64()
}

/// Everything but the gates allows the next step; cheap, since it is asked at every look.
fn ready(state: &State, warm: bool, now: f64) -> bool {
    warm && !state.yielded
        && now - state.since >= least(state)
        && state.evidence.step[0].trials >= state.policy.min_samples as f64
        && frozen_until(&state.policy.freeze, now).is_none()
}

fn advance(state: &mut State, now: f64, actions: &mut Vec<Action>) {
    let Some(next) = state.next_share() else {
        enter(state, Phase::Promoted, "promoted", "gates", "every gate passed at the last step", actions, now);
        // A last step below 100% ends there: the policy says so.
        state.settled = false;
        return;
    };
    state.step += 1;
    change_share(state, next, "advanced", "gates", "every gate passed", now, actions);
}

fn take_back(state: &mut State, now: f64, actions: &mut Vec<Action>) {
    let failed: Vec<Finding> = gates::findings(state).into_iter().filter(|finding| finding.answer == Answer::Fail).collect();
    let names: Vec<&str> = failed.iter().map(|finding| finding.gate.as_str()).collect();
    let texts: Vec<&str> = failed.iter().map(|finding| finding.text.as_str()).collect();
    let (by, reason) = (format!("gate {}", names.join(", ")), texts.join("; "));
    (state.failed_at, state.yielded) = (Some(now), false);
    let evidence = gates::findings(state);
    state.phase = Phase::RolledBack;
    change_share_on(state, 0, "rolled-back", &by, &reason, now, actions, evidence);
}

fn change_share(state: &mut State, share: Ppm, event: &str, by: &str, reason: &str, now: f64, actions: &mut Vec<Action>) {
    let evidence = gates::findings(state);
    change_share_on(state, share, event, by, reason, now, actions, evidence);
}

#[expect(clippy::too_many_arguments, reason = "one place that writes a transition, and all that its record holds")]
fn change_share_on(
    state: &mut State,
    share: Ppm,
    event: &str,
    by: &str,
    reason: &str,
    now: f64,
    actions: &mut Vec<Action>,
    evidence: Vec<Finding>,
) {
    let (from, weights_from) = (state.share, state.weights());
    state.share = share;
    state.since = now;
    state.reason = reason.into();
    state.settled = false;
    if state.phase.is_live() {
        state.warm_until = now + state.policy.warm_up.as_secs_f64();
        state.evidence.step_begins();
        state.external.clear();
    }
    let mut told = told(state, event, by, reason, now);
    (told.from, told.weights_from, told.evidence) = (f64::from(from) / f64::from(ALL), weights_from, evidence);
    // The weights first: hooks and records come after the deed.
    actions.push(Action::SetWeights(state.weights()));
    actions.push(Action::Tell(Box::new(told)));
}

/// A transition that leaves the weights alone.
fn enter(state: &mut State, phase: Phase, event: &str, by: &str, reason: &str, actions: &mut Vec<Action>, now: f64) {
    let evidence = if state.phase.is_live() { gates::findings(state) } else { Vec::new() };
    state.phase = phase;
    state.reason = reason.into();
    if !phase.is_live() {
        state.since = now;
    }
    let mut told = told(state, event, by, reason, now);
    told.evidence = evidence;
    actions.push(Action::Tell(Box::new(told)));
}

fn told(state: &State, event: &str, by: &str, reason: &str, now: f64) -> RolloutEvent {
    let share = f64::from(state.share) / f64::from(ALL);
    RolloutEvent {
        at: now,
        service: state.service.clone(),
        canary: state.canary.clone(),
        event: event.into(),
        by: by.into(),
        from: share,
        to: share,
        weights_from: state.weights(),
        weights_to: state.weights(),
        step: state.step,
        attempt: state.attempt,
        reason: reason.into(),
        evidence: Vec::new(),
    }
}

/// Asks again for weights that the node does not run: after a crash between keeping and acting, or a write that failed.
fn converge(state: &mut State, weights: Option<&Weights>, actions: &mut Vec<Action>) {
    let asked = matches!(actions.first(), Some(Action::SetWeights(_)));
    let owns = state.phase.is_live() || !state.settled;
    let (Some(weights), true, false, false) = (weights, owns, asked, state.yielded) else { return };
    let wanted = state.weights();
    if *weights == wanted {
        state.settled = true;
    } else {
        actions.insert(0, Action::SetWeights(wanted));
    }
}

/// What is missing before the next step, one line each.
pub fn missing(state: &State, findings: &[Finding], now: f64) -> Vec<String> {
    let mut missing = Vec::new();
    match state.phase {
        Phase::Waiting => missing.extend(held_until(state, now).map(|until| format!("{:.0} s of cool-down or freeze", until - now))),
        Phase::Paused => missing.push("`splitter rollout resume`".into()),
        Phase::Running => {
            let left = (state.since + least(state)).max(state.warm_until) - now;
            if left > 0.0 {
                missing.push(format!("{:.0} s of this step", left.ceil()));
            }
            missing.extend(frozen_until(&state.policy.freeze, now).map(|until| format!("{:.0} s of freeze", until - now)));
        }
        _ => return missing,
    }
    missing.extend(gates::missing(&state.policy, state, findings));
    missing
}
