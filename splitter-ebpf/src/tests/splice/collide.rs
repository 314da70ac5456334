//! One client port for several frontends with the same backends: legs that a backend must tell apart.
use super::*;
use crate::{
    env::{Env, Tables},
    tests::frames::{build, parse},
};

/// A frontend of a further service, with backends of the same addresses. `x-v` names versions as at the first one.
fn further(lab: &Http, id: u32, vip: &str, http: bool) -> SocketAddr {
    let vip: SocketAddr = vip.parse().expect("an address");
    let first = id * 10;
    for i in 1..=4 {
        lab.maps.add_backend(first + i, addr(backend(lab.ipv6(), i).ip()), 8080, TCP);
    }
    let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto: TCP, pad: 0 };
    let ids: Vec<u32> = (1..=4).map(|i| first + i).collect();
    lab.maps.serve(id, frontend, split_by::CONNECTION, &[(100, &ids[..2]), (0, &ids[2..3]), (0, &ids[3..])]);
    one_backend(lab, id, first + 1);
    if http {
        lab.maps.serve_http(id, MSS, Some(rules()));
    }
    vip
}

/// A further frontend of the lab's own service.
fn frontend(lab: &Http, vip: &str) -> SocketAddr {
    let vip: SocketAddr = vip.parse().expect("an address");
    let frontend = FrontendKey { addr: addr(vip.ip()), port: vip.port().to_be_bytes(), proto: TCP, pad: 0 };
    lab.maps.serve(1, frontend, split_by::CONNECTION, &[(100, &[1, 2]), (0, &[3]), (0, &[4])]);
    lab.maps.serve_http(1, MSS, Some(rules()));
    vip
}

/// A lab whose version 1 is one backend, at both families, and a second http frontend: another VIP, or another port of the same; of another
/// service, or of the same.
fn labs() -> impl Iterator<Item = (Http, SocketAddr)> {
    let frontends = [(false, "10.9.9.10:80"), (false, "10.9.9.9:81"), (true, "[fd09::a]:80"), (true, "[fd09::9]:81")];
    frontends.into_iter().flat_map(|(ipv6, other)| {
        [true, false].map(|own| {
            let lab = Http::new(ipv6);
            let other = if own { frontend(&lab, other) } else { further(&lab, 2, other, true) };
            one_backend(&lab, 1, 1);
            (lab, other)
        })
    })
}

fn one_backend(lab: &Http, service: u32, backend: u32) {
    lab.maps.change_service(service, |service| (service.versions[0].size, service.versions[0].table) = (1, backend));
}

/// A connection of the lab's client port to another frontend.
fn client_of<'a>(lab: &'a Http, vip: SocketAddr) -> End<'a> {
    let mut client = End { peer: vip, seq: 77_000, ..lab.stranger() };
    let syn_ack = one(client.send(SYN, &[]));
    client.ack = syn_ack.seq;
    client.hear(&syn_ack);
    assert_eq!(client.send(ACK, &[]), []);
    client
}

fn apart(lab: &Http, other: &End<'_>) {
    assert_eq!(other.peer.ip(), lab.client.ip(), "the backend sees who it is");
    assert!((10_000..30_000).contains(&other.peer.port()), "{}", other.peer);
}

#[test]
fn two_frontends_of_one_client_port() {
    for (lab, vip) in labs() {
        let (mut client, mut server) = lab.ready();
        let mut other = client_of(&lab, vip);
        let mut leg = lab.open(&mut other, GET);
        assert_eq!((leg.me, server.peer), (server.me, lab.client));
        apart(&lab, &leg);
        for _ in 0..3 {
            lab.respond(&mut other, &mut leg, OK);
            server.hear(&one(client.say(GET)));
            leg.hear(&one(other.say(GET)));
            lab.respond(&mut client, &mut server, OK);
        }
        lab.respond(&mut other, &mut leg, OK);
        assert_eq!(lab.entries(), [2, 2]);
        other.send(RST, &[]);
        assert_eq!(lab.entries(), [1, 1]);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        client.send(RST, &[]);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

/// A leg is found by the client's address and port, which do not say whose it is.
#[test]
fn idle_legs_stay_with_their_connection() {
    for (lab, vip) in labs() {
        let (mut client, mut first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut second, OK);
        // The first leg is idle, to a backend that the other connection goes to.
        let mut other = client_of(&lab, vip);
        let mut leg = lab.open(&mut other, GET);
        apart(&lab, &leg);
        lab.respond(&mut other, &mut leg, OK);
        // And a leg that is in use.
        let mut another = lab.open(&mut other, GET2);
        apart(&lab, &another);
        lab.respond(&mut other, &mut another, OK);
        first.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut first, OK);
        // Now the second is idle.
        let mut leg = lab.open(&mut other, GET);
        lab.respond(&mut other, &mut leg, OK);
        let mut another = lab.open(&mut other, GET2);
        lab.respond(&mut other, &mut another, OK);
        second.hear(&one(client.say(GET2)));
        lab.respond(&mut client, &mut second, OK);
        // The end of one is not the end of the other's.
        assert_eq!(other.send(RST, &[]).len(), 1);
        assert_eq!(lab.entries(), [1, 2]);
        first.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut first, OK);
        assert_eq!(client.send(RST, &[]).len(), 2);
        assert_eq!(lab.entries(), [0, 0]);
    }
}

