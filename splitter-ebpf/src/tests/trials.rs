//! Every connection is one trial, and ends in one outcome.
use super::{
    icmp::{link, open, unreachable},
    *,
};
use crate::bytes::Route;

fn both(proto: u8) -> [Lab; 2] {
    [false, true].map(|ipv6| Lab::new(ipv6, proto))
}

impl Lab {
    fn drawn(&self) -> Outcomes {
        self.maps.version(1).drawn
    }

    /// As [`Lab::reply`], by the interface of the clients.
    fn forge(&self, from: SocketAddr, flags: u8, payload: &[u8]) -> Action {
        self.frame(&build(self.proto, from, self.client, flags, (5000, 1001), payload), CLIENT_SIDE).run(&self.maps)
    }

    /// An ICMP error about a packet of the client to a backend comes in.
    fn icmp(&self, sent: &[u8], by: u32, admin: bool) -> Action {
        let from = parse(sent).dst.ip();
        self.frame(&unreachable(from, self.client.ip(), sent, admin), by).run(&self.maps)
    }

    fn is_over(&self, expected: Outcomes) {
        assert_eq!(self.drawn(), expected);
        assert_eq!((self.maps.pending(1), self.maps.version(1).ruled), (0, Outcomes::default()));
    }
}

const ONE: Outcomes = Outcomes {
    trials: 1,
    answered: 0,
    refused: 0,
    unopened: 0,
    abandoned: 0,
    closed: 0,
    cut: 0,
    unavailable: 0,
    overdue: 0,
    status: [0; 6],
    failed: 0,
};

#[test]
fn an_answer_ends_a_trial() {
    for lab in both(TCP) {
        lab.send(tcp::SYN, &[]);
        assert_eq!(lab.maps.pending(1), 1, "the SYN waits");
        let server = lab.connect();
        lab.is_over(ONE);
        lab.send(tcp::ACK, b"request");
        assert_eq!(lab.maps.pending(1), 1, "the request waits");
        lab.reply(server, lab.client, tcp::ACK, &[]);
        assert_eq!(lab.maps.pending(1), 1, "an acknowledgement is no answer");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
        // Later requests of the connection are no trials of layer 4.
        lab.send(tcp::ACK, b"request");
        lab.send(tcp::RST, &[]);
        lab.is_over(Outcomes { answered: 1, ..ONE });
    }
}

