//! Predicates, keys and the choice of a rule.

use super::*;
use crate::{
    abi::{http_match::*, http_subject::*},
    decide,
};
use std::{format, string::String, vec};

/// Whether the condition holds for a request with these lines; `target` and `client` as given.
fn holds(condition: Condition, text: &[u8], client: Addr) -> bool {
    let rules = compile(&[(7, vec![condition])], None);
    let out = read_for(text, Some(&rules), client);
    assert_eq!(out.verdict, verdict::COMPLETE, "{:?}", String::from_utf8_lossy(text));
    assert_eq!(rule(&rules, out.facts), (out.facts == 1).then_some(7));
    out.facts == 1
}

fn of(subject: u8, name: &str, kind: u8, value: &str) -> Condition {
    Condition::new(subject, name.as_bytes(), kind, value.as_bytes())
}

fn header(kind: u8, value: &str, lines: &str) -> bool {
    holds(of(HEADER, "X-Gray-Version", kind, value), &with(lines), CLIENT)
}

fn cookie(kind: u8, value: &str, lines: &str) -> bool {
    holds(of(COOKIE, "canary", kind, value), &with(lines), CLIENT)
}

fn query(kind: u8, value: &str, target: &str) -> bool {
    let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    holds(of(QUERY, "v", kind, value), text.as_bytes(), CLIENT)
}

fn path(kind: u8, value: &str, target: &str) -> bool {
    let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    holds(of(PATH, "", kind, value), text.as_bytes(), CLIENT)
}

#[test]
fn headers() {
    assert!(header(EXACT, "v2", "X-Gray-Version: v2\r\n"));
    assert!(header(EXACT, "v2", "x-gRAY-vERSION:\t  v2 \t \r\n"));
    assert!(header(EXACT, "v2", "X-Gray-Version: v1\r\nAccept: */*\r\nX-Gray-Version: v2\r\n"), "any of several");
    assert!(header(EXACT, "", "X-Gray-Version: \r\n"));
    assert!(header(PRESENT, "", "X-Gray-Version:\r\n"));
    assert!(header(PREFIX, "v2", "X-Gray-Version: v2.1\r\n"));
    for (kind, value, lines) in [
        (EXACT, "v2", "X-Gray-Version: V2\r\n"),
        (EXACT, "v2", "X-Gray-Version: v2.1\r\n"),
        (EXACT, "v2.1", "X-Gray-Version: v2\r\n"),
        (EXACT, "v2", "X-Gray-Versio: v2\r\nX-Gray-Versions: v2\r\nX-Gray-VersioN2: v2\r\n"),
        (PREFIX, "v2", "X-Gray-Version: v\r\n"),
        (PRESENT, "", "X-Gray: v2\r\nAccept: X-Gray-Version: v2\r\n"),
    ] {
        assert!(!header(kind, value, lines), "{value} in {lines:?}");
    }
}

#[test]
fn long_names_and_values_are_compared_to_their_ends() {
    for len in [1, 7, 8, 9, 15, 16, 31, 32, 33, 39, 40, 41, 63, 64, 65, 254, 255] {
        let (name, value) = ("n".repeat(len), "v".repeat(len));
        let condition = |kind| of(HEADER, &name, kind, &value);
        for changed in 0..=len {
            let replace = |text: &str| text.char_indices().map(|(i, c)| if i == changed { 'x' } else { c }).collect::<String>();
            let same = changed == len;
            assert_eq!(holds(condition(EXACT), &with(&format!("{}: {value}\r\n", replace(&name))), CLIENT), same, "name {len}, {changed}");
            assert_eq!(holds(condition(EXACT), &with(&format!("{name}: {}\r\n", replace(&value))), CLIENT), same, "value {len}, {changed}");
            assert_eq!(holds(condition(PREFIX), &with(&format!("{name}: {}abc\r\n", replace(&value))), CLIENT), same);
        }
    }
}

/// `^` and `~` differ in the bit that letters of two cases differ in.
#[test]
fn only_letters_lose_their_case() {
    assert!(!holds(of(HEADER, "x^a", PRESENT, ""), &with("x~a: 1\r\n"), CLIENT));
    assert!(holds(of(HEADER, "x^a", PRESENT, ""), &with("X^A: 1\r\n"), CLIENT));
    assert!(!holds(of(HEADER, "accept-x^a", PRESENT, ""), &with("accept-x~a: 1\r\n"), CLIENT));
    assert!(!holds(of(COOKIE, "canary", PRESENT, ""), &with("Cookie: Canary=1\r\n"), CLIENT));
}

