//! Policies of `mode: http`: what is read, each error at its place, warnings.

use crate::{
    model::{Condition, Http, Mode, SplitBy, Text, TooLong, Unavailable, Way},
    source::tests::{errors, policy, warnings},
};

const VALID: &str = "\
apiVersion: splitter.dev/v1alpha1
kind: TrafficSplit
metadata: {name: checkout}
spec:
  frontends: [{address: 10.9.9.9, port: 80}]
  mode: http
  versions:
    - {name: v1, weight: 95, backends: [\"10.2.1.2:8080\"]}
    - {name: v2, weight: 5, backends: [\"10.2.2.2:8080\"]}
  rules:
    - {match: {header: {name: X-Team, value: red}}, version: v2}
";

/// `VALID` with other fields of a match.
fn matching(fields: &str) -> String {
    VALID.replace("{header: {name: X-Team, value: red}}", &format!("{{{fields}}}"))
}

fn http(text: &str) -> Http {
    policy(text).services.remove(0).http.clone().expect("mode http")
}

#[track_caller]
fn one_error(text: &str, place: &str, part: &str) {
    let found = errors(text);
    assert_eq!(found.len(), 1, "{found:#?}");
    let start = format!("p.yaml:{place}: TrafficSplit checkout: ");
    assert!(found[0].starts_with(&start) && found[0].contains(part), "{}\nshould be at {place} and say: {part}", found[0]);
}

#[test]
fn legs_may_go_through_the_stack() {
    for (text, expected) in [("  path: stack\n", Way::Stack), ("  path: redirect\n", Way::Redirect), ("", Way::Auto)] {
        let text = VALID.replace("  mode: http\n", &format!("  mode: http\n{text}"));
        assert_eq!(policy(&text).services[0].path, expected);
    }
}

#[test]
fn defaults() {
    let service = &policy(VALID).services[0];
    assert_eq!((service.mode, &service.split_by), (Mode::Http, &SplitBy::Request));
    let http = service.http.as_ref().unwrap();
    assert_eq!(http.unavailable, Unavailable::Status);
    assert_eq!((http.rules.len(), http.rules[0].version, http.rules[0].line), (1, 1, 11));
    assert_eq!(http.rules[0].conditions, [Condition::Header("X-Team".into(), Text::Exact("red".into()))]);
    assert_eq!(warnings(VALID), [""; 0]);
}

#[test]
fn every_condition_is_read() {
    let fields = "header: [{name: X-A, prefix: b}, {name: X-B, present: true}], cookie: {name: canary, value: \"1\"}, \
                  query: [{name: debug, present: true}, {name: lang, value: de}], path: /beta/x, pathPrefix: /beta/, method: GET, \
                  sourceCidr: 10.1.7.0/24";
    let http = http(&matching(fields));
    assert_eq!(
        http.rules[0].to_string(),
        "header X-A=b*, header X-B present, cookie canary=1, query debug present, query lang=de, path /beta/x, pathPrefix /beta, \
         method GET, sourceCidr 10.1.7.0/24"
    );
}

#[test]
fn split_keys() {
    for (text, key) in [
        ("request", SplitBy::Request),
        ("connection", SplitBy::Connection),
        ("client-ip", SplitBy::ClientIp),
        ("{header: X-User-Id}", SplitBy::Header("X-User-Id".into())),
        ("{cookie: uid}", SplitBy::Cookie("uid".into())),
    ] {
        let text = VALID.replace("  mode: http", &format!("  mode: http\n  splitBy: {text}"));
        assert_eq!(policy(&text).services[0].split_by, key);
    }
    let with = |text: &str| VALID.replace("  mode: http", &format!("  mode: http\n  splitBy: {text}"));
    one_error(&with("header"), "7:12", "needs a name; write for example `splitBy: {header: X-User-Id}`");
    one_error(&with("{header: a, cookie: b}"), "7:12", "takes one name");
    one_error(&with("{header: \"a b\"}"), "7:21", "not a header's name");
    one_error(&with("{header: Cookie}"), "7:21", "name one with `cookie`");
    one_error(&with("{cookie: \"a;b\"}"), "7:21", "not a cookie's name");
    one_error(&with("{query: a}"), "7:13", "unknown field `query` in spec.splitBy");
    one_error(&with("cleint-ip"), "7:12", "did you mean `client-ip`?");
}

#[test]
fn unavailable() {
    let with = |text: &str| VALID.replace("  rules:", &format!("  whenUnavailable: {text}\n  rules:"));
    assert_eq!(http(&with("reset")).unavailable, Unavailable::Reset);
    assert_eq!(http(&with("503")).unavailable, Unavailable::Status);
    one_error(&with("502"), "10:20", "must be `503` or `reset`, not `502`");
}

#[test]
fn too_long() {
    let with = |text: &str| VALID.replace("  rules:", &format!("  whenTooLong: {text}\n  rules:"));
    assert_eq!(http(VALID).too_long, TooLong::Baseline);
    for (text, expected) in [("baseline", TooLong::Baseline), ("weight", TooLong::Weight), ("431", TooLong::Status)] {
        assert_eq!(http(&with(text)).too_long, expected);
    }
    one_error(&with("413"), "10:16", "must be `baseline`, `weight` or `431`, not `413`");
    one_error(&with("[431]"), "10:16", "must be `baseline`, `weight` or `431`");
}

#[test]
fn wrong_conditions() {
    one_error(&matching("heeder: x"), "11:16", "did you mean `header`?");
    one_error(&matching(""), "11:15", "match has no condition, so every request would match");
    one_error(&matching("header: []"), "11:15", "match has no condition");
    one_error(&matching("header: X-A"), "11:24", "must be an object with the fields name, value, prefix, present");
    one_error(&matching("header: {value: a}"), "11:24", "spec.rules[0].match.header.name is missing");
    one_error(&matching("header: {name: X-A}"), "11:24", "needs exactly one of value, prefix, present");
    one_error(&matching("header: {name: X-A, value: a, prefix: b}"), "11:54", "needs exactly one of");
    one_error(&matching("cookie: {name: a, prefix: b}"), "11:34", "unknown field `prefix` in spec.rules[0].match.cookie");
    one_error(&matching("header: {name: X-A, present: false}"), "11:45", "present can only be true");
    one_error(&matching("header: {name: X-A, value: 1}"), "11:43", "quote it: \"1\"");
    one_error(&matching("header: [{name: X-A, value: a}, {name: \"X-B:\", value: a}]"), "11:55", "without the colon");
    one_error(&matching("path: beta"), "11:22", "does not begin with `/`");
    one_error(&matching("pathPrefix: /a?b"), "11:28", "holds a query");
    one_error(&matching("method: get"), "11:24", "write GET");
    one_error(&matching("method: [GET, PUT]"), "11:24", "must be a string, not a list");
    one_error(&matching("query: {name: a&b, present: true}"), "11:30", "percent-encoded");
    one_error(&matching("sourceCidr: 10.1.7.3/24"), "11:28", "host bits set");
    one_error(&VALID.replace("version: v2", "version: v3"), "11:62", "there is no version `v3`");
    one_error(&VALID.replace("port: 80", "port: 80, protocol: UDP"), "5:55", "mode http needs TCP frontends");
}

#[test]
fn the_rule_that_does_not_fit_is_named() {
    let rules = |count: usize, conditions: usize| -> String {
        let one = |i: usize| {
            let headers: Vec<_> = (0..conditions).map(|j| format!("{{name: X-{j}, value: v{i}-{j}}}")).collect();
            format!("    - {{match: {{header: [{}]}}, version: v2}}\n", headers.join(", "))
        };
        (0..count).map(one).collect()
    };
    let head = &VALID[..VALID.find("    - {match").unwrap()];
    assert_eq!(http(&format!("{head}{}", rules(16, 4))).rules.len(), 16);
    one_error(&format!("{head}{}", rules(18, 4)), "27:7", "this rule does not fit: a service can have at most 64 different conditions");
    one_error(&format!("{head}{}", rules(40, 1)), "43:7", "at most 32 rules");
    let canary = head.replace("  rules:", "  canary: v2\n  rules:");
    assert_eq!(http(&format!("{canary}{}", rules(16, 3))).rules.len(), 30);
    one_error(&format!("{canary}{}", rules(20, 1)), "10:11", "`canary` stands for 14 rules, which do not fit");
    one_error(&canary.replace("canary: v2", "canary: v9"), "10:11", "there is no version `v9`");
}

#[test]
fn canary_stands_for_the_names_in_common_use() {
    let http = http(&VALID.replace("  rules:", "  canary: v2\n  rules:"));
    let texts: Vec<String> = http.rules.iter().map(|rule| format!("{rule} -> {}", rule.version)).collect();
    let mut expected = vec!["header X-Team=red -> 1".to_owned()];
    expected.extend(["always", "true", "1"].map(|value| format!("header X-Canary={value} -> 1")));
    expected.extend(["never", "false", "0"].map(|value| format!("header X-Canary={value} -> 0")));
    expected.extend(["v1 -> 0", "v2 -> 1"].map(|value| format!("header X-Gray-Version={value}")));
    expected.extend(["always", "true", "1"].map(|value| format!("cookie canary={value} -> 1")));
    expected.extend(["never", "false", "0"].map(|value| format!("cookie canary={value} -> 0")));
    assert_eq!(texts, expected);
    assert!(http.rules[1..].iter().all(|rule| rule.from_canary && rule.line == 10) && !http.rules[0].from_canary);
}

#[test]
fn rules_that_decide_nothing() {
    let rule = "    - {match: {header: {name: X-Team, value: red}}, version: v2}\n";
    let two = |second: &str| warnings(&format!("{VALID}    - {{match: {{{second}}}, version: v1}}\n"));
    for second in [
        "header: {name: x-team, value: red}",
        "header: [{name: X-Team, value: red}, {name: X-B, present: true}]",
        "header: {name: X-Team, value: red}, path: /a",
    ] {
        let found = two(second);
        assert_eq!(found.len(), 1, "{second}: {found:?}");
        assert!(found[0].starts_with("p.yaml:12:7: ") && found[0].contains("the rule on line 11 takes all its requests"), "{found:?}");
    }
    for second in ["header: {name: X-Team, prefix: r}", "header: {name: X-Team, present: true}", "path: /a"] {
        assert_eq!(two(second), [""; 0], "{second}");
    }
    assert!(VALID.ends_with(rule));
    let found = warnings(&matching("path: /a, pathPrefix: /b"));
    assert!(found[0].contains("no request has path /a and pathPrefix /b"), "{found:?}");
    let found = warnings(&matching("sourceCidr: \"fd00::/64\", path: /a"));
    assert!(found[0].contains("no client can match sourceCidr fd00::/64"), "{found:?}");
}
