//! Counters and histograms of watched versions, as differences between two looks.

use super::super::counters::{self, Histogram};
use crate::{
    datapath::{TableError, Tables},
    model::Measure,
    rollout::{
        Side,
        stats::{Counts, bucket_of},
    },
};
use splitter_common::abi::{self, VersionCounters};
use std::collections::HashMap;

/// More versions than this, and histograms are read by walking their whole table, less often.
pub const FEW: usize = 128;

/// Remembers the last look. Counters only grow; where one did not, its version is new under an old number, and counts from zero.
#[derive(Default)]
pub struct Sampler {
    /// By version number: numbers are given from 1 on without large gaps.
    counters: Vec<Option<VersionCounters>>,
    sides: Vec<Option<Side>>,
    histograms: HashMap<(u32, Measure), Known>,
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
    /// Reads the counters of these versions; [`Sampler::side`] tells what is new.
    pub fn counters(&mut self, tables: &impl Tables, versions: &[u32]) -> Result<(), TableError> {
        let length = versions.iter().max().map_or(0, |last| *last as usize + 1);
        self.sides.clear();
        self.sides.resize(length, None);
        // What is not watched now is seen for the first time when it is watched again.
        let mut last = std::mem::replace(&mut self.counters, vec![None; length]);
        last.resize(length, None);
        for version in versions {
            // Wanted: the scan may visit others too.
            self.sides[*version as usize] = Some(Side::default());
        }
        counters::visit_versions(tables, versions, |version, now| {
            let index = version as usize;
            if let Some(side) = self.sides.get_mut(index).filter(|side| side.is_some()) {
                *side = last[index].map(|last| delta(&last, &now));
                self.counters[index] = Some(now);
            }
        })
    }

    /// Counts of a version between the last two looks; `None` when the last one was its first.
    pub fn side(&self, version: u32) -> Option<Side> {
        self.sides.get(version as usize).copied().flatten()
    }

    /// New samples of each watched version and measure; those seen for the first time have none. Reads only histograms of versions whose
    /// counters moved: a sample that the kernel notes just after they were read comes with the next one, and none is lost.
    pub fn histograms(&mut self, tables: &impl Tables, wanted: &[(u32, Measure)]) -> Result<HashMap<(u32, Measure), Counts>, TableError> {
        let moved: Vec<(u32, Measure)> = wanted.iter().filter(|key| self.moved(key)).copied().collect();
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
    fn moved(&self, key: &(u32, Measure)) -> bool {
        let counters = self.counter(key.0);
        counters.is_none() || self.histograms.get(key).is_none_or(|known| known.counters != counters)
    }

    fn counter(&self, version: u32) -> Option<VersionCounters> {
        self.counters.get(version as usize).copied().flatten()
    }
}

fn delta(last: &VersionCounters, now: &VersionCounters) -> Side {
    let grown = |of: fn(&VersionCounters) -> u64| {
        let (last, now) = (of(last), of(now));
        now.checked_sub(last).unwrap_or(now) as f64
    };
    let connections = grown(|c| c.connections);
    let broken = grown(|c| c.resets_backend) + grown(|c| c.refused) + grown(|c| c.timeouts);
    let requests = grown(|c| c.requests);
    // The kernel counts requests for `mode: http` only.
    if now.requests > 0 {
        Side { trials: requests, errors: broken + grown(|c| c.status[5]), connections }
    } else {
        Side { trials: connections, errors: broken, connections }
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
    use crate::datapath::{Memory, Table, bytes_of};
    use splitter_common::abi::{HistogramKey, HistogramOctave};

    #[test]
    fn looks_see_what_is_new() {
        let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
        let put = |memory: &mut Memory, counters: VersionCounters| {
            memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, VersionCounters::default()])).unwrap();
        };
        let mut counters = VersionCounters { connections: 100, resets_backend: 3, ..VersionCounters::default() };
        put(&mut memory, counters);
        let mut look = |memory: &Memory| {
            sampler.counters(memory, &[7]).unwrap();
            sampler.side(7)
        };
        assert_eq!(look(&memory), None, "the first look has no last one");
        (counters.connections, counters.resets_backend, counters.refused, counters.timeouts) = (110, 4, 1, 1);
        put(&mut memory, counters);
        assert_eq!(look(&memory).unwrap(), Side { trials: 10.0, errors: 3.0, connections: 10.0 });
        // Where requests are counted, they are the trials, and answers of class 5 are errors.
        (counters.connections, counters.requests, counters.status[5], counters.status[2]) = (111, 50, 2, 48);
        put(&mut memory, counters);
        assert_eq!(look(&memory).unwrap(), Side { trials: 50.0, errors: 2.0, connections: 1.0 });
        // A number that was given anew starts from zero.
        put(&mut memory, VersionCounters { connections: 5, ..VersionCounters::default() });
        assert_eq!(look(&memory).unwrap().trials, 5.0);
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
            sampler.counters(&memory, &[7]).unwrap();
            sampler.histograms(&memory, &wanted).unwrap().get(&wanted[0]).map(Counts::total)
        };
        assert_eq!(look(1, 5), None, "seen for the first time");
        // Noted just after the counters were read: not lost.
        assert_eq!(look(1, 6), None);
        assert_eq!(look(2, 8), Some(3.0));
        assert_eq!(look(2, 8), None);
    }
}
