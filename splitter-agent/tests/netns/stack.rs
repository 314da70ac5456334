//! `path: stack`: flows go through the node's stack, and netfilter's rules hold for them.

use crate::support::{
    Bed, PORT, Split, client_ip,
    rules::{counted, nft, strict},
    share_of_v2,
    socket::{Conversation, connect, conversations, echo, unfragmented},
    vip,
};
use splitter_lab::{lab::Options, load::Plan};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

fn all(split: fn(Split) -> Split) -> Vec<Split> {
    let tcp = [Split::tcp(50, 50), Split::tcp(50, 50).v6().named("web6")];
    let udp = [Split::tcp(50, 50).udp().named("dns"), Split::tcp(50, 50).udp().v6().named("dns6")];
    [tcp, udp].concat().into_iter().map(split).collect()
}

/// A strict node with the rules, all four kinds of services, and nothing said about the path.
fn bed(name: &str, options: Options, split: fn(Split) -> Split) -> Bed {
    let bed = Bed::prepare(name, options, &all(split));
    strict(&bed.lab.node);
    bed.started()
}

/// Requests over TCP and UDP and both versions of IP, none of which fails.
fn works(bed: &Bed) {
    for v6 in [false, true] {
        share_of_v2("by TCP", &bed.clean(Plan::http(vip(v6)), 300), 0.5);
        share_of_v2("by UDP", &bed.clean(Plan::udp(vip(v6)), 300), 0.5);
    }
}

#[test]
fn rules_for_forwarded_packets_hold() {
    let bed = bed("rules", Options::default(), |split| split);
    let status = bed.status();
    assert_eq!(status.agent.path, "stack", "{}", status.agent.path_reason);
    assert!(status.services.iter().all(|service| service.path == "stack"));
    let (node, client) = (&bed.lab.node, bed.lab.client());
    let seen = |v6| {
        let (family, from, to) = (if v6 { "ip6" } else { "ip" }, client_ip(&bed, v6), bed.lab.backend_addr(3, v6, PORT).ip());
        nft(node, &format!("add rule inet guard forward {family} saddr {from} {family} daddr {to} counter name seen"));
    };
    [false, true].into_iter().for_each(seen);
    works(&bed);
    assert!(counted(node, "seen") > 600, "rules see client and backend: {}", counted(node, "seen"));
    assert_eq!(counted(node, "invalid"), 0, "conntrack sees whole connections");
    // A policy by the address of v2's only backend holds for what comes by the VIP.
    for v6 in [false, true] {
        let (family, to) = (if v6 { "ip6" } else { "ip" }, bed.lab.backend_addr(3, v6, PORT).ip());
        nft(node, &format!("insert rule inet guard forward {family} daddr {to} drop"));
    }
    for (name, v6) in [("web", false), ("web6", true), ("dns", false), ("dns6", true)] {
        bed.set_weights(name, [[0, 100]].into_iter());
        let any = SocketAddr::new(if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) }, 0);
        if name.starts_with("web") {
            let opened = client.run(|| std::net::TcpStream::connect_timeout(&vip(v6), Duration::from_secs(2))).unwrap();
            assert!(opened.is_err(), "{name} reaches a backend that a rule keeps from it");
        } else {
            let socket = unfragmented(client, vip(v6));
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            assert!(echo(&socket).is_err(), "{name} reaches a backend that a rule keeps from it");
        }
        bed.set_weights(name, [[100, 0]].into_iter());
        if name.starts_with("web") {
            drop(client.run(|| connect(any, vip(v6))).unwrap().unwrap());
        }
    }
    // What a rule refuses is told at once, as by the backend.
    nft(node, "flush chain inet guard forward");
    nft(node, &format!("add rule inet guard forward ip daddr {} reject with tcp reset", bed.lab.backend_addr(3, false, PORT).ip()));
    bed.set_weights("web", [[0, 100]].into_iter());
    let refused = client.run(|| std::net::TcpStream::connect_timeout(&vip(false), Duration::from_secs(2))).unwrap();
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn a_backend_that_needs_the_masquerade_answers() {
    let bed = bed("masq", Options::default(), |split| split);
    let server = bed.lab.backend(3);
    server.batch("route del default via 10.2.3.1\nroute del default via fd02:3::1\n").unwrap();
    nft(&bed.lab.node, "table inet cni { chain post { type nat hook postrouting priority srcnat; oifname b3 masquerade; }; }");
    works(&bed);
    assert_eq!(counted(&bed.lab.node, "invalid"), 0);
}

#[test]
fn live_connections_outlive_the_agent() {
    let mut bed = bed("outlive", Options::default(), |split| split.with("onWeightChange: reset"));
    let mut kept: Vec<Conversation> =
        [false, true].iter().flat_map(|v6| conversations(bed.lab.client(), client_ip(&bed, *v6), vip(*v6), 20_000, 40)).collect();
    let asked = |kept: &mut Vec<Conversation>| {
        for conversation in kept {
            let backend = conversation.backend.clone();
            assert_eq!(conversation.ask().expect("it lives"), backend);
        }
    };
    asked(&mut kept);
    bed.kill_agent();
    asked(&mut kept);
    works(&bed);
    bed.start();
    asked(&mut kept);
    // The path is of the flow: the rules are gone, and new flows are redirected.
    nft(&bed.lab.node, "flush chain inet guard forward");
    bed.wait("the path turns", |status| {
        status.agent.path == "redirect" && status.services.iter().all(|service| service.path == "redirect")
    });
    asked(&mut kept);
    works(&bed);
    nft(&bed.lab.node, "add rule inet guard forward ct state invalid counter name invalid drop");
    bed.wait("the path turns back", |status| status.services.iter().all(|service| service.path == "stack"));
    asked(&mut kept);
    // Those that the weights move are reset, both families, and nobody else.
    for name in ["web", "web6"] {
        bed.set_weights(name, [[100, 0]].into_iter());
    }
    let (v1, v2): (Vec<_>, Vec<_>) = kept.into_iter().partition(|conversation| conversation.backend != "b3");
    assert!(!v1.is_empty() && !v2.is_empty());
    v2.into_iter().for_each(|mut moved| assert!(moved.ended()));
    v1.into_iter().for_each(|mut stays| assert!(!stays.ended()));
    assert_eq!(counted(&bed.lab.node, "invalid"), 0);
}
