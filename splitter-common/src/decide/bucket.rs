//! Intervals of buckets.

use crate::{
    abi::{MAX_VERSIONS, Service, service_flag},
    barrier,
};

/// Number of buckets.
pub const SPACE: u64 = 1 << 32;

/// Ends (exclusive) of the versions' intervals, in the order of `weights`; `None` when all weights are 0.
pub fn intervals(weights: &[u32]) -> Option<[u64; MAX_VERSIONS]> {
    let total: u64 = weights.iter().take(MAX_VERSIONS).map(|w| u64::from(*w)).sum();
    if total == 0 {
        return None;
    }
    let mut ends = [SPACE; MAX_VERSIONS];
    let mut sum = 0u64;
    for (end, weight) in ends.iter_mut().zip(weights) {
        sum += u64::from(*weight);
        // sum < 2^35 and SPACE = 2^32: 128 bits, so that no weight is too large.
        *end = (u128::from(sum) * u128::from(SPACE) / u128::from(total)) as u64;
    }
    Some(ends)
}

/// A bucket of the version that gets requests whose head is too long to be read (`service_flag`): of the baseline, or, when that has no weight, of the
/// first version that has.
#[inline(always)]
pub fn baseline(service: &Service) -> u32 {
    let slot = barrier::opaque((service.flags >> service_flag::BASELINE) as u32) as usize & (MAX_VERSIONS - 1);
    // Of slot 0 the last one, which does not matter.
    let before = barrier::opaque((slot as u32).wrapping_sub(1)) as usize & (MAX_VERSIONS - 1);
    let start = if slot == 0 { 0 } else { service.versions[before].end };
    if service.versions[slot].end > start { start as u32 } else { 0 }
}

/// Index of the version that owns a bucket; `None` when no version has weight.
#[inline(always)]
pub fn pick(service: &Service, bucket: u32) -> Option<usize> {
    let mut i = 0;
    while i < MAX_VERSIONS {
        if i >= service.version_count as usize {
            return None;
        }
        if (bucket as u64) < service.versions[i].end {
            return Some(i);
        }
        i += 1;
    }
    None
}
