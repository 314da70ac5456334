//! What each path answers. Pure: a request to bytes.

use crate::http::{Request, body_byte};
use std::{net::SocketAddr, time::Duration};

/// For a person.
pub const PATHS: &str = "every answer carries x-version: NAME
    /              NAME and a line feed
    /bytes/N       N bytes with Content-Length
    /chunked/N     the same in chunks
    /close/N       the same, ended by the end of the connection
    /dribble/N     the same as /bytes/N, 100 bytes every 5 ms
    /wait/MS       as /, MS milliseconds later
    /status/CODE   that status; 204 and 304 without a body
    /early         103 before the answer
    /facts         the request's head and the peer's address as the server saw them
    /echo          length and digest of the request's body: `NAME LENGTH DIGEST`
    with `Upgrade` answers 101, CONNECT answers 200; then bytes come back as they went";

/// How the answer goes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    None,
    Wait(Duration),
    /// So many bytes at a time, and the pause between.
    Dribble(usize, Duration),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub bytes: Vec<u8>,
    pub close: bool,
    pub tunnel: bool,
    pub pace: Pace,
}

/// FNV-1a, 64 bits: tells a body from any other that a fault could make of it.
pub fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

pub(super) fn answer_head(status: u16, name: &str, length: u64, keep_alive: bool) -> Vec<u8> {
    head(status, name, keep_alive, &format!("content-length: {length}\r\n"))
}

fn head(status: u16, name: &str, keep_alive: bool, more: &str) -> Vec<u8> {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        304 => "Not Modified",
        500 => "Internal Server Error",
        _ => "Status",
    };
    let connection = if keep_alive { "keep-alive" } else { "close" };
    format!("HTTP/1.1 {status} {reason}\r\nx-version: {name}\r\n{more}connection: {connection}\r\n\r\n").into_bytes()
}

fn chunked(size: u64) -> Vec<u8> {
    // A prime, so that chunks and segments never fall together for long.
    const PIECE: u64 = 1_009;
    let mut bytes = Vec::new();
    for start in (0..size).step_by(PIECE as usize) {
        let end = size.min(start + PIECE);
        bytes.extend(format!("{:x}\r\n", end - start).into_bytes());
        bytes.extend((start..end).map(body_byte));
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    bytes
}

pub(super) fn answer(request: &Request, name: &str, peer: Option<SocketAddr>) -> Answer {
    let keep = request.keep_alive;
    if request.method == "CONNECT" {
        let bytes = format!("HTTP/1.1 200 Connected\r\nx-version: {name}\r\n\r\n").into_bytes();
        return Answer { bytes, close: false, tunnel: true, pace: Pace::None };
    }
    if request.upgrade {
        let head = format!("HTTP/1.1 101 Switching Protocols\r\nx-version: {name}\r\nupgrade: echo\r\nconnection: upgrade\r\n\r\n");
        return Answer { bytes: head.into_bytes(), close: false, tunnel: true, pace: Pace::None };
    }
    let (kind, argument) = request.path[1..].split_once('/').unwrap_or((&request.path[1..], ""));
    let number: u64 = argument.parse().unwrap_or(0);
    let whole = |status, body: Vec<u8>| [answer_head(status, name, body.len() as u64, keep), body].concat();
    let pattern = || (0..number).map(body_byte).collect::<Vec<u8>>();
    let plain = || format!("{name}\n").into_bytes();
    let (mut pace, mut close) = (Pace::None, !keep);
    let mut bytes = match kind {
        "bytes" => whole(200, pattern()),
        "chunked" => [head(200, name, keep, "transfer-encoding: chunked\r\n"), chunked(number)].concat(),
        "close" => {
            close = true;
            [head(200, name, false, ""), pattern()].concat()
        }
        "dribble" => {
            pace = Pace::Dribble(100, Duration::from_millis(5));
            whole(200, pattern())
        }
        "wait" => {
            pace = Pace::Wait(Duration::from_millis(number));
            whole(200, plain())
        }
        "status" if matches!(number, 204 | 304) => head(number as u16, name, keep, ""),
        "status" => whole(number.clamp(200, 599) as u16, plain()),
        "early" => [b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n".to_vec(), whole(200, plain())].concat(),
        "facts" => {
            whole(200, format!("{name}\n{}\n{}\n", peer.map(|peer| peer.to_string()).unwrap_or_default(), request.head).into_bytes())
        }
        "echo" => whole(200, format!("{name} {} {:016x}\n", request.body.len(), digest(&request.body)).into_bytes()),
        _ => whole(200, plain()),
    };
    if request.method == "HEAD" {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
        bytes.truncate(end);
    }
    Answer { bytes, close, tunnel: false, pace }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::parse_request;

    fn ask(text: &str) -> (String, Answer) {
        let request = parse_request(text.as_bytes()).unwrap().unwrap();
        let answer = answer(&request, "v7", None);
        (String::from_utf8_lossy(&answer.bytes).into_owned(), answer)
    }

    #[test]
    fn bodies_are_framed_as_asked() {
        assert!(ask("GET /chunked/1010 HTTP/1.1\r\n\r\n").0.contains("\r\n\r\n3f1\r\n"));
        assert!(ask("GET /chunked/1010 HTTP/1.1\r\n\r\n").0.ends_with("\r\n1\r\n\u{5}\r\n0\r\n\r\n"));
        let (text, answer) = ask("GET /close/3 HTTP/1.1\r\n\r\n");
        assert!(answer.close && !text.contains("content-length") && text.ends_with("\r\n\r\n\0\u{1}\u{2}"));
        assert!(ask("HEAD /bytes/9 HTTP/1.1\r\n\r\n").0.ends_with("content-length: 9\r\nconnection: keep-alive\r\n\r\n"));
        assert!(!ask("GET /status/304 HTTP/1.1\r\n\r\n").0.contains("content-length"));
    }

    #[test]
    fn a_body_is_told_by_length_and_digest() {
        let (text, _) = ask("POST /echo HTTP/1.1\r\ncontent-length: 1\r\n\r\na");
        assert!(text.ends_with("v7 1 af63dc4c8601ec8c\n"), "{text}");
        let (chunked, _) = ask("POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n");
        assert_eq!(chunked, text);
    }

    #[test]
    fn upgrades_and_connect_become_tunnels() {
        assert!(ask("GET / HTTP/1.1\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").1.tunnel);
        assert!(ask("CONNECT x:1 HTTP/1.1\r\n\r\n").1.tunnel);
    }
}
