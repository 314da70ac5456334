//! A SYN flood from addresses that answer nothing.

use crate::support::{
    Bed, Split, client_ip,
    flood::{RATE, TIME, flood},
    no_failures, run_on,
    socket::conversations,
    vip,
};
use splitter_lab::load::Plan;
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

#[test]
fn a_syn_flood_neither_ends_connections_nor_keeps_new_ones_out() {
    let bed = Bed::alone("flood", Default::default(), &[Split::tcp(50, 50)]).started();
    // As behind an uplink: answers to strangers leave the way that they came.
    bed.lab.node.batch(&format!("route add 10.1.0.0/16 via {} dev c0\n", client_ip(&bed, false))).unwrap();
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 200);
    let newcomers =
        bed.start_load(Plan { rate: Some(100.0), concurrency: 500, timeout: Duration::from_secs(10), ..Plan::http(vip(false)) });
    let over = AtomicBool::new(false);
    let (sent, asked) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(bed.lab.client(), &over));
        let mut asked = 0;
        while !over.load(Ordering::SeqCst) {
            // The other half is idle: first in line, if anything had to make room.
            for conversation in &mut kept[..100] {
                assert_eq!(conversation.ask().expect("an established connection"), conversation.backend);
                asked += 1;
            }
            run_on(Duration::from_millis(50));
        }
        (flood.join().expect("the flood"), asked)
    });
    println!("{sent} SYNs in {TIME:?} while {asked} requests went over 100 connections");
    assert!(sent >= RATE * TIME.as_secs() / 2, "the machine sent only {sent} SYNs: this proves nothing");
    assert!(asked >= 500, "only {asked} requests over established connections");
    let phases = newcomers.stop().unwrap();
    no_failures("newcomers during a flood", &phases[0]);
    assert!(phases[0].connections() >= 400, "{} newcomers", phases[0].connections());
    let status = bed.status();
    let half = status.tables.iter().find(|table| table.name == "half4").expect("a table of half-open flows");
    assert!(half.entries > half.max_entries / 2, "the flood did not fill the table: {half:?}");
    for conversation in &mut kept {
        assert_eq!(conversation.ask().expect("an established connection"), conversation.backend);
    }
    assert_eq!(bed.reason("recovered_flow"), 0, "established flows were forgotten for half-open ones");
}
