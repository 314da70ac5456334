//! Weights change under load, in the middle of requests.

use crate::{
    stage::{Stage, asks, count, mix, tagged},
    support::{no_failures, run_on, vip},
};
use splitter_bench::load::Plan;
use std::time::Duration;

/// Answers in progress for 250 ms, weights turned round every 10 ms: every answer is whole and of one server.
#[test]
fn a_weight_change_never_touches_a_request_in_flight() {
    let stage = Stage::begin(crate::support::Bed::prepare("midway", Default::default(), &[tagged(50, 50)]), &[], None);
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
