//! Requests of one connection to several versions.
use super::*;

#[test]
fn a_request_to_another_version_opens_a_leg_and_the_next_ones_use_both() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let begin = client.seq;
        let syn = one(client.say(GET2));
        assert_eq!((syn.dst, syn.seq), (backend(lab.ipv6(), 3), begin.wrapping_sub(1)));
        let mut second = lab.accept(&syn, GET2);
        lab.respond(&mut client, &mut second, OK);
        assert_eq!(lab.entries(), [1, 2]);
        for round in 0..3 {
            // Both legs get their own numbers, which `hear` checks.
            first.hear(&one(client.say(GET)));
            lab.respond(&mut client, &mut first, OK);
            second.hear(&one(client.say(GET2)));
            lab.respond(&mut client, &mut second, &[OK, OK].concat()[..OK.len()]);
            assert_eq!(lab.entries(), [1, 2], "round {round}");
        }
        let (one, two) = (lab.maps.version(1), lab.maps.version(2));
        assert_eq!((one.requests, one.status[2], one.switches, one.connections), (4, 4, 3, 1));
        assert_eq!((two.requests, two.status[2], two.switches, two.connections), (4, 4, 4, 1));
    }
}

#[test]
fn three_versions_share_a_connection() {
    for lab in Http::both() {
        let (mut client, server) = lab.ready();
        let mut legs = vec![(1, server)];
        for version in [2, 3, 1, 3, 2, 1, 2] {
            let request = format!("GET /{version} HTTP/1.1\r\nHost: a\r\nx-v: {version}\r\n\r\n").into_bytes();
            let out = one(client.say(&request));
            if out.flags & SYN != 0 {
                legs.push((version, lab.accept(&out, &request)));
            } else {
                let leg = legs.iter_mut().find(|(of, _)| *of == version).expect("an idle leg");
                assert_eq!(out.payload, request);
                leg.1.hear(&out);
            }
            let leg = legs.iter_mut().find(|(of, _)| *of == version).expect("a leg");
            assert_eq!(lab.version_of(&leg.1), version);
            lab.respond(&mut client, &mut leg.1, OK);
        }
        assert_eq!((legs.len(), lab.entries()), (3, [1, 3]));
        let out = client.send(RST, &[]);
        assert_eq!(out.len(), 3);
        for (wire, version) in out.iter().zip([2]) {
            assert_eq!(wire.dst, legs.iter().find(|(of, _)| *of == version).expect("a leg").1.me);
        }
        for (_, leg) in &legs {
            let reset = out.iter().find(|wire| wire.dst == leg.me).expect("its reset");
            assert_eq!((reset.flags & RST, reset.seq, reset.src), (RST, leg.ack, lab.client));
        }
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn the_same_version_needs_no_leg() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        for _ in 0..5 {
            let seen = one(client.say(GET));
            assert_eq!(seen.payload, GET);
            server.hear(&seen);
            lab.respond(&mut client, &mut server, OK);
        }
        let counters = lab.maps.version(1);
        assert_eq!((counters.requests, counters.connections, counters.switches, counters.status[2]), (6, 1, 0, 6));
    }
}

#[test]
fn an_idle_leg_is_kept_alive_by_the_node() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        assert_eq!(first.send(ACK, &[]), [], "nothing to say");
        // The end of the response again, and a keep-alive probe.
        for (back, len) in [(5, 5), (1, 0)] {
            let wire = Wire { seq: first.seq.wrapping_sub(back), ..first.wire(ACK, &OK[OK.len() - len..]) };
            let ack = one(lab.run(&wire, BACKEND_SIDE));
            assert_eq!((ack.flags, ack.seq, ack.ack, ack.src), (ACK, first.ack, first.seq, lab.client));
        }
        lab.respond(&mut client, &mut second, OK);
        assert_eq!((lab.counted(Reason::IdleLeg), lab.entries()), (2, [1, 2]));
    }
}

#[test]
fn an_idle_leg_that_its_backend_closes_is_opened_anew() {
    for lab in Http::both() {
        for end in [FIN | ACK, RST | ACK] {
            let (mut client, mut first) = lab.ready();
            let mut second = lab.open(&mut client, GET2);
            lab.respond(&mut client, &mut second, OK);
            let out = first.send(end, &[]);
            assert_eq!(out.len(), (end & FIN != 0) as usize);
            assert!(out.iter().all(|wire| wire.flags == RST && wire.seq == first.ack && wire.dst == first.me));
            assert_eq!(lab.entries(), [1, 1]);
            let mut first = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut first, OK);
            assert_eq!(client.send(RST, &[]).len(), 2);
            assert_eq!(lab.entries(), [0, 0]);
        }
    }
}

