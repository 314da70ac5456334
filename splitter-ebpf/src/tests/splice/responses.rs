//! Where responses end.
use super::*;

/// The next request of `client`, which asks for version 2, switches.
fn switches(lab: &Http, client: &mut End<'_>) {
    let mut second = lab.open(client, GET2);
    assert_eq!(lab.version_of(&second), 2);
    lab.respond(client, &mut second, OK);
    client.send(RST, &[]);
    assert_eq!(lab.entries()[0], 0);
}

#[test]
fn responses_without_a_body_end_with_their_head() {
    for lab in Http::both() {
        for (request, response, class) in [
            (&b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"[..], &b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"[..], 2),
            (&b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"[..], b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 2),
            (GET, b"HTTP/1.1 204 No Content\r\n\r\n", 2),
            (GET, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n", 3),
            (GET, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 4),
            (GET, b"HTTP/1.1 500 Oh\r\nContent-Length: 1\r\n\r\nx", 5),
        ] {
            let before = lab.maps.version(1).status;
            let mut client = lab.client();
            let mut server = lab.open(&mut client, request);
            lab.respond(&mut client, &mut server, response);
            let status = lab.maps.version(1).status;
            assert_eq!((status[class] - before[class], status.iter().sum::<u64>() - before.iter().sum::<u64>()), (1, 1));
            switches(&lab, &mut client);
        }
        assert_eq!(lab.counted(Reason::PinnedResponse) + lab.counted(Reason::PinnedPipeline), 0);
    }
}

#[test]
fn a_head_request_does_not_shorten_the_next_response() {
    let lab = Http::new(false);
    let mut client = lab.client();
    let mut server = lab.open(&mut client, b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n");
    lab.respond(&mut client, &mut server, b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n");
    server.hear(&one(client.say(GET)));
    lab.respond(&mut client, &mut server, &OK[..OK.len() - 2]);
    // The body is not complete: too early.
    server.hear(&one(client.say(GET2)));
    assert_eq!((lab.counted(Reason::PinnedPipeline), lab.entries()), (1, [1, 1]));
}

#[test]
fn interim_responses_are_none() {
    for lab in Http::both() {
        let early = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n";
        for pieces in [vec![&early[..], OK], vec![early, early, OK]] {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            for piece in &pieces {
                lab.respond(&mut client, &mut server, piece);
            }
            switches(&lab, &mut client);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, &pieces.concat());
            switches(&lab, &mut client);
        }
        assert_eq!(lab.maps.version(1).status, [0, 0, 4, 0, 0, 0]);
    }
}

#[test]
fn a_body_is_waited_for() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n");
        for _ in 0..3 {
            lab.respond(&mut client, &mut server, &[b'b'; 1000]);
        }
        switches(&lab, &mut client);
    }
}

#[test]
fn chunks_are_followed_to_their_end() {
    for lab in Http::both() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let body = b"5\r\nhello\r\n1f4;a=b\r\n".to_vec();
        let body = [&body[..], &[b'c'; 500], b"\r\n0\r\nTrailer: x\r\n\r\n"].concat();
        for cut in (1..body.len()).step_by(7).chain([body.len()]) {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, &[&head[..], &body[..cut]].concat());
            if cut < body.len() {
                lab.respond(&mut client, &mut server, &body[cut..]);
            }
            switches(&lab, &mut client);
        }
        assert_eq!(lab.counted(Reason::PinnedResponse), 0);
        // Before the end of the chunks the connection is pinned.
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, &[&head[..], b"5\r\nhel"].concat());
        server.hear(&one(client.say(GET2)));
        assert_eq!(lab.counted(Reason::PinnedResponse), 1);
    }
}

