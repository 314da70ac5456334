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
fn chunks_whose_data_comes_late_are_followed() {
    for lab in Http::both() {
        let begin = [&b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n"[..], &[b'd'; 100]].concat();
        let (late, end) = ([b'd'; 400], [&[b'd'; 500][..], b"\r\n0\r\n\r\n"].concat());
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, &begin);
        let mut ahead = server.clone();
        ahead.seq = ahead.seq.wrapping_add(late.len() as u32);
        let last = one(ahead.say(&end));
        let first = one(server.say(&late));
        client.hear(&first);
        client.hear(&last);
        server.seq = ahead.seq;
        server.hear(&one(client.send(ACK, &[])));
        switches(&lab, &mut client);
        assert_eq!(lab.counted(Reason::PinnedResponse), 0);
        // A size line that is late is not waited for: where the next ones stood is not known.
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, &begin);
        let mut ahead = server.clone();
        ahead.seq = ahead.seq.wrapping_add(903);
        let last = one(ahead.say(b"\n0\r\n\r\n"));
        let first = one(server.say(&[&[b'd'; 900][..], b"\r\n1"].concat()[..903]));
        client.hear(&first);
        client.hear(&last);
        server.seq = ahead.seq;
        server.hear(&one(client.say(GET2)));
        assert_eq!(lab.counted(Reason::PinnedResponse), 1);
    }
}

#[test]
fn a_response_whose_end_is_not_known_pins() {
    for lab in Http::both() {
        for response in [&b"HTTP/1.1 200 OK\r\n\r\nuntil I close"[..], b"HTTP/1.1 200 OK\r\nConte", b"SSH-2.0-x\r\n\r\n"] {
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

#[test]
fn a_segment_of_a_response_that_overtakes_its_head_does_not_confuse() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let late = End { seq: server.seq.wrapping_add(OK.len() as u32 - 5), ..server.clone() };
        let body = one(late.clone().say(&OK[OK.len() - 5..]));
        assert_eq!(body.payload, b"hello");
        let head = one(server.say(&OK[..OK.len() - 5]));
        client.hear(&head);
        client.hear(&body);
        server.seq = server.seq.wrapping_add(5);
        server.hear(&one(client.send(ACK, &[])));
        assert_eq!(lab.maps.version(1).status[2], 1);
        switches(&lab, &mut client);
    }
}