#[test]
fn a_request_may_come_with_the_last_of_the_handshake() {
    for lab in both(TCP) {
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        lab.reply(parse(&bytes).dst, lab.client, tcp::SYN | tcp::ACK, &[]);
        lab.send(tcp::ACK, b"request");
        assert_eq!(lab.maps.pending(1), 1);
        lab.reply(parse(&bytes).dst, lab.client, tcp::ACK | tcp::FIN, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
    }
}

#[test]
fn a_server_may_speak_first() {
    for lab in both(TCP) {
        let server = lab.connect();
        lab.reply(server, lab.client, tcp::ACK, b"220 hello");
        lab.is_over(Outcomes { answered: 1, ..ONE });
        lab.send(tcp::ACK, b"HELO");
        lab.is_over(Outcomes { answered: 1, ..ONE });
    }
}

#[test]
fn a_client_that_gives_up_has_been_abandoned() {
    for (flags, after) in [(tcp::RST, 10), (tcp::FIN | tcp::ACK, 500), (tcp::RST | tcp::ACK, 3_000)] {
        for lab in both(TCP) {
            let server = lab.connect();
            lab.send(tcp::ACK, b"request");
            lab.maps.pass(after);
            lab.send(flags, &[]);
            lab.is_over(Outcomes { abandoned: 1, ..ONE });
            // Whatever the server says now.
            lab.reply(server, lab.client, tcp::ACK, b"response");
            lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
            lab.is_over(Outcomes { abandoned: 1, ..ONE });
        }
    }
}

#[test]
fn a_client_that_has_said_all_waits() {
    for lab in both(TCP) {
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.send(tcp::FIN | tcp::ACK, &[]);
        assert_eq!(lab.maps.pending(1), 1);
        lab.reply(server, lab.client, tcp::ACK | tcp::FIN, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
    }
}

#[test]
fn a_client_that_asks_nothing_is_no_evidence() {
    for flags in [tcp::RST, tcp::FIN | tcp::ACK] {
        for lab in both(TCP) {
            let server = lab.connect();
            lab.send(flags, &[]);
            lab.reply(server, lab.client, tcp::FIN | tcp::ACK, &[]);
            lab.is_over(ONE);
        }
    }
    // A server may close what nobody uses.
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.maps.pass(60_000);
    lab.reply(server, lab.client, tcp::FIN | tcp::ACK, &[]);
    lab.is_over(ONE);
}

#[test]
fn a_backend_that_ends_it_without_a_byte_has_closed() {
    for flags in [tcp::FIN | tcp::ACK, tcp::RST | tcp::ACK] {
        for asks in [false, true] {
            for lab in both(TCP) {
                let server = lab.connect();
                if asks {
                    lab.send(tcp::ACK, b"request");
                }
                lab.reply(server, lab.client, flags, &[]);
                lab.is_over(Outcomes { closed: 1, ..ONE });
                lab.send(tcp::FIN | tcp::ACK, &[]);
                lab.is_over(Outcomes { closed: 1, ..ONE });
            }
        }
    }
}

#[test]
fn a_reset_in_the_middle_cuts() {
    for lab in both(TCP) {
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"resp");
        lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
        lab.is_over(Outcomes { answered: 1, cut: 1, ..ONE });
        // A client that has closed does not care.
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.send(tcp::FIN | tcp::ACK, &[]);
        lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
        lab.is_over(Outcomes { trials: 2, answered: 2, cut: 1, ..ONE });
    }
}

#[test]
fn what_comes_too_late_is_overdue() {
    for lab in both(TCP) {
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.maps.pass(5_100);
        assert_eq!(lab.maps.pending(1), 1);
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { overdue: 1, ..ONE });
        lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
        lab.is_over(Outcomes { overdue: 1, ..ONE });
    }
}

#[test]
fn a_handshake_that_comes_too_late_is_overdue_and_nothing_else() {
    for lab in both(TCP) {
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        lab.maps.pass(6_000);
        let server = parse(&bytes).dst;
        lab.reply(server, lab.client, tcp::SYN | tcp::ACK, &[]);
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { overdue: 1, ..ONE });
    }
}

#[test]
fn a_note_that_was_evicted_is_made_up_for() {
    for asks in [false, true] {
        let lab = Lab::new(false, TCP);
        let server = lab.connect();
        if asks {
            lab.send(tcp::ACK, b"request");
        }
        lab.maps.v4.forget_half();
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
    }
}

#[test]
fn the_nodes_own_refusals_are_the_versions() {
    for (proto, ipv6) in [(TCP, false), (TCP, true), (UDP, false), (UDP, true)] {
        let lab = Lab::new(ipv6, proto);
        [1, 2].iter().for_each(|id| lab.maps.set_state(*id, backend_state::DOWN));
        lab.send(tcp::SYN, b"");
        lab.is_over(Outcomes { unavailable: 1, ..ONE });
        assert_eq!(lab.maps.version(1).connections, 1);
    }
    // In the middle of a connection: nobody asked for one.
    let lab = Lab::new(false, TCP);
    [1, 2].iter().for_each(|id| lab.maps.set_state(*id, backend_state::DOWN));
    lab.send(tcp::ACK, b"more");
    lab.is_over(Outcomes::default());
}

#[test]
fn a_backend_that_goes_down_under_a_connection() {
    for (answered, expected) in [(false, Outcomes { unavailable: 1, ..ONE }), (true, Outcomes { answered: 1, cut: 1, ..ONE })] {
        for lab in both(TCP) {
            let server = lab.connect();
            lab.send(tcp::ACK, b"request");
            if answered {
                lab.reply(server, lab.client, tcp::ACK, b"resp");
            }
            [1, 2].iter().for_each(|id| lab.maps.set_state(*id, backend_state::DOWN));
            lab.send(tcp::ACK, b"more");
            lab.is_over(expected);
        }
    }
    // That the policy moves it is nobody's failure.
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.send(tcp::ACK, b"request");
    lab.maps.set_flags(server, lab.client, flow_flag::RESET);
    lab.send(tcp::ACK, b"more");
    lab.is_over(ONE);
}

