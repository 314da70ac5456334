//! Counters and histograms.

use crate::{
    bytes::{Ref, opaque},
    env::Env,
    field,
};
use splitter_common::{
    abi::{
        Backend, HistogramKey, Measure, Reason, VersionCounters,
        trial::{self, SLOTS, flag, outcome, timing},
    },
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

/// Adds a sample to a version's histogram. `trial`: the word of the trial that took so long, which tells whose it is.
#[inline(never)]
pub fn sample<E: Env>(env: &E, version: u32, measure: u32, trial: u32, ns: u64) -> u32 {
    let measure = if measure == Measure::Connect as u32 { Measure::Connect } else { Measure::FirstByte };
    let (octave, sub) = histogram::locate(ns);
    match env.octave(&HistogramKey::new(version, measure, trial & flag::RULED != 0, octave)) {
        Some(value) => {
            let sub = opaque(sub) as usize & (histogram::SUBBUCKETS as usize - 1);
            // SAFETY: `sub` is masked to the array's length; a Ref points to a live map value.
            unsafe { *(&raw mut (*value.as_ptr()).counts).cast::<u32>().add(sub) += 1 }
        }
        None => env.count(Reason::HistogramLost),
    }
    0
}

/// Counters of a version whose trials are about to change: who judges it is told.
#[inline(always)]
pub fn trials<E: Env>(env: &E, version: u32) -> Option<Ref<VersionCounters>> {
    env.moved(version);
    env.counters(version)
}

/// A trial of the backend's version begins, and its client waits for the answer: its word, which the flow remembers. `ruled`: 1 when a rule
/// sent it there, else 0.
#[inline(never)]
pub fn begun<E: Env>(env: &E, backend: Ref<Backend>, ruled: u32) -> u32 {
    let kind = if ruled != 0 { flag::RULED } else { 0 };
    let Some(counters) = trials(env, field!(backend.version)) else { return 0 };
    add(counters, kind, outcome::TRIALS);
    wait(env, backend, counters, flag::UNDER_WAY | kind)
}

/// A trial that nobody of the version can serve begins and ends: the node refuses it.
#[inline(never)]
pub fn unserved<E: Env>(env: &E, version: u32, ruled: u32) -> u32 {
    let kind = if ruled != 0 { flag::RULED } else { 0 };
    let Some(counters) = trials(env, version) else { return 0 };
    add(counters, kind, outcome::TRIALS);
    add(counters, kind, outcome::UNAVAILABLE);
    0
}

/// A trial's client does not wait for an answer for now: the word is another one from here on.
#[inline(never)]
pub fn rests<E: Env>(env: &E, backend: Ref<Backend>, trial: u32) -> u32 {
    if trial & flag::PENDING != 0
        && let Some(counters) = trials(env, field!(backend.version))
    {
        leave(env, counters, field!(backend.timing), trial);
    }
    trial & !flag::PENDING
}

/// A trial's client waits for an answer from now on: the word is another one from here on. As [`rests`], not for a trial that has ended.
#[inline(never)]
pub fn waits<E: Env>(env: &E, backend: Ref<Backend>, trial: u32) -> u32 {
    let Some(counters) = trials(env, field!(backend.version)) else { return trial };
    // As `rests`, without another frame on the stack.
    if trial & flag::PENDING != 0 {
        leave(env, counters, field!(backend.timing), trial);
    }
    wait(env, backend, counters, trial & (flag::UNDER_WAY | flag::RULED))
}

/// A trial ends, with an [`outcome`]. Its flow must forget the word, and of two CPUs only one may come here with it. 1: it counts as that;
/// 0: there was none, or it was overdue.
#[inline(never)]
pub fn ended<E: Env>(env: &E, backend: Ref<Backend>, trial: u32, outcome: u32) -> u32 {
    if trial & flag::UNDER_WAY == 0 {
        return 0;
    }
    let Some(counters) = trials(env, field!(backend.version)) else { return 0 };
    if trial & flag::PENDING != 0 {
        let (timing, unanswered, now) = (field!(backend.timing), field!(backend.unanswered), env.ticks());
        if trial::is_past(trial, now, timing) {
            // It has been left in its slot, and is counted there.
            return 0;
        }
        enter(counters, timing, trial, u32::MAX);
        if unanswered != 0 && trial::age(trial, now) >= unanswered {
            add(counters, trial, outcome::OVERDUE);
            return 0;
        }
    }
    add(counters, trial, outcome);
    1
}

/// Adds 1 to an [`outcome`] in the ledger that a trial with this word belongs to.
#[inline(always)]
pub fn add(counters: Ref<VersionCounters>, trial: u32, outcome: u32) {
    let ledger = if trial & flag::RULED != 0 { outcome::COUNT } else { 0 };
    let at = opaque(ledger + outcome) as usize & (2 * outcome::COUNT as usize - 1);
    // SAFETY: two ledgers of so many stand one behind the other; a Ref points to a live map value.
    unsafe { *(&raw mut (*counters.as_ptr()).drawn).cast::<u64>().add(at) += 1 }
}

/// The word of a trial whose client waits from now on.
#[inline(always)]
fn wait<E: Env>(env: &E, backend: Ref<Backend>, counters: Ref<VersionCounters>, flags: u32) -> u32 {
    let timing = field!(backend.timing);
    let wanted = if flags & flag::RULED != 0 { timing::RULED } else { timing::DRAWN };
    if timing & wanted == 0 {
        return trial::word(env.ticks(), flags);
    }
    let trial = trial::word(env.ticks(), flags | flag::PENDING);
    enter(counters, timing, trial, 1);
    trial
}

/// Takes a trial out of its slot, unless that is another's by now.
#[inline(always)]
fn leave<E: Env>(env: &E, counters: Ref<VersionCounters>, shift: u8, trial: u32) {
    if !trial::is_past(trial, env.ticks(), shift) {
        enter(counters, shift, trial, u32::MAX);
    }
}

/// Adds to the slot of a trial.
#[inline(always)]
fn enter(counters: Ref<VersionCounters>, timing: u8, trial: u32, by: u32) {
    let at = opaque(trial::slot(trial, timing)) as usize & (SLOTS - 1);
    // SAFETY: masked to the array's length; a Ref points to a live map value.
    let slot = unsafe { (&raw mut (*counters.as_ptr()).pending).cast::<u32>().add(at) };
    // SAFETY: as above.
    let value = unsafe { *slot };
    let left = trial::left(value, trial, timing);
    if left != 0 {
        // Who reads both ledgers does not mind which one it is.
        let ledger = if timing & timing::DRAWN != 0 { 0 } else { outcome::COUNT };
        let at = opaque(ledger + outcome::OVERDUE) as usize & (2 * outcome::COUNT as usize - 1);
        // SAFETY: as in `add`.
        unsafe {
            let overdue = (&raw mut (*counters.as_ptr()).drawn).cast::<u64>().add(at);
            *overdue = (*overdue).wrapping_add(left as i64 as u64);
        }
    }
    // SAFETY: as above.
    unsafe { *slot = trial::changed(value, trial, timing, by) }
}
