//! The first request, its leg, its response.
use super::*;

#[test]
fn a_request_reaches_a_backend_and_its_response_the_client() {
    for lab in Http::both() {
        for isn in [1000, 0xffff_ffff, 0x7fff_fff8] {
            let mut client = lab.client_with(isn, &[Opt::MaximumSegmentSize(1460)]);
            let first = client.seq;
            let syn = one(client.say(GET));
            assert_eq!((syn.seq, syn.ack, syn.src), (first.wrapping_sub(1), 0, lab.client));
            assert_eq!((lab.entries(), lab.maps.taken()), ([1, 1], 1));
            let (mut server, syn_ack) = lab.backend_of(&syn);
            let request = one(lab.run(&syn_ack, BACKEND_SIDE));
            assert_eq!((&request.payload[..], request.flags, request.window), (GET, ACK | PSH, 64_000));
            assert_eq!((request.seq, request.ack), (first, server.seq));
            assert_eq!(lab.maps.taken(), 0, "the client has it still");
            server.hear(&request);
            lab.respond(&mut client, &mut server, OK);
            client.hear(&one(server.send(RST | ACK, &[])));
            assert_eq!(lab.entries(), [0, 0]);
        }
        let counters = lab.maps.version(1);
        assert_eq!((counters.requests, counters.status, counters.switches), (3, [0, 0, 3, 0, 0, 0], 0));
        assert_eq!((counters.connections, counters.opened, counters.resets_backend), (3, 3, 3));
        assert_eq!((lab.maps.samples(1, Measure::Connect), lab.maps.samples(1, Measure::FirstByte)), (3, 3));
    }
}

#[test]
fn without_a_bare_ack_the_request_ends_the_handshake() {
    let lab = Http::new(false);
    let mut client = lab.stranger();
    let syn_ack = one(client.send(SYN, &[]));
    client.ack = syn_ack.seq;
    client.hear(&syn_ack);
    let mut server = lab.open(&mut client, GET);
    lab.respond(&mut client, &mut server, OK);
    assert_eq!(lab.counted(Reason::Handshake), 0);
}

#[test]
fn windows_are_scaled() {
    for lab in Http::both() {
        // Scale of the client's SYN, scale of the backend, window of the backend, what the client is to see with scale 7.
        for (client_scale, scale, window, seen) in
            [(Some(7), Some(9), 100, 400), (Some(2), Some(2), 6400, 200), (Some(7), Some(14), 60_000, 0xffff), (None, None, 9000, 9000)]
        {
            let options: Vec<Opt> = client_scale.map(Opt::WindowScale).into_iter().collect();
            let mut client = lab.client_with(lab.fresh(), &options);
            let (mut server, syn_ack) = lab.backend_of(&one(client.say(GET)));
            let options: Vec<Opt> = scale.map(Opt::WindowScale).into_iter().collect();
            server.hear(&one(lab.run(&syn_ack.saying(&options), BACKEND_SIDE)));
            server.window = window;
            let response = one(server.say(OK));
            assert_eq!(response.window, seen, "{client_scale:?} {scale:?}");
            client.hear(&response);
            client.window = 1234;
            let heard = one(client.send(ACK, &[]));
            assert_eq!(heard.window, 1234, "the client's scale is known to the backend");
            client.send(RST, &[]);
        }
    }
}

#[test]
fn a_backend_without_window_scale_is_not_overrun() {
    for lab in Http::both() {
        let mut client = lab.client();
        let (mut server, syn_ack) = lab.backend_of(&one(client.say(GET)));
        server.hear(&one(lab.run(&syn_ack.saying(&[]), BACKEND_SIDE)));
        server.window = 64_000;
        assert_eq!(one(server.say(OK)).window, 500, "the client reads it with scale 7");
    }
}

#[test]
fn blocks_of_selective_acknowledgements_are_moved() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let add = server.seq.wrapping_sub(client.ack);
        assert_ne!(add, 0);
        let (a, b) = (client.ack.wrapping_add(100), client.ack.wrapping_add(200));
        for more in [None, Some((b.wrapping_add(50), b.wrapping_add(60)))] {
            let mut ack = client.wire(ACK, &[]);
            ack.options.extend([Opt::Noop, Opt::Noop, Opt::SelectiveAcknowledgement((a, b), [more, None, None])]);
            let seen = one(lab.run(&ack, CLIENT_SIDE));
            let moved = |(a, b): (u32, u32)| (a.wrapping_add(add), b.wrapping_add(add));
            let blocks = Opt::SelectiveAcknowledgement(moved((a, b)), [more.map(moved), None, None]);
            assert_eq!(seen.clone().unstamped().options.last(), Some(&blocks));
            server.hear(&seen);
        }
        server.hear(&one(client.say(GET)));
    }
}

#[test]
fn a_syn_ack_that_comes_again_is_acknowledged_again() {
    for lab in Http::both() {
        let mut client = lab.client();
        let first = client.seq;
        let (server, syn_ack) = lab.backend_of(&one(client.say(GET)));
        one(lab.run(&syn_ack, BACKEND_SIDE));
        let ack = one(lab.run(&syn_ack, BACKEND_SIDE));
        assert_eq!((ack.flags, ack.seq, ack.ack, ack.payload), (ACK, first, server.seq, vec![]));
        // The request was lost with the end of the handshake: the client's own timer sends it again.
        let request = one(client.again(ACK | PSH, GET));
        assert_eq!((&request.payload[..], request.seq, request.ack, request.dst), (GET, first, server.seq, server.me));
        assert_eq!(lab.maps.version(1).requests, 1);
    }
}

#[test]
fn a_body_goes_along() {
    for lab in Http::both() {
        let mut client = lab.client();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3000\r\n\r\n";
        let body = [b'x'; 3000];
        let mut server = lab.open(&mut client, &[&head[..], &body[..1000]].concat());
        for piece in body[1000..].chunks(1000) {
            let seen = one(client.say(piece));
            assert_eq!(seen.payload, piece);
            server.hear(&seen);
        }
        lab.respond(&mut client, &mut server, OK);
        let syn = one(client.say(GET2));
        assert_eq!(syn.dst, backend(lab.ipv6(), 3), "the end of the body was known");
        client.send(RST, &[]);
        assert_eq!((lab.counted(Reason::PinnedPipeline), lab.entries()[0]), (0, 0));
    }
}

#[test]
fn more_of_a_body_while_the_leg_is_opened_goes_along() {
    for lab in Http::both() {
        let mut client = lab.client();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 15900\r\n\r\n";
        let syn = one(client.say(head));
        let mut sent = head.to_vec();
        for _ in 0..10 {
            assert_eq!(client.say(&[b'y'; 1460]), []);
            sent.extend([b'y'; 1460]);
        }
        // What does not fit waits for the client's timer.
        let room = LIMIT - sent.len();
        assert_eq!(client.clone().say(&[b'z'; 3000]), []);
        sent.extend(vec![b'z'; room]);
        let (mut server, syn_ack) = lab.backend_of(&syn);
        let out = lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&out), sent);
        for wire in &out {
            assert_eq!((wire.seq, wire.ack), (server.ack, server.seq));
            server.ack = server.ack.wrapping_add(wire.len());
        }
    }
}
