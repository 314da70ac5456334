//! The head scanner in the kernel, by PROG_TEST_RUN, against the same code on the host. Needs root.

#[path = "../../splitter-common/src/http/tests/corpus.rs"]
mod corpus;

use corpus::{HEADS, Random};
use splitter_common::{
    abi::{Addr, HttpRules, http_match, http_subject, mapped},
    http::{
        HEAD_LIMIT, Plain, RequestHead, ResponseHead, Scan,
        chunks::{Chunks, WINDOW},
        compiler::{Compiler, Predicate},
        request, response, verdict,
    },
};
use splitter_lab::kernel::{Part, Scanner, padded};
use std::path::Path;

const CASES: u32 = 4_000;
const CLIENT: Addr = mapped([10, 1, 7, 9]);

/// The scanner alone must leave most of the verifier's million to the program that calls it.
const VERIFIED: u32 = 70_000;

fn scanner() -> Scanner {
    assert!(splitter_lab::lab::is_root(), "this test needs root: it loads BPF programs");
    Scanner::load(Path::new(splitter_datapath::objects::FOLDER)).expect("the kernel accepts the head scanner")
}

fn rules() -> Box<HttpRules> {
    let condition = |subject, name: &'static str, kind, value: &'static [u8], len| Predicate {
        subject,
        name: name.as_bytes().into(),
        kind,
        value: value.into(),
        len,
    };
    let text = |subject, name, kind, value: &'static str| condition(subject, name, kind, value.as_bytes(), value.len() as u8);
    const NETWORK: &[u8] = &mapped([10, 1, 7, 0]);
    let mut compiler = Compiler::default();
    for predicate in [
        text(http_subject::HEADER, "X-Canary", http_match::EXACT, "always"),
        text(http_subject::HEADER, "X-Gray-Version", http_match::PREFIX, "v2"),
        text(http_subject::HEADER, "X-Padding-Header-With-A-Long-Name", http_match::PRESENT, ""),
        text(http_subject::HEADER, "User-Agent", http_match::PREFIX, "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML,"),
        text(http_subject::COOKIE, "canary", http_match::EXACT, "1"),
        text(http_subject::QUERY, "canary", http_match::PRESENT, ""),
        text(http_subject::QUERY, "v", http_match::PREFIX, "2"),
        text(http_subject::PATH, "", http_match::SEGMENT, "/beta"),
        text(http_subject::METHOD, "", http_match::EXACT, "GET"),
        condition(http_subject::SOURCE, "", http_match::PREFIX, NETWORK, 96 + 24),
    ] {
        compiler.rule([predicate], 1).expect("few rules");
    }
    compiler.key(http_subject::COOKIE, b"uid").expect("few names");
    compiler.finish().expect("some rules")
}

fn on_host(text: &[u8], rules: Option<&HttpRules>) -> RequestHead {
    let mut out = RequestHead::default();
    let text_len = text.len() as u32;
    request::<Plain>(&padded(text, 0).expect("short"), text_len, rules, &CLIENT, &mut Scan::default(), &mut out);
    out
}

#[test]
fn requests_are_read_as_on_the_host() {
    let (mut scanner, rules) = (scanner(), rules());
    let mut random = Random::new(0x4ead);
    let (mut verdicts, mut facts, mut keyed) = ([0u32; 5], 0, 0u32);
    for case in 0..CASES {
        let text = if let Some(head) = HEADS.get(case as usize) { head.to_vec() } else { random.head() };
        let used = (case % 5 != 4).then_some(&*rules);
        scanner.set(&text, used, CLIENT, false).expect("maps");
        let (kernel, host) = (scanner.request().expect("a run"), on_host(&text, used));
        assert_eq!(kernel, host, "case {case}: {:?}", String::from_utf8_lossy(&text));
        verdicts[usize::from(host.verdict)] += 1;
        facts |= host.facts;
        keyed += u32::from(host.keyed);
    }
    assert!(verdicts[..4].iter().all(|count| *count > 100) && keyed > 50, "{verdicts:?} {keyed}");
    assert_eq!(facts.count_ones(), 10, "every condition held once");
}

