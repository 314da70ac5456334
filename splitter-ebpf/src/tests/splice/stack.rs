//! Legs that go through the node's stack, and to processes of the node: what is seen at egress of the client's side goes in again there. The other
//! tests of the splice run over them too ([`Http::both`]).
use super::*;

/// Labs in which every leg is seen at egress.
fn labs() -> [Http; 4] {
    [Http::stacked(false, true), Http::stacked(true, false), Http::at_home(false, &[1, 2, 3, 4]), Http::at_home(true, &[1, 2, 3, 4])]
}

fn head(len: usize) -> Vec<u8> {
    [b"GET / HTTP/1.1\r\nHost: a\r\nx-long: ", &vec![b'x'; len][..], b"\r\n\r\n"].concat()
}

#[test]
fn pieces_of_a_head_go_in_one_after_the_other() {
    for lab in labs() {
        for len in [100, 3_000, 7_000, 12_000] {
            let mut client = lab.client();
            let request = head(len);
            let syn = one(client.say(&request));
            assert_eq!(lab.last.get(), Action::Pass, "a client's packet needs no detour");
            // Each piece is what comes next, for its backend.
            let mut server = lab.accept(&syn, &request);
            assert_eq!(lab.last.get(), Action::Inwards(CLIENT_SIDE), "{len} bytes: the last one as well");
            lab.respond(&mut client, &mut server, OK);
            assert_eq!(lab.last.get(), Action::Pass);
            client.send(RST, &[]);
        }
    }
}

/// Behind copies, which wait in a queue, a client's packet waits too.
#[test]
fn a_head_that_is_sent_again_goes_in_order() {
    for lab in labs() {
        let mut client = lab.client();
        let request = head(3_000);
        let ack = one(client.say(&request[..1_500]));
        client.hear(&ack);
        let syn = one(client.say(&request[1_500..]));
        let mut server = lab.accept(&syn, &request);
        let out = client.again(ACK | PSH, &request[1_500..]);
        assert_eq!((out.len(), payloads(&out), lab.last.get()), (3, request, Action::Inwards(CLIENT_SIDE)));
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
    }
}

#[test]
fn a_stale_legs_reset_goes_in_before_the_syn() {
    for lab in labs() {
        let mut client = lab.client();
        let (server, _) = lab.backend_of(&one(client.say(GET)));
        let out = lab.run(&Wire { seq: 5, ack: 77_000, ..server.wire(ACK, &[]) }, BACKEND_SIDE);
        assert_eq!(out.iter().map(|wire| (wire.flags, wire.dst)).collect::<Vec<_>>(), [(RST, server.me), (SYN, server.me)]);
        assert_eq!(lab.last.get(), Action::Inwards(CLIENT_SIDE));
        client.send(RST, &[]);
    }
}

/// The backend is down and speaks first: it hears of it, and so does the client.
#[test]
fn both_ends_of_a_leg_that_is_cut_are_reset() {
    for lab in labs() {
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        (1..=4).for_each(|id| lab.maps.set_state(id, backend_state::DOWN));
        let out = server.say(OK);
        assert_eq!(out.iter().map(|wire| (wire.flags & RST, wire.dst)).collect::<Vec<_>>(), [(RST, server.me), (RST, client.me)]);
        assert_eq!((lab.last.get(), lab.entries()), (Action::Pass, [0, 0]));
    }
}

#[test]
fn the_path_is_of_the_leg() {
    for ipv6 in [false, true] {
        let lab = Http::stacked(ipv6, false);
        let (mut client, mut first) = lab.ready();
        // The rules are gone: new legs are redirected.
        lab.maps.change_service(1, |service| service.flags = 0);
        assert_eq!(client.say(GET2)[0].flags, SYN);
        assert_eq!(lab.last.get(), Action::Redirect(BACKEND_SIDE));
        lab.stack.set(false);
        let syn =
            Wire { dst: backend(ipv6, 3), src: client.me, seq: client.seq.wrapping_sub(GET2.len() as u32 + 1), ..client.wire(SYN, &[]) };
        let mut second = lab.accept(&syn, GET2);
        lab.respond(&mut client, &mut second, OK);
        // The idle one is taken up as it was, also after a while.
        lab.maps.pass(2_000);
        lab.stack.set(true);
        first.hear(&one(client.say(GET)));
        // A copy has gone in, and the packet tells the other leg.
        assert_eq!((lab.last.get(), lab.told().dst), (Action::Redirect(BACKEND_SIDE), second.me));
        lab.respond(&mut client, &mut first, OK);
        assert_eq!(client.send(RST, &[]).len(), 2);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

/// Where the version of a backend elsewhere has one on the node too: what takes the place of its refused leg enters by the client's interface, where a
/// strict reverse path filter lets it pass.
#[test]
fn a_leg_changes_sides_with_its_backend() {
    for ipv6 in [false, true] {
        for (own, other) in [(&[1][..], 2), (&[2][..], 1)] {
            let lab = Http::at_home(ipv6, if own == [1] { &[1] } else { &[2] });
            let mut client = lab.client();
            let mut syn = one(client.say(GET));
            if lab.last.get() == Action::Pass {
                // To the one on the node first.
                let (server, _) = lab.backend_of(&syn);
                syn = one(lab.run(&Wire { ack: syn.seq.wrapping_add(1), ..server.wire(RST | ACK, &[]) }, BACKEND_SIDE));
                assert_eq!((syn.dst, lab.last.get()), (backend(ipv6, other), Action::Redirect(BACKEND_SIDE)));
            } else {
                let (server, _) = lab.backend_of(&syn);
                syn = one(lab.run(&Wire { ack: syn.seq.wrapping_add(1), ..server.wire(RST | ACK, &[]) }, BACKEND_SIDE));
                assert_eq!((syn.dst, lab.last.get()), (backend(ipv6, own[0]), Action::Inwards(CLIENT_SIDE)));
            }
            let mut server = lab.accept(&syn, GET);
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
    }
}

#[test]
fn xdp_leaves_the_stacks_legs_alone() {
    for ipv6 in [false, true] {
        let lab = Http::stacked(ipv6, false);
        lab.maps.add_iface(BACKEND_SIDE, Iface { flags: iface_flag::XDP_TRANSMIT, ..Default::default() });
        let mut client = lab.client();
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n";
        let mut server = lab.open(&mut client, post);
        for wire in [client.wire(ACK, b"body"), client.wire(ACK, &[]), server.wire(ACK, &[]), server.wire(ACK | PSH, OK)] {
            let bytes = wire.build();
            let mut frame = Frame::<true>::new(&bytes, ROUTE);
            assert_eq!((frame.run(&lab.maps), frame.bytes == bytes), (Action::Pass, true));
        }
        server.hear(&one(client.send(ACK, b"body")));
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
    }
}
