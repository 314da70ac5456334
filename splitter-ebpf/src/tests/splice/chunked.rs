//! Request bodies in chunks, and what stands behind bodies.
use super::*;

const HEAD: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const HEAD2: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nx-v: 2\r\ntransfer-encoding: Chunked\r\n\r\n";

/// Data that looks like requests and chunks, an extension, and trailers.
fn body() -> Vec<u8> {
    let lure = [GET2, b"\r\n0\r\n\r\n", GET2].concat();
    let size = format!("{:X};a=\"b\"\r\n", lure.len());
    [b"5\r\nhello\r\n", size.as_bytes(), &lure, b"\r\n1\r\nx\r\n000\r\nExpires: never\r\nX-T: a b\r\n\r\n"].concat()
}

/// The client says it, `server` hears it.
fn sends(client: &mut End<'_>, server: &mut End<'_>, text: &[u8]) {
    let seen = one(client.say(text));
    assert_eq!(seen.payload, text);
    server.hear(&seen);
}

/// The node has followed to the end: the next request is decided.
fn is_decided(lab: &Http, client: &mut End<'_>, server: &mut End<'_>, to: u32) {
    lab.respond(client, server, OK);
    let before = lab.maps.version(to).requests;
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nx-v: {to}\r\n\r\n").into_bytes();
    let mut other = lab.open(client, &request);
    assert_eq!((lab.version_of(&other), lab.maps.version(to).requests), (to, before + 1));
    lab.respond(client, &mut other, OK);
    client.send(RST, &[]);
    assert_eq!(lab.entries()[0], 0);
}

fn pins(lab: &Http) -> u64 {
    [Reason::PinnedRequest, Reason::PinnedPipeline, Reason::PinnedResponse, Reason::PinnedHead]
        .map(|reason| lab.counted(reason))
        .iter()
        .sum()
}

#[test]
fn the_next_request_is_decided_wherever_the_body_is_cut() {
    let body = body();
    for lab in Http::both() {
        for cut in 0..=body.len() {
            // First on a connection: the head alone opens the leg, or with the beginning of the body.
            let mut client = lab.client();
            let mut server = lab.open(&mut client, &[HEAD2, &body[..cut]].concat());
            assert_eq!(lab.version_of(&server), 2);
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut..]);
            }
            is_decided(&lab, &mut client, &mut server, 1);
        }
        for cut in (0..=body.len()).step_by(3) {
            // Later, to the leg in use and to another one.
            let (mut client, mut server) = lab.ready();
            sends(&mut client, &mut server, &[HEAD, &body[..cut]].concat());
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut..]);
            }
            is_decided(&lab, &mut client, &mut server, 2);
            let (mut client, _) = lab.ready();
            let mut server = lab.open(&mut client, &[HEAD2, &body[..cut]].concat());
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut..]);
            }
            is_decided(&lab, &mut client, &mut server, 3);
        }
        assert_eq!(pins(&lab), 0);
    }
}

#[test]
fn a_body_comes_byte_by_byte() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, HEAD);
        for byte in body() {
            sends(&mut client, &mut server, &[byte]);
        }
        is_decided(&lab, &mut client, &mut server, 2);
        assert_eq!(pins(&lab), 0);
    }
}

/// The head comes in pieces, or its leg is not open yet: the chunks lie in the stash.
#[test]
fn chunks_that_wait_with_their_head_are_followed() {
    let body = body();
    for lab in Http::both() {
        for cut in [0, 3, 10, 17, body.len() - 1, body.len()] {
            // Behind the last piece of a head, for the first leg, and for the leg in use.
            let mut client = lab.client();
            let ack = one(client.say(&HEAD[..20]));
            client.hear(&ack);
            let syn = one(client.say(&[&HEAD[20..], &body[..cut]].concat()));
            let mut server = lab.accept(&syn, &[HEAD, &body[..cut]].concat());
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut..]);
            }
            is_decided(&lab, &mut client, &mut server, 2);
            let (mut client, mut server) = lab.ready();
            let ack = one(client.say(&HEAD[..20]));
            client.hear(&ack);
            let out = client.say(&[&HEAD[20..], &body[..cut]].concat());
            assert_eq!(payloads(&out), [HEAD, &body[..cut]].concat());
            out.iter().for_each(|wire| server.hear(wire));
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut..]);
            }
            is_decided(&lab, &mut client, &mut server, 2);
            // While the SYN is on its way.
            let mut client = lab.client();
            let syn = one(client.say(HEAD));
            assert_eq!(client.say(&body[..cut.max(1)]), []);
            let mut server = lab.accept(&syn, &[HEAD, &body[..cut.max(1)]].concat());
            if cut < body.len() {
                sends(&mut client, &mut server, &body[cut.max(1)..]);
            }
            is_decided(&lab, &mut client, &mut server, 2);
        }
        assert_eq!(pins(&lab), 0);
    }
}

