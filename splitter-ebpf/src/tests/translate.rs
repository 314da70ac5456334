//! What arrives at either end.
use super::*;

#[test]
fn a_connection_is_translated_both_ways() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let server = lab.connect();
        assert!([backend(ipv6, 1), backend(ipv6, 2)].contains(&server), "{server} is of v1");
        let (action, bytes) = lab.send(tcp::ACK, b"request");
        assert_eq!(action, Action::Redirect(BACKEND_SIDE));
        assert_eq!(parse(&bytes), Seen { src: lab.client, dst: server, hops: 63, rst: false, payload: b"request".into() });
        assert_eq!(bytes[..12], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], "next hop's link header");
        let (_, bytes) = lab.reply(server, lab.client, tcp::ACK, b"response");
        assert_eq!(parse(&bytes), Seen { src: lab.vip, dst: lab.client, hops: 63, rst: false, payload: b"response".into() });
        let counters = lab.maps.version(1);
        assert_eq!((counters.connections, counters.opened, counters.packets_in, counters.packets_out), (1, 1, 3, 2));
        assert_eq!((lab.maps.samples(1, Measure::Connect), lab.maps.samples(1, Measure::FirstByte)), (1, 1));
    }
}

#[test]
fn datagrams_are_translated_both_ways() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, UDP);
        let (action, bytes) = lab.send(0, b"question");
        let seen = parse(&bytes);
        assert_eq!((action, &seen.payload[..]), (Action::Redirect(BACKEND_SIDE), &b"question"[..]));
        let (_, bytes) = lab.reply(seen.dst, lab.client, 0, b"answer");
        assert_eq!(parse(&bytes), Seen { src: lab.vip, dst: lab.client, hops: 63, rst: false, payload: b"answer".into() });
        assert_eq!(lab.maps.samples(1, Measure::FirstByte), 1);
        assert_eq!(lab.sizes(), [0, 2, 0, 0, 0]);
    }
}

#[test]
fn a_datagram_without_checksum_keeps_none() {
    let lab = Lab::new(false, UDP);
    let mut bytes = build(UDP, lab.client, lab.vip, 0, (0, 0), b"question");
    bytes[40..42].fill(0);
    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
    assert_eq!(frame.run(&lab.maps), Action::Redirect(BACKEND_SIDE));
    assert_eq!(frame.bytes[40..42], [0, 0]);
}

#[test]
fn weights_hold_over_connections() {
    let lab = Lab::weighted(false, TCP, [90, 10]);
    let mut canary = 0;
    for port in 0..5_000u16 {
        let client = SocketAddr::new(lab.client.ip(), 10_000 + port);
        let mut frame = lab.frame(&build(TCP, client, lab.vip, tcp::SYN, (1, 0), &[]), CLIENT_SIDE);
        frame.run(&lab.maps);
        canary += u32::from(parse(&frame.bytes).dst == backend(false, 3));
    }
    // 500 expected; four standard deviations are 85.
    assert!((415..585).contains(&canary), "{canary} of 5000");
    assert_eq!(lab.maps.version(2).connections, u64::from(canary));
}

#[test]
fn a_source_network_overrides_the_weights() {
    let lab = Lab::new(false, TCP);
    lab.maps.add_rule(1, mapped([10, 1, 0, 0]), 96 + 24, 1);
    let (_, bytes) = lab.send(tcp::SYN, &[]);
    assert_eq!(parse(&bytes).dst, backend(false, 3));
}

#[test]
fn foreign_packets_are_untouched() {
    let lab = Lab::new(false, TCP);
    let other = "10.9.9.8:80".parse().expect("an address");
    let bytes = build(TCP, lab.client, other, tcp::SYN, (1, 0), &[]);
    let mut frame = lab.frame(&bytes, CLIENT_SIDE);
    assert_eq!((frame.run(&lab.maps), frame.bytes == bytes), (Action::Pass, true));
    assert_eq!(lab.sizes(), [0; 5]);
}

/// A port of the interface that backends are behind.
const PORT: u32 = 17;

