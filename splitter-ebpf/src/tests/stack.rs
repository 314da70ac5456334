//! Flows that go through the node's stack: translated on the client's side alone, both ways.
use super::*;
use crate::tests::icmp::{link, open, unreachable};

fn lab(ipv6: bool, proto: u8) -> Lab {
    let lab = Lab::new(ipv6, proto);
    lab.maps.change_service(1, |service| service.flags = service_flag::STACK);
    lab
}

impl Lab {
    /// A packet that the stack sends on to the client's side, from the backends' side; what became of it.
    fn out(&self, bytes: &[u8]) -> (Action, Vec<u8>) {
        let mut frame = Frame::leaving(bytes, ROUTE, CLIENT_SIDE, BACKEND_SIDE);
        let action = frame.run(&self.maps);
        (action, frame.bytes)
    }

    /// A backend's packet on its whole way: nobody touches it where it comes in.
    fn through(&self, from: SocketAddr, flags: u8, payload: &[u8]) -> (Action, Vec<u8>) {
        let bytes = build(self.proto, from, self.client, flags, (5000, 1001), payload);
        let before = self.maps.version(1);
        let mut frame = self.frame(&bytes, BACKEND_SIDE);
        assert_eq!((frame.run(&self.maps), frame.bytes == bytes), (Action::Pass, true), "left alone where it comes in");
        assert_eq!(self.maps.version(1), before, "and not counted");
        self.out(&bytes)
    }

    fn open_by_stack(&self) -> SocketAddr {
        let (action, bytes) = self.send(tcp::SYN, &[]);
        assert_eq!(action, Action::Pass);
        let server = parse(&bytes).dst;
        assert_eq!(self.through(server, tcp::SYN | tcp::ACK, &[]).0, Action::Pass);
        self.send(tcp::ACK, &[]);
        assert_eq!(self.tcp_entries(), 2);
        server
    }
}

#[test]
fn a_connection_goes_through_the_stack() {
    for ipv6 in [false, true] {
        let lab = lab(ipv6, TCP);
        let server = lab.open_by_stack();
        let (action, bytes) = lab.send(tcp::ACK, b"request");
        assert_eq!(action, Action::Pass);
        assert_eq!(
            parse(&bytes),
            Seen { src: lab.client, dst: server, hops: 64, rst: false, payload: b"request".into() },
            "the stack counts hops"
        );
        let (action, bytes) = lab.through(server, tcp::ACK, b"response");
        assert_eq!(action, Action::Pass);
        assert_eq!(parse(&bytes), Seen { src: lab.vip, dst: lab.client, hops: 64, rst: false, payload: b"response".into() });
        // Once more, in the plain way, and at a further egress: translated is translated.
        assert_eq!(parse(&lab.send(tcp::ACK, b"more").1).dst, server);
        let (_, bytes) = lab.through(server, tcp::ACK, b"more");
        assert_eq!(lab.out(&bytes), (Action::Pass, bytes.clone()));
        let counters = lab.maps.version(1);
        assert_eq!((counters.connections, counters.opened, counters.packets_in, counters.packets_out), (1, 1, 4, 3));
        assert_eq!((lab.maps.samples(1, Measure::Connect), lab.maps.samples(1, Measure::FirstByte)), (1, 1));
        assert_eq!(lab.maps.counted(Reason::NoNextHop), 0);
        for (side, flags) in [(true, tcp::FIN | tcp::ACK), (false, tcp::FIN | tcp::ACK), (true, tcp::ACK)] {
            if side {
                lab.send(flags, &[])
            } else {
                lab.through(server, flags, &[])
            };
        }
        assert_eq!((lab.sizes()[0], lab.sizes()[3], lab.maps.version(1).closed), (0, 2, 1));
        // The last acknowledgement goes the same way.
        assert_eq!(parse(&lab.through(server, tcp::ACK, &[]).1).src, lab.vip);
    }
}

#[test]
fn datagrams_go_through_the_stack() {
    for ipv6 in [false, true] {
        let lab = lab(ipv6, UDP);
        let (action, bytes) = lab.send(0, b"question");
        let server = parse(&bytes).dst;
        assert_eq!(action, Action::Pass);
        for _ in 0..2 {
            assert_eq!(parse(&lab.through(server, 0, b"answer").1).src, lab.vip);
        }
        assert_eq!(lab.maps.samples(1, Measure::FirstByte), 1);
    }
}

