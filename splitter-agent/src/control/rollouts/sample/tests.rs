//! What the judge sees of the tables, over tables in memory.

use super::*;
use splitter_common::abi::{HistogramKey, HistogramOctave};
use splitter_datapath::{Memory, bytes_of};

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
fn who_waits_too_long_needs_no_mark() {
    let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
    let timing = Timing { bits: trial::timing::DRAWN | trial::shift(1250), unanswered: 1250 };
    let begun = trial::word(10_000, trial::flag::UNDER_WAY);
    let mut counters = trials(0);
    // They began on one CPU, and two of them ended on another.
    let at = trial::slot(begun, timing.bits) as usize;
    counters.pending[at] = trial::changed(0, begun, timing.bits, 5);
    let mut other = trials(0);
    other.pending[at] = trial::changed(0, begun, timing.bits, 2u32.wrapping_neg());
    memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[counters, other])).unwrap();
    sampler.watch(vec![Watch { timing, ..watch(7) }]);
    let looks: Vec<f64> = (0..40)
        .map(|look| {
            sampler.look(&memory, 10_000 + 50 * look).unwrap();
            sampler.side(0).map_or(0.0, |(side, _)| side.errors)
        })
        .collect();
    assert_eq!(looks.iter().sum::<f64>(), 3.0);
    assert_eq!(looks.iter().position(|errors| *errors > 0.0), Some(26), "1,250 ticks after the slot's last: {looks:?}");
}

#[test]
fn what_did_not_move_is_not_read() {
    let (mut memory, mut sampler) = (Memory::new(), Sampler::default());
    // As the kernel does it: a mark is something else than a count.
    let put = |memory: &mut Memory, count: u64, marked: bool| {
        memory.put(Table::Counters, bytes_of(&[7u32]), bytes_of(&[trials(count), trials(0)])).unwrap();
        if !marked {
            memory.take_marks(7, &mut [false]);
        }
    };
    sampler.watch(vec![watch(7)]);
    let mut look = |memory: &Memory| {
        sampler.look(memory, 0).unwrap();
        sampler.side(0).map(|(side, _)| side.trials)
    };
    put(&mut memory, 1, false);
    assert_eq!((look(&memory), look(&memory)), (None, Some(0.0)));
    put(&mut memory, 5, true);
    assert_eq!(look(&memory), Some(4.0));
    // Counted just after it was read, under the mark of before.
    put(&mut memory, 6, false);
    assert_eq!((look(&memory), look(&memory)), (Some(1.0), Some(0.0)));
    put(&mut memory, 8, false);
    assert_eq!(look(&memory), Some(0.0));
    // Its turn comes.
    assert_eq!((0..TURNS).filter_map(|_| look(&memory)).sum::<f64>(), 2.0);
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