#[test]
fn a_user_moves_with_the_next_request_when_a_version_is_rolled_back() {
    for lab in Http::both() {
        lab.maps.change_service(1, |service| {
            service.split_by = split_by::VALUE;
            (service.versions[0].end, service.versions[1].end, service.versions[2].end) = (0, 1 << 32, 1 << 32);
        });
        let get = b"GET / HTTP/1.1\r\nHost: a\r\nuser: ann\r\n\r\n";
        let mut client = lab.client();
        let mut canary = lab.open(&mut client, get);
        assert_eq!(lab.version_of(&canary), 2);
        lab.respond(&mut client, &mut canary, OK);
        canary.hear(&one(client.say(get)));
        // While the response is under way nothing moves.
        lab.maps.change_service(1, |service| service.versions[0].end = 1 << 32);
        lab.respond(&mut client, &mut canary, OK);
        let mut stable = lab.open(&mut client, get);
        assert_eq!(lab.version_of(&stable), 1);
        lab.respond(&mut client, &mut stable, OK);
        assert_eq!((lab.maps.version(2).requests, lab.maps.version(1).requests, lab.maps.version(1).switches), (2, 1, 1));
    }
}

#[test]
fn users_keep_their_version_over_connections() {
    let lab = Http::new(false);
    lab.maps.change_service(1, |service| {
        service.split_by = split_by::VALUE;
        (service.versions[0].end, service.versions[1].end, service.versions[2].end) = (1 << 31, 1 << 32, 1 << 32);
    });
    let mut versions = [0; 4];
    for user in 0..200 {
        let get = format!("GET / HTTP/1.1\r\nHost: a\r\nuser: u{user}\r\n\r\n").into_bytes();
        let of: Vec<u32> = [40_000, 40_777]
            .map(|port| {
                let mut client = End { me: SocketAddr::new(lab.client.ip(), port), seq: lab.fresh(), ..lab.stranger() };
                let syn_ack = one(client.send(SYN, &[]));
                client.ack = syn_ack.seq;
                client.hear(&syn_ack);
                let server = lab.open(&mut client, &get);
                client.send(RST, &[]);
                lab.version_of(&server)
            })
            .to_vec();
        assert_eq!(of[0], of[1], "user {user}");
        versions[of[0] as usize] += 1;
    }
    assert!(versions[1] > 60 && versions[2] > 60, "{versions:?}");
}

#[test]
fn every_request_is_drawn_anew() {
    let lab = Http::new(false);
    lab.maps.change_service(1, |service| {
        service.split_by = split_by::REQUEST;
        (service.versions[0].end, service.versions[1].end, service.versions[2].end) = (1 << 31, 1 << 32, 1 << 32);
    });
    let mut client = lab.client();
    let mut legs: Vec<End<'_>> = Vec::new();
    for _ in 0..200 {
        let out = one(client.say(GET));
        let leg = match legs.iter().position(|leg| leg.me == out.dst && out.flags & SYN == 0) {
            Some(leg) => {
                legs[leg].hear(&out);
                leg
            }
            None => {
                legs.push(lab.accept(&out, GET));
                legs.len() - 1
            }
        };
        lab.respond(&mut client, &mut legs[leg], OK);
    }
    let (one, two) = (lab.maps.version(1), lab.maps.version(2));
    assert_eq!((one.requests + two.requests, one.status[2] + two.status[2], legs.len()), (200, 200, 2));
    assert!(one.requests.abs_diff(two.requests) < 60, "{} {}", one.requests, two.requests);
    assert!(one.switches + two.switches > 60);
}

#[test]
fn a_spurious_retransmission_of_an_old_request_harms_nobody() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut second, OK);
        let old = Wire { seq: 1001, ..client.wire(ACK | PSH, GET) };
        for wire in lab.run(&old, CLIENT_SIDE) {
            let end = wire.seq.wrapping_add(wire.payload.len() as u32);
            assert!(end.wrapping_sub(second.ack) as i32 <= 0, "it takes it for new: {wire:?}");
        }
        first.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut first, OK);
    }
}

