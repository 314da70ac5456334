//! What is sent to a VIP and no service has: answered, dropped, or left to the stack.
use super::{
    icmp::{link, open},
    *,
};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type};

fn run(lab: &Lab, bytes: &[u8]) -> (Action, Vec<u8>) {
    let mut frame = lab.frame(bytes, CLIENT_SIDE);
    (frame.run(&lab.maps), frame.bytes)
}

/// The VIP, at a port that no service has.
fn closed(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.vip.ip(), 33_434)
}

/// Type and code of an ICMP packet, and what it quotes.
fn error(bytes: &[u8]) -> ((u8, u8), IpAddr, Vec<u8>) {
    let (from, _, quoted) = open(bytes);
    let at = if bytes[14] >> 4 == 4 { 34 } else { 54 };
    ((bytes[at], bytes[at + 1]), from, quoted)
}

fn labs() -> [Lab; 2] {
    [Lab::new(false, TCP), Lab::new(true, TCP)]
}

fn echo_request(lab: &Lab, payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (mut out, header) = (Vec::new(), IcmpEchoHeader { id: 7, seq: 1 });
    match (lab.client.ip(), lab.vip.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            link.ipv4(from.octets(), to.octets(), 9).icmpv4(Icmpv4Type::EchoRequest(header)).write(&mut out, payload)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            link.ipv6(from.octets(), to.octets(), 9).icmpv6(Icmpv6Type::EchoRequest(header)).write(&mut out, payload)
        }
        _ => panic!("mixed families"),
    }
    .expect("fits");
    out
}

#[test]
fn what_was_damaged_on_the_way_is_not_answered() {
    for lab in labs() {
        for (proto, flags, payload) in [(TCP, tcp::SYN, &b""[..]), (UDP, 0, b"probe")] {
            let mut sent = build(proto, lab.client, closed(&lab), flags, (1000, 0), payload);
            let last = sent.len() - 1;
            sent[last] ^= 1;
            assert_eq!(run(&lab, &sent).0, Action::Drop);
        }
        assert_eq!((lab.maps.counted(Reason::Checksum), lab.maps.counted(Reason::VipRefused)), (2, 0));
    }
}

#[test]
fn a_port_that_no_service_has_is_refused() {
    for lab in labs() {
        let to = closed(&lab);
        let (action, bytes) = run(&lab, &build(TCP, lab.client, to, tcp::SYN, (1000, 0), &[]));
        let seen = parse(&bytes);
        assert_eq!((action, seen.rst, seen.src, seen.dst), (Action::Return(CLIENT_SIDE), true, to, lab.client));
        let sent = build(UDP, lab.client, to, 0, (0, 0), b"probe");
        let (action, bytes) = run(&lab, &sent);
        let (kind, from, quoted) = error(&bytes);
        assert_eq!((action, from), (Action::Return(CLIENT_SIDE), lab.vip.ip()));
        assert_eq!(kind, if lab.ipv6() { (1, 4) } else { (3, 3) }, "port unreachable");
        assert_eq!(lax(&link(quoted, lab.ipv6())), (lab.client, to));
        // GRE.
        let mut other = sent.clone();
        other[if lab.ipv6() { 20 } else { 23 }] = 47;
        let (action, bytes) = run(&lab, &other);
        assert_eq!((action, error(&bytes).0), (Action::Return(CLIENT_SIDE), if lab.ipv6() { (4, 1) } else { (3, 2) }), "unknown protocol");
        assert_eq!(lab.maps.counted(Reason::VipRefused), 3);
    }
}

#[test]
fn what_nobody_answers_is_dropped() {
    for lab in labs() {
        let to = closed(&lab);
        let reset = build(TCP, lab.client, to, tcp::RST, (1000, 0), &[]);
        let of_no_flow = build(TCP, lab.client, lab.vip, tcp::RST, (1000, 0), &[]);
        let mut later = build(UDP, lab.client, to, 0, (0, 0), &[1; 16]);
        if lab.ipv6() {
            later.splice(54..54, [UDP, 0, 0, 64, 0, 0, 0, 7]);
            (later[20], later[19]) = (44, 32);
        } else {
            later[21] = 8;
        }
        let error = icmp::unreachable(lab.client.ip(), lab.vip.ip(), &build(TCP, lab.vip, lab.client, tcp::ACK, (1, 1), b"x"), false);
        for (bytes, what) in [
            (reset, "a reset"),
            (of_no_flow, "one of no flow"),
            (later, "a later fragment"),
            (error, "an error"),
            (echo_request(&lab, b""), "an echo request"),
        ] {
            let before = lab.maps.counted(Reason::VipStray);
            assert_eq!((run(&lab, &bytes).0, lab.maps.counted(Reason::VipStray)), (Action::Drop, before + 1), "{what}");
        }
        assert_eq!(lab.sizes(), [0; 5]);
    }
}

