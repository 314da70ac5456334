//! The step function: time, evidence and words -> transitions.
//!
//! What holds at every step, and is property-tested: the weights asked for always sum to the whole; the canary's share never grows unless every
//! gate passed (or an operator said so), and then only to the next step; a gate that fails always ends at zero; a state that was kept and read
//! back goes on as if nothing had happened; no clock that somebody sets moves anything but records.

use super::{
    evidence::Evidence,
    gates,
    guard::{Guard, Record},
    observation::{Moment, Observation, Reading, Weights, Word, WordKind},
    recorded,
    state::{Phase, State},
    waiting::{self, frozen, held, least, span},
    words::allowed,
};
use splitter_api::{Answer, Finding, RolloutEvent};
use splitter_policy::model::{ALL, Ppm};

/// What the caller does, in this order, after the state is on disk.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// One map write. Asked for again until the node is seen to run it.
    SetWeights(Weights),
    /// One line of the audit log, then the hooks.
    Tell(Box<RolloutEvent>),
}

/// One look. Words that are not [`allowed`] are ignored.
pub fn step(mut state: State, observation: &Observation, moment: Moment) -> (State, Vec<Action>) {
    let actions = step_in_place(&mut state, observation, moment);
    (state, actions)
}

/// The same where the state stands.
pub fn step_in_place(state: &mut State, observation: &Observation, moment: Moment) -> Vec<Action> {
    let mut actions = Vec::new();
    let passed = moment.passed.max(0.0);
    state.clock += passed;
    let before = state.backends.replace(observation.backends);
    if before.is_some_and(|before| before != observation.backends) {
        // Autoscaling, or a deployment: new processes warm up again, and nothing advances meanwhile.
        state.warm = state.warm.max(state.clock + state.policy.warm_up.as_secs_f64());
    }
    let warm = state.clock >= state.warm;
    if state.is_judged() {
        see(state, observation, warm);
    }
    if state.phase == Phase::Running && frozen(state, moment).is_none() {
        state.tried += passed;
    }
    if let Some(word) = &observation.word
        && allowed(state, word, moment).is_ok()
    {
        follow(state, word, observation.weights.as_ref(), moment, &mut actions);
    } else if state.is_judged() && gates::any_fails(state) {
        take_back(state, moment, &mut actions);
    } else {
        by_time(state, warm, moment, &mut actions);
    }
    converge(state, observation.weights.as_ref(), &mut actions);
    actions
}

