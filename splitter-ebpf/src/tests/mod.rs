//! The whole pipeline on a host: packets in, packets and map entries out. Packets are built and checked by `etherparse`, which shares no
//! code with the pipeline.

mod icmp;
mod odd;
mod states;
mod translate;

use crate::{
    bytes::Route,
    fake::{Frame, Maps},
    packet::tcp,
    verdict::Action,
};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use splitter_common::abi::*;
use std::net::{IpAddr, SocketAddr};

/// Interfaces of the lab: clients behind 2, backends behind 3.
const CLIENT_SIDE: u32 = 2;
const BACKEND_SIDE: u32 = 3;
const ROUTE: Route = Route::Found { ifindex: BACKEND_SIDE, macs: [0x0403_0201, 0x0807_0605, 0x0c0b_0a09], mtu: 1500 };

/// Two versions of one service, on both families: v1 (id 1) has backends 1 and 2, v2 (id 2) has 3.
struct Lab {
    maps: Maps,
    client: SocketAddr,
    vip: SocketAddr,
    proto: u8,
}

fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Lab {
    fn new(ipv6: bool, proto: u8) -> Self {
        Self::weighted(ipv6, proto, [100, 0])
    }

    fn weighted(ipv6: bool, proto: u8, weights: [u32; 2]) -> Self {
        let maps = Maps::new();
        for id in 1..=3 {
            maps.add_backend(id, addr(backend(ipv6, id).ip()), 8080, proto);
        }
        let vip = if ipv6 { "[fd09::9]:80" } else { "10.9.9.9:80" }.parse::<SocketAddr>().expect("an address");
        let client = if ipv6 { "[fd01::2]:40000" } else { "10.1.0.2:40000" }.parse().expect("an address");
        let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto, pad: 0 };
        maps.serve(1, frontend, split_by::CONNECTION, &[(weights[0], &[1, 2]), (weights[1], &[3])]);
        Self { maps, client, vip, proto }
    }

    fn ipv6(&self) -> bool {
        self.vip.is_ipv6()
    }

    fn frame(&self, bytes: &[u8], ifindex: u32) -> Frame<false> {
        let mut frame = Frame::new(bytes, ROUTE);
        frame.ifindex = ifindex;
        frame
    }

    /// A packet of the client; what became of it.
    fn send(&self, flags: u8, payload: &[u8]) -> (Action, Vec<u8>) {
        let mut frame = self.frame(&build(self.proto, self.client, self.vip, flags, (1000, 5001), payload), CLIENT_SIDE);
        let action = frame.run(&self.maps);
        (action, frame.bytes)
    }

    /// A packet of a backend to what it takes for the client.
    fn reply(&self, from: SocketAddr, to: SocketAddr, flags: u8, payload: &[u8]) -> (Action, Vec<u8>) {
        let mut frame = self.frame(&build(self.proto, from, to, flags, (5000, 1001), payload), BACKEND_SIDE);
        let action = frame.run(&self.maps);
        (action, frame.bytes)
    }

    /// A whole TCP handshake; the backend.
    fn connect(&self) -> SocketAddr {
        let (action, bytes) = self.send(tcp::SYN, &[]);
        assert_eq!(action, Action::Redirect(BACKEND_SIDE));
        let seen = parse(&bytes);
        let (action, _) = self.reply(seen.dst, seen.src, tcp::SYN | tcp::ACK, &[]);
        assert_eq!(action, Action::Redirect(BACKEND_SIDE));
        self.send(tcp::ACK, &[]);
        assert_eq!(self.tcp_entries(), 2, "established, one entry a direction");
        seen.dst
    }

    fn sizes(&self) -> [usize; 5] {
        if self.ipv6() { self.maps.v6.sizes() } else { self.maps.v4.sizes() }
    }
    fn tcp_entries(&self) -> usize {
        self.sizes()[0]
    }
}

fn backend(ipv6: bool, id: u32) -> SocketAddr {
    let text = if ipv6 { format!("[fd02:{id}::2]:8080") } else { format!("10.2.{id}.2:8080") };
    text.parse().expect("an address")
}

/// A frame. `numbers`: sequence and acknowledgement.
fn build(proto: u8, src: SocketAddr, dst: SocketAddr, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("mixed families"),
    };
    let mut out = Vec::new();
    if proto == UDP {
        ip.udp(src.port(), dst.port()).write(&mut out, payload).expect("fits");
        return out;
    }
    let mut builder = ip.tcp(src.port(), dst.port(), numbers.0, 64_000);
    if flags & tcp::SYN != 0 {
        builder = builder.syn();
    }
    if flags & tcp::FIN != 0 {
        builder = builder.fin();
    }
    if flags & tcp::RST != 0 {
        builder = builder.rst();
    }
    if flags & tcp::ACK != 0 {
        builder = builder.ack(numbers.1);
    }
    builder.write(&mut out, payload).expect("fits");
    out
}

/// What a receiver reads from a frame, after checking every checksum.
#[derive(Debug, PartialEq)]
struct Seen {
    src: SocketAddr,
    dst: SocketAddr,
    hops: u8,
    rst: bool,
    payload: Vec<u8>,
}

fn parse(bytes: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(bytes).expect("a valid frame");
    let (src, dst, hops): (IpAddr, IpAddr, u8) = match packet.net.as_ref().expect("an IP packet") {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum(), "IPv4 header checksum");
            (header.source.into(), header.destination.into(), header.time_to_live)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            (header.source.into(), header.destination.into(), header.hop_limit)
        }
        other => panic!("{other:?}"),
    };
    let (ports, rst, payload) = match packet.transport.as_ref().expect("a transport header") {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let sum = match (src, dst) {
                (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), tcp.payload()),
                (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), tcp.payload()),
                _ => panic!("mixed families"),
            };
            assert_eq!(Ok(header.checksum), sum, "TCP checksum");
            ((header.source_port, header.destination_port), header.rst, tcp.payload().to_vec())
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = match (src, dst) {
                (IpAddr::V4(s), IpAddr::V4(d)) => header.calc_checksum_ipv4_raw(s.octets(), d.octets(), udp.payload()),
                (IpAddr::V6(s), IpAddr::V6(d)) => header.calc_checksum_ipv6_raw(s.octets(), d.octets(), udp.payload()),
                _ => panic!("mixed families"),
            };
            assert_eq!(Ok(header.checksum), sum, "UDP checksum");
            ((header.source_port, header.destination_port), false, udp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    };
    Seen { src: SocketAddr::new(src, ports.0), dst: SocketAddr::new(dst, ports.1), hops, rst, payload }
}

/// Source and destination of a packet that may be cut short behind its ports.
fn lax(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let at = |ip: usize, len: usize, port: usize| {
        let ip: IpAddr = if len == 4 {
            <[u8; 4]>::try_from(&bytes[ip..ip + 4]).expect("four").into()
        } else {
            <[u8; 16]>::try_from(&bytes[ip..ip + 16]).expect("sixteen").into()
        };
        SocketAddr::new(ip, u16::from_be_bytes([bytes[port], bytes[port + 1]]))
    };
    if bytes[14] >> 4 == 4 { (at(26, 4, 34), at(30, 4, 36)) } else { (at(22, 16, 54), at(38, 16, 56)) }
}
