//! Backends that refuse, are silent, are gone.
use super::*;
use crate::env::Env;

#[test]
fn a_refused_request_goes_to_another_backend() {
    for lab in Http::both() {
        for bare in [true, false] {
            let mut client = lab.client();
            let syn = if bare {
                one(client.say(GET))
            } else {
                let ack = one(client.say(&GET[..7]));
                client.hear(&ack);
                one(client.say(&GET[7..]))
            };
            let (server, _) = lab.backend_of(&syn);
            // A reset of something else.
            assert_eq!(lab.run(&Wire { ack: server.ack.wrapping_add(1), ..server.wire(RST | ACK, &[]) }, BACKEND_SIDE), []);
            let other = one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
            assert_ne!(other.dst, server.me);
            assert_eq!((other.src, other.seq, lab.entries()), (lab.client, syn.seq, [1, 1]));
            let mut server = lab.accept(&other, GET);
            assert_eq!(lab.version_of(&server), 1);
            lab.respond(&mut client, &mut server, OK);
            server.hear(&one(client.send(RST, &[])));
            lab.maps.pass(10_000);
        }
        let counters = lab.maps.version(1);
        assert_eq!((counters.refused, counters.requests, counters.switches, lab.counted(Reason::LegRefused)), (2, 2, 0, 2));
    }
}

#[test]
fn when_nobody_serves_the_client_is_told() {
    for lab in Http::both() {
        for (how, reset) in [(0, false), (service_flag::RESET, true)] {
            lab.maps.change_service(1, |service| service.flags = service.flags & KEPT | how);
            // No backend is ready.
            lab.maps.set_state(3, backend_state::DOWN);
            let mut client = lab.client();
            let answer = one(client.say(GET2));
            told(&lab, &mut client, &answer, reset);
            // The only one refuses.
            lab.maps.set_state(3, backend_state::READY);
            let mut client = lab.client();
            let syn = one(client.say(GET2));
            let (server, _) = lab.backend_of(&syn);
            let answer = one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
            told(&lab, &mut client, &answer, reset);
            // The only one is silent.
            lab.maps.pass(10_000);
            let mut client = lab.client();
            one(client.say(GET2));
            let mut syns = 1;
            let answer = loop {
                lab.maps.pass(500);
                let out = one(client.again(ACK | PSH, GET2));
                if out.flags != SYN {
                    break out;
                }
                syns += 1;
            };
            assert_eq!(syns, 6, "lost SYNs are sent again, but not for ever");
            told(&lab, &mut client, &answer, reset);
            // Until the silence is forgotten.
            lab.maps.pass(61_000);
        }
        assert_eq!(lab.counted(Reason::Unavailable), 6);
    }
}

impl Http {
    /// A client of another port, after its handshake.
    fn client_from(&self, port: u16) -> End<'_> {
        let me = SocketAddr::new(self.client.ip(), port);
        let mut client = End { me, seq: self.fresh(), ..self.stranger() };
        let syn = client.wire(SYN, &[]).saying(&[Opt::MaximumSegmentSize(1460)]);
        let syn_ack = one(self.run(&syn, CLIENT_SIDE));
        (client.seq, client.ack) = (client.seq.wrapping_add(1), syn_ack.seq);
        client.hear(&syn_ack);
        client
    }

    /// Makes a backend of version 1 the only suspect.
    fn suspect(&self, backend: u32) {
        let until = self.maps.ticks() + 1_250;
        let list = self.maps.suspected(1).expect("there is room");
        list.set(Suspected { backends: [backend; SUSPECTS_MOST], until: [until; SUSPECTS_MOST], ..list.get() });
        self.maps.set_suspect(backend, until);
    }

    fn refuses(&self, client: &mut End<'_>, answer: &Wire) {
        client.hear(answer);
        assert!(answer.payload.starts_with(b"HTTP/1.1 503"), "{answer:?}");
        let last = one(client.send(FIN | ACK, &[]));
        client.hear(&last);
    }
}

