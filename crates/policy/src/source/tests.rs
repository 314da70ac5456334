//! Each error at its exact line and column, and policies that are right.

use super::*;
use crate::model::{Backend, BackendState, Mode, OnWeightChange, Protocol, Snat, SplitBy};
use files::{File, Snapshot};
use std::time::Duration;

const VALID: &str = "\
apiVersion: splitter.dev/v1alpha1
kind: TrafficSplit
metadata: {name: checkout}
spec:
  frontends:
    - {address: 10.9.9.9, port: 80, protocol: TCP}
  mode: tcp
  versions:
    - {name: v1, weight: 95, backends: [\"10.2.1.2:8080\", \"10.2.1.3:8080\"]}
    - {name: v2, weight: 5, backends: [\"10.2.2.2:8080\"]}
  rules:
    - {match: {sourceCidr: 10.1.7.0/24}, version: v2}
";

pub(super) fn read(files: &[(&str, &str)]) -> Outcome {
    let files = files.iter().map(|(name, text)| File { name: (*name).to_owned(), content: text.as_bytes().to_vec() });
    outcome(Path::new("policies"), &Snapshot { files: files.collect(), errors: Vec::new() })
}

pub(super) fn policy(text: &str) -> Policy {
    read(&[("p.yaml", text)]).result.unwrap_or_else(|errors| panic!("{}", errors.iter().map(|e| format!("{e}\n")).collect::<String>()))
}

pub(super) fn errors(text: &str) -> Vec<String> {
    read(&[("p.yaml", text)]).result.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

pub(super) fn warnings(text: &str) -> Vec<String> {
    let outcome = read(&[("p.yaml", text)]);
    assert!(outcome.result.is_ok(), "{outcome:?}");
    outcome.warnings.iter().map(ToString::to_string).collect()
}

/// `VALID` with a piece replaced gives exactly one error: at `place`, about checkout, with this text in it.
#[track_caller]
fn broken(old: &str, new: &str, place: &str, part: &str) {
    assert!(VALID.contains(old), "{old}");
    let found = errors(&VALID.replacen(old, new, 1));
    assert_eq!(found.len(), 1, "{found:#?}");
    let start = format!("p.yaml:{place}: TrafficSplit checkout: ");
    assert!(found[0].starts_with(&start) && found[0].contains(part), "{}\nshould be at {place} and say: {part}", found[0]);
}

#[test]
fn what_yaml_1_1_reads_otherwise_is_found() {
    broken("weight: 5,", "weight: 010,", "10:26", "take 010 for 8 (octal); write 10");
    broken("weight: 5,", "weight: 08,", "10:26", "take 08 for a string; write 8");
    broken("port: 80,", "port: 0080,", "6:33", "take 0080 for a string; write 80");
    let name = "take no for a boolean; quote it: \"no\"";
    let named = VALID.replace("name: v2", "name: no").replace("version: v2", "version: no");
    let found = errors(&named);
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(found[0].starts_with("p.yaml:10:14: ") && found[0].contains(name), "{found:#?}");
    assert!(found[1].starts_with("p.yaml:12:51: ") && found[1].contains(name), "{found:#?}");
    let quoted = VALID.replace("name: v2", "name: \"no\"").replace("version: v2", "version: 'no'");
    assert_eq!(errors(&quoted), [""; 0]);
}

#[test]
fn a_valid_policy_with_defaults() {
    let policy = policy(VALID);
    let service = &policy.services[0];
    assert_eq!(service.name, "checkout");
    assert_eq!(service.origin, "p.yaml:3:18");
    assert_eq!((service.mode, service.split_by.clone(), service.snat), (Mode::Tcp, SplitBy::Connection, Snat::Auto));
    assert_eq!(service.on_weight_change, OnWeightChange::Keep);
    assert_eq!(service.versions[0].weight, 95);
    assert_eq!(service.versions[0].backends.len(), 2);
    assert_eq!((service.rules[0].version, service.rules[0].source.prefix), (1, 24));
    assert_eq!(warnings(VALID), [""; 0]);
}

#[test]
fn every_field_is_read() {
    let policy = policy(
        "apiVersion: splitter.dev/v1alpha1
kind: TrafficSplit
metadata:
  name: dns.internal
  namespace: infra
  labels: {app: dns}
  annotations: {note: \"1\"}
spec:
  mode: udp
  splitBy: client-ip
  onWeightChange: {drain: 1m30s}
  snat: never
  frontends:
    - address: fd00::9
      port: 53
    - address: \"fd00::9\"
      port: 5353
      protocol: UDP
  versions:
    - name: v1
      weight: 0
      backends:
        - address: \"[fd00::2]:53\"
          state: draining
        - \"[fd00::3]:53\"
        - {address: \"[fd00::4]:53\", state: down}
    - {name: v2, weight: 4294967295, backends: [{address: \"[fd00::5]:53\", state: ready}]}
  rules:
",
    );
    let service = &policy.services[0];
    assert_eq!(service.name, "infra/dns.internal");
    assert_eq!((service.mode, service.split_by.clone(), service.snat), (Mode::Udp, SplitBy::ClientIp, Snat::Never));
    assert_eq!(service.on_weight_change, OnWeightChange::Drain(Duration::from_secs(90)));
    assert!(service.frontends.iter().all(|f| f.protocol == Protocol::Udp));
    let states: Vec<_> = service.versions[0].backends.iter().map(|b| b.state).collect();
    assert_eq!(states, [BackendState::Draining, BackendState::Ready, BackendState::Down]);
    assert_eq!(service.versions[1].weight, u32::MAX);
    assert_eq!(service.versions[1].backends, [Backend { address: "[fd00::5]:53".parse().unwrap(), state: BackendState::Ready }]);
    assert!(service.rules.is_empty());
}

#[test]
fn unknown_fields_are_named_with_the_nearest_known() {
    broken("  mode: tcp", "  mode: tcp\n  splitby: connection", "8:3", "unknown field `splitby` in spec; did you mean `splitBy`?");
    broken("{name: checkout}", "{name: checkout, label: {}}", "3:28", "unknown field `label` in metadata; did you mean `labels`?");
    broken("weight: 5,", "weight: 5, wieght: 6,", "10:29", "unknown field `wieght` in spec.versions[1]; did you mean `weight`?");
    broken("port: 80,", "port: 80, tls: x,", "6:37", "unknown field `tls` in spec.frontends[0]; known here: address, port, protocol");
    broken("kind: TrafficSplit\n", "kind: TrafficSplit\nstatus: {}\n", "3:1", "unknown field `status`");
    broken("sourceCidr: 10.1.7.0/24", "sourceCidr: 10.1.7.0/24, sourceCIDR: x", "12:41", "did you mean `sourceCidr`?");
}

#[test]
fn missing_fields_are_reported_where_the_object_begins() {
    broken("apiVersion: splitter.dev/v1alpha1\n", "", "1:1", "apiVersion is missing");
    broken("kind: TrafficSplit\n", "", "1:1", "kind is missing");
    broken("  mode: tcp\n", "", "5:3", "spec.mode is missing; add for example `mode: tcp`");
    broken("mode: tcp", "mode:", "7:3", "spec.mode has no value");
    broken("address: 10.9.9.9, ", "", "6:7", "spec.frontends[0].address is missing");
    broken("port: 80, ", "", "6:7", "spec.frontends[0].port is missing");
    broken("weight: 95, ", "", "9:7", "spec.versions[0].weight is missing");
    broken(", version: v2", "", "12:7", "spec.rules[0].version is missing");
    broken("{sourceCidr: 10.1.7.0/24}", "{}", "12:15", "spec.rules[0].match.sourceCidr is missing");
    broken(", backends: [\"10.2.2.2:8080\"]", "", "10:7", "spec.versions[1].backends is missing");
}

#[test]
fn an_object_without_a_name_is_called_so() {
    let found = errors(&VALID.replace("{name: checkout}", "{}"));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("p.yaml:3:11: TrafficSplit (no name): metadata.name is missing"), "{found:?}");
    assert!(errors("- a\n")[0].starts_with("p.yaml:1:1: a document must be an object"));
}

#[test]
fn wrong_values() {
    broken("v1alpha1", "v1", "1:13", "apiVersion `splitter.dev/v1` is not known; write `apiVersion: splitter.dev/v1alpha1`");
    broken("kind: TrafficSplit", "kind: TrafficSplits", "2:7", "kind cannot be `TrafficSplits`; did you mean `TrafficSplit`?");
    broken("mode: tcp", "mode: tpc", "7:9", "did you mean `tcp`?");
    broken("protocol: TCP", "protocol: tcp", "6:47", "did you mean `TCP`?");
    broken("protocol: TCP", "protocol: UDP", "6:47", "mode tcp needs TCP frontends");
    broken("mode: tcp", "mode: udp", "6:47", "mode udp needs UDP frontends");
    broken("port: 80", "port: 0", "6:33", "a whole number from 1 to 65535, not `0`");
    broken("port: 80", "port: 65536", "6:33", "not `65536`");
    broken("port: 80", "port: \"80\"", "6:33", "remove the quotes: 80");
    broken("10.9.9.9", "vip.example", "6:17", "names are not looked up");
    broken("10.9.9.9", "0.0.0.0", "6:17", "any address");
    broken("weight: 95", "weight: 95%", "9:26", "remove the %");
    broken("weight: 95", "weight: 0.5", "9:26", "a whole number from 0 to 4294967295, not `0.5`");
    broken("weight: 95", "weight: -1", "9:26", "not `-1`");
    broken("weight: 95", "weight: 4294967296", "9:26", "not `4294967296`");
    broken("weight: 95", "weight: [95]", "9:26", "not a list");
    broken("10.2.2.2:8080", "10.2.2.2", "10:40", "write for example \"10.2.2.2:8080\"");
    broken("10.2.2.2:8080", "[fd00::2]:8080", "10:40", "is IPv6, but the frontend 10.9.9.9 is IPv4");
    broken("10.2.1.3:8080", "10.2.1.2:8080", "9:58", "stands twice in this version (first on line 9)");
    broken("10.2.2.2:8080", "10.9.9.9:80", "10:7", "this service's own frontend");
    broken("[\"10.2.2.2:8080\"]", "10.2.2.2:8080", "10:39", "must be a list, not `10.2.2.2:8080`");
    broken("name: v1", "name: v2", "10:7", "version v2 stands twice (first on line 9)");
    broken("name: v2,", "name: 2,", "10:14", "quote it: \"2\"");
    broken("name: v2,", "name: V2,", "10:14", "not a DNS label");
    broken("version: v2", "version: v3", "12:51", "there is no version `v3`; known here: v1, v2");
    broken("10.1.7.0/24", "10.1.7.3/24", "12:28", "host bits set; the network is 10.1.7.0/24");
    broken("  rules:", "  vip: {ping: yes}\n  rules:", "11:15", "spec.vip.ping must be true or false, not `yes`");
    broken("  rules:", "  vip: {pnig: true}\n  rules:", "11:9", "did you mean `ping`?");
    broken("  rules:", "  vip: {unserved: drop}\n  rules:", "11:19", "spec.vip.unserved cannot be `drop`; known here: refuse, pass");
    broken("  rules:", "  snat: no\n  rules:", "11:9", "spec.snat cannot be `no`; known here: auto, always, never");
    broken("  rules:", "  onWeightChange: drain\n  rules:", "11:19", "write `onWeightChange: {drain: 30s}`");
    broken("  rules:", "  pinned: drain\n  rules:", "11:11", "spec.pinned");
    broken("  rules:", "  onWeightChange: {drain: 30}\n  rules:", "11:27", "`30` is not a duration");
    broken("  rules:", "  onWeightChange: {darin: 30s, drain: 1s}\n  rules:", "11:20", "did you mean `drain`?");
    broken("\"10.2.2.2:8080\"", "{address: \"10.2.2.2:8080\", state: redy}", "10:74", "did you mean `ready`?");
}

#[test]
fn what_this_build_cannot_serve_is_refused_with_a_way_out() {
    for mode in ["http2", "grpc", "auto"] {
        broken("mode: tcp", &format!("mode: {mode}"), "7:9", "is not available in this build; use `mode: http` for HTTP/1.1");
    }
}

#[test]
fn layer_4_does_not_read_requests() {
    broken("  rules:", "  splitBy: request\n  rules:", "11:12", "reads HTTP requests: write `mode: http`");
    broken("  rules:", "  splitBy: {header: X-User}\n  rules:", "11:12", "reads HTTP requests: write `mode: http`");
    broken("  rules:", "  splitBy: {cookie: uid}\n  rules:", "11:12", "reads HTTP requests: write `mode: http`");
    broken("  rules:", "  canary: v2\n  rules:", "11:3", "`canary` is about HTTP requests; write `mode: http`");
    broken("  rules:", "  whenUnavailable: reset\n  rules:", "11:3", "`whenUnavailable` is about HTTP requests");
    broken("  rules:", "  whenTooLong: 431\n  rules:", "11:3", "`whenTooLong` is about HTTP requests");
    for name in ["header", "cookie", "path", "pathPrefix", "method", "query"] {
        broken("sourceCidr: 10.1.7.0/24", &format!("{name}: x"), "12:16", "read HTTP requests: write `mode: http`");
    }
}

#[test]
fn limits_on_versions_frontends_and_names() {
    let nine: String = (1..=9).map(|i| format!("    - {{name: v{i}, weight: 1, backends: [\"10.2.1.{i}:80\"]}}\n")).collect();
    let start = VALID.find("    - {name: v1").unwrap();
    let end = VALID.find("  rules:").unwrap();
    let text = format!("{}{nine}", &VALID[..start]);
    assert!(errors(&text)[0].starts_with("p.yaml:17:7: TrafficSplit checkout: a service must have 1 to 8 versions, not 9"));
    let found = errors(&VALID.replace(&VALID[start..], "").replace("versions:", "versions: []"));
    assert!(found[0].starts_with("p.yaml:8:13: ") && found[0].contains("1 to 8 versions, not 0"), "{found:?}");
    assert!(end > start);
    broken("    - {address: 10.9.9.9, port: 80, protocol: TCP}\n", "    []\n", "6:5", "spec.frontends is empty");
    let twice = "    - {address: 10.9.9.9, port: 80}\n    - {address: 10.9.9.9, port: 80}\n";
    broken("    - {address: 10.9.9.9, port: 80, protocol: TCP}\n", twice, "7:7", "this frontend stands twice (first on line 6)");
    let mixed = "    - {address: 10.9.9.9, port: 80}\n    - {address: fd00::9, port: 80}\n";
    broken("    - {address: 10.9.9.9, port: 80, protocol: TCP}\n", mixed, "7:7", "must be of one family, and 10.9.9.9 on line 6");
    for name in ["Checkout", "a_b", "-a", "a..b", &"a".repeat(64)] {
        let found = errors(&VALID.replace("name: checkout", &format!("name: \"{name}\"")));
        assert!(found.len() == 1 && found[0].starts_with("p.yaml:3:18: ") && found[0].contains("is not a DNS name"), "{found:?}");
    }
}

#[test]
fn all_errors_of_all_documents_and_files_are_told_in_order() {
    let bad = VALID.replace("mode: tcp", "mode: tpc").replace("weight: 5,", "weight: x,");
    let outcome = read(&[("b.yaml", &format!("{bad}---\n{{\n---\n{bad}")), ("a.yaml", "kind: TrafficSplit\nspec: [\n")]);
    let places: Vec<_> = outcome.result.unwrap_err().iter().map(|e| (e.path.clone(), e.at.line)).collect();
    let b = |line| ("b.yaml".to_owned(), line);
    assert_eq!(places[0].0, "a.yaml");
    assert_eq!(places[1..3], [b(7), b(10)]);
    // The name and the frontend of the third document are taken by the first.
    assert!(places[3..].contains(&b(18)) && places[3..].contains(&b(21)), "{places:?}");
}

#[test]
fn names_and_frontends_belong_to_one_object() {
    let other = VALID.replace("10.9.9.9", "10.9.9.8");
    let outcome = read(&[("a.yaml", VALID), ("b.yaml", &other)]);
    let found: Vec<_> = outcome.result.unwrap_err().iter().map(ToString::to_string).collect();
    assert_eq!(found, ["b.yaml:3:18: TrafficSplit checkout: this name is taken by the one at a.yaml:3; rename or remove one"]);
    let other = VALID.replace("checkout", "cart");
    let outcome = read(&[("a.yaml", VALID), ("b.yaml", &other)]);
    let found: Vec<_> = outcome.result.unwrap_err().iter().map(ToString::to_string).collect();
    let text =
        "b.yaml:6:7: TrafficSplit cart: frontend 10.9.9.9:80 belongs to TrafficSplit checkout at a.yaml:6; a frontend has one service";
    assert_eq!(found, [text]);
    // Another protocol is another frontend; another namespace is another name.
    let udp = VALID.replace("TCP", "UDP").replace("mode: tcp", "mode: udp").replace("{name: checkout}", "{name: checkout, namespace: x}");
    assert_eq!(policy(&format!("{VALID}---\n{udp}")).services.len(), 2);
}

#[test]
fn nothing_is_never_an_empty_policy() {
    for (text, why) in
        [("", "empty"), ("\n", "empty"), ("---\n", "no TrafficSplit found here"), ("# nothing\n", "no TrafficSplit found here")]
    {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{text:?}");
        assert!(found[0].starts_with("p.yaml:1:1: ") && found[0].contains(why) && found[0].contains("`items: []`"), "{found:?}");
    }
    let found = read(&[]).result.unwrap_err()[0].to_string();
    assert!(found.starts_with("policies:1:1: this folder is empty: it has no *.yaml") && found.contains("`items: []`"), "{found}");
    let comments = read(&[("a.yaml", "# a\n"), ("b.yaml", "# b\n")]).result.unwrap_err()[0].to_string();
    assert!(comments.starts_with("policies:1:1: no TrafficSplit found in the 2 files of this folder"), "{comments}");
    let outcome = read(&[("a.yaml", VALID), ("b.yaml", " \n")]);
    assert!(outcome.result.unwrap_err()[0].to_string().starts_with("b.yaml:1:1: this file is empty"));
    let outcome = read(&[("a.yaml", VALID), ("b.yaml", "# off\n")]);
    assert!(outcome.result.is_ok() && outcome.warnings[0].path == "b.yaml");
}

#[test]
fn lists_hold_splits_or_explicitly_none() {
    let head = "apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplitList\n";
    assert_eq!(policy(&format!("{head}items: []\n")).services, []);
    let item = "  - metadata: {name: a}\n    spec: {mode: tcp, frontends: [{address: 10.9.9.1, port: 1}], versions: [{name: v1, weight: 1, backends: [\"10.1.1.1:1\"]}]}\n";
    let list = format!("{head}metadata: {{}}\nitems:\n{item}{}", item.replace("name: a", "name: b").replace("10.9.9.1", "10.9.9.2"));
    let names: Vec<_> = policy(&list).services.iter().map(|s| s.name.clone()).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(errors(head)[0].starts_with("p.yaml:1:1: TrafficSplitList: items is missing"));
    assert!(errors(&format!("{head}items:\n"))[0].starts_with("p.yaml:3:"));
    assert!(errors(&format!("{head}items: []\nitem: 1\n"))[0].starts_with("p.yaml:4:1: TrafficSplitList: unknown field `item`"));
}

#[test]
fn valid_but_hardly_meant() {
    let with = |old: &str, new: &str| warnings(&VALID.replacen(old, new, 1));
    let zero = VALID.replace("weight: 95", "weight: 0").replace("weight: 5", "weight: 0");
    assert!(warnings(&zero)[0].starts_with("p.yaml:9:5: TrafficSplit checkout: every weight is 0"), "{:?}", warnings(&zero));
    let found = with("[\"10.2.2.2:8080\"]", "[]");
    assert!(found[0].starts_with("p.yaml:10:7: ") && found[0].contains("v2 has weight 5 but no ready backend"), "{found:?}");
    let rule = "    - {match: {sourceCidr: 10.1.7.0/24}, version: v2}\n";
    let found = with(rule, &format!("{rule}{}", rule.replace("v2", "v1")));
    assert!(found[0].starts_with("p.yaml:13:7: ") && found[0].contains("never matches: the rule on line 12"), "{found:?}");
    let found = with(rule, &format!("{}{rule}", rule.replace("10.1.7.0/24", "10.0.0.0/8").replace("v2", "v1")));
    assert!(found.len() == 1 && found[0].contains("10.1.7.0/24 wins over 10.0.0.0/8 on line 12"), "{found:?}");
    let found = with(rule, &format!("{rule}{}{}", rule.replace("/24", "/25"), rule.replace("0/24", "128/25")));
    assert!(found.len() == 1 && found[0].starts_with("p.yaml:12:7: ") && found[0].contains("narrower rules cover all"), "{found:?}");
    let reset = VALID.replacen("  rules:", "  onWeightChange: reset\n  rules:", 1);
    assert_eq!(warnings(&reset), [""; 0]);
    let found = warnings(&reset.replace("mode: tcp", "mode: http"));
    assert!(found.len() == 1 && found[0].starts_with("p.yaml:11:19: ") && found[0].contains("does nothing with `mode: http`"), "{found:?}");
    let found = warnings(&VALID.replacen("  rules:", "  pinned: reset\n  rules:", 1));
    assert!(found.len() == 1 && found[0].starts_with("p.yaml:11:11: ") && found[0].contains("pinned is of `mode: http`"), "{found:?}");
    let found = with("10.1.7.0/24", "fd00::/64");
    assert!(found[0].contains("no client can match fd00::/64"), "{found:?}");
}

#[test]
fn text_that_is_not_utf8_is_placed() {
    let files = vec![File { name: "p.yaml".into(), content: b"a: b\nc: \xff\n".to_vec() }];
    let outcome = outcome(Path::new("p.yaml"), &Snapshot { files, errors: Vec::new() });
    assert!(outcome.result.unwrap_err()[0].to_string().starts_with("p.yaml:2:4: not UTF-8"));
}

#[test]
fn https_names_its_certificates() {
    let tls = "  tls: {certificates: [{certFile: shop.crt, keyFile: /etc/shop.key}]}\n  rules:";
    let text = VALID.replace("mode: tcp", "mode: https").replace("  rules:", tls);
    let outcome = read(&[("policies/p.yaml", &text)]);
    let service = outcome.result.expect("it is right").services[0].clone();
    assert_eq!((service.mode, &service.split_by), (Mode::Https, &SplitBy::Request));
    let pair = &service.tls.as_ref().expect("certificates").certificates[0];
    // Beside the policy's file, unless it is said whole.
    let beside = std::path::absolute("policies/shop.crt").expect("a folder");
    assert_eq!((&pair.cert_file, pair.key_file.to_str()), (&beside, Some("/etc/shop.key")));
    let redirected = errors(&text.replace("  rules:", "  path: redirect\n  rules:")).join("\n");
    assert!(redirected.contains("path: redirect is not of mode https"), "{redirected}");
    let wrong = |tls: &str, mode: &str| errors(&VALID.replace("mode: tcp", mode).replace("  rules:", &format!("{tls}  rules:"))).join("\n");
    assert!(wrong("", "mode: https").contains("tls: {certificates:"), "{}", wrong("", "mode: https"));
    for (tls, mode, expected) in [
        ("  tls: {certificates: []}\n", "mode: https", "p.yaml:11:23: TrafficSplit checkout: spec.tls.certificates is empty"),
        ("  tls: {certificates: [{certFile: a}]}\n", "mode: https", "keyFile"),
        ("  tls: {certificates: [{certFile: a, keyFile: \"\"}]}\n", "mode: https", "spec.tls.certificates[0].keyFile is empty"),
        ("  tls: {certificates: [{certfile: a, keyFile: b}]}\n", "mode: https", "did you mean `certFile`?"),
        ("  tls: {certificates: [{certFile: a, keyFile: b}]}\n", "mode: http", "tls is of `mode: https`"),
    ] {
        let found = wrong(tls, mode);
        assert!(found.contains(expected), "{tls}: {found}");
    }
}
