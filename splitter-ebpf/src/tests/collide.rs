//! One client port for two frontends whose backends share an address and port: two flows that a backend must tell apart.
use super::*;
use crate::env::{Env, Table, Tables};

/// Two services, the second with a VIP of its own, and one server behind both.
struct Pair {
    lab: Lab,
    vips: [SocketAddr; 2],
    server: SocketAddr,
}

impl Pair {
    fn new(ipv6: bool, proto: u8) -> Self {
        let lab = Lab::weighted(ipv6, proto, [0, 100]);
        let server = backend(ipv6, 3);
        let other: SocketAddr = if ipv6 { "[fd09::a]:80" } else { "10.9.9.10:80" }.parse().expect("an address");
        lab.maps.add_backend(4, addr(server.ip()), server.port(), proto);
        let frontend = FrontendKey { addr: addr(other.ip()), port: other.port().to_be_bytes(), proto, pad: 0 };
        lab.maps.serve(2, frontend, split_by::CONNECTION, &[(100, &[4])]);
        Self { vips: [lab.vip, other], lab, server }
    }

    fn all(proto: u8) -> [Self; 2] {
        [false, true].map(|ipv6| Self::new(ipv6, proto))
    }

    /// A packet of the client to one of the VIPs; what the server sees.
    fn send(&self, to: usize, flags: u8, payload: &[u8]) -> Seen {
        let lab = &self.lab;
        let mut frame = lab.frame(&build(lab.proto, lab.client, self.vips[to], flags, (1000, 5001), payload), CLIENT_SIDE);
        assert!(on_its_way(frame.run(&lab.maps)));
        let seen = parse(&frame.bytes);
        assert_eq!((seen.dst, seen.src.ip(), &seen.payload[..]), (self.server, lab.client.ip(), payload));
        seen
    }

    /// The server answers what it saw; asserts that the client hears it from the VIP.
    fn answer(&self, seen: SocketAddr, from: usize, flags: u8, payload: &[u8]) {
        let (action, bytes) = self.lab.reply(self.server, seen, flags, payload);
        let heard = parse(&bytes);
        assert_eq!((heard.src, heard.dst, &heard.payload[..]), (self.vips[from], self.lab.client, payload));
        assert!(on_its_way(action));
    }

    /// A handshake; the client as the server sees it.
    fn connect(&self, to: usize) -> SocketAddr {
        let seen = self.send(to, tcp::SYN, &[]).src;
        self.answer(seen, to, tcp::SYN | tcp::ACK, &[]);
        assert_eq!(self.send(to, tcp::ACK, &[]).src, seen);
        seen
    }

    /// Both FINs, and the last acknowledgement.
    fn close(&self, to: usize, seen: SocketAddr) {
        self.send(to, tcp::FIN | tcp::ACK, &[]);
        self.answer(seen, to, tcp::FIN | tcp::ACK, &[]);
        self.send(to, tcp::ACK, &[]);
    }

    /// Data both ways, on both.
    fn speak(&self, seen: [SocketAddr; 2]) {
        for (i, seen) in seen.into_iter().enumerate() {
            let text = [b"first", b"other"][i];
            assert_eq!(self.send(i, tcp::ACK, text).src, seen);
            self.answer(seen, i, tcp::ACK, text);
        }
    }

    fn assert_apart(&self, first: SocketAddr, other: SocketAddr) {
        assert_eq!(first, self.lab.client, "untouched");
        assert_eq!(other.ip(), first.ip(), "the backend sees who it is");
        assert!((10_000..30_000).contains(&other.port()), "{other}");
    }

    fn forget_forward(&self, table: Table, to: usize) {
        match (self.lab.client, self.vips[to]) {
            (SocketAddr::V4(client), SocketAddr::V4(vip)) => {
                let word = |ip: &std::net::Ipv4Addr| [u32::from_ne_bytes(ip.octets())];
                let ports = crate::packet::ports(client.port().to_be(), vip.port().to_be());
                let key = FlowKey { src: word(client.ip()), dst: word(vip.ip()), ports, proto: self.lab.proto as u32 };
                assert!(Tables::<V4>::flow(&self.lab.maps, table, &key).is_some());
                Tables::<V4>::drop_flow(&self.lab.maps, table, &key);
            }
            _ => panic!("IPv4 only"),
        }
    }

    fn ports(&self, first: u16, count: u16) {
        let config = self.lab.maps.config().expect("the fake has one");
        config.set(Config { snat_port_first: first, snat_port_count: count, ..config.get() });
    }
}

/// Also through the neighbour table, as once a refresh period.
fn on_its_way(action: Action) -> bool {
    matches!(action, Action::Redirect(BACKEND_SIDE) | Action::Neighbour(BACKEND_SIDE))
}

#[test]
fn established_connections_of_one_client_port() {
    for pair in Pair::all(TCP) {
        let first = pair.connect(0);
        let other = pair.connect(1);
        pair.assert_apart(first, other);
        pair.speak([first, other]);
        assert_eq!(pair.lab.sizes(), [4, 0, 0, 0, 2]);
        pair.close(1, other);
        pair.speak([first, other]);
        assert_eq!(pair.lab.sizes(), [2, 0, 0, 2, 2], "one is closing");
        // The client connects again: nobody is in the way of its own port's flow, and the claim is given back or kept.
        let again = pair.connect(1);
        pair.assert_apart(first, again);
        pair.speak([first, again]);
        assert_eq!(pair.lab.sizes()[4], 2);
    }
}