/// The refusal in hand is a backend's packet, and the next backend is one that the client's port has a connection to.
#[test]
fn after_a_refusal() {
    for (lab, vip) in labs() {
        let (mut client, mut server) = lab.ready();
        for service in [1, 2] {
            if lab.maps.service(service).is_some() {
                lab.maps.change_service(service, |service| (service.versions[0].size, service.versions[0].table) = (509, 7));
            }
        }
        let mut other = client_of(&lab, vip);
        let (mut syn, mut refusals) = (one(other.say(GET)), 0);
        while syn.dst != server.me {
            let refusal = Wire { flags: RST | ACK, ack: syn.seq.wrapping_add(1), ..lab.backend_of(&syn).1 };
            syn = one(lab.run(&Wire { options: Vec::new(), ..refusal }, BACKEND_SIDE));
            refusals += 1;
            assert!(refusals < 3);
        }
        let mut leg = lab.accept(&syn, GET);
        apart(&lab, &leg);
        lab.respond(&mut other, &mut leg, OK);
        server.hear(&one(client.say(GET)));
        lab.respond(&mut client, &mut server, OK);
        other.send(RST, &[]);
        assert_eq!(lab.entries(), [1, 1]);
    }
}

/// An idle leg was evicted, and the other connection has one in its place.
#[test]
fn the_end_of_one_connection_is_not_that_of_the_other() {
    for (lab, vip) in labs() {
        let (mut client, first) = lab.ready();
        let mut second = lab.open(&mut client, GET2);
        lab.respond(&mut client, &mut second, OK);
        lab.evict(&first);
        let mut other = client_of(&lab, vip);
        let mut leg = lab.open(&mut other, GET);
        assert_eq!(leg.peer, lab.client);
        lab.respond(&mut other, &mut leg, OK);
        assert_eq!(client.send(RST, &[]).len(), 1);
        leg.hear(&one(other.say(GET)));
        lab.respond(&mut other, &mut leg, OK);
    }
}

/// The client's entry was evicted, and the client begins anew: its old leg is in nobody's way.
#[test]
fn a_leg_that_was_left_behind_is_replaced() {
    for (lab, _) in labs() {
        lab.ready();
        let key = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => ([u32::from_ne_bytes(ip.octets())], [0; 4]),
            IpAddr::V6(ip) => ([0], std::array::from_fn(|i| u32::from_ne_bytes(ip.octets()[4 * i..4 * i + 4].try_into().expect("four")))),
        };
        let ((src4, src6), (dst4, dst6)) = (key(lab.client.ip()), key(lab.vip.ip()));
        let ports = crate::packet::ports(lab.client.port().to_be(), lab.vip.port().to_be());
        Tables::<V4>::drop_spliced(&lab.maps, &FlowKey { src: src4, dst: dst4, ports, proto: TCP as u32 });
        Tables::<V6>::drop_spliced(&lab.maps, &FlowKey { src: src6, dst: dst6, ports, proto: TCP as u32 });
        assert_eq!(lab.entries(), [0, 1]);
        let (_, server) = lab.ready();
        assert_eq!((server.peer, lab.entries()), (lab.client, [1, 1]));
    }
}

/// A port that the client itself has a connection from is not given to another one.
#[test]
fn a_given_port_is_no_legs() {
    for (mut lab, vip) in labs() {
        let client = lab.client;
        let config = lab.maps.config().expect("the fake has one");
        config.set(Config { snat_port_first: client.port() + 1, snat_port_count: 2, ..config.get() });
        lab.ready();
        lab.client.set_port(client.port() + 1);
        lab.ready();
        lab.client = client;
        let mut other = client_of(&lab, vip);
        let leg = lab.open(&mut other, GET);
        assert_eq!(leg.peer, SocketAddr::new(client.ip(), client.port() + 2));
        other.send(RST, &[]);
    }
}

