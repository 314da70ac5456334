//! `path: stack` for `mode: http`: legs go through the node's stack, and netfilter's rules hold for them.

use crate::{
    stage::{Stage, V1, V2, both_families, count, kinds, mix, tagged, through},
    support::{
        Bed, Split,
        rules::{counted, nft, strict},
        vip,
    },
    wire::{TO_V1, TO_V2, Wire, get, post},
};
use splitter_lab::{
    http::body_byte,
    lab::Options,
    load::{Plan, Reuse},
    serve::digest,
};
use std::time::{Duration, Instant};

/// A strict node with rules, and nothing said about the path.
fn bed(name: &str, options: Options, split: &Split) -> Stage {
    let splits = both_families(split);
    let bed = Bed::prepare(name, options, &splits);
    strict(&bed.lab.node);
    let stage = Stage::begin(bed, &splits, None);
    let status = stage.status();
    assert!(status.services.iter().all(|service| service.path == "stack"), "{}", status.agent.path_reason);
    stage
}

/// Requests of every kind, none of which fails or goes wrong, and of which connection tracking sees whole connections.
fn works(stage: &Stage) {
    for v6 in [false, true] {
        stage.mixed("through the stack", mix(vip(v6), kinds("/", V1, V2, V1)), count(2_000, 20_000));
        let fresh = Plan { reuse: Reuse::New, ..mix(vip(v6), kinds("/bytes/20000", V1, V2, V1)) };
        stage.mixed("new connections through the stack", fresh, count(500, 5_000));
        let body: Vec<u8> = (0..300_000).map(body_byte).collect();
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for tag in [TO_V1, TO_V2, TO_V1] {
            // On a kept connection no more than a new one to a backend takes: what is beyond, connection tracking counts.
            for (wire, len) in [(&mut Wire::open(stage.lab.client(), vip(v6)), 300_000), (&mut wire, 30_000)] {
                let answer = wire.ask(post("/echo", &[tag], &body[..len]));
                assert_eq!(answer.body, format!("{} {len} {:016x}\n", answer.version, digest(&body[..len])).into_bytes());
            }
            let answer = wire.ask(get("/bytes/1000000", &[tag]));
            assert!(answer.body.len() == 1_000_000 && (0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)), "damaged");
            let head = get("/", &[tag, &format!("a: {}", "x".repeat(12_000))]);
            assert_eq!(V2.contains(&wire.ask(head).version.as_str()), tag == TO_V2);
        }
    }
    assert_eq!(counted(&stage.lab.node, "invalid"), 0, "conntrack sees whole connections");
    assert_eq!(stage.locks_held(), 0);
}

#[test]
fn rules_for_forwarded_packets_hold_for_requests() {
    if through().is_some() {
        return;
    }
    let stage = bed("hrules", Options::default(), &tagged(100, 0));
    let node = &stage.lab.node;
    for v6 in [false, true] {
        let (family, from, to) = (if v6 { "ip6" } else { "ip" }, stage.lab.client_ip(0, v6), stage.lab.backend_ip(3, v6));
        nft(node, &format!("add rule inet guard forward {family} saddr {from} {family} daddr {to} counter name seen"));
    }
    works(&stage);
    assert!(counted(node, "seen") > 1_000, "rules see client and backend: {}", counted(node, "seen"));
    // A policy by the address of v2's only backend holds for what comes by the VIP, on kept connections as on new ones.
    let mut kept: Vec<Wire> = [false, true].map(|v6| Wire::open(stage.lab.client(), vip(v6))).into();
    kept.iter_mut().for_each(|wire| drop(wire.get("/", &[TO_V1])));
    for v6 in [false, true] {
        let (family, to) = (if v6 { "ip6" } else { "ip" }, stage.lab.backend_ip(3, v6));
        nft(node, &format!("insert rule inet guard forward {family} daddr {to} drop"));
    }
    for (wire, v6) in kept.iter_mut().zip([false, true]) {
        let fresh = &mut Wire::open(stage.lab.client(), vip(v6));
        for wire in [wire, fresh] {
            wire.stream.set_read_timeout(Some(Duration::from_millis(1_500))).unwrap();
            // Nothing, and 503 once it is known that nobody answers.
            let answer = wire.try_ask(get("/", &[TO_V2]));
            assert!(answer.as_ref().is_ok_and(|answer| answer.status == 503) || answer.is_err(), "gets through: {answer:?}");
        }
        assert!(V1.contains(&Wire::open(stage.lab.client(), vip(v6)).get("/", &[TO_V1]).as_str()));
    }
    // What a rule refuses is told at once, as by the backend.
    for (v6, how) in [(false, "reject with tcp reset"), (true, "reject with tcp reset"), (false, "reject"), (true, "reject")] {
        let (family, to) = (if v6 { "ip6" } else { "ip" }, stage.lab.backend_ip(3, v6));
        // At once: a moment without rules could turn the path.
        nft(node, &format!("flush chain inet guard forward; add rule inet guard forward {family} daddr {to} {how}"));
        let began = Instant::now();
        assert_eq!(Wire::open(stage.lab.client(), vip(v6)).ask(get("/", &[TO_V2])).status, 503, "{how}");
        assert!(began.elapsed() < Duration::from_millis(150), "{how}: told after {:?}", began.elapsed());
    }
    assert_eq!(counted(node, "invalid"), 0);
}

#[test]
fn a_backend_that_needs_the_masquerade_answers_requests() {
    if through().is_some() {
        return;
    }
    let stage = bed("hmasq", Options::default(), &tagged(100, 0));
    stage.lab.backend(3).batch("route del default via 10.2.3.1\nroute del default via fd02:3::1\n").unwrap();
    nft(&stage.lab.node, "table inet cni { chain post { type nat hook postrouting priority srcnat; oifname b3 masquerade; }; }");
    works(&stage);
}

#[test]
fn narrow_ends_are_respected_through_the_stack() {
    if through().is_some() {
        return;
    }
    for (name, client_mtu, backend_mtu) in [("hnarrowb", 1_500, 1_400), ("hnarrowc", 1_400, 1_500)] {
        works(&bed(name, Options { client_mtu, backend_mtu, ..Options::default() }, &tagged(100, 0)));
    }
}

#[test]
fn legs_keep_their_path() {
    if through().is_some() {
        return;
    }
    let mut stage = bed("hkept", Options::default(), &tagged(100, 0));
    let mut kept: Vec<Wire> = [false, true].map(|v6| Wire::open(stage.lab.client(), vip(v6))).into();
    let mut asked = |tags: &[&str]| {
        for wire in &mut kept {
            for tag in tags {
                assert_eq!(V2.contains(&wire.get("/bytes/30000", &[tag]).as_str()), *tag == TO_V2);
            }
        }
    };
    asked(&[TO_V1, TO_V2, TO_V1]);
    stage.kill_agent();
    asked(&[TO_V1, TO_V2]);
    stage.start();
    asked(&[TO_V2, TO_V1]);
    nft(&stage.lab.node, "flush chain inet guard forward; flush chain inet guard local");
    stage.wait("the path turns", |status| status.services.iter().all(|service| service.path == "redirect"));
    asked(&[TO_V1, TO_V2, TO_V2, TO_V1]);
    works(&stage);
    nft(&stage.lab.node, "add rule inet guard forward ct state invalid counter name invalid drop");
    stage.wait("the path turns back", |status| status.services.iter().all(|service| service.path == "stack"));
    asked(&[TO_V2, TO_V1, TO_V2]);
    works(&stage);
}
