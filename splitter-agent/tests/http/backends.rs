//! Backends that refuse, vanish or die; versions without any.

use crate::{
    stage::{Stage, V1, V2, asks, mix, tagged, through},
    support::{connections, eventually, no_failures, run_on, vip},
    wire::{End, TO_V1, TO_V2, Wire, get},
};
use splitter_lab::{
    lab::Namespace,
    load::{Plan, Reuse},
};
use std::time::{Duration, Instant};

fn fresh(target: std::net::SocketAddr) -> Plan {
    let kinds = vec![asks("/", &[TO_V1], V1), asks("/", &[TO_V2], V2)];
    Plan { reuse: Reuse::New, rate: Some(200.0), concurrency: 200, ..mix(target, kinds) }
}

/// An RST to the node's SYN moves on to another backend of the version at once.
#[test]
fn a_refusing_backend_is_passed_over() {
    let mut stage = Stage::new("refuses", &[tagged(100, 0)]);
    stage.stop_server(1);
    let load = stage.start_load(fresh(vip(false)));
    run_on(Duration::from_secs(2));
    let phases = load.stop().unwrap();
    no_failures("with a refusing backend", &phases[0]);
    let slowest = phases[0].latency().quantile(0.99).expect("answers");
    assert!(slowest < Duration::from_millis(200), "99 of 100 requests within {slowest:?}");
    assert!(connections(&phases[0], &["b2"]) > 100 && connections(&phases[0], &["b3"]) > 100);
    stage.start_server(1);
    let load = stage.start_load(fresh(vip(false)));
    eventually("the returned backend is tried again", || (connections(&load.snapshot(0), &["b1"]) > 10).then_some(()));
    no_failures("after its return", &load.stop().unwrap()[0]);
}

/// Nothing comes back from the backend; its link and its neighbour entry stay.
fn blackhole(namespace: &Namespace, on: bool) {
    let verb = if on { "replace" } else { "del" };
    namespace.batch(&format!("route {verb} blackhole 10.1.0.0/16\n")).expect("a route");
}

#[test]
fn a_silent_backend_is_passed_over_within_a_second() {
    let stage = Stage::new("silent", &[tagged(100, 0)]);
    blackhole(stage.lab.backend(1), true);
    let load = stage.start_load(fresh(vip(false)));
    run_on(Duration::from_millis(1_500));
    let learned = load.next_phase();
    run_on(Duration::from_millis(1_500));
    let phases = load.stop().unwrap();
    phases.iter().for_each(|phase| no_failures("with a silent backend", phase));
    // The client's own retransmission (RFC 6298: after 1 s for a SYN, 200 ms here for data) drives the change.
    let slowest = phases[0].latency().quantile(1.0).expect("answers");
    assert!(slowest < Duration::from_millis(1_500), "a request waited {slowest:?}");
    // Who comes later does not pay again.
    let later = phases[learned].latency().quantile(0.95).expect("answers");
    assert!(later < Duration::from_millis(100), "95 of 100 later requests within {later:?}");
    blackhole(stage.lab.backend(1), false);
}

/// A kept connection, whose backend dies while nobody asks: the client's second retransmission goes to another one.
#[test]
fn a_leg_that_dies_without_a_word_is_left() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("dies", &[tagged(100, 0)]);
    for taken_up in [false, true] {
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        let first = wire.get("/", &[TO_V1]);
        if taken_up {
            assert_eq!(wire.get("/", &[TO_V2]), "b3");
        }
        let dead = if first == "b1" { 1 } else { 2 };
        blackhole(stage.lab.backend(dead), true);
        let began = Instant::now();
        let second = wire.get("/", &[TO_V1]);
        assert!(V1.contains(&second.as_str()) && second != first, "{first}, then {second}");
        assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
        blackhole(stage.lab.backend(dead), false);
        assert_eq!(wire.get("/", &[TO_V1]), second, "it stays");
    }
}

#[test]
fn a_version_without_backends_fails_fast_and_alone() {
    let mut stage = Stage::new("alldead", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    assert!(V1.contains(&kept.get("/", &[TO_V1]).as_str()));
    stage.stop_server(3);
    for turn in 0..20 {
        let began = Instant::now();
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        wire.send(get("/", &[TO_V2]));
        match wire.answer() {
            Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "turn {turn}: {error}"),
        }
        assert!(began.elapsed() < Duration::from_secs(2), "turn {turn}: told after {:?}", began.elapsed());
        // The other version does not notice.
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
        assert!(V1.contains(&kept.get("/", &[TO_V1]).as_str()), "turn {turn}: a kept connection of v1");
    }
    // On a kept connection as well.
    kept.send(get("/", &[TO_V2]));
    match kept.answer() {
        Ok(answer) => assert_eq!(answer.status, 503, "{answer:?}"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "on a kept connection: {error}"),
    }
    if through().is_none() {
        let refused = stage.service("web").versions[1].refused;
        assert!(refused >= 20, "`status` tells {refused} refusals of v2: {:?}", stage.status().reasons);
    }
    stage.start_server(3);
    eventually("v2 answers again", || {
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        wire.try_ask(get("/", &[TO_V2])).ok().filter(|answer| answer.status == 200)
    });
}

/// `whenUnavailable` says which of the two it is.
#[test]
fn a_dead_version_answers_as_its_policy_says() {
    if through().is_some() {
        return;
    }
    for (name, line) in [("dead503", "whenUnavailable: 503"), ("deadreset", "whenUnavailable: reset")] {
        let mut stage = Stage::new(name, &[tagged(100, 0).with(line)]);
        stage.stop_server(3);
        for kept in [false, true] {
            let mut wire = Wire::open(stage.lab.client(), vip(false));
            if kept {
                wire.get("/", &[TO_V1]);
            }
            wire.send(get("/", &[TO_V2]));
            match wire.answer() {
                Ok(answer) => assert!(answer.status == 503 && line.ends_with("503"), "{line}, kept {kept}: {answer:?}"),
                Err(error) => {
                    assert!(error.kind() == std::io::ErrorKind::ConnectionReset && line.ends_with("reset"), "{line}, kept {kept}: {error}");
                }
            }
        }
    }
}

/// The backend dies while clients keep connections to it.
#[test]
fn a_dying_backend_ends_its_connections_and_no_others() {
    let mut stage = Stage::new("dies", &[tagged(100, 0)]);
    let mut wires: Vec<(String, Wire)> = (0..30)
        .map(|_| {
            let mut wire = Wire::open(stage.lab.client(), vip(false));
            (wire.get("/", &[TO_V1]), wire)
        })
        .collect();
    stage.stop_server(1);
    for (name, wire) in &mut wires {
        if name == "b1" && through().is_none() {
            assert_ne!(wire.end(Duration::from_secs(2)), End::Open, "a connection to a dead backend");
        } else {
            assert!(V1.contains(&wire.get("/", &[TO_V1]).as_str()));
        }
    }
    assert!(wires.iter().any(|(name, _)| name == "b1"));
}