/// A SYN that is sent again, and one to the only backend there is: the same connection.
#[test]
fn the_same_leg_again() {
    for (lab, _) in labs() {
        let mut client = lab.client();
        let syn = one(client.say(GET));
        for wait in [200, 200, 300] {
            lab.maps.pass(wait);
            assert_eq!(one(client.again(ACK | PSH, GET)), syn);
        }
        let mut server = lab.accept(&syn, GET);
        lab.respond(&mut client, &mut server, OK);
    }
}

/// A connection of layer 4: the backend's answers to its SYN come as those to `client`'s.
struct Plain<'a> {
    lab: &'a Http,
    vip: SocketAddr,
}

impl Plain<'_> {
    fn run(&self, src: SocketAddr, dst: SocketAddr, flags: u8, payload: &[u8], side: u32) -> frames::Seen {
        let numbers = if side == CLIENT_SIDE { (1000, 5001) } else { (5000, 1001) };
        let mut frame = Frame::<false>::new(&build(TCP, src, dst, flags, numbers, payload), ROUTE);
        frame.ifindex = side;
        let action = frame.run(&self.lab.maps);
        assert!(matches!(action, Action::Redirect(BACKEND_SIDE) | Action::Neighbour(BACKEND_SIDE)), "{action:?}");
        parse(&frame.bytes)
    }

    /// The packet's source as `server` sees it.
    fn send(&self, server: SocketAddr, flags: u8, payload: &[u8]) -> SocketAddr {
        let seen = self.run(self.lab.client, self.vip, flags, payload, CLIENT_SIDE);
        assert_eq!((seen.dst, &seen.payload[..]), (server, payload));
        seen.src
    }

    fn answer(&self, server: SocketAddr, seen: SocketAddr, flags: u8, payload: &[u8]) {
        let heard = self.run(server, seen, flags, payload, BACKEND_SIDE);
        assert_eq!((heard.src, heard.dst, &heard.payload[..]), (self.vip, self.lab.client, payload));
    }

    fn connect(&self, server: SocketAddr) -> SocketAddr {
        let seen = self.send(server, SYN, &[]);
        self.answer(server, seen, SYN | ACK, &[]);
        assert_eq!(self.send(server, ACK, &[]), seen);
        seen
    }

    fn speak(&self, server: SocketAddr, seen: SocketAddr) {
        assert_eq!(self.send(server, ACK, b"ping"), seen);
        self.answer(server, seen, ACK, b"pong");
    }
}

#[test]
fn a_leg_and_a_connection_of_layer_4() {
    for (ipv6, other) in [(false, "10.9.9.10:80"), (true, "[fd09::a]:80")] {
        for leg_first in [true, false] {
            let lab = Http::new(ipv6);
            one_backend(&lab, 1, 1);
            lab.layer4.set(true);
            let plain = Plain { lab: &lab, vip: further(&lab, 2, other, false) };
            let server_at = backend(ipv6, 1);
            let early = (!leg_first).then(|| plain.connect(server_at));
            let (mut client, mut server) = lab.ready();
            let seen = early.unwrap_or_else(|| plain.connect(server_at));
            let (own, given) = if leg_first { (server.peer, seen) } else { (seen, server.peer) };
            assert_eq!((own, given.ip()), (lab.client, lab.client.ip()));
            assert!((10_000..30_000).contains(&given.port()), "{given}");
            for _ in 0..2 {
                plain.speak(server_at, seen);
                server.hear(&one(client.say(GET)));
                lab.respond(&mut client, &mut server, OK);
            }
            client.send(RST, &[]);
            plain.speak(server_at, seen);
            // The leg again, with the other one half-open, open, and closing.
            let (mut client, mut server) = lab.ready();
            assert_eq!(server.peer == lab.client, leg_first);
            plain.speak(server_at, seen);
            server.hear(&one(client.say(GET)));
            lab.respond(&mut client, &mut server, OK);
            client.send(RST, &[]);
        }
    }
}

#[test]
fn a_leg_and_a_half_open_or_closing_connection() {
    for (ipv6, other) in [(false, "10.9.9.10:80"), (true, "[fd09::a]:80")] {
        for closing in [true, false] {
            let lab = Http::new(ipv6);
            one_backend(&lab, 1, 1);
            lab.layer4.set(true);
            let plain = Plain { lab: &lab, vip: further(&lab, 2, other, false) };
            let server_at = backend(ipv6, 1);
            if closing {
                plain.connect(server_at);
                plain.send(server_at, RST, &[]);
            } else {
                plain.send(server_at, SYN, &[]);
            }
            let (mut client, mut server) = lab.ready();
            apart(&lab, &server);
            server.hear(&one(client.say(GET)));
            lab.respond(&mut client, &mut server, OK);
            plain.answer(server_at, lab.client, if closing { ACK } else { SYN | ACK }, &[]);
        }
    }
}
