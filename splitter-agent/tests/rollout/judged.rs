//! A good canary is promoted, a bad one taken back; words, restarts and hooks.

use crate::support::{Bed, Split, eventually, no_failures, run_on, vip};
use serde_json::Value;
use splitter_lab::{
    load::{Load, Plan},
    pace::{patience, rate},
    serve::{self, Background},
};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Steps of one second, so that a test sees all of them.
pub const FAST: &str = "rollout: {canary: v2, steps: [10%, 50%, 100%], pace: adaptive, dwell: 1s, watch: 1s, warmUp: 0s, minSamples: 50, \
                    coolDown: 0s, gates: {errorRate: {max: 10%, margin: 10%}}}";

pub fn bed(name: &str, rollout: &str) -> Bed {
    Bed::new(name, &[Split::tcp(100, 0).with(rollout)])
}

pub fn load(bed: &Bed) -> Load {
    bed.start_load(Plan { rate: Some(400.0), ..Plan::http(vip(false)) })
}

pub fn status(bed: &Bed) -> Value {
    serde_json::from_str(&bed.cli(&["rollout", "status", "web", "-o", "json"])).expect("JSON")
}

pub fn history(bed: &Bed) -> Vec<Value> {
    serde_json::from_str(&bed.cli(&["rollout", "history", "web", "-o", "json"])).expect("JSON")
}

pub fn events(bed: &Bed) -> Vec<String> {
    history(bed).iter().map(|event| event["event"].as_str().unwrap_or_default().to_owned()).collect()
}

pub fn weights(bed: &Bed) -> Vec<f64> {
    bed.service("web").versions.iter().map(|version| (version.weight_ratio * 1e6).round() / 1e6).collect()
}

/// A whole rollout may take longer than what happens at once.
pub fn phase(bed: &Bed, wanted: &str) {
    let end = Instant::now() + patience(Duration::from_secs(60));
    loop {
        let status = status(bed);
        if status["phase"] == wanted {
            return;
        }
        assert!(Instant::now() < end, "the rollout never was {wanted}: {status:#}");
        run_on(Duration::from_millis(50));
    }
}

#[test]
fn a_good_canary_gets_everything_and_no_request_fails() {
    let bed = bed("good", FAST);
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    assert_eq!(weights(&bed), [0.9, 0.1]);
    phase(&bed, "promoted");
    assert_eq!(weights(&bed), [0.0, 1.0]);
    load.stop().unwrap().iter().for_each(|phase| no_failures("during the rollout", phase));
    assert_eq!(events(&bed), ["started", "advanced", "advanced", "promoted"]);
    let history = history(&bed);
    assert_eq!((history[0]["by"].as_str(), history[1]["by"].as_str()), (Some("operator (uid 0)"), Some("gates")));
    assert!(history[1]["evidence"][0]["bound"].as_f64().unwrap() < 0.1, "{:#}", history[1]);
    let status = bed.cli(&["status", "web"]);
    assert!(status.contains("its rollout"), "{status}");
    for words in [&["rollout", "status"][..], &["rollout", "status", "web"], &["rollout", "history", "web"]] {
        assert!(bed.cli(words).contains("v2") || words[1] == "history", "{words:?}");
    }
}

#[test]
fn a_canary_that_refuses_is_taken_back_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("told");
    let hooked = FAST.replace("coolDown", &format!("hooks: [{{command: [/bin/sh, -c, 'cat >> {}']}}], coolDown", told.display()));
    let mut bed = bed("bad", &hooked);
    let load = load(&bed);
    bed.stop_server(3);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "rolled-back");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    // What was in flight ends; then nobody meets the canary.
    run_on(Duration::from_millis(200));
    let after = load.next_phase();
    run_on(Duration::from_secs(1));
    let phases = load.stop().unwrap();
    no_failures("after the rollback", &phases[after]);
    assert!(phases[after].requests() as f64 > rate(100.0));
    let events = history(&bed);
    let (started, back) = (&events[0], &events[1]);
    assert_eq!((back["event"].as_str(), back["by"].as_str()), (Some("rolled-back"), Some("gate errorRate")), "{back:#}");
    let took = back["at"].as_f64().unwrap() - started["at"].as_f64().unwrap();
    // Forty connections a second to the canary.
    assert!(took < patience(Duration::from_secs(2)).as_secs_f64(), "{took} s to take it back");
    let hooks = eventually("both hooks ran", || fs::read_to_string(&told).ok().filter(|text| text.contains("rolled-back")));
    assert!(hooks.find("started").unwrap() < hooks.find("rolled-back").unwrap(), "{hooks}");
    // A second try with a canary that is well again.
    bed.start_server(3);
    run_on(Duration::from_secs(5));
    bed.cli(&["rollout", "start", "web"]);
    assert_eq!(weights(&bed), [0.9, 0.1]);
}

/// At 100% there is no baseline to compare with: the limit alone judges.
#[test]
fn a_canary_that_turns_bad_at_the_last_step_is_taken_back() {
    let mut bed = bed("late", &FAST.replace("watch: 1s", "watch: 10m"));
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    bed.cli(&["rollout", "promote", "web"]);
    run_on(Duration::from_secs(1));
    assert_eq!(weights(&bed), [0.0, 1.0]);
    bed.stop_server(3);
    phase(&bed, "rolled-back");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    let last = history(&bed).pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("above the limit of 10%"), "{last:#}");
    drop(load);
}

