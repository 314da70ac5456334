//! What does not fit the numbers of a connection moves nothing (RFC 5961; RFC 9293, 3.10.7.4), nor does what comes from elsewhere.
use super::*;

/// Numbers of segments that nobody who sees a connection sends: far from its own, by whatever a sweep tries.
fn far() -> impl Iterator<Item = u32> {
    (1..64).map(|i| i << 26 | 0x12_3456)
}

/// Like `wire`, with another number.
fn at(wire: &Wire, by: u32) -> Wire {
    Wire { seq: wire.seq.wrapping_add(by), ..wire.clone() }
}

/// All that may move of a connection.
fn state(lab: &Http) -> ([usize; 2], i32, u64, [u64; 6], u64) {
    let version = lab.maps.version(1);
    let pins = [Reason::PinnedPipeline, Reason::PinnedResponse, Reason::PinnedRequest, Reason::PinnedHead];
    let ends =
        [version.closed, version.resets_client, version.resets_backend, version.drawn.abandoned, version.drawn.closed, version.drawn.cut];
    (lab.entries(), lab.maps.pending(1), pins.iter().map(|reason| lab.counted(*reason)).sum(), ends, version.drawn.answered)
}

/// A connection without a request under way does all that it did.
fn goes_on(lab: &Http, client: &mut End<'_>, server: &mut End<'_>) {
    for _ in 0..2 {
        server.hear(&one(client.say(GET)));
        lab.respond(client, server, OK);
    }
    let mut second = lab.open(client, GET2);
    lab.respond(client, &mut second, OK);
    assert_eq!((lab.version_of(&second), lab.counted(Reason::PinnedPipeline)), (2, 0));
    client.send(RST, &[]);
    assert_eq!(lab.entries(), [0, 0]);
}

#[test]
fn what_a_blind_sender_sends_in_the_clients_name_moves_nothing() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let before = state(&lab);
        for by in far() {
            for (flags, payload) in
                [(RST, &b""[..]), (RST | ACK, b""), (FIN | ACK, b""), (ACK, b"x"), (ACK | PSH, GET2), (FIN | ACK | PSH, GET)]
            {
                let forged = client.wire(flags, payload);
                assert_eq!(lab.run(&at(&forged, by), CLIENT_SIDE), [], "{by:x} {flags:x}");
                // In the window, with an acknowledgement of what nobody has sent.
                let forged = Wire { ack: forged.ack.wrapping_add(by), ..forged };
                if flags & RST == 0 && (flags & FIN != 0 || payload.len() > 1) {
                    assert_eq!(lab.run(&forged, CLIENT_SIDE), [], "{by:x} {flags:x}");
                }
            }
        }
        assert_eq!(state(&lab), before);
        assert!(lab.counted(Reason::OutOfWindow) > 500);
        goes_on(&lab, &mut client, &mut server);
    }
}

#[test]
fn what_a_blind_sender_sends_in_the_backends_name_moves_nothing() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        let before = state(&lab);
        for by in far().filter(|by| *by < 1 << 31) {
            for (flags, payload) in [(RST, &b""[..]), (RST | ACK, b""), (FIN | ACK, b""), (ACK, b"x"), (ACK | PSH, OK)] {
                let forged = server.wire(flags, payload);
                if flags != FIN | ACK {
                    assert_eq!(lab.run(&at(&forged, by), BACKEND_SIDE), [], "{by:x} {flags:x}");
                }
                // In the window, with an acknowledgement of what nobody has sent.
                if flags == FIN | ACK {
                    assert_eq!(lab.run(&Wire { ack: forged.ack.wrapping_add(by), ..forged }, BACKEND_SIDE), [], "{by:x} {flags:x}");
                }
            }
        }
        assert_eq!(state(&lab), before);
        lab.respond(&mut client, &mut server, OK);
        goes_on(&lab, &mut client, &mut server);
    }
}

