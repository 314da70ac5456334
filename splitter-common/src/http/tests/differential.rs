//! The scanner against `httparse` and a naive reading of the rules, on real heads and what seeded damage makes of them. It may only be
//! stricter, in the ways that [`Class`] lists, each of which must have occurred.

use super::{
    corpus::{HEADS, Random},
    reference::head::{Class, Expected, expected},
    *,
};
use crate::abi::{http_match::*, http_subject::*};
use std::{collections::BTreeMap, string::String, vec};

const CASES: u32 = 220_000;

fn conditions() -> Vec<Condition> {
    let of = |subject, name: &str, kind, value: &str| Condition::new(subject, name.as_bytes(), kind, value.as_bytes());
    vec![
        of(HEADER, "X-Canary", EXACT, "always"),
        of(HEADER, "X-Canary", EXACT, ""),
        of(HEADER, "X-Canary", PRESENT, ""),
        of(HEADER, "X-Gray-Version", PREFIX, "v2"),
        of(HEADER, "X-Gray-Version", EXACT, "v2"),
        of(HEADER, "Host", PREFIX, "shop"),
        of(HEADER, "x^", PRESENT, ""),
        of(HEADER, "Cookie", PREFIX, "canary"),
        of(COOKIE, "canary", EXACT, "1"),
        of(COOKIE, "canary", EXACT, "\"1\""),
        of(COOKIE, "canary", PRESENT, ""),
        of(COOKIE, "theme", PREFIX, "\"d"),
        of(QUERY, "canary", EXACT, "1"),
        of(QUERY, "canary", PRESENT, ""),
        of(QUERY, "v", PREFIX, "2"),
        of(PATH, "", PREFIX, "/beta"),
        of(PATH, "", SEGMENT, "/beta"),
        of(PATH, "", EXACT, "/"),
        of(METHOD, "", EXACT, "GET"),
        of(METHOD, "", EXACT, "POST"),
        Condition::source(mapped([192, 0, 2, 0]), 96 + 24),
        Condition::source(mapped([192, 0, 2, 128]), 96 + 25),
    ]
}

/// What is expected of a text, which is what the scanner says of it.
fn agreed(text: &[u8], filler: u8, rules: &HttpRules, conditions: &[(u64, Condition)], key: (u8, &[u8])) -> Expected {
    let mut out = RequestHead::default();
    request::<Plain>(&padded(text, filler), text.len() as u32, Some(rules), &CLIENT, &mut Scan::default(), &mut out);
    let told = || std::format!("{:?}", String::from_utf8_lossy(text));
    let refusal = RequestHead { verdict: verdict::REFUSE, ..RequestHead::default() };
    let expected = expected(text, conditions, Some(key), CLIENT);
    match &expected {
        Expected::Head(head) => assert_eq!(out, *head, "{}", told()),
        Expected::Refused(classes) => assert_eq!(out, refusal, "{classes:?}, {}", told()),
        Expected::Broken => assert_eq!(out, refusal, "{}", told()),
        Expected::NotText => {}
        Expected::Preface(verdict) => assert_eq!(out.verdict, *verdict, "{}", told()),
    }
    expected
}

/// Lines and cookies that are passed over in words of eight bytes, with any byte at any place of them.
#[test]
fn any_byte_anywhere_in_what_is_passed_over() {
    const LINES: &str = "Accept-Language: en-US,en;q=0.9\r\nX-B3-TraceId.9: 0123456789abcdef0123456789abcdef, 0123456789abcdef0123456789\r\n\
                         DNT: 1\r\nCookie: theme=dark; _ga=GA1.2.1234567890.1234567890; a=b;c=; canary=1; z=0123456789abcdef\r\nE:\r\n";
    let conditions = conditions();
    let key: (u8, &[u8]) = (COOKIE, b"uid");
    let rules: Vec<_> = conditions.iter().map(|condition| (1, vec![condition.clone()])).collect();
    let compiled = compile(&rules, Some(key));
    let masked: Vec<_> = compiled.rules.iter().map(|rule| rule.mask).zip(conditions.iter().cloned()).collect();
    let whole = with(LINES);
    let (mut same, mut other) = (0, 0);
    for at in whole.len() - LINES.len() - 2..whole.len() {
        for byte in 0..=255 {
            let mut text = whole.clone();
            text[at] = byte;
            match agreed(&text, byte, &compiled, &masked, key) {
                Expected::Head(head) if head.verdict == verdict::COMPLETE => same += 1,
                _ => other += 1,
            }
        }
    }
    assert!(same > 10_000 && other > 10_000, "{same} {other}");
}