/// More of a body than a stash holds comes before the leg is open: what had no room comes again.
#[test]
fn a_body_beyond_the_stash() {
    for lab in Http::both() {
        let text = [HEAD, b"4e20\r\n", &[b'a'; 20_000], b"\r\n0\r\n\r\n"].concat();
        let mut client = lab.client();
        let begin = client.seq;
        let mut pieces = text.chunks(1_000);
        let syn = one(client.say(pieces.next().expect("a piece")));
        pieces.for_each(|piece| assert_eq!(client.say(piece), []));
        let (mut server, syn_ack) = lab.backend_of(&syn);
        let out = lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&out), text[..LIMIT]);
        out.iter().for_each(|wire| server.hear(wire));
        client.seq = begin.wrapping_add(HEAD_LIMIT);
        text[LIMIT..].chunks(1_000).for_each(|piece| sends(&mut client, &mut server, piece));
        is_decided(&lab, &mut client, &mut server, 2);
        assert_eq!(pins(&lab), 0);
    }
}

/// Data of a chunk may be late; what has overtaken a size line has to come again.
#[test]
fn segments_in_any_order() {
    for lab in Http::both() {
        let first = [HEAD, b"12c\r\n", &[b'a'; 100]].concat();
        let last = [&[b'a'; 100][..], b"\r\n5\r\nhello\r\n"].concat();
        let parts: [&[u8]; 4] = [&first, &[b'a'; 100], &last, b"0\r\n\r\n"];
        for (order, at_once) in [
            ([0, 1, 2, 3], [true; 4]),
            ([0, 2, 1, 3], [true; 4]),
            ([0, 3, 2, 1], [true, false, true, true]),
            ([0, 3, 1, 2], [true, false, true, true]),
        ] {
            let (mut client, mut server) = lab.ready();
            let begin = client.seq;
            let at = |part: usize| begin.wrapping_add(parts[..part].iter().map(|part| part.len() as u32).sum());
            let say = |part: usize| End { seq: at(part), ..client.clone() }.say(parts[part]);
            let heard: Vec<bool> = order.iter().map(|part| !say(*part).is_empty()).collect();
            assert_eq!(heard, at_once, "{order:?}");
            for (part, _) in order.iter().zip(heard).filter(|(_, heard)| !heard) {
                assert_eq!(one(say(*part)).payload, parts[*part]);
            }
            client.seq = at(4);
            server.ack = server.ack.wrapping_add(client.seq.wrapping_sub(begin));
            is_decided(&lab, &mut client, &mut server, 2);
        }
        assert_eq!((pins(&lab), lab.counted(Reason::OutOfOrder)), (0, 2));
    }
}

/// What is sent again is not followed twice.
#[test]
fn segments_that_come_again() {
    let body = body();
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, HEAD);
        for piece in body.chunks(9) {
            sends(&mut client, &mut server, piece);
            assert_eq!(one(client.again(ACK, piece)).payload, piece);
        }
        assert_eq!(one(client.again(ACK, &body)).payload, body);
        is_decided(&lab, &mut client, &mut server, 2);
        assert_eq!(pins(&lab), 0);
    }
}

