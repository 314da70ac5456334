//! The whole pipeline on a host: packets in, packets and map entries out. Packets are built and checked by `etherparse`, which shares no
//! code with the pipeline.

mod checksums;
mod collide;
mod frames;
mod icmp;
mod odd;
mod ports;
mod splice;
mod stack;
mod states;
mod trace;
mod translate;
mod trials;
mod vip;

use crate::{
    bytes::Route,
    fake::{Frame, Maps},
    packet::{checksum, tcp},
    verdict::Action,
};
use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use frames::{Seen, build, lax, parse};
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
        maps.time_trials();
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

/// Puts a right checksum into an IPv4 header without options.
fn mend_header(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let sum: u64 = bytes[14..34].chunks(2).map(|pair| u16::from_ne_bytes([pair[0], pair[1]]) as u64).sum();
    bytes[24..26].copy_from_slice(&(!checksum::fold(sum) as u16).to_ne_bytes());
}

fn backend(ipv6: bool, id: u32) -> SocketAddr {
    let text = if ipv6 { format!("[fd02:{id}::2]:8080") } else { format!("10.2.{id}.2:8080") };
    text.parse().expect("an address")
}
