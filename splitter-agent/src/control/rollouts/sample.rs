//! Counters and histograms of watched versions, as differences between two looks.

use super::super::counters::{self, Histogram};
use crate::{
    datapath::{Table, TableError, Tables},
    model::Measure,
    rollout::{
        Side,
        stats::{Counts, bucket_of},
    },
};
use splitter_common::abi::{self, VersionCounters};
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

/// One version's counters, over all CPUs.
#[derive(Clone, Copy, Default)]
struct Slot {
    version: u32,
    /// The last look differs from the one before, or was the first.
    moved: bool,
    now: Option<VersionCounters>,
    /// Before they moved.
    last: Option<VersionCounters>,
}

/// A histogram as it was read last, and its version's counters just before: while they stand, no packet came that could have left a sample.
struct Known {
    counters: Option<VersionCounters>,
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
    pub fn watch(&mut self, mut versions: Vec<u32>) {
        versions.sort_unstable();
        versions.dedup();
        let known = std::mem::take(&mut self.slots);
        let slot = |version: u32| {
            let old = known.binary_search_by_key(&version, |slot| slot.version).ok().map(|index| known[index]);
            old.unwrap_or(Slot { version, ..Slot::default() })
        };
        self.slots = versions.into_iter().map(slot).collect();
        self.ranges.clear();
        for (index, slot) in self.slots.iter().enumerate() {
            match self.ranges.last_mut() {
                Some((first, slots)) if *first as usize + slots.len() == slot.version as usize => slots.end += 1,
                _ => self.ranges.push((slot.version, index..index + 1)),
            }
        }
    }

    /// Where a watched version's counters are, until the next [`Sampler::watch`].
    pub fn slot(&self, version: u32) -> Option<usize> {
        self.slots.binary_search_by_key(&version, |slot| slot.version).ok()
    }