#[test]
fn cookies() {
    for lines in [
        "Cookie: canary=1\r\n",
        "cookie: a=b; canary=1; c=d\r\n",
        "Cookie: a=b;canary=1;c=d\r\n",
        "Cookie: a=b;  \t canary=1 ;c=d\r\n",
        "Cookie: flag; canary=1\r\n",
        "Cookie: ; ;; canary=1\r\n",
        "Cookie: a=canary=2; canary=1\r\n",
        "Cookie: canary=2; canary=1\r\n",
        "Cookie: canary=2\r\nCookie: canary=1\r\n",
    ] {
        assert!(cookie(EXACT, "1", lines), "{lines:?}");
    }
    for lines in [
        "Cookie: canary=\"1\"\r\n",
        "Cookie: xcanary=1; canary2=1; canar=1\r\n",
        "Cookie: canary\r\n",
        "Cookie: canary =1\r\n",
        "Cookie: a=\"; canary=2; canary==1\r\n",
        "Cookies: canary=1\r\n",
        "X-Cookie: canary=1\r\n",
    ] {
        assert!(!cookie(EXACT, "1", lines), "{lines:?}");
    }
    assert!(cookie(EXACT, "\"1\"", "Cookie: canary=\"1\"\r\n"));
    assert!(cookie(PRESENT, "", "Cookie: canary=\r\n") && !cookie(PRESENT, "", "Cookie: canary\r\n"));
    let long = format!("Cookie: {}; canary=1\r\n", (0..40).map(|i| format!("n{i}={}", "v".repeat(i * 3))).collect::<Vec<_>>().join("; "));
    assert!(cookie(EXACT, "1", &long));
}

#[test]
fn queries() {
    for target in ["/?v=2", "/a?x=1&v=2", "/?v=2&v=3", "/?v=3&v=2", "/?&&v=2&", "http://a?v=2", "/?a?v=1&v=2"] {
        assert!(query(EXACT, "2", target), "{target}");
    }
    for target in ["/v=2", "/?V=2", "/?xv=2", "/?v=%32", "/?v=22", "/?a=v=2", "/a?"] {
        assert!(!query(EXACT, "2", target), "{target}");
    }
    assert!(query(PRESENT, "", "/?v") && query(EXACT, "", "/?a&v&b") && query(EXACT, "", "/?v="));
    assert!(query(PREFIX, "2", "/?v=22"));
}

#[test]
fn paths_methods_and_sources() {
    assert!(path(PREFIX, "/beta", "/beta/x?y") && path(PREFIX, "/beta", "/betax") && !path(PREFIX, "/beta", "/bet?/beta"));
    assert!(path(EXACT, "/beta", "/beta?x") && !path(EXACT, "/beta", "/beta/") && !path(EXACT, "/beta", "/Beta"));
    assert!(path(EXACT, "/beta", "http://beta/beta?x") && !path(EXACT, "*", "/"));
    assert!(path(PREFIX, &"/beta".repeat(30), &"/beta".repeat(31)));
    for (target, holds) in
        [("/beta", true), ("/beta/", true), ("/beta?x", true), ("/beta/x", true), ("/betamax", false), ("/bet", false), ("/b/beta", false)]
    {
        assert_eq!(path(SEGMENT, "/beta", target), holds, "{target}");
    }
    assert!(
        path(EXACT, "/", "http://a")
            && path(EXACT, "/", "https://a?/b")
            && path(PREFIX, "/", "http://a/b")
            && !path(EXACT, "/", "http://a/b")
    );
    let method = |method: &str| holds(of(METHOD, "", EXACT, "PUT"), format!("{method} / HTTP/1.0\r\n\r\n").as_bytes(), CLIENT);
    assert!(method("PUT") && !method("put") && !method("PUTS") && !method("PU"));
    let source = |bits: u8, client| holds(Condition::source(mapped([10, 1, 4, 0]), 96 + bits), &with(""), client);
    assert!(source(22, mapped([10, 1, 7, 255])) && !source(22, mapped([10, 1, 8, 0])) && source(0, CLIENT));
    assert!(source(32, mapped([10, 1, 4, 0])) && !source(32, mapped([10, 1, 4, 1])));
    let v6 = |bits, last| {
        let (mut net, mut client) = ([0; 16], [0; 16]);
        (net[0], net[8], client[0], client[8]) = (0xfd, 0x80, 0xfd, last);
        holds(Condition::source(net, bits), &with(""), client)
    };
    assert!(v6(65, 0x80) && v6(65, 0xff) && !v6(65, 0x7f) && v6(64, 0) && v6(0, 9) && !v6(128, 0x81));
}

