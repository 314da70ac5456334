//! Events of layer 4, who gets them, and how many.

use super::*;
use crate::env::Note;
use splitter_common::abi::{NO_REASON, Trace, TraceEvent, trace_flag, trace_kind};

/// Everything, for a second from the lab's beginning.
pub fn everything(maps: &Maps) -> Trace {
    Trace { until: maps.ns.get() + 1_000_000_000, interval: 1_000_000, burst: 1_000_000_000, ..Trace::default() }
}

pub fn socket(words: [u32; 4], port: u16) -> SocketAddr {
    let mut bytes = [0u8; 16];
    bytes.chunks_exact_mut(4).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_ne_bytes()));
    SocketAddr::new(std::net::Ipv6Addr::from(bytes).to_canonical(), port)
}

fn words(ip: IpAddr) -> [u32; 4] {
    let bytes = addr(ip);
    core::array::from_fn(|i| u32::from_ne_bytes(bytes[4 * i..][..4].try_into().expect("four bytes")))
}

fn one(events: &[TraceEvent]) -> TraceEvent {
    assert_eq!(events.len(), 1, "{events:?}");
    events[0]
}

fn labs() -> impl Iterator<Item = Lab> {
    [(false, TCP), (true, TCP), (false, UDP), (true, UDP)].into_iter().map(|(ipv6, proto)| Lab::new(ipv6, proto))
}

const FIRST: u8 = tcp::SYN;

#[test]
fn a_decision_is_told_once() {
    for lab in labs() {
        lab.maps.look(everything(&lab.maps));
        let (_, bytes) = lab.send(FIRST, &[]);
        let event = one(&lab.maps.events());
        assert_eq!((event.kind, event.service, event.version, event.proto), (trace_kind::DECIDED, 1, 1, lab.proto));
        assert_eq!((socket(event.client, event.client_port), socket(event.vip, event.vip_port)), (lab.client, lab.vip));
        assert_eq!(backend(lab.ipv6(), event.backend), parse(&bytes).dst);
        assert_eq!((event.reason, event.flags, event.time), (NO_REASON, 0, lab.maps.ns.get()));
        let seen = parse(&bytes);
        lab.reply(seen.dst, seen.src, tcp::SYN | tcp::ACK, &[]);
        for payload in [&b""[..], b"data"] {
            lab.send(tcp::ACK, payload);
            lab.reply(seen.dst, seen.src, tcp::ACK, payload);
        }
        assert_eq!(lab.maps.events(), [], "packets of a known flow are silent");
    }
}

#[test]
fn nobody_is_told_with_the_reason() {
    for lab in labs() {
        lab.maps.look(everything(&lab.maps));
        lab.maps.set_state(1, backend_state::DOWN);
        lab.maps.set_state(2, backend_state::DOWN);
        lab.send(FIRST, &[]);
        let event = one(&lab.maps.events());
        assert_eq!((event.version, event.backend, event.reason), (1, 0, Reason::NoBackend as u8));
        lab.maps.change_service(1, |service| service.version_count = 0);
        lab.send(FIRST, &[]);
        let event = one(&lab.maps.events());
        assert_eq!((event.version, event.backend, event.reason), (0, 0, Reason::NoVersion as u8));
    }
}

#[test]
fn a_connection_taken_up_in_the_middle_says_so() {
    let lab = Lab::new(false, TCP);
    lab.maps.look(everything(&lab.maps));
    lab.send(tcp::ACK, b"data");
    assert_eq!(one(&lab.maps.events()).flags, trace_flag::RECOVERED);
}

#[test]
fn who_does_not_look_gets_nothing_and_a_dead_agent_is_noticed() {
    for lab in labs() {
        lab.send(FIRST, &[]);
        assert_eq!(lab.maps.events(), []);
    }
    let lab = Lab::new(false, UDP);
    lab.maps.look(everything(&lab.maps));
    lab.maps.pass(1_000);
    lab.send(FIRST, &[]);
    assert_eq!((lab.maps.events(), lab.maps.looked_at().map(|trace| trace.until)), (vec![], Some(0)));
}

