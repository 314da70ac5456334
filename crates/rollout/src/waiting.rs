//! What a rollout waits for, in words, and for about how long: from the present rate of requests and what the gates still need.

use super::{
    evidence::{DOUBT, ratio},
    observation::Moment,
    state::{Phase, State},
    stats,
};
use splitter_api::{Answer, Finding};

/// Recent counts fade with this time constant, seconds; see `evidence`.
const RECENT: f64 = 10.0;
/// More requests than this are not waited for: at that rate the gate never passes.
const FOREVER: f64 = 1e12;

/// The end of the freeze window that holds this rollout, Unix seconds.
pub fn frozen(state: &State, moment: Moment) -> Option<f64> {
    moment.frozen.filter(|_| !state.override_freeze)
}

/// Seconds until cool-down and freeze window let something begin; `None`: now.
pub fn held(state: &State, moment: Moment) -> Option<f64> {
    let cool = state.failed.map(|at| at + state.policy.cool_down.as_secs_f64() - state.clock).filter(|left| *left > 0.0);
    let frozen = frozen(state, moment).map(|until| (until - moment.unix).max(0.0));
    match (cool, frozen) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

/// The least time of the step.
pub fn least(state: &State) -> f64 {
    if state.is_last() { state.policy.watch } else { state.policy.dwell }.as_secs_f64()
}

/// `45s`, `12m 5s`, `3h 20m`, `2d 4h`: two units at most.
pub fn span(seconds: f64) -> String {
    let whole = seconds.max(0.0).ceil().min(1e15) as u64;
    let units = [(whole / 86_400, "d"), (whole / 3_600 % 24, "h"), (whole / 60 % 60, "m"), (whole % 60, "s")];
    let first = units.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let told = units[first..].iter().take(2).filter(|(count, _)| *count > 0);
    let text = told.map(|(count, unit)| format!("{count}{unit}")).collect::<Vec<_>>().join(" ");
    if text.is_empty() { "0s".into() } else { text }
}

/// What is missing before the next step, one line each.
pub fn missing(state: &State, findings: &[Finding], moment: Moment) -> Vec<String> {
    let clock = state.clock + moment.passed.max(0.0);
    let mut missing = Vec::new();
    let frozen = moment.frozen.filter(|_| !state.override_freeze).map(|until| until - moment.unix);
    match state.phase {
        Phase::Waiting => {
            let cool = held(state, Moment { frozen: None, ..moment }).map(|left| left - moment.passed.max(0.0));
            missing.extend(cool.filter(|left| *left > 0.0).map(|left| format!("{} of cool-down", span(left))));
            missing.extend(frozen.map(|left| format!("{} of a freeze window", span(left))));
        }
        Phase::Paused => match state.pausing {
            Some(Some(until)) => {
                missing.push(format!("{} of a pause, or `splitter rollout resume {}`", span(until - clock), state.service))
            }
            _ => missing.push(format!("`splitter rollout resume {}`", state.service)),
        },
        Phase::Running => {
            let left = left(state, clock);
            if left > 0.0 {
                missing.push(format!("{} of this step", span(left)));
            }
            missing.extend(frozen.map(|left| format!("{} of a freeze window", span(left))));
        }
        _ => return missing,
    }
    if state.phase != Phase::Waiting {
        let unknown = findings.iter().filter(|finding| finding.answer == Answer::Unknown);
        missing.extend(unknown.map(|finding| format!("{}: {}", finding.gate, finding.text)));
        let more = samples_left(state);
        if more > 0.0 {
            missing.push(format!("{more:.0} more requests to the canary (minSamples)"));
        }
    }
    missing
}

/// Of the step's least time and warm-up.
fn left(state: &State, clock: f64) -> f64 {
    (state.entered + least(state)).max(state.warm) - clock
}

fn samples_left(state: &State) -> f64 {
    state.policy.min_samples as f64 - state.evidence.step[0].trials
}

/// Seconds until everything is there that is missing in a step that runs, and how that was reckoned.
pub fn estimate(state: &State, findings: &[Finding], moment: Moment) -> (Option<f64>, String) {
    let clock = state.clock + moment.passed.max(0.0);
    let frozen = moment.frozen.filter(|_| !state.override_freeze).map_or(0.0, |until| until - moment.unix);
    let mut seconds = left(state, clock).max(frozen).max(0.0);
    let rate = state.evidence.recent[0].trials / RECENT;
    let needs = samples_left(state).max(0.0);
    let mut needed = needs;
    let none = |why: String| (None, format!("no estimate: {why}"));
    for finding in findings.iter().filter(|finding| finding.answer == Answer::Unknown) {
        match trials_left(state, finding) {
            Some(more) if more < FOREVER => needed = needed.max(more),
            Some(_) => return none(format!("at the present figures the gate {} never passes", finding.gate)),
            None => return none(format!("{} has to answer", finding.gate)),
        }
    }
    if needed > 0.0 {
        if rate < 0.01 {
            return none("no requests reach the canary".into());
        }
        // What came in the warm-up does not count, and more of it will come.
        seconds = seconds.max((state.warm - clock).max(0.0) + needed / rate);
    }
    let at = if needed > 0.0 { format!(" at the present {rate:.1} requests a second to the canary") } else { String::new() };
    (Some(seconds), format!("about {} in all{at}", span(seconds)))
}

/// Requests to the canary until an undecided gate says *pass*, at the rates that were seen; `None` when requests do not decide it.
fn trials_left(state: &State, finding: &Finding) -> Option<f64> {
    let [[trials, events], _] = finding.counts?;
    if finding.gate == "share" {
        let gate = state.policy.gates.share.as_ref()?;
        let (asked, tolerance) = (ratio(state.share), 2.0 * ratio(gate.tolerance));
        let passes = |upper: f64, lower: f64| upper <= (asked * (1.0 + tolerance)).min(1.0) && lower >= asked * (1.0 - tolerance);
        // The counts are of all versions: the canary's part of them is wanted.
        let achieved = if trials > 0.0 { events / trials } else { asked };
        return Some(search(trials, achieved, passes) * asked);
    }
    let limit = finding.limit?;
    // Nothing seen yet: as if nothing fails.
    let rate = if trials > 0.0 { events / trials } else { 0.0 };
    Some(search(trials, rate, |upper, _| upper <= limit))
}

/// The fewest trials more, in steps of a tenth, with which bounds at this rate are as wanted.
fn search(trials: f64, rate: f64, passes: impl Fn(f64, f64) -> bool) -> f64 {
    let mut all = trials.max(10.0);
    while all < FOREVER {
        if passes(stats::upper(rate * all, all, DOUBT), stats::lower(rate * all, all, DOUBT)) {
            return (all - trials).max(0.0);
        }
        all *= 1.1;
    }
    FOREVER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units_at_most() {
        for (seconds, text) in
            [(-1.0, "0s"), (0.2, "1s"), (59.0, "59s"), (60.0, "1m"), (725.0, "12m 5s"), (12_000.0, "3h 20m"), (1.8e9, "20833d 8h")]
        {
            assert_eq!(span(seconds), text);
        }
    }

    #[test]
    fn the_search_finds_what_the_bound_needs() {
        let more = search(0.0, 0.0, |upper, _| upper <= 0.01);
        assert!(stats::upper(0.0, more, DOUBT) <= 0.01 && stats::upper(0.0, more / 1.2, DOUBT) > 0.01, "{more}");
        assert_eq!(search(100.0, 0.5, |upper, _| upper <= 0.01), FOREVER);
    }
}
