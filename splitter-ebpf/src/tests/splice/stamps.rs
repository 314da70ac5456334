//! TCP timestamps (RFC 7323). All other tests of spliced flows run with and without them: each end checks that what it hears never goes back,
//! and is an echo of its own clock. Here is what else can happen.
use super::*;

fn asks() -> Vec<Opt> {
    vec![Opt::MaximumSegmentSize(1460), Opt::Noop, Opt::Noop, Opt::Timestamp(7, 0)]
}

#[test]
fn who_does_not_ask_and_who_asks_in_vain_gets_none() {
    for lab in Http::both() {
        let silent = Wire { options: asks()[..1].to_vec(), ..lab.stranger().wire(SYN, &[]) };
        assert_eq!(stamps_of(&one(lab.run(&silent, CLIENT_SIDE))), None);
        let asking = Wire { options: asks(), ..lab.stranger().wire(SYN, &[]) };
        let said = stamps_of(&one(lab.run(&asking, CLIENT_SIDE)));
        assert_eq!(said.map(|(_, ecr)| ecr), lab.stamps.then_some(7), "the service promises them, or it does not");
    }
}

#[test]
fn a_backend_that_has_lost_them_is_used_and_nobody_is_promised_them_any_more() {
    for lab in [false, true].map(|ipv6| Http::with(ipv6, true)) {
        let mut client = lab.client();
        let (server, syn_ack) = lab.backend_of(&one(client.say(GET)));
        let mut server = End { clock: None, ..server };
        lab.run(&syn_ack.unstamped(), BACKEND_SIDE).iter().for_each(|wire| server.hear(wire));
        lab.respond(&mut client, &mut server, OK);
        // A leg that has them, and back.
        let mut other = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut other, OK);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        other.hear(&one(client.say(GET2)));
        lab.respond(&mut client, &mut other, OK);
        assert_eq!((lab.counted(Reason::Unstamped), lab.entries()), (1, [1, 2]));
        let asking = Wire { options: asks(), ..lab.stranger().wire(SYN, &[]) };
        assert_eq!(stamps_of(&one(lab.run(&asking, CLIENT_SIDE))), None);
    }
}

#[test]
fn backends_of_clients_without_them_are_offered_none() {
    for lab in [false, true].map(|ipv6| Http::with(ipv6, true)) {
        let mut client = End { clock: None, ..lab.stranger() };
        let syn_ack = one(client.send(SYN, &[]));
        client.ack = syn_ack.seq;
        client.hear(&syn_ack);
        let syn = one(client.say(GET));
        assert_eq!(stamps_of(&syn), None);
        let mut server = lab.accept(&syn, GET);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(lab.counted(Reason::Unstamped), 0);
    }
}

#[test]
fn the_clock_of_a_client_goes_on_when_legs_take_turns() {
    for lab in [false, true].map(|ipv6| Http::with(ipv6, true)) {
        let (mut client, mut one_) = lab.ready();
        let mut two = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut two, OK);
        for turn in 0..40u32 {
            // The clocks stand millions apart, and time passes while a leg is idle.
            lab.clock.set(lab.clock.get() + 1000 * turn);
            let (request, server) = if turn % 2 == 0 { (GET, &mut one_) } else { (GET2, &mut two) };
            let recent = client.recent;
            server.hear(&one(client.say(request)));
            lab.respond(&mut client, server, OK);
            assert!((client.recent.wrapping_sub(recent) as i32) > 0);
        }
        assert_eq!(lab.entries(), [1, 2]);
    }
}

#[test]
fn requests_in_pieces_leave_room_for_them() {
    for lab in Http::both() {
        let mut client = lab.client();
        let head = [b"GET / HTTP/1.1\r\nHost: a\r\nx-long: ", &[b'x'; 4000][..], b"\r\n\r\n"].concat();
        let mut syn = Vec::new();
        for part in head.chunks(1300) {
            syn = client.say(part);
            if let [ack] = &syn[..]
                && ack.flags == ACK
            {
                client.hear(ack);
            }
        }
        let syn = one(syn);
        let (mut server, syn_ack) = lab.backend_of(&syn);
        let out = lab.run(&syn_ack, BACKEND_SIDE);
        assert_eq!(payloads(&out), head);
        let longest = out.iter().map(|wire| wire.payload.len()).max();
        assert_eq!(longest, Some(if lab.stamps { 1448 } else { 1460 }));
        out.iter().for_each(|wire| server.hear(wire));
        lab.respond(&mut client, &mut server, OK);
    }
}
