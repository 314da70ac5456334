//! What becomes of requests: every one is one trial and has one outcome.
use super::*;

/// A lab whose trials are entered as pending, and overdue after 5 s.
fn labs() -> Vec<Http> {
    let labs = Http::both();
    labs.iter().for_each(|lab| lab.maps.time_trials());
    labs
}

fn drawn(lab: &Http) -> Outcomes {
    lab.maps.version(1).drawn
}

/// Ends what a test has left.
fn hang_up(client: &mut End<'_>) {
    client.send(RST, &[]);
}

const LONG: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello";
const CHUNKED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
const ENDLESS: &[u8] = b"HTTP/1.0 200 OK\r\n\r\nhello";

#[test]
fn answers_are_counted_by_status_and_apart_by_rule() {
    for lab in labs() {
        let (mut client, mut server) = lab.ready();
        assert_eq!(lab.maps.pending(1), 0);
        for (status, n) in [(404, 1), (503, 2), (200, 3)] {
            server.hear(&one(client.say(GET)));
            assert_eq!(lab.maps.pending(1), 1);
            let text = format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
            lab.respond(&mut client, &mut server, text.as_bytes());
            assert_eq!((lab.maps.pending(1), drawn(&lab).answered), (0, n + 1));
        }
        let expected = Outcomes { trials: 4, answered: 4, status: [0, 0, 2, 0, 1, 1], failed: 1, ..Outcomes::default() };
        assert_eq!((drawn(&lab), lab.maps.version(1).ruled), (expected, Outcomes::default()));
        // A rule sends one to version 2, and one back to version 1.
        let syn = one(client.say(GET2));
        let mut other = lab.accept(&syn, GET2);
        lab.respond(&mut client, &mut other, OK);
        let ruled = Outcomes { trials: 1, answered: 1, status: [0, 0, 1, 0, 0, 0], ..Outcomes::default() };
        let version = lab.maps.version(2);
        assert_eq!((version.drawn, version.ruled, lab.maps.pending(2)), (Outcomes::default(), ruled, 0));
        let samples = |version, ruled| [Measure::Connect, Measure::FirstByte].map(|measure| lab.maps.samples_of(version, measure, ruled));
        assert_eq!([samples(1, false), samples(1, true), samples(2, false), samples(2, true)], [[1, 4], [0, 0], [0, 0], [1, 1]]);
        hang_up(&mut client);
    }
}

#[test]
fn a_service_says_what_fails() {
    for lab in labs() {
        lab.maps.change_service(1, |service| service.failing[(404 - 100) / 64] |= 1 << ((404 - 100) % 64));
        lab.maps.change_backends(|backend| backend.timing |= splitter_common::abi::trial::timing::CODES);
        let (mut client, mut server) = lab.ready();
        for status in [404, 403, 500] {
            server.hear(&one(client.say(GET)));
            lab.respond(&mut client, &mut server, format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes());
        }
        assert_eq!((drawn(&lab).answered, drawn(&lab).failed), (4, 1));
        hang_up(&mut client);
    }
}

#[test]
fn who_waits_too_long_is_overdue_and_nothing_else() {
    for lab in labs() {
        // Answered after all.
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.maps.pass(5_100);
        assert_eq!((lab.maps.pending(1), drawn(&lab).overdue), (1, 0));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((lab.maps.pending(1), drawn(&lab).overdue, drawn(&lab).answered), (0, 1, 1));
        // Left by its client.
        server.hear(&one(client.say(GET)));
        lab.maps.pass(5_100);
        hang_up(&mut client);
        let expected = Outcomes { trials: 3, answered: 1, overdue: 2, status: [0, 0, 1, 0, 0, 0], ..Outcomes::default() };
        assert_eq!((lab.maps.pending(1), drawn(&lab)), (0, expected));
        // Older than the slots go back: it stays where it is, until the slot is used again.
        lab.maps.pass(60_000);
        let (mut client, _) = lab.ready();
        one(client.say(GET));
        lab.maps.pass(60_000);
        hang_up(&mut client);
        assert_eq!((drawn(&lab).overdue, lab.maps.pending(1)), (2, 1));
    }
}

