//! Counters and histograms of watched versions, as differences between two looks. Of the counters only what clients suffered and were served, by the
//! ledger of those trials that the policy judges by.

use super::super::counters::{self, EVERYBODY, Histogram, Whose};
use crate::{
    datapath::{Table, TableError, Tables, read},
    model::{Judge, Measure},
    plan::trials::Timing,
    rollout::{
        Side,
        stats::{Counts, bucket_of},
    },
};
use splitter_common::abi::{self, Outcomes, VersionCounters, trial};
use std::{collections::HashMap, ops::Range};

/// More versions than this, and histograms are read by walking their whole table, less often.
pub const FEW: usize = 128;
/// Bytes of counters that one read brings: they stay in the CPU's cache until they are summed.
const PORTION: usize = 1 << 15;

/// Remembers the last look. Counters only grow; where one did not, its version is new under an old number, and counts from zero.
#[derive(Default)]
pub struct Sampler {
    /// Numbers that follow each other are read together: the first one, and the slots of all.
    ranges: Vec<(u32, Range<usize>)>,
    slots: Vec<Slot>,
    /// The last read succeeded.
    complete: bool,
    /// What one read brings; kept, so that nothing is allocated ten times a second.
    values: Vec<u8>,
    histograms: HashMap<(u32, Measure), Known>,
}

/// How a version is judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    pub version: u32,
    pub judge: Judge,
    /// As the kernel has it.
    pub timing: Timing,
}

/// What is read of a version's counters, over all CPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ledger {
    /// Trials begun that the weights drew.
    drawn: u64,
    answered: u64,
    /// Answers that are failures, or were cut.
    bad: u64,
    /// Trials that ended without an answer in time.
    lost: u64,
    /// Trials that have waited too long: with those that still wait.
    overdue: i64,
}

/// One version's counters, over all CPUs.
#[derive(Clone, Copy, Default)]
struct Slot {
    watch: Watch,
    /// The last look differs from the one before, or was the first.
    moved: bool,
    now: Option<Ledger>,
    /// Before they moved.
    last: Option<Ledger>,
}

/// A histogram as it was read last, and its version's counters just before: while they stand, no packet came that could have left a sample.
struct Known {
    counters: Option<Ledger>,
    buckets: Vec<(u16, u64)>,
}

fn kernel_measure(measure: Measure) -> abi::Measure {
    match measure {
        Measure::FirstByte => abi::Measure::FirstByte,
        Measure::Connect => abi::Measure::Connect,
    }
}

impl Sampler {
    /// Reads these versions from now on. What is known of those that were read before stays.
    pub fn watch(&mut self, mut versions: Vec<Watch>) {
        versions.sort_unstable_by_key(|watch| watch.version);
        versions.dedup_by_key(|watch| watch.version);
        let known = std::mem::take(&mut self.slots);
        let slot = |watch: Watch| {
            let old = known.binary_search_by_key(&watch.version, |slot| slot.watch.version).ok().map(|index| known[index]);
            // What was counted another way is no beginning.
            old.filter(|old| old.watch == watch).unwrap_or(Slot { watch, ..Slot::default() })
        };
        self.slots = versions.into_iter().map(slot).collect();
        self.ranges.clear();
        for (index, slot) in self.slots.iter().enumerate() {
            match self.ranges.last_mut() {
                Some((first, slots)) if *first as usize + slots.len() == slot.watch.version as usize => slots.end += 1,
                _ => self.ranges.push((slot.watch.version, index..index + 1)),
            }
        }
    }

    /// Where a watched version's counters are, until the next [`Sampler::watch`].
    pub fn slot(&self, version: u32) -> Option<usize> {
        self.slots.binary_search_by_key(&version, |slot| slot.watch.version).ok()
    }

    /// Reads the counters of the watched versions; [`Sampler::side`] tells what is new. After an error it tells nothing of use, and the next
    /// look compares with the one before. `ticks`: the kernel's clock.
    pub fn look(&mut self, tables: &impl Tables, ticks: u32) -> Result<(), TableError> {
        // What a look saw that failed is told by the next one.
        let pending = !std::mem::take(&mut self.complete);
        let size = tables.value_size(Table::Counters);
        let portion = (PORTION / size).max(1);
        for (first, slots) in &self.ranges {
            let mut version = *first;
            for part in self.slots[slots.clone()].chunks_mut(portion) {
                self.values.resize(part.len() * size, 0);
                tables.range(Table::Counters, version, &mut self.values)?;
                version += part.len() as u32;
                for (slot, values) in part.iter_mut().zip(self.values.chunks_exact(size)) {
                    slot.note(Ledger::of(&slot.watch, values, ticks), pending);
                }
            }
        }
        self.complete = true;
        Ok(())
    }