/// Whatever fits in all but the side that it comes from.
#[test]
fn a_packet_in_a_backends_name_from_elsewhere_moves_nothing() {
    for lab in Http::redirected() {
        let (mut client, mut server) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut second, OK);
        // To the leg in use, idle or busy, and to the one that is not.
        for busy in [false, true] {
            if busy {
                second.hear(&one(client.say(GET2)));
            }
            let before = state(&lab);
            for end in [&server, &second] {
                for (flags, payload) in
                    [(RST, &b""[..]), (RST | ACK, b""), (FIN | ACK, b""), (ACK, b"x"), (ACK | PSH, OK), (SYN | ACK, b"")]
                {
                    assert_eq!(lab.run(&end.wire(flags, payload), CLIENT_SIDE), [], "{flags:x}");
                }
            }
            assert_eq!(state(&lab), before, "busy: {busy}");
        }
        assert_eq!(lab.counted(Reason::WrongSide), 24);
        lab.respond(&mut client, &mut second, OK);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((state(&lab).2, lab.version_of(&server)), (0, 1));
        client.send(RST, &[]);
    }
}

/// Routes are not the same both ways everywhere: a leg that a SYN-ACK of the right number opens from another interface works from there, and
/// is no evidence.
#[test]
fn a_backend_may_answer_by_another_way() {
    for lab in Http::redirected() {
        lab.maps.time_trials();
        let mut client = lab.client();
        let (server, syn_ack) = lab.backend_of(&one(client.say(GET)));
        let wrong = Wire { ack: syn_ack.ack.wrapping_add(1), ..syn_ack.clone() };
        lab.run(&wrong, CLIENT_SIDE);
        let mut server = End { side: CLIENT_SIDE, ..server };
        server.hear(&one(lab.run(&syn_ack, CLIENT_SIDE)));
        lab.respond(&mut client, &mut server, OK);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        // From where it should come, it comes as well.
        server.side = BACKEND_SIDE;
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        let version = lab.maps.version(1);
        assert_eq!((version.requests, version.drawn.answered, lab.maps.pending(1)), (3, 0, 0));
        client.send(RST, &[]);
    }
}

/// In the window, and not at the number that is expected: the end that the RST is for decides, and asks (RFC 5961, 3.2).
#[test]
fn a_reset_that_is_not_exact_ends_nothing_here() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        for by in [1, 1000, 1u32.wrapping_neg(), 70_000] {
            let out = one(lab.run(&at(&client.wire(RST, &[]), by), CLIENT_SIDE));
            assert_eq!((out.dst, out.flags, out.seq), (server.me, RST, server.ack.wrapping_add(by)));
            // The backend's question comes back, and the client that is alive says nothing.
            client.hear(&one(server.send(ACK, &[])));
            let out = one(lab.run(&at(&server.wire(RST, &[]), by), BACKEND_SIDE));
            assert_eq!((out.dst, out.flags, out.seq), (lab.client, RST, client.ack.wrapping_add(by)));
            server.hear(&one(client.send(ACK, &[])));
        }
        assert_eq!((lab.counted(Reason::ResetDoubted), lab.maps.version(1).closed), (8, 0));
        goes_on(&lab, &mut client, &mut server);
    }
}

