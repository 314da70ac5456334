//! Counters and histograms.

use crate::{env::Env, field};
use splitter_common::{
    abi::{HistogramKey, Measure, Reason},
    histogram,
};

/// Adds one translated packet to its version.
#[inline(always)]
pub fn packet<E: Env>(env: &E, version: u32, bytes: u32, reverse: bool) {
    let Some(counters) = env.counters(version) else { return };
    if reverse {
        field!(counters.packets_out += 1);
        field!(counters.bytes_out += bytes as u64);
    } else {
        field!(counters.packets_in += 1);
        field!(counters.bytes_in += bytes as u64);
    }
}

/// Adds a sample to a version's histogram.
#[inline(never)]
pub fn sample<E: Env>(env: &E, version: u32, measure: u32, ns: u64) -> u32 {
    let measure = if measure == Measure::Connect as u32 { Measure::Connect } else { Measure::FirstByte };
    let (octave, sub) = histogram::locate(ns);
    match env.octave(&HistogramKey::new(version, measure, octave)) {
        Some(value) => {
            let sub = crate::bytes::opaque(sub) as usize & (histogram::SUBBUCKETS as usize - 1);
            // SAFETY: `sub` is masked to the array's length; a Ref points to a live map value.
            unsafe { *(&raw mut (*value.as_ptr()).counts).cast::<u32>().add(sub) += 1 }
        }
        None => env.count(Reason::HistogramLost),
    }
    0
}