fn told(lab: &Http, client: &mut End<'_>, answer: &Wire, reset: bool) {
    client.hear(answer);
    if reset {
        assert_eq!((answer.flags, answer.payload.len(), lab.entries()), (RST | ACK, 0, [0, 0]));
        return;
    }
    assert!(answer.payload.starts_with(b"HTTP/1.1 503 Service Unavailable\r\n"), "{answer:?}");
    assert_eq!((answer.flags, lab.entries(), lab.answered()), (FIN | ACK | PSH, [0, 0], 1));
    let last = one(client.send(FIN | ACK, &[]));
    client.hear(&last);
    assert_eq!((last.flags, lab.entries(), lab.answered()), (ACK, [0, 0], 0));
}

#[test]
fn nobody_left_in_the_middle_of_a_connection_is_said_too() {
    for lab in Http::both() {
        let (mut client, first) = lab.ready();
        lab.maps.set_state(3, backend_state::DOWN);
        let answer = one(client.say(GET2));
        assert!(answer.payload.starts_with(b"HTTP/1.1 503"));
        client.hear(&answer);
        let out = client.send(FIN | ACK, &[]);
        assert_eq!(out.iter().find(|wire| wire.dst == lab.client).map(|wire| wire.flags), Some(ACK));
        // The leg that was left is reset, at the latest when it speaks.
        let out = first.clone().send(FIN | ACK, &[]);
        assert!(out.iter().all(|wire| wire.flags & RST != 0 && wire.dst == first.me), "{out:?}");
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn a_silent_backend_is_left_after_the_clients_retransmissions() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        lab.maps.pass(50);
        assert_eq!(client.again(ACK | PSH, GET), [], "too early");
        lab.maps.pass(150);
        assert_eq!(one(client.again(ACK | PSH, GET)).unstamped(), syn.clone().unstamped(), "the same once more");
        lab.maps.pass(200);
        let other = one(client.again(ACK | PSH, GET));
        assert_ne!(other.dst, syn.dst);
        assert_eq!((other.seq, lab.entries()), (syn.seq, [1, 1]));
        let mut server = lab.accept(&other, GET);
        lab.respond(&mut client, &mut server, OK);
        let counters = lab.maps.version(1);
        assert_eq!((counters.timeouts, counters.requests, counters.opened, lab.counted(Reason::LegSilent)), (1, 1, 1, 2));
        // New connections avoid it for a while.
        let mut next = lab.client_with(5, &[]);
        assert_eq!(one(next.say(GET)).dst, server.me);
        next.send(RST, &[]);
    }
}

/// A suspect that was only down for a moment takes what the only other one refuses.
#[test]
fn a_suspect_is_tried_before_the_client_is_told_that_nobody_serves() {
    for lab in Http::both() {
        for request in [GET, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"] {
            for suspect in [1, 2] {
                lab.maps.pass(10_000);
                lab.suspect(suspect);
                for port in 0..40 {
                    let mut client = lab.client_from(41_000 + port);
                    let syn = one(client.say(request));
                    let (server, _) = lab.backend_of(&syn);
                    assert_eq!(lab.id_of(&server), 3 - suspect);
                    let other = one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
                    let mut server = lab.accept(&other, request);
                    assert_eq!(lab.id_of(&server), suspect, "port {port}");
                    lab.respond(&mut client, &mut server, OK);
                    client.send(RST, &[]);
                }
            }
        }
        assert_eq!((lab.entries(), lab.counted(Reason::Unavailable)), ([0, 0], 0));
    }
}

/// Each backend is asked once, whatever is said of it, before the client is told.
#[test]
fn every_backend_of_a_version_is_tried_once() {
    for lab in Http::both() {
        lab.serve(&[(100, &[1, 2, 4]), (0, &[3])]);
        for port in 0..40 {
            let mut client = lab.client_from(41_000 + port);
            let mut syn = one(client.say(GET));
            let mut tried = Vec::new();
            let answer = loop {
                let (server, _) = lab.backend_of(&syn);
                tried.push(server.me);
                let out = one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
                if out.flags != SYN {
                    break out;
                }
                syn = out;
            };
            told(&lab, &mut client, &answer, false);
            tried.sort();
            tried.dedup();
            assert_eq!(tried.len(), 3, "port {port}: {tried:?}");
            lab.maps.pass(10_000);
        }
        assert_eq!(lab.maps.version(1).refused, 120, "nobody twice");
    }
}

