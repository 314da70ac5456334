//! A backend's process dies and returns; nobody tells the agent.

use crate::support::{Bed, Split, connections, eventually, run_on, vip};
use splitter_lab::load::Plan;
use std::time::Duration;

#[test]
fn a_dead_backend_is_avoided_and_returns() {
    let mut bed = Bed::new("dead", &[Split::tcp(1, 0)]);
    let load = bed.start_load(Plan { rate: Some(400.0), concurrency: 1_000, ..Plan::http(vip(false)) });
    run_on(Duration::from_secs(1));
    bed.stop_server(1);
    // Connections in flight to the dead process may fail; whoever comes now may not.
    run_on(Duration::from_millis(50));
    let dead = load.next_phase();
    run_on(Duration::from_secs(4));
    let snapshot = load.snapshot(dead);
    let back = load.next_phase();
    bed.start_server(1);
    eventually("the returned backend gets connections", || (connections(&load.snapshot(back), &["b1"]) > 100).then_some(()));
    run_on(Duration::from_secs(1));
    let phases = load.stop().unwrap();
    for phase in [dead, back] {
        assert_eq!(phases[phase].failed(), 0, "phase {phase}: {:?}, first: {:?}", phases[phase].errors, phases[phase].first_error);
    }
    assert!(connections(&snapshot, &["b2"]) > 1_000, "{:?}", snapshot.versions.keys());
    let median = phases[dead].latency().quantile(0.5).expect("answers");
    assert!(median < Duration::from_millis(100), "half of the requests waited {median:?}");
    assert!(bed.reason("refused_held_back") > 0);
    assert!(bed.service("web").versions[0].refused > 0);
}

/// A version whose every backend is dead refuses at once instead of letting clients wait.
#[test]
fn a_dead_version_refuses() {
    let mut bed = Bed::new("alldead", &[Split::tcp(0, 1)]);
    bed.stop_server(3);
    let total = bed.load(Plan { requests: Some(50), ..Plan::http(vip(false)) }).total();
    assert_eq!(total.errors.get(&splitter_lab::load::ErrorKind::Refused), Some(&50), "{:?}", total.errors);
    bed.start_server(3);
    eventually("it answers again", || (bed.load(Plan { requests: Some(5), ..Plan::http(vip(false)) }).total().failed() == 0).then_some(()));
}
