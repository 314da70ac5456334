//! Evidence -> findings: what each gate answers now, and why.

use super::{
    evidence::{DOUBT, Evidence, LatencyEvidence, margin, ratio, share_threshold, threshold},
    recorded,
    state::State,
    stats::{self, Detector},
    text::{percent, quantile_name, seconds_text},
};
use splitter_api::{Answer, Finding};
use splitter_policy::model::{ALL, ErrorRate, Latency, Rollout, ShareMismatch};

/// Whether any gate of the node's own signals, or an external one, says *fail*: cheap enough for every look.
pub fn any_fails(state: &State) -> bool {
    let (policy, evidence, limit) = (&state.policy, &state.evidence, threshold(&state.policy));
    let fails = |detector: &Detector| detector.evidence() >= limit;
    policy.gates.error_rate.as_ref().is_some_and(|gate| errors_fail(gate, evidence, limit))
        || policy.gates.share.is_some() && share_fails(evidence, policy)
        || evidence.latency.iter().any(|latency| fails(&latency.limit) || fails(&latency.increase))
        || recorded::fails(state)
        || policy.gates.external.iter().any(|gate| state.external.get(&gate.name).is_some_and(|known| known.failures >= gate.failures))
}

fn errors_fail(gate: &ErrorRate, evidence: &Evidence, limit: f64) -> bool {
    let counts = evidence.recent[0].rate().unwrap_or(0.0) > ratio(gate.ignore_below);
    evidence.errors_limit.evidence() >= limit || counts && evidence.errors_increase.evidence() >= limit
}

fn share_fails(evidence: &Evidence, policy: &Rollout) -> bool {
    evidence.share_high.evidence().max(evidence.share_low.evidence()) >= share_threshold(policy)
}

/// Every gate's answer with what it stands on.
pub fn findings(state: &State) -> Vec<Finding> {
    let (policy, evidence) = (&state.policy, &state.evidence);
    let mut found = Vec::new();
    if let Some(gate) = &policy.gates.error_rate {
        found.push(errors(state, gate));
    }
    found.extend(policy.gates.latency.iter().zip(&evidence.latency).map(|(gate, evidence)| latency(state, gate, evidence)));
    if let Some(gate) = &policy.gates.share {
        found.push(share(state, gate));
    }
    found.extend(recorded::findings(state));
    for gate in &policy.gates.external {
        let known = state.external.get(&gate.name).cloned().unwrap_or_default();
        let answer = match known {
            _ if known.failures >= gate.failures => Answer::Fail,
            _ if known.passed && known.failures == 0 => Answer::Pass,
            _ => Answer::Unknown,
        };
        let text = match answer {
            _ if !known.text.is_empty() => known.text,
            Answer::Pass => "passed".into(),
            _ if known.failures > 0 => format!("failed {} times in a row", known.failures),
            _ => "has not answered in this step".into(),
        };
        found.push(Finding { gate: gate.name.clone(), answer, canary: known.value, text, ..Finding::default() });
    }
    found
}

fn p_value(tests: &[&Detector]) -> Option<f64> {
    tests.iter().map(|test| test.p_value()).reduce(f64::min)
}

fn errors(state: &State, gate: &ErrorRate) -> Finding {
    let (policy, evidence, limit) = (&state.policy, &state.evidence, threshold(&state.policy));
    let [canary, baseline] = evidence.step;
    let mut finding = Finding {
        gate: "errorRate".into(),
        canary: canary.rate().or_else(|| evidence.recent[0].rate()),
        baseline: baseline.rate().or_else(|| evidence.recent[1].rate()),
        counts: Some([[canary.trials, canary.events], [baseline.trials, baseline.events]]),
        p_value: p_value(&[&evidence.errors_limit, &evidence.errors_increase]),
        ..Finding::default()
    };
    let recent = [percent(evidence.recent[0].rate().unwrap_or(0.0)), percent(evidence.recent[1].rate().unwrap_or(0.0))];
    if errors_fail(gate, evidence, limit) {
        finding.answer = Answer::Fail;
        finding.text = match gate.max {
            Some(max) if evidence.errors_limit.evidence() >= limit => {
                format!("the canary fails {} of the requests, above the limit of {}", recent[0], percent(ratio(max)))
            }
            _ => format!("the canary fails {} of the requests, the baseline {} over the same time", recent[0], recent[1]),
        };
        return finding;
    }
    let bound = stats::upper(canary.events, canary.trials, DOUBT);
    // Without a baseline beside it, at 100%, only the absolute limit can be asked for.
    let beside = state.share < ALL;
    let relative = beside.then(|| {
        let next = state.next_share().unwrap_or(ALL);
        stats::lower(baseline.events, baseline.trials, DOUBT) + margin(policy, gate.margin, next)
    });
    let wanted = [relative, gate.max.map(ratio)].into_iter().flatten().reduce(f64::min);
    (finding.bound, finding.limit) = (Some(bound), wanted);
    (finding.answer, finding.text) = match wanted {
        None => (Answer::Pass, "no limit is set, and at 100% there is no baseline beside it".into()),
        // Without a single request nothing is shown, however wide the margin.
        Some(wanted) if bound <= wanted && canary.trials > 0.0 => {
            (Answer::Pass, format!("below {}, as {} asks", percent(bound), percent(wanted)))
        }
        Some(wanted) => {
            let text = format!("shown to be below {}; below {} is needed: more requests to the canary", percent(bound), percent(wanted));
            (Answer::Unknown, text)
        }
    };
    finding
}

