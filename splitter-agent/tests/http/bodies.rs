//! Where a message ends: bodies that look like requests, chunks, answers without a body, tunnels, pipelines. What cannot be told is pinned.

use crate::{
    stage::{Stage, V1, V2, both_families, tagged},
    support::vip,
    wire::{Answer, TO_V1, TO_V2, Wire, get, post, request},
};
use splitter_lab::{foreign, http::body_byte, serve::digest};
use std::time::{Duration, Instant};

fn is(version: &str, of: &[&str]) -> bool {
    of.contains(&version)
}

/// The answer of `/echo` to a body.
fn echoed(answer: &Answer, body: &[u8]) -> bool {
    answer.status == 200 && answer.body == format!("{} {} {:016x}\n", answer.version, body.len(), digest(body)).into_bytes()
}

#[test]
fn a_body_that_looks_like_a_request_is_a_body() {
    let stage = Stage::new("posts", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let lure = get("/", &[TO_V2]);
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        lure.clone(),
        lure.repeat(30),
        [b"x".repeat(1_400), lure.clone()].concat(),
        (0..100_000).map(body_byte).collect(),
        lure.repeat(2_000),
    ];
    for (i, body) in bodies.iter().enumerate() {
        for pieces in [1, 2, 3] {
            let bytes = post("/echo", &[TO_V1], body);
            let head = bytes.len() - body.len();
            let middle = head + body.len() / 2;
            match pieces {
                1 => kept.send(&bytes),
                2 => kept.send_cut(&bytes, &[head], Duration::from_millis(2)),
                _ => kept.send_cut(&bytes, &[head - 3, head.max(1), middle], Duration::from_millis(2)),
            }
            let answer = kept.answer().unwrap_or_else(|error| panic!("body {i} in {pieces}: {error}"));
            assert!(is(&answer.version, V1) && echoed(&answer, body), "body {i} of {} bytes in {pieces}: {answer:?}", body.len());
            // The end was counted right: the next request is read as one.
            assert!(is(&kept.get("/", &[TO_V2]), V2), "after body {i} in {pieces}");
        }
    }
}

#[test]
fn large_bodies_both_ways_between_tags() {
    let stage = Stage::new("large", &[tagged(100, 0), tagged(100, 0).v6().named("web6")]);
    let body: Vec<u8> = (0..1_000_000).map(body_byte).collect();
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for turn in 0..6 {
            let (tag, expected) = if turn % 2 == 0 { (TO_V2, V2) } else { (TO_V1, V1) };
            let answer = wire.ask(post("/echo", &[tag], &body));
            assert!(is(&answer.version, expected) && echoed(&answer, &body), "turn {turn}: {} {}", answer.version, answer.status);
            for path in ["/bytes/1000000", "/chunked/300000"] {
                let answer = wire.ask(get(path, &[if turn % 2 == 0 { TO_V1 } else { TO_V2 }]));
                assert!(is(&answer.version, if turn % 2 == 0 { V1 } else { V2 }), "turn {turn}: {path} from {}", answer.version);
                assert!((0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)), "turn {turn}: {path} is damaged");
            }
        }
    }
}

/// Every answer whose end a splitter must know to read the next request.
/// More than a slot holds comes in one packet while a leg is being opened. What is missing is asked for at once: the client's timer would take 200 ms.
#[test]
fn the_first_upload_to_a_version_waits_for_no_timer() {
    let stage = Stage::new("uploads", &both_families(&tagged(100, 0)));
    for v6 in [false, true] {
        for length in [100_000, 250_000] {
            let body: Vec<u8> = (0..length).map(body_byte).collect();
            let first = || {
                let mut wire = Wire::open(stage.lab.client(), vip(v6));
                // Its window has grown, so that all of the next one comes at once.
                for _ in 0..2 {
                    assert!(echoed(&wire.ask(post("/echo", &[TO_V1], &body)), &body));
                }
                let began = Instant::now();
                let answer = wire.ask(post("/echo", &[TO_V2], &body));
                assert!(echoed(&answer, &body) && is(&answer.version, V2), "{} {}", answer.status, answer.version);
                began.elapsed()
            };
            // On a busy machine some are late by chance.
            let fastest = (0..8).map(|_| first()).min().expect("some");
            assert!(fastest < Duration::from_millis(150), "{length} bytes take {fastest:?} at least");
        }
    }
}