#[test]
fn tries_of_several_backends_are_one_trial() {
    for lab in both(TCP) {
        let first = parse(&lab.send(tcp::SYN, &[]).1).dst;
        assert_eq!(lab.reply(first, lab.client, tcp::RST | tcp::ACK, &[]).0, Action::Drop);
        assert_eq!(lab.maps.pending(1), 1);
        let second = lab.connect();
        assert_ne!(second, first);
        lab.send(tcp::ACK, b"request");
        lab.reply(second, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
        let counters = lab.maps.version(1);
        assert_eq!((counters.connections, counters.opened, counters.refused), (1, 1, 1));
    }
}

#[test]
fn a_trial_is_refused_when_nobody_is_left() {
    for lab in both(TCP) {
        for _ in 0..2 {
            let (_, bytes) = lab.send(tcp::SYN, &[]);
            lab.reply(parse(&bytes).dst, lab.client, tcp::RST | tcp::ACK, &[]);
        }
        lab.is_over(Outcomes { refused: 1, ..ONE });
        assert_eq!((lab.maps.version(1).connections, lab.maps.version(1).refused), (1, 2));
        assert_eq!(lab.sizes(), [0; 5]);
    }
}

/// Weights move between two SYNs of a connection.
#[test]
fn a_trial_belongs_to_the_version_that_has_it() {
    let lab = Lab::new(false, TCP);
    let first = parse(&lab.send(tcp::SYN, &[]).1).dst;
    lab.reply(first, lab.client, tcp::RST | tcp::ACK, &[]);
    lab.maps.change_service(1, |service| {
        service.versions[0].end = 0;
        service.versions[1].end = 1 << 32;
    });
    assert_eq!(lab.connect(), backend(false, 3));
    assert_eq!((lab.maps.pending(1), lab.maps.version(2).drawn.trials, lab.maps.version(2).connections), (0, 1, 1));
}

/// What becomes of an error that the client hears.
const TOLD: Action = Action::Redirect(BACKEND_SIDE);

#[test]
fn icmp_refuses_like_a_reset() {
    for admin in [false, true] {
        for lab in both(TCP) {
            let (_, sent) = lab.send(tcp::SYN, &[]);
            let first = parse(&sent).dst;
            // From elsewhere it says nothing.
            assert_eq!(lab.icmp(&sent, CLIENT_SIDE, admin), TOLD);
            assert_eq!((lab.maps.version(1).refused, lab.maps.counted(Reason::WrongSide)), (0, 1));
            assert_eq!(lab.icmp(&sent, BACKEND_SIDE, admin), Action::Drop, "the client will ask again");
            let id = (1..=2).find(|id| backend(lab.ipv6(), *id) == first).expect("of v1");
            assert!(lab.maps.suspected_now(id));
            let (_, sent) = lab.send(tcp::SYN, &[]);
            assert_ne!(parse(&sent).dst, first);
            let second = parse(&sent).dst;
            let mut told = lab.frame(&unreachable(second.ip(), lab.client.ip(), &sent, admin), BACKEND_SIDE);
            assert_eq!(told.run(&lab.maps), TOLD, "nobody is left: the client hears it");
            let (from, to, quoted) = open(&told.bytes);
            let quoted = lax(&link(quoted, lab.ipv6()));
            assert_eq!((from, to, quoted.0, quoted.1), (lab.vip.ip(), lab.client.ip(), lab.client, lab.vip));
            assert_eq!(lab.maps.counted(Reason::IcmpTranslated), 2);
            lab.is_over(Outcomes { refused: 1, ..ONE });
        }
    }
}

#[test]
fn icmp_of_the_node_itself_is_its_own_refusal() {
    for lab in both(TCP) {
        lab.maps.set_state(2, backend_state::DOWN);
        lab.maps.set_state(1, backend_state::DOWN);
        lab.maps.change_service(1, |service| {
            service.versions[0].end = 0;
            service.versions[1].end = 1 << 32;
        });
        let mut syn = lab.frame(&build(TCP, lab.client, lab.vip, tcp::SYN, (1000, 0), &[]), CLIENT_SIDE);
        syn.route = Route::Stack;
        assert_eq!(syn.run(&lab.maps), Action::Pass, "the stack knows more routes, or says that there is none");
        let mut error = lab.frame(&unreachable(lab.vip.ip(), lab.client.ip(), &syn.bytes, false), CLIENT_SIDE);
        (error.local, error.route) = (true, Route::Stack);
        assert_eq!(error.run(&lab.maps), Action::Pass);
        assert_eq!((lab.maps.version(2).drawn, lab.maps.pending(2)), (Outcomes { unavailable: 1, ..ONE }, 0));
    }
}

/// A client that is told by ICMP may send its SYN again: it is the same connection, and its trial has ended.
#[test]
fn a_client_that_does_not_listen_is_one_client() {
    for lab in both(TCP) {
        lab.maps.set_state(1, backend_state::DOWN);
        lab.maps.change_service(1, |service| (service.versions[0].size, service.versions[0].table) = (1, 2));
        for _ in 0..3 {
            let (_, sent) = lab.send(tcp::SYN, &[]);
            assert_eq!(lab.icmp(&sent, BACKEND_SIDE, false), TOLD);
            lab.maps.pass(1_000);
        }
        lab.is_over(Outcomes { refused: 1, ..ONE });
        assert_eq!((lab.maps.version(1).connections, lab.maps.version(1).refused), (1, 3));
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { refused: 1, ..ONE });
        assert_eq!(lab.maps.version(1).opened, 1);
    }
}

