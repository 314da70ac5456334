//! A network that loses one packet in a hundred, both ways.

use crate::support::{Bed, Split, share_of_v2, vip};
use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{SchedClassifier, TcAttachType},
};
use splitter_bench::{lab::Namespace, load::Plan, stats};
use std::time::Duration;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/faults"));

/// Loses packets that leave an end of the network; ends with its handle.
struct Loss(Ebpf);

impl Loss {
    fn leaving(namespace: &Namespace) -> Loss {
        let mut ebpf = Ebpf::load(OBJECT).expect("the object of the faults");
        let program: &mut SchedClassifier = ebpf.program_mut("drop_tc").expect("its program").try_into().expect("a classifier");
        program.load().expect("the kernel takes it");
        namespace.run(|| program.attach("eth0", TcAttachType::Egress).map(drop)).expect("a namespace").expect("attached");
        Loss(ebpf)
    }

    /// Packets seen and dropped.
    fn counts(&self) -> [u64; 2] {
        let losses: PerCpuArray<_, u64> = self.0.map("LOSSES").expect("its map").try_into().expect("counters");
        [0, 1].map(|index| losses.get(&index, 0).expect("in range").iter().sum())
    }
}

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
