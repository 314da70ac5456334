//! What a pinned connection still tells: its requests, their answers; and its end when the agent asks for it.
use super::*;

/// Pinned by a request that came before the response; both responses are there.
fn piped(lab: &Http) -> (End<'_>, End<'_>) {
    let before = lab.counted(Reason::PinnedPipeline);
    let mut client = lab.client();
    let mut server = lab.open(&mut client, GET);
    server.hear(&one(client.say(GET2)));
    lab.respond(&mut client, &mut server, &[OK, OK].concat());
    assert_eq!(lab.counted(Reason::PinnedPipeline), before + 1);
    (client, server)
}

fn sends(client: &mut End<'_>, server: &mut End<'_>, text: &[u8]) {
    let seen = one(client.say(text));
    assert_eq!(seen.payload, text);
    server.hear(&seen);
}

#[test]
fn requests_are_counted_with_their_answers() {
    let failed: &[u8] = b"HTTP/1.1 500 Oh\r\nContent-Length: 1\r\n\r\nx";
    for lab in Http::both() {
        let (mut client, mut server) = piped(&lab);
        let v1 = lab.maps.version(1);
        assert_eq!((v1.requests, v1.status[2], v1.drawn.trials), (2, 1, 1));
        for (request, answer) in [
            (GET, OK),
            (GET2, failed),
            (b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
            (GET2, OK),
        ] {
            sends(&mut client, &mut server, request);
            lab.respond(&mut client, &mut server, answer);
        }
        let v1 = lab.maps.version(1);
        assert_eq!((v1.requests, v1.status[2], v1.status[5], lab.maps.samples(1, Measure::FirstByte)), (6, 4, 1, 5));
        let drawn = (v1.drawn.trials, v1.drawn.answered, v1.drawn.failed, v1.drawn.closed);
        assert_eq!((drawn, v1.ruled.trials), ((5, 5, 1, 0), 0), "what a rule would say counts for nothing");
        // One that gets no answer.
        sends(&mut client, &mut server, GET);
        client.hear(&one(server.send(FIN | ACK, &[])));
        assert_eq!((lab.maps.version(1).drawn.closed, lab.maps.version(2).requests), (1, 0));
        client.send(RST, &[]);
    }
}

/// In the middle of an answer nobody takes what follows for the next one's head.
#[test]
fn requests_in_the_middle_of_an_answer_are_counted_only() {
    for lab in Http::both() {
        let (mut client, mut server) = piped(&lab);
        let half: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
        sends(&mut client, &mut server, GET);
        lab.respond(&mut client, &mut server, half);
        sends(&mut client, &mut server, GET);
        lab.respond(&mut client, &mut server, &[b'x'; 100]);
        let v1 = lab.maps.version(1);
        assert_eq!((v1.requests, v1.status[0], v1.status[2], v1.drawn.answered), (4, 0, 2, 2));
        client.send(RST, &[]);
    }
}

/// Behind an answer whose end nobody knows, the next request shows that it was over.
#[test]
fn requests_behind_an_answer_without_an_end_are_counted() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, b"SSH-2.0-x\r\n\r\n");
        for _ in 0..3 {
            sends(&mut client, &mut server, GET2);
            lab.respond(&mut client, &mut server, OK);
        }
        let v1 = lab.maps.version(1);
        assert_eq!((v1.requests, v1.status[2], v1.status[0], lab.counted(Reason::PinnedResponse)), (4, 3, 1, 1));
        client.send(RST, &[]);
    }
}

#[test]
fn several_requests_in_a_packet_are_counted() {
    let upload = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let counted = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello\r\n";
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        sends(&mut client, &mut server, &[GET, GET2, upload, GET, counted, GET].concat());
        assert_eq!((lab.maps.version(1).requests, lab.counted(Reason::PinnedPipeline)), (7, 1));
        // The rest of a body, and requests behind it.
        sends(&mut client, &mut server, &upload[..60]);
        sends(&mut client, &mut server, &[&upload[60..], GET, GET].concat());
        assert_eq!(lab.maps.version(1).requests, 10);
        // Too many: the rest is not read, nor what follows.
        sends(&mut client, &mut server, &GET.repeat(20));
        let before = lab.maps.version(1).requests;
        assert!((17..20).contains(&before), "{before}");
        sends(&mut client, &mut server, GET);
        assert_eq!((lab.maps.version(1).requests, lab.maps.version(2).requests), (before, 0));
        client.send(RST, &[]);
    }
}

/// Nothing is decided, and nothing is counted, behind what cannot be read.
#[test]
fn what_cannot_be_read_makes_blind() {
    for lab in Http::both() {
        for text in [
            &b"anything at all"[..],
            &GET[..9],
            b"GET / HTTP/1.1\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000000\r\n\r\n",
        ] {
            let (mut client, mut server) = lab.ready();
            let before = lab.maps.version(1).requests;
            sends(&mut client, &mut server, GET);
            sends(&mut client, &mut server, GET);
            assert_eq!(lab.maps.version(1).requests, before + 2);
            sends(&mut client, &mut server, text);
            sends(&mut client, &mut server, GET2);
            assert_eq!((lab.maps.version(1).requests, lab.maps.version(2).requests), (before + 2, 0), "{text:?}");
            client.send(RST, &[]);
        }
        assert_eq!((lab.counted(Reason::PinnedPipeline), lab.counted(Reason::PinnedRequest), lab.counted(Reason::PinnedHead)), (4, 0, 0));
    }
}

#[test]
fn the_agent_can_ask_for_its_end() {
    for lab in Http::both() {
        for by_client in [true, false] {
            let before = lab.counted(Reason::WeightChangeReset);
            let (mut client, mut server) = piped(&lab);
            sends(&mut client, &mut server, GET);
            let pending = lab.maps.version(1).drawn;
            lab.ask_for_the_end();
            let (seq, ack) = (client.seq, client.ack);
            let mut out = if by_client { client.say(GET) } else { server.send(ACK, &[]) };
            // Who speaks is reset by an answer, the other end by what the packet becomes.
            let reset = out.pop().expect("a reset");
            assert!(out.iter().all(|wire| (wire.dst, wire.flags) == (server.me, RST)) && out.len() == !by_client as usize, "{out:?}");
            assert_eq!((reset.src, reset.dst, reset.flags & RST), (lab.vip, lab.client, RST), "{reset:?}");
            assert_eq!(if by_client { (seq, reset.seq) } else { (reset.ack, reset.seq) }, (seq, ack));
            assert_eq!((lab.entries(), lab.counted(Reason::WeightChangeReset)), ([0, 0], before + 1));
            // No evidence, in no way.
            assert_eq!(lab.maps.version(1).drawn, pending);
        }
    }
}
