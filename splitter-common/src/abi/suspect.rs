//! Backends that failed a client lately, and get no new flow while others of their version can serve.

use super::pod;

/// Most suspects of one version at a time, however many backends it has.
pub const SUSPECTS_MOST: usize = 8;

/// A value of `SUSPECTS` (key: backend id) is until when it holds, jiffies. Not more than this ahead of the clock, or it is of long ago: the clock
/// wraps.
const LONGEST: u32 = 1 << 16;

/// Whether a suspicion holds now.
#[inline(always)]
pub const fn is_suspected(until: u32, now: u32) -> bool {
    until.wrapping_sub(now).wrapping_sub(1) < LONGEST
}

/// Value of `SUSPECTED` (key: version id): the version's suspects, so that they can be counted, and since when nobody of it answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspected {
    /// Backend ids, and until when.
    pub backends: [u32; SUSPECTS_MOST],
    pub until: [u32; SUSPECTS_MOST],
    /// `mode: http`: when a backend first, and when one last left a SYN unanswered, jiffies (0: 1), while none answered any. `silent_last` 0: one
    /// has answered.
    pub silent_since: u32,
    pub silent_last: u32,
}

impl Suspected {
    /// Whether a silence still says something of now: the last SYN that nobody answered was sent within `ticks`.
    #[inline(always)]
    pub const fn is_silent(&self, now: u32, ticks: u32) -> bool {
        self.silent_last != 0 && now.wrapping_sub(self.silent_last) <= ticks
    }
}

pod!(Suspected);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silence_ends_by_itself() {
        let silent = |silent_last| Suspected { silent_since: 1, silent_last, ..Suspected::default() };
        assert!(silent(1_000).is_silent(1_000, 1_250) && silent(u32::MAX).is_silent(1_249, 1_250));
        assert!(!silent(1_000).is_silent(2_251, 1_250) && !silent(0).is_silent(3, 1_250));
    }

    #[test]
    fn suspicions_end_for_good() {
        let until = 5u32;
        assert!(is_suspected(until, until.wrapping_sub(5_000)) && is_suspected(until, 4));
        for later in [0, 1, 1 << 16, 1 << 31, (1 << 31) + 1, u32::MAX - (1 << 16)] {
            assert!(!is_suspected(until, until.wrapping_add(later)), "{later}");
        }
    }
}
