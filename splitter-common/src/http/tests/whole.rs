//! Whole heads: their ends, their bodies, their limits.

use super::*;
use std::{format, string::String};

const REAL: [&str; 5] = [
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /search?q=a+b&lang=en HTTP/1.1\r\nHost: shop.example:8080\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\nX_Odd.Name!: \t v \r\n\r\n",
    "POST /cart HTTP/1.1\r\nhOST: [2001:db8::1]:80\r\nContent-Length: 1234\r\nContent-Type: application/json\r\nCookie: a=b; c=\"d e\"\r\n\r\n",
    "\r\n\r\nHEAD http://example.com/x?y HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost:\r\nOrigin: https://example.com\r\nAccess-Control-Request-Headers:\tx-canary\r\n\r\n",
];

#[test]
fn every_prefix_of_a_good_head_is_incomplete() {
    let long =
        format!("GET /{} HTTP/1.1\r\nHost: {}\r\n{}: {}\r\n\r\n", "p/".repeat(150), "h".repeat(150), "N".repeat(150), "v".repeat(300));
    for text in REAL.iter().copied().chain([long.as_str()]) {
        for end in 0..text.len() {
            assert_eq!(read(&text.as_bytes()[..end]), RequestHead::default(), "{:?}", &text[..end]);
        }
        let whole = read(text.as_bytes());
        assert_eq!((whole.verdict, whole.head_len), (verdict::COMPLETE, text.len() as u32), "{text:?}");
        let more = read(format!("{text}GET /smuggled HTTP/1.1\r\n").as_bytes());
        assert_eq!(more, whole, "what follows the head is not read");
    }
}

#[test]
fn bodies() {
    assert_eq!(read(REAL[2].as_bytes()).length, 1234);
    assert_eq!(read(&with("")).length, 0);
    let longest = read(&with("Content-Length: 2147483647\r\n"));
    assert_eq!((longest.verdict, longest.length), (verdict::COMPLETE, (1 << 31) - 1));
    let longer = read(&with("Content-Length: 2147483648\r\n"));
    assert_eq!((longer.verdict, longer.length), (verdict::PIN, 1 << 31));
    let zeros = read(&with("Content-Length: 0000000000000000007\r\n"));
    assert_eq!((zeros.verdict, zeros.length), (verdict::COMPLETE, 7));
    let chunked = read(&with("tRANSFER-eNCODING: Chunked\r\n"));
    assert_eq!((chunked.verdict, chunked.framing), (verdict::COMPLETE, framing::CHUNKED));
    let expecting = read(&with("Expect: 100-continue\r\nContent-Length: 3\r\n"));
    assert_eq!((expecting.verdict, expecting.length), (verdict::COMPLETE, 3));
}

#[test]
fn methods() {
    assert_eq!(read(REAL[3].as_bytes()).head_method, 1);
    assert_eq!(read(b"HEADS / HTTP/1.1\r\nHost: a\r\n\r\n").head_method, 0);
    assert_eq!(read(b"head / HTTP/1.1\r\nHost: a\r\n\r\n").head_method, 0, "methods have case");
    let tunnel = read(b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n");
    assert_eq!((tunnel.verdict, tunnel.connect_method, tunnel.head_method), (verdict::COMPLETE, 1, 0));
    assert_eq!(read(b"CONNECTS / HTTP/1.1\r\nHost: a\r\n\r\n").connect_method, 0);
}

#[test]
fn limits() {
    let filled = |len: usize| {
        let head = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
        format!("{head}{}\r\n\r\n", "v".repeat(len - head.len() - 4))
    };
    let longest = read(filled(HEAD_LIMIT as usize).as_bytes());
    assert_eq!((longest.verdict, longest.head_len), (verdict::COMPLETE, HEAD_LIMIT));
    for len in [1, 2, 3, 4, 5, 32, 64, 100] {
        assert_eq!(read(filled(HEAD_LIMIT as usize + len).as_bytes()).verdict, verdict::TOO_LONG, "{len} bytes more");
    }
    let open = String::from("GET / HTTP/1.1\r\nHost: a\r\nX: ") + &"v".repeat(HEAD_LIMIT as usize);
    assert_eq!(read(&open.as_bytes()[..HEAD_LIMIT as usize - 1]).verdict, verdict::INCOMPLETE);
    assert_eq!(read(&open.as_bytes()[..HEAD_LIMIT as usize]).verdict, verdict::TOO_LONG);
}

#[test]
fn responses() {
    let head = |text: &str| {
        let out = answer(text.as_bytes());
        (out.verdict, out.status, out.framing, out.length)
    };
    use framing::*;
    use verdict::*;
    assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), (COMPLETE, 200, LENGTH, 5));
    assert_eq!(head("HTTP/1.1 404\r\ncontent-length: 0\r\n\r\n"), (COMPLETE, 404, LENGTH, 0));
    assert_eq!(head("HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"), (COMPLETE, 200, CHUNKED, 0));
    assert_eq!(head("HTTP/1.0 200 Fine\tday \u{e4}\r\n\r\n"), (COMPLETE, 200, CLOSE, 0));
    assert_eq!(head("HTTP/1.1 100 Continue\r\n\r\n"), (COMPLETE, 100, LENGTH, 0));
    assert_eq!(head("HTTP/1.1 204 No Content\r\n\r\n"), (COMPLETE, 204, LENGTH, 0));
    assert_eq!(head("HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"), (COMPLETE, 304, LENGTH, 0));
    let to_head = answer_to(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true);
    assert_eq!((to_head.verdict, to_head.framing, to_head.length, to_head.head_len), (COMPLETE, LENGTH, 0, 38));
    assert_eq!(head("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n").0, PIN);
    let text = "HTTP/1.1 200 A long reason, longer than a word, longer than a window of sixty-four bytes, surely\r\nServer: s\r\nContent-Length: 10\r\n\r\n";
    for end in 0..text.len() {
        assert_eq!(answer(&text.as_bytes()[..end]).verdict, INCOMPLETE, "{:?}", &text[..end]);
    }
    assert_eq!(head(text), (COMPLETE, 200, LENGTH, 10));
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "v".repeat(HEAD_LIMIT as usize));
    assert_eq!(head(&endless).0, TOO_LONG);
}