/// Takes what a look brought as evidence.
fn see(state: &mut State, observation: &Observation, warm: bool) {
    let alone = recorded::is_active(state);
    if let Some(traffic) = &observation.traffic {
        state.evidence.traffic(&state.policy, state.share, traffic, warm);
        if alone {
            state.guard.traffic(&state.policy, &state.record, traffic);
        }
    }
    if let Some(samples) = &observation.latency {
        state.evidence.samples(&state.policy, samples, warm);
        if alone && warm {
            state.guard.samples(&state.policy, &state.record, samples);
        }
    }
    observation.readings.iter().for_each(|reading| note(state, reading));
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

fn follow(state: &mut State, word: &Word, weights: Option<&Weights>, moment: Moment, actions: &mut Vec<Action>) {
    let by = word.by.as_str();
    if word.override_freeze && !state.override_freeze {
        state.override_freeze = true;
        let mut told = told(state, "freeze-overridden", by, &word.reason, moment);
        told.reason = [word.reason.as_str(), "freeze windows do not hold this rollout"]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        actions.push(Action::Tell(Box::new(told)));
    }
    match word.kind {
        WordKind::Start => {
            state.attempt = 0;
            if let Some(weights) = weights {
                let others = weights.iter().filter(|(name, _)| **name != state.canary);
                state.base = others.map(|(name, weight)| (name.clone(), *weight)).collect();
            }
            begin(state, by, &word.reason, moment, actions);
        }
        WordKind::Pause => enter(state, Phase::Paused, "paused", by, &word.reason, actions, moment),
        WordKind::Resume if state.yielded => {
            // Back to the step's own share.
            state.yielded = false;
            state.phase = Phase::Running;
            let share = state.policy.steps.get(state.step).copied().unwrap_or(ALL);
            change_share(state, share, "resumed", by, &word.reason, moment, actions);
        }
        WordKind::Resume if state.phase == Phase::Running => {}
        WordKind::Resume => go_on(state, by, &word.reason, moment, actions),
        WordKind::Promote => {
            state.yielded = false;
            state.step = state.policy.steps.len() - 1;
            state.phase = Phase::Running;
            // Whoever says so does not want to be asked again.
            state.policy.pauses.clear();
            change_share(state, ALL, "advanced", by, &word.reason, moment, actions);
        }
        WordKind::Abort | WordKind::Undo => {
            let (was, undo) = (state.phase, word.kind == WordKind::Undo);
            (state.yielded, state.watched_until, state.phase) = (false, None, Phase::Aborted);
            if matches!(was, Phase::Waiting | Phase::RolledBack) {
                enter(state, Phase::Aborted, "aborted", by, &word.reason, actions, moment);
            } else {
                change_share(state, 0, if undo { "undone" } else { "aborted" }, by, &word.reason, moment, actions);
            }
        }
        WordKind::Overridden => overridden(state, word, weights, moment, actions),
    }
}

/// A pause is over.
fn go_on(state: &mut State, by: &str, reason: &str, moment: Moment, actions: &mut Vec<Action>) {
    if state.pausing.take().is_some() {
        state.confirmed = true;
    }
    enter(state, Phase::Running, "resumed", by, reason, actions, moment);
}

/// Others have set the weights: a rollout that runs stands back, one that has ended no longer cares.
fn overridden(state: &mut State, word: &Word, weights: Option<&Weights>, moment: Moment, actions: &mut Vec<Action>) {
    let share = weights.and_then(|weights| share_of(weights, &state.canary));
    if !state.phase.is_live() {
        // The same shares by another hand (a policy that takes over what was promoted) are watched on.
        if state.phase != Phase::Promoted || share != Some(state.share) {
            state.watched_until = None;
        }
        (state.settled, state.yielded) = (true, true);
        return;
    }
    (state.yielded, state.pausing) = (true, None);
    state.share = share.unwrap_or(state.share);
    state.evidence.step_begins();
    if state.phase == Phase::Running {
        enter(state, Phase::Paused, "paused", &word.by, &word.reason, actions, moment);
    }
}

/// The share that weights give to a version; `None` when all are 0.
fn share_of(weights: &Weights, version: &str) -> Option<Ppm> {
    let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
    let own = u64::from(weights.get(version).copied().unwrap_or(0));
    (own * u64::from(ALL)).checked_div(total).map(|share| share as Ppm)
}

/// First step, or waiting for it.
fn begin(state: &mut State, by: &str, reason: &str, moment: Moment, actions: &mut Vec<Action>) {
    if let Some(left) = held(state, moment) {
        let reason = format!("{reason}{}begins in {}", if reason.is_empty() { "" } else { "; " }, span(left));
        enter(state, Phase::Waiting, "waiting", by, &reason, actions, moment);
        return;
    }
    state.phase = Phase::Running;
    (state.step, state.began, state.yielded, state.watched_until) = (0, moment.unix, false, None);
    (state.evidence, state.record, state.guard) = (Evidence::new(&state.policy), Record::default(), Guard::default());
    let first = state.policy.steps.first().copied().unwrap_or(ALL);
    change_share(state, first, "started", by, reason, moment, actions);
}

/// What happens by itself.
fn by_time(state: &mut State, warm: bool, moment: Moment, actions: &mut Vec<Action>) {
    match state.phase {
        Phase::Waiting if held(state, moment).is_none() => {
            let reason = std::mem::take(&mut state.reason);
            begin(state, "schedule", &reason, moment, actions);
        }
        Phase::RolledBack if state.settled && state.retries() && held(state, moment).is_none() => {
            state.attempt += 1;
            let reason = format!("attempt {} of {}", state.attempt + 1, state.policy.retries + 1);
            begin(state, "retry", &reason, moment, actions);
        }
        Phase::Paused if state.pausing.flatten().is_some_and(|until| state.clock >= until) => {
            go_on(state, "steps", "the pause is over", moment, actions);
        }
        Phase::Promoted if state.watched_until.is_some_and(|until| state.clock >= until) => {
            let reason = format!("no gate failed for {} after the promotion", span(state.policy.watch_after.as_secs_f64()));
            enter(state, Phase::Promoted, "watched", "gates", &reason, actions, moment);
            state.watched_until = None;
        }
        Phase::Running => {
            if ready(state, warm, moment) && gates::findings(state).iter().all(|finding| finding.answer == Answer::Pass) {
                advance(state, moment, actions);
            } else if state.policy.progress_deadline.is_some_and(|deadline| state.tried >= deadline.as_secs_f64()) {
                miss_deadline(state, moment, actions);
            }
        }
        _ => {}
    }
}

/// Everything but the gates allows the next step; cheap, since it is asked at every look.
fn ready(state: &State, warm: bool, moment: Moment) -> bool {
    warm && !state.yielded
        && state.clock - state.entered >= least(state)
        && state.evidence.step[0].trials >= state.policy.min_samples as f64
        && frozen(state, moment).is_none()
}

fn advance(state: &mut State, moment: Moment, actions: &mut Vec<Action>) {
    if let Some(pause) = state.policy.pauses.get(&state.step).copied()
        && !state.confirmed
    {
        let until = pause.duration.map(|duration| state.clock + duration.as_secs_f64());
        let goes_on = format!("`splitter rollout resume {}` goes on", state.service);
        let reason = match pause.duration {
            Some(duration) => format!("every gate passed; the steps pause here for {}, {goes_on} at once", span(duration.as_secs_f64())),
            None => format!("every gate passed; the steps pause here: {goes_on}"),
        };
        enter(state, Phase::Paused, "paused", "steps", &reason, actions, moment);
        state.pausing = Some(until);
        return;
    }
    let Some(next) = state.next_share() else {
        let after = state.policy.watch_after.as_secs_f64();
        let more = if after > 0.0 { format!("; watched for {} more", span(after)) } else { String::new() };
        enter(state, Phase::Promoted, "promoted", "gates", &format!("every gate passed at the last step{more}"), actions, moment);
        state.watched_until = (after > 0.0).then_some(state.clock + after);
        // A last step below 100% ends there: the policy says so.
        state.settled = false;
        return;
    };
    state.step += 1;
    change_share(state, next, "advanced", "gates", "every gate passed", moment, actions);
}

fn take_back(state: &mut State, moment: Moment, actions: &mut Vec<Action>) {
    let evidence = gates::findings(state);
    let failed = || evidence.iter().filter(|finding| finding.answer == Answer::Fail);
    let names: Vec<&str> = failed().map(|finding| finding.gate.as_str()).collect();
    let texts: Vec<&str> = failed().map(|finding| finding.text.as_str()).collect();
    let (by, reason) = (format!("gate {}", names.join(", ")), texts.join("; "));
    state.retry = true;
    roll_back(state, &by, &reason, moment, actions, evidence);
}

/// It never moved on: nobody shall have to remember it.
fn miss_deadline(state: &mut State, moment: Moment, actions: &mut Vec<Action>) {
    let evidence = gates::findings(state);
    let missing = waiting::missing(state, &evidence, moment);
    let deadline = state.policy.progress_deadline.unwrap_or_default().as_secs_f64();
    let reason = format!("this step did not end within {} (progressDeadline); missing: {}", span(deadline), missing.join("; "));
    state.retry = false;
    roll_back(state, "deadline", &reason, moment, actions, evidence);
}

fn roll_back(state: &mut State, by: &str, reason: &str, moment: Moment, actions: &mut Vec<Action>, evidence: Vec<Finding>) {
    (state.failed, state.yielded, state.watched_until) = (Some(state.clock), false, None);
    state.phase = Phase::RolledBack;
    change_share_on(state, 0, "rolled-back", by, reason, moment, actions, evidence);
}

fn change_share(state: &mut State, share: Ppm, event: &str, by: &str, reason: &str, moment: Moment, actions: &mut Vec<Action>) {
    let evidence = gates::findings(state);
    change_share_on(state, share, event, by, reason, moment, actions, evidence);
}

#[expect(clippy::too_many_arguments, reason = "one place that writes a transition, and all that its record holds")]
fn change_share_on(
    state: &mut State,
    share: Ppm,
    event: &str,
    by: &str,
    reason: &str,
    moment: Moment,
    actions: &mut Vec<Action>,
    evidence: Vec<Finding>,
) {
    let (from, weights_from) = (state.share, state.weights());
    if state.share < ALL {
        state.record.note(&state.evidence);
    }
    state.share = share;
    (state.since, state.entered, state.tried) = (moment.unix, state.clock, 0.0);
    (state.pausing, state.confirmed) = (None, false);
    state.reason = reason.into();
    state.settled = false;
    if state.phase.is_live() {
        state.warm = state.clock + state.policy.warm_up.as_secs_f64();
        state.evidence.step_begins();
        state.external.clear();
        if share >= ALL && from < ALL {
            state.guard = Guard::begin(&state.policy);
        }
    }
    let mut told = told(state, event, by, reason, moment);
    (told.from, told.weights_from, told.evidence) = (f64::from(from) / f64::from(ALL), weights_from, evidence);
    // The weights first: hooks and records come after the deed.
    actions.push(Action::SetWeights(state.weights()));
    actions.push(Action::Tell(Box::new(told)));
}

/// A transition that leaves the weights alone.
fn enter(state: &mut State, phase: Phase, event: &str, by: &str, reason: &str, actions: &mut Vec<Action>, moment: Moment) {
    let evidence = if state.is_judged() { gates::findings(state) } else { Vec::new() };
    if !phase.is_live() && state.phase != phase {
        (state.since, state.entered) = (moment.unix, state.clock);
    }
    state.phase = phase;
    state.reason = reason.into();
    let mut told = told(state, event, by, reason, moment);
    told.evidence = evidence;
    actions.push(Action::Tell(Box::new(told)));
}

fn told(state: &State, event: &str, by: &str, reason: &str, moment: Moment) -> RolloutEvent {
    let share = f64::from(state.share) / f64::from(ALL);
    RolloutEvent {
        at: moment.unix,
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
    let asked = actions.iter().any(|action| matches!(action, Action::SetWeights(_)));
    let owns = state.phase.is_live() || !state.settled;
    let (Some(weights), true, false, false) = (weights, owns, asked, state.yielded) else { return };
    let wanted = state.weights();
    if *weights == wanted {
        state.settled = true;
    } else {
        actions.insert(0, Action::SetWeights(wanted));
    }
}
