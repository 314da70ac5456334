//! Source ports: who has one, for how long, and who may take it.
use super::*;
use crate::env::{Env, Table, Tables};

/// A service that is always translated, with one backend.
struct Node {
    lab: Lab,
    server: SocketAddr,
}

impl Node {
    fn new(proto: u8) -> Self {
        let lab = Lab::weighted(false, proto, [0, 100]);
        lab.maps.change_service(1, |service| service.snat = snat::ALWAYS);
        lab.maps.add_iface(BACKEND_SIDE, Iface { addr4: [10, 2, 0, 1], ..Iface::default() });
        Self { server: backend(false, 3), lab }
    }

    fn client(&self, i: u32) -> SocketAddr {
        SocketAddr::from(([10, 1, (i >> 8) as u8, i as u8], 1_024 + (i >> 16) as u16))
    }

    /// A packet of a client; what the server sees as its source, `None` when it is dropped.
    fn send(&self, client: SocketAddr, flags: u8, payload: &[u8]) -> Option<SocketAddr> {
        let bytes = build(self.lab.proto, client, self.lab.vip, flags, (1000, 5001), payload);
        let mut frame = self.lab.frame(&bytes, CLIENT_SIDE);
        match frame.run(&self.lab.maps) {
            Action::Redirect(BACKEND_SIDE) | Action::Neighbour(BACKEND_SIDE) => {
                let seen = parse(&frame.bytes);
                assert_eq!((seen.dst, seen.src.ip()), (self.server, IpAddr::from([10, 2, 0, 1])));
                Some(seen.src)
            }
            Action::Drop => None,
            other => panic!("{other:?}"),
        }
    }

    /// The server answers what it saw; whom that reaches.
    fn answer(&self, seen: SocketAddr, flags: u8, payload: &[u8]) -> SocketAddr {
        let (action, bytes) = self.lab.reply(self.server, seen, flags, payload);
        assert!(matches!(action, Action::Redirect(_) | Action::Neighbour(_)), "{action:?}");
        parse(&bytes).dst
    }

    fn open(&self, client: SocketAddr) -> SocketAddr {
        let seen = self.send(client, tcp::SYN, &[]).expect("a port");
        assert_eq!(self.answer(seen, tcp::SYN | tcp::ACK, &[]), client);
        assert_eq!(self.send(client, tcp::ACK, &[]), Some(seen));
        seen
    }

    fn ports(&self, count: u16) {
        let config = self.lab.maps.config().expect("the fake has one");
        config.set(Config { snat_port_first: 1_024, snat_port_count: count, ..config.get() });
    }

    fn exhausted(&self) -> u64 {
        self.lab.maps.counted(Reason::SnatPortsExhausted)
    }
}

#[test]
fn what_nobody_answers_has_a_table_of_its_own() {
    let node = Node::new(TCP);
    let opened: Vec<_> = (0..100).map(|i| (node.client(i), node.open(node.client(i)))).collect();
    assert_eq!(node.lab.maps.v4.translations(), [200, 0]);
    for i in 1_000..3_000 {
        node.send(node.client(i), tcp::SYN, &[]);
    }
    assert_eq!(node.lab.maps.v4.translations(), [200, 4_000]);
    // The flood's table is full and forgets: whoever was answered speaks on.
    node.lab.maps.v4.forget_claims();
    for (client, seen) in &opened {
        assert_eq!(node.send(*client, tcp::ACK, b"ask"), Some(*seen));
        assert_eq!(node.answer(*seen, tcp::ACK, b"answer"), *client);
    }
    // A client whose claim was forgotten gets another one.
    node.open(node.client(1_000));

    let node = Node::new(UDP);
    let seen = node.send(node.client(1), 0, b"ask").expect("a port");
    assert_eq!(node.lab.maps.v4.translations(), [0, 2]);
    node.answer(seen, 0, b"answer");
    assert_eq!(node.lab.maps.v4.translations(), [2, 0]);
    node.lab.maps.v4.forget_claims();
    assert_eq!(node.send(node.client(1), 0, b"again"), Some(seen));
}

/// 250 queries a second to one server, each from another client, without an agent that sweeps: more in all than there are ports.
#[test]
fn queries_of_many_clients_to_one_server_lose_nothing() {
    let node = Node::new(UDP);
    node.ports(31_744);
    for i in 0..60_000 {
        let client = node.client(i);
        let seen = node.send(client, 0, b"ask").unwrap_or_else(|| panic!("query {i}"));
        assert_eq!(node.answer(seen, 0, b"answer"), client, "query {i}");
        node.lab.maps.pass(4);
    }
    assert_eq!(node.exhausted(), 0);
}

