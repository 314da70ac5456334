//! Rollouts that are right, with their defaults, and each error at its place.

use crate::{
    model::*,
    source::{Outcome, load},
};
use std::time::Duration;

/// Reads a policy whose `rollout` is this, indented by four.
fn read(rollout: &str) -> Outcome {
    let text = format!(
        "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: checkout}}\nspec:\n  frontends: [{{address: 10.9.9.9, port: 80}}]\n  \
         mode: tcp\n  versions:\n    - {{name: v0, weight: 1, backends: [\"10.2.1.2:1\"]}}\n    - {{name: v1, weight: 9, backends: [\"10.2.1.2:2\"]}}\n    \
         - {{name: v2, weight: 0, backends: [\"10.2.1.2:3\"]}}\n  rollout:\n{rollout}"
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("p.yaml");
    std::fs::write(&path, text).unwrap();
    load(&path)
}

fn rollout(text: &str) -> Rollout {
    read(text).result.unwrap_or_else(|errors| panic!("{}", errors[0])).services[0].rollout.clone().unwrap()
}

#[test]
fn a_canary_alone_gets_the_defaults() {
    let rollout = rollout("    canary: v2\n");
    assert_eq!((rollout.canary, rollout.baseline), (2, 1), "compared with the heaviest other version");
    assert_eq!(rollout.steps, [10_000, 50_000, 100_000, 500_000, 1_000_000]);
    assert_eq!((rollout.pace, rollout.dwell, rollout.watch), (Pace::Fixed, Duration::from_secs(300), Duration::from_secs(300)));
    assert_eq!((rollout.false_alarm, rollout.retries, rollout.min_samples), (10_000, 0, 100));
    assert_eq!((rollout.watch_after, rollout.progress_deadline), (Duration::from_secs(600), None));
    assert_eq!((rollout.gates.error_rate.unwrap().max, rollout.gates.share.unwrap().tolerance), (None, 200_000));
    assert!(rollout.gates.latency.is_empty() && rollout.gates.external.is_empty());
}

#[test]
fn every_field_is_read() {
    let rollout = rollout(
        "    canary: v2
    baseline: v0
    steps: [0.5%, {pause: {}}, 100%, pause: {duration: 10m}]
    watchAfter: 1m
    progressDeadline: 30m
    pace: adaptive
    dwell: 2s
    watch: 0s
    minSamples: 7
    warmUp: 1s
    falseAlarm: 0.1%
    retries: 2
    coolDown: 1m
    judge: all
    freeze:
      - {days: [fri, sat], from: \"22:00\", to: \"06:30\"}
      - {dates: 2026-12-24..2027-01-02, zone: Europe/Berlin}
      - {dates: 2026-05-01, from: \"08:00\", to: \"18:00\"}
    hooks:
      - {webhook: \"http://chat:8080/x\"}
      - {command: [/bin/true, -x], timeout: 1s}
    gates:
      errorRate: {max: 1%, maxIncrease: 0%, margin: 2%, ignoreBelow: 0%, unanswered: 800ms, codes: [5xx, 404, 404]}
      latency:
        - {quantile: 0.99, max: 500ms, maxIncrease: 20%}
        - {quantile: 0.5, maxIncrease: 100%, measure: connect}
      share: {tolerance: 10%}
      saturation:
        - {name: cpu, cgroup: /sys/fs/cgroup/v2, max: 80%}
        - {name: mem, cgroup: /sys/fs/cgroup/v2, resource: memory, max: 90%, every: 2s}
      probes:
        - {name: order, path: /order, method: POST, headers: {x-test: \"1\"}, body: one, status: 201, contains: ok}
      prometheus:
        - {name: queue, url: \"http://p:9090\", query: depth, max: 10.5, min: -1}
      webhooks:
        - {name: human, url: \"http://judge/\"}
      commands:
        - {name: script, run: [/bin/check], failures: 4}
",
    );
    assert_eq!((rollout.baseline, &rollout.steps[..], rollout.watch), (0, &[5_000, 1_000_000][..], Duration::ZERO));
    assert_eq!(rollout.freeze[0], Freeze { days: vec![4, 5], from: 1320, to: 390, ..Freeze::default() });
    let dates = Some([(2026, 12, 24), (2027, 1, 2)]);
    assert_eq!(rollout.freeze[1], Freeze { dates, zone: Some("Europe/Berlin".into()), ..Freeze::default() });
    assert_eq!(rollout.freeze[2].dates, Some([(2026, 5, 1), (2026, 5, 1)]));
    assert_eq!(rollout.pauses, [(0, Pause::default()), (1, Pause { duration: Some(Duration::from_secs(600)) })].into());
    assert_eq!((rollout.watch_after, rollout.progress_deadline), (Duration::from_secs(60), Some(Duration::from_secs(1800))));
    assert_eq!(rollout.hooks.len(), 2);
    let errors = ErrorRate { max: Some(10_000), max_increase: 0, margin: 20_000, ignore_below: 0, ..ErrorRate::default() };
    let errors = ErrorRate { unanswered: Duration::from_millis(800), codes: vec![[404, 404], [500, 599]], ..errors };
    assert_eq!((&rollout.gates.error_rate, rollout.judge), (&Some(errors), Judge::All));
    assert_eq!((rollout.gates.latency[0].quantile, rollout.gates.latency[1].measure), (990_000, Measure::Connect));
    let names: Vec<_> = rollout.gates.external.iter().map(|gate| (gate.name.as_str(), gate.failures)).collect();
    assert_eq!(names, [("cpu", 3), ("mem", 3), ("order", 2), ("queue", 3), ("human", 1), ("script", 4)]);
    let Check::Value { min, max, .. } = &rollout.gates.external[3].check else { panic!() };
    assert_eq!((*min, *max), (Some(-1_000), Some(10_500)));
    let Check::Value { from, max, .. } = &rollout.gates.external[0].check else { panic!() };
    assert_eq!((from, *max), (&Number::CgroupCpu { path: "/sys/fs/cgroup/v2".into() }, Some(800)));
}

#[test]
fn blue_green_is_one_step() {
    assert_eq!(rollout("    canary: v2\n    strategy: blueGreen\n").steps, [ALL]);
}

#[test]
fn errors_stand_at_their_place() {
    for (text, place, part) in [
        ("    canary: v3\n", "12:13", "there is no version `v3`"),
        ("    baseline: v1\n", "12:5", "spec.rollout.canary is missing"),
        ("    canary: v2\n    baseline: v2\n", "12:5", "are the same version"),
        ("    canary: v2\n    stpes: [1%]\n", "13:5", "did you mean `steps`?"),
        ("    canary: v2\n    steps: [5%, 1%]\n", "13:17", "steps must rise"),
        ("    canary: v2\n    steps: [5]\n", "13:13", "must be a percentage"),
        ("    canary: v2\n    steps: [101%]\n", "13:13", "from 0.0001% to 100%"),
        ("    canary: v2\n    steps: []\n", "13:12", "1 to 100 steps"),
        ("    canary: v2\n    strategy: blueGreen\n    steps: [5%]\n", "14:12", "has no meaning"),
        ("    canary: v2\n    dwell: 5\n", "13:12", "is not a duration"),
        ("    canary: v2\n    pace: fast\n", "13:11", "cannot be `fast`"),
        ("    canary: v2\n    hooks: [{}]\n", "13:13", "either `webhook: URL`"),
        ("    canary: v2\n    hooks: [{webhook: \"https://x\"}]\n", "13:23", "not a plain HTTP address"),
        ("    canary: v2\n    freeze: [{from: \"25:00\", to: \"06:00\"}]\n", "13:21", "time of day"),
        ("    canary: v2\n    judge: some\n", "13:12", "cannot be `some`"),
        ("    canary: v2\n    gates: {errorRate: {codes: [6xx]}}\n", "13:33", "classes 1xx to 5xx or statuses 100 to 599"),
        ("    canary: v2\n    gates: {errorRate: {codes: [5xx, 99]}}\n", "13:38", "classes 1xx to 5xx or statuses 100 to 599"),
        ("    canary: v2\n    gates: {errorRate: {codes: []}}\n", "13:32", "names nothing"),
        ("    canary: v2\n    gates: {errorRate: {unanswered: 10ms}}\n", "13:37", "must be 100ms to 1h"),
        ("    canary: v2\n    steps: [{pause: {}}, 5%]\n", "13:13", "a pause stands after the step"),
        ("    canary: v2\n    steps: [5%, {pause: {}}, {pause: {}}]\n", "13:30", "one pause follows another"),
        ("    canary: v2\n    steps: [5%, {pause: {duration: 0s}}]\n", "13:36", "must be more than 0s"),
        ("    canary: v2\n    steps: [5%, {wait: 5m}]\n", "13:18", "unknown field `wait`"),
        ("    canary: v2\n    progressDeadline: 5m\n", "13:23", "must be longer than `dwell` and `watch`"),
        ("    canary: v2\n    freeze: [{dates: 2026-12-24..2026-12-01}]\n", "13:22", "ends before it begins"),
        ("    canary: v2\n    freeze: [{dates: 24.12.2026}]\n", "13:22", "must be days such as"),
        ("    canary: v2\n    freeze: [{dates: 2026-12-24T10:00}]\n", "13:22", "must be days such as"),
        ("    canary: v2\n    freeze: [{dates: 2026-12-24, zone: Europe/Berln}]\n", "13:40", "IANA name such as Europe/Berlin"),
        ("    canary: v2\n    gates: {commands: [{name: a, run: [x], timeout: 0s}]}\n", "13:53", "timeout must be more than 0s"),
        ("    canary: v2\n    gates: {commands: [{name: a, run: [x], every: 500ms}]}\n", "13:51", "every must be at least 1s"),
        ("    canary: v2\n    gates: {probes: [{name: a, path: health}]}\n", "13:38", "must begin with `/`: /health"),
        ("    canary: v2\n    hooks: [{webhook: \"http://x\", timeout: 0s}]\n", "13:44", "timeout must be more than 0s"),
        ("    canary: v2\n    gates: {latency: {quantile: 1.5, max: 1s}}\n", "13:33", "between 0 and 1"),
        ("    canary: v2\n    gates: {latency: {quantile: 0.9}}\n", "13:22", "`max`, `maxIncrease` or both"),
        ("    canary: v2\n    gates: {commands: [{name: a, run: [x]}, {name: a, run: [y]}]}\n", "13:12", "two gates have the name `a`"),
        ("    canary: v2\n    gates: {commands: [{name: a, run: []}]}\n", "13:39", "must name a program"),
        ("    canary: v2\n    gates: {prometheus: [{name: a, url: \"http://p\", query: q}]}\n", "13:26", "`min`, `max` or both"),
    ] {
        let errors = read(text).result.expect_err(text);
        assert_eq!(errors.len(), 1, "{text}: {errors:?}");
        let at = format!("{}:{}", errors[0].at.line, errors[0].at.column);
        assert!(at == place && errors[0].message.contains(part), "{text}{at}: {}\nshould be at {place} and say {part}", errors[0].message);
    }
}

/// Naming a gate takes no other away; those that are always there are switched off by name.
#[test]
fn gates_that_are_always_there() {
    for (gates, errors, share) in [
        ("gates: {commands: [{name: a, run: [x]}]}", true, true),
        ("gates: {}", true, true),
        ("gates: {errorRate: off, latency: {quantile: 0.9, max: 1s}}", false, true),
        ("gates: {share: off}", true, false),
        ("gates: {share: {tolerance: 10%}}", true, true),
    ] {
        let gates = rollout(&format!("    canary: v2\n    {gates}\n")).gates;
        assert_eq!((gates.error_rate.is_some(), gates.share.is_some()), (errors, share), "{gates:?}");
    }
    // Clients that stick to a version decide its share: it is judged when somebody asks for that.
    for (gates, share) in [("", false), ("    gates: {share: {}}\n", true)] {
        let text = format!("    canary: v2\n{gates}  splitBy: client-ip\n");
        assert_eq!(rollout(&text).gates.share.is_some(), share);
    }
}

#[test]
fn gates_that_mean_nothing_are_told() {
    let warnings = |gates: &str| {
        let warnings = read(&format!("    canary: v2\n    gates: {gates}\n")).warnings;
        warnings.iter().map(|warning| format!("{}:{}: {}", warning.at.line, warning.at.column, warning.message)).collect::<Vec<_>>()
    };
    let empty = warnings("{}");
    assert!(empty.len() == 1 && empty[0].starts_with("13:12: ") && empty[0].contains("is empty and changes nothing"), "{empty:?}");
    let none = warnings("{errorRate: off, share: off}");
    assert!(none.len() == 1 && none[0].starts_with("13:12: ") && none[0].contains("no gate left"), "{none:?}");
    assert_eq!(warnings("{errorRate: {max: 1%}}"), [""; 0]);
}