#[test]
fn agrees_with_httparse_and_a_naive_reading() {
    let conditions = conditions();
    let rules: Vec<_> = conditions.iter().map(|condition| (1, vec![condition.clone()])).collect();
    let keys: [(u8, &[u8]); 2] = [(HEADER, b"X-User-Id"), (COOKIE, b"uid")];
    let compiled = keys.map(|key| compile(&rules, Some(key)));
    let masked =
        compiled.each_ref().map(|rules| rules.rules.iter().map(|rule| rule.mask).zip(conditions.iter().cloned()).collect::<Vec<_>>());
    let mut random = Random::new(0x5eed_0040);
    let mut seen: BTreeMap<Class, u32> = BTreeMap::new();
    let (mut complete, mut incomplete, mut broken, mut pinned, mut prefaces, mut not_text, mut keyed) = (0, 0, 0, 0, 0, 0, 0);
    let mut facts = 0u64;
    for case in 0..CASES {
        let text = random.head();
        let which = case as usize % 2;
        match agreed(&text, case as u8, &compiled[which], &masked[which], keys[which]) {
            Expected::Head(head) => {
                complete += u32::from(head.verdict == verdict::COMPLETE);
                pinned += u32::from(head.verdict == verdict::PIN);
                incomplete += u32::from(head.verdict == verdict::INCOMPLETE);
                keyed += u32::from(head.keyed);
                facts |= head.facts;
            }
            Expected::Refused(classes) => {
                if let Some(class) = classes.first().filter(|_| classes.len() == 1) {
                    *seen.entry(*class).or_default() += 1;
                }
            }
            Expected::Broken => broken += 1,
            Expected::NotText => not_text += 1,
            Expected::Preface(_) => prefaces += 1,
        }
    }
    let counts = [complete, incomplete, broken, pinned, prefaces, not_text, keyed];
    assert!(counts.iter().all(|count| *count > 500), "{counts:?} are too few of a kind to mean anything");
    assert_eq!(facts.count_ones() as usize, conditions.len() - 1, "each condition but one (another network) held at least once");
    let classes = Class::CodingTooOld as usize + 1;
    assert!(seen.len() == classes && seen.values().all(|count| *count > 10), "each class stood alone several times: {seen:?}");
}

#[test]
fn arbitrary_bytes_do_no_harm() {
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    let mut random = Random::new(7);
    for round in 0..3_000 {
        let len = random.below(if round % 50 == 0 { HEAD_LIMIT as usize } else { 200 } + 1);
        let mut text: Vec<u8> = (0..len).map(|_| random.below(256) as u8).collect();
        if round % 2 == 0 {
            text.splice(0..0, b"GET / HTTP/1.1\r\nHost: a\r\nCookie: ".iter().copied());
            text.truncate(HEAD_LIMIT as usize);
        }
        let first = read_for(&text, Some(&rules), CLIENT);
        assert_eq!(read_for(&text, Some(&rules), CLIENT), first);
        assert!(first.verdict != verdict::COMPLETE || first.head_len as usize <= text.len());
        answer(&text);
    }
}

/// Costly heads are bounded: what would need more rounds is refused, and nothing real comes near.
#[test]
fn rounds_are_bounded() {
    struct Counted;
    std::thread_local!(static ROUNDS: core::cell::Cell<u32> = const { core::cell::Cell::new(0) });
    impl Loop for Counted {
        fn repeat<F: FnMut(u32) -> bool>(rounds: u32, mut f: F) {
            let mut used = 0;
            let _ = (0..rounds).any(|round| {
                used += 1;
                f(round)
            });
            ROUNDS.set(used);
        }
    }
    let of = |i: usize| Condition::new(HEADER, b"a", EXACT, std::format!("{i}").as_bytes());
    let rules = compile(&[(1, (0..64).map(of).collect())], None);
    let costly: Vec<u8> = [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &b"a:x\r\n".repeat(1600), b"\r\n"].concat();
    let rounds = |text: &[u8], rules| {
        let mut out = RequestHead::default();
        request::<Counted>(&padded(text, 0), text.len() as u32, rules, &CLIENT, &mut Scan::default(), &mut out);
        (out.verdict, ROUNDS.get())
    };
    assert_eq!(rounds(&costly, Some(&*rules)), (verdict::REFUSE, 128 + costly.len() as u32 / 5));
    assert_eq!(rounds(&costly, None).0, verdict::COMPLETE);
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    for head in HEADS {
        let (_, used) = rounds(head, Some(&rules));
        assert!(used < 100, "{used} rounds for {:?}", String::from_utf8_lossy(head));
    }
    // As dense as real ones get: hundreds of small cookies, parameters and fields, with rules about each kind.
    let start = b"GET /a HTTP/1.1\r\nHost: a\r\n";
    let dense: [Vec<u8>; 4] = [
        [&start[..], b"Cookie: ", &b"ab=c; ".repeat(2_500), b"z=1\r\n\r\n"].concat(),
        [&b"GET /a?"[..], &b"ids=1&".repeat(2_600), b"z=1 HTTP/1.1\r\nHost: a\r\n\r\n"].concat(),
        [&start[..], &b"x-a: 1\r\n".repeat(1_900), b"\r\n"].concat(),
        [&start[..], b"Cookie: ", &b"uid=c; ".repeat(2_200), b"z=1\r\n\r\n"].concat(),
    ];
    for head in dense {
        let (verdict, used) = rounds(&head, Some(&rules));
        std::println!("{} bytes: {used} rounds of {}", head.len(), 128 + head.len() / 5);
        assert_eq!(verdict, verdict::COMPLETE, "{used} rounds for {:?}", String::from_utf8_lossy(&head[..60]));
    }
}

