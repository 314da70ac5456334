//! A network that loses packets at random, by a kernel program at the ends' interfaces.

use aya::{
    Ebpf,
    maps::PerCpuArray,
    programs::{SchedClassifier, TcAttachType},
};
use splitter_bench::lab::Namespace;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/faults"));

/// Loses one packet in a hundred of those that leave an end of the network; ends with its handle.
pub struct Loss(Ebpf);

impl Loss {
    pub fn leaving(namespace: &Namespace) -> Loss {
        let mut ebpf = Ebpf::load(OBJECT).expect("the object of the faults");
        let program: &mut SchedClassifier = ebpf.program_mut("drop_tc").expect("its program").try_into().expect("a classifier");
        program.load().expect("the kernel takes it");
        namespace.run(|| program.attach("eth0", TcAttachType::Egress).map(drop)).expect("a namespace").expect("attached");
        Loss(ebpf)
    }

    /// Packets seen and dropped.
    pub fn counts(&self) -> [u64; 2] {
        let losses: PerCpuArray<_, u64> = self.0.map("LOSSES").expect("its map").try_into().expect("counters");
        [0, 1].map(|index| losses.get(&index, 0).expect("in range").iter().sum())
    }
}
