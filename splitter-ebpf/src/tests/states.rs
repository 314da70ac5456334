//! Flows from the first packet to the last.
use super::*;

#[test]
fn a_syn_flood_stays_half_open() {
    let lab = Lab::new(false, TCP);
    lab.connect();
    for port in 0..1_000 {
        let client = SocketAddr::new(lab.client.ip(), 50_000 + port);
        lab.frame(&build(TCP, client, lab.vip, tcp::SYN, (1, 0), &[]), CLIENT_SIDE).run(&lab.maps);
        // A guess at the backend's sequence number does not promote the flow.
        lab.frame(&build(TCP, client, lab.vip, tcp::ACK, (2, 12345), &[]), CLIENT_SIDE).run(&lab.maps);
    }
    assert_eq!(lab.tcp_entries(), 2);
    assert_eq!(lab.maps.version(1).opened, 1);
}

/// The client's acknowledgement moves the flow on another CPU, while the backend sends its SYN-ACK again.
#[test]
fn a_flow_that_moves_under_a_packet_is_found() {
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.maps.delay(server, lab.client);
    let (_, bytes) = lab.reply(server, lab.client, tcp::SYN | tcp::ACK, &[]);
    assert_eq!(parse(&bytes).src, lab.vip);
}

/// The client's acknowledgement is late on one CPU, and another has seen the question behind it: who gives up then has asked.
#[test]
fn a_question_that_overtakes_the_handshakes_end_is_not_forgotten() {
    let lab = Lab::new(false, TCP);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    lab.reply(parse(&bytes).dst, lab.client, tcp::SYN | tcp::ACK, &[]);
    lab.send(tcp::ACK, b"question");
    lab.maps.delay(lab.client, lab.vip);
    lab.send(tcp::ACK, &[]);
    lab.maps.pass(500);
    lab.send(tcp::FIN | tcp::ACK, &[]);
    assert_eq!((lab.maps.version(1).drawn.abandoned, lab.maps.version(1).opened), (1, 1));
}

#[test]
fn both_fins_move_the_flow_out_of_the_way() {
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.send(tcp::FIN | tcp::ACK, &[]);
    assert_eq!(lab.tcp_entries(), 2, "half-closed flows live");
    let (_, bytes) = lab.reply(server, lab.client, tcp::ACK, b"still sending");
    assert_eq!(parse(&bytes).src, lab.vip);
    lab.reply(server, lab.client, tcp::FIN | tcp::ACK, &[]);
    assert_eq!((lab.sizes()[0], lab.sizes()[3]), (0, 2));
    assert_eq!(lab.maps.version(1).closed, 1);
    let (action, bytes) = lab.send(tcp::ACK, &[]);
    assert_eq!((action, parse(&bytes).dst), (Action::Redirect(BACKEND_SIDE), server), "the last ACK still gets through");
    // The client uses its port again: a new flow, whose handshake works.
    lab.connect();
    assert_eq!(lab.sizes()[3], 0);
}

/// Both FINs pass at once on two CPUs, and neither sees the other's: the flow must not outlive them.
#[test]
fn fins_that_miss_each_other_still_end_the_flow() {
    for again in [tcp::ACK, tcp::SYN] {
        let lab = Lab::new(false, TCP);
        let server = lab.connect();
        lab.maps.set_flags(server, lab.client, flow_flag::FIN | flow_flag::PEER_FIN);
        assert_eq!(lab.tcp_entries(), 2);
        lab.send(again, &[]);
        assert_eq!(lab.tcp_entries(), 0);
        assert_eq!(lab.maps.version(1).connections, if again == tcp::SYN { 2 } else { 1 });
    }
}

/// The client goes to the backend itself, without the VIP, from a port whose flow has ended.
#[test]
fn a_direct_connection_is_not_mistaken_for_an_ended_flow() {
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.send(tcp::RST, &[]);
    assert_eq!(lab.sizes()[3], 2);
    let (action, bytes) = lab.reply(server, lab.client, tcp::SYN | tcp::ACK, &[]);
    assert_eq!((action, parse(&bytes).src), (Action::Pass, server));
    let (_, bytes) = lab.reply(server, lab.client, tcp::ACK, b"data");
    assert_eq!(parse(&bytes).src, server);
}

