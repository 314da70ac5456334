//! A SYN flood beside kept connections and newcomers.

use crate::{
    stage::{Stage, V1, V2, asks, mix, tagged},
    support::{
        client_ip,
        flood::{RATE, TIME, flood},
        no_failures, run_on, vip,
    },
    wire::{TO_V1, TO_V2, Wire},
};
use splitter_lab::load::{Plan, Reuse};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

#[test]
fn a_syn_flood_leaves_requests_untouched() {
    let stage = Stage::alone("flood", &[tagged(100, 0)]);
    // As behind an uplink: answers to strangers leave the way that they came.
    stage.lab.node.batch(&format!("route add 10.1.0.0/16 via {} dev c0\n", client_ip(&stage, false))).unwrap();
    let mut kept: Vec<Wire> = (0..100).map(|_| Wire::open(stage.lab.client(), vip(false))).collect();
    let ask = |wire: &mut Wire| {
        for (tag, expected) in [(TO_V1, V1), (TO_V2, V2)] {
            assert!(expected.contains(&wire.get("/", &[tag]).as_str()));
        }
    };
    kept.iter_mut().for_each(ask);
    let tags = vec![asks("/", &[TO_V1], V1), asks("/", &[TO_V2], V2)];
    let plan = Plan { reuse: Reuse::New, rate: Some(100.0), concurrency: 500, timeout: Duration::from_secs(10), ..mix(vip(false), tags) };
    let newcomers = stage.start_load(plan);
    let over = AtomicBool::new(false);
    let (sent, asked) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(stage.lab.client(), &over));
        let mut asked = 0;
        while !over.load(Ordering::SeqCst) {
            // The other half is idle: first in line, if anything had to make room.
            kept[..50].iter_mut().for_each(ask);
            asked += 100;
            run_on(Duration::from_millis(50));
        }
        (flood.join().expect("the flood"), asked)
    });
    println!("{sent} SYNs in {TIME:?} while {asked} requests went over 50 connections");
    assert!(sent >= RATE * TIME.as_secs() / 2, "the machine sent only {sent} SYNs: this proves nothing");
    assert!(asked >= 500, "only {asked} requests over kept connections");
    let phases = newcomers.stop().unwrap();
    no_failures("newcomers during a flood", &phases[0]);
    assert!(phases[0].connections() >= 400, "{} newcomers", phases[0].connections());
    kept.iter_mut().for_each(ask);
}
