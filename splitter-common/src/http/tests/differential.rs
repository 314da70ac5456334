//! The scanner against `httparse` and a naive reading of the rules, on real heads and what seeded damage makes of them. It may only be
//! stricter, in the ways that [`Class`] lists, each of which must have occurred.

use super::{
    reference::{Class, Expected, expected},
    *,
};
use crate::abi::{http_match::*, http_subject::*};
use std::{collections::BTreeMap, string::String, vec};

const CASES: u32 = 220_000;

/// As clients send them.
const HEADS: [&[u8]; 15] = [
    b"GET / HTTP/1.1\r\nHost: 10.9.9.9\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n\r\n",
    b"GET /beta/x?canary=1&v=2 HTTP/1.1\r\nHost: shop.example\r\nX-Canary: always\r\nX-Gray-Version:  v2 \r\nCookie: a=b; canary=1;uid=7\r\n\r\n",
    b"GET /static/app.js?v=1.2 HTTP/1.1\r\nHost: shop.example:8080\r\nConnection: keep-alive\r\nsec-ch-ua: \"Chromium\";v=\"126\"\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\nAccept: text/html,*/*;q=0.8\r\nCookie: _ga=GA1.1.123; theme=\"dark\"; canary=\"1\"; uid=long-user-id-0123456789\r\n\r\n",
    b"POST /cart HTTP/1.1\r\nHost: a\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 27\r\n\r\nfield=value&GET / HTTP/1.1\r\n",
    b"POST /upload HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nX-Canary: never\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    b"\r\nHEAD /x HTTP/1.0\r\nConnection: keep-alive\r\nX-User-Id: alice\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a\r\nX_Under.score!~^: 1\r\nX-Gray-Version:\t\tv22\t\r\n\r\n",
    b"PUT http://shop.example/beta?x=y&canary&v=22 HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 2147483648\r\nExpect: 100-continue\r\n\r\n",
    b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI /x HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /\xe6\x97\xa5?canary=\xff HTTP/1.1\r\nHost: [2001:db8::1]:80\r\nX-Canary: \xc3\xa4\r\nx-user-id: a-longer-user-id-of-40-bytes-0123456789a\r\n\r\n",
    b"DELETE /bet HTTP/1.1\r\nhost: x\r\nCOOKIE: canary=2\r\nCOOKIE: canary=1; uid=; uid=9\r\nx-canary:\r\nX-Canary: always\r\n\r\n",
    b"GET https://a?canary=3 HTTP/1.0\r\nX-Padding-Header-With-A-Long-Name: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n\r\n",
];

/// What breaks heads.
const PIECES: [&[u8]; 50] = [
    b"\n",
    b"\r",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b" ",
    b"\t",
    b"\0",
    b"\x7f",
    b"\x0b",
    b"\x1f",
    b"\x80",
    b"\xff",
    b":",
    b" :",
    b";",
    b"; ",
    b"=",
    b"&",
    b"?",
    b"/",
    b",",
    b"\"",
    b"^",
    b"~",
    b"0",
    b"a",
    b"A",
    b"-",
    b"Host: b\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"X-Canary: always\r\n",
    b"X-Canary : always\r\n",
    b"Cookie: canary=1\r\n",
    b"canary=1; ",
    b"X-Gray-Version: v2.1\r\n",
    b"X-User-Id: bob\r\n",
    b"Upgrade: h2c\r\n",
    b"X^: 1\r\n",
    b"X~: 1\r\n",
    b"HTTP/1.0\r\n",
    b"\r\n\r\n",
    b"PRI ",
    b"CONNECT ",
];

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize) % limit.max(1)
    }

    fn head(&mut self) -> Vec<u8> {
        let mut text = HEADS[self.below(HEADS.len())].to_vec();
        for _ in 0..[0, 1, 1, 2, 3, 5][self.below(6)] {
            self.damage(&mut text);
        }
        if self.below(4) == 0 {
            text.truncate(self.below(text.len() + 1));
        }
        text
    }

    fn damage(&mut self, text: &mut Vec<u8>) {
        let piece = PIECES[self.below(PIECES.len())];
        let at = self.below(text.len() + 1);
        let line = text[..at].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        let next = text[at..].iter().position(|b| *b == b'\n').map_or(text.len(), |i| at + i + 1);
        match self.below(9) {
            0 | 1 => drop(text.splice(at..at, piece.iter().copied())),
            // Whole lines mostly make other sense, not none.
            2 | 3 => drop(text.splice(line..line, piece.iter().copied())),
            4 => drop(text.splice(at..(at + piece.len()).min(text.len()), piece.iter().copied())),
            5 => drop(text.drain(at..(at + self.below(12)).min(text.len()))),
            6 => drop(text.drain(line..next)),
            7 => {
                let copy = text[line..next].to_vec();
                let to = text[..line].iter().rposition(|b| *b == b'\n').map_or(line, |i| i + 1);
                text.splice(to..to, copy);
            }
            _ => {
                if let Some(byte) = text.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
        }
    }
}

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