/// Who has been tried is remembered by the last bits of numbers: two that share them are told apart all the same.
#[test]
fn a_backend_is_not_taken_for_another_that_failed() {
    for lab in Http::both() {
        lab.maps.add_backend(33, addr(backend(lab.ipv6(), 33).ip()), 8080, TCP);
        lab.serve(&[(100, &[1, 33]), (0, &[3])]);
        for port in 0..20 {
            let mut client = lab.client_from(41_000 + port);
            let syn = one(client.say(GET));
            let (server, _) = lab.backend_of(&syn);
            let other = one(lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE));
            assert_eq!(other.flags, SYN, "port {port}");
            assert_ne!(lab.backend_of(&other).0.me, server.me, "port {port}");
            client.send(RST, &[]);
        }
    }
}

/// What is known of a version that answers nobody is told to whoever comes, after one look; and forgotten with the first answer.
#[test]
fn a_version_that_is_known_to_be_silent_fails_fast() {
    for lab in Http::both() {
        for (request, version) in [(GET, 1), (GET2, 2)] {
            // The first one learns it the hard way.
            let mut first = lab.client_from(41_000);
            one(first.say(request));
            for (ms, _) in [(200, SYN), (400, SYN), (800, SYN), (1_600, SYN)] {
                lab.maps.pass(ms);
                assert_eq!(one(first.again(ACK | PSH, request)).flags, SYN, "after {ms} ms: a SYN may be lost");
            }
            // The next ones are told at their second retransmission.
            for port in 1..5 {
                let mut client = lab.client_from(41_000 + port);
                one(client.say(request));
                lab.maps.pass(200);
                assert_eq!(one(client.again(ACK | PSH, request)).flags, SYN);
                lab.maps.pass(400);
                let answer = one(client.again(ACK | PSH, request));
                lab.refuses(&mut client, &answer);
            }
            // Who has waited all the time, too.
            lab.maps.pass(3_200);
            let answer = one(first.again(ACK | PSH, request));
            lab.refuses(&mut first, &answer);
            // Half a minute later it is still known, and the first answer ends it.
            lab.maps.pass(30_000);
            let mut client = lab.client_from(41_005);
            let syn = one(client.say(request));
            let mut late = lab.client_from(41_006);
            one(late.say(request));
            lab.maps.pass(600);
            let answer = one(late.again(ACK | PSH, request));
            lab.refuses(&mut late, &answer);
            let mut server = lab.accept(&syn, request);
            lab.respond(&mut client, &mut server, OK);
            server.hear(&one(client.send(RST, &[])));
            let mut next = lab.client_from(41_007);
            one(next.say(request));
            lab.maps.pass(600);
            let syn = one(next.again(ACK | PSH, request));
            let mut server = lab.accept(&syn, request);
            lab.respond(&mut next, &mut server, OK);
            server.hear(&one(next.send(RST, &[])));
            assert_eq!((lab.entries(), lab.version_of(&server)), ([0, 0], version));
        }
    }
}

#[test]
fn a_stale_connection_of_the_backend_is_reset_and_the_syn_sent_again() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        let (server, _) = lab.backend_of(&syn);
        let challenge = Wire { seq: 5, ack: 77_000, ..server.wire(ACK, &[]) };
        let out = lab.run(&challenge, BACKEND_SIDE);
        let [reset, again] = &out[..] else { panic!("{out:?}") };
        assert_eq!((reset.flags, reset.seq, reset.dst, reset.src), (RST, 77_000, server.me, lab.client));
        assert_eq!(*again, syn);
        lab.respond(&mut client, &mut lab.accept(again, GET), OK);
        assert_eq!(lab.counted(Reason::StaleLeg), 1);
    }
}