fn latency(state: &State, gate: &Latency, evidence: &LatencyEvidence) -> Finding {
    let limit = threshold(&state.policy);
    let (tail, shown) = (1.0 - ratio(gate.quantile), |value: Option<f64>| value.map_or("nothing".into(), seconds_text));
    let mut finding = Finding {
        gate: quantile_name(gate),
        canary: evidence.shown[0],
        baseline: evidence.shown[1],
        p_value: p_value(&[&evidence.limit, &evidence.increase]),
        ..Finding::default()
    };
    let name = &finding.gate;
    if let (Some(max), true) = (gate.max, evidence.limit.evidence() >= limit) {
        finding.text =
            format!("{name} of the canary is {}, above the limit of {}", shown(evidence.shown[0]), seconds_text(max.as_secs_f64()));
        finding.answer = Answer::Fail;
        return finding;
    }
    if evidence.increase.evidence() >= limit {
        finding.text = format!(
            "{name} of the canary is {}, the baseline's over the same time {}, with its allowance {}",
            shown(evidence.shown[0]),
            shown(evidence.shown[1]),
            shown(evidence.cut)
        );
        finding.answer = Answer::Fail;
        return finding;
    }
    // To pass: at most this part of the canary's samples lies above. Against the baseline's quantile, where equal versions have as many
    // as the tail, twice as many are the margin (for quantiles in the middle: half of the way to all).
    let mut parts = Vec::new();
    if gate.max.is_some() {
        parts.push((evidence.above_max, tail));
    }
    if gate.max_increase.is_some() && state.share < ALL {
        parts.push((evidence.above_cut, tail + tail.min((1.0 - tail) / 2.0)));
    }
    finding.answer = Answer::Pass;
    finding.text = "no limit is set, and at 100% there is no baseline beside it".into();
    for (tally, wanted) in parts {
        let bound = stats::upper(tally.events, tally.trials, DOUBT);
        (finding.bound, finding.limit) = (Some(bound), Some(wanted));
        finding.counts = Some([[tally.trials, tally.events], [0.0, 0.0]]);
        finding.text = format!("at most {} of the canary's are slower than allowed", percent(bound));
        if bound > wanted || tally.trials <= 0.0 {
            finding.answer = Answer::Unknown;
            finding.text += &format!("; at most {} must be shown: more requests to the canary", percent(wanted));
            break;
        }
    }
    finding
}

fn share(state: &State, gate: &ShareMismatch) -> Finding {
    let evidence = &state.evidence;
    let [canary, all] = evidence.connections;
    let (asked, tolerance) = (ratio(state.share), ratio(gate.tolerance));
    let achieved = (all > 0.0).then(|| canary / all);
    let mut finding = Finding {
        gate: "share".into(),
        canary: achieved,
        baseline: Some(asked),
        counts: Some([[all, canary], [0.0, 0.0]]),
        p_value: p_value(&[&evidence.share_high, &evidence.share_low]),
        ..Finding::default()
    };
    let got = percent(achieved.unwrap_or(0.0));
    if share_fails(evidence, &state.policy) {
        finding.answer = Answer::Fail;
        finding.text = format!("the canary's share is {got} where {} were asked", percent(asked));
    } else if stats::upper(canary, all, DOUBT) <= (asked * (1.0 + 2.0 * tolerance)).min(1.0)
        && stats::lower(canary, all, DOUBT) >= asked * (1.0 - 2.0 * tolerance)
    {
        finding.answer = Answer::Pass;
        finding.text = format!("{got}, {} asked", percent(asked));
    } else {
        finding.text = format!("{got} of {all:.0}, {} asked: more requests are needed to tell", percent(asked));
    }
    finding
}
