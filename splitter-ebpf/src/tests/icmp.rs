//! ICMP errors that quote translated packets, and those that the node makes.
use super::*;
use crate::env::Note;
use etherparse::{Icmpv4Type, Icmpv6Type, icmpv4};

/// That the addressee of `quoted` (a whole frame) cannot be reached.
pub fn unreachable(from: IpAddr, to: IpAddr, quoted: &[u8], admin: bool) -> Vec<u8> {
    use etherparse::{icmpv4::DestUnreachableHeader as Four, icmpv6::DestUnreachableCode as Six};
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (mut out, quoted) = (Vec::new(), &quoted[14..]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(if admin { Four::FilterProhibited } else { Four::Port }))
            .write(&mut out, quoted),
        (IpAddr::V6(from), IpAddr::V6(to)) => link
            .ipv6(from.octets(), to.octets(), 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(if admin { Six::Prohibited } else { Six::Port }))
            .write(&mut out, quoted),
        _ => panic!("mixed families"),
    }
    .expect("fits");
    out
}

/// An error about `quoted` (a whole frame) from a router or host.
fn error(from: IpAddr, to: IpAddr, quoted: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let (mut out, quoted) = (Vec::new(), &quoted[14..]);
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => link
            .ipv4(from.octets(), to.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 }))
            .write(&mut out, quoted),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            link.ipv6(from.octets(), to.octets(), 64).icmpv6(Icmpv6Type::PacketTooBig { mtu: 1400 }).write(&mut out, quoted)
        }
        _ => panic!("mixed families"),
    }
    .expect("fits");
    out
}

/// Checks the ICMP checksum; the outer addresses and the quoted packet.
pub fn open(bytes: &[u8]) -> (IpAddr, IpAddr, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(bytes).expect("a valid frame");
    match (packet.net.as_ref().expect("IP"), packet.transport.as_ref().expect("ICMP")) {
        (etherparse::NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(icmp.payload()), "ICMP checksum");
            (ip.source.into(), ip.destination.into(), icmp.payload().to_vec())
        }
        (etherparse::NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let ip = ip.header().to_header();
            let sum = icmp.icmp_type().calc_checksum(ip.source, ip.destination, icmp.payload());
            assert_eq!(Ok(icmp.header().checksum), sum, "ICMPv6 checksum");
            (ip.source.into(), ip.destination.into(), icmp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    }
}

fn hops(bytes: &[u8]) -> u8 {
    if bytes[14] >> 4 == 4 { bytes[22] } else { bytes[21] }
}

pub fn link(mut quoted: Vec<u8>, ipv6: bool) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(if ipv6 { [0x86, 0xdd] } else { [8, 0] });
    frame.append(&mut quoted);
    frame
}

#[test]
fn errors_of_the_backends_side_reach_the_client() {
    for ipv6 in [false, true] {
        for proto in [TCP, UDP] {
            let lab = Lab::new(ipv6, proto);
            let server = if proto == TCP { lab.connect() } else { parse(&lab.send(0, b"x").1).dst };
            let (_, sent) = lab.send(tcp::ACK, b"large");
            let router: IpAddr = if ipv6 { "fd02::99" } else { "10.2.0.99" }.parse().expect("an address");
            for from in [router, server.ip()] {
                let mut frame = lab.frame(&error(from, lab.client.ip(), &sent), BACKEND_SIDE);
                assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE), "as data, past the stack");
                assert_eq!(hops(&frame.bytes), 63);
                let (src, dst, quoted) = open(&frame.bytes);
                assert_eq!((src, dst), (if from == router { router } else { lab.vip.ip() }, lab.client.ip()));
                let seen = lax(&link(quoted, ipv6));
                assert_eq!((seen.0, seen.1), (lab.client, lab.vip), "as the client sent it");
                let kind = if ipv6 { 2 << 8 } else { 3 << 8 | 4 };
                assert_eq!(lab.maps.notes().pop(), Some((Note::Icmp, 0, kind)), "too large");
            }
            assert_eq!(lab.maps.counted(Reason::IcmpTranslated), 2);
        }
    }
}

#[test]
fn errors_of_the_clients_side_reach_the_backend() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let server = lab.connect();
        let (_, sent) = lab.reply(server, lab.client, tcp::ACK, b"large");
        let router: IpAddr = if ipv6 { "fd01::99" } else { "10.1.0.99" }.parse().expect("an address");
        let mut frame = lab.frame(&error(router, lab.vip.ip(), &sent), CLIENT_SIDE);
        assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
        let (src, dst, quoted) = open(&frame.bytes);
        assert_eq!((src, dst), (router, server.ip()));
        let seen = lax(&link(quoted, ipv6));
        assert_eq!((seen.0, seen.1), (server, lab.client));
    }
}