#[test]
fn a_backend_that_goes_down_between_requests_is_left() {
    for lab in Http::both() {
        let (mut client, server) = lab.ready();
        lab.maps.set_state(lab.id_of(&server), backend_state::DOWN);
        let mut other = lab.open(&mut client, GET);
        assert_ne!(other.me, server.me);
        lab.respond(&mut client, &mut other, OK);
        let counters = lab.maps.version(1);
        assert_eq!((counters.requests, counters.switches), (2, 0), "the same version");
    }
}

/// The other backend of version 1.
fn other(lab: &Http, server: &End<'_>) -> u32 {
    3 - lab.id_of(server)
}

/// Who drains, or has left the policy, finishes its response; the next request goes elsewhere.
#[test]
fn a_response_under_way_is_finished_and_the_next_request_leaves() {
    for lab in Http::both() {
        for state in [backend_state::DRAINING, backend_state::LEAVING] {
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            lab.maps.set_state(lab.id_of(&server), state);
            let half = one(server.say(&OK[..OK.len() - 3]));
            client.hear(&half);
            server.hear(&one(client.send(ACK, &[])));
            // Also when its route is looked up again.
            lab.maps.pass(2_000);
            lab.respond(&mut client, &mut server, &OK[OK.len() - 3..]);
            let mut next = lab.open(&mut client, GET);
            assert_eq!((lab.version_of(&next), lab.id_of(&next)), (1, other(&lab, &server)), "state {state}");
            lab.respond(&mut client, &mut next, OK);
            next.hear(&client.send(RST, &[])[0]);
            lab.maps.set_state(lab.id_of(&server), backend_state::READY);
            lab.maps.pass(10_000);
        }
        let counters = lab.maps.version(1);
        assert_eq!((counters.requests, counters.switches, lab.counted(Reason::BackendDown)), (4, 0, 0));
    }
}

#[test]
fn a_draining_backend_serves_on_when_nobody_else_is_known_to() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let (id, other) = (lab.id_of(&server), other(&lab, &server));
        lab.maps.set_state(id, backend_state::DRAINING);
        lab.maps.set_state(other, backend_state::DOWN);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        // A suspect may be dead.
        lab.maps.set_state(other, backend_state::READY);
        lab.maps.set_suspect(other, lab.maps.ticks() + 1_250);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        lab.maps.pass(10_000);
        assert_eq!(lab.id_of(&lab.open(&mut client, GET)), other);
        client.send(RST, &[]);
    }
}

#[test]
fn who_has_left_the_policy_gets_no_request_even_when_nobody_else_serves() {
    for lab in Http::both() {
        let (mut client, server) = lab.ready();
        lab.maps.set_state(lab.id_of(&server), backend_state::LEAVING);
        lab.maps.set_state(other(&lab, &server), backend_state::DOWN);
        let answer = one(client.say(GET));
        assert!(answer.payload.starts_with(b"HTTP/1.1 503"), "{answer:?}");
        client.hear(&answer);
        client.send(FIN | ACK, &[]);
    }
}

