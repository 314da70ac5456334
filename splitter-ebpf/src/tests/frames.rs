//! Frames built and read by `etherparse`, which shares no code with the pipeline. Also used by the tests that run the real programs.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use std::net::{IpAddr, SocketAddr};

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A frame. `numbers`: sequence and acknowledgement.
pub fn build(proto: u8, src: SocketAddr, dst: SocketAddr, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    let ip = match (src.ip(), dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => link.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => link.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("mixed families"),
    };
    let mut out = Vec::new();
    if proto == 17 {
        ip.udp(src.port(), dst.port()).write(&mut out, payload).expect("fits");
        return out;
    }
    let mut builder = ip.tcp(src.port(), dst.port(), numbers.0, 64_000);
    if flags & SYN != 0 {
        builder = builder.syn();
    }
    if flags & FIN != 0 {
        builder = builder.fin();
    }
    if flags & RST != 0 {
        builder = builder.rst();
    }
    if flags & ACK != 0 {
        builder = builder.ack(numbers.1);
    }
    builder.write(&mut out, payload).expect("fits");
    out
}

/// Puts a right TCP checksum at `at` into a frame without IP options and extension headers.
#[allow(dead_code, reason = "not all who share this file do")]
pub fn mend_transport(bytes: &mut [u8], at: usize) {
    bytes[at..at + 2].fill(0);
    let addresses = if at == 50 { 26..34 } else { 22..54 };
    let length = (bytes.len() - (at - 16)) as u16;
    let pseudo = [&bytes[addresses], &[0, 6], &length.to_be_bytes()].concat();
    let words =
        |bytes: &[u8]| bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]))).sum::<u32>();
    let mut sum = words(&pseudo) + words(&bytes[at - 16..]);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    bytes[at..at + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
}

/// What a receiver reads from a frame, after checking every checksum.
#[derive(Debug, PartialEq)]
pub struct Seen {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub hops: u8,
    pub rst: bool,
    pub payload: Vec<u8>,
}

pub fn parse(bytes: &[u8]) -> Seen {
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
#[allow(dead_code, reason = "the host tests use it, those of the real programs do not")]
pub fn lax(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
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