/// An open connection outlives it (RFC 1122, 4.2.3.9).
#[test]
fn icmp_is_a_hint_to_an_open_connection() {
    for lab in both(TCP) {
        lab.connect();
        let (_, sent) = lab.send(tcp::ACK, b"request");
        assert_eq!(lab.icmp(&sent, BACKEND_SIDE, false), TOLD);
        assert_eq!((lab.maps.version(1).refused, lab.maps.pending(1), lab.tcp_entries()), (0, 1, 2));
    }
}

#[test]
fn a_refused_datagram_is_the_last_of_its_flow() {
    for admin in [false, true] {
        for lab in both(UDP) {
            let (_, sent) = lab.send(0, b"1");
            let first = parse(&sent).dst;
            assert_eq!(lab.icmp(&sent, CLIENT_SIDE, admin), TOLD);
            assert_eq!(lab.maps.version(1).refused, 0);
            assert_eq!(lab.icmp(&sent, BACKEND_SIDE, admin), Action::Drop);
            assert_eq!((lab.drawn(), lab.sizes()), (Outcomes { refused: 1, ..ONE }, [0; 5]));
            let (_, sent) = lab.send(0, b"2");
            let second = parse(&sent).dst;
            assert_ne!(second, first);
            lab.reply(second, lab.client, 0, b"2");
            lab.is_over(Outcomes { trials: 2, answered: 1, refused: 1, ..ONE });
            // Clients that come now are spared.
            for port in 0..50 {
                let client = SocketAddr::new(lab.client.ip(), 50_000 + port);
                let mut frame = lab.frame(&build(UDP, client, lab.vip, 0, (0, 0), b"x"), CLIENT_SIDE);
                frame.run(&lab.maps);
                assert_eq!(parse(&frame.bytes).dst, second);
            }
            // In the middle, and with nobody left.
            assert_eq!(lab.icmp(&sent, BACKEND_SIDE, admin), TOLD);
            assert_eq!(lab.drawn().cut, 1);
        }
    }
}

