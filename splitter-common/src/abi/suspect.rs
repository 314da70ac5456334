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

/// Value of `SUSPECTED` (key: version id): the version's suspects, so that they can be counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Suspected {
    /// Backend ids, and until when.
    pub backends: [u32; SUSPECTS_MOST],
    pub until: [u32; SUSPECTS_MOST],
}

pod!(Suspected);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicions_end_for_good() {
        let until = 5u32;
        assert!(is_suspected(until, until.wrapping_sub(5_000)) && is_suspected(until, 4));
        for later in [0, 1, 1 << 16, 1 << 31, (1 << 31) + 1, u32::MAX - (1 << 16)] {
            assert!(!is_suspected(until, until.wrapping_add(later)), "{later}");
        }
    }
}
