//! Networks that lose packets at random, and worse.

use splitter_datapath::objects::FAULTS;
use splitter_lab::{
    faults::{Counts, Faults, FaultyLink},
    lab::{Lab, Namespace},
    stats,
};
use std::time::Duration;

pub const LOSSY: Faults = Faults { lost: 10, doubled: 0, late: 0, delay: Duration::ZERO };
/// Late: behind whatever is sent in these two milliseconds.
pub const ROUGH: Faults = Faults { lost: 10, doubled: 20, late: 50, delay: Duration::from_millis(2) };

/// In words, for figures that are kept.
pub fn words(faults: Faults) -> &'static str {
    if faults == LOSSY { "1% loss" } else { "1% loss, 2% doubled, 5% out of order" }
}

/// Every end of a lab sends through faults. They end with the handle.
pub struct Faulty {
    faults: Faults,
    links: Vec<FaultyLink>,
}

impl Faulty {
    pub fn ends(lab: &Lab, faults: Faults) -> Faulty {
        let leaving = |end: &Namespace| FaultyLink::leaving(end, FAULTS, faults).expect("a faulty link");
        Faulty { faults, links: [lab.client()].into_iter().chain(lab.backends()).map(leaving).collect() }
    }

    /// That both directions met as many faults as they should.
    ///
    /// # Panics
    /// When they did not.
    pub fn check(&self) {
        let sum = |links: &[FaultyLink]| links.iter().map(FaultyLink::counts).fold(Counts::default(), |sum, counts| sum + counts);
        for counts in [sum(&self.links[..1]), sum(&self.links[1..])] {
            for (part, share) in [(counts.lost, self.faults.lost), (counts.doubled, self.faults.doubled), (counts.late, self.faults.late)] {
                let plausible = if share == 0 { part == 0 } else { stats::plausible(part, counts.seen, f64::from(share) / 1_000.0) };
                assert!(counts.seen > 5_000 && plausible, "{counts:?} of {:?}", self.faults);
            }
        }
    }
}
