//! Who gets which version: tags on every request, rules of every kind, keys.

use crate::{
    stage::{Stage, V1, V2, asks, both_families, count, kinds, mix, tagged},
    support::{Split, vip},
    wire::Wire,
};
use splitter_lab::{
    load::{Kind, Phase, Plan, Reuse},
    stats,
};
use std::collections::BTreeSet;

fn requests(phase: &Phase, names: &[&str]) -> u64 {
    names.iter().filter_map(|name| phase.versions.get(*name)).map(|version| version.requests).sum()
}

#[test]
fn each_request_goes_where_its_tag_says() {
    let stage = Stage::new("tags", &both_families(&tagged(100, 0)));
    for v6 in [false, true] {
        let kept = mix(vip(v6), kinds("/", V1, V2, V1));
        let fresh = Plan { reuse: Reuse::New, ..kept.clone() };
        for (what, plan, requests) in [("kept connections", kept, count(5_000, 100_000)), ("new connections", fresh, count(2_000, 100_000))]
        {
            let total = stage.mixed(what, plan, requests);
            // Three kinds of eight.
            let v2 = self::requests(&total, V2);
            assert!(stats::plausible(v2, requests, 3.0 / 8.0), "{what}: {v2} of {requests} to v2");
        }
        for path in ["/bytes/20000", "/chunked/20000"] {
            stage.mixed(path, mix(vip(v6), kinds(path, V1, V2, V1)), count(500, 20_000));
        }
    }
    assert_eq!(stage.locks_held(), 0, "every packet gives back its connection's lock");
}

#[test]
fn untagged_requests_are_split_one_by_one() {
    let stage = Stage::new("share", &[tagged(80, 20)]);
    let requests = count(4_000, 100_000);
    let total = stage.mixed("without a tag", mix(vip(false), Vec::new()), requests);
    let v2 = self::requests(&total, V2);
    assert!(stats::plausible(v2, requests, 0.2), "{v2} of {requests} to v2, {:?} are plausible", stats::binomial_bound(requests, 0.2));
    // A connection is not bound to a version.
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let seen: BTreeSet<bool> = (0..100).map(|_| V2.contains(&wire.get("/", &[]).as_str())).collect();
    assert_eq!(seen.len(), 2, "100 requests of one connection had one version");
}

/// v1, v2, v3 on b1, b2, b3; v1 without a rule.
fn three(rules: &str) -> Split {
    Split { versions: vec![(1, vec![1]), (0, vec![2]), (0, vec![3])], ..Split::http(1, 0) }.with(rules)
}