    /// Reads the counters of the watched versions; [`Sampler::side`] tells what is new. After an error it tells nothing of use, and the next
    /// look compares with the one before.
    pub fn look(&mut self, tables: &impl Tables) -> Result<(), TableError> {
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
                    slot.note(counters::total(values), pending);
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

    /// Counts of the version in this slot between the last two looks; `None` when the last one was its first. `http`: of requests.
    pub fn side(&self, slot: usize, http: bool) -> Option<Side> {
        let slot = self.slots.get(slot)?;
        if slot.moved { Some(delta(&slot.last?, &slot.now?, http)) } else { slot.now.map(|_| Side::default()) }
    }

    /// New samples of each watched version and measure; those seen for the first time have none. Reads only histograms of versions whose
    /// counters moved: a sample that the kernel notes just after they were read comes with the next one, and none is lost.
    pub fn histograms(&mut self, tables: &impl Tables, wanted: &[(u32, Measure)]) -> Result<HashMap<(u32, Measure), Counts>, TableError> {
        let moved: Vec<(u32, Measure)> = wanted.iter().filter(|key| self.has_new(key)).copied().collect();
        let all = if moved.len() > FEW { Some(counters::histograms(tables)?) } else { None };
        let mut found = HashMap::with_capacity(moved.len());
        for key @ (version, measure) in moved {
            let kernel = kernel_measure(measure);
            let buckets = match &all {
                Some(all) => all.get(&(version, kernel as u32)).map(buckets).unwrap_or_default(),
                None => buckets(&counters::histogram(tables, version, kernel)?),
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

    fn counter(&self, version: u32) -> Option<VersionCounters> {
        self.slots[self.slot(version)?].now
    }
}

impl Slot {
    /// `pending`: nobody was told what the look before brought.
    fn note(&mut self, now: VersionCounters, pending: bool) {
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

fn delta(last: &VersionCounters, now: &VersionCounters, http: bool) -> Side {
    let grown = |of: fn(&VersionCounters) -> u64| {
        let (last, now) = (of(last), of(now));
        now.checked_sub(last).unwrap_or(now) as f64
    };
    let broken = grown(|c| c.resets_backend) + grown(|c| c.refused) + grown(|c| c.timeouts);
    // A service of http has a connection for each client and version: only its requests are decided.
    if http {
        Side { trials: grown(|c| c.requests), errors: broken + grown(|c| c.status[5]) }
    } else {
        Side { trials: grown(|c| c.connections), errors: broken }
    }
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

    #[test]
    fn looks_see_what_is_new() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, counters: VersionCounters| {
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
        };
        let mut counters = VersionCounters { connections: 100, resets_backend: 3, ..VersionCounters::default() };
        put(&mut memory, counters);
        let mut look = |memory: &Memory, http: bool| {
            sampler.watch(vec![7]);
            sampler.look(memory).unwrap();
            let slot = sampler.slot(7).unwrap();
            (sampler.side(slot, http), sampler.moved(slot))
        };
        assert_eq!(look(&memory, false), (None, true), "the first look has no last one");
        assert_eq!(look(&memory, false), (Some(Side::default()), false));
        (counters.connections, counters.resets_backend, counters.refused, counters.timeouts) = (110, 4, 1, 1);
        put(&mut memory, counters);
        assert_eq!(look(&memory, false), (Some(Side { trials: 10.0, errors: 3.0 }), true));
        // Of http the requests are the trials, and answers of class 5 are errors.
        (counters.connections, counters.requests, counters.status[5], counters.status[2]) = (111, 50, 2, 48);
        put(&mut memory, counters);
        assert_eq!(look(&memory, true).0.unwrap(), Side { trials: 50.0, errors: 2.0 });
        // A number that was given anew starts from zero.
        put(&mut memory, VersionCounters { connections: 5, ..VersionCounters::default() });
        assert_eq!(look(&memory, false).0.unwrap().trials, 5.0);
    }

    #[test]
    fn numbers_with_gaps_are_read_and_what_is_known_stays() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, version: u32, connections: u64| {
            let counters = VersionCounters { connections, ..VersionCounters::default() };
            memory.put(Table::Counters, bytes_of(&[version]), bytes_of(&[counters, counters])).unwrap();
        };
        let versions: Vec<u32> = (1..=400).chain([900, 902, 903]).collect();
        versions.iter().for_each(|version| put(&mut memory, *version, u64::from(*version)));
        sampler.watch(versions.clone());
        sampler.look(&memory).unwrap();
        versions.iter().for_each(|version| put(&mut memory, *version, 3 * u64::from(*version)));
        sampler.watch(versions.iter().rev().copied().filter(|version| version % 2 == 1 || *version > 800).chain([901]).collect());
        sampler.look(&memory).unwrap();
        for version in [1, 199, 399, 900, 902, 903] {
            let side = sampler.side(sampler.slot(version).unwrap(), false);
            assert_eq!(side.unwrap().trials, 4.0 * f64::from(version), "{version}");
        }
        assert_eq!((sampler.slot(2), sampler.side(sampler.slot(901).unwrap(), false)), (None, None));
    }

    #[test]
    fn what_a_failed_look_saw_is_told_by_the_next() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, connections: u64| {
            let counters = VersionCounters { connections, ..VersionCounters::default() };
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
        };
        sampler.watch(vec![7]);
        sampler.look(&memory).unwrap();
        put(&mut memory, 5);
        sampler.look(&memory).unwrap();
        // As an error in a later portion leaves it.
        sampler.complete = false;
        put(&mut memory, 8);
        sampler.look(&memory).unwrap();
        assert_eq!(sampler.side(0, false).unwrap().trials, 8.0);
        sampler.look(&memory).unwrap();
        assert_eq!(sampler.side(0, false).unwrap().trials, 0.0);
    }

    #[test]
    fn histograms_by_key_and_by_walk_agree() {
        let mut memory = Memory::new();
        let key = HistogramKey::new(7, abi::Measure::FirstByte, 20);
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
        let key = HistogramKey::new(7, abi::Measure::FirstByte, 20);
        let mut look = |packets_out: u64, samples: u32| {
            let counters = VersionCounters { packets_out, ..VersionCounters::default() };
            let mut octave = HistogramOctave { counts: [0; 32] };
            octave.counts[1] = samples;
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
            memory.put(Table::Histograms, bytes_of(&[key]), bytes_of(&[octave, HistogramOctave { counts: [0; 32] }])).unwrap();
            sampler.watch(vec![7]);
            sampler.look(&memory).unwrap();
            sampler.histograms(&memory, &wanted).unwrap().get(&wanted[0]).map(Counts::total)
        };
        assert_eq!(look(1, 5), None, "seen for the first time");
        // Noted just after the counters were read: not lost.
        assert_eq!(look(1, 6), None);
        assert_eq!(look(2, 8), Some(3.0));
        assert_eq!(look(2, 8), None);
    }
}