/// What its policy cannot see the end of stays, as long as the backend lets it.
#[test]
fn a_pinned_connection_stays_with_a_backend_that_left_the_policy() {
    for lab in Http::both() {
        let mut client = lab.client();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
        let mut server = lab.open(&mut client, request);
        lab.respond(&mut client, &mut server, b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        lab.maps.set_state(lab.id_of(&server), backend_state::LEAVING);
        server.hear(&one(client.say(b"ping")));
        lab.respond(&mut client, &mut server, b"pong");
    }
}

/// A client that waits for its answer sends nothing: it hears of it with the next packet of its backend.
#[test]
fn a_backend_that_goes_down_resets_its_client_by_its_own_next_packet() {
    for lab in Http::both() {
        for state in [backend_state::DOWN, backend_state::NONE] {
            for fin_before in [false, true] {
                let (mut client, mut server) = lab.ready();
                server.hear(&one(client.say(GET)));
                client.hear(&one(server.say(&OK[..20])));
                if fin_before {
                    client.hear(&one(server.send(FIN | ACK, &[])));
                }
                lab.maps.set_state(lab.id_of(&server), state);
                let out = if fin_before { server.send(ACK, &[]) } else { server.say(&OK[20..]) };
                let [back, forth] = &out[..] else { panic!("{out:?}") };
                assert_eq!((back.flags, back.seq, back.src, back.dst), (RST, server.ack, lab.client, server.me));
                assert_eq!((forth.flags, forth.seq, forth.payload.len()), (RST | ACK, client.ack, 0), "exactly what it expects");
                assert_eq!((forth.src, forth.dst, forth.ack), (lab.vip, lab.client, client.seq));
                assert_eq!(lab.entries(), [0, 0]);
                lab.maps.set_state(lab.id_of(&server), backend_state::READY);
                lab.maps.pass(10_000);
            }
        }
        assert_eq!(lab.counted(Reason::BackendDown), 4);
    }
}

#[test]
fn a_reset_of_a_backend_that_is_down_is_passed_on() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.maps.set_state(lab.id_of(&server), backend_state::DOWN);
        let reset = one(server.send(RST | ACK, &[]));
        assert_eq!((reset.flags & RST, reset.dst, reset.seq), (RST, lab.client, client.ack));
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn a_backend_that_is_gone_in_the_middle_of_a_response_ends_the_connection() {
    for lab in Http::both() {
        for client_first in [true, false] {
            let mut client = lab.client();
            let ack = one(client.say(&GET[..7]));
            client.hear(&ack);
            let syn = one(client.say(&GET[7..]));
            let mut server = lab.accept(&syn, GET);
            assert_eq!(lab.maps.taken(), 1);
            lab.maps.set_state(lab.id_of(&server), backend_state::NONE);
            let out = if client_first { client.send(ACK, &[]) } else { server.say(&OK[..20]) };
            let reset = out.last().unwrap_or_else(|| panic!("no answer"));
            assert_eq!((reset.flags & RST, reset.dst), (RST, lab.client));
            assert_eq!((lab.entries(), lab.maps.taken()), ([0, 0], 0), "client first: {client_first}");
            for id in 1..=2 {
                lab.maps.set_state(id, backend_state::READY);
            }
        }
    }
}

#[test]
fn a_leg_that_was_evicted_ends_the_connection() {
    for lab in Http::both() {
        let (mut client, server) = lab.ready();
        lab.evict(&server);
        let reset = one(client.say(GET));
        assert_eq!((reset.flags & RST, lab.entries(), lab.counted(Reason::LegLost)), (RST, [0, 0], 1));
    }
}

/// Every leg of the service gets a source port of the node's own.
fn translate_sources(lab: &Http, ports: u16) {
    lab.maps.add_iface(BACKEND_SIDE, Iface { addr4: [10, 2, 0, 1], addr6: [0xfd; 16], ..Iface::default() });
    lab.maps.change_service(1, |service| service.snat = snat::ALWAYS);
    let config = lab.maps.config().expect("the fake has one");
    config.set(Config { snat_port_count: ports, ..config.get() });
}

#[test]
fn without_a_port_for_source_translation_the_client_is_told() {
    for lab in Http::both() {
        translate_sources(&lab, 0);
        let mut client = lab.client();
        let answer = one(client.say(GET));
        told(&lab, &mut client, &answer, false);
        assert_eq!(lab.counted(Reason::SnatPortsExhausted), 1);
    }
}

#[test]
fn ports_of_source_translation_are_given_back() {
    for lab in Http::redirected() {
        translate_sources(&lab, 100);
        let (mut client, first) = lab.ready();
        assert_ne!(first.peer, lab.client);
        for request in [GET2, GET] {
            let mut server = lab.open(&mut client, request);
            lab.respond(&mut client, &mut server, OK);
            assert_eq!(lab.entries(), [1, 1], "a leg that nobody could find again is forgotten");
        }
        client.send(RST, &[]);
        assert_eq!(lab.entries(), [0, 0]);
    }
}