#[test]
fn a_client_that_gives_up_counts_at_once() {
    for lab in labs() {
        for (flags, how) in [(RST, 0), (FIN | ACK, 1)] {
            let (mut client, mut server) = lab.ready();
            server.hear(&one(client.say(GET)));
            lab.maps.pass(500);
            client.send(flags, &[]);
            assert_eq!((drawn(&lab).abandoned, lab.maps.pending(1)), (how + 1, 0));
            if flags != RST {
                // What comes later does not count again.
                server.say(OK);
                hang_up(&mut client);
            }
            lab.maps.pass(10_000);
        }
        // A FIN right behind the request says that there is no more to come.
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        server.hear(&one(client.send(FIN | ACK, &[])));
        client.hear(&one(server.say(OK)));
        assert_eq!((drawn(&lab).abandoned, drawn(&lab).answered), (2, 4));
        hang_up(&mut client);
        lab.maps.pass(10_000);
        // Before it has sent all, it waits for nothing: a body of 100 bytes of which none came, or one of chunks.
        for body in ["Content-Length: 100", "Transfer-Encoding: chunked"] {
            let (mut client, _) = lab.ready();
            one(client.say(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}\r\n\r\n").as_bytes()));
            assert_eq!(lab.maps.pending(1), 0);
            lab.maps.pass(6_000);
            hang_up(&mut client);
            lab.maps.pass(10_000);
        }
        let expected = Outcomes { trials: 10, answered: 6, abandoned: 2, status: [0, 0, 6, 0, 0, 0], ..Outcomes::default() };
        assert_eq!(drawn(&lab), expected);
    }
}

#[test]
fn a_client_that_gives_up_before_a_backend_took_it_counts_too() {
    for lab in labs() {
        for flags in [RST, FIN | ACK] {
            let mut client = lab.client();
            one(client.say(GET));
            assert_eq!(lab.maps.pending(1), 1);
            lab.maps.pass(500);
            client.send(flags, &[]);
            assert_eq!(lab.maps.pending(1), 0);
            hang_up(&mut client);
            lab.maps.pass(10_000);
        }
        assert_eq!(drawn(&lab), Outcomes { trials: 2, unopened: 2, ..Outcomes::default() });
        // Its port again, for another connection.
        let mut client = lab.client();
        one(client.say(GET));
        lab.maps.pass(500);
        let mut next = lab.client_with(90_000, &[]);
        one(next.say(GET));
        assert_eq!((drawn(&lab).trials, drawn(&lab).abandoned, lab.maps.pending(1)), (4, 1, 1));
        hang_up(&mut next);
    }
}

#[test]
fn backends_that_end_the_connection_are_told_by_when() {
    for lab in labs() {
        let rounds: [(&[u8], u8, [u64; 3]); 9] = [
            (b"", FIN | ACK, [0, 1, 0]),
            (b"", RST | ACK, [0, 1, 0]),
            (LONG, FIN | ACK, [1, 0, 1]),
            (LONG, RST | ACK, [1, 0, 1]),
            (CHUNKED, FIN | ACK, [1, 0, 1]),
            (CHUNKED, RST | ACK, [1, 0, 1]),
            (ENDLESS, FIN | ACK, [1, 0, 0]),
            (ENDLESS, RST | ACK, [1, 0, 1]),
            (OK, FIN | ACK, [1, 0, 0]),
        ];
        for (response, flags, expected) in rounds {
            let before = drawn(&lab);
            let mut client = lab.client();
            let mut server = lab.open(&mut client, GET);
            if !response.is_empty() {
                client.hear(&one(server.say(response)));
            }
            server.send(flags, &[]);
            let now = drawn(&lab);
            let found = [now.answered - before.answered, now.closed - before.closed, now.cut - before.cut];
            assert_eq!((found, lab.maps.pending(1)), (expected, 0), "{} {flags}", String::from_utf8_lossy(response));
            hang_up(&mut client);
            lab.maps.pass(10_000);
        }
        // What the client does not want to hear is not missed.
        let mut client = lab.client();
        let mut server = lab.open(&mut client, GET);
        let before = drawn(&lab).cut;
        client.hear(&one(server.say(LONG)));
        server.hear(&one(client.send(FIN | ACK, &[])));
        server.send(FIN | ACK, &[]);
        hang_up(&mut client);
        assert_eq!(drawn(&lab).cut, before);
    }
}

#[test]
fn what_nobody_takes_belongs_to_the_version() {
    for lab in labs() {
        for (how, code) in [(0, 1), (service_flag::RESET, 0)] {
            lab.maps.change_service(1, |service| service.flags = service.flags & KEPT | how);
            let before = (lab.maps.version(2).ruled, lab.maps.version(2).status[5]);
            // No backend is ready.
            lab.maps.set_state(3, backend_state::DOWN);
            let mut client = lab.client();
            one(client.say(GET2));
            if how == 0 {
                // It has not heard the answer.
                client.again(ACK | PSH, GET2);
            }
            hang_up(&mut client);
            lab.maps.pass(10_000);
            lab.maps.set_state(3, backend_state::READY);
            // The only one refuses.
            let mut client = lab.client();
            let (server, _) = lab.backend_of(&one(client.say(GET2)));
            lab.run(&server.wire(RST | ACK, &[]), BACKEND_SIDE);
            hang_up(&mut client);
            lab.maps.pass(10_000);
            // Or is silent.
            let mut client = lab.client();
            one(client.say(GET2));
            while drawn_or_ruled(&lab).unopened == before.0.unopened {
                lab.maps.pass(500);
                client.again(ACK | PSH, GET2);
            }
            hang_up(&mut client);
            lab.maps.pass(10_000);
            let (now, said) = (drawn_or_ruled(&lab), lab.maps.version(2).status[5]);
            assert_eq!((now.trials - before.0.trials, now.unavailable - before.0.unavailable), (3, 1));
            assert_eq!((now.refused - before.0.refused, now.unopened - before.0.unopened, lab.maps.pending(2)), (1, 1, 0));
            assert_eq!(said - before.1, 3 * code, "answers that the clients saw");
        }
        // In the middle of a request.
        let (mut client, mut server) = lab.ready();
        server.hear(&one(client.say(GET)));
        lab.maps.set_state(lab.id_of(&server), backend_state::DOWN);
        server.send(ACK, &[]);
        assert_eq!((drawn(&lab).unavailable, lab.maps.pending(1)), (1, 0));
        hang_up(&mut client);
    }
}

fn drawn_or_ruled(lab: &Http) -> Outcomes {
    lab.maps.version(2).ruled
}

/// An ICMP error about a segment of the node to a backend, from the backend's side.
fn unreachable(lab: &Http, quoted: &Wire, side: u32) -> Vec<Wire> {
    let inner = quoted.build()[14..].to_vec();
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let mut bytes = Vec::new();
    match (quoted.src.ip(), quoted.dst.ip()) {
        (IpAddr::V4(client), IpAddr::V4(backend)) => {
            let icmp = etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::FilterProhibited);
            link.ipv4(backend.octets(), client.octets(), 64).icmpv4(icmp).write(&mut bytes, &inner).expect("fits");
        }
        (IpAddr::V6(client), IpAddr::V6(backend)) => {
            let icmp = etherparse::Icmpv6Type::DestinationUnreachable(etherparse::icmpv6::DestUnreachableCode::Port);
            link.ipv6(backend.octets(), client.octets(), 64).icmpv6(icmp).write(&mut bytes, &inner).expect("fits");
        }
        _ => panic!("mixed families"),
    }
    lab.run_bytes(&bytes, side)
}

