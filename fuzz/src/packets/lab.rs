//! A node with one service, over TCP, UDP or HTTP, and how each packet through it is judged.

use super::wire::{self, Parts};
use splitter_common::{abi::*, decide, http::name_bit};
use splitter_ebpf::{
    bytes::Route,
    fake::{Frame, Maps},
    verdict::Action,
};
use std::net::{IpAddr, SocketAddr};

/// Interfaces: clients behind the one, backends behind the other.
pub const CLIENT_SIDE: u32 = 2;
pub const BACKEND_SIDE: u32 = 3;
const MACS: [u32; 3] = [0x0403_0201, 0x0807_0605, 0x0c0b_0a09];
/// Two of the first version, one of each other.
pub const BACKENDS: u32 = 4;

/// A connection as one of its ends sees it.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub me: SocketAddr,
    pub peer: SocketAddr,
    pub seq: u32,
    pub ack: u32,
}

/// See the module.
pub struct Lab {
    pub maps: Maps,
    pub ipv6: bool,
    pub proto: u8,
    pub route: Route,
    /// Packets go through the programs of XDP first.
    pub xdp: bool,
    pub clients: [End; 4],
    /// What backends have last been sent, with what they would answer.
    pub servers: Vec<(u8, End)>,
    /// What was last sent, whole.
    pub last: Option<(Vec<u8>, u32)>,
    /// What came out towards backends, and towards clients.
    pub out: [Option<Vec<u8>>; 2],
}

pub fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub fn backend(ipv6: bool, id: u32) -> SocketAddr {
    let text = if ipv6 { format!("[fd02:{id}::2]:8080") } else { format!("10.2.{id}.2:8080") };
    text.parse().expect("an address")
}

/// The port of the service.
pub const PORT: u16 = 80;

/// The service's frontend.
pub fn vip(ipv6: bool) -> SocketAddr {
    let ip: IpAddr = if ipv6 { "fd09::9".parse() } else { "10.9.9.9".parse() }.expect("an address");
    SocketAddr::new(ip, PORT)
}

pub fn client(ipv6: bool, number: u8) -> SocketAddr {
    let ip: IpAddr = if ipv6 { "fd01::2".parse() } else { "10.1.0.2".parse() }.expect("an address");
    SocketAddr::new(ip, 40_000 + u16::from(number))
}

/// Two bits each.
fn shares(weights: u8) -> [u32; 3] {
    [0, 2, 4].map(|at| u32::from(weights >> at & 3) * 50)
}

impl Lab {
    /// `kind`, bit by bit: family, hook, TCP or UDP, HTTP, TCP timestamps, source translation, timed trials, a small MTU; `weights`: of the versions, two
    /// bits each.
    pub fn new(kind: u8, weights: u8) -> Self {
        let (ipv6, http, maps) = (kind & 1 != 0, kind & 8 != 0, Maps::new());
        let proto = if kind & 4 != 0 && !http { UDP } else { TCP };
        for id in 1..=BACKENDS {
            maps.add_backend(id, addr(backend(ipv6, id).ip()), 8080, proto);
        }
        let frontend = FrontendKey { addr: addr(vip(ipv6).ip()), port: PORT.to_be_bytes(), proto, pad: 0 };
        let [first, second, third] = shares(weights);
        maps.serve(1, frontend, split_by::CONNECTION, &[(first, &[1, 2]), (second, &[3]), (third, &[4])]);
        if http {
            maps.serve_http(1, 1400, Some(rules()));
            maps.change_service(1, |service| service.flags = if kind & 16 != 0 { service_flag::STAMPS } else { 0 });
        } else if kind & 32 != 0 {
            maps.change_service(1, |service| service.snat = snat::ALWAYS);
            let node: IpAddr = if ipv6 { "fd02::1".parse() } else { "10.2.0.1".parse() }.expect("an address");
            maps.assign(BACKEND_SIDE, node);
        }
        if kind & 64 != 0 {
            maps.time_trials();
        }
        let end = |number: u8| End { me: client(ipv6, number), peer: vip(ipv6), seq: 1000, ack: 0 };
        Self {
            maps,
            ipv6,
            proto,
            route: Route::Found { ifindex: BACKEND_SIDE, macs: MACS, mtu: if kind & 128 != 0 { 1300 } else { 1500 } },
            xdp: kind & 2 != 0,
            clients: [0, 1, 2, 3].map(end),
            servers: Vec::new(),
            last: None,
            out: [None, None],
        }
    }

    /// Gives the versions other weights.
    pub fn weigh(&self, weights: u8) {
        let ends = decide::intervals(&shares(weights)).unwrap_or_default();
        self.maps.change_service(1, |service| service.versions.iter_mut().zip(ends).for_each(|(version, end)| version.end = end));
    }

    /// Puts a frame in, and judges what comes of it.
    pub fn put(&mut self, bytes: Vec<u8>, side: u32) {
        if self.xdp {
            let mut frame = self.frame::<true>(&bytes, side);
            let action = self.judged(&mut frame, &bytes, side);
            if action != Action::Pass || frame.bytes != bytes {
                self.last = Some((bytes, side));
                return;
            }
        }
        let mut frame = self.frame::<false>(&bytes, side);
        // What is longer than a packet has come in several.
        frame.segment = if bytes.len() > 1514 { 1400 } else { 0 };
        self.judged(&mut frame, &bytes, side);
        self.last = Some((bytes, side));
    }

