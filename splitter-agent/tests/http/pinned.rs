//! Connections that are pinned to their backend: what they are known by, and what `pinned: reset` does to them.

use crate::{
    stage::{Stage, V1, V2, tagged},
    support::{Bed, Split, eventually, vip},
    wire::{End, TO_V1, TO_V2, Wire, get, request},
};
use splitter_api::Service;
use std::{io::Write, time::Duration};

fn stage(name: &str, splits: &[Split]) -> Stage {
    Stage::begin(Bed::prepare(name, Default::default(), splits), splits, None)
}

fn both(split: &Split) -> [Split; 2] {
    crate::stage::both_families(split)
}

/// A tunnel to the version that the tag names.
fn tunnel(stage: &Stage, v6: bool, tag: &str, names: &[&str]) -> Wire {
    let mut wire = Wire::open(stage.lab.client(), vip(v6));
    wire.send(request("GET", "/", &["Connection: Upgrade", "Upgrade: echo", tag], b""));
    let answer = wire.answer().expect("an answer");
    assert!(answer.status == 101 && names.contains(&answer.version.as_str()), "{answer:?}");
    wire
}

fn echoes(wire: &mut Wire) {
    wire.send(b"any bytes");
    assert_eq!(wire.bytes(9).expect("an echo"), b"any bytes");
}

fn pinned(service: &Service) -> Vec<u64> {
    service.versions.iter().map(|version| version.pinned).collect()
}

/// Services of both families, as the last sweep (every five seconds) found them.
fn found(stage: &Stage, wanted: &[u64]) {
    for name in ["web", "web6"] {
        eventually(&format!("{name} has {wanted:?} pinned"), || (pinned(&stage.service(name)) == wanted).then_some(()));
    }
}

#[test]
fn pinned_connections_are_counted_and_kept() {
    let rollout = "rollout: {canary: v2, pace: fixed}";
    let stage = stage("pinned", &both(&tagged(100, 0).with(rollout)));
    let mut tunnels: Vec<Wire> = Vec::new();
    for v6 in [false, true] {
        tunnels.extend([tunnel(&stage, v6, TO_V1, V1), tunnel(&stage, v6, TO_V2, V2), tunnel(&stage, v6, TO_V2, V2)]);
    }
    let _plain = Wire::open(stage.lab.client(), vip(false)).get("/", &[TO_V2]);
    found(&stage, &[1, 2]);
    let text = stage.cli(&["status", "web"]);
    assert!(
        text.contains("pinned 3 of the connections stay where they are, whatever the weights are (pinned: keep): v1 1, v2 2"),
        "{text}"
    );
    let status: serde_json::Value = serde_json::from_str(&stage.cli(&["status", "-o", "json"])).unwrap();
    assert_eq!(status["services"][0]["versions"][1]["pinned"], 2);
    let text = stage.cli(&["rollout", "status", "web"]);
    assert!(text.contains("pinned 3 connections stay with their backends"), "{text}");
    let rollout: serde_json::Value = serde_json::from_str(&stage.cli(&["rollout", "status", "web", "-o", "json"])).unwrap();
    assert_eq!(rollout["pinned"], 3);
    stage.cli(&["weight", "web", "v1=50", "v2=50"]);
    stage.cli(&["weight", "web", "v1=100", "v2=0"]);
    tunnels.iter_mut().for_each(echoes);
    drop(tunnels);
    found(&stage, &[0, 0]);
}

/// At the next packet of either side; those that the weights leave where they are stay.
#[test]
fn pinned_connections_go_when_the_policy_wants_it() {
    let stage = stage("unpinned", &both(&tagged(100, 0).with("pinned: reset")));
    for (v6, name) in [(false, "web"), (true, "web6")] {
        let mut stays = tunnel(&stage, v6, TO_V1, V1);
        let mut speaks = tunnel(&stage, v6, TO_V2, V2);
        echoes(&mut speaks);
        // Nothing belongs to v2 now: the rule that sent it there is not known to be of a pinned connection.
        let dry = stage.cli(&["weight", name, "v1=90", "v2=0", "--dry-run"]);
        assert!(dry.contains("ends 1 live flow"), "{dry}");
        stage.cli(&["weight", name, "v1=90", "v2=0"]);
        // The acknowledgement of what came last may have brought the reset already.
        let sent = speaks.stream.write_all(b"any bytes");
        assert!(sent.is_err() || speaks.end(Duration::from_secs(10)) == End::Reset, "{sent:?}");
        echoes(&mut stays);
        // The backend speaks first.
        let mut waits = Wire::open(stage.lab.client(), vip(v6));
        waits.send([get("/wait/5000", &[TO_V2]), get("/", &[TO_V2])].concat());
        eventually("the requests are there", || (stage.service(name).versions[1].requests >= 2).then_some(()));
        stage.cli(&["weight", name, "v1=80", "v2=0"]);
        assert_eq!(waits.end(Duration::from_secs(10)), End::Reset);
        echoes(&mut stays);
        let mut again = tunnel(&stage, v6, TO_V2, V2);
        echoes(&mut again);
    }
    assert!(stage.reason("weight_change_reset") >= 4);
}

/// What comes on a connection that pipelined once is told as ever, and judged.
#[test]
fn requests_of_pinned_connections_are_told() {
    let stage = stage("told", &[tagged(100, 0)]);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    assert!(V1.contains(&wire.get("/", &[]).as_str()));
    wire.send([get("/", &[]), get("/", &[])].concat());
    for _ in 0..2 {
        wire.answer().expect("an answer");
    }
    for i in 0..20 {
        wire.send(get(if i % 2 == 0 { "/status/503" } else { "/bytes/5000" }, &[TO_V2]));
        assert!(V1.contains(&wire.answer().expect("an answer").version.as_str()));
    }
    let v1 = &stage.service("web").versions[0];
    assert_eq!((v1.requests, v1.codes["5xx"], v1.trials.drawn.answered), (23, 10, 22));
    assert!(v1.codes["2xx"] >= 12 && v1.first_byte.count == 22, "{v1:?}");
}
