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

/// A slot's count, on one CPU; negative, when trials ended on it that began on another.
#[inline(always)]
const fn count(value: u32) -> i32 {
    ((value << (32 - COUNT_BITS)) as i32) >> (32 - COUNT_BITS)
}

/// Whether any of a CPU's slots counts a trial: where none does, none is [`overdue`].
pub const fn any(slots: &[u32; SLOTS]) -> bool {
    let (mut all, mut i) = (0, 0);
    while i < SLOTS {
        all |= slots[i];
        i += 1;
    }
    all & COUNT != 0
}

/// What an earlier round has left in the slot that a trial is about to use: trials that have not ended, and are counted as overdue from now on.
#[inline(always)]
pub const fn left(value: u32, trial: u32, shift: u8) -> i32 {
    if value & !COUNT == round(trial, shift) { 0 } else { count(value) }
}

/// A slot's value on one CPU after `add` trials that began with this one came (or, negative, went). What an earlier round left is forgotten.
#[inline(always)]
pub const fn changed(value: u32, trial: u32, shift: u8, add: u32) -> u32 {
    let round = round(trial, shift);
    let count = if value & !COUNT == round { value.wrapping_add(add) } else { add };
    round | count & COUNT
}

/// Whether a slot's value is of the round of `ticks`.
const fn is(value: u32, ticks: u32, shift: u8) -> bool {
    value & !COUNT == round(word(ticks, 0), shift)
}

/// Trials of slot `index` on one CPU that have not ended and began at least `unanswered` jiffies before `ticks`; the sum over all CPUs counts. With
/// [`super::Outcomes::overdue`] this never falls: what an earlier round has left is in the one or the other.
pub const fn overdue(value: u32, index: usize, ticks: u32, shift: u8, unanswered: u32) -> i32 {
    let (shift, now) = (shift & timing::SHIFT, word(ticks, 0) >> flag::BITS);
    let back = (now >> shift).wrapping_sub(index as u32) & (SLOTS as u32 - 1);
    // Since the slot's last jiffy, unless it is the one of now.
    let begun = ticks.wrapping_sub(back << shift);
    let since = ((back << shift) + (now & ((1 << shift) - 1))).wrapping_sub((1 << shift) - 1);
    // The clock may have gone on since it was read.
    let young =
        is(value, begun, shift) && (back == 0 || since < unanswered) || is(value, begun.wrapping_add((SLOTS as u32) << shift), shift);
    if young { 0 } else { count(value) }
}

/// Values of one slot on two CPUs, as one; and what an earlier round has left on one of them, which is overdue.
pub const fn merged(one: u32, other: u32) -> (u32, i32) {
    match (one & !COUNT).wrapping_sub(other & !COUNT) as i32 {
        // Of whatever round.
        _ if count(one) == 0 => (other, 0),
        _ if count(other) == 0 => (one, 0),
        0 => (one & !COUNT | one.wrapping_add(other) & COUNT, 0),
        1.. => (one, count(other)),
        _ => (other, count(one)),
    }
}