    fn frame<const XDP: bool>(&self, bytes: &[u8], side: u32) -> Frame<XDP> {
        let mut frame = Frame::<XDP>::new(bytes, self.route);
        frame.ifindex = side;
        frame
    }

    fn judged<const XDP: bool>(&mut self, frame: &mut Frame<XDP>, bytes: &[u8], side: u32) -> Action {
        let action = frame.run(&self.maps);
        assert_eq!(self.maps.locks_held(), 0, "a lock is kept after {action:?}");
        for (_, clone) in &frame.clones {
            self.left(clone, (bytes, side), "a copy");
        }
        match action {
            Action::Drop => {}
            Action::Pass if frame.bytes == bytes => {}
            Action::Pass | Action::Redirect(_) | Action::RedirectPeer(_) | Action::Neighbour(_) | Action::Return(_) => {
                self.left(&frame.bytes, (bytes, side), "the packet");
            }
            other => panic!("{other:?} is no end"),
        }
        action
    }

    /// What leaves the node for a packet that came.
    fn left(&mut self, out: &[u8], (bytes, side): (&[u8], u32), what: &str) {
        let (came, sound) = (wire::soundness(bytes), wire::soundness(out));
        if came.is_ok_and(|parts| parts.is_some()) {
            assert!(sound.is_ok(), "{what} leaves with {} wrong: {out:02x?}", sound.err().unwrap_or_default());
        }
        let Ok(Some(parts)) = sound else { return };
        if !matches!(parts.proto, 6 | 17) {
            return;
        }
        let (src, dst) = addresses(out, parts);
        // But for an answer to who claims to be the VIP.
        let claimed = wire::parts(bytes).is_some_and(|parts| addresses(bytes, parts).0.ip() == vip(self.ipv6).ip());
        assert!(side != CLIENT_SIDE || dst.ip() != vip(self.ipv6).ip() || claimed, "{what} goes to the VIP: {src} > {dst}");
        let to_client = (0..4).any(|number| client(self.ipv6, number) == dst);
        self.out[usize::from(to_client)] = Some(out.to_vec());
        if parts.proto == 17 {
            self.hear(17, src, dst, [0, 0, 0, 1], to_client);
            return;
        }
        let t = parts.transport;
        let number = |at: usize| u32::from_be_bytes([out[at], out[at + 1], out[at + 2], out[at + 3]]);
        let length = parts.end - t - usize::from(out[t + 12] >> 4) * 4;
        self.hear(6, src, dst, [number(t + 4), number(t + 8), u32::from(out[t + 13]), length as u32], to_client);
    }

    /// The end that gets a segment goes on behind it. `seen`: sequence number, acknowledgement, flags, bytes.
    fn hear(&mut self, proto: u8, src: SocketAddr, dst: SocketAddr, [seq, ack, flags, len]: [u32; 4], to_client: bool) {
        let next = seq.wrapping_add(len).wrapping_add(flags & 1).wrapping_add(flags >> 1 & 1);
        if to_client {
            self.clients.iter_mut().filter(|end| end.me == dst && end.peer == src).for_each(|end| end.ack = next);
            return;
        }
        let known = self.servers.iter_mut().find(|(p, end)| (*p, end.me, end.peer) == (proto, dst, src));
        match known {
            Some((_, end)) => end.ack = next,
            None => {
                let end = End { me: dst, peer: src, seq: if flags & 2 != 0 { 0xffff_fff0 } else { ack }, ack: next };
                self.servers.insert(0, (proto, end));
                self.servers.truncate(8);
            }
        }
    }
}

/// Addresses, and what stands where TCP and UDP have their ports.
pub fn addresses(bytes: &[u8], parts: Parts) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| -> IpAddr {
        if parts.ipv6 {
            <[u8; 16]>::try_from(&bytes[at..at + 16]).expect("16").into()
        } else {
            <[u8; 4]>::try_from(&bytes[at..at + 4]).expect("4").into()
        }
    };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (src, dst) = if parts.ipv6 { (ip(22), ip(38)) } else { (ip(26), ip(30)) };
    (SocketAddr::new(src, port(parts.transport)), SocketAddr::new(dst, port(parts.transport + 2)))
}

/// The header `x-v` with `1`, `2` or `3` names the version, the header `user` is the key.
fn rules() -> Box<HttpRules> {
    let mut rules = Box::new(HttpRules::empty());
    let text = b"x-v123user";
    rules.pool[..text.len()].copy_from_slice(text);
    rules.pool_len = text.len() as u32;
    rules.name_filter = name_bit(b"x-v") | name_bit(b"user");
    (rules.rule_count, rules.predicate_count, rules.name_count, rules.key_name) = (3, 3, 2, 1);
    for i in 0..3u8 {
        rules.predicates[usize::from(i)] = HttpPredicate { at: 3 + u16::from(i), len: 1, kind: http_match::EXACT };
        rules.rules[usize::from(i)] = HttpRule { mask: 1 << i, version: u32::from(i) + 1, pad: 0 };
    }
    rules.names[0] = HttpName { at: 0, len: 3, subject: http_subject::HEADER, first: 0, count: 3, pad: 0 };
    rules.names[1] = HttpName { at: 6, len: 4, subject: http_subject::HEADER, first: 3, count: 0, pad: 0 };
    rules
}