#[test]
fn rules_are_anded_and_the_first_wins() {
    let beta = || of(PATH, "", PREFIX, "/beta");
    let rules = compile(
        &[
            (3, vec![beta(), of(METHOD, "", EXACT, "GET"), of(HEADER, "X-Canary", EXACT, "always")]),
            (4, vec![of(COOKIE, "canary", EXACT, "1"), of(QUERY, "v", EXACT, "2")]),
            (5, vec![beta()]),
        ],
        None,
    );
    let choice = |text: &str| rule(&rules, read_for(text.as_bytes(), Some(&rules), CLIENT).facts);
    let host = "HTTP/1.1\r\nHost: a\r\n";
    assert_eq!(choice(&format!("GET /beta/x {host}x-canary: always\r\n\r\n")), Some(3));
    assert_eq!(choice(&format!("PUT /beta/x {host}x-canary: always\r\n\r\n")), Some(5));
    assert_eq!(choice(&format!("PUT /beta/x?v=2 {host}Cookie: canary=1\r\n\r\n")), Some(4));
    assert_eq!(choice(&format!("GET /x?v=2 {host}Cookie: canary=2\r\n\r\n")), None);
    assert_eq!(rule(&compile(&[(9, vec![])], None), 0), Some(9), "a rule without conditions matches all");
}

#[test]
fn keys() {
    let key_of = |subject, name: &str, lines: &str| {
        let rules = compile(&[(1, vec![of(HEADER, "accept", PRESENT, "")])], Some((subject, name.as_bytes())));
        let out = read_for(&with(lines), Some(&rules), CLIENT);
        assert_eq!(out.verdict, verdict::COMPLETE);
        (out.keyed == 1).then_some(out.key)
    };
    let hash = |value: &str| Some(decide::value_key(value.bytes().fold(decide::VALUE_START, decide::value_step)));
    for value in ["7", "sixteen bytes ok", "0123456789abcdef0123456789abcdef-", &"long".repeat(100)] {
        assert_eq!(key_of(HEADER, "X-User-Id", &format!("x-user-id:  {value} \r\nX-User-Id: other\r\n")), hash(value));
        assert_eq!(key_of(COOKIE, "uid", &format!("Cookie: a=b; uid={value}; uid=2\r\nCookie: uid=3\r\n")), hash(value));
    }
    assert_eq!(key_of(HEADER, "X-User-Id", "X-User-Id: \r\nX-User-Id: b\r\n"), hash("b"), "an empty value is no key");
    assert_eq!(key_of(HEADER, "X-User-Id", "Accept: X-User-Id\r\n"), None);
    assert_eq!(key_of(COOKIE, "uid", "Cookie: uid=; Uid=5\r\n"), None);
    assert_eq!(key_of(HEADER, "Host", ""), hash("h.example"), "a field that is always read may be the key too");
}

/// As many names, predicates and bytes as fit.
#[test]
fn full_tables() {
    let condition = |i: usize| of(HEADER, &format!("x-name-{:02}", i % 32), EXACT, &format!("value-{i}"));
    let rules: Vec<_> = (0..16).map(|r| (r as u32, (0..4).map(|c| condition(4 * r + c)).collect())).collect();
    let rules = compile(&rules, None);
    assert_eq!((rules.name_count, rules.predicate_count), (32, 64));
    for r in 0..16 {
        let lines: String = (0..4).map(|c| format!("X-NAME-{:02}: value-{}\r\n", (4 * r + c) % 32, 4 * r + c)).collect();
        let out = read_for(&with(&lines), Some(&rules), CLIENT);
        assert_eq!((out.facts.count_ones(), rule(&rules, out.facts)), (4, Some(r as u32)));
    }
}

#[test]
fn subjects_of_the_request_line_stand_behind_many_names() {
    let headers: Vec<_> = (0..28).map(|i| of(HEADER, &format!("x-{i}"), PRESENT, "")).collect();
    let line = vec![of(QUERY, "v", EXACT, "2"), of(PATH, "", EXACT, "/a"), of(METHOD, "", EXACT, "GET"), Condition::source(CLIENT, 128)];
    let rules = compile(&[(1, headers), (2, line)], None);
    assert_eq!(rules.name_count, 32);
    let facts = read_for(b"GET /a?v=2 HTTP/1.1\r\nHost: a\r\nX-27: 1\r\n\r\n", Some(&rules), CLIENT).facts;
    assert_eq!((facts.count_ones(), rule(&rules, facts)), (5, Some(2)));
}