#[test]
fn resets_are_counted_by_side() {
    let lab = Lab::new(true, TCP);
    lab.connect();
    lab.send(tcp::RST, &[]);
    let server = lab.connect();
    lab.reply(server, lab.client, tcp::RST | tcp::ACK, &[]);
    let counters = lab.maps.version(1);
    assert_eq!((counters.resets_client, counters.resets_backend, counters.closed), (1, 1, 2));
    assert_eq!(lab.tcp_entries(), 0);
}

#[test]
fn a_flow_keeps_its_backend_when_weights_change() {
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.maps.change_service(1, |service| {
        service.versions[0].end = 0;
        service.versions[1].end = 1 << 32;
    });
    let (_, bytes) = lab.send(tcp::ACK, b"more");
    assert_eq!(parse(&bytes).dst, server);
}

#[test]
fn draining_keeps_and_down_gives_up() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let server = lab.connect();
        let id = (1..=2).find(|id| backend(ipv6, *id) == server).expect("of v1");
        lab.maps.set_state(id, backend_state::DRAINING);
        let (_, bytes) = lab.send(tcp::ACK, b"more");
        assert_eq!(parse(&bytes).dst, server);
        lab.maps.set_state(id, backend_state::DOWN);
        let (action, bytes) = lab.send(tcp::ACK, b"more");
        let seen = parse(&bytes);
        assert_eq!((action, seen.rst, seen.src, seen.dst), (Action::Return(CLIENT_SIDE), true, lab.vip, lab.client));
        assert_eq!((lab.maps.counted(Reason::BackendDown), lab.tcp_entries()), (1, 0));
        assert_eq!((lab.maps.version(1).closed, lab.maps.version(1).resets_backend), (1, 1));
        // A new connection goes elsewhere.
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        assert_ne!(parse(&bytes).dst, server);
    }
}

#[test]
fn a_late_answer_becomes_the_clients_reset() {
    for ipv6 in [false, true] {
        for state in [backend_state::DOWN, backend_state::NONE] {
            let lab = Lab::new(ipv6, TCP);
            let server = lab.connect();
            lab.send(tcp::ACK, b"request");
            let id = (1..=2).find(|id| backend(ipv6, *id) == server).expect("of v1");
            lab.maps.set_state(id, state);
            let (action, bytes) = lab.reply(server, lab.client, tcp::ACK, &[9; 300]);
            assert_eq!(action, Action::Redirect(BACKEND_SIDE));
            assert_eq!(parse(&bytes), Seen { src: lab.vip, dst: lab.client, hops: 63, rst: true, payload: vec![] });
        }
    }
}

#[test]
fn datagrams_leave_a_backend_that_is_gone() {
    let lab = Lab::new(false, UDP);
    let (_, bytes) = lab.send(0, b"1");
    let first = parse(&bytes).dst;
    let id = (1..=2).find(|id| backend(false, *id) == first).expect("of v1");
    lab.maps.set_state(id, backend_state::NONE);
    let (_, bytes) = lab.send(0, b"2");
    assert_ne!(parse(&bytes).dst, first);
    assert_eq!((lab.maps.counted(Reason::UdpRedecided), lab.sizes()[1]), (1, 2));
}

#[test]
fn a_refused_connection_moves_to_another_backend() {
    let lab = Lab::new(false, TCP);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    let first = parse(&bytes).dst;
    let (action, _) = lab.reply(first, lab.client, tcp::RST | tcp::ACK, &[]);
    assert_eq!(action, Action::Drop, "the client will ask again");
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    let second = parse(&bytes).dst;
    assert_ne!(second, first);
    // Nobody is left: the client hears it.
    let (action, bytes) = lab.reply(second, lab.client, tcp::RST | tcp::ACK, &[]);
    assert_eq!((action, parse(&bytes).rst), (Action::Redirect(BACKEND_SIDE), true));
    let counters = lab.maps.version(1);
    assert_eq!((counters.refused, lab.maps.counted(Reason::RefusedHeldBack)), (2, 1));
}