/// Trials that have not ended at `ticks`, as [`overdue`] and as pending. `slots`: [`merged`] of all CPUs.
pub fn unended(slots: &[u32; SLOTS], ticks: u32, shift: u8, unanswered: u32) -> (i64, i64) {
    let (mut late, mut all) = (0, 0);
    for (index, value) in slots.iter().enumerate() {
        late += overdue(*value, index, ticks, shift, unanswered) as i64;
        all += count(*value) as i64;
    }
    (late, all - late)
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

    /// Counters of one version on two CPUs.
    #[derive(Default)]
    struct Kept {
        slots: [[u32; SLOTS]; 2],
        overdue: i64,
    }

    const UNANSWERED: u32 = 1250;

    impl Kept {
        fn enter(&mut self, cpu: usize, trial: u32, by: u32) {
            let shift = shift(UNANSWERED);
            let value = &mut self.slots[cpu][slot(trial, shift) as usize];
            self.overdue += i64::from(left(*value, trial, shift));
            *value = changed(*value, trial, shift, by);
        }
        fn begin(&mut self, cpu: usize, ticks: u32) -> u32 {
            let trial = word(ticks, flag::UNDER_WAY);
            self.enter(cpu, trial, 1);
            trial
        }
        fn end(&mut self, cpu: usize, trial: u32, ticks: u32) {
            if !is_past(trial, ticks, shift(UNANSWERED)) {
                self.enter(cpu, trial, u32::MAX);
                self.overdue += i64::from(age(trial, ticks) >= UNANSWERED);
            }
        }
        fn overdue(&self, ticks: u32) -> i64 {
            let pending = |cpu: &[u32; SLOTS]| {
                cpu.iter().enumerate().map(|(i, value)| i64::from(overdue(*value, i, ticks, shift(UNANSWERED), UNANSWERED))).sum::<i64>()
            };
            self.overdue + self.slots.iter().map(pending).sum::<i64>()
        }
    }

    #[test]
    fn who_waits_too_long_is_counted_once_whatever_comes_later() {
        assert_eq!(shift(UNANSWERED), 6, "a quarter of a second at 250 Hz");
        // The clock wraps on the way.
        for start in [1000u32, 0xfff_fc00, u32::MAX - 3000] {
            let mut kept = Kept::default();
            let at = |ticks: u32| start.wrapping_add(ticks);
            let (one, two, three) = (kept.begin(0, at(0)), kept.begin(0, at(1)), kept.begin(1, at(2)));
            // Ends in time, on another CPU.
            kept.end(1, two, at(200));
            assert_eq!(kept.overdue(at(1249)), 0);
            assert_eq!(kept.overdue(at(1254 + 64)), 2);
            // Ends late, and long after its slot has come round.
            kept.end(0, three, at(1400));
            assert_eq!(kept.overdue(at(1400)), 2);
            for ticks in (1500..60_000).step_by(10) {
                let trial = kept.begin(ticks as usize % 2, at(ticks));
                kept.end(ticks as usize / 10 % 2, trial, at(ticks + 3));
                assert_eq!(kept.overdue(at(ticks + 4)), 2, "{ticks}");
            }
            kept.end(0, one, at(60_000));
            assert_eq!(kept.overdue(at(60_010)), 2);
        }
    }

    #[test]
    fn counts_rise_one_by_one_as_trials_become_overdue() {
        let mut kept = Kept::default();
        let mut last = 0;
        for ticks in (0..20_000).step_by(5) {
            kept.begin(ticks as usize % 2, ticks);
            let now = kept.overdue(ticks);
            // Between the trials that are old enough, and those a slot later.
            let (most, least) = (u64::from((ticks + 5).saturating_sub(1250) / 5), u64::from((ticks + 5).saturating_sub(1250 + 64) / 5));
            assert!((least as i64..=most as i64).contains(&now) && now >= last, "{ticks}: {now} not {least} to {most}");
            last = now;
        }
    }

    #[test]
    fn slots_of_all_cpus_are_one() {
        let mut kept = Kept::default();
        let first = kept.begin(0, 1_000);
        kept.begin(1, 1_000);
        kept.begin(1, 1_000);
        kept.end(1, first, 1_100);
        let merge = |kept: &Kept| {
            let mut left = kept.overdue;
            let mut slots = [0; SLOTS];
            for (i, slot) in slots.iter_mut().enumerate() {
                let (value, late) = merged(kept.slots[0][i], kept.slots[1][i]);
                *slot = value;
                left += i64::from(late);
            }
            (slots, left)
        };
        let (slots, left) = merge(&kept);
        let told = |slots, ticks| unended(slots, ticks, shift(UNANSWERED), UNANSWERED);
        assert_eq!((told(&slots, 1_200), told(&slots, 2_400), left), ((0, 2), (2, 0), 0));
        // The slot comes round on one of them.
        kept.begin(0, 1_000 + 64 * SLOTS as u32);
        let (slots, left) = merge(&kept);
        assert_eq!((told(&slots, 1_010 + 64 * SLOTS as u32), left), ((0, 1), 2));
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
