//! Requests that their backends have not received, on connections that were open.
use super::*;

const POST: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";

/// A leg in use, or one that is taken up again, whose backend has died without a word: two retransmissions later another one of its version has the
/// request.
#[test]
fn a_request_that_nobody_acknowledges_goes_to_another_backend() {
    for lab in Http::both() {
        for taken_up in [false, true] {
            let (mut client, server) = lab.ready();
            if taken_up {
                let mut other = lab.open(&mut client, GET2);
                lab.respond(&mut client, &mut other, OK);
            }
            assert_eq!(one(client.say(GET)).dst, server.me);
            // A tail loss probe (RFC 8985) says little.
            lab.maps.pass(10);
            assert_eq!(one(client.again(ACK | PSH, GET)).dst, server.me);
            lab.maps.pass(200);
            assert_eq!(one(client.again(ACK | PSH, GET)).dst, server.me, "the first retransmission");
            lab.maps.pass(400);
            let syn = one(client.again(ACK | PSH, GET));
            assert_eq!((syn.flags, lab.version_of(&lab.backend_of(&syn).0)), (SYN, 1));
            assert_ne!(syn.dst, server.me);
            let mut server = lab.accept(&syn, GET);
            lab.respond(&mut client, &mut server, OK);
            server.hear(&one(client.say(GET)));
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
            assert_eq!(lab.entries(), [0, 0]);
            lab.maps.pass(10_000);
        }
        let counters = lab.maps.version(1);
        assert_eq!((counters.timeouts, counters.requests, lab.counted(Reason::LegSilent)), (2, 6, 2));
    }
}

/// Who has acknowledged the request works on it, however long that takes.
#[test]
fn a_slow_backend_keeps_its_request() {
    for lab in Http::both() {
        for when in 0..3 {
            let (mut client, mut server) = lab.ready();
            server.hear(&one(client.say(GET)));
            let lost = |server: &mut End<'_>| drop(server.send(ACK, &[]));
            for (turn, ms) in [200, 400, 800, 1_600].into_iter().enumerate() {
                if turn == when {
                    // Its acknowledgement does not reach the client.
                    lost(&mut server);
                }
                if turn <= when || turn % 2 == 0 {
                    lab.maps.pass(ms);
                    let again = one(client.again(ACK | PSH, GET));
                    assert_eq!((again.dst, again.flags), (server.me, ACK | PSH), "turn {turn}, acknowledged before {when}");
                    lost(&mut server);
                }
            }
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
        assert_eq!((lab.maps.version(1).timeouts, lab.counted(Reason::LegSilent)), (0, 0));
    }
}

/// Nobody knows whether a silent backend has got a request that must not be carried out twice, nor one whose answer has begun.
#[test]
fn what_may_have_been_carried_out_is_not_sent_to_another() {
    for lab in Http::both() {
        for (request, begun) in [(POST, false), (GET, true)] {
            let (mut client, mut server) = lab.ready();
            one(client.say(request));
            if begun {
                server.ack = server.ack.wrapping_add(request.len() as u32);
                one(server.say(&OK[..20]));
            }
            for ms in [200, 400, 800, 1_600] {
                lab.maps.pass(ms);
                assert_eq!(one(client.again(ACK | PSH, request)).dst, server.me);
            }
            client.send(RST, &[]);
        }
        assert_eq!(lab.maps.version(1).connections, 2);
    }
}

/// A backend closes a connection that it takes for idle while a request is on its way: it has not read it, whatever its method is.
#[test]
fn a_fin_that_does_not_acknowledge_the_request_opens_another_leg() {
    for lab in Http::both() {
        for request in [GET, POST] {
            for taken_up in [false, true] {
                let (mut client, mut server) = lab.ready();
                if taken_up {
                    let mut other = lab.open(&mut client, GET2);
                    lab.respond(&mut client, &mut other, OK);
                }
                let seen = one(client.say(request));
                assert_eq!((seen.dst, seen.seq), (server.me, server.ack));
                let out = server.send(FIN | ACK, &[]);
                let [reset, syn] = &out[..] else { panic!("{out:?}") };
                assert_eq!((reset.flags, reset.seq, reset.src, reset.dst), (RST, server.ack, lab.client, server.me));
                assert_eq!((syn.flags, syn.src), (SYN, lab.client));
                // Late words of the old connection.
                let late = Wire { flags: RST, seq: server.seq, ack: 0, options: Vec::new(), ..server.wire(RST, &[]) };
                assert!(lab.run(&late, BACKEND_SIDE).iter().all(|wire| wire.src == server.me), "nothing in the name of the service");
                let (mut next, syn_ack) = lab.backend_of(syn);
                assert_eq!(lab.version_of(&next), 1);
                assert_eq!(lab.run(&syn_ack, BACKEND_SIDE), [], "nobody but the client has the request");
                lab.maps.pass(200);
                let again = one(client.again(ACK | PSH, request));
                assert_eq!((again.flags, again.dst), (SYN, next.me));
                let out = lab.run(&syn_ack, BACKEND_SIDE);
                assert_eq!(payloads(&out), request);
                out.iter().for_each(|wire| next.hear(wire));
                lab.respond(&mut client, &mut next, OK);
                next.hear(&one(client.say(GET)));
                lab.respond(&mut client, &mut next, OK);
                client.send(RST, &[]);
                assert_eq!(lab.entries(), [0, 0]);
            }
        }
        let counters = lab.maps.version(1);
        assert_eq!((lab.counted(Reason::RequestUnread), counters.refused, counters.timeouts, counters.requests), (4, 0, 0, 12));
        assert_eq!((lab.counted(Reason::LegSilent), lab.counted(Reason::HeadDisplaced)), (0, 0));
    }
}

/// A FIN behind the request, or behind a part of the answer, is passed on: the backend has read it.
#[test]
fn a_fin_that_acknowledges_the_request_is_the_clients() {
    for lab in Http::both() {
        for part in [0, GET.len() as u32, 5] {
            let (mut client, mut server) = lab.ready();
            one(client.say(GET));
            if part == 0 {
                // Behind a part of its answer.
                client.ack = client.ack.wrapping_add(one(server.say(&OK[..20])).len());
            }
            server.ack = server.ack.wrapping_add(part);
            let fin = one(server.send(FIN | ACK, &[]));
            assert_eq!((fin.dst, fin.flags & FIN), (lab.client, FIN), "{part} bytes acknowledged");
            client.send(RST, &[]);
        }
        assert_eq!(lab.counted(Reason::RequestUnread), 0);
    }
}