/// Two parsers might see two ends: its backend judges, and nothing behind it is anybody else's.
#[test]
fn odd_chunks_pin() {
    for lab in Http::both() {
        let odd: [&[u8]; 12] = [
            b"5\nhello\r\n0\r\n\r\n",
            b"5 \r\nhello\r\n0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"+5\r\nhello\r\n0\r\n\r\n",
            b"\r\n5\r\nhello\r\n0\r\n\r\n",
            b"5;a\rb\r\nhello\r\n0\r\n\r\n",
            b"5\r\nhelloX\r\n0\r\n\r\n",
            b"5\r\nhello0\r\n\r\n",
            b"80000000\r\n",
            b"100000005\r\nhello\r\n0\r\n\r\n",
            b"0\r\nGET / HTTP/1.1\r\nx: y\r\n\r\n",
            b"0\r\n folded\r\n\r\n",
        ];
        for (i, odd) in odd.into_iter().enumerate() {
            for apart in [false, true] {
                let mut client = lab.client();
                let mut server = if apart {
                    let mut server = lab.open(&mut client, HEAD);
                    sends(&mut client, &mut server, odd);
                    server
                } else {
                    lab.open(&mut client, &[HEAD, odd].concat())
                };
                lab.respond(&mut client, &mut server, OK);
                sends(&mut client, &mut server, GET2);
                client.send(RST, &[]);
                assert_eq!(lab.counted(Reason::PinnedRequest), 2 * i as u64 + 1 + u64::from(apart), "{odd:?}");
            }
        }
        assert_eq!((lab.maps.version(2).requests, lab.entries()), (0, [0, 0]));
    }
}

/// Behind the last chunk, before the answer: as behind any request.
#[test]
fn a_request_behind_the_last_chunk_is_pipelined() {
    for lab in Http::both() {
        for how in 0..3 {
            let (mut client, mut server) = lab.ready();
            sends(&mut client, &mut server, HEAD);
            match how {
                0 => sends(&mut client, &mut server, &[b"1\r\nx\r\n0\r\n\r\n", GET2].concat()),
                1 => {
                    sends(&mut client, &mut server, b"1\r\nx\r\n0\r\n\r\n");
                    sends(&mut client, &mut server, GET2);
                }
                _ => {
                    sends(&mut client, &mut server, b"0\r\n");
                    sends(&mut client, &mut server, &[b"\r\n", &GET2[..5]].concat());
                }
            }
            lab.respond(&mut client, &mut server, OK);
            sends(&mut client, &mut server, GET2);
            client.send(RST, &[]);
        }
        assert_eq!((lab.counted(Reason::PinnedPipeline), pins(&lab), lab.maps.version(2).requests), (3, 3, 0));
    }
}

/// A backend that answers before it has the body: the next request waits until it has.
#[test]
fn an_answer_before_the_last_chunk() {
    for (lab, all_so_far) in Http::both().into_iter().flat_map(|lab| [(Http::with(lab.ipv6(), lab.stamps), true), (lab, false)]) {
        let mut client = lab.client();
        // When it answers, it has all that was sent, or knows that data is missing.
        let begun = if all_so_far { HEAD.to_vec() } else { [HEAD, b"5\r\nhe"].concat() };
        let mut server = lab.open(&mut client, &begun);
        lab.respond(&mut client, &mut server, OK);
        if !all_so_far {
            sends(&mut client, &mut server, b"llo\r\n");
        }
        // The rest is lost behind the node; the next request must not leave it behind.
        assert_eq!(one(client.say(b"0\r\n\r\n")).payload, b"0\r\n\r\n");
        assert_eq!(client.say(GET2), []);
        assert_eq!((lab.counted(Reason::OutOfOrder), lab.maps.version(2).requests), (1, 0));
        client.seq = client.seq.wrapping_sub((5 + GET2.len()) as u32);
        sends(&mut client, &mut server, b"0\r\n\r\n");
        client.hear(&one(server.send(ACK, &[])));
        let other = lab.open(&mut client, GET2);
        assert_eq!(lab.version_of(&other), 2);
        client.send(RST, &[]);
        assert_eq!(pins(&lab), 0);
    }
}

