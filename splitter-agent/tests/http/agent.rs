//! The agent dies, returns and is replaced, weights change: under load, in the middle of requests.

use crate::{
    stage::{Stage, V1, V2, asks, both_families, count, kinds, mix, tagged},
    support::{Bed, Split, copy_program, kernel::relabel, no_failures, run_on, vip},
    wire::{TO_V1, TO_V2, Wire},
};
use splitter_lab::load::{Load, Plan, Reuse};
use std::time::Duration;

/// Kept and new connections with tags, at a steady rate.
fn loads(stage: &Stage) -> [Load; 2] {
    let kept = Plan { rate: Some(400.0), ..mix(vip(false), kinds("/bytes/1000", V1, V2, V1)) };
    [stage.start_load(kept.clone()), stage.start_load(Plan { reuse: Reuse::New, concurrency: 100, rate: Some(200.0), ..kept })]
}

fn survives(stage: &mut Stage, next: impl FnOnce(&mut Stage)) {
    let mut wires: Vec<Wire> = (0..20).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    let mut all = |when: &str| {
        for wire in &mut wires {
            for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
                assert!(expected.contains(&wire.get("/", &[tag]).as_str()), "{when}");
            }
        }
    };
    all("before");
    let loads = loads(stage);
    run_on(Duration::from_millis(500));
    stage.kill_agent();
    run_on(Duration::from_secs(count(2, 30)));
    all("without an agent");
    next(stage);
    stage.start();
    run_on(Duration::from_secs(1));
    all("with the next agent");
    for load in loads {
        let phases = load.stop().unwrap();
        phases.iter().for_each(|phase| no_failures("while the agent was away", phase));
        assert!(phases[0].requests() > 500, "{}", phases[0].requests());
    }
    assert!(stage.status().agent.adopted);
}

#[test]
fn a_killed_agent_is_missed_by_no_request() {
    survives(&mut Stage::begin(Bed::prepare("killed", Default::default(), &[tagged(100, 0)]), &[], None), |_| {});
}

#[test]
fn an_upgrade_loses_no_request() {
    let mut stage = Stage::begin(Bed::prepare("upgrade", Default::default(), &[tagged(100, 0)]), &[], None);
    survives(&mut stage, |stage| {
        let copy = stage.site.dir.join("splitter-new");
        copy_program(&copy);
        stage.bed.site.splitter = copy;
    });
}

/// The next agent reads the policy's maps otherwise, and the counts: it fills others, and connections go on in theirs.
#[test]
fn an_upgrade_to_other_layouts_loses_no_request() {
    let mut stage = Stage::begin(Bed::prepare("layouts", Default::default(), &[tagged(100, 0)]), &[], None);
    let policys = ["CONFIG", "FILTER", "FRONTENDS", "SERVICES", "MAGLEV", "RULES", "HTTP_RULES", "BACKENDS", "IFACES", "VIPS", "OWNED"];
    survives(&mut stage, |stage| relabel(&stage.site.pins, &[&policys[..], &["COUNTERS", "SUSPECTS", "TRACE"]].concat()));
}

/// Answers in progress for 250 ms, weights turned round every 10 ms: every answer is whole and of one server.
#[test]
fn a_weight_change_never_touches_a_request_in_flight() {
    let stage = Stage::begin(Bed::prepare("midway", Default::default(), &[tagged(50, 50)]), &[], None);
    let mut paths = vec![asks("/dribble/5000", &[], &[]), asks("/bytes/500000", &[], &[]), asks("/wait/30", &[], &[])];
    let mut upload = asks("/echo", &[], &[]);
    upload.body = Some(vec![7; 200_000]);
    paths.push(upload);
    let load = stage.start_load(Plan { concurrency: 32, ..mix(vip(false), paths) });
    for round in 0..count(150, 3_000) {
        let weights = if round % 2 == 0 { [100, 0] } else { [0, 100] };
        stage.set_weights("web", [weights].into_iter());
        run_on(Duration::from_millis(10));
    }
    let phases = load.stop().unwrap();
    no_failures("while weights changed", &phases[0]);
    assert!(phases[0].versions.len() == 3 && phases[0].requests() > 200, "{:?}", phases[0].versions.keys());
}

/// Requests follow the weights by themselves: no connection has to end for that, whatever `onWeightChange` says.
#[test]
fn a_weight_change_moves_requests_and_ends_no_connection() {
    for (name, on_change) in [("wckeep", "keep"), ("wcreset", "reset"), ("wcdrain", "{drain: 1s}")] {
        let stage = Stage::begin(Bed::prepare(name, Default::default(), &both_families(&split(on_change))), &[], None);
        let mut wires: Vec<Wire> = [false, true].into_iter().cycle().take(20).map(|v6| Wire::open(stage.lab.client(), vip(v6))).collect();
        let load = stage.start_load(Plan { rate: Some(400.0), ..mix(vip(false), Vec::new()) });
        for (weights, expected) in [([100, 0], V1), ([0, 100], V2), ([100, 0], V1)] {
            ["web", "web6"].into_iter().for_each(|service| drop(stage.set_weights(service, [weights].into_iter())));
            // At once, and after the drain.
            for wait in [Duration::ZERO, Duration::from_millis(1_300)] {
                run_on(wait);
                wires.iter_mut().for_each(|wire| assert!(expected.contains(&wire.get("/", &[]).as_str()), "{on_change}: {weights:?}"));
            }
        }
        load.stop().unwrap().iter().for_each(|phase| no_failures(on_change, phase));
        assert_eq!(stage.reason("weight_change_reset"), 0, "{on_change}");
    }
}

fn split(on_change: &str) -> Split {
    Split::http(50, 50).with(&format!("onWeightChange: {on_change}"))
}
