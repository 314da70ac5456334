//! `splitter explain` says of any request what the kernel does with it.

use crate::{
    stage::{Stage, count},
    support::{Split, vip},
    wire::Wire,
};
use serde_json::json;
use splitter_lab::admin::Admin;
use std::collections::BTreeMap;

/// Sixteen rules of every kind over three versions.
const RULES: &str = "rules:\n    \
    - {match: {header: {name: X-A, value: one}, cookie: {name: c, value: \"1\"}, pathPrefix: /p, method: GET}, version: v3}\n    \
    - {match: {header: {name: X-A, value: one}, cookie: {name: c, value: \"1\"}}, version: v2}\n    \
    - {match: {header: {name: X-A, value: two}}, version: v1}\n    \
    - {match: {header: {name: X-B, prefix: \"on\"}}, version: v2}\n    \
    - {match: {header: {name: X-C, present: true}, method: POST}, version: v3}\n    \
    - {match: {cookie: {name: d, present: true}}, version: v3}\n    \
    - {match: {cookie: {name: c, value: \"2\"}}, version: v2}\n    \
    - {match: {pathPrefix: /q, query: {name: x, value: \"1\"}}, version: v3}\n    \
    - {match: {pathPrefix: /q/r}, version: v2}\n    \
    - {match: {query: {name: y, present: true}}, version: v3}\n    \
    - {match: {method: DELETE}, version: v2}\n    \
    - {match: {method: PUT, header: {name: X-A, present: true}}, version: v3}\n    \
    - {match: {sourceCidr: 10.1.0.0/16, header: {name: X-D, value: here}}, version: v2}\n    \
    - {match: {sourceCidr: 10.7.0.0/16}, version: v3}\n    \
    - {match: {header: {name: X-B, value: two}}, version: v3}\n    \
    - {match: {header: {name: X-A, value: three}}, version: v2}";

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % n
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

/// A head of parts that rules look at and of parts that look like them.
fn head(chance: &mut Chance) -> String {
    let method = chance.pick(&["GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS"]);
    let path = chance.pick(&["/", "/p", "/p/x", "/pp", "/q", "/q/r", "/q/r/s", "/q/rr", "/Q"]);
    let query = chance.pick(&["", "", "?x=1", "?x=11", "?a=b&x=1", "?y", "?y=", "?yy=1", "?x=2&x=1", "?"]);
    let mut lines = vec!["Host: shop".to_owned()];
    for _ in 0..chance.below(5) {
        let name = chance.pick(&["X-A", "x-a", "X-AA", "X-B", "X-b", "X-C", "X-D", "X-Long-Header-Name", "Accept"]);
        let value = chance.pick(&["one", "two", "three", "on", "One", "here", "", "a, one", "onetwothree", " two "]);
        lines.push(format!("{name}:{}{value}", chance.pick(&["", " ", "   ", "\t"])));
    }
    for _ in 0..chance.below(3) {
        let pairs: Vec<String> = (0..1 + chance.below(5))
            .map(|_| format!("{}={}", chance.pick(&["c", "d", "cc", "C", "uid", "z"]), chance.pick(&["1", "2", "12", "", "\"1\""])))
            .collect();
        lines.push(format!("{}: {}", chance.pick(&["Cookie", "cookie"]), pairs.join("; ")));
    }
    if chance.below(2) == 0 {
        lines.push(format!("Cookie: uid=u{}", chance.below(500)));
    }
    if method == "POST" || method == "PUT" {
        lines.push("Content-Length: 0".into());
    }
    for i in (1..lines.len()).rev() {
        lines.swap(i, 1 + chance.below(i as u64) as usize);
    }
    format!("{method} {path}{query} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"))
}

#[test]
fn explain_agrees_with_the_kernel() {
    let split = Split { versions: vec![(50, vec![1]), (30, vec![2]), (20, vec![3])], ..Split::http(1, 1) };
    let stage = Stage::new("explain", &[split.with("splitBy: {cookie: uid}").with(RULES)]);
    let admin = Admin::new(&stage.site.socket());
    let mut chance = Chance(7);
    let mut decided: BTreeMap<String, u64> = BTreeMap::new();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut wires: Vec<Wire> = (0..20).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    for turn in 0..count(10_000, 100_000) {
        let at = chance.below(20) as usize;
        if chance.below(50) == 0 {
            wires[at] = Wire::open(stage.lab.client(), vip(false));
        }
        let head = head(&mut chance);
        let wire = &mut wires[at];
        let client = wire.stream.local_addr().unwrap().to_string();
        let answer = wire.try_ask(&head).unwrap_or_else(|error| panic!("request {turn}: {error}: {head:?}"));
        let explained = admin.explain(&json!({"service": "web", "client": client, "head": head})).unwrap();
        let version = explained["version"].as_str().unwrap_or_default();
        assert_eq!(answer.version.replace('b', "v"), version, "request {turn} from {client}: {head:?}: {explained}");
        *decided.entry(explained["decided_by"].as_str().unwrap_or_default().into()).or_default() += 1;
        *versions.entry(version.into()).or_default() += 1;
    }
    println!("decided by {decided:?}, versions {versions:?}");
    assert!(decided["rule"] > 1_000 && decided["weight"] > 1_000 && versions.len() == 3, "{decided:?} {versions:?}");
}