/// A head that comes in pieces is read on, and says the same as in one; with what is old of its memory behind it.
#[test]
fn pieces_say_what_the_whole_says() {
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    let mut random = Random::new(11);
    let whole = |text: &[u8]| {
        let mut out = RequestHead::default();
        request::<Plain>(&padded(text, b'x'), text.len() as u32, Some(&rules), &CLIENT, &mut Scan::default(), &mut out);
        out
    };
    let mut pieces = |text: &[u8], most: usize| {
        let (mut scan, mut out, mut len) = (Scan::default(), RequestHead::default(), 0);
        begin(Some(&rules), &mut scan);
        while len < text.len() && (len == 0 || out.verdict == verdict::INCOMPLETE) {
            len = (len + 1 + random.below(most)).min(text.len());
            let filler = [b'\r', b'\n', b' ', b'a', b':'][random.below(5)];
            go_on::<Plain>(&padded(&text[..len], filler), len as u32, Some(&rules), &CLIENT, &mut scan, &mut out);
        }
        (out, len)
    };
    let mut random = Random::new(12);
    let heads = HEADS.into_iter().map(<[u8]>::to_vec);
    for text in heads.chain((0..3_000).map(|_| random.head())) {
        let expected = whole(&text);
        for most in [1, 3, 40, 400] {
            let (out, len) = pieces(&text, most);
            // What is behind the end of a head may not have come yet; what is broken is refused no later than with all of it.
            assert_eq!(out.verdict, expected.verdict, "{:?} up to {len}", String::from_utf8_lossy(&text));
            if out.verdict == verdict::COMPLETE {
                assert_eq!(out, expected, "{:?}", String::from_utf8_lossy(&text));
            }
        }
    }
}

/// The end of a line may come in a packet of its own: what was not looked at before is allowed for then.
#[test]
fn dense_heads_are_read_in_pieces_too() {
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    let start = b"GET /a HTTP/1.1\r\nHost: a\r\n";
    let dense: [Vec<u8>; 3] = [
        [&start[..], b"Cookie: ", &b"ab=c; ".repeat(2_500), b"z=1\r\n\r\n"].concat(),
        [&b"GET /a?"[..], &b"ids=1&".repeat(2_600), b"z=1 HTTP/1.1\r\nHost: a\r\n\r\n"].concat(),
        [&b"GET / HTTP/1.1\r\nHost: "[..], &[b'('; 125], b"\r\n\r\n"].concat(),
    ];
    for head in dense {
        for step in [1_448, 3, head.len() - 2] {
            let (mut scan, mut out, mut len) = (Scan::default(), RequestHead::default(), 0);
            begin(Some(&rules), &mut scan);
            let text = padded(&head, 0);
            while len < head.len() && (len == 0 || out.verdict == verdict::INCOMPLETE) {
                len = (len + step).min(head.len());
                go_on::<Plain>(&text, len as u32, Some(&rules), &CLIENT, &mut scan, &mut out);
            }
            assert_eq!(out.verdict, verdict::COMPLETE, "{:?} in pieces of {step}, up to {len}", String::from_utf8_lossy(&head[..40]));
        }
    }
}

/// What stands behind the text, from another head say, is not taken for a part of it.
#[test]
fn what_stands_behind_a_piece_is_nobodys() {
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    let text = b"GET / HTTP/1.1\r\nHost: a\r\nX-Canaryaaaa: always\r\nX-Canar: always\r\n\r\n";
    for cut in 1..text.len() {
        for behind in [&b": always\r\n"[..], b"y: always\r\n", b"\r\n\r\n", b"\r\nX-Canary: always\r\n\r\n"] {
            let (mut scan, mut out) = (Scan::default(), RequestHead::default());
            begin(Some(&rules), &mut scan);
            let first = [&text[..cut], behind].concat();
            go_on::<Plain>(&padded(&first, 0), cut as u32, Some(&rules), &CLIENT, &mut scan, &mut out);
            assert_eq!(out.verdict, verdict::INCOMPLETE);
            go_on::<Plain>(&padded(text, 0), text.len() as u32, Some(&rules), &CLIENT, &mut scan, &mut out);
            let mut whole = RequestHead::default();
            request::<Plain>(&padded(text, 0), text.len() as u32, Some(&rules), &CLIENT, &mut Scan::default(), &mut whole);
            assert_eq!(out, whole, "cut at {cut}, behind it {:?}", String::from_utf8_lossy(behind));
        }
    }
}