#[test]
fn the_request_after_any_answer_is_read() {
    let stage = Stage::new("answers", &[tagged(100, 0)]);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let cases: &[(&str, &str, u16, usize)] = &[
        ("GET", "/bytes/0", 200, 0),
        ("HEAD", "/bytes/5000", 200, 0),
        ("GET", "/status/204", 204, 0),
        ("GET", "/status/304", 304, 0),
        ("HEAD", "/chunked/5000", 200, 0),
        ("GET", "/chunked/0", 200, 0),
        ("GET", "/chunked/5000", 200, 5_000),
        ("GET", "/early", 200, 3),
        ("GET", "/status/503", 503, 3),
        ("GET", "/wait/20", 200, 3),
        ("GET", "/dribble/700", 200, 700),
    ];
    for (method, path, status, length) in cases {
        for (tag, expected, next, then) in [(TO_V1, V1, TO_V2, V2), (TO_V2, V2, TO_V1, V1)] {
            wire.send(request(method, path, &[tag], b""));
            let answer = wire.answer_to(method).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
            assert_eq!((answer.status, answer.body.len()), (*status, *length), "{method} {path}: {answer:?}");
            assert!(is(&answer.version, expected), "{method} {path}: {}", answer.version);
            assert!(crate::stage::through().is_some() || answer.interim == if *path == "/early" { vec![103] } else { vec![] });
            // What follows an answer whose end is told only by its chunks may stay where it is, but is answered.
            let version = wire.get("/", &[next]);
            assert!(is(&version, then), "{next} after {method} {path}: {version}");
        }
    }
}

#[test]
fn an_answer_that_ends_with_the_connection_is_whole() {
    let stage = Stage::new("toclose", &[tagged(100, 0)]);
    for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
        for size in [0, 10, 300_000] {
            let mut wire = Wire::open(stage.lab.client(), vip(false));
            assert!(is(&wire.get("/", &[if tag == TO_V1 { TO_V2 } else { TO_V1 }]), if tag == TO_V1 { V2 } else { V1 }));
            let answer = wire.ask(get(&format!("/close/{size}"), &[tag]));
            assert!(is(&answer.version, expected) && answer.body.len() == size, "{} bytes from {}", answer.body.len(), answer.version);
            assert!((0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)));
        }
    }
}

#[test]
fn who_waits_for_100_gets_it() {
    let stage = Stage::new("continue", &[tagged(100, 0)]);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let body = get("/", &[TO_V1]).repeat(20);
    for (tag, expected) in [(TO_V2, V2), (TO_V1, V1), (TO_V2, V2)] {
        let bytes = post("/echo", &[tag, "Expect: 100-continue"], &body);
        wire.send(&bytes[..bytes.len() - body.len()]);
        std::thread::sleep(Duration::from_millis(20));
        wire.send(&body);
        let answer = wire.answer().expect("an answer");
        assert!(is(&answer.version, expected) && echoed(&answer, &body) && answer.interim == [100], "{answer:?}");
    }
}

/// However a body in chunks is cut into segments, the request behind it is read as one.
#[test]
fn chunked_requests_are_whole_and_the_next_one_is_split() {
    let stage = Stage::new("chunks", &both_families(&tagged(100, 0)));
    let lure = get("/", &[TO_V1]);
    let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    let large: Vec<u8> = (0..300_000).map(body_byte).collect();
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for (pause, line) in [(None, ""), (Some(Duration::from_millis(2)), ""), (None, "\r\n"), (Some(Duration::from_millis(2)), "\r\n")] {
            for (tag, expected, next, then) in [(TO_V2, V2, TO_V1, V1), (TO_V1, V1, TO_V2, V2)] {
                for (data, end) in [(&lure, "0\r\n\r\n"), (&large, "0\r\nX-Trailer: 0\r\n\r\n")] {
                    let pieces = [
                        request("POST", "/echo", &[tag, "Transfer-Encoding: chunked"], b""),
                        chunk(data),
                        chunk(b"tail"),
                        format!("{end}{line}").into_bytes(),
                    ];
                    match pause {
                        None => wire.send(pieces.concat()),
                        Some(pause) => pieces.iter().for_each(|piece| {
                            let (first, last) = piece.split_at(piece.len() - 3);
                            wire.send(first);
                            std::thread::sleep(pause);
                            wire.send(last);
                        }),
                    }
                    let answer = wire.answer().expect("an answer");
                    assert!(is(&answer.version, expected) && echoed(&answer, &[data.as_slice(), b"tail"].concat()), "{answer:?}");
                    assert!(is(&wire.get("/", &[next]), then), "{next} behind chunks");
                }
            }
        }
    }
}

/// Where two parsers might see two ends the backend judges, and what follows is only its own.
#[test]
fn what_stands_behind_odd_chunks_stays_with_their_backend() {
    let stage = Stage::new("oddchunks", &[tagged(100, 0)]);
    for odd in ["5\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "0\r\nno field\r\n\r\n"] {
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        assert!(is(&wire.get("/", &[TO_V1]), V1));
        wire.send([request("POST", "/echo", &[TO_V1, "Transfer-Encoding: chunked"], b""), odd.into()].concat());
        wire.send(get("/", &[TO_V2]));
        while let Ok(answer) = wire.answer() {
            assert!(is(&answer.version, V1), "{odd:?}: {answer:?}");
            if answer.head.to_lowercase().contains("connection: close") {
                break;
            }
            // Whoever reads the chunks all the same answers twice and waits: nothing more comes.
            wire.stream.set_read_timeout(Some(Duration::from_millis(500))).expect("a timeout");
        }
    }
}