#[test]
fn a_datagram_that_nobody_answers_says_nothing() {
    for lab in both(UDP) {
        let (_, sent) = lab.send(0, b"1");
        lab.is_over(ONE);
        assert_eq!(lab.forge(parse(&sent).dst, 0, b"forged"), Action::Neighbour(BACKEND_SIDE));
        lab.is_over(ONE);
    }
}

#[test]
fn a_copy_of_a_syn_is_no_failure() {
    for lab in both(TCP) {
        let first = parse(&lab.send(tcp::SYN, &[]).1).dst;
        for _ in 0..70 {
            lab.maps.pass(10);
            assert_eq!(parse(&lab.send(tcp::SYN, &[]).1).dst, first);
        }
        assert_eq!((lab.maps.version(1).timeouts, lab.maps.pending(1), lab.sizes()[2]), (0, 1, 2));
        assert!(!lab.maps.suspected_now(1) && !lab.maps.suspected_now(2));
        lab.maps.pass(200);
        assert_ne!(parse(&lab.send(tcp::SYN, &[]).1).dst, first);
        assert_eq!(lab.maps.version(1).timeouts, 1);
    }
}

#[test]
fn a_client_that_gives_up_its_syn() {
    for (after, unopened) in [(1, 0), (500, 0), (1_000, 1)] {
        for lab in both(TCP) {
            lab.send(tcp::SYN, &[]);
            lab.maps.pass(after);
            lab.send(tcp::RST, &[]);
            lab.is_over(Outcomes { unopened, ..ONE });
        }
    }
}

/// A client that takes its SYN-ACK for a stranger's resets it; that is no failure either.
#[test]
fn an_address_that_did_not_ask_is_no_evidence() {
    for lab in both(TCP) {
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        lab.reply(parse(&bytes).dst, lab.client, tcp::SYN | tcp::ACK, &[]);
        lab.maps.pass(2_000);
        lab.send(tcp::RST, &[]);
        lab.is_over(ONE);
    }
}

#[test]
fn an_older_connection_that_is_reset_first() {
    for lab in both(TCP) {
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        lab.reply(parse(&bytes).dst, lab.client, tcp::ACK, &[]);
        lab.send(tcp::RST, &[]);
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.is_over(Outcomes { answered: 1, ..ONE });
        assert_eq!((lab.maps.version(1).connections, lab.maps.version(1).opened), (1, 1));
    }
}

#[test]
fn resets_in_a_backends_name_do_not_vote() {
    for lab in both(TCP) {
        let server = parse(&lab.send(tcp::SYN, &[]).1).dst;
        assert_eq!(lab.forge(server, tcp::RST | tcp::ACK, &[]), Action::Redirect(BACKEND_SIDE));
        assert_eq!((lab.maps.version(1).refused, lab.sizes()[2], lab.maps.pending(1)), (0, 2, 1));
        lab.connect();
        for flags in [tcp::RST | tcp::ACK, tcp::FIN | tcp::ACK] {
            lab.forge(server, flags, &[]);
            assert_eq!((lab.tcp_entries(), lab.drawn()), (2, ONE));
        }
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        lab.forge(server, tcp::RST | tcp::ACK, &[]);
        assert_eq!(lab.tcp_entries(), 2);
        lab.is_over(Outcomes { answered: 1, ..ONE });
        assert!(!lab.maps.suspected_now(1) && !lab.maps.suspected_now(2));
    }
}

/// Where routes are not the same both ways connections work, and say nothing of the version.
#[test]
fn answers_by_another_interface_work_and_do_not_vote() {
    for lab in both(TCP) {
        let server = parse(&lab.send(tcp::SYN, &[]).1).dst;
        lab.forge(server, tcp::SYN | tcp::ACK, &[]);
        lab.send(tcp::ACK, b"request");
        assert_eq!(lab.tcp_entries(), 2);
        assert_eq!(lab.forge(server, tcp::ACK, b"response"), Action::Redirect(BACKEND_SIDE));
        lab.is_over(ONE);
        lab.forge(server, tcp::RST | tcp::ACK, &[]);
        assert_eq!(lab.tcp_entries(), 0);
        lab.is_over(ONE);
    }
    // The backend's own word comes later, and counts.
    let lab = Lab::new(false, TCP);
    let server = parse(&lab.send(tcp::SYN, &[]).1).dst;
    let mut forged = lab.frame(&build(TCP, server, lab.client, tcp::SYN | tcp::ACK, (9, 1001), &[]), CLIENT_SIDE);
    forged.run(&lab.maps);
    assert_eq!(lab.maps.pending(1), 1);
    lab.connect();
    lab.send(tcp::ACK, b"request");
    lab.reply(server, lab.client, tcp::ACK, b"response");
    lab.is_over(Outcomes { answered: 1, ..ONE });
}