#[test]
fn an_icmp_error_about_a_syn_is_a_refusal() {
    for lab in labs() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        // About something else.
        let wrong = Wire { seq: syn.seq.wrapping_add(1), ..syn.clone() };
        assert_eq!((unreachable(&lab, &wrong, BACKEND_SIDE), lab.entries()), (vec![], [1, 1]));
        let other = one(unreachable(&lab, &syn, BACKEND_SIDE));
        assert_ne!(other.dst, syn.dst);
        assert_eq!((other.src, other.seq, other.flags, lab.entries()), (lab.client, syn.seq, SYN, [1, 1]));
        let mut server = lab.accept(&other, GET);
        lab.respond(&mut client, &mut server, OK);
        assert_eq!((lab.maps.version(1).refused, lab.counted(Reason::LegRefused)), (1, 1));
        // Of an open connection it is a hint that may pass (RFC 1122, 4.2.3.9).
        hang_up(&mut client);
        lab.maps.pass(10_000);
        // The only one: the client is told.
        let mut client = lab.client();
        let syn = one(client.say(GET2));
        let answer = one(unreachable(&lab, &syn, BACKEND_SIDE));
        assert!(answer.payload.starts_with(b"HTTP/1.1 503"), "{answer:?}");
        hang_up(&mut client);
        assert_eq!((drawn(&lab).answered, lab.maps.version(2).ruled.refused), (1, 1));
    }
}

#[test]
fn who_is_not_behind_the_backends_interface_has_no_say() {
    for lab in Http::redirected() {
        lab.maps.time_trials();
        // In answer to a SYN, by RST and by ICMP.
        let mut client = lab.client();
        let syn = one(client.say(GET));
        let (server, _) = lab.backend_of(&syn);
        assert_eq!(lab.run(&server.wire(RST | ACK, &[]), CLIENT_SIDE), []);
        assert_eq!(unreachable(&lab, &syn, CLIENT_SIDE), []);
        assert_eq!((lab.maps.version(1).refused, lab.counted(Reason::LegRefused), lab.counted(Reason::WrongSide)), (0, 0, 2));
        assert!((1..=4).all(|id| !lab.maps.suspected_now(id)));
        // On an open connection.
        let mut server = lab.accept(&syn, GET);
        assert_eq!(lab.maps.pending(1), 1);
        for flags in [RST | ACK, FIN | ACK, ACK] {
            assert_eq!(lab.run(&server.wire(flags, b"HTTP/1.1 500 No\r\n\r\n"), CLIENT_SIDE), []);
        }
        assert_eq!((drawn(&lab), lab.maps.pending(1)), (Outcomes { trials: 1, ..Outcomes::default() }, 1));
        assert_eq!((lab.entries(), lab.counted(Reason::WrongSide)), ([1, 1], 5));
        lab.respond(&mut client, &mut server, OK);
        assert_eq!(drawn(&lab).answered, 1);
        hang_up(&mut client);
    }
}
