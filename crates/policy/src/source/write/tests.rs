//! What is written is read as what it was.

use super::write;
use crate::{
    model::{Backend, BackendState, Policy, Service},
    source::{Outcome, read},
};
use proptest::prelude::*;
use std::{fs, path::Path, sync::Arc};

fn services(outcome: Outcome) -> Result<Vec<Service>, String> {
    // Where something stands is no part of what it means.
    let placeless = |service: &Arc<Service>| Service { origin: String::new(), ..Service::clone(service) };
    match outcome.result {
        Ok(policy) => Ok(policy.services.iter().map(placeless).collect()),
        Err(errors) => Err(errors.iter().map(|error| format!("{error}\n")).collect()),
    }
}

/// Writes what a text says, reads that again, which must be the same, and returns it; `None` when the text is no policy.
#[track_caller]
pub fn again(text: &str) -> Option<String> {
    let first = services(read("p.yaml", text.as_bytes())).ok()?;
    let written = write(&first);
    let second = services(read("w.yaml", written.as_bytes())).unwrap_or_else(|errors| panic!("{errors}{written}\nof\n{text}"));
    assert_eq!(first, second, "{written}\nof\n{text}");
    assert_eq!(write(&second), written);
    Some(written)
}

#[test]
fn fields_come_in_order_and_without_defaults() {
    let written = again(
        "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {name: checkout, namespace: shop, labels: {a: b}}\nspec:\n  snat: auto\n  \
         rollout: {canary: v2, baseline: v1, steps: [1%, 5%, 10%, 50%, 100%], gates: {errorRate: {max: 1%}}}\n  canary: v2\n  \
         frontends: [{port: 80, address: 10.9.9.9, protocol: TCP}]\n  mode: http\n  splitBy: request\n  onWeightChange: keep\n  versions:\n  \
         - {weight: 95, name: v1, backends: [\"10.2.1.2:8080\", {address: \"10.2.2.2:8080\", state: draining}]}\n  \
         - {name: v2, weight: 5, backends: {dns: b.internal, port: 80}}\n",
    );
    let expected = "\
apiVersion: splitter.dev/v1alpha1
kind: TrafficSplit
metadata:
  name: checkout
  namespace: shop
spec:
  frontends:
    - {address: 10.9.9.9, port: 80}
  mode: http
  versions:
    - name: v1
      weight: 95
      backends:
        - \"10.2.1.2:8080\"
        - {address: \"10.2.2.2:8080\", state: draining}
    - name: v2
      weight: 5
      backends:
        - {dns: b.internal, port: 80}
  canary: v2
  rollout: {canary: v2, gates: {errorRate: {max: 1%}}}
";
    assert_eq!(written.as_deref(), Some(expected));
}

/// Files of certificates are named so that they are found from any folder.
#[test]
fn certificates_are_written() {
    let written = again(
        "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {name: shop}\nspec:\n  frontends: [{address: 10.9.9.9, port: 443}]\n  mode: https\n  \
         path: stack\n  tls: {certificates: [{certFile: /tls/a.crt, keyFile: /tls/a.key}, {certFile: b.crt, keyFile: b.key}]}\n  \
         versions: [{name: v1, weight: 1, backends: [\"10.2.1.2:8080\"]}]\n",
    );
    let written = written.expect("a policy");
    assert!(written.contains("certFile: /tls/a.crt") && written.contains("path: stack") && written.contains("mode: https"), "{written}");
    let relative = std::path::absolute("b.crt").expect("a folder");
    assert!(
        written.contains(&format!("certFile: {}", relative.display())) || written.contains(&format!("\"{}\"", relative.display())),
        "{written}"
    );
    assert!(!written.contains("splitBy"), "the default is that of http: {written}");
}

#[test]
fn nothing_is_a_policy_too() {
    let written = write(Vec::<Service>::new());
    assert_eq!(read("w.yaml", written.as_bytes()).result, Ok(Policy::default()));
}

/// Addresses that were found belong to their lookup; those that the policy names stay.
#[test]
fn what_lookups_found_is_not_written() {
    let text = "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {name: a}\nspec:\n  frontends: [{address: \"fd00::9\", port: 80}]\n  \
                mode: udp\n  versions: [{name: v1, weight: 1, backends: [\"[fd00::2]:53\", {dns: _dns._udp.b, drain: 5s}]}]\n";
    let mut found = services(read("p.yaml", text.as_bytes())).unwrap();
    let plain = write(&found);
    let version = &mut found[0].versions[0];
    version.backends.push(Backend { address: "[fd00::3]:53".parse().unwrap(), state: BackendState::Ready });
    version.found = 1;
    assert_eq!(write(&found), plain);
    assert!(plain.contains("\"[fd00::2]:53\"") && plain.contains("{dns: \"_dns._udp.b\", drain: 5s}") && !plain.contains("::3"), "{plain}");
}

/// Whole policies in the documentation (`documents` has those of its reference), and those that fuzzing begins with.
#[test]
fn every_example_is_written_as_it_is_meant() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let listed = |folder: &str| fs::read_dir(root.join(folder)).expect("a folder").map(|entry| entry.expect("an entry").path());
    let texts: Vec<_> =
        listed("docs").chain([root.join("README.md")]).filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    let mut done = 0;
    for path in texts {
        let text = fs::read_to_string(path).expect("a text");
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("\n```")) {
            done += usize::from(again(block.0).is_some());
        }
    }
    assert!(done >= EXAMPLES, "only {done} examples were read");
    let seeds = listed("fuzz/seeds/policy").filter_map(|path| again(&String::from_utf8_lossy(&fs::read(path).expect("a file")))).count();
    assert!(seeds >= SEEDS, "only {seeds} seeds were read");
}