/// Routes name the bridge, and packets are seen at its port.
#[test]
fn a_port_of_the_interface_is_the_interface() {
    let lab = Lab::new(false, TCP);
    lab.maps.add_iface(7, Iface { upper: BACKEND_SIDE, ..Iface::default() });
    let server = parse(&lab.send(tcp::SYN, &[]).1).dst;
    let mut refusal = lab.frame(&build(TCP, server, lab.client, tcp::RST | tcp::ACK, (0, 1001), &[]), 7);
    assert_eq!(refusal.run(&lab.maps), Action::Drop);
    assert_eq!((lab.maps.version(1).refused, lab.maps.counted(Reason::WrongSide)), (1, 0));
}

#[test]
fn half_of_the_backends_are_suspected_at_most() {
    for lab in both(TCP) {
        for port in 0..40 {
            let client = SocketAddr::new(lab.client.ip(), 50_000 + port);
            let mut syn = lab.frame(&build(TCP, client, lab.vip, tcp::SYN, (1000, 0), &[]), CLIENT_SIDE);
            syn.run(&lab.maps);
            lab.reply(parse(&syn.bytes).dst, client, tcp::RST | tcp::ACK, &[]);
            assert!([1, 2].iter().filter(|id| lab.maps.suspected_now(**id)).count() == 1);
        }
        lab.maps.pass(6_000);
        assert!(!lab.maps.suspected_now(1) && !lab.maps.suspected_now(2));
        // A version of one backend has nobody to spare.
        let lab = Lab::weighted(lab.ipv6(), TCP, [0, 100]);
        lab.send(tcp::SYN, &[]);
        lab.reply(backend(lab.ipv6(), 3), lab.client, tcp::RST | tcp::ACK, &[]);
        assert!(!lab.maps.suspected_now(3));
        assert_eq!(lab.maps.version(2).drawn.refused, 1);
    }
}

#[test]
fn what_a_rule_sends_is_counted_apart() {
    for proto in [TCP, UDP] {
        let lab = Lab::new(false, proto);
        lab.maps.add_rule(1, addr("10.1.0.0".parse().expect("ok")), 112, 1);
        let server = if proto == TCP { lab.connect() } else { backend(false, 3) };
        lab.send(tcp::ACK, b"request");
        lab.reply(server, lab.client, tcp::ACK, b"response");
        let counters = lab.maps.version(2);
        assert_eq!((counters.drawn, counters.ruled), (Outcomes::default(), Outcomes { answered: 1, ..ONE }));
        let samples = |ruled| [Measure::Connect, Measure::FirstByte].map(|measure| lab.maps.samples_of(2, measure, ruled));
        assert_eq!([samples(false), samples(true)], [[0, 0], [(proto == TCP) as u32, 1]]);
        assert_eq!(lab.maps.pending(2), 0);
        if proto == TCP {
            lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
            assert_eq!(lab.maps.version(2).ruled.cut, 1);
        }
        lab.maps.set_state(3, backend_state::DOWN);
        let other = SocketAddr::new(lab.client.ip(), 50_000);
        lab.frame(&build(proto, other, lab.vip, tcp::SYN, (1, 0), &[]), CLIENT_SIDE).run(&lab.maps);
        assert_eq!((lab.maps.version(2).drawn.trials, lab.maps.version(2).ruled.unavailable), (0, 1));
    }
}