#[test]
fn a_killed_agent_goes_on_where_it_was() {
    let mut bed = bed("resume", FAST);
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    eventually("the second step", || (status(&bed)["step"] == 1).then_some(()));
    bed.kill_agent();
    run_on(Duration::from_millis(300));
    bed.start();
    let resumed = status(&bed);
    assert!(resumed["phase"] == "running" && resumed["step"].as_u64() >= Some(1), "{resumed:#}");
    phase(&bed, "promoted");
    load.stop().unwrap().iter().for_each(|phase| no_failures("while the agent was away", phase));
    assert_eq!(events(&bed), ["started", "advanced", "advanced", "promoted"], "nothing is done or told twice");
}

#[test]
fn words_and_hand_set_weights() {
    let bed = bed("words", &FAST.replace("dwell: 1s", "dwell: 10m"));
    bed.cli(&["rollout", "start", "web"]);
    bed.cli(&["rollout", "pause", "web", "--reason", "lunch"]);
    bed.cli(&["rollout", "resume", "web"]);
    // A hand-set weight stays, and the rollout stands back.
    bed.cli(&["weight", "web", "v1=1", "v2=1"]);
    assert_eq!(status(&bed)["phase"], "paused");
    run_on(Duration::from_millis(500));
    assert_eq!(weights(&bed), [0.5, 0.5]);
    bed.cli(&["rollout", "resume", "web"]);
    assert_eq!(weights(&bed), [0.9, 0.1]);
    bed.cli(&["rollout", "abort", "web", "--reason", "wrong image"]);
    assert_eq!((weights(&bed), status(&bed)["phase"].as_str()), (vec![1.0, 0.0], Some("aborted")));
    let refused = bed.site.cli(&["rollout", "pause", "web"]).unwrap_err().to_string();
    assert!(refused.contains("is aborted: it has ended, v2 has 0%; `splitter rollout start web` begins anew with 10%"), "{refused}");
    assert_eq!(events(&bed), ["started", "paused", "resumed", "weights", "paused", "resumed", "aborted"]);
    // A policy without the rollout ends it.
    bed.cli(&["rollout", "start", "web"]);
    bed.apply(&[Split::tcp(100, 0)]);
    eventually("the rollout ends with its policy", || (weights(&bed) == [1.0, 0.0]).then_some(()));
    let refused = bed.site.cli(&["rollout", "start", "web"]).unwrap_err().to_string();
    assert!(refused.contains("has no `rollout`"), "{refused}");
}

/// No request fails; they are only slow.
#[test]
fn a_slow_canary_is_taken_back() {
    let gates = "gates: {latency: {quantile: 0.9, maxIncrease: 50%}, ";
    let mut bed = bed("slow", &FAST.replace("gates: {", gates));
    bed.stop_server(3);
    let words = ["--listen", "[::]:8080", "--name", "b3", "--delay-ms", "50"].map(String::from);
    let _slow = Background::start(bed.lab.backend(3), &serve::Options::parse(words).unwrap()).unwrap();
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "rolled-back");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    let last = history(&bed).pop().unwrap();
    assert_eq!(last["by"], "gate latency p90", "{last:#}");
    let [canary, baseline] = ["canary", "baseline"].map(|side| last["evidence"][1][side].as_f64().unwrap());
    assert!((0.05..0.5).contains(&canary) && baseline < canary, "{last:#}");
    load.stop().unwrap().iter().for_each(|phase| no_failures("slow is not failed", phase));
}

#[test]
fn a_probe_that_fails_takes_the_canary_back() {
    let probe =
        FAST.replace("gates: {", "gates: {probes: [{name: order, path: /, contains: orders, every: 1s, timeout: 1s, failures: 1}], ");
    let bed = bed("probe", &probe);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "rolled-back");
    let last = history(&bed).pop().unwrap();
    assert!(last["by"] == "gate order" && last["reason"].as_str().unwrap().contains("without \"orders\""), "{last:#}");
}

#[test]
fn a_drill_measures_the_judge() {
    let bed = bed("drill", &FAST.replace("dwell: 1s", "dwell: 10m"));
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    run_on(Duration::from_secs(1));
    // The node refuses for the canary's backend: a rule in the backend's own namespace.
    let backend = bed.lab.backend(3).name();
    let rule = |action: &str| {
        format!("nsenter --net=/run/netns/{backend} iptables -{action} INPUT -p tcp --dport 8080 -j REJECT --reject-with tcp-reset")
    };
    let (inject, restore) = (rule("I"), rule("D"));
    let text = bed.cli(&["rollout", "drill", "web", "--inject", &inject, "--restore", &restore, "--patience", "20s", "-o", "json"]);
    let drill: Value = serde_json::from_str(&text).unwrap();
    assert!(drill["taken_back"] == true && drill["seconds"].as_f64().unwrap() < 3.0, "{drill:#}");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    drop(load);
}