    /// Something was counted for the version in this slot between the last two looks, or it was seen for the first time.
    pub fn moved(&self, slot: usize) -> bool {
        self.slots.get(slot).is_none_or(|slot| slot.moved)
    }

    /// Counts of the version in this slot between the last two looks, and trials begun that the weights drew; `None` when the last one was its
    /// first.
    pub fn side(&self, slot: usize) -> Option<(Side, f64)> {
        let slot = self.slots.get(slot)?;
        if slot.moved { Some(delta(&slot.last?, &slot.now?)) } else { slot.now.map(|_| Default::default()) }
    }

    /// New samples of each watched version and measure; those seen for the first time have none. Reads only histograms of versions whose
    /// counters moved: a sample that the kernel notes just after they were read comes with the next one, and none is lost.
    pub fn histograms(&mut self, tables: &impl Tables, wanted: &[(u32, Measure)]) -> Result<HashMap<(u32, Measure), Counts>, TableError> {
        let moved: Vec<(u32, Measure)> = wanted.iter().filter(|key| self.has_new(key)).copied().collect();
        let all = if moved.len() > FEW { Some(counters::histograms(tables, |version| self.whose(version))?) } else { None };
        let mut found = HashMap::with_capacity(moved.len());
        for key @ (version, measure) in moved {
            let kernel = kernel_measure(measure);
            let buckets = match &all {
                Some(all) => all.get(&(version, kernel as u32)).map(buckets).unwrap_or_default(),
                None => buckets(&counters::histogram(tables, version, kernel, self.whose(version))?),
            };
            if let Some(last) = self.histograms.get(&key) {
                found.insert(key, newer(&last.buckets, &buckets));
            }
            self.histograms.insert(key, Known { counters: self.counter(version), buckets });
        }
        if self.histograms.len() > 2 * wanted.len() + FEW {
            self.histograms.retain(|key, _| wanted.contains(key));
        }
        Ok(found)
    }

    /// Something was counted for this version since its histogram was read, or nothing is known of either.
    fn has_new(&self, key: &(u32, Measure)) -> bool {
        let counters = self.counter(key.0);
        counters.is_none() || self.histograms.get(key).is_none_or(|known| known.counters != counters)
    }

    /// Whose samples are evidence for a version: of the same trials as the counts.
    fn whose(&self, version: u32) -> Whose {
        match self.slot(version).map_or(Judge::All, |slot| self.slots[slot].watch.judge) {
            Judge::Drawn => &[false],
            Judge::Ruled => &[true],
            Judge::All => EVERYBODY,
        }
    }

    fn counter(&self, version: u32) -> Option<Ledger> {
        self.slots[self.slot(version)?].now
    }
}

impl Slot {
    /// `pending`: nobody was told what the look before brought.
    fn note(&mut self, mut now: Ledger, pending: bool) {
        // It never falls but for a version that is new, or readings of CPUs that are a moment apart.
        if let Some(before) = self.now.filter(|before| before.drawn <= now.drawn && before.answered <= now.answered) {
            now.overdue = now.overdue.max(before.overdue);
        }
        let untold = pending && self.moved;
        if self.now == Some(now) && !untold {
            self.moved = false;
            return;
        }
        if !untold {
            self.last = self.now;
        }
        (self.now, self.moved) = (Some(now), true);
    }
}

impl Ledger {
    /// `values`: as the table gives them, one after the other for each CPU.
    fn of(watch: &Watch, values: &[u8], ticks: u32) -> Self {
        let mut total = Self::default();
        for value in values.chunks_exact(size_of::<VersionCounters>().next_multiple_of(8)) {
            let counters: VersionCounters = read(value);
            total.drawn += counters.drawn.trials;
            if watch.judge != Judge::Ruled {
                total.add(&counters.drawn);
            }
            if watch.judge != Judge::Drawn {
                total.add(&counters.ruled);
            }
            let Timing { bits, unanswered } = watch.timing;
            // Most versions have nobody waiting at most looks.
            if unanswered != 0 && trial::any(&counters.pending) {
                let waiting = counters.pending.iter().enumerate().map(|(i, value)| trial::overdue(*value, i, ticks, bits, unanswered));
                total.overdue += i64::from(waiting.sum::<i32>());
            }
        }
        total
    }