#[test]
fn long_heads_are_read_to_their_ends() {
    let (mut scanner, rules) = (scanner(), rules());
    let limit = HEAD_LIMIT as usize;
    for fill in [7_000, 8_200, limit - 200, limit - 1, limit, limit + 1, limit + 100] {
        let tag = "X-Canary: always\r\n\r\n";
        let head = "GET / HTTP/1.1\r\nHost: a\r\nCookie: ";
        let text = format!("{head}{}\r\n{tag}", "a=bcdefg; ".repeat(2_000).get(..fill - head.len() - tag.len()).unwrap_or_default());
        scanner.set(text.as_bytes(), Some(&rules), CLIENT, false).expect("maps");
        let kernel = scanner.request().expect("a run");
        assert_eq!(kernel, on_host(text.as_bytes(), Some(&rules)), "{fill}");
        assert_eq!((kernel.verdict == verdict::COMPLETE, kernel.facts & 1), (text.len() <= limit, (text.len() <= limit).into()));
    }
}

#[test]
fn responses_are_read_as_on_the_host() {
    let mut scanner = scanner();
    let mut random = Random::new(0xbac);
    let mut complete = 0;
    for case in 0..1_000u32 {
        let mut text = random.response();
        if case % 2 == 0 {
            text = random.head();
            let line = text.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
            text.splice(..line, b"HTTP/1.1 200 OK\r\n".iter().copied());
        }
        scanner.set(&text, None, CLIENT, case % 3 == 0).expect("maps");
        let mut host = ResponseHead::default();
        response::<Plain>(&padded(&text, 0).expect("short"), text.len() as u32, case % 3 == 0, &mut Scan::default(), &mut host);
        assert_eq!(scanner.response().expect("a run"), host, "case {case}: {:?}", String::from_utf8_lossy(&text));
        complete += u32::from(host.verdict == verdict::COMPLETE);
    }
    assert!(complete > 100, "{complete}");
}

#[test]
fn chunks_are_followed_as_on_the_host() {
    let mut scanner = scanner();
    let mut random = Random::new(0xc4);
    let pieces: [&[u8]; 10] = [b"5\r\n", b"hello\r\n", b"1f;a=b\r\n", b"\r\n", b"0\r\n", b"X: y\r\n", b"\n", b"\r", b"7fffffff\r\n", b" "];
    let (mut ends, mut odd) = (0, 0);
    for case in 0..300 {
        let (mut kernel, mut host) = (Chunks::default(), Chunks::default());
        let script = [4, 3, 5, 3];
        for step in 0..8 {
            let text: Vec<u8> = (0..1 + random.below(3))
                .flat_map(|i| pieces[if case % 3 == 0 { script[(step + i) % 4] } else { random.below(10) }])
                .copied()
                .collect();
            let mut window = [b'\n'; WINDOW as usize];
            let len = text.len().min(window.len());
            window[..len].copy_from_slice(&text[..len]);
            scanner.set(&text, None, CLIENT, false).expect("maps");
            let used = scanner.chunks(&mut kernel).expect("a run");
            assert_eq!((used, kernel), (host.feed::<Plain>(&window, text.len() as u32), host), "case {case}: {text:?}");
            let skip = host.skip().min(1 + random.below(6) as u32);
            kernel.pass(skip);
            host.pass(skip);
        }
        ends += u32::from(host.is_end());
        odd += u32::from(host.is_odd());
    }
    assert!(ends > 20 && odd > 20, "{ends} ended, {odd} were odd");
}

#[test]
fn the_verifier_walks_few_instructions() {
    let scanner = scanner();
    let walked = [Part::Request, Part::Response, Part::Chunks].map(|part| scanner.verified(part).expect("the kernel tells"));
    assert!(walked.iter().all(|walked| *walked > 0 && *walked < VERIFIED), "{walked:?}");
}