/// While the node speaks for the backend it asks itself.
#[test]
fn the_node_challenges_resets_that_are_not_exact() {
    for lab in Http::both() {
        // With a half head, with a whole one that waits for its leg, after the node's own answer.
        let mut client = lab.client();
        let told = one(client.say(&GET[..10]));
        client.hear(&told);
        let challenge = one(lab.run(&at(&client.wire(RST, &[]), 500), CLIENT_SIDE));
        client.hear(&challenge);
        assert_eq!((challenge.flags, lab.entries()[0]), (ACK, 1));
        let waiting = client.clone();
        let syn = one(client.say(&GET[10..]));
        let challenge = one(lab.run(&at(&client.wire(RST, &[]), 500), CLIENT_SIDE));
        assert_eq!((challenge.flags, challenge.ack, lab.entries()), (ACK, waiting.seq, [1, 1]));
        let mut server = lab.accept(&syn, GET);
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
        // The answer to the question is exact.
        let mut client = lab.client();
        client.say(GET);
        let challenge = one(lab.run(&at(&client.wire(RST, &[]), 500), CLIENT_SIDE));
        let exact = Wire { seq: challenge.ack, ..client.wire(RST, &[]) };
        assert_eq!((lab.run(&exact, CLIENT_SIDE), lab.entries()), (vec![], [0, 0]));
        let mut client = lab.client();
        let refused = one(client.say(b"GET  / HTTP/1.1\r\n\r\n"));
        client.hear(&refused);
        let challenge = one(lab.run(&at(&client.wire(RST, &[]), 500), CLIENT_SIDE));
        assert_eq!((challenge.flags, challenge.ack, lab.answered()), (ACK, client.seq, 1));
        let exact = Wire { seq: challenge.ack, ..client.wire(RST, &[]) };
        assert_eq!((lab.run(&exact, CLIENT_SIDE), lab.answered()), (vec![], 0));
        assert_eq!(lab.counted(Reason::ResetDoubted), 4);
    }
}

/// What a backend's system takes out of the data is what the scanner has read: nothing is urgent.
#[test]
fn nothing_is_urgent_to_a_backend() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let at = if lab.ipv6() { 54 } else { 34 };
        let urgent = |wire: &Wire, flags: u8, pointer: u16| {
            let mut bytes = wire.build();
            bytes[at + 13] |= flags;
            bytes[at + 18..at + 20].copy_from_slice(&pointer.to_be_bytes());
            frames::mend_transport(&mut bytes, at + 16);
            bytes
        };
        // A request for the leg in use, its body, acknowledgements, the end.
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
        for (flags, payload) in [(ACK | PSH, &head[..]), (ACK, &[b'x'; 100]), (ACK, b""), (FIN | ACK, b"")] {
            let wire = client.wire(flags, payload);
            client.seq = client.seq.wrapping_add(wire.len());
            for (urg, pointer) in [(32, 5), (32, 0), (0, 7)] {
                let mut frame = Frame::<false>::new(&urgent(&wire, urg, pointer), ROUTE);
                assert!(matches!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE) | Action::Pass));
                assert_eq!((frame.bytes[at + 13] & 32, &frame.bytes[at + 18..at + 20]), (0, &[0, 0][..]));
                let seen = Wire::parse(&frame.bytes);
                assert_eq!((&seen.payload[..], seen.flags, seen.seq), (payload, flags, server.ack));
            }
            server.ack = server.ack.wrapping_add(wire.len());
        }
        // A head that opens a leg is written anew.
        client.send(RST, &[]);
        let mut client = lab.client();
        let out = lab.run_bytes(&urgent(&client.wire(ACK | PSH, GET2), 32, 5), CLIENT_SIDE);
        client.seq = client.seq.wrapping_add(GET2.len() as u32);
        let mut server = lab.accept(&one(out), GET2);
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
    }
}

/// A SYN in an established connection's name is answered by a cookie, and forgotten when the connection goes on.
#[test]
fn a_forged_syn_is_forgotten() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let forged = End { seq: 77, ..client.clone() };
        assert_eq!(one(forged.clone().send(SYN, &[])).flags, SYN | ACK);
        // The client's own stack asks back (RFC 5961, 4.2), or the connection just goes on.
        server.hear(&one(client.send(ACK, &[])));
        let flags = lab.maps.v4.spliced_flags().into_iter().chain(lab.maps.v6.spliced_flags()).fold(0, |all, flags| all | flags);
        assert_eq!(flags & splice_flag::SYN_AGAIN, 0);
        goes_on(&lab, &mut client, &mut server);
    }
}
