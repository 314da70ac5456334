//! Loss, congestion marks, narrow paths.

use crate::{
    stage::{Stage, V1, V2, both_families, count, kinds, mix, tagged, through},
    support::{
        loss::{Faulty, LOSSY, ROUGH, words},
        run_on, vip,
    },
    wire::{TO_V1, TO_V2, Wire, get, post},
};
use splitter_lab::{
    faults::Faults,
    http::body_byte,
    lab::Options,
    load::{Plan, Reuse},
    serve::digest,
};
use std::time::Duration;

fn neither_fails_nor_misleads_a_request(name: &str, faults: Faults) {
    let stage = Stage::new(name, &both_families(&tagged(100, 0)));
    let ends = [stage.lab.client()].into_iter().chain(stage.lab.backends());
    // Marks in the place of losses, where both ends agree on them.
    ends.for_each(|end| end.sysctl("net/ipv4/tcp_ecn", "1").unwrap());
    let network = Faulty::ends(&stage.lab, faults);
    let with = words(faults);
    for v6 in [false, true] {
        let kept = Plan { concurrency: 64, ..mix(vip(v6), kinds("/", V1, V2, V1)) };
        stage.mixed(&format!("kept connections with {with}"), kept.clone(), count(6_000, 100_000));
        let fresh = Plan { reuse: Reuse::New, concurrency: 200, ..kept.clone() };
        stage.mixed(&format!("new connections with {with}"), fresh, count(1_500, 100_000));
        let large = [kinds("/bytes/60000", V1, V2, V1), kinds("/chunked/30000", V1, V2, V1), kinds("/", V1, V2, V1)].concat();
        stage.mixed(&format!("large answers with {with}"), Plan { kinds: large, concurrency: 32, ..kept }, count(500, 20_000));
    }
    network.check();
}

#[test]
fn one_percent_of_loss_neither_fails_nor_misleads_a_request() {
    neither_fails_nor_misleads_a_request("loss", LOSSY);
}

#[test]
fn one_percent_with_doubles_and_disorder_neither_fails_nor_misleads_a_request() {
    neither_fails_nor_misleads_a_request("rough", ROUGH);
}

fn both_ways(stage: &Stage, v6: bool) {
    let body: Vec<u8> = (0..1_000_000).map(body_byte).collect();
    let mut wire = Wire::open(stage.lab.client(), vip(v6));
    for (tag, expected) in [(TO_V1, V1), (TO_V2, V2), (TO_V1, V1)] {
        let what = format!("IPv{} {tag}", if v6 { 6 } else { 4 });
        let answer = wire.try_ask(post("/echo", &[tag], &body)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(answer.body, format!("{} 1000000 {:016x}\n", answer.version, digest(&body)).into_bytes(), "{what}");
        let answer = wire.try_ask(get("/bytes/1000000", &[tag])).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(expected.contains(&answer.version.as_str()) && answer.body.len() == 1_000_000, "{what}");
        assert!((0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)), "{what}: damaged");
    }
}

#[test]
fn narrow_ends_are_respected() {
    for (name, client_mtu, backend_mtu) in [("narrowb", 1_500, 1_400), ("narrowc", 1_400, 1_500), ("jumbo", 9_000, 1_500)] {
        let options = Options { client_mtu, backend_mtu, ..Options::default() };
        let stage = Stage::with(name, options, &both_families(&tagged(100, 0)));
        [false, true].into_iter().for_each(|v6| both_ways(&stage, v6));
    }
}

/// Neither end knows that the node's side of the backends' links is narrow.
#[test]
fn narrow_paths_are_told() {
    let stage = Stage::new("narrowp", &both_families(&tagged(100, 0)));
    if through().is_some() {
        return;
    }
    let mut before: Vec<Wire> = [false, true].map(|v6| Wire::open(stage.lab.client(), vip(v6))).into();
    before.iter_mut().for_each(|wire| drop(wire.get("/", &[TO_V1])));
    for link in ["b1", "b2", "b3"] {
        stage.lab.node.batch(&format!("link set {link} mtu 1400\n")).unwrap();
    }
    // Connections from before and new ones.
    let body: Vec<u8> = (0..500_000).map(body_byte).collect();
    for wire in &mut before {
        let answer = wire.try_ask(post("/echo", &[TO_V1], &body)).unwrap_or_else(|error| panic!("a connection from before: {error}"));
        assert_eq!(answer.body, format!("{} 500000 {:016x}\n", answer.version, digest(&body)).into_bytes());
    }
    run_on(Duration::from_millis(1_100));
    [false, true].into_iter().for_each(|v6| both_ways(&stage, v6));
}

/// Without segmentation offloads every packet is a frame of its own.
#[test]
fn frames_need_no_offloads() {
    let stage = Stage::with("frames", Options { offloads: false, ..Options::default() }, &both_families(&tagged(100, 0)));
    for v6 in [false, true] {
        both_ways(&stage, v6);
        stage.mixed("without offloads", mix(vip(v6), kinds("/bytes/20000", V1, V2, V1)), count(500, 20_000));
    }
}