#[test]
fn a_hairpin_gets_the_nodes_address() {
    for ipv6 in [false, true] {
        for proto in [TCP, UDP] {
            let lab = Lab::new(ipv6, proto);
            let node: IpAddr = if ipv6 { "fd02::1" } else { "10.2.0.1" }.parse().expect("an address");
            let mut iface = Iface { mtu: 1500, ..Default::default() };
            match node {
                IpAddr::V4(v4) => iface.addr4 = v4.octets(),
                IpAddr::V6(v6) => iface.addr6 = v6.octets(),
            }
            lab.maps.add_iface(BACKEND_SIDE, iface);
            // The client sits where the backends sit: routes name the bond, and its packets come by a port of it.
            let came_by = if proto == TCP { BACKEND_SIDE } else { PORT };
            lab.maps.add_iface(PORT, Iface { mtu: 1500, upper: BACKEND_SIDE, ..Default::default() });
            let send = |flags, payload: &[u8]| {
                let mut frame = lab.frame(&build(proto, lab.client, lab.vip, flags, (1000, 5001), payload), came_by);
                frame.run(&lab.maps);
                parse(&frame.bytes)
            };
            let first = send(tcp::SYN, &[]);
            assert_eq!(first.src.ip(), node);
            assert!((10_000..30_000).contains(&first.src.port()));
            let (_, bytes) = lab.reply(first.dst, first.src, tcp::SYN | tcp::ACK, &[]);
            assert_eq!((parse(&bytes).src, parse(&bytes).dst), (lab.vip, lab.client));
            assert_eq!(send(tcp::ACK, b"data").src, first.src, "the port stays");
            let (_, bytes) = lab.reply(first.dst, first.src, tcp::ACK, b"answer");
            assert_eq!((parse(&bytes).src, parse(&bytes).dst), (lab.vip, lab.client));
            assert_eq!(lab.sizes()[4], 2, "one SNAT entry a direction");
        }
    }
}

#[test]
fn xdp_finishes_known_flows_and_leaves_the_rest() {
    for ipv6 in [false, true] {
        let lab = Lab::new(ipv6, TCP);
        let xdp = |bytes: &[u8]| {
            let mut frame = Frame::<true>::new(bytes, ROUTE);
            (frame.run(&lab.maps), frame.bytes)
        };
        let syn = build(TCP, lab.client, lab.vip, tcp::SYN, (1, 0), &[]);
        assert_eq!(xdp(&syn), (Action::Pass, syn.clone()), "a first packet is TC's");
        lab.maps.add_iface(BACKEND_SIDE, Iface { flags: iface_flag::XDP_TRANSMIT, ..Default::default() });
        let server = lab.connect();
        lab.send(tcp::ACK, b"request");
        let data = build(TCP, lab.client, lab.vip, tcp::ACK, (1000, 5001), b"more");
        let (action, bytes) = xdp(&data);
        assert_eq!(action, Action::Redirect(BACKEND_SIDE));
        assert_eq!(parse(&bytes), Seen { src: lab.client, dst: server, hops: 63, rst: false, payload: b"more".into() });
        let fin = build(TCP, lab.client, lab.vip, tcp::FIN | tcp::ACK, (1000, 5001), &[]);
        assert_eq!(xdp(&fin), (Action::Pass, fin.clone()), "flags are TC's");
    }
}

#[test]
fn without_a_next_hop_the_stack_forwards() {
    let lab = Lab::new(false, TCP);
    for (route, action) in [(Route::Stack, Action::Pass), (Route::NoNeighbour { ifindex: 9 }, Action::Neighbour(9))] {
        let mut frame = lab.frame(&build(TCP, lab.client, lab.vip, tcp::SYN, (1, 0), &[]), CLIENT_SIDE);
        frame.route = route;
        assert_eq!(frame.run(&lab.maps), action);
        assert_ne!(parse(&frame.bytes).dst, lab.vip);
        lab.maps.pass(1_000);
    }
    assert_eq!(lab.maps.counted(Reason::NoNextHop), 1);
}
