//! Log-linear histograms: 32 sub-buckets in every power of two, so that a bucket's midpoint is within 1/64 (1.6%) of any value in it.
//!
//! A value of v nanoseconds belongs to octave floor(log2 v) and to the sub-bucket that its next five bits name. Values below 32 ns
//! count as 32 ns; values from 2^37 ns (137 s) on count as the largest.

/// Sub-buckets in one octave; a power of two.
pub const SUBBUCKETS: u32 = 32;
/// Smallest octave in use.
pub const MIN_OCTAVE: u32 = 5;
/// Largest octave in use.
pub const MAX_OCTAVE: u32 = 36;

/// Octave and sub-bucket of a value in nanoseconds.
#[inline(always)]
pub const fn locate(ns: u64) -> (u32, u32) {
    if ns < 1 << MIN_OCTAVE {
        return (MIN_OCTAVE, 0);
    }
    if ns >= 1 << (MAX_OCTAVE + 1) {
        return (MAX_OCTAVE, SUBBUCKETS - 1);
    }
    // A binary search instead of `leading_zeros`: BPF has no such instruction, and the table LLVM would use costs a map lookup.
    let (mut octave, mut rest) = (0, ns);
    if rest >> 32 != 0 {
        octave += 32;
        rest >>= 32;
    }
    if rest >> 16 != 0 {
        octave += 16;
        rest >>= 16;
    }
    if rest >> 8 != 0 {
        octave += 8;
        rest >>= 8;
    }
    if rest >> 4 != 0 {
        octave += 4;
        rest >>= 4;
    }
    if rest >> 2 != 0 {
        octave += 2;
        rest >>= 2;
    }
    octave += (rest >> 1) as u32;
    (octave, (ns >> (octave - MIN_OCTAVE)) as u32 & (SUBBUCKETS - 1))
}

/// Lower bound (inclusive) of a bucket, nanoseconds.
pub const fn lower(octave: u32, sub: u32) -> u64 {
    (SUBBUCKETS as u64 + sub as u64) << (octave - MIN_OCTAVE)
}

/// Upper bound (exclusive) of a bucket, nanoseconds.
pub const fn upper(octave: u32, sub: u32) -> u64 {
    (SUBBUCKETS as u64 + sub as u64 + 1) << (octave - MIN_OCTAVE)
}

/// The value that stands for a bucket: its midpoint, nanoseconds.
pub const fn midpoint(octave: u32, sub: u32) -> u64 {
    lower(octave, sub).midpoint(upper(octave, sub))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn error_is_at_most_three_percent(ns in 1_000u64..60_000_000_000) {
            let (octave, sub) = locate(ns);
            prop_assert!(lower(octave, sub) <= ns && ns < upper(octave, sub));
            let error = (midpoint(octave, sub) as f64 - ns as f64).abs() / ns as f64;
            prop_assert!(error <= 0.03, "{ns} ns stands as {} ns", midpoint(octave, sub));
        }

        #[test]
        fn order_is_kept(a in 0u64..1 << 40, b in 0u64..1 << 40) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(locate(low) <= locate(high));
        }
    }

    #[test]
    fn ends_are_clamped() {
        assert_eq!(locate(0), (MIN_OCTAVE, 0));
        assert_eq!(locate(u64::MAX), (MAX_OCTAVE, SUBBUCKETS - 1));
    }
}