/// What was asked for counts for nothing, what was answered does: the next request is read unless the connection has become a tunnel.
#[test]
fn an_upgrade_that_is_declined_binds_nobody() {
    let stage = Stage::foreign(
        "declined",
        &both_families(&tagged(100, 0)),
        &[foreign::Server::Nginx, foreign::Server::Nginx, foreign::Server::Apache],
        None,
    );
    for v6 in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for upgrade in ["websocket", "h2c", "TLS/1.0"] {
            for (tag, expected, next, then) in [(TO_V1, V1, TO_V2, V2), (TO_V2, V2, TO_V1, V1)] {
                let lines = ["Connection: Upgrade", &format!("Upgrade: {upgrade}"), "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", tag];
                let answer = wire.ask(get("/", &lines));
                assert!(answer.status == 200 && is(&answer.version, expected), "{upgrade}: {answer:?}");
                assert!(is(&wire.get("/", &[next]), then), "{next} behind {upgrade}");
            }
        }
    }
}

/// After 101 and CONNECT bytes are nobody's requests.
#[test]
fn tunnels_carry_bytes() {
    let stage = Stage::new("tunnels", &both_families(&tagged(100, 0)));
    let cases = [("GET", "/"), ("CONNECT", "shop:443")];
    for (v6, (method, target)) in [false, true].into_iter().flat_map(|v6| cases.map(|case| (v6, case))) {
        if method == "CONNECT" && crate::stage::through() == Some(splitter_lab::foreign::Proxy::Nginx) {
            continue;
        }
        for (tag, expected) in [(TO_V2, V2), (TO_V1, V1)] {
            let mut wire = Wire::open(stage.lab.client(), vip(v6));
            let upgrade: &[&str] = if method == "GET" { &["Connection: Upgrade", "Upgrade: echo"] } else { &[] };
            // A request before it, of the other version where the method allows it.
            if method == "GET" {
                assert!(is(&wire.get("/", &[if tag == TO_V1 { TO_V2 } else { TO_V1 }]), if tag == TO_V1 { V2 } else { V1 }));
            }
            wire.send(request(method, target, &[&[tag], upgrade].concat(), b""));
            let answer = wire.answer_to(method).expect("an answer");
            assert_eq!(answer.status, if method == "GET" { 101 } else { 200 }, "{answer:?}");
            // Whoever does not read CONNECT for its tag may choose by weight.
            assert!(method == "CONNECT" || is(&answer.version, expected), "{answer:?}");
            for lure in
                [get("/", &[TO_V1]), get("/", &[TO_V2]), post("/echo", &[], b"abc"), vec![0; 5_000], get("/", &[TO_V2]).repeat(1_000)]
            {
                wire.send(&lure);
                assert!(wire.bytes(lure.len()).expect("an echo") == lure, "{method}: the tunnel changed bytes");
            }
        }
    }
}

/// Requests that do not wait for answers: all are answered in order and whole; the first one's tag counts, the others' may. With pauses, a
/// request comes while another CPU opens the leg of the one before.
#[test]
fn pipelined_requests_are_answered_in_order() {
    let stage = Stage::new("pipeline", &[tagged(100, 0)]);
    for pause in [None, Some(Duration::from_micros(300)), Some(Duration::from_micros(50))] {
        for round in 0..40 {
            pipeline(&stage, round, pause);
        }
    }
    assert_eq!(stage.locks_held(), 0);
}

/// Six requests on one connection, each a segment when there is a pause.
fn pipeline(stage: &Stage, round: usize, pause: Option<Duration>) {
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let tags: Vec<&str> = (0..6).map(|i| if (i + round).is_multiple_of(2) { TO_V2 } else { TO_V1 }).collect();
    let requests: Vec<Vec<u8>> = (0..).zip(&tags).map(|(i, tag)| get(&format!("/bytes/{}", 100 + i), &[tag])).collect();
    match pause {
        None => wire.send(requests.concat()),
        Some(pause) => requests.iter().for_each(|request| {
            wire.send(request);
            std::thread::sleep(pause);
        }),
    }
    for (i, tag) in tags.iter().enumerate() {
        let answer = wire.answer().unwrap_or_else(|error| panic!("answer {i} of a pipeline with {pause:?}: {error}"));
        assert_eq!((answer.status, answer.body.len()), (200, 100 + i), "answer {i}: {answer:?}");
        if i == 0 {
            assert!(is(&answer.version, if *tag == TO_V2 { V2 } else { V1 }), "{answer:?}");
        }
    }
    assert_eq!(wire.ask(get("/", &[TO_V1])).status, 200, "the connection goes on");
}