/// Some clients send an empty line behind a body (RFC 9112, 2.2).
#[test]
fn an_empty_line_behind_a_body() {
    let counted: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    let chunked: &[u8] = HEAD;
    for lab in Http::both() {
        for (head, body) in [(counted, &b"hello"[..]), (chunked, b"5\r\nhello\r\n0\r\n\r\n")] {
            let line = [body, b"\r\n"].concat();
            for pieces in [vec![&line[..]], vec![body, b"\r\n"], vec![&body[..3], &line[3..]]] {
                for together in [true, false] {
                    // First on a connection, and in its turn.
                    let mut client = lab.client();
                    let first = if together { [head, pieces[0]].concat() } else { head.to_vec() };
                    let mut server = lab.open(&mut client, &first);
                    pieces[usize::from(together)..].iter().for_each(|piece| sends(&mut client, &mut server, piece));
                    is_decided(&lab, &mut client, &mut server, 2);
                    let (mut client, mut server) = lab.ready();
                    sends(&mut client, &mut server, &first);
                    pieces[usize::from(together)..].iter().for_each(|piece| sends(&mut client, &mut server, piece));
                    is_decided(&lab, &mut client, &mut server, 2);
                }
            }
            // While the leg is being opened; and behind the answer.
            let mut client = lab.client();
            let syn = one(client.say(&[head, body].concat()));
            assert_eq!(client.say(b"\r\n"), []);
            let mut server = lab.accept(&syn, &[head, &line].concat());
            is_decided(&lab, &mut client, &mut server, 2);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, &[head, body].concat());
            lab.respond(&mut client, &mut server, OK);
            sends(&mut client, &mut server, b"\r\n");
            client.hear(&one(server.send(ACK, &[])));
            let other = lab.open(&mut client, GET2);
            assert_eq!(lab.version_of(&other), 2);
            client.send(RST, &[]);
        }
        assert_eq!(pins(&lab), 0);
        // One that is no line, or the beginning of something.
        for text in [&b"\n\n"[..], b"\r\r", b"\r", b"\r\nG"] {
            let before = lab.counted(Reason::PinnedPipeline);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, &[counted, b"hello", text].concat());
            lab.respond(&mut client, &mut server, OK);
            sends(&mut client, &mut server, GET2);
            client.send(RST, &[]);
            assert_eq!(lab.counted(Reason::PinnedPipeline), before + 1, "{text:?}");
        }
    }
}

/// A client that goes in the middle of a body has not waited for an answer; one that has said all has.
#[test]
fn who_leaves_in_the_middle_of_a_body_has_not_asked_yet() {
    for lab in Http::both() {
        for (body, abandoned) in [(&b"5\r\nhello\r\n"[..], 0), (b"5\r\nhello\r\n0\r\n\r\n", 1)] {
            let before = lab.maps.version(1).drawn.abandoned;
            let mut client = lab.client();
            let mut server = lab.open(&mut client, HEAD);
            sends(&mut client, &mut server, body);
            client.send(RST, &[]);
            assert_eq!(lab.maps.version(1).drawn.abandoned - before, abandoned);
        }
    }
}

/// Any stream of requests, cut anywhere: each goes to the version that it asks for.
#[test]
fn streams_of_requests_cut_anywhere() {
    let mut seed = 0x5eed_u32;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for lab in Http::both() {
        for _ in 0..60 {
            let mut client = lab.client();
            let mut legs: Vec<(u32, End<'_>)> = Vec::new();
            for _ in 0..4 {
                let version = random(3) as u32 + 1;
                let mut text = format!("POST / HTTP/1.1\r\nHost: a\r\nx-v: {version}\r\nTransfer-Encoding: chunked\r\n\r\n").into_bytes();
                let head = text.len();
                for _ in 0..random(5) {
                    let data: Vec<u8> = (0..random(60) + 1).map(|i| GET2[i % GET2.len()]).collect();
                    text.extend([format!("{:x}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat());
                }
                text.extend(if random(2) == 0 { &b"0\r\n\r\n"[..] } else { b"0\r\nA: b\r\n\r\n" });
                // An empty line behind it comes in one piece.
                let whole = text.len();
                text.extend(if random(4) == 0 { &b"\r\n"[..] } else { b"" });
                let mut at = head + random(whole - head + 1);
                let out = client.say(&text[..at]);
                if out[0].flags & SYN != 0 {
                    legs.push((version, lab.accept(&one(out), &text[..at])));
                } else {
                    let leg = legs.iter_mut().find(|(of, _)| *of == version).expect("an idle leg");
                    leg.1.hear(&one(out));
                }
                let (_, leg) = legs.iter_mut().find(|(of, _)| *of == version).expect("a leg");
                while at < text.len() {
                    let end = at + 1 + random(40);
                    let end = if end > whole { text.len() } else { end };
                    sends(&mut client, leg, &text[at..end]);
                    at = end;
                }
                assert_eq!(lab.version_of(leg), version);
                lab.respond(&mut client, leg, OK);
            }
            client.send(RST, &[]);
        }
        assert_eq!(pins(&lab), 0);
    }
}