/// What only the stack can route or deliver is translated and left to it, and so is what has no hop left: the stack ends it.
#[test]
fn errors_without_a_way_go_to_the_stack() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let server = lab.connect();
        let (_, sent) = lab.send(tcp::ACK, b"large");
        let bytes = error(server.ip(), lab.client.ip(), &sent);
        let mut local = lab.frame(&bytes, BACKEND_SIDE);
        local.route = Route::Stack;
        assert_eq!((local.run(&lab.maps), hops(&local.bytes)), (Action::Pass, 64));
        assert_eq!(open(&local.bytes).0, lab.vip.ip());
        let mut unresolved = lab.frame(&bytes, BACKEND_SIDE);
        unresolved.route = Route::NoNeighbour { ifindex: CLIENT_SIDE };
        assert_eq!((unresolved.run(&lab.maps), hops(&unresolved.bytes)), (Action::Neighbour(CLIENT_SIDE), 63));
        let mut last = bytes;
        last[if ipv6 { 21 } else { 22 }] = 1;
        if !ipv6 {
            let mut header = etherparse::Ipv4Header::from_slice(&last[14..]).expect("a header").0;
            header.header_checksum = header.calc_header_checksum();
            last[14..34].copy_from_slice(&header.to_bytes());
        }
        assert_eq!(lab.frame(&last, BACKEND_SIDE).run(&lab.maps), Action::Pass);
    }
}

/// The first fragment of a datagram of IPv6 with `payload` bytes in it; all its fragments have the identification 7.
fn first_fragment(lab: &Lab, payload: usize) -> Vec<u8> {
    let mut bytes = build(UDP, lab.client, lab.vip, 0, (0, 0), &vec![7; payload]);
    bytes.splice(54..54, [UDP, 0, 0, 1, 0, 0, 0, 7]);
    bytes[20] = 44;
    bytes[18..20].copy_from_slice(&(payload as u16 + 16).to_be_bytes());
    bytes
}

/// A datagram in fragments over a path that is narrower behind the node: its sender has to hear that (RFC 8200, 5).
#[test]
fn errors_that_quote_a_fragment_reach_its_sender() {
    let lab = Lab::new(true, UDP);
    let mut sent = lab.frame(&first_fragment(&lab, 1200), CLIENT_SIDE);
    assert_eq!(sent.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
    let router: IpAddr = "fd02::99".parse().expect("an address");
    let mut frame = lab.frame(&error(router, lab.client.ip(), &sent.bytes), BACKEND_SIDE);
    assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
    let (src, dst, quoted) = open(&frame.bytes);
    assert_eq!((src, dst), (router, lab.client.ip()));
    let whole = first_fragment(&lab, 1200);
    // All but the hop limit is as the client sent it.
    assert_eq!((&quoted[..7], &quoted[8..]), (&whole[14..21], &whole[22..]));
    // A later one has no ports.
    let mut later = sent.bytes.clone();
    later[56..58].copy_from_slice(&[5, 0x78]);
    let bytes = error(router, lab.client.ip(), &later);
    let mut frame = lab.frame(&bytes, BACKEND_SIDE);
    assert_eq!((frame.run(&lab.maps), frame.bytes == bytes), (Action::Pass, true));
}

#[test]
fn a_fragment_that_does_not_fit_is_answered() {
    let lab = Lab::new(true, UDP);
    let bytes = first_fragment(&lab, 1472);
    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
    assert_eq!(frame.run(&lab.maps), Action::Return(CLIENT_SIDE));
    let (src, dst, quoted) = open(&frame.bytes);
    assert_eq!((src, dst), (lab.vip.ip(), lab.client.ip()));
    assert_eq!(quoted[..], bytes[14..14 + 56], "with its fragment header and ports");
}

#[test]
fn foreign_errors_are_untouched() {
    let lab = Lab::new(false, TCP);
    lab.connect();
    let other = build(TCP, "10.5.5.5:1".parse().expect("ok"), "10.6.6.6:2".parse().expect("ok"), tcp::ACK, (1, 1), b"x");
    let bytes = error("10.6.6.6".parse().expect("ok"), "10.5.5.5".parse().expect("ok"), &other);
    let mut frame = lab.frame(&bytes, BACKEND_SIDE);
    assert_eq!((frame.run(&lab.maps), frame.bytes == bytes), (Action::Pass, true));
}

#[test]
fn a_packet_that_does_not_fit_is_answered() {
    for ipv6 in [false, true] {
        for proto in [TCP, UDP] {
            let lab = Lab::new(ipv6, proto);
            if proto == TCP {
                lab.connect();
            }
            let mut bytes = build(proto, lab.client, lab.vip, tcp::ACK, (1000, 5001), &[7; 1480]);
            if !ipv6 {
                // Do not fragment.
                bytes[20] |= 0x40;
                mend_header(&mut bytes);
            }
            let mut frame = lab.frame(&bytes, CLIENT_SIDE);
            assert_eq!(frame.run(&lab.maps), Action::Return(CLIENT_SIDE));
            let (src, dst, quoted) = open(&frame.bytes);
            assert_eq!((src, dst), (lab.vip.ip(), lab.client.ip()));
            assert_eq!(quoted[..], bytes[14..14 + quoted.len()], "quoted as it was sent");
            assert_eq!(lab.maps.counted(Reason::FragmentationNeeded), 1);
            // A packet that is cut later passes when its segments fit.
            for (segment, verdict) in [(1000, Action::Redirect(BACKEND_SIDE)), (1480, Action::Return(CLIENT_SIDE))] {
                let mut frame = lab.frame(&bytes, CLIENT_SIDE);
                frame.segment = segment;
                assert_eq!(frame.run(&lab.maps), verdict, "{segment}");
            }
        }
    }
}