#[test]
fn the_path_is_of_the_flow() {
    for ipv6 in [false, true] {
        let lab = lab(ipv6, TCP);
        let server = lab.open_by_stack();
        lab.maps.change_service(1, |service| service.flags = 0);
        lab.maps.pass(2_000);
        // Also after a while, when one side was evicted.
        if !ipv6 {
            lab.maps.forget_reverse(server, lab.client);
        }
        assert_eq!(lab.send(tcp::ACK, b"request").0, Action::Pass);
        assert_eq!(parse(&lab.through(server, tcp::ACK, b"response").1).src, lab.vip);
        assert_eq!(lab.tcp_entries(), 2);
        // A flow of the other path stays there as well.
        let other = Lab { client: SocketAddr::new(lab.client.ip(), 40_001), ..lab };
        let (action, bytes) = other.send(tcp::SYN, &[]);
        assert_eq!(action, Action::Redirect(BACKEND_SIDE));
        other.maps.change_service(1, |service| service.flags = service_flag::STACK);
        let server = parse(&bytes).dst;
        assert_eq!(other.reply(server, other.client, tcp::SYN | tcp::ACK, &[]).0, Action::Redirect(BACKEND_SIDE));
        assert_eq!(other.send(tcp::ACK, b"request").0, Action::Redirect(BACKEND_SIDE));
    }
}

#[test]
fn errors_go_through_the_stack() {
    for ipv6 in [false, true] {
        let lab = lab(ipv6, UDP);
        let (_, sent) = lab.send(0, b"question");
        let server = parse(&sent).dst;
        let (_, answered) = lab.through(server, 0, b"answer");
        let router: IpAddr = if ipv6 { "fd02::99" } else { "10.2.0.99" }.parse().expect("an address");
        // About the client's datagram: at egress of its side.
        let error = unreachable(router, lab.client.ip(), &sent, true);
        let mut frame = lab.frame(&error, BACKEND_SIDE);
        assert_eq!((frame.run(&lab.maps), frame.bytes == error), (Action::Pass, true));
        // Another backend can serve: the client is not told, and decided anew.
        assert_eq!(lab.out(&error).0, Action::Drop);
        let (_, sent) = lab.send(0, b"question");
        let second = parse(&sent).dst;
        assert_ne!(second, server);
        let (action, bytes) = lab.out(&unreachable(router, lab.client.ip(), &sent, true));
        let (src, dst, quoted) = open(&bytes);
        assert_eq!((action, src, dst), (Action::Pass, router, lab.client.ip()));
        assert_eq!((super::lax(&link(quoted.clone(), ipv6)).0, super::lax(&link(quoted, ipv6)).1), (lab.client, lab.vip));
        // About the backend's, which the client's side got as one of the VIP: at ingress.
        let (_, _) = lab.send(0, b"question");
        let error = unreachable(lab.client.ip(), lab.vip.ip(), &answered, false);
        let mut frame = lab.frame(&error, CLIENT_SIDE);
        assert_eq!(frame.run(&lab.maps), Action::Pass);
        let (src, dst, _) = open(&frame.bytes);
        assert_eq!((src, dst), (lab.client.ip(), parse(&lab.send(0, b"question").1).dst.ip()));
    }
}

#[test]
fn a_hairpin_is_redirected() {
    for ipv6 in [false, true] {
        let mut lab = lab(ipv6, TCP);
        let node: IpAddr = if ipv6 { "fd02::1" } else { "10.2.0.1" }.parse().expect("an address");
        lab.maps.assign(BACKEND_SIDE, node);
        // The client is the backend that it gets, though behind a port of which the node says nothing.
        for id in [1, 2] {
            lab.client = SocketAddr::new(backend(ipv6, id).ip(), 40_000);
            let (action, bytes) = lab.send(tcp::SYN, &[]);
            let seen = parse(&bytes);
            let own = seen.dst.ip() == lab.client.ip();
            assert_eq!((action, seen.src.ip()), if own { (Action::Redirect(BACKEND_SIDE), node) } else { (Action::Pass, lab.client.ip()) });
        }
    }
}

#[test]
fn a_dead_backends_client_is_reset() {
    for (ipv6, late) in [(false, false), (false, true), (true, false), (true, true)] {
        let lab = lab(ipv6, TCP);
        let server = lab.open_by_stack();
        for id in [1, 2] {
            lab.maps.set_state(id, backend_state::DOWN);
        }
        let (action, bytes) = if late { lab.through(server, tcp::ACK, b"late") } else { lab.send(tcp::ACK, b"request") };
        assert_eq!(
            (action, parse(&bytes).rst, parse(&bytes).dst),
            (if late { Action::Pass } else { Action::Return(CLIENT_SIDE) }, true, lab.client)
        );
    }
}

#[test]
fn xdp_leaves_the_stacks_flows_alone() {
    for ipv6 in [false, true] {
        let lab = lab(ipv6, TCP);
        lab.maps.add_iface(BACKEND_SIDE, Iface { flags: iface_flag::XDP_TRANSMIT, ..Default::default() });
        let server = lab.open_by_stack();
        lab.send(tcp::ACK, b"request");
        lab.through(server, tcp::ACK, b"response");
        for (from, to) in [(lab.client, lab.vip), (server, lab.client)] {
            let bytes = build(TCP, from, to, tcp::ACK, (1007, 5009), b"more");
            let mut frame = Frame::<true>::new(&bytes, ROUTE);
            assert_eq!((frame.run(&lab.maps), frame.bytes == bytes), (Action::Pass, true));
        }
    }
}
