//! The end of spliced flows.
use super::*;

fn resets(lab: &Http, out: &[Wire], idle: &End<'_>) {
    let to: Vec<&Wire> = out.iter().filter(|wire| wire.dst == idle.me).collect();
    assert_eq!(to.len(), 1, "{out:?}");
    assert_eq!((to[0].flags & RST, to[0].seq, to[0].src), (RST, idle.ack, lab.client));
}

/// A client with an idle leg to version 1, one in use to version 2.
fn with_idle(lab: &Http) -> (End<'_>, End<'_>, End<'_>) {
    let (mut client, first) = lab.ready();
    let mut second = lab.open(&mut client, GET2);
    lab.respond(&mut client, &mut second, OK);
    (client, second, first)
}

#[test]
fn fins_of_both_ends_free_everything() {
    for lab in Http::both() {
        for client_first in [true, false] {
            let (client, server, idle) = with_idle(&lab);
            let (mut a, mut b) = if client_first { (client, server) } else { (server, client) };
            b.hear(&one(a.send(FIN | ACK, &[])));
            a.hear(&one(b.send(ACK, &[])));
            a.hear(&one(b.send(FIN | ACK, &[])));
            assert_eq!(lab.entries(), [1, 2], "the last acknowledgement has to get through");
            let out = a.send(ACK, &[]);
            b.hear(&out[0]);
            resets(&lab, &out[1..], &idle);
            assert_eq!((out.len(), lab.entries()), (2, [0, 0]), "client first: {client_first}");
        }
        assert_eq!(lab.maps.version(2).closed, 2);
    }
}

#[test]
fn resets_of_either_end_free_everything() {
    for lab in Http::both() {
        for by_client in [true, false] {
            let (client, server, idle) = with_idle(&lab);
            let (mut a, b) = if by_client { (client, server) } else { (server, client) };
            let out = a.send(RST | ACK, &[]);
            b.clone().hear(&out[0]);
            assert_eq!(out[0].flags & RST, RST);
            resets(&lab, &out[1..], &idle);
            assert_eq!((out.len(), lab.entries()), (2, [0, 0]));
        }
        let counters = lab.maps.version(2);
        assert_eq!((counters.closed, counters.resets_client, counters.resets_backend), (2, 1, 1));
    }
}

#[test]
fn an_idle_leg_that_was_evicted_does_not_save_the_others() {
    for lab in Http::both() {
        let (mut client, second, first) = with_idle(&lab);
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nx-v: 3\r\n\r\n";
        let mut third = lab.open(&mut client, request);
        lab.respond(&mut client, &mut third, OK);
        lab.evict(&first);
        let out = client.send(RST | ACK, &[]);
        third.hear(&out[0]);
        resets(&lab, &out[1..], &second);
        assert_eq!((out.len(), lab.entries()), (2, [0, 0]));
    }
}

/// `shutdown(SHUT_WR)` behind the request; the response is longer than a window, and its FIN is under way when its first segments are
/// acknowledged.
#[test]
fn a_half_closed_client_hears_the_whole_response() {
    for lab in Http::both() {
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        server.hear(&one(client.send(FIN | ACK, &[])));
        let head = one(server.say(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n"));
        let rest: Vec<Wire> = (0..3).map(|_| one(server.say(&[b'x'; 1000]))).collect();
        let fin = one(server.send(FIN | ACK, &[]));
        client.hear(&head);
        for wire in &rest {
            let ack = one(client.send(ACK, &[]));
            assert_eq!((ack.dst, ack.flags), (server.me, ACK), "{ack:?}");
            client.hear(wire);
        }
        // A segment was lost behind the node.
        let again = Wire { seq: server.seq.wrapping_sub(1001), ..server.wire(ACK, &[b'x'; 1000]) };
        assert_eq!(one(lab.run(&again, BACKEND_SIDE)).dst, lab.client);
        client.hear(&fin);
        server.hear(&one(client.send(ACK, &[])));
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn a_client_that_leaves_while_its_leg_is_opened_leaves_nothing() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        assert_eq!((client.send(RST, &[]), lab.entries()), (vec![], [0, 0]));
        let (_, syn_ack) = lab.backend_of(&syn);
        lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn a_backend_that_closes_between_requests_closes_the_client() {
    for lab in Http::both() {
        let (mut client, mut server) = lab.ready();
        let fin = one(server.send(FIN | ACK, &[]));
        assert_eq!(fin.dst, lab.client);
        // The next request was already under way.
        let late = one(client.say(GET));
        assert_eq!(late.dst, server.me);
        let out = server.send(RST, &[]);
        assert_eq!((one(out).flags, lab.entries()), (RST, [0, 0]));
    }
}

#[test]
fn a_request_with_a_fin_is_answered() {
    for lab in Http::both() {
        let mut client = lab.client();
        let syn = one(client.send(FIN | ACK | PSH, GET));
        let (mut server, syn_ack) = lab.backend_of(&syn);
        for wire in lab.run(&syn_ack, BACKEND_SIDE) {
            assert_eq!((wire.seq, wire.ack), (server.ack, server.seq));
            server.ack = server.ack.wrapping_add(wire.len());
        }
        // The client's timer sends what was not acknowledged.
        client.seq = client.seq.wrapping_sub(1);
        if server.ack == client.seq {
            server.hear(&one(client.send(FIN | ACK, &[])));
        } else {
            client.seq = client.seq.wrapping_add(1);
        }
        lab.respond(&mut client, &mut server, OK);
        client.hear(&one(server.send(FIN | ACK, &[])));
        server.hear(&one(client.send(ACK, &[])));
        assert_eq!(lab.entries(), [0, 0]);
    }
}