/// At least so many.
const EXAMPLES: usize = 5;
const SEEDS: usize = 12;

/// Lines of a spec that go together with any others, several ways each; a way may need versions v1 and v2, which are always there.
const ANY: &[&[&str]] = &[
    &["snat: always", "snat: never", "snat: auto"],
    &["path: redirect", "path: auto", "path: stack"],
    &["vip: {ping: true}", "vip: {unserved: pass}", "vip: {ping: true, unserved: pass}"],
    &["onWeightChange: reset", "onWeightChange: {drain: 90s}", "onWeightChange: {drain: 1m1ms}"],
];
const HTTP: &[&[&str]] = &[
    &["pinned: reset", "pinned: keep"],
    &["canary: v2", "canary: v1"],
    &["whenUnavailable: reset", "whenUnavailable: 503"],
    &["whenTooLong: weight", "whenTooLong: 431", "whenTooLong: baseline"],
    &["splitBy: connection", "splitBy: client-ip", "splitBy: {header: X-User}", "splitBy: {cookie: uid}"],
];
const LAYER4: &[&[&str]] = &[&["splitBy: client-ip", "splitBy: connection"]];
const MATCHES: &[&str] = &[
    "sourceCidr: 10.1.0.0/16",
    "header: {name: X-A, value: 'true'}, path: /a%20b",
    "header: [{name: X-A, prefix: '1'}, {name: x-b, present: true}], pathPrefix: /beta/",
    "cookie: {name: c, value: 'a\"b'}, query: [{name: q, value: '%7e'}, {name: r, present: true}]",
    "method: PURGE, pathPrefix: /, sourceCidr: 10.1.7.9",
];
const GATES: &[&[&str]] = &[
    &[
        "errorRate: off",
        "errorRate: {max: 0.0001%, unanswered: 800ms}",
        "errorRate: {maxIncrease: 0%, margin: 2%, ignoreBelow: 0%, codes: [4xx, 5xx, 302]}",
    ],
    &["share: off", "share: {}", "share: {tolerance: 12.5%}"],
    &[
        "latency: {quantile: 0.99, max: 500ms}",
        "latency: [{quantile: 0.000001, maxIncrease: 20%}, {quantile: 0.5, max: 2m, measure: connect}]",
    ],
    &["saturation: [{name: m, cgroup: /x, resource: memory, max: 80%}, {name: c, command: [a, ''], max: 12.5%, failures: 9}]"],
    &[
        "probes: [{name: p, path: /o, method: POST, headers: {x-1: 'on', 'a b': c}, body: \"x\\ty\", status: 201, contains: '}'}, {name: pc, command: [z], failures: 1}]",
    ],
    &["prometheus: [{name: q, url: 'http://p:9090', query: 'sum(rate(x{a=\"b\"}[1m]))', min: -0.5, max: 10.25, every: 2s}]"],
    &["webhooks: [{name: w, url: 'http://judge/', timeout: 1s}]"],
    &["commands: [{name: s, run: [/bin/check, '-x', '#'], failures: 2}]"],
];
const ROLLOUT: &[&[&str]] = &[
    &["baseline: v1", "baseline: v3"],
    &["steps: [0.5%, {pause: {}}, 7%, {pause: {duration: 10m}}, 100%]", "strategy: blueGreen", "steps: [1%, 5%, 10%, 50%, 100%]"],
    &["pace: adaptive", "pace: fixed"],
    &["dwell: 2s", "dwell: 5m"],
    &["watch: 0s", "watch: 300s", "watch: 1m"],
    &["watchAfter: 0s", "watchAfter: 10m"],
    &["progressDeadline: 2h", "progressDeadline: 0s"],
    &["minSamples: 7", "warmUp: 0s", "falseAlarm: 0.1%", "retries: 2", "coolDown: 90s"],
    &["judge: all", "judge: ruled"],
    &[
        "freeze: [{days: [fri, sat], from: '22:00', to: '06:30'}, {dates: 2026-12-24..2027-01-02, zone: Europe/Berlin}]",
        "freeze: [{dates: 2026-05-01, from: '08:00', to: '18:00'}, {from: '00:00', to: '00:00'}]",
    ],
    &["hooks: [{webhook: 'http://chat:8080/x'}, {command: [/bin/true, -x], timeout: 1s}]"],
];

