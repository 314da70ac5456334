//! Who guesses cookies, and the keys that they are made with.
use super::*;
use crate::env::Env;

const SECOND: u64 = 1_074;
/// What is agreed on with [`Http::client`].
const SAID: [Opt; 3] = [Opt::MaximumSegmentSize(1460), Opt::WindowScale(7), Opt::SelectiveAcknowledgementPermitted];

impl Http {
    /// Segments with data and wrong cookies, of so many clients.
    fn guess(&self, from: u32, count: u32) {
        for i in from..from + count {
            let me = SocketAddr::new(self.client.ip(), 1_024 + (i % 30_000) as u16);
            let guess = End { me, seq: i * 7, ack: i.wrapping_mul(0x9e37_79b1), ..self.stranger() };
            assert_eq!(guess.clone().say(GET), []);
        }
    }

    /// A client comes, is served, and goes; what the backend heard of it.
    fn served(&self) -> Vec<Opt> {
        let mut client = self.client();
        let syn = one(client.say(GET));
        let mut server = self.accept(&syn, GET);
        self.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
        let mut heard = syn.unstamped().options;
        heard.retain(|option| *option != Opt::Noop);
        heard
    }
}

#[test]
fn in_quiet_times_no_handshake_is_kept() {
    for lab in Http::both() {
        (0..20).for_each(|_| assert_eq!(lab.served(), SAID));
        lab.guess(0, 250);
        (0..20).for_each(|_| assert_eq!(lab.served(), SAID));
        assert_eq!((lab.maps.handshakes_kept(), lab.counted(Reason::CookieWrong), lab.counted(Reason::CookieGuarded)), (0, 250, 0));
    }
}

#[test]
fn where_many_guess_honest_clients_are_served_and_no_guess_at_24_bits_counts() {
    for lab in Http::both() {
        let mut early = lab.client();
        lab.guess(0, 300);
        // Its cookie was given before, and says more than is believed now.
        assert_eq!((early.say(GET), lab.entries()), (vec![], [0, 0]));
        lab.maps.pass(300);
        assert_eq!(one(early.again(ACK | PSH, GET)).flags, RST, "so that it begins anew");
        assert_eq!(lab.counted(Reason::CookieGuarded), 2);
        for round in 0..30 {
            assert_eq!(lab.served(), SAID, "round {round}");
            lab.guess(1_000 + round * 50, 50);
        }
        assert_eq!(lab.maps.handshakes_kept(), 30);
        // All 32 bits count, though the upper 24 are right.
        let client = lab.client();
        for bit in 0..8 {
            // The node's number is one lower.
            let forged = End { ack: (client.ack.wrapping_sub(1) ^ (1 << bit)).wrapping_add(1), ..client.clone() };
            assert!(forged.clone().say(GET).iter().all(|wire| wire.flags == RST), "bit {bit}");
            assert_eq!(lab.entries(), [0, 0], "bit {bit}");
        }
        lab.client().send(RST, &[]);
    }
}

#[test]
fn a_service_is_guarded_alone_and_for_a_time() {
    for lab in Http::both() {
        let vip = SocketAddr::new(lab.vip.ip(), 81);
        let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto: TCP, pad: 0 };
        lab.maps.serve(2, frontend, split_by::CONNECTION, &[(100, &[1, 2]), (0, &[3]), (0, &[4])]);
        lab.maps.serve_http(2, MSS, Some(rules()));
        lab.guess(0, 300);
        let mut client = End { peer: vip, ..lab.stranger() };
        one(client.send(SYN, &[]));
        assert_eq!(lab.maps.handshakes_kept(), 0, "of the other service");
        // A handshake that was kept is good after that time, too.
        lab.maps.pass(100 * SECOND);
        let mut late = lab.client();
        assert_eq!(lab.maps.handshakes_kept(), 1);
        lab.maps.pass(30 * SECOND);
        let mut server = lab.open(&mut late, GET);
        lab.respond(&mut late, &mut server, OK);
        late.send(RST, &[]);
        lab.served();
        assert_eq!(lab.maps.handshakes_kept(), 1, "quiet again");
    }
}

/// What nobody can tell from a client that is remembered: nothing is agreed on that a cookie could not say.
#[test]
fn the_client_whose_cookie_would_say_nothing() {
    for lab in Http::both() {
        let options = [Opt::MaximumSegmentSize(536), Opt::WindowScale(0)];
        let syn = End { seq: lab.fresh(), ..lab.stranger() }.wire(SYN, &[]).saying(&options);
        let answer = one(lab.run(&syn, CLIENT_SIDE));
        assert!(!answer.options.iter().any(|option| matches!(option, Opt::WindowScale(_))), "{answer:?}");
        let mut client = lab.client_with(lab.fresh(), &options);
        let syn = one(client.say(GET));
        lab.accept(&syn, GET);
        client.send(RST, &[]);
        // It is not there when the handshake was forgotten either.
        lab.guess(0, 300);
        let mut client = lab.client();
        lab.maps.forget_handshakes();
        assert_eq!((client.say(GET), lab.entries()), (vec![], [0, 0]));
    }
}

/// Without an agent nobody draws keys: the two that there are go on in turn.
#[test]
fn two_keys_take_turns_for_ever() {
    for lab in Http::both() {
        let mut numbers = std::collections::HashSet::new();
        for _ in 0..40 {
            let mut client = lab.client();
            numbers.insert(client.ack);
            // Over every boundary between steps and epochs.
            lab.maps.pass(63 * SECOND);
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
        assert_eq!((numbers.len(), lab.counted(Reason::UnknownConnection), lab.counted(Reason::CookieWrong)), (40, 0, 0));
    }
}

/// The key that is not in use is replaced where an agent does it, and no handshake under way notices.
#[test]
fn a_new_key_breaks_no_handshake() {
    for lab in Http::both() {
        for round in 0..32u64 {
            let counter = (lab.maps.now() >> COOKIE_STEP) as u32;
            let mut client = lab.client();
            if let Some(slot) = cookie_key_to_replace(lab.maps.now()) {
                assert_eq!(slot, 1 - cookie_epoch(counter));
                lab.maps.set_cookie_key(slot as usize, [round, 77]);
            }
            lab.maps.pass(30 * SECOND);
            let mut server = lab.open(&mut client, GET);
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
        assert_eq!((lab.counted(Reason::UnknownConnection), lab.counted(Reason::CookieWrong)), (0, 0));
        // The key in use does matter.
        let mut client = lab.client();
        let slot = cookie_epoch((lab.maps.now() >> COOKIE_STEP) as u32) as usize;
        lab.maps.set_cookie_key(slot, [1, 78]);
        assert_eq!((client.say(GET), lab.counted(Reason::CookieWrong)), (vec![], 1));
    }
}
