//! Every shape of the table in docs/http.md, by the name of its row: what two parsers could read in two ways.

use super::*;
use std::{borrow::ToOwned, collections::BTreeMap, string::String, vec};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Refused,
    Pinned,
    /// Read; so many bytes of body.
    Read(u64),
}
use Answer::{Pinned, Read, Refused};

/// A whole text.
fn raw(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// A request line and `Host`.
fn line(line: &str) -> Vec<u8> {
    std::format!("{line}\r\nHost: a\r\n\r\n").into_bytes()
}

type Row = (&'static str, Answer, Vec<Vec<u8>>);

/// Lines and their ends.
fn lines() -> Vec<Row> {
    vec![
        (
            "bare-lf",
            Refused,
            vec![
                raw("GET / HTTP/1.1\nHost: a\n\n"),
                raw("GET / HTTP/1.1\nHost: a\r\n\r\n"),
                raw("GET / HTTP/1.1\r\nHost: a\n\r\n"),
                raw("GET / HTTP/1.1\r\nHost: a\r\n\n"),
                with("X: a\nContent-Length: 5\r\n"),
                raw("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ],
        ),
        (
            "bare-cr",
            Refused,
            vec![with("X: a\rContent-Length: 5\r\n"), with("X\r: a\r\n"), raw("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n"), with("\rX: a\r\n")],
        ),
        ("nul", Refused, vec![with("X: a\0b\r\n"), with("X\0: a\r\n"), raw("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n"), raw("\0")]),
        (
            "control",
            Refused,
            (1..0x20u8)
                .chain([0x7f])
                .filter(|b| *b != b'\t' && *b != b'\r')
                .map(|b| with(&std::format!("X: a{}b\r\n", b as char)))
                .collect(),
        ),
        ("folded-line", Refused, vec![with("X: a\r\n b\r\n"), with("X: a\r\n\tb\r\n"), with("Transfer-Encoding:\r\n chunked\r\n")]),
        ("blank-first", Refused, vec![raw("GET / HTTP/1.1\r\n Host: a\r\n\r\n"), raw("GET / HTTP/1.1\r\n\tX: b\r\nHost: a\r\n\r\n")]),
        ("blank-before-colon", Refused, vec![with("Content-Length : 5\r\n"), with("X\t: 5\r\n"), with("Transfer-Encoding : chunked\r\n")]),
        ("no-name", Refused, vec![with(": x\r\n"), with(":\r\n")]),
        ("no-colon", Refused, vec![with("X\r\n"), with("X: a\r\nContent-Length 5\r\n")]),
        ("name-characters", Refused, "\"(),/;<=>?@[\\]{} \u{e4}".chars().map(|c| with(&std::format!("X{c}Y: a\r\n"))).collect()),
        ("empty-lines", Refused, vec![raw("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), raw("\r\n\r\n\r")]),
        ("empty-line", Read(0), vec![raw("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), raw("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")]),
        ("obs-text", Read(0), vec![with("X: \u{e4}\u{80}\r\n"), raw("GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n")]),
    ]
}

/// The request line.
fn starts() -> Vec<Row> {
    vec![
        (
            "method-characters",
            Refused,
            vec![
                line("G(T / HTTP/1.1"),
                line("G\u{e4}T / HTTP/1.1"),
                line("GET\t/ HTTP/1.1"),
                line(" GET / HTTP/1.1"),
                line(":GET / HTTP/1.1"),
            ],
        ),
        (
            "two-spaces",
            Refused,
            vec![
                line("GET  / HTTP/1.1"),
                line("GET /  HTTP/1.1"),
                line("GET / HTTP/1.1 "),
                line("GET / x HTTP/1.1"),
                line("CONNECT  HTTP/1.1"),
            ],
        ),
        ("target-characters", Refused, vec![line("GET /a\tb HTTP/1.1"), line("GET /a\u{7f}b HTTP/1.1"), line("GET /a\u{b}b HTTP/1.1")]),
        (
            "target-form",
            Refused,
            vec![
                line("GET a HTTP/1.1"),
                line("GET * HTTP/1.1"),
                line("OPTIONS ** HTTP/1.1"),
                line("GET ftp://a/ HTTP/1.1"),
                line("GET http:/a HTTP/1.1"),
                line("GET http:///a HTTP/1.1"),
                line("GET https:// HTTP/1.1"),
                line("GET ?a HTTP/1.1"),
            ],
        ),
        ("http-0.9", Refused, vec![raw("GET /\r\n"), raw("GET\r\n"), raw("GET / \r\n")]),
        (
            "version",
            Refused,
            vec![
                line("GET / HTTP/1.2"),
                line("GET / HTTP/2.0"),
                line("GET / http/1.1"),
                line("GET / HTTP/1.10"),
                line("GET / HTTP/01.1"),
                line("GET / HTTP/1,1"),
                line("GET / XTTP/1.1"),
                line("GET / HTTP/1.1x"),
            ],
        ),
        ("not-http", Refused, vec![raw("\u{16}\u{3}\u{1}\u{2}"), raw("{\"a\": 1}"), raw("SSH-2.0-OpenSSH_9.6\r\n"), raw("\u{80}")]),
        ("http-2-preface", Pinned, vec![raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), raw("PRI * HTTP/2.0\r\n")]),
        ("pri", Refused, vec![line("PRI * HTTP/1.1"), line("PRI / HTTP/1.1"), line("PRI / HTTP/2.0")]),
    ]
}

/// The fields that say where a request ends and whose it is.
fn fields() -> Vec<Row> {
    vec![
        ("no-host", Refused, vec![raw("GET / HTTP/1.1\r\n\r\n"), raw("GET / HTTP/1.1\r\nX-Host: a\r\nHos: a\r\nHostt: a\r\n\r\n")]),
        ("no-host-1.0", Read(0), vec![raw("GET / HTTP/1.0\r\n\r\n")]),
        ("two-hosts", Refused, vec![with("Host: h.example\r\n"), with("hOST: b\r\n"), raw("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n")]),
        (
            "host-characters",
            Refused,
            ["a b", "a,b", "a/b", "a@b", "a?b", "a#b", "a\\b", "a\tb", "\u{e4}"]
                .map(|host| raw(&std::format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")))
                .to_vec(),
        ),
        (
            "two-lengths",
            Refused,
            vec![with("Content-Length: 5\r\nContent-Length: 6\r\n"), with("Content-Length: 5\r\ncontent-length: 5\r\n")],
        ),
        ("length-list", Refused, vec![with("Content-Length: 5, 5\r\n"), with("Content-Length: 5,6\r\n"), with("Content-Length: 5 5\r\n")]),
        (
            "length-number",
            Refused,
            ["", "+5", "-5", "0x5", "5a", "a", "5.0", "\"5\"", "٥"]
                .map(|length| with(&std::format!("Content-Length: {length}\r\n")))
                .to_vec(),
        ),
        (
            "length-overflow",
            Refused,
            vec![with("Content-Length: 18446744073709551621\r\n"), with("Content-Length: 00000000000000000005\r\n")],
        ),
        ("length-long", Pinned, vec![with("Content-Length: 2147483648\r\n"), with("Content-Length: 9999999999999999999\r\n")]),
        (
            "length-blanks",
            Read(5),
            vec![with("Content-Length: \t 5 \t\r\n"), with("Content-Length:5\r\n"), with("Content-Length: 005\r\n")],
        ),
        (
            "length-and-coding",
            Refused,
            vec![
                with("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
                with("Transfer-Encoding: chunked\r\nX: y\r\nContent-Length: 5\r\n"),
            ],
        ),
        (
            "coding",
            Refused,
            [
                "",
                "identity",
                "gzip",
                "gzip, chunked",
                "chunked, gzip",
                "chunked, chunked",
                "chunked,",
                "xchunked",
                "chunked;q=1",
                "\"chunked\"",
                "chun\u{212a}ed",
            ]
            .map(|coding| with(&std::format!("Transfer-Encoding: {coding}\r\n")))
            .to_vec(),
        ),
        (
            "two-codings",
            Refused,
            vec![
                with("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"),
                with("Transfer-Encoding: chunked\r\ntransfer-encoding: x\r\n"),
            ],
        ),
        ("coding-1.0", Refused, vec![raw("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")]),
        ("chunked", Read(0), vec![with("Transfer-Encoding: chunked\r\n"), with("transfer-encoding:\tCHUNKED \r\n")]),
        ("upgrade", Read(0), vec![with("Connection: Upgrade\r\nUpgrade: websocket\r\n"), with("upgrade: h2c\r\n"), with("Upgrade:\r\n")]),
        (
            "connect",
            Read(0),
            vec![line("CONNECT a:443 HTTP/1.1"), raw("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 0\r\n\r\n")],
        ),
        ("connect-body", Pinned, vec![raw("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\nContent-Length: 5\r\n\r\n")]),
        ("expect", Read(5), vec![with("Expect: 100-continue\r\nContent-Length: 5\r\n")]),
        ("body-like-a-request", Read(35), vec![with("Content-Length: 35\r\n\r\nGET /admin HTTP/1.1\r\nHost: h.example")]),
    ]
}

fn shapes() -> Vec<Row> {
    [lines(), starts(), fields()].concat()
}

fn given(text: &[u8]) -> Option<Answer> {
    let out = read(text);
    match out.verdict {
        verdict::REFUSE => Some(Refused),
        verdict::PIN => Some(Pinned),
        verdict::COMPLETE => Some(Read(out.length)),
        _ => None,
    }
}

#[test]
fn every_shape_is_answered_as_its_row_says() {
    for (name, answer, texts) in shapes() {
        assert!(!texts.is_empty());
        for text in texts {
            assert_eq!(given(&text), Some(answer), "{name}: {:?}", String::from_utf8_lossy(&text));
        }
    }
}

/// The same names with the same answers, in both.
#[test]
fn the_document_lists_the_shapes() {
    let document = include_str!("../../../../docs/http.md");
    let rows = document.lines().filter_map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let name = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
        Some((name.to_owned(), cells.get(3)?.split(',').next()?.to_owned()))
    });
    let answer = |answer| match answer {
        Refused => "400",
        Pinned => "pinned",
        Read(_) => "read",
    };
    let written: BTreeMap<String, String> = rows.collect();
    let tested: BTreeMap<String, String> = shapes().into_iter().map(|(name, a, _)| (name.to_owned(), answer(a).to_owned())).collect();
    assert_eq!(written, tested);
}

/// Nothing that is refused waits for its end: the byte that is certainly wrong decides.
#[test]
fn wrong_bytes_are_refused_at_once() {
    for text in [
        "\u{16}",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX ",
        "GET /\r",
        "GET / HTTP/3",
        "GET / HTTP/1.1\r\n ",
    ] {
        assert!(refused(text.as_bytes()), "{text:?}");
    }
}

/// What the other fields of a response are called does not matter: it is the backend that says it, and nothing of where the body ends.
#[test]
fn names_that_frame_nothing_are_not_read_in_responses() {
    for lines in ["X : a\r\n", "X\r\n", "X(: a\r\n", "Transfer: chunked\r\n", "X-Content-Length: 7\r\n", "x\r\nA: b\r\n"] {
        for text in [std::format!("{lines}Content-Length: 5\r\n"), std::format!("Content-Length: 5\r\n{lines}")] {
            let text = std::format!("HTTP/1.1 200 OK\r\n{text}\r\n");
            let head = answer(text.as_bytes());
            assert_eq!((head.verdict, head.length, head.head_len as usize), (verdict::COMPLETE, 5, text.len()), "{text:?}");
        }
    }
}

/// The same shapes in responses are passed on, but the connection is not read any more.
#[test]
fn broken_responses_are_pinned() {
    for lines in [
        "X: a\nY: b\r\n",
        "X: a\r\n b\r\n",
        " X: a\r\n",
        "\tContent-Length: 5\r\n",
        ": a\r\n",
        "Content-Length : 5\r\n",
        "transfer-encoding : chunked\r\n",
        "Content-X : a\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nX: a\r\nCONTENT-LENGTH: 5\r\n",
        "X: a\rContent-Length: 5\r\n",
        "X: a\nContent-Length: 5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: x\r\n",
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: gzip\r\n",
        "X: a\0\r\n",
    ] {
        let text = std::format!("HTTP/1.1 200 OK\r\n{lines}\r\n");
        assert_eq!(answer(text.as_bytes()).verdict, verdict::PIN, "{text:?}");
    }
    for text in [
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 099 X\r\n\r\n",
        "HTTP/2 200\r\n\r\n",
        "ICY 200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\n\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 204 X\r\nContent-Length: 5\r\n\r\n",
        "HTTP/1.1 100 X\r\nTransfer-Encoding: chunked\r\n\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
        "<html>",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ] {
        assert_eq!(answer(text.as_bytes()).verdict, verdict::PIN, "{text:?}");
    }
}