#[test]
fn every_kind_of_rule_decides() {
    let rules = "rules:\n    \
        - {match: {header: {name: X-Exact, value: \"yes\"}, cookie: {name: both, value: \"1\"}, pathPrefix: /all, method: GET}, version: v3}\n    \
        - {match: {header: {name: X-Exact, value: \"yes\"}}, version: v2}\n    \
        - {match: {header: {name: X-Start, prefix: beta-}}, version: v2}\n    \
        - {match: {header: {name: X-Any, present: true}}, version: v3}\n    \
        - {match: {cookie: {name: canary, value: \"1\"}}, version: v2}\n    \
        - {match: {cookie: {name: seen, present: true}}, version: v3}\n    \
        - {match: {pathPrefix: /beta, method: GET}, version: v2}\n    \
        - {match: {query: {name: v, value: \"3\"}}, version: v3}\n    \
        - {match: {query: {name: debug, present: true}}, version: v2}\n    \
        - {match: {method: DELETE}, version: v3}\n    \
        - {match: {sourceCidr: 10.1.1.0/24}, version: v3}";
    let stage = Stage::new("rules", &[three(rules)]);
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("GET", "/", &[], "b1"),
        ("GET", "/", &["X-Exact: yes"], "b2"),
        ("GET", "/", &["x-eXACT:yes  "], "b2"),
        ("GET", "/", &["X-Exact: yess"], "b1"),
        ("GET", "/", &["X-Exact: ye"], "b1"),
        ("GET", "/", &["X-Exact: YES"], "b1"),
        ("GET", "/", &["X-Exac: yes", "X-Exactt: yes"], "b1"),
        ("GET", "/all", &["X-Exact: yes", "Cookie: both=1"], "b3"),
        ("GET", "/all/x", &["Cookie: a=2; both=1", "X-Exact: yes"], "b3"),
        ("POST", "/all", &["X-Exact: yes", "Cookie: both=1"], "b2"),
        ("GET", "/all", &["X-Exact: yes", "Cookie: both=2"], "b2"),
        ("GET", "/", &["X-Start: beta-7"], "b2"),
        ("GET", "/", &["X-Start: bet"], "b1"),
        ("GET", "/", &["X-Any:"], "b3"),
        ("GET", "/", &["X-Any: 0"], "b3"),
        ("GET", "/", &["Cookie: canary=1"], "b2"),
        ("GET", "/", &["Cookie: Canary=1"], "b1"),
        ("GET", "/", &["Cookie: xcanary=1; canary=11"], "b1"),
        ("GET", "/", &["Cookie: seen="], "b3"),
        ("GET", "/", &["Cookie: canary=1; seen=2"], "b2"),
        ("GET", "/beta/x", &[], "b2"),
        ("GET", "/beta", &[], "b2"),
        ("GET", "/Beta", &[], "b1"),
        ("GET", "/betas", &[], "b1"),
        ("GET", "/beta?x", &[], "b2"),
        ("POST", "/beta/x", &[], "b1"),
        ("GET", "/x?v=3", &[], "b3"),
        ("GET", "/x?a=1&v=3&b", &[], "b3"),
        ("GET", "/x?av=3&v=33", &[], "b1"),
        ("GET", "/x?debug", &[], "b2"),
        ("GET", "/x?nodebug=1", &[], "b1"),
        ("DELETE", "/", &[], "b3"),
    ];
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    for (method, path, lines, expected) in cases {
        let length: &[&str] = if *method == "GET" { &[] } else { &["Content-Length: 0"] };
        let bytes = crate::wire::request(method, path, &[*lines, length].concat(), b"");
        let mut fresh = Wire::open(stage.lab.client(), vip(false));
        for (what, wire) in [("a new", &mut fresh), ("a kept", &mut kept)] {
            let answer = wire.ask(&bytes);
            assert_eq!(answer.version, *expected, "{method} {path} {lines:?} on {what} connection");
        }
    }
}

#[test]
fn the_client_network_is_a_condition_like_others() {
    let rules = "rules: [{match: {sourceCidr: 10.1.1.0/24, header: {name: X-Canary, value: always}}, version: v3}, \
                 {match: {sourceCidr: 10.1.1.0/24}, version: v2}]";
    let options = splitter_lab::lab::Options { clients: 2, ..Default::default() };
    let splits = [three(rules)];
    let mut bed = crate::support::Bed::prepare("cidr", options, &splits);
    bed.site.interfaces = vec!["c*", "b*"];
    let stage = Stage::begin(bed, &splits, None);
    for (client, lines, expected) in
        [(0, &[][..], "b1"), (0, &["X-Canary: always"], "b1"), (1, &[], "b2"), (1, &["X-Canary: always"], "b3")]
    {
        let mut wire = Wire::open(&stage.lab.clients()[client], vip(false));
        assert_eq!(wire.get("/", lines), expected, "client {client} with {lines:?}");
    }
}

