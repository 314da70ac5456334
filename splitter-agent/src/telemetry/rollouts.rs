//! `splitter_rollout_*`: where each rollout stands, what its gates say, what happened.

use super::families::{counters, gauges};
use prometheus_client::encoding::DescriptorEncoder;
use splitter_api::{Answer, EVENTS, Finding, Status};
use std::fmt;

const PHASES: [&str; 7] = ["idle", "waiting", "running", "paused", "promoted", "rolled-back", "aborted"];

/// Labels are closed sets: services, phases, gates of the policy, events.
pub fn encode(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let all = || status.rollouts.iter().map(|rollout| ([("service", rollout.service.as_str())], rollout));
    let phases = all()
        .flat_map(|([service], rollout)| PHASES.map(|phase| ([service, ("phase", phase)], if rollout.phase == phase { 1.0 } else { 0.0 })));
    gauges(encoder, "splitter_rollout_phase", "1 for the phase that a rollout is in, 0 for the others", phases)?;
    gauges(
        encoder,
        "splitter_rollout_step",
        "Step that a rollout is at, from 0",
        all().map(|(labels, rollout)| (labels, rollout.step as f64)),
    )?;
    let shares = all().map(|(labels, rollout)| (labels, rollout.share));
    gauges(encoder, "splitter_rollout_share_ratio", "Asked share of the canary", shares)?;
    let since = all().map(|(labels, rollout)| (labels, rollout.since));
    gauges(encoder, "splitter_rollout_since_timestamp_seconds", "When the present step or phase began", since)?;
    let answers = findings(status).map(|(labels, finding)| {
        let answer = match finding.answer {
            Answer::Pass => 1.0,
            Answer::Fail => -1.0,
            Answer::Unknown => 0.0,
        };
        (labels, answer)
    });
    gauges(encoder, "splitter_rollout_gate", "What a gate says: 1 pass, 0 not enough data, -1 fail", answers)?;
    let p_values = findings(status).filter_map(|(labels, finding)| Some((labels, finding.p_value?)));
    gauges(encoder, "splitter_rollout_gate_p_value", "Smallest p-value so far that the canary is no worse, valid at every look", p_values)?;
    // All from the start, at 0: the first one of each is a step that `increase()` sees. Those of services that are gone stay.
    let count = |service: &str, event: &str| {
        let found = status.rollout_events.iter().find(|(other, name, _)| other == service && name == event);
        found.map_or(0, |(_, _, count)| *count)
    };
    let known = all().flat_map(|([(label, service)], _)| EVENTS.map(|event| ([(label, service), ("event", event)], count(service, event))));
    let gone = status.rollout_events.iter().filter(|(service, event, _)| {
        !EVENTS.contains(&event.as_str()) || status.rollouts.binary_search_by(|rollout| rollout.service.as_str().cmp(service)).is_err()
    });
    let gone = gone.map(|(service, event, count)| ([("service", service.as_str()), ("event", event.as_str())], *count));
    counters(encoder, "splitter_rollout_transitions", "Transitions of rollouts since the agent's start, by event", None, known.chain(gone))
}

fn findings(status: &Status) -> impl Iterator<Item = ([(&'static str, &str); 2], &Finding)> {
    let pairs = status.rollouts.iter().flat_map(|rollout| rollout.findings.iter().map(move |finding| (rollout.service.as_str(), finding)));
    pairs.map(|(service, finding)| ([("service", service), ("gate", finding.gate.as_str())], finding))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::render;
    use splitter_api::RolloutStatus;

    #[test]
    fn names_labels_and_values() {
        let finding = Finding { gate: "errorRate".into(), answer: Answer::Fail, p_value: Some(0.25), ..Finding::default() };
        let rollout = RolloutStatus {
            service: "shop/web".into(),
            phase: "running".into(),
            step: 2,
            share: 0.1,
            since: 5.0,
            findings: vec![finding],
            ..RolloutStatus::default()
        };
        let events = vec![("gone".to_owned(), "aborted".to_owned(), 1), ("shop/web".to_owned(), "rolled-back".to_owned(), 3)];
        let text = render(Status { rollouts: vec![rollout], rollout_events: events, ..Status::default() }).unwrap();
        for line in [
            "splitter_rollout_phase{service=\"shop/web\",phase=\"running\"} 1.0",
            "splitter_rollout_phase{service=\"shop/web\",phase=\"paused\"} 0.0",
            "splitter_rollout_step{service=\"shop/web\"} 2.0",
            "splitter_rollout_share_ratio{service=\"shop/web\"} 0.1",
            "splitter_rollout_since_timestamp_seconds{service=\"shop/web\"} 5.0",
            "splitter_rollout_gate{service=\"shop/web\",gate=\"errorRate\"} -1.0",
            "splitter_rollout_gate_p_value{service=\"shop/web\",gate=\"errorRate\"} 0.25",
            "splitter_rollout_transitions_total{service=\"shop/web\",event=\"rolled-back\"} 3",
            "splitter_rollout_transitions_total{service=\"shop/web\",event=\"started\"} 0",
            "splitter_rollout_transitions_total{service=\"shop/web\",event=\"undone\"} 0",
            "splitter_rollout_transitions_total{service=\"gone\",event=\"aborted\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n in\n{text}");
        }
    }
}
