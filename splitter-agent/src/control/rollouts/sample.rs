//! Counters and histograms of watched versions, as differences between two looks. Of the counters only what clients suffered and were served, by the
//! ledger of those trials that the policy judges by.

use super::super::counters::{self, EVERYBODY, Histogram, Whose};
use splitter_common::abi::{self, Outcomes, VersionCounters, trial};
use splitter_datapath::{Plain, Table, TableError, Tables, plan::trials::Timing, read};
use splitter_policy::model::{Judge, Measure};
use splitter_rollout::{
    Side,
    stats::{Counts, bucket_of},
};
use std::{collections::HashMap, mem::offset_of, ops::Range};

/// More versions than this, and histograms are read by walking their whole table, less often.
pub const FEW: usize = 128;
/// Bytes of counters that one read brings: they stay in the CPU's cache until they are summed.
const PORTION: usize = 1 << 15;
/// Looks after which a version is read whether its trials moved or not: nothing that went wrong with its mark stays wrong.
const TURNS: u32 = 50;

/// Remembers the last look. Counters only grow; where one did not, its version is new under an old number, and counts from zero.
#[derive(Default)]
pub struct Sampler {
    /// Numbers that follow each other are read together: the first one, and the slots of all.
    ranges: Vec<(u32, Range<usize>)>,
    slots: Vec<Slot>,
    /// The last read succeeded.
    complete: bool,
    /// Which of every [`TURNS`] versions the next look reads in any case.
    turn: u32,
    /// What one read brings; kept, so that nothing is allocated ten times a second.
    values: Vec<u8>,
    marks: Vec<bool>,
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
#[derive(Clone, Default)]
struct Slot {
    watch: Watch,
    /// This look reads it.
    wanted: bool,
    /// Its trials moved at the last look: the next one reads it once more.
    again: bool,
    /// As it was read, without those who wait; they are here by when they began, if there are any.
    read: Ledger,
    waiting: Option<Box<[u32; trial::SLOTS]>>,
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
            let old = known.binary_search_by_key(&watch.version, |slot| slot.watch.version).ok().map(|index| known[index].clone());
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

    /// Reads the counters of those watched versions whose trials moved; [`Sampler::side`] tells what is new. After an error it tells nothing of use,
    /// and the next look compares with the one before. `ticks`: the kernel's clock.
    pub fn look(&mut self, tables: &impl Tables, ticks: u32) -> Result<(), TableError> {
        // What a look saw that failed is told by the next one, which reads all: the marks are gone.
        let pending = !std::mem::take(&mut self.complete);
        self.turn = (self.turn + 1) % TURNS;
        let portion = (PORTION / tables.value_size(Table::Counters)).max(1);
        for (first, slots) in &self.ranges {
            let slots = &mut self.slots[slots.clone()];
            self.marks.resize(slots.len(), false);
            tables.take_marks(*first, &mut self.marks);
            for (slot, marked) in slots.iter_mut().zip(&self.marks) {
                slot.wanted = *marked || slot.again || pending || slot.now.is_none() || slot.watch.version % TURNS == self.turn;
                slot.again = *marked;
            }
            for run in slots.chunk_by_mut(|one, next| one.wanted == next.wanted) {
                if run[0].wanted {
                    run.chunks_mut(portion).try_for_each(|part| read_part(tables, part, &mut self.values))?;
                }
                run.iter_mut().for_each(|slot| slot.look(ticks, pending));
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

/// Reads the counters of versions whose numbers follow each other. `values`: room for them.
fn read_part(tables: &impl Tables, part: &mut [Slot], values: &mut Vec<u8>) -> Result<(), TableError> {
    let size = tables.value_size(Table::Counters);
    values.resize(part.len() * size, 0);
    tables.range(Table::Counters, part[0].watch.version, values)?;
    for (slot, values) in part.iter_mut().zip(values.chunks_exact(size)) {
        (slot.read, slot.waiting) = Ledger::of(&slot.watch, values);
    }
    Ok(())
}

impl Slot {
    /// What was read, and who waits too long by now. `pending`: nobody was told what the look before brought.
    fn look(&mut self, ticks: u32, pending: bool) {
        if !self.wanted && self.waiting.is_none() {
            self.moved = false;
            return;
        }
        let mut now = self.read;
        if let Some(waiting) = &self.waiting {
            let Timing { bits, unanswered } = self.watch.timing;
            now.overdue += trial::unended(waiting, ticks, bits, unanswered).0;
        }
        self.note(now, pending);
    }

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
    /// What ended, and who waits. `values`: as the table gives them, one after the other for each CPU.
    fn of(watch: &Watch, values: &[u8]) -> (Self, Option<Box<[u32; trial::SLOTS]>>) {
        let (mut total, mut waiting) = (Self::default(), [0; trial::SLOTS]);
        for value in values.chunks_exact(size_of::<VersionCounters>().next_multiple_of(8)) {
            // Only the parts that are judged by: a look reads thousands of these.
            let drawn: Outcomes = part(value, offset_of!(VersionCounters, drawn));
            total.drawn += drawn.trials;
            if watch.judge != Judge::Ruled {
                total.add(&drawn);
            }
            if watch.judge != Judge::Drawn {
                total.add(&part(value, offset_of!(VersionCounters, ruled)));
            }
            if watch.timing.unanswered == 0 {
                continue;
            }
            let pending: [u32; trial::SLOTS] = part(value, offset_of!(VersionCounters, pending));
            for (slot, one) in waiting.iter_mut().zip(pending).filter(|_| trial::any(&pending)) {
                let (value, late) = trial::merged(*slot, one);
                *slot = value;
                total.overdue += i64::from(late);
            }
        }
        // Most versions have nobody waiting at most looks.
        (total, trial::any(&waiting).then(|| Box::new(waiting)))
    }

    fn add(&mut self, outcomes: &Outcomes) {
        self.answered += outcomes.answered;
        self.bad += outcomes.failed + outcomes.cut;
        self.lost += outcomes.refused + outcomes.unopened + outcomes.abandoned + outcomes.closed + outcomes.unavailable;
        self.overdue = self.overdue.wrapping_add(outcomes.overdue as i64);
    }
}

/// What stands at an offset of a value of the table.
fn part<T: Plain>(value: &[u8], offset: usize) -> T {
    read(value.get(offset..).unwrap_or_default())
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
mod tests;