/// The stack's: the node's own addresses, what a host on a link has, what the policy leaves to it, what is not of a VIP.
#[test]
fn the_stack_gets_what_it_can_bring_to_somebody() {
    for lab in labs() {
        let to = closed(&lab);
        let sent = build(TCP, lab.client, to, tcp::SYN, (1000, 0), &[]);
        let untouched = |what: &str, bytes: &[u8]| assert_eq!(run(&lab, bytes), (Action::Pass, bytes.to_vec()), "{what}");
        let mut frame = lab.frame(&sent, CLIENT_SIDE);
        frame.on_link = true;
        assert_eq!((frame.run(&lab.maps), frame.bytes), (Action::Pass, sent.clone()));
        lab.maps.set_vip(addr(to.ip()), vip_flag::PASS);
        untouched("left to the stack", &sent);
        untouched("a ping", &echo_request(&lab, b"x"));
        lab.maps.set_vip(addr(to.ip()), 0);
        assert_ne!(run(&lab, &sent).0, Action::Pass);
        lab.maps.own(addr(to.ip()));
        untouched("the node's own", &sent);
        untouched("a ping of the node", &echo_request(&lab, b"x"));
        untouched("nobody's", &build(TCP, lab.client, backend(lab.ipv6(), 1), tcp::SYN, (1000, 0), &[]));
    }
    // Neighbours ask for an address that the node speaks for.
    let lab = Lab::new(true, TCP);
    let mut solicitation = echo_request(&lab, &[0; 16]);
    solicitation[54] = 135;
    assert_eq!(run(&lab, &solicitation).0, Action::Pass);
}

#[test]
fn echo_is_answered_when_asked_for() {
    for lab in labs() {
        lab.maps.set_vip(addr(lab.vip.ip()), vip_flag::PING);
        for payload in [&b""[..], b"odd", &[5; 1400]] {
            let (action, bytes) = run(&lab, &echo_request(&lab, payload));
            assert_eq!(action, Action::Return(CLIENT_SIDE));
            let (from, to, answered) = open(&bytes);
            assert_eq!((from, to, &answered[..]), (lab.vip.ip(), lab.client.ip(), payload));
            let at = if lab.ipv6() { 54 } else { 34 };
            assert_eq!(bytes[at], if lab.ipv6() { 129 } else { 0 }, "a reply");
            assert_eq!(bytes[at + 4..at + 8], [0, 7, 0, 1]);
        }
        assert_eq!(lab.maps.counted(Reason::VipPing), 3);
        // Not those in its name.
        let mut forged = echo_request(&lab, b"x");
        if lab.ipv6() {
            forged[22] = 0xff
        } else {
            forged[26] = 224
        }
        assert_eq!(run(&lab, &forged).0, Action::Drop);
    }
}

#[test]
fn errors_have_a_limit() {
    let lab = Lab::new(false, TCP);
    let sent = build(UDP, lab.client, closed(&lab), 0, (0, 0), b"probe");
    let answered = (0..1_500).filter(|_| run(&lab, &sent).0 != Action::Drop).count();
    assert_eq!((answered, lab.maps.counted(Reason::ErrorsLimited)), (1_000, 500));
    lab.maps.pass(2_000);
    assert_eq!(run(&lab, &sent).0, Action::Return(CLIENT_SIDE));
}

#[test]
fn datagrams_without_a_backend_are_refused() {
    for ipv6 in [false, true] {
        let lab = Lab::weighted(ipv6, UDP, [0, 0]);
        let (action, bytes) = lab.send(0, b"question");
        let (kind, from, quoted) = error(&bytes);
        assert_eq!((action, from), (Action::Return(CLIENT_SIDE), lab.vip.ip()));
        assert_eq!(kind, if ipv6 { (1, 4) } else { (3, 3) });
        assert_eq!(lax(&link(quoted, ipv6)), (lab.client, lab.vip));
        assert_eq!(lab.maps.counted(Reason::NoVersion), 1);
    }
}

/// Whatever routes the node has to the VIP.
#[test]
fn the_node_is_a_hop_on_the_way_to_a_service() {
    for proto in [TCP, UDP] {
        for ipv6 in [false, true] {
            let lab = Lab::new(ipv6, proto);
            let node: IpAddr = if ipv6 { "fd01::1" } else { "10.1.0.1" }.parse().expect("an address");
            let mut sent = build(proto, lab.client, lab.vip, tcp::SYN, (1000, 0), &[]);
            sent[if ipv6 { 21 } else { 22 }] = 1;
            if !ipv6 {
                mend_header(&mut sent);
            }
            for from in [lab.vip.ip(), node] {
                let (action, bytes) = run(&lab, &sent);
                let (kind, source, quoted) = error(&bytes);
                assert_eq!((action, kind, source), (Action::Return(CLIENT_SIDE), if ipv6 { (3, 0) } else { (11, 0) }, from));
                assert_eq!(lax(&link(quoted, ipv6)), (lab.client, lab.vip));
                lab.maps.assign(CLIENT_SIDE, node);
            }
            assert_eq!(lab.maps.counted(Reason::TtlExpired), 2);
        }
    }
}