#[test]
fn a_silent_backend_is_left_at_the_second_syn() {
    let lab = Lab::new(false, TCP);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    let first = parse(&bytes).dst;
    lab.maps.pass(1_000);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    assert_ne!(parse(&bytes).dst, first);
    assert_eq!((lab.maps.version(1).timeouts, lab.maps.version(1).connections), (1, 1));
    assert_eq!(lab.sizes()[2], 2, "the old half-open flow is gone");
}

#[test]
fn a_suspect_gets_new_flows_again_after_a_while() {
    let lab = Lab::new(false, TCP);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    let first = parse(&bytes).dst;
    lab.reply(first, lab.client, tcp::RST | tcp::ACK, &[]);
    // As the agent's sweep does.
    lab.maps.v4.forget_half();
    lab.maps.pass(6_000);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    assert_eq!(parse(&bytes).dst, first);
}

#[test]
fn nobody_to_serve_means_a_reset() {
    for (weights, reason) in [([0, 0], Reason::NoVersion), ([0, 100], Reason::NoBackend)] {
        let lab = Lab::weighted(false, TCP, weights);
        lab.maps.set_state(3, backend_state::DOWN);
        let (action, bytes) = lab.send(tcp::SYN, &[]);
        assert_eq!((action, parse(&bytes).rst), (Action::Return(CLIENT_SIDE), true));
        assert_eq!((lab.maps.counted(reason), lab.sizes()), (1, [0; 5]));
    }
}

#[test]
fn a_flow_that_was_forgotten_is_recovered() {
    let lab = Lab::new(false, TCP);
    let (action, bytes) = lab.send(tcp::ACK, b"in the middle");
    assert_eq!(action, Action::Redirect(BACKEND_SIDE));
    let server = parse(&bytes).dst;
    assert_eq!(lab.tcp_entries(), 0, "unproven");
    lab.reply(server, lab.client, tcp::ACK, b"known here");
    lab.send(tcp::ACK, &[]);
    assert_eq!((lab.tcp_entries(), lab.maps.counted(Reason::RecoveredFlow)), (2, 1));
}

#[test]
fn an_evicted_direction_is_put_back() {
    let lab = Lab::new(false, TCP);
    let server = lab.connect();
    lab.send(tcp::ACK, b"request");
    lab.maps.forget_reverse(server, lab.client);
    assert_eq!(lab.tcp_entries(), 1);
    lab.maps.pass(1_500);
    lab.send(tcp::ACK, b"again");
    assert_eq!((lab.tcp_entries(), lab.maps.counted(Reason::FlowEvicted)), (2, 1));
    let (_, bytes) = lab.reply(server, lab.client, tcp::ACK, b"response");
    assert_eq!(parse(&bytes).src, lab.vip);
}

fn all_to_v2(lab: &Lab) {
    lab.maps.change_service(1, |service| {
        service.versions[0].end = 0;
        service.versions[1].end = 1 << 32;
    });
}