#[test]
fn agrees_with_httparse_and_a_naive_reading() {
    let conditions = conditions();
    let rules: Vec<_> = conditions.iter().map(|condition| (1, vec![condition.clone()])).collect();
    let keys: [(u8, &[u8]); 2] = [(HEADER, b"X-User-Id"), (COOKIE, b"uid")];
    let compiled = keys.map(|key| compile(&rules, Some(key)));
    let masked =
        compiled.each_ref().map(|rules| rules.rules.iter().map(|rule| rule.mask).zip(conditions.iter().cloned()).collect::<Vec<_>>());
    let mut random = Random(0x5eed_0040);
    let mut seen: BTreeMap<Class, u32> = BTreeMap::new();
    let (mut complete, mut incomplete, mut broken, mut pinned, mut prefaces, mut not_text, mut keyed) = (0, 0, 0, 0, 0, 0, 0);
    let mut facts = 0u64;
    for case in 0..CASES {
        let text = random.head();
        let which = case as usize % 2;
        let mut out = RequestHead::default();
        let filler = case as u8;
        request::<Plain>(&padded(&text, filler), text.len() as u32, Some(&compiled[which]), &CLIENT, &mut Scan::default(), &mut out);
        let told = || std::format!("case {case}: {:?}", String::from_utf8_lossy(&text));
        let refusal = RequestHead { verdict: verdict::REFUSE, ..RequestHead::default() };
        match expected(&text, &masked[which], Some(keys[which]), CLIENT) {
            Expected::Head(head) => {
                assert_eq!(out, head, "{}", told());
                complete += u32::from(head.verdict == verdict::COMPLETE);
                pinned += u32::from(head.verdict == verdict::PIN);
                incomplete += u32::from(head.verdict == verdict::INCOMPLETE);
                keyed += u32::from(head.keyed);
                facts |= head.facts;
            }
            Expected::Refused(classes) => {
                assert_eq!(out, refusal, "{classes:?}, {}", told());
                if let Some(class) = classes.first().filter(|_| classes.len() == 1) {
                    *seen.entry(*class).or_default() += 1;
                }
            }
            Expected::Broken => {
                assert_eq!(out, refusal, "{}", told());
                broken += 1;
            }
            Expected::NotText => not_text += 1,
            Expected::Preface(verdict) => {
                assert_eq!(out.verdict, verdict, "{}", told());
                prefaces += 1;
            }
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
    let mut random = Random(7);
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
    assert_eq!(rounds(&costly, Some(&*rules)), (verdict::REFUSE, 16_384));
    assert_eq!(rounds(&costly, None).0, verdict::COMPLETE);
    let rules = compile(&[(1, conditions())], Some((COOKIE, b"uid")));
    for head in HEADS {
        let (_, used) = rounds(head, Some(&rules));
        assert!(used < 100, "{used} rounds for {:?}", String::from_utf8_lossy(head));
    }
}