/// Some of these lines, in any way.
fn some(pool: &'static [&'static [&'static str]]) -> impl Strategy<Value = Vec<&'static str>> {
    let one = |ways: &'static [&'static str]| prop::option::of(prop::sample::select(ways));
    pool.iter().map(|ways| one(ways)).collect::<Vec<_>>().prop_map(|lines| lines.into_iter().flatten().collect())
}

fn rollout() -> impl Strategy<Value = String> {
    let gates = some(GATES).prop_map(|lines| if lines.is_empty() { String::new() } else { format!(", gates: {{{}}}", lines.join(", ")) });
    (some(ROLLOUT), gates).prop_map(|(lines, gates)| format!("rollout: {{{}{gates}}}", [&["canary: v2"], &lines[..]].concat().join(", ")))
}

fn document(name: usize) -> impl Strategy<Value = String> {
    let rules = |matches: &'static [&'static str]| {
        prop::collection::vec((prop::sample::select(matches), 1..4usize), 0..4).prop_map(|rules| {
            let rules: Vec<_> =
                rules.iter().map(|(conditions, version)| format!("{{match: {{{conditions}}}, version: v{version}}}")).collect();
            format!("rules: [{}]", rules.join(", "))
        })
    };
    let mode = prop_oneof![
        (Just("http"), some(HTTP), rules(MATCHES)),
        (Just("tcp"), some(LAYER4), rules(&MATCHES[..1])),
        (Just("udp"), some(LAYER4), rules(&MATCHES[..1])),
    ];
    let backends = prop_oneof![
        Just("[]"),
        Just("{dns: b.internal, port: 80}"),
        Just("[\"10.2.1.2:1\", {address: \"10.2.1.3:1\", state: down}, {dns: _http._tcp.b, drain: 5s}]"),
    ];
    (mode, some(ANY), prop::option::of(rollout()), prop::collection::vec((0..u32::MAX, backends), 3)).prop_map(
        move |((mode, own, rules), any, rollout, versions)| {
            let version = |(index, (weight, backends)): (usize, &(u32, &str))| {
                format!("{{name: v{}, weight: {weight}, backends: {backends}}}", index + 1)
            };
            let versions: Vec<_> = versions.iter().enumerate().map(version).collect();
            let mut lines = vec![
                format!("frontends: [{{address: 10.9.9.{name}, port: 80}}, {{address: 10.9.9.{name}, port: 443}}]"),
                format!("mode: {mode}"),
                format!("versions: [{}]", versions.join(", ")),
                rules,
            ];
            lines.extend(own.iter().chain(&any).map(ToString::to_string));
            lines.extend(rollout);
            let head =
                format!("apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: s{name}, namespace: 'yes'}}\nspec:\n");
            lines.iter().fold(head, |text, line| format!("{text}  {line}\n"))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_means_the_same(documents in (document(1), document(2))) {
        let text = format!("{}---\n{}", documents.0, documents.1);
        if let Err(errors) = services(read("p.yaml", text.as_bytes())) {
            // A deadline that no step could keep: no policy.
            prop_assert!(errors.lines().all(|error| error.contains("progressDeadline")), "{errors}{text}");
            return Ok(());
        }
        prop_assert!(again(&text).is_some());
    }
}