/// Anybody can send a RST in a client's name, and nobody here knows its number: the connection keeps its backend, and goes back to `TCP` when
/// its ends show that they did not believe it.
#[test]
fn a_reset_that_nobody_believes_moves_nothing() {
    for ipv6 in [false, true] {
        for asked in [false, true] {
            let lab = Lab::new(ipv6, TCP);
            let server = lab.connect();
            if asked {
                lab.send(tcp::ACK, b"question");
                lab.reply(server, lab.client, tcp::ACK, b"answer");
            }
            all_to_v2(&lab);
            for round in 1..4 {
                let (_, bytes) = lab.send(tcp::RST, &[]);
                assert_eq!((parse(&bytes).dst, parse(&bytes).rst), (server, true), "its receiver judges it");
                assert_eq!((lab.sizes()[0], lab.sizes()[3]), (0, 2));
                // The backend's question alone says nothing: data may have been on its way.
                lab.reply(server, lab.client, tcp::ACK, &[]);
                assert_eq!(lab.tcp_entries(), 0);
                let (_, bytes) = lab.send(tcp::ACK, b"more");
                assert_eq!((parse(&bytes).dst, lab.tcp_entries()), (server, 0));
                // From elsewhere it says nothing.
                let wrong = build(TCP, server, lab.client, tcp::ACK, (5000, 1001), b"x");
                lab.frame(&wrong, CLIENT_SIDE).run(&lab.maps);
                assert_eq!(lab.tcp_entries(), 0);
                lab.reply(server, lab.client, tcp::ACK, &[]);
                assert_eq!((lab.sizes()[0], lab.sizes()[3]), (2, 0), "round {round}");
                let (_, bytes) = lab.reply(server, lab.client, tcp::ACK, b"answer");
                assert_eq!(parse(&bytes).src, lab.vip);
            }
            assert_eq!((lab.maps.version(1).closed, lab.maps.version(1).resets_client), (1, 1), "once");
            assert_eq!((lab.maps.version(2).connections, lab.sizes()[2]), (0, 0));
            lab.send(tcp::FIN | tcp::ACK, &[]);
            lab.reply(server, lab.client, tcp::FIN | tcp::ACK, &[]);
            assert_eq!((lab.sizes()[0], lab.maps.version(1).closed), (0, 1));
        }
    }
}

/// A RST and a SYN of somebody else: the connection goes on with its backend, while the new one is not open; then the new one does.
#[test]
fn a_reset_and_a_syn_move_nothing_until_a_handshake_is_over() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let server = lab.connect();
        lab.send(tcp::ACK, b"question");
        lab.reply(server, lab.client, tcp::ACK, b"answer");
        all_to_v2(&lab);
        lab.send(tcp::RST, &[]);
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        let other = parse(&bytes).dst;
        assert_eq!(other, backend(ipv6, 3));
        let send = |ack: u32, payload: &[u8]| {
            let mut frame = lab.frame(&build(TCP, lab.client, lab.vip, tcp::ACK, (1000, ack), payload), CLIENT_SIDE);
            frame.run(&lab.maps);
            parse(&frame.bytes).dst
        };
        assert_eq!(send(777, b"more"), server);
        lab.reply(other, lab.client, tcp::SYN | tcp::ACK, &[]);
        // The client's stack asks what that SYN-ACK means.
        assert_eq!((send(777, &[]), lab.tcp_entries()), (server, 0));
        lab.reply(server, lab.client, tcp::ACK, &[]);
        assert_eq!((send(777, b"more"), lab.tcp_entries()), (server, 2));
        // This time it is the client's own.
        lab.send(tcp::RST, &[]);
        lab.send(tcp::SYN, &[]);
        lab.reply(other, lab.client, tcp::SYN | tcp::ACK, &[]);
        assert_eq!((send(5001, &[]), lab.tcp_entries()), (other, 2));
        assert_eq!(send(5001, b"question"), other);
    }
}

/// Whose backend is down hears nothing of it any more, and each packet that is held back is counted.
#[test]
fn what_a_backend_that_is_down_says_is_dropped_by_name() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let (_, bytes) = lab.send(tcp::SYN, &[]);
        let server = parse(&bytes).dst;
        [1, 2].iter().for_each(|id| lab.maps.set_state(*id, backend_state::DOWN));
        let (action, _) = lab.reply(server, lab.client, tcp::SYN | tcp::ACK, &[]);
        assert_eq!((action, lab.maps.counted(Reason::BackendSilenced)), (Action::Drop, 1), "half open");

        let lab = Lab::new(ipv6, UDP);
        let (_, bytes) = lab.send(0, b"question");
        let server = parse(&bytes).dst;
        [1, 2].iter().for_each(|id| lab.maps.set_state(*id, backend_state::DOWN));
        let (action, _) = lab.reply(server, lab.client, 0, b"answer");
        assert_eq!((action, lab.maps.counted(Reason::BackendSilenced)), (Action::Drop, 1), "a datagram");
    }
}
