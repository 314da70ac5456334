//! What [`crate::request`] and [`crate::cookie`] share: rules of every kind, the scanner whole and in pieces, and what is expected of it.

use splitter_common::{
    abi::{Addr, HttpRules, http_match::*, http_subject::*, mapped},
    http::{
        HEAD_LIMIT, HEAD_SLACK, HeadText, Loop, RequestHead, Scan,
        reference::{
            Condition, compile,
            head::{Expected, expected},
        },
        verdict,
    },
};
use std::{cell::Cell, sync::LazyLock};

const CLIENT: Addr = mapped([192, 0, 2, 7]);
/// More lines than this, `httparse` is not asked.
const LINES: usize = 400;

/// Rules with one condition each, and the key.
struct Rules {
    compiled: Box<HttpRules>,
    masked: Vec<(u64, Condition)>,
    key: (u8, &'static [u8]),
}

static RULES: LazyLock<[Rules; 2]> = LazyLock::new(|| [(HEADER, &b"X-User-Id"[..]), (COOKIE, b"uid")].map(rules));

fn rules(key: (u8, &'static [u8])) -> Rules {
    let of = |subject, name: &str, kind, value: &str| Condition::new(subject, name.as_bytes(), kind, value.as_bytes());
    let conditions = [
        of(HEADER, "X-Canary", EXACT, "always"),
        of(HEADER, "X-Canary", PRESENT, ""),
        of(HEADER, "X-Gray-Version", PREFIX, "v2"),
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
    ];
    let rules: Vec<_> = conditions.iter().map(|condition| (1, vec![condition.clone()])).collect();
    let compiled = compile(&rules, Some(key));
    let masked = compiled.rules.iter().map(|rule| rule.mask).zip(conditions).collect();
    Rules { compiled, masked, key }
}

thread_local!(static LAST: Cell<(u32, bool)> = const { Cell::new((0, false)) });

/// Notes how many rounds it took, and whether they were not enough: such a head is refused for what it costs, which no plain reading knows.
enum Counted {}

impl Loop for Counted {
    fn repeat<F: FnMut(u32) -> bool>(rounds: u32, mut f: F) {
        let ended = (0..rounds).find(|round| f(*round));
        LAST.set((ended.map_or(rounds, |round| round + 1), ended.is_none()));
    }
}

/// The text as the scanner takes it, with something behind it.
pub fn padded(text: &[u8], filler: u8) -> Box<HeadText> {
    let mut padded: Box<HeadText> = vec![filler; (HEAD_LIMIT + HEAD_SLACK) as usize].try_into().expect("its length");
    let len = text.len().min(padded.len());
    padded[..len].copy_from_slice(&text[..len]);
    padded
}

/// The scanner says of a head what is expected, and the same when it comes in pieces. `choice`: of the rules, of what stands behind the text, and of the
/// pieces' lengths.
pub fn check(text: &[u8], choice: u8) {
    let rules = &RULES[usize::from(choice & 1)];
    let text = &text[..text.len().min(HEAD_LIMIT as usize)];
    let filler = [0, 0xff, b'\n', b':'][usize::from(choice >> 1 & 3)];
    let mut out = RequestHead::default();
    let len = text.len() as u32;
    splitter_common::http::request::<Counted>(&padded(text, filler), len, Some(&rules.compiled), &CLIENT, &mut Scan::default(), &mut out);
    assert!(out.head_len <= len && (out.verdict != verdict::COMPLETE || out.head_len > 0), "{out:?}");
    let (rounds, spent) = LAST.get();
    if spent {
        return;
    }
    in_pieces(text, rules, choice >> 3, (&out, rounds));
    // A head as long as this is cut, as one that grows to it is.
    if text.len() == HEAD_LIMIT as usize || text.iter().filter(|byte| **byte == b'\n').count() > LINES {
        return;
    }
    let refusal = RequestHead { verdict: verdict::REFUSE, ..RequestHead::default() };
    match expected(text, &rules.masked, Some(rules.key), CLIENT) {
        Expected::Head(head) => assert_eq!(out, head),
        Expected::Refused(classes) => assert_eq!(out, refusal, "{classes:?}"),
        Expected::Broken => assert_eq!(out, refusal),
        Expected::Preface(expected) => assert_eq!(out.verdict, expected),
        Expected::NotText => {}
    }
}

/// Reads pieces of a length that changes, each with other bytes behind it.
fn in_pieces(text: &[u8], rules: &Rules, choice: u8, (whole, rounds): (&RequestHead, u32)) {
    let step = [1, 3, 7, 40, 200, 1460, 5, 16][usize::from(choice & 7)];
    let step = if text.len() > 1024 { step.max(40) } else { step };
    let (mut scan, mut out, mut len, mut round) = (Scan::default(), RequestHead::default(), 0, 0);
    splitter_common::http::begin(Some(&rules.compiled), &mut scan);
    let mut padded = padded(b"", 0);
    while len < text.len() && (len == 0 || out.verdict == verdict::INCOMPLETE) {
        let end = (len + step + round % 3).min(text.len());
        padded[len..end].copy_from_slice(&text[len..end]);
        let behind = padded.len().min(end + 64);
        padded[end..behind].fill([b'\r', b'\n', b' ', b'a', b':'][round % 5]);
        (len, round) = (end, round + 1);
        splitter_common::http::go_on::<Counted>(&padded, len as u32, Some(&rules.compiled), &CLIENT, &mut scan, &mut out);
        if LAST.get().1 {
            // What came so far is costly, and what follows may not be; but not where so many bytes allow for all that the whole takes.
            assert!(rounds + 8 > 128 + len as u32 / 5, "{rounds} rounds for the whole, and not enough for {len} bytes in pieces of {step}");
            return;
        }
    }
    assert_eq!(out.verdict, whole.verdict, "up to {len} in pieces of {step}");
    if out.verdict == verdict::COMPLETE {
        assert_eq!(out, *whole, "in pieces of {step}");
    }
}