#[test]
fn a_response_whose_end_is_not_known_pins() {
    for lab in Http::both() {
        for response in [&b"HTTP/1.1 200 OK\r\n\r\nuntil I close"[..], b"HTTP/1.1 2 OK\r\nConte", b"SSH-2.0-x\r\n\r\n"] {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, response);
            let seen = one(client.say(GET2));
            assert_eq!(seen.payload, GET2);
            server.hear(&seen);
            server.hear(&one(client.send(RST, &[])));
        }
        assert_eq!((lab.counted(Reason::PinnedResponse), lab.entries()), (3, [0, 0]));
    }
}

/// Sends parts of a response in an order of their own, and those that were dropped again; returns which of them the client got at once.
pub fn shuffled(client: &mut End, server: &mut End, parts: &[&[u8]], order: &[usize]) -> Vec<bool> {
    let begin = server.seq;
    let at = |part: usize| begin.wrapping_add(parts[..part].iter().map(|part| part.len() as u32).sum());
    let say = |part: usize| End { seq: at(part), ..server.clone() }.say(parts[part]);
    let at_once: Vec<bool> = order.iter().map(|part| !say(*part).is_empty()).collect();
    let mut dropped: Vec<usize> = order.iter().zip(&at_once).filter(|(_, heard)| !**heard).map(|(part, _)| *part).collect();
    dropped.sort_unstable();
    for part in dropped {
        assert_eq!(one(say(part)).payload, parts[part]);
    }
    server.seq = at(parts.len());
    client.ack = client.ack.wrapping_add(server.seq.wrapping_sub(begin));
    server.hear(&one(client.send(ACK, &[])));
    at_once
}

#[test]
fn what_overtakes_the_head_of_a_response_comes_again() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let (head, body) = OK.split_at(OK.len() - 5);
        assert_eq!(shuffled(&mut client, &mut server, &[head, body], &[1, 0]), [false, true]);
        assert_eq!((lab.maps.version(1).status[2], lab.counted(Reason::OutOfOrder)), (1, 1));
        switches(&lab, &mut client);
    }
}

/// Data may be late; only what overtakes a size line has to come again.
#[test]
fn chunks_that_lose_packets_are_followed_to_their_end() {
    for lab in Http::both() {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let first = [&head[..], b"12c\r\n", &[b'a'; 100]].concat();
        // Begins with data: what is missing before it is data as well.
        let last = [&[b'a'; 50][..], b"\r\n5\r\nhello\r\n0\r\n\r\n"].concat();
        let one_chunk: [&[u8]; 4] = [&first, &[b'a'; 100], &[b'a'; 50], &last];
        let first = [&head[..], b"5\r\nhello\r\n"].concat();
        let many: [&[u8]; 4] = [&first, b"5\r\nworld\r\n", b"1\r\nx\r\n", b"0\r\n\r\n"];
        for (parts, order, at_once) in [
            (&one_chunk, [0, 1, 2, 3], [true; 4]),
            (&one_chunk, [0, 2, 1, 3], [true; 4]),
            (&one_chunk, [0, 3, 2, 1], [true; 4]),
            (&one_chunk, [1, 0, 2, 3], [false, true, true, true]),
            (&many, [0, 2, 1, 3], [true, false, true, false]),
            (&many, [3, 2, 1, 0], [false, false, false, true]),
        ] {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            assert_eq!(shuffled(&mut client, &mut server, parts, &order), at_once, "{order:?}");
            switches(&lab, &mut client);
        }
        assert_eq!((lab.counted(Reason::PinnedResponse), lab.counted(Reason::OutOfOrder)), (0, 6));
    }
}

/// Those that are not read whole are read in pieces.
#[test]
fn many_interim_responses_in_one_packet() {
    for lab in Http::both() {
        for many in 3..8 {
            let early = b"HTTP/1.1 103 Early Hints\r\n\r\n".repeat(many);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, &early);
            lab.respond(&mut client, &mut server, OK);
            switches(&lab, &mut client);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, &[&early, OK].concat());
            switches(&lab, &mut client);
        }
        assert_eq!(lab.maps.version(1).status, [0, 0, 10, 0, 0, 0]);
    }
}
