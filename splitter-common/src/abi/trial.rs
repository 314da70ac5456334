//! Trials: what is counted when a version is judged. A client connection or UDP flow (layer 4) or a request (http) is one trial of the version
//! that was chosen for it, however many backends are tried, and ends in exactly one [`outcome`].
//!
//! What a flow remembers of its trial is one word: when it began, and [`flag`] bits. While a client waits for its answer, the trial is entered
//! in [`super::VersionCounters::pending`], in the slot of the time when it began, and taken out there when it ends: what an old slot holds is
//! overdue. Entering and leaving may happen on different CPUs, so only the sum over all CPUs means anything.

/// Slots of [`super::VersionCounters::pending`]; a power of two.
pub const SLOTS: usize = 32;
/// Slots that are told apart for sure: in the others new trials may be entered at any moment.
pub const TOLD_APART: u32 = SLOTS as u32 - 2;

/// Bits of a trial's word, below its beginning. 0 altogether: there is none.
pub mod flag {
    /// It has not ended.
    pub const UNDER_WAY: u32 = 1;
    /// A rule sent it to its version.
    pub const RULED: u32 = 2;
    /// It is entered in `pending`.
    pub const PENDING: u32 = 4;
    /// How many bits there are.
    pub const BITS: u32 = 4;
}

/// Bits of [`super::Backend::timing`]: which trials are entered in `pending`, and in the rest the slot's length.
pub mod timing {
    /// Bits of the slot's length: jiffies as a power of two.
    pub const SHIFT: u8 = 0x1f;
    /// `mode: http`: [`crate::abi::Service::failing`] says what fails; else class 5 does.
    pub const CODES: u8 = 0x20;
    pub const DRAWN: u8 = 0x40;
    pub const RULED: u8 = 0x80;
}

/// Index in [`super::Outcomes`].
pub mod outcome {
    pub const TRIALS: u32 = 0;
    pub const ANSWERED: u32 = 1;
    pub const REFUSED: u32 = 2;
    pub const UNOPENED: u32 = 3;
    pub const ABANDONED: u32 = 4;
    pub const CLOSED: u32 = 5;
    pub const CUT: u32 = 6;
    pub const UNAVAILABLE: u32 = 7;
    pub const OVERDUE: u32 = 8;
    /// Class 0; the others follow.
    pub const STATUS: u32 = 9;
    pub const FAILED: u32 = 15;
    /// How many there are.
    pub const COUNT: u32 = 16;
}

/// The word of a trial that begins at `ticks` (jiffies, of which 28 bits are kept).
#[inline(always)]
pub const fn word(ticks: u32, flags: u32) -> u32 {
    ticks << flag::BITS | flags
}

/// Jiffies since a trial began.
#[inline(always)]
pub const fn age(trial: u32, ticks: u32) -> u32 {
    ticks.wrapping_sub(trial >> flag::BITS) & u32::MAX >> flag::BITS
}

/// Slot of a trial.
#[inline(always)]
pub const fn slot(trial: u32, shift: u8) -> u32 {
    (trial >> flag::BITS) >> (shift & timing::SHIFT) & (SLOTS as u32 - 1)
}

/// Bits of a slot's value that are its count; above them stands the round.
const COUNT_BITS: u32 = 18;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// Which round of the slots a trial began in, in the place where a slot's value has it.
#[inline(always)]
const fn round(trial: u32, shift: u8) -> u32 {
    (((trial >> flag::BITS) >> (shift & timing::SHIFT)) / SLOTS as u32) << COUNT_BITS
}

/// Whether a trial is too old to be taken out again: its slot may be of a later round.
#[inline(always)]
pub const fn is_past(trial: u32, ticks: u32, shift: u8) -> bool {
    age(trial, ticks) >> (shift & timing::SHIFT) >= TOLD_APART
}

/// A slot's value on one CPU after `add` trials that began with this one came (or, negative, went). What an earlier round left is forgotten.
#[inline(always)]
pub const fn changed(value: u32, trial: u32, shift: u8, add: u32) -> u32 {
    let round = round(trial, shift);
    let count = if value & !COUNT == round { value.wrapping_add(add) } else { add };
    round | count & COUNT
}

/// Trials that began in the slot of `ticks` and are pending on one CPU; negative, when they ended on it and began on another.
pub const fn count(value: u32, ticks: u32, shift: u8) -> i32 {
    if value & !COUNT == round(word(ticks, 0), shift) { ((value << (32 - COUNT_BITS)) as i32) >> (32 - COUNT_BITS) } else { 0 }
}

/// The slot's length for trials that are overdue after `unanswered` jiffies, as a power of two of jiffies: as short as can be told apart.
pub const fn shift(unanswered: u32) -> u8 {
    let mut shift = 0;
    while shift < 20 && unanswered >> shift >= TOLD_APART - 2 {
        shift += 1;
    }
    shift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_trials_are_told_by_when_they_began() {
        let unanswered = 1250;
        let shift = shift(unanswered);
        assert_eq!(shift, 6, "a quarter of a second at 250 Hz");
        assert!((unanswered >> shift) + 2 <= TOLD_APART);
        // Two CPUs; a round later the slot begins anew on each.
        let (first, later) = (0xfff_fff0u32, 0xfff_fff0u32.wrapping_add(32 << shift));
        let trial = word(first, flag::UNDER_WAY);
        let mut values = [0u32; 2];
        values[0] = changed(values[0], trial, shift, 1);
        values[0] = changed(values[0], trial, shift, 1);
        values[1] = changed(values[1], trial, shift, u32::MAX);
        let sum = |values: [u32; 2], at: u32| values.iter().map(|value| count(*value, at, shift)).sum::<i32>();
        assert_eq!((sum(values, first), sum(values, later)), (1, 0));
        values[1] = changed(values[1], word(later, 0), shift, 1);
        assert_eq!((sum(values, first), sum(values, later)), (2, 1));
        assert!(is_past(trial, later, shift) && !is_past(trial, first.wrapping_add(unanswered + (1 << shift)), shift));
        assert_eq!(slot(word(first, 0), shift), slot(word(later, 0), shift));
        assert_eq!(age(trial, first.wrapping_add(7)), 7);
    }

    #[test]
    fn slots_are_as_short_as_can_be_told_apart() {
        for unanswered in [1, 20, 27, 28, 125, 500, 1250, 7500, 300_000] {
            let shift = shift(unanswered);
            assert!((unanswered >> shift) + 2 <= TOLD_APART, "{unanswered}");
            assert!(shift == 0 || unanswered >> (shift - 1) >= TOLD_APART - 2, "{unanswered}");
        }
    }
}
