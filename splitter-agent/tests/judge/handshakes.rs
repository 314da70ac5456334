//! Handshakes that nobody answers, while clients have no patience.

use crate::{
    stage::{Asking, Farewell, Fate, Manner, Server, ask, at, bed, filter, version},
    support::{Split, run_on, vip},
};
use std::time::{Duration, Instant};

const COUNT: usize = 60;
/// A handshake ages out after 30 s, and the sweep that sees it takes place every 5 s.
const AGES: Duration = Duration::from_secs(45);

fn asking(v6: bool) -> Asking {
    Asking { to: vip(v6), count: COUNT, patience: Duration::from_millis(500), farewell: Farewell::Close }
}

fn split(v6: bool) -> Split {
    if v6 { Split::tcp(1, 0).v6() } else { Split::tcp(1, 0) }
}

#[test]
fn dropped_syns_are_counted_when_they_age_out() {
    let beds = [false, true].map(|v6| {
        let bed = bed(if v6 { "dropped6" } else { "dropped4" }, split(v6), vec![1]);
        filter(bed.lab.backend(1), "drop");
        assert_eq!(ask(&bed, asking(v6), false), [(Fate::NoConnection, COUNT as u64)].into());
        bed
    });
    let end = Instant::now() + AGES;
    for bed in beds {
        while version(&bed).trials.drawn.unopened < COUNT as u64 && Instant::now() < end {
            run_on(Duration::from_millis(500));
        }
        let version = version(&bed);
        assert_eq!((version.trials.drawn.begun, version.trials.drawn.unopened, version.connections, version.opened), (60, 60, 60, 0));
    }
}

#[test]
fn a_full_queue_is_counted() {
    let bed = bed("queue", split(false), vec![1]);
    let server = Server::start(bed.lab.backend(1), at(&bed, 1, false), Manner::Ignore);
    // Whose handshake the kernel of the server has dropped waits for its request to be acknowledged, and sends no FIN before; a RST is sent at once.
    let seen = ask(&bed, Asking { farewell: Farewell::Reset, ..asking(false) }, false);
    let end = Instant::now() + AGES;
    // Those for which the kernel of the server had room are connections that nobody answers.
    let suffered = |v: &splitter_api::Version| v.trials.drawn.unopened + v.trials.drawn.abandoned;
    while suffered(&version(&bed)) < COUNT as u64 && Instant::now() < end {
        run_on(Duration::from_millis(500));
    }
    let version = version(&bed);
    assert_eq!((suffered(&version), version.trials.drawn.begun, server.accepted()), (60, 60, 0), "{seen:?} {:?}", version.trials.drawn);
    assert!(version.trials.drawn.unopened >= 30, "{:?}", version.trials.drawn);
}