#[test]
fn handshakes_of_one_client_port_at_once() {
    for pair in Pair::all(TCP) {
        let seen = [0, 1].map(|to| pair.send(to, tcp::SYN, &[]).src);
        pair.assert_apart(seen[0], seen[1]);
        // A SYN that comes again is the same connection.
        for (to, seen) in seen.into_iter().enumerate() {
            assert_eq!(pair.send(to, tcp::SYN, &[]).src, seen);
        }
        for (to, seen) in seen.into_iter().enumerate().rev() {
            pair.answer(seen, to, tcp::SYN | tcp::ACK, &[]);
            pair.send(to, tcp::ACK, &[]);
        }
        pair.speak(seen);
        assert_eq!((pair.lab.sizes()[0], pair.lab.sizes()[4]), (4, 2));
    }
}

#[test]
fn datagrams_of_one_client_port() {
    for pair in Pair::all(UDP) {
        let seen = [0, 1].map(|to| pair.send(to, 0, b"one").src);
        pair.assert_apart(seen[0], seen[1]);
        pair.speak(seen);
        pair.speak(seen);
        assert_eq!((pair.lab.sizes()[1], pair.lab.sizes()[4]), (4, 2));
    }
}

/// The backend may have the old connection in TIME-WAIT, and its last packets are on their way.
#[test]
fn a_connection_that_has_just_ended_is_left_alone() {
    for pair in Pair::all(TCP) {
        let first = pair.connect(0);
        pair.close(0, first);
        let other = pair.connect(1);
        pair.assert_apart(first, other);
        pair.speak([first, other]);
        assert_eq!(pair.lab.sizes(), [2, 0, 0, 2, 2]);
        // The same frontend again: no collision.
        assert_eq!(pair.connect(0), first);
        pair.speak([first, other]);
    }
}

/// What is left of a flow is no other flow.
#[test]
fn a_flow_does_not_collide_with_its_own_rest() {
    let pair = Pair::new(false, TCP);
    let seen = pair.connect(0);
    pair.send(0, tcp::ACK, b"request");
    pair.answer(seen, 0, tcp::ACK, b"response");
    pair.forget_forward(Table::Tcp, 0);
    for flags in [tcp::ACK, tcp::SYN] {
        assert_eq!(pair.send(0, flags, &[]).src, seen);
    }
    assert_eq!((pair.lab.sizes()[4], pair.lab.maps.counted(Reason::RecoveredFlow)), (0, 1));
    let pair = Pair::new(false, UDP);
    let seen = pair.send(0, 0, b"one").src;
    pair.forget_forward(Table::Udp, 0);
    assert_eq!((pair.send(0, 0, b"two").src, pair.lab.sizes()[4]), (seen, 0));
}

#[test]
fn a_recovered_flow_keeps_its_port() {
    let pair = Pair::new(false, TCP);
    let seen = [pair.connect(0), pair.connect(1)];
    pair.assert_apart(seen[0], seen[1]);
    pair.speak(seen);
    pair.forget_forward(Table::Tcp, 1);
    pair.speak(seen);
    assert_eq!((pair.lab.sizes()[4], pair.lab.maps.counted(Reason::RecoveredFlow)), (2, 1));
    // Also when the flow that it collided with is over.
    pair.forget_forward(Table::Tcp, 0);
    pair.lab.maps.forget_reverse(pair.server, seen[0]);
    assert_eq!(pair.send(1, tcp::ACK, b"more").src, seen[1]);
}

/// A port that is given to a flow may be the client's own choice for another connection: whoever comes second gets another one.
#[test]
fn a_given_port_is_nobodys() {
    let mut pair = Pair::new(false, TCP);
    let first = pair.connect(0);
    pair.ports(first.port() + 1, 1);
    pair.lab.client.set_port(first.port() + 1);
    let taken = pair.connect(0);
    assert_eq!(taken, pair.lab.client);
    pair.lab.client = first;
    let mut syn = pair.lab.frame(&build(TCP, first, pair.vips[1], tcp::SYN, (1, 0), &[]), CLIENT_SIDE);
    assert_eq!(syn.run(&pair.lab.maps), Action::Drop, "the only port is taken");
    assert_eq!(pair.lab.maps.counted(Reason::SnatPortsExhausted), 1);
    // The other way round.
    pair.ports(20_000, 1);
    let other = pair.connect(1);
    assert_eq!(other.port(), 20_000);
    pair.ports(20_001, 1);
    pair.lab.client.set_port(20_000);
    assert_eq!(pair.connect(1).port(), 20_001);
    pair.lab.client = first;
    pair.speak([first, other]);
}

#[test]
fn a_given_port_is_nobodys_for_datagrams() {
    let mut pair = Pair::new(true, UDP);
    let first = pair.send(0, 0, b"one").src;
    pair.lab.client.set_port(first.port() + 1);
    assert_eq!(pair.send(0, 0, b"one").src, pair.lab.client);
    pair.ports(first.port() + 1, 1);
    pair.lab.client = first;
    let mut datagram = pair.lab.frame(&build(UDP, first, pair.vips[1], 0, (0, 0), b"one"), CLIENT_SIDE);
    assert_eq!((datagram.run(&pair.lab.maps), pair.lab.maps.counted(Reason::SnatPortsExhausted)), (Action::Drop, 1));
    pair.ports(first.port() + 2, 1);
    let other = pair.send(1, 0, b"one").src;
    pair.speak([first, other]);
}

#[test]
fn a_refused_connection_gives_its_port_back() {
    for pair in Pair::all(TCP) {
        let first = pair.connect(0);
        let other = pair.send(1, tcp::SYN, &[]).src;
        let (_, bytes) = pair.lab.reply(pair.server, other, tcp::RST | tcp::ACK, &[]);
        assert_eq!((parse(&bytes).rst, parse(&bytes).dst), (true, pair.lab.client));
        assert_eq!(pair.lab.sizes(), [2, 0, 1, 0, 0]);
        pair.speak([first, pair.connect(1)]);
    }
}
