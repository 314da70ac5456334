//! A network that loses one packet in a hundred, both ways.

use crate::support::{Bed, Split, loss::Loss, share_of_v2, vip};
use splitter_bench::{load::Plan, stats};
use std::time::Duration;

#[test]
fn one_percent_of_loss_fails_no_request() {
    let bed = Bed::new("loss", &[Split::tcp(80, 20), Split::tcp(80, 20).v6().named("web6")]);
    let losses: Vec<Loss> = [bed.lab.client()].into_iter().chain(bed.lab.backends()).map(Loss::leaving).collect();
    for v6 in [false, true] {
        let patient = Plan { concurrency: 200, timeout: Duration::from_secs(20), ..Plan::http(vip(v6)) };
        // Whoever loses a SYN may get another backend, of the same version.
        share_of_v2("with loss", &bed.clean(patient.clone(), 2_000), 0.2);
        bed.clean(Plan { path: "/bytes/200000".into(), concurrency: 20, ..patient }, 100);
    }
    let sum = |losses: &[Loss]| losses.iter().map(Loss::counts).fold([0; 2], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]]);
    for [seen, dropped] in [sum(&losses[..1]), sum(&losses[1..])] {
        assert!(seen > 10_000 && stats::plausible(dropped, seen, 0.01), "{dropped} of {seen} packets were lost");
    }
}