    fn add(&mut self, outcomes: &Outcomes) {
        self.answered += outcomes.answered;
        self.bad += outcomes.failed + outcomes.cut;
        self.lost += outcomes.refused + outcomes.unopened + outcomes.abandoned + outcomes.closed + outcomes.unavailable;
        self.overdue = self.overdue.wrapping_add(outcomes.overdue as i64);
    }
}

fn delta(last: &Ledger, now: &Ledger) -> (Side, f64) {
    let grown = |of: fn(&Ledger) -> u64| {
        let (last, now) = (of(last), of(now));
        now.checked_sub(last).unwrap_or(now) as f64
    };
    let overdue = if now.overdue >= last.overdue { now.overdue - last.overdue } else { now.overdue.max(0) } as f64;
    let lost = grown(|c| c.lost) + overdue;
    let trials = grown(|c| c.answered) + lost;
    // An answer may be both a failure and cut.
    let errors = (lost + grown(|c| c.bad)).min(trials.max(lost));
    (Side { trials, errors }, grown(|c| c.drawn))
}

fn buckets(histogram: &Histogram) -> Vec<(u16, u64)> {
    histogram.samples().map(|(octave, sub, count)| (bucket_of(octave, sub), count)).collect()
}

/// Both in rising order.
fn newer(last: &[(u16, u64)], now: &[(u16, u64)]) -> Counts {
    let mut old = last.iter().peekable();
    let mut new = Vec::new();
    for (bucket, count) in now {
        while old.next_if(|(other, _)| other < bucket).is_some() {}
        let before = old.next_if(|(other, _)| other == bucket).map_or(0, |(_, count)| *count);
        let grown = if *count >= before { count - before } else { *count };
        if grown > 0 {
            new.push((*bucket, grown as f64));
        }
    }
    Counts::new(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::{Memory, bytes_of};
    use splitter_common::abi::{HistogramKey, HistogramOctave};

    fn watch(version: u32) -> Watch {
        Watch { version, ..Watch::default() }
    }

    fn trials(version: u64) -> VersionCounters {
        VersionCounters { drawn: Outcomes { trials: version, answered: version, ..Outcomes::default() }, ..VersionCounters::default() }
    }

    #[test]
    fn looks_see_what_is_new() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, counters: VersionCounters| {
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
        };
        let mut counters = VersionCounters { connections: 100, resets_backend: 3, ..VersionCounters::default() };
        put(&mut memory, counters);
        let mut look = |memory: &Memory, judge: Judge| {
            sampler.watch(vec![Watch { judge, ..watch(7) }]);
            sampler.look(memory, 0).unwrap();
            let slot = sampler.slot(7).unwrap();
            (sampler.side(slot).map(|(side, drawn)| (side.trials, side.errors, drawn)), sampler.moved(slot))
        };
        assert_eq!(look(&memory, Judge::Drawn), (None, true), "the first look has no last one");
        assert_eq!(look(&memory, Judge::Drawn), (Some((0.0, 0.0, 0.0)), false));
        // Ten answered, of them two failed and one cut; five that were not; four that still wait say nothing.
        counters.drawn = Outcomes {
            trials: 19,
            answered: 10,
            failed: 2,
            cut: 1,
            refused: 1,
            unopened: 1,
            abandoned: 1,
            closed: 1,
            unavailable: 1,
            ..Outcomes::default()
        };
        counters.ruled = Outcomes { trials: 7, answered: 3, failed: 3, overdue: 4, ..Outcomes::default() };
        put(&mut memory, counters);
        assert_eq!(look(&memory, Judge::Drawn), (Some((15.0, 8.0, 19.0)), true));
        assert_eq!(look(&memory, Judge::Drawn), (Some((0.0, 0.0, 0.0)), false));
        // Another ledger begins anew.
        assert_eq!(look(&memory, Judge::Ruled), (None, true));
        (counters.ruled.answered, counters.ruled.overdue, counters.drawn.closed) = (5, 5, 9);
        put(&mut memory, counters);
        assert_eq!(look(&memory, Judge::Ruled).0, Some((3.0, 1.0, 0.0)));
        look(&memory, Judge::All);
        (counters.ruled.answered, counters.drawn.closed, counters.drawn.trials) = (6, 10, 22);
        put(&mut memory, counters);
        assert_eq!(look(&memory, Judge::All).0, Some((2.0, 1.0, 3.0)));
        // What fails is no more than what was tried.
        (counters.ruled.answered, counters.ruled.failed, counters.ruled.cut) = (7, 4, 1);
        put(&mut memory, counters);
        assert_eq!(look(&memory, Judge::All).0, Some((1.0, 1.0, 0.0)));
        // A number that was given anew starts from zero.
        put(&mut memory, trials(5));
        assert_eq!(look(&memory, Judge::All).0, Some((5.0, 0.0, 5.0)));
    }

    #[test]
    fn who_waits_too_long_has_failed() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let timing = Timing { bits: trial::timing::DRAWN | trial::shift(1250), unanswered: 1250 };
        let begun = trial::word(10_000, trial::flag::UNDER_WAY);
        let mut counters = trials(0);
        let at = trial::slot(begun, timing.bits) as usize;
        counters.drawn.trials = 30;
        counters.pending[at] = trial::changed(0, begun, timing.bits, 30);
        let mut look = |memory: &mut Memory, counters: &VersionCounters, ticks: u32| {
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[*counters, VersionCounters::default()])).unwrap();
            sampler.watch(vec![Watch { timing, ..watch(7) }]);
            sampler.look(memory, ticks).unwrap();
            sampler.side(0).map(|(side, _)| (side.trials, side.errors))
        };
        assert_eq!(look(&mut memory, &trials(0), 10_000), None);
        assert_eq!(look(&mut memory, &counters, 11_000), Some((0.0, 0.0)));
        assert_eq!(look(&mut memory, &counters, 11_400), Some((30.0, 30.0)));
        // Ten of them end: that is known already.
        counters.drawn.overdue = 10;
        counters.pending[at] = trial::changed(counters.pending[at], begun, timing.bits, 10u32.wrapping_neg());
        assert_eq!(look(&mut memory, &counters, 11_500), Some((0.0, 0.0)));
    }

    #[test]
    fn numbers_with_gaps_are_read_and_what_is_known_stays() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, version: u32, count: u64| {
            memory.put(Table::Counters, bytes_of(&[version]), bytes_of(&[trials(count), trials(count)])).unwrap();
        };
        let versions: Vec<u32> = (1..=400).chain([900, 902, 903]).collect();
        versions.iter().for_each(|version| put(&mut memory, *version, u64::from(*version)));
        sampler.watch(versions.iter().copied().map(watch).collect());
        sampler.look(&memory, 0).unwrap();
        versions.iter().for_each(|version| put(&mut memory, *version, 3 * u64::from(*version)));
        let some = versions.iter().rev().copied().filter(|version| version % 2 == 1 || *version > 800).chain([901]);
        sampler.watch(some.map(watch).collect());
        sampler.look(&memory, 0).unwrap();
        for version in [1, 199, 399, 900, 902, 903] {
            let (side, _) = sampler.side(sampler.slot(version).unwrap()).unwrap();
            assert_eq!(side.trials, 4.0 * f64::from(version), "{version}");
        }
        assert!(sampler.slot(2).is_none() && sampler.side(sampler.slot(901).unwrap()).is_none());
    }

    #[test]
    fn what_a_failed_look_saw_is_told_by_the_next() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, count: u64| {
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[trials(count), VersionCounters::default()])).unwrap();
        };
        sampler.watch(vec![watch(7)]);
        sampler.look(&memory, 0).unwrap();
        put(&mut memory, 5);
        sampler.look(&memory, 0).unwrap();
        // As an error in a later portion leaves it.
        sampler.complete = false;
        put(&mut memory, 8);
        sampler.look(&memory, 0).unwrap();
        assert_eq!(sampler.side(0).unwrap().0.trials, 8.0);
        sampler.look(&memory, 0).unwrap();
        assert_eq!(sampler.side(0).unwrap().0.trials, 0.0);
    }

    #[test]
    fn histograms_by_key_and_by_walk_agree() {
        let mut memory = Memory::new();
        let key = HistogramKey::new(7, abi::Measure::FirstByte, false, 20);
        let put = |memory: &mut Memory, counts: &[(usize, u32)]| {
            let mut value = HistogramOctave { counts: [0; 32] };
            counts.iter().for_each(|(sub, count)| value.counts[*sub] = *count);
            memory.put(Table::Histograms, bytes_of(&[key]), bytes_of(&[value, value])).unwrap();
        };
        let few = [(7, Measure::FirstByte)];
        let many: Vec<_> = (1..=FEW as u32 + 1).map(|version| (version, Measure::FirstByte)).collect();
        for wanted in [&few[..], &many] {
            let mut sampler = Sampler::default();
            put(&mut memory, &[(3, 5)]);
            assert!(sampler.histograms(&memory, wanted).unwrap().is_empty());
            put(&mut memory, &[(1, 2), (3, 6), (9, 1)]);
            let new = &sampler.histograms(&memory, wanted).unwrap()[&few[0]];
            let first = bucket_of(20, 0);
            assert_eq!(*new, Counts::new(vec![(first + 1, 4.0), (first + 3, 2.0), (first + 9, 2.0)]));
        }
    }

    #[test]
    fn histograms_are_read_when_their_counters_moved() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let wanted = [(7, Measure::FirstByte)];
        let key = HistogramKey::new(7, abi::Measure::FirstByte, false, 20);
        let mut look = |answered: u64, samples: u32| {
            let counters = trials(answered);
            let mut octave = HistogramOctave { counts: [0; 32] };
            octave.counts[1] = samples;
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
            memory.put(Table::Histograms, bytes_of(&[key]), bytes_of(&[octave, HistogramOctave { counts: [0; 32] }])).unwrap();
            sampler.watch(vec![watch(7)]);
            sampler.look(&memory, 0).unwrap();
            sampler.histograms(&memory, &wanted).unwrap().get(&wanted[0]).map(Counts::total)
        };
        assert_eq!(look(1, 5), None, "seen for the first time");
        // Noted just after the counters were read: not lost.
        assert_eq!(look(1, 6), None);
        assert_eq!(look(2, 8), Some(3.0));
        assert_eq!(look(2, 8), None);
    }

    #[test]
    fn latency_is_that_of_the_trials_that_are_judged() {
        let mut memory = Memory::new();
        let octave = HistogramOctave { counts: [1; 32] };
        let put = |memory: &mut Memory, version: u32, at: [u32; 2]| {
            let [drawn, ruled] = [false, true].map(|ruled| HistogramKey::new(version, abi::Measure::FirstByte, ruled, at[ruled as usize]));
            memory.put(Table::Histograms, bytes_of(&[drawn, ruled]), bytes_of(&[octave; 4])).unwrap();
        };
        let octaves = |counts: &Counts| {
            let [low, high] = [20, 24].map(|octave| counts.from(bucket_of(octave, 0)));
            [low - high, high]
        };
        let few = [(7, Measure::FirstByte)];
        let many: Vec<_> = (7..=FEW as u32 + 8).map(|version| (version, Measure::FirstByte)).collect();
        for (judge, expected) in [(Judge::Drawn, [64.0, 0.0]), (Judge::Ruled, [0.0, 64.0]), (Judge::All, [64.0, 64.0])] {
            for wanted in [&few[..], &many] {
                let mut sampler = Sampler::default();
                sampler.watch(vec![Watch { judge, ..watch(7) }]);
                memory.delete(Table::Histograms, bytes_of(&[HistogramKey::new(7, abi::Measure::FirstByte, false, 20)])).unwrap();
                memory.delete(Table::Histograms, bytes_of(&[HistogramKey::new(7, abi::Measure::FirstByte, true, 24)])).unwrap();
                assert!(sampler.histograms(&memory, wanted).unwrap().is_empty());
                put(&mut memory, 7, [20, 24]);
                assert_eq!(octaves(&sampler.histograms(&memory, wanted).unwrap()[&few[0]]), expected, "{judge:?}");
            }
        }
    }
}
