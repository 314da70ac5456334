//! What a service's rollout asks of the kernel about trials: which are watched while they are pending, when they are overdue, which statuses fail.

use super::ServiceImage;
use splitter_common::abi::{
    CODE_WORDS,
    trial::{shift, timing},
};
use splitter_policy::model::{self, ErrorRate, FAILING, Judge};

/// How the trials of a service are timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// [`timing`] bits and the slot's length, as the kernel has them.
    pub bits: u8,
    /// Jiffies; 0: never overdue.
    pub unanswered: u32,
}

/// Nothing without a rollout that judges errors.
pub fn timing_of(service: &model::Service, ticks_per_second: u32) -> Timing {
    let Some((judge, gate)) = judged(service) else { return Timing::default() };
    let unanswered = (gate.unanswered.as_secs_f64() * f64::from(ticks_per_second)).ceil().clamp(1.0, f64::from(1 << 26)) as u32;
    let kinds = match judge {
        Judge::Drawn => timing::DRAWN,
        Judge::Ruled => timing::RULED,
        Judge::All => timing::DRAWN | timing::RULED,
    };
    let codes = if service.mode.reads_requests() && gate.codes != [FAILING] { timing::CODES } else { 0 };
    Timing { bits: kinds | codes | shift(unanswered), unanswered }
}

fn judged(service: &model::Service) -> Option<(Judge, &ErrorRate)> {
    let rollout = service.rollout.as_ref()?;
    Some((rollout.judge, rollout.gates.error_rate.as_ref()?))
}

/// Whether two states of a service ask the same.
pub fn same(a: &model::Service, b: &model::Service) -> bool {
    let asked = |service| judged(service).map(|(judge, gate)| (judge, gate.unanswered, gate.codes.clone()));
    asked(a) == asked(b)
}

/// Writes it into a service's rows.
pub fn watch(image: &mut ServiceImage, service: &model::Service, ticks_per_second: u32) {
    let timing = timing_of(service, ticks_per_second);
    let node = image.node.as_ref().map(|node| node.versions[0].version);
    for (_, backend) in image.backends.iter_mut().filter(|(_, backend)| Some(backend.version) != node) {
        (backend.timing, backend.unanswered) = (timing.bits, timing.unanswered);
    }
    image.record.failing = if timing.bits & timing::CODES == 0 { [0; CODE_WORDS] } else { failing(service) };
}

fn failing(service: &model::Service) -> [u64; CODE_WORDS] {
    let mut words = [0; CODE_WORDS];
    for [first, last] in judged(service).iter().flat_map(|(_, gate)| &gate.codes) {
        for code in *first..=*last {
            let bit = usize::from(code - 100);
            words[bit / 64] |= 1 << (bit % 64);
        }
    }
    words
}
