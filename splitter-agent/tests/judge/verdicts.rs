//! Rollouts of layer 4: a canary that fails its clients is taken back, whatever way it fails; what others send takes nobody back.

use crate::{
    outsiders::forge_pairs,
    stage::{Asking, Farewell, Manner, Server, ask, at, bed_of, filter, unfilter},
    support::{Bed, Split, eventually, run_on, vip},
};
use serde_json::Value;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

const GATES: &str = "{errorRate: {max: 5%, margin: 5%, unanswered: 1s}}";

fn split(v6: bool, udp: bool) -> Split {
    let rollout = format!("rollout: {{canary: v2, steps: [50%, 100%], dwell: 10m, warmUp: 0s, coolDown: 0s, gates: {GATES}}}");
    let split = Split::tcp(100, 0).with(&rollout);
    let split = if udp { split.udp() } else { split };
    if v6 { split.v6() } else { split }
}

fn status(bed: &Bed) -> Value {
    serde_json::from_str(&bed.cli(&["rollout", "status", "web", "-o", "json"])).expect("JSON")
}

/// Clients one after the other while `work` runs.
fn under_load(bed: &Bed, v6: bool, udp: bool, patience: Duration, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    let asking = Asking { to: vip(v6), count: 40, patience, farewell: Farewell::Close };
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                ask(bed, asking, udp);
            }
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        over.store(true, Ordering::SeqCst);
        load.join().expect("clients");
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

fn taken_back(bed: &Bed, what: &str) {
    bed.cli(&["rollout", "start", "web"]);
    eventually(&format!("a canary that {what} is taken back"), || {
        let status = status(bed);
        assert_ne!(status["phase"], "promoted", "{what}");
        (status["phase"] == "rolled-back").then_some(())
    });
}

#[test]
fn whatever_clients_suffer_takes_a_canary_back() {
    const PATIENT: Duration = Duration::from_secs(3);
    const IMPATIENT: Duration = Duration::from_millis(500);
    for v6 in [false, true] {
        let bed = bed_of(if v6 { "verdict6" } else { "verdict4" }, split(v6, false));
        let _good = [1, 2].map(|i| Server::start(bed.lab.backend(i), at(&bed, i, v6), Manner::Answer));
        for (manner, patience) in [
            (Manner::Hang, PATIENT),
            (Manner::Hang, IMPATIENT),
            (Manner::Close, PATIENT),
            (Manner::Cut, PATIENT),
            (Manner::Ignore, IMPATIENT),
        ] {
            let canary = Server::start(bed.lab.backend(3), at(&bed, 3, v6), manner);
            under_load(&bed, v6, false, patience, || taken_back(&bed, &format!("does {manner:?} to clients with {patience:?}")));
            drop(canary);
        }
        let _canary = Server::start(bed.lab.backend(3), at(&bed, 3, v6), Manner::Answer);
        for verdict in ["drop", "meta l4proto tcp reject with tcp reset", "reject with icmpx type admin-prohibited"] {
            filter(bed.lab.backend(3), verdict);
            under_load(&bed, v6, false, IMPATIENT, || taken_back(&bed, verdict));
            unfilter(bed.lab.backend(3));
        }
    }
}

#[test]
fn refused_datagrams_take_a_canary_back() {
    for v6 in [false, true] {
        let mut bed = bed_of(if v6 { "verdictu6" } else { "verdictu4" }, split(v6, true));
        [1, 2].iter().for_each(|i| bed.start_server(*i));
        under_load(&bed, v6, true, Duration::from_millis(500), || taken_back(&bed, "is not there"));
    }
}

#[test]
fn outsiders_take_nobody_back() {
    for v6 in [false, true] {
        let bed = bed_of(if v6 { "outside6" } else { "outside4" }, split(v6, false));
        let _servers = [1, 2, 3].map(|i| Server::start(bed.lab.backend(i), at(&bed, i, v6), Manner::Answer));
        under_load(&bed, v6, false, Duration::from_secs(3), || {
            bed.cli(&["rollout", "start", "web"]);
            run_on(Duration::from_secs(1));
            forge_pairs(&bed, v6);
            run_on(Duration::from_secs(2));
            let status = status(&bed);
            assert_eq!(status["phase"], "running", "{status:#}");
        });
    }
}
