//! What `splitter status` tells of requests: how many, with which answers, how fast, and how often a connection changed its version.

use crate::{
    stage::{Stage, V1, V2, count, kinds, mix, tagged},
    support::{Bed, vip},
    wire::{TO_V1, TO_V2, Wire, get, request},
};
use splitter_api::Version;
use std::collections::BTreeMap;

fn stage(name: &str, v1: u32, v2: u32) -> Stage {
    Stage::begin(Bed::prepare(name, Default::default(), &[tagged(v1, v2)]), &[], None)
}

#[test]
fn every_request_is_counted_at_its_version() {
    let stage = stage("counts", 80, 20);
    let requests = count(2_000, 100_000);
    let total = stage.mixed("counted", mix(vip(false), kinds("/", V1, V2, &["b1", "b2", "b3"])), requests);
    let status: serde_json::Value = serde_json::from_str(&stage.cli(&["status", "-o", "json"])).unwrap();
    for (i, names) in [V1, V2].into_iter().enumerate() {
        let seen: u64 = names.iter().filter_map(|name| total.versions.get(*name)).map(|version| version.requests).sum();
        let version = &status["services"][0]["versions"][i];
        assert_eq!(version["requests"].as_u64(), Some(seen), "{version}");
    }
}

/// Classes of answers that are not zero.
fn classes(version: &Version) -> BTreeMap<&str, u64> {
    version.codes.iter().filter(|(_, count)| **count > 0).map(|(class, count)| (class.as_str(), *count)).collect()
}

#[test]
fn answers_are_told_by_class_and_time() {
    let stage = stage("classes", 100, 0);
    let mut wire = Wire::open(stage.lab.client(), vip(false));
    let rounds: [(u32, &str, &str, &str); 5] = [
        (10, "GET", "/status/503", TO_V1),
        (5, "GET", "/status/404", TO_V2),
        (7, "HEAD", "/bytes/100", TO_V1),
        (5, "GET", "/wait/60", TO_V2),
        (5, "GET", "/chunked/3000", TO_V2),
    ];
    for (times, method, path, tag) in rounds {
        for _ in 0..times {
            wire.send(request(method, path, &[tag], b""));
            wire.answer_to(method).expect("an answer");
        }
    }
    wire.ask(get("/status/302", &[TO_V1]));
    let versions = stage.service("web").versions;
    assert_eq!(classes(&versions[0]), BTreeMap::from([("2xx", 7), ("3xx", 1), ("5xx", 10)]));
    assert_eq!(classes(&versions[1]), BTreeMap::from([("2xx", 10), ("4xx", 5)]));
    assert_eq!([versions[0].requests, versions[1].requests], [18, 15]);
    // To v2, to v1, to v2, to v1.
    assert_eq!([versions[0].switches, versions[1].switches], [2, 2]);
    assert_eq!([versions[0].first_byte.count, versions[1].first_byte.count], [18, 15]);
    let (fast, slow) = (versions[0].first_byte.p99.unwrap(), versions[1].first_byte.p99.unwrap());
    assert!(fast < 0.05 && (0.058..0.2).contains(&slow), "{fast} s and {slow} s");
}