/// The same of 512 connections a second, which end.
#[test]
fn connections_of_many_clients_to_one_server_lose_nothing() {
    let node = Node::new(TCP);
    node.ports(20_000);
    for i in 0..45_000 {
        let client = node.client(i);
        let seen = node.open(client);
        node.send(client, tcp::FIN | tcp::ACK, &[]);
        assert_eq!(node.answer(seen, tcp::FIN | tcp::ACK, &[]), client);
        node.send(client, tcp::ACK, &[]);
        node.lab.maps.pass(2);
    }
    assert_eq!(node.exhausted(), 0);
}

#[test]
fn ports_are_taken_from_who_needs_them_no_more_and_from_nobody_else() {
    // A few ports, all of which a connection tries.
    let full = |count: u16| {
        let node = Node::new(TCP);
        node.ports(count);
        node
    };
    // Established: never.
    let node = full(4);
    let mut holders = Vec::new();
    for i in 0..200 {
        let client = node.client(i);
        if let Some(seen) = node.send(client, tcp::SYN, &[]) {
            node.answer(seen, tcp::SYN | tcp::ACK, &[]);
            node.send(client, tcp::ACK, &[]);
            holders.push((client, seen));
        }
    }
    assert_eq!((holders.len(), node.lab.tcp_entries()), (4, 8));
    node.lab.maps.pass(3_600_000);
    assert_eq!(node.send(node.client(999), tcp::SYN, &[]), None);
    for (client, seen) in &holders {
        assert_eq!(node.answer(*seen, tcp::ACK, b"still here"), *client);
    }
    // One of them ends: a second later its port is another's.
    let (client, seen) = holders[0];
    node.send(client, tcp::RST, &[]);
    assert_eq!(node.send(node.client(1_000), tcp::SYN, &[]), None, "its last segments may still come");
    node.lab.maps.pass(1_100);
    assert_eq!(node.send(node.client(1_001), tcp::SYN, &[]), Some(seen));
    // That one was never answered.
    assert_eq!(node.send(node.client(1_002), tcp::SYN, &[]), None);
    node.lab.maps.pass(300);
    assert_eq!(node.send(node.client(1_003), tcp::SYN, &[]), Some(seen));
    assert_eq!(node.lab.maps.v4.translations(), [6, 2], "whoever lost a port left nothing");
    assert_eq!(node.lab.sizes(), [6, 0, 2, 0, 8]);
}

fn key(src: SocketAddr, dst: SocketAddr) -> FlowKey<V4> {
    let word = |addr: SocketAddr| match addr.ip() {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets())],
        IpAddr::V6(_) => panic!("IPv4 only"),
    };
    FlowKey { src: word(src), dst: word(dst), ports: crate::packet::ports(src.port().to_be(), dst.port().to_be()), proto: TCP as u32 }
}

/// What an evicted flow has left is in nobody's way.
#[test]
fn a_claim_without_a_flow_is_taken_when_nothing_else_is_free() {
    let node = Node::new(TCP);
    node.ports(1);
    let client = node.client(1);
    let seen = node.open(client);
    for key in [key(client, node.lab.vip), key(node.server, seen)] {
        Tables::<V4>::drop_flow(&node.lab.maps, Table::Tcp, &key);
        Tables::<V4>::drop_half(&node.lab.maps, &key);
    }
    assert_eq!(node.open(node.client(2)), seen);
}

/// Of what a client's SYN has left, a flood pushes out the way back: the answer reaches nobody, and the client's next SYN makes all of it anew.
#[test]
fn a_half_open_flow_without_its_way_back_begins_anew() {
    for claim in [true, false] {
        let node = Node::new(TCP);
        let client = node.client(1);
        let seen = node.send(client, tcp::SYN, &[]).expect("a port");
        let back = key(node.server, seen);
        if claim {
            Tables::<V4>::drop_snat(&node.lab.maps, &back);
        } else {
            Tables::<V4>::drop_half(&node.lab.maps, &back);
        }
        node.lab.maps.pass(1_000);
        assert_eq!(node.open(client), node.send(client, tcp::ACK, b"ask").expect("a connection"));
        assert_eq!((node.lab.maps.v4.translations(), node.lab.tcp_entries()), ([2, 0], 2));
    }
}