/// A backend that answers before it has all of a request gets the rest before the connection goes elsewhere: the other backend's
/// acknowledgements would make the client believe that nothing is missing.
#[test]
fn a_request_that_was_answered_early_is_completed_first() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n";
        first.hear(&one(client.say(&[&head[..], &[b'x'; 40]].concat())));
        let lost = client.clone();
        client.seq = client.seq.wrapping_add(60);
        let early = one(first.say(OK));
        assert_eq!((early.payload.as_slice(), early.ack), (OK, lost.seq));
        client.ack = client.ack.wrapping_add(OK.len() as u32);
        let begin = client.clone();
        for _ in 0..2 {
            assert_eq!(begin.clone().say(GET2), [], "the next request has to wait");
        }
        // A client may send both again in one segment.
        let late = End { ack: client.ack, ..lost };
        let rest = one(late.clone().say(&[&[b'x'; 60][..], GET2].concat()));
        assert_eq!(rest.payload, [b'x'; 60]);
        first.hear(&rest);
        let heard = one(first.send(ACK, &[]));
        assert_eq!(heard.ack, begin.seq);
        let mut second = lab.open(&mut client, GET2);
        assert_eq!((lab.version_of(&second), lab.counted(Reason::OutOfOrder)), (2, 2));
        lab.respond(&mut client, &mut second, OK);
        // The first leg is whole.
        first.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut first, OK);
    }
}

/// Who has sent a response hears that it was received when the next request goes elsewhere, also when it is the client's only word about it.
#[test]
fn the_leg_that_a_request_leaves_hears_that_its_response_was_received() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        first.hear(&lab.told());
        lab.respond(&mut client, &mut second, OK);
        for round in 0..20u32 {
            lab.clock.set(lab.clock.get() + 500 * round);
            let (request, to, from) = if round % 2 == 0 { (GET, &mut first, &mut second) } else { (GET2, &mut second, &mut first) };
            client.window = 1000 + round as u16;
            to.hear(&one(client.say(request)));
            let told = lab.told();
            from.hear(&told);
            assert_eq!((told.dst, told.window), (from.me, client.window), "round {round}");
            // The client acknowledges the response with its next request.
            client.hear(&one(to.say(OK)));
        }
        // By a head in parts, and to a leg that is new.
        let ack = one(client.say(&GET[..9]));
        client.hear(&ack);
        let seen = one(client.say(&GET[9..]));
        assert_eq!(seen.payload, GET);
        first.hear(&seen);
        second.hear(&lab.told());
        client.hear(&one(first.say(OK)));
        let get3 = b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 3\r\n\r\n";
        let syn = one(client.say(get3));
        first.hear(&lab.told());
        let mut third = lab.accept(&syn, get3);
        client.hear(&one(third.say(OK)));
        // Nobody is told twice.
        third.hear(&one(client.say(get3)));
        assert!(lab.told.borrow().is_empty());
        assert_eq!(lab.entries(), [1, 3]);
        client.send(RST, &[]);
    }
}

/// Window updates, a window that closes and opens, SACK: what a client says without data goes to the leg in use, in its numbers, after any
/// number of switches.
#[test]
fn every_bare_acknowledgement_reaches_the_leg_in_use() {
    for lab in Http::both() {
        let (mut client, mut first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut second, OK);
        for round in 0..50u32 {
            lab.clock.set(lab.clock.get() + 300 * (round % 7));
            let (request, leg) = if round % 2 == 0 { (GET, &mut first) } else { (GET2, &mut second) };
            leg.hear(&one(client.say(request)));
            let head = one(leg.say(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n"));
            client.hear(&head);
            for window in [64_000, 500, 0, 0, 1, 30_000] {
                client.window = window;
                let seen = one(client.send(ACK, &[]));
                leg.hear(&seen);
                assert_eq!((seen.dst, seen.window, seen.payload.len()), (leg.me, window, 0), "round {round}");
            }
            // The first of three segments is lost.
            let lost = leg.clone();
            leg.seq = leg.seq.wrapping_add(1000);
            let block = (leg.seq, leg.seq.wrapping_add(1000));
            let behind = one(leg.say(&[b'y'; 1000]));
            let edges = (behind.seq, behind.seq.wrapping_add(1000));
            let sack = client.wire(ACK, &[]);
            let sack = Wire {
                options: [sack.options.clone(), vec![Opt::Noop, Opt::Noop, Opt::SelectiveAcknowledgement(edges, [None; 3])]].concat(),
                ..sack
            };
            let seen = one(lab.run(&sack, CLIENT_SIDE));
            assert_eq!((seen.dst, seen.ack), (leg.me, lost.seq), "round {round}");
            assert!(seen.options.contains(&Opt::SelectiveAcknowledgement(block, [None; 3])), "{seen:?}");
            client.hear(&one(lost.clone().say(&[b'x'; 1000])));
            client.ack = client.ack.wrapping_add(1000);
            client.hear(&one(leg.say(&[b'z'; 1000])));
            leg.hear(&one(client.send(ACK, &[])));
        }
        assert_eq!((lab.entries(), lab.maps.version(2).switches), ([1, 2], 26));
    }
}
