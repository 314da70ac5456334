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
        for (how, reset) in [(0, false), (http_flag::RESET, true)] {
            lab.maps.change_service(1, |service| service.http = service.http & http_flag::STAMPS | how);
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
            lab.maps.pass(10_000);
        }
        assert_eq!(lab.counted(Reason::Unavailable), 6);
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

#[test]
fn a_draining_backend_keeps_its_connections() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        lab.maps.set_state(lab.id_of(&server), backend_state::DRAINING);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
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
            if !client_first {
                let out = server.say(&OK[..20]);
                assert!(out.iter().any(|wire| wire.flags & RST != 0), "{out:?}");
            }
            let reset = one(client.send(ACK, &[]));
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
    for lab in Http::both() {
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
