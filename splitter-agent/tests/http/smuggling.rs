//! Shapes that two parsers could read in two ways, as docs/http.md lists them: refused with 400, or pinned to the backend of the first
//! request. No request that hides in another one ever reaches a second version.

use crate::{
    stage::{Stage, V1, V2, tagged, through},
    support::vip,
    wire::{End, TO_V1, TO_V2, Wire, get},
};
use std::time::Duration;

/// What a connection said: statuses and servers, in order, as far as it could be read.
fn answers(wire: &mut Wire) -> Vec<(u16, String)> {
    let bytes = wire.rest(Duration::from_millis(120));
    let text = String::from_utf8_lossy(&bytes);
    let status = |head: &str| head.split(' ').next().and_then(|code| code.parse::<u16>().ok());
    let name = |head: &str| crate::wire::header(head, "x-version").unwrap_or_default().to_owned();
    text.split("HTTP/1.1 ").skip(1).filter_map(|head| Some((status(head)?, name(head)))).collect()
}

/// What docs/http.md says of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// 400 by the node, and the end; behind another request it may be pinned.
    Refused,
    Pinned,
    /// Nothing special: what follows is a pipelined request.
    Read,
}

struct Shape {
    what: &'static str,
    fate: Fate,
    text: &'static str,
}

/// Shapes with `TAG` and `HIDDEN` in them: what a parser of the other kind would see as a request of its own.
const SHAPES: &[Shape] = &[
    Shape {
        what: "both lengths",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: LEN\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHIDDEN",
    },
    Shape {
        what: "both lengths, chunked first",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nTransfer-Encoding: chunked\r\nContent-Length: LEN\r\n\r\n0\r\n\r\nHIDDEN",
    },
    Shape {
        what: "two unlike lengths",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: 0\r\nContent-Length: LEN\r\n\r\nHIDDEN",
    },
    Shape {
        what: "two like lengths",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a list of lengths",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: 0, LEN\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a signed length",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: +0\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a hexadecimal length",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: 0x0\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a length that overflows",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: 18446744073709551616\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a blank before the colon",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length : LEN\r\n\r\nHIDDEN",
    },
    Shape {
        what: "an unknown coding",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nTransfer-Encoding: xchunked\r\n\r\nHIDDEN",
    },
    Shape {
        what: "chunked not last",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nTransfer-Encoding: chunked, identity\r\n\r\nHIDDEN",
    },
    Shape {
        what: "a folded coding",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.1\r\nHost: x\r\nTAG\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\nHIDDEN",
    },
    Shape { what: "a folded header", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nTAG\r\nA: b\r\n c: d\r\n\r\nHIDDEN" },
    Shape { what: "a folded tag", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nA: b\r\n TAG\r\n\r\nHIDDEN" },
    Shape { what: "bare line feeds", fate: Fate::Refused, text: "GET / HTTP/1.1\nHost: x\nTAG\n\nHIDDEN" },
    Shape { what: "one bare line feed", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a bare carriage return", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nA: b\rTAG\r\n\r\nHIDDEN" },
    Shape { what: "a NUL", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nA: \0\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "two hosts", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a blank before the first header", fate: Fate::Refused, text: "GET / HTTP/1.1\r\n Host: x\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a line without a colon", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nnonsense\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "an empty name", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\n: v\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "HTTP/1.0", fate: Fate::Read, text: "GET / HTTP/1.0\r\nHost: x\r\nTAG\r\n\r\nHIDDEN" },
    Shape {
        what: "HTTP/1.0 with chunks",
        fate: Fate::Refused,
        text: "POST /echo HTTP/1.0\r\nHost: x\r\nTAG\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHIDDEN",
    },
    Shape { what: "HTTP/0.9", fate: Fate::Refused, text: "GET /\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "HTTP/2 preface", fate: Fate::Pinned, text: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nHIDDEN" },
    Shape { what: "two blanks in the first line", fate: Fate::Refused, text: "GET  / HTTP/1.1\r\nHost: x\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a body of GET", fate: Fate::Read, text: "GET / HTTP/1.1\r\nHost: x\r\nTAG\r\nContent-Length: LEN\r\n\r\nHIDDEN" },
    Shape { what: "TLS", fate: Fate::Refused, text: "\u{16}\u{3}\u{1}\0\u{5}\u{1}\0\0\u{1}HIDDEN" },
    Shape { what: "an early line end", fate: Fate::Read, text: "\r\nGET / HTTP/1.1\r\nHost: x\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a control byte", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nA: \u{b}\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "no host", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "three empty lines", fate: Fate::Refused, text: "\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\nTAG\r\n\r\nHIDDEN" },
    Shape { what: "a bad name", fate: Fate::Refused, text: "GET / HTTP/1.1\r\nHost: x\r\nA(b): c\r\nTAG\r\n\r\nHIDDEN" },
];

/// The hidden request asks for the other version, and must never be answered by it: its bytes came with the shape.
fn check(stage: &Stage, shape: &Shape, fresh: bool, tag: &str, own: &[&str], other: &str) -> Result<(), String> {
    let Shape { what, fate, text } = shape;
    let hidden = String::from_utf8(get("/bytes/77", &[other])).unwrap();
    let bytes = text.replace("LEN", &hidden.len().to_string()).replace("TAG", tag).replace("HIDDEN", &hidden);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    if !fresh {
        wire.get("/", &[tag]);
    }
    wire.send(&bytes);
    let got = answers(&mut wire);
    // A connection that has a backend may keep it for good instead.
    let right = if *fate == Fate::Refused && fresh && through().is_none() {
        got == [(400, String::new())] && wire.end(Duration::from_secs(1)) != End::Open
    } else {
        // No rule is asked about a preface.
        let allowed = |name: &str| own.contains(&name) || *fate == Fate::Pinned;
        let names: Vec<&str> = got.iter().map(|(_, name)| name.as_str()).filter(|name| !name.is_empty()).collect();
        let one = names.iter().all(|name| V1.contains(name)) || names.iter().all(|name| V2.contains(name));
        one && names.first().is_none_or(|name| allowed(name))
    };
    if right { Ok(()) } else { Err(format!("{what} behind {tag} on a {} connection: {got:?}", if fresh { "new" } else { "kept" })) }
}

#[test]
fn no_shape_takes_a_hidden_request_to_another_version() {
    let stage = Stage::new("smuggle", &[tagged(100, 0)]);
    let mut wrong = Vec::new();
    for shape in SHAPES {
        for fresh in [true, false] {
            for (tag, own, other) in [(TO_V1, V1, TO_V2), (TO_V2, V2, TO_V1)] {
                wrong.extend(check(&stage, shape, fresh, tag, own, other).err());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // The node is none the worse for it.
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    for (tag, own) in [(TO_V1, V1), (TO_V2, V2)] {
        assert!(own.contains(&wire.get("/", &[tag]).as_str()));
    }
}
