//! What the node answers before it knows a connection.
use super::*;
use crate::env::Env;

#[test]
fn a_syn_is_answered_and_nothing_is_kept() {
    for lab in Http::both() {
        let all = [Opt::MaximumSegmentSize(1460), Opt::SelectiveAcknowledgementPermitted, Opt::Noop, Opt::WindowScale(9)];
        for (sent, answered) in [
            (&all[..], vec![Opt::MaximumSegmentSize(MSS), Opt::WindowScale(7), Opt::SelectiveAcknowledgementPermitted]),
            (&all[..1], vec![Opt::MaximumSegmentSize(MSS)]),
            (&all[..2], vec![Opt::MaximumSegmentSize(MSS), Opt::SelectiveAcknowledgementPermitted]),
            (&all[3..], vec![Opt::MaximumSegmentSize(MSS), Opt::WindowScale(7)]),
            (&[], vec![Opt::MaximumSegmentSize(MSS)]),
        ] {
            let syn = Wire { options: sent.to_vec(), ..lab.stranger().wire(SYN, &[]) };
            let mut answer = one(lab.run(&syn, CLIENT_SIDE));
            answer.options.retain(|option| *option != Opt::Noop);
            let (seq, payload) = (answer.seq, vec![]);
            let wanted =
                Wire { src: lab.vip, dst: lab.client, flags: SYN | ACK, seq, ack: 1001, window: LIMIT as u16, options: answered, payload };
            assert_eq!((answer, lab.last.get()), (wanted, Action::Return(CLIENT_SIDE)));
        }
        assert_eq!(lab.entries(), [0, 0]);
    }
}

#[test]
fn numbers_of_handshakes_cannot_be_told_from_each_other() {
    let lab = Http::new(false);
    let mut seen = std::collections::HashSet::new();
    for (isn, port) in [(1000, 40_000), (1001, 40_000), (1000, 40_001), (1001, 40_001)] {
        let stranger = End { seq: isn, me: SocketAddr::new(lab.client.ip(), port), ..lab.stranger() };
        seen.insert(one(lab.run(&stranger.wire(SYN, &[]), CLIENT_SIDE)).seq >> 8);
    }
    assert_eq!(seen.len(), 4);
}

#[test]
fn the_bare_end_of_a_handshake_is_absorbed() {
    for lab in Http::both() {
        lab.client();
        assert_eq!((lab.counted(Reason::Handshake), lab.entries(), lab.last.get()), (1, [0, 0], Action::Drop));
    }
}

/// Jiffies wrap five minutes after a boot, and every 199 days at 250 Hz.
#[test]
fn a_handshake_over_the_wrap_of_the_clock_holds() {
    for lab in Http::both() {
        lab.maps.turn_clock(u32::MAX - 10);
        let mut client = lab.client();
        lab.maps.pass(80);
        assert!(lab.maps.ticks() < 20, "it has wrapped");
        let mut server = lab.open(&mut client, GET);
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
        // A cookie of two steps ago is too old there as well.
        lab.maps.turn_clock(u32::MAX - 10);
        let mut client = lab.client();
        lab.maps.pass((1 << 16) * 4 + 80);
        let reset = one(client.send(ACK | FIN, &[]));
        assert_eq!((reset.flags & RST, lab.counted(Reason::UnknownConnection)), (RST, 1));
    }
}

#[test]
fn a_forged_ack_is_reset() {
    for lab in Http::both() {
        let client = lab.client();
        let forged = End { ack: client.ack.wrapping_add(1 << 8), ..client.clone() };
        let reset = one(forged.clone().send(ACK, &[]));
        assert_eq!((reset.flags, reset.seq, reset.dst), (RST, forged.ack, lab.client));
        // An honest cookie of another client number.
        let reset = one(End { seq: client.seq.wrapping_add(1), ..client.clone() }.send(ACK, &[]));
        assert_eq!((reset.flags, reset.seq), (RST, client.ack));
        assert_eq!((lab.counted(Reason::UnknownConnection), lab.entries()), (2, [0, 0]));
        let reset = one(client.clone().send(ACK | FIN, &[]));
        assert_eq!((reset.flags & RST, lab.entries()), (RST, [0, 0]), "it closes before it has asked");
    }
}

