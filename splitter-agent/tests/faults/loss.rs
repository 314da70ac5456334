//! A network that loses one packet in a hundred, both ways; and one that also doubles some and lets others overtake.

use crate::support::{
    Bed, Split,
    loss::{Faulty, LOSSY, ROUGH},
    share_of_v2, vip,
};
use splitter_lab::{faults::Faults, load::Plan};
use std::time::Duration;

fn no_request_fails(name: &str, faults: Faults) {
    let bed = Bed::new(name, &[Split::tcp(80, 20), Split::tcp(80, 20).v6().named("web6")]);
    let network = Faulty::ends(&bed.lab, faults);
    for v6 in [false, true] {
        let patient = Plan { concurrency: 200, timeout: Duration::from_secs(20), ..Plan::http(vip(v6)) };
        // Whoever loses a SYN may get another backend, of the same version.
        share_of_v2(name, &bed.clean(patient.clone(), 2_000), 0.2);
        bed.clean(Plan { path: "/bytes/200000".into(), concurrency: 20, ..patient }, 100);
    }
    network.check();
}

#[test]
fn one_percent_of_loss_fails_no_request() {
    no_request_fails("loss", LOSSY);
}

#[test]
fn loss_doubles_and_disorder_fail_no_request() {
    no_request_fails("rough", ROUGH);
}