#[test]
fn filters_go_by_service_version_and_client() {
    for lab in labs() {
        let all = everything(&lab.maps);
        let client = words(lab.client.ip());
        let network = |bits: [u32; 4]| core::array::from_fn(|i| client[i] & bits[i]);
        let some = [u32::MAX, u32::MAX.to_be() << 8, u32::MAX, (!0xffu32).to_be()];
        let (hit, miss) = (network(some), core::array::from_fn(|i| if i == 3 { client[i] ^ 1u32.swap_bytes() } else { client[i] }));
        let cases = [
            (Trace { service: 1, version: 1, ..all }, true),
            (Trace { service: 2, ..all }, false),
            (Trace { version: 2, ..all }, false),
            (Trace { mask: some, client: hit, ..all }, true),
            (Trace { mask: [u32::MAX; 4], client, ..all }, true),
            (Trace { mask: [u32::MAX; 4], client: miss, ..all }, false),
        ];
        for (i, (trace, told)) in cases.into_iter().enumerate() {
            lab.maps.look(trace);
            let mut frame =
                lab.frame(&build(lab.proto, SocketAddr::new(lab.client.ip(), 50_000 + i as u16), lab.vip, FIRST, (1, 0), &[]), CLIENT_SIDE);
            frame.run(&lab.maps);
            assert_eq!(!lab.maps.events().is_empty(), told, "case {i}");
        }
        assert_eq!(lab.maps.events_lost(), [0, 0], "what nobody wants is not lost");
    }
}

#[test]
fn what_comes_too_fast_or_finds_no_room_is_counted() {
    let lab = Lab::new(false, UDP);
    let send = |port: u16| {
        let mut frame = lab.frame(&build(lab.proto, SocketAddr::new(lab.client.ip(), port), lab.vip, FIRST, (1, 0), &[]), CLIENT_SIDE);
        frame.run(&lab.maps);
    };
    lab.maps.look(Trace { interval: 10_000_000, burst: 40_000_000, ..everything(&lab.maps) });
    (0..20).for_each(|i| send(50_000 + i));
    assert_eq!((lab.maps.events().len(), lab.maps.events_lost()), (5, [15, 0]));
    lab.maps.pass(20);
    (0..20).for_each(|i| send(51_000 + i));
    assert_eq!((lab.maps.events().len(), lab.maps.events_lost()), (2, [33, 0]), "one in ten milliseconds");
    lab.maps.pass(500);
    lab.maps.room.set(2);
    (0..4).for_each(|i| send(52_000 + i));
    assert_eq!((lab.maps.events().len(), lab.maps.events_lost()), (2, [33, 2]));
}

#[test]
fn what_is_not_usual_is_noted() {
    for lab in labs() {
        let (_, bytes) = lab.send(FIRST, &[]);
        let seen = parse(&bytes);
        let id = (1..4).find(|id| backend(lab.ipv6(), *id) == seen.dst).expect("a backend");
        assert_eq!(lab.maps.notes(), [(Note::Given, 1, id)]);
        lab.reply(seen.dst, seen.src, tcp::SYN | tcp::ACK, &[]);
        lab.send(tcp::ACK, b"data");
        assert_eq!(lab.maps.notes(), [], "packets of a known flow are silent");
    }
    for lab in labs() {
        lab.maps.change_service(1, |service| service.version_count = 0);
        lab.send(FIRST, &[]);
        assert_eq!(lab.maps.notes(), [(Note::Unserved, 1, Reason::NoVersion as u32)]);
    }
    let lab = Lab::new(false, TCP);
    lab.send(tcp::ACK, b"data");
    assert!(matches!(lab.maps.notes()[..], [(Note::TakenUp, 1, 1..)]));
}