#[test]
fn segments_that_overtake_the_first_are_dropped_then_reset() {
    for lab in Http::both() {
        let client = lab.client();
        let later = End { seq: client.seq.wrapping_add(1400), ..client };
        for _ in 0..2 {
            assert_eq!(later.clone().say(b"the second segment"), []);
        }
        lab.maps.pass(100);
        assert_eq!(later.clone().say(b"the second segment"), []);
        lab.maps.pass(100);
        let reset = one(later.clone().say(b"the second segment"));
        assert_eq!((reset.flags, reset.seq), (RST, later.ack));
        assert_eq!((lab.counted(Reason::OutOfOrder), lab.counted(Reason::UnknownConnection), lab.entries()), (3, 1, [0, 0]));
    }
}

#[test]
fn a_syn_flood_leaves_nothing() {
    for lab in Http::both() {
        for port in 1..2000 {
            let end = End { me: SocketAddr::new(lab.client.ip(), port), seq: port as u32 * 7, ..lab.stranger() };
            assert_eq!(one(lab.run(&end.wire(SYN, &[]), CLIENT_SIDE)).flags, SYN | ACK);
            let guess = End { ack: port as u32 * 99_991, ..end };
            assert_eq!(one(lab.run(&guess.wire(ACK, &[]), CLIENT_SIDE)).flags, RST);
        }
        assert_eq!((lab.entries(), lab.maps.taken()), ([0, 0], 0));
    }
}

#[test]
fn a_cookie_grows_old() {
    let lab = Http::new(false);
    let mut client = lab.client();
    lab.maps.pass(100_000);
    let mut server = lab.open(&mut client, GET);
    lab.respond(&mut client, &mut server, OK);
    client.send(RST, &[]);
    let mut client = lab.client();
    lab.maps.pass(138_000);
    assert_eq!(client.say(GET), [], "it may have overtaken the first");
    lab.maps.pass(300);
    assert_eq!((one(client.again(ACK, GET)).flags, lab.entries()), (RST, [0, 0]));
}

#[test]
fn what_a_client_said_reaches_the_backend() {
    for lab in Http::both() {
        let (mss, sack) = (Opt::MaximumSegmentSize, Opt::SelectiveAcknowledgementPermitted);
        for (said, heard, window) in [
            (vec![mss(1460), sack.clone(), Opt::Noop, Opt::WindowScale(5)], vec![mss(1460), Opt::WindowScale(5), sack.clone()], 0xffff),
            (vec![mss(1400)], vec![mss(1380)], 1000),
            (vec![mss(8960), Opt::Noop, Opt::WindowScale(1)], vec![mss(8940), Opt::WindowScale(1)], 2000),
            (vec![], vec![mss(536)], 1000),
        ] {
            let mut client = lab.client_with(lab.fresh(), &said);
            client.window = if window == 0xffff { 64_000 } else { 1000 };
            let mut syn = one(client.say(GET));
            syn.options.retain(|option| *option != Opt::Noop);
            assert_eq!(stamps_of(&syn).is_some(), lab.stamps);
            assert_eq!((&syn.clone().unstamped().options, syn.window), (&heard, window));
            client.send(RST, &[]);
            assert_eq!(lab.entries(), [0, 0]);
        }
    }
}

#[test]
fn a_client_may_use_its_port_again() {
    for lab in Http::both() {
        // Each with a number of its own: the same would be a replay.
        for (seq, lives) in [(900_000, false), (910_000, true), (90_000_000, false), (91_000_000, true)] {
            let (mut old, mut old_server) = lab.ready();
            let mut client = End { seq, ..lab.stranger() };
            let syn_ack = one(client.send(SYN, &[]));
            client.ack = syn_ack.seq;
            client.hear(&syn_ack);
            // The old connection lives until the new one has proven itself.
            assert_eq!(lab.entries(), [1, 1]);
            if lives {
                old_server.hear(&one(old.say(GET)));
                lab.respond(&mut old, &mut old_server, OK);
                // What was there has shown that it lives, so that this acknowledgement may be anybody's.
                client.send(ACK, &[]);
                assert_eq!(lab.entries(), [1, 1]);
            } else {
                assert_eq!((client.send(ACK, &[]), lab.entries()), (vec![], [0, 0]));
            }
            let server = lab.open(&mut client, GET);
            assert_eq!((lab.entries(), lab.version_of(&server)), ([1, 1], 1));
            client.send(RST, &[]);
            assert_eq!(lab.entries(), [0, 0]);
        }
    }
}