/// `canary: v2` stands for the names in common use.
#[test]
fn the_canary_line_knows_the_usual_tags() {
    let stage = Stage::new("canary", &[Split::http(100, 0).with("canary: v2")]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let cases: [(&str, &[&str]); 9] = [
        ("X-Canary: always", V2),
        ("X-Canary: true", V2),
        ("x-canary: 1", V2),
        ("X-Canary: never", V1),
        ("X-Gray-Version: v2", V2),
        ("X-Gray-Version: v1", V1),
        ("Cookie: canary=always", V2),
        ("Cookie: canary=1", V2),
        ("Cookie: canary=0", V1),
    ];
    for (line, expected) in cases {
        assert!(expected.contains(&kept.get("/", &[line]).as_str()), "{line}");
    }
}

/// Three versions on the same kept connections, in every order.
#[test]
fn more_than_two_versions_share_a_connection() {
    let rules =
        "rules: [{match: {header: {name: X-V, value: \"2\"}}, version: v2}, {match: {header: {name: X-V, value: \"3\"}}, version: v3}]";
    let stage = Stage::new("three", &[three(rules)]);
    let kinds: Vec<Kind> = ["1", "2", "3"].iter().map(|v| asks("/", &[&format!("X-V: {v}")], &[&format!("b{v}")])).collect();
    stage.mixed("three versions", mix(vip(false), kinds), count(2_000, 50_000));
}

#[test]
fn a_key_keeps_its_version_over_connections() {
    let cases = [("bycookie", "splitBy: {cookie: uid}", "Cookie: a=1; uid="), ("byheader", "splitBy: {header: X-User-Id}", "x-user-id: ")];
    for (name, line, lead) in cases {
        let stage = Stage::new(name, &[Split::http(50, 50).with(line)]);
        let mut kept = Wire::open(stage.lab.client(), vip(false));
        let version = |name: &str| V2.contains(&name);
        let mut v2 = 0;
        for user in 0..60 {
            let line = format!("{lead}u{user}");
            let first = version(&kept.get("/", &[&line]));
            v2 += u64::from(first);
            for _ in 0..3 {
                let mut fresh = Wire::open(stage.lab.client(), vip(false));
                assert_eq!(version(&fresh.get("/", &[&line])), first, "{line}");
                assert_eq!(version(&kept.get("/", &[&line])), first, "{line}");
            }
        }
        assert!(stats::plausible(v2, 60, 0.5), "{name}: {v2} of 60 users have v2");
        // Without a key the connection decides: it keeps its version.
        let first = version(&kept.get("/", &[]));
        assert!((0..20).all(|_| version(&kept.get("/", &[])) == first), "{name}: requests without a key changed their version");
    }
}

#[test]
fn connections_and_clients_are_keys_too() {
    let stage = Stage::new("byconn", &[Split::http(50, 50).with("splitBy: connection")]);
    let mut v2 = 0;
    for _ in 0..100 {
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        let first = V2.contains(&wire.get("/", &[]).as_str());
        assert!((0..4).all(|_| V2.contains(&wire.get("/", &[]).as_str()) == first), "a connection changed its version");
        v2 += u64::from(first);
    }
    assert!(stats::plausible(v2, 100, 0.5), "{v2} of 100 connections");
    drop(stage);
    let stage = Stage::new("byclient", &[Split::http(50, 50).with("splitBy: client-ip")]);
    let names: BTreeSet<bool> = (0..30).map(|_| V2.contains(&Wire::open(stage.lab.client(), vip(false)).get("/", &[]).as_str())).collect();
    assert_eq!(names.len(), 1, "one client, two versions");
}

/// Also for users who had it, on connections that they keep.
#[test]
fn a_rollback_overrides_stickiness_at_once() {
    let stage = Stage::new("rollback", &[Split::http(50, 50).with("splitBy: {cookie: uid}")]);
    let user = |i: u32| format!("Cookie: uid=u{i}");
    let mut wires: Vec<Wire> = (0..40).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    let mut v2 = |expected: fn(u64) -> bool| {
        let mut seen = 0;
        for (i, wire) in (0..).zip(&mut wires) {
            seen += u64::from(V2.contains(&wire.get("/", &[&user(i)]).as_str()));
        }
        assert!(expected(seen), "{seen} of 40 users have v2");
    };
    v2(|seen| stats::plausible(seen, 40, 0.5));
    stage.set_weights("web", [[100, 0]].into_iter());
    v2(|seen| seen == 0);
    stage.set_weights("web", [[0, 100]].into_iter());
    v2(|seen| seen == 40);
}
