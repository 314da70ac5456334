//! The kernel's per-CPU counters and histograms, summed over CPUs.

use splitter_api::Latency;
use splitter_common::{
    abi::*,
    histogram::{MAX_OCTAVE, MIN_OCTAVE, SUBBUCKETS, midpoint, upper},
};
use splitter_datapath::{Cursor, SCAN, Table, TableError, Tables, bytes_of, per_cpu, read};
use std::collections::{BTreeMap, HashMap};

/// More versions than this are read by scanning the whole table.
const FEW: usize = 256;
/// As much for histograms, of which each takes as many reads as it has octaves.
const FEW_HISTOGRAMS: usize = 16;

/// Adds one CPU's counters, or those of the userspace tier, to others.
pub fn add(total: &mut VersionCounters, one: &VersionCounters) {
    total.connections += one.connections;
    total.opened += one.opened;
    total.closed += one.closed;
    total.packets_in += one.packets_in;
    total.bytes_in += one.bytes_in;
    total.packets_out += one.packets_out;
    total.bytes_out += one.bytes_out;
    total.resets_client += one.resets_client;
    total.resets_backend += one.resets_backend;
    total.refused += one.refused;
    total.timeouts += one.timeouts;
    total.requests += one.requests;
    total.status.iter_mut().zip(one.status).for_each(|(total, one)| *total += one);
    total.switches += one.switches;
    add_outcomes(&mut total.drawn, &one.drawn);
    add_outcomes(&mut total.ruled, &one.ruled);
    for (slot, one) in total.pending.iter_mut().zip(one.pending) {
        let (value, late) = trial::merged(*slot, one);
        *slot = value;
        total.drawn.overdue = total.drawn.overdue.wrapping_add(i64::from(late) as u64);
    }
}

fn add_outcomes(total: &mut Outcomes, one: &Outcomes) {
    total.trials += one.trials;
    total.answered += one.answered;
    total.refused += one.refused;
    total.unopened += one.unopened;
    total.abandoned += one.abandoned;
    total.closed += one.closed;
    total.cut += one.cut;
    total.unavailable += one.unavailable;
    total.overdue = total.overdue.wrapping_add(one.overdue);
    total.status.iter_mut().zip(one.status).for_each(|(total, one)| *total += one);
    total.failed += one.failed;
}

fn sum<'a>(values: impl IntoIterator<Item = &'a VersionCounters>) -> VersionCounters {
    let mut total = VersionCounters::default();
    values.into_iter().for_each(|value| add(&mut total, value));
    total
}

/// The sum of a value as the table gives it: one after the other for each CPU.
pub fn total(values: &[u8]) -> VersionCounters {
    let mut total = VersionCounters::default();
    values.chunks_exact(size_of::<VersionCounters>().next_multiple_of(8)).for_each(|value| add(&mut total, &read(value)));
    total
}

pub fn of_version(tables: &impl Tables, version: u32) -> Result<VersionCounters, TableError> {
    Ok(sum(&per_cpu::<u32, VersionCounters>(tables, Table::Counters, version)?))
}

/// Counters by version number; many are read by walking the table, and then others than the wanted ones are there too.
pub fn of_versions(tables: &impl Tables, versions: &[u32]) -> Result<HashMap<u32, VersionCounters>, TableError> {
    let mut found = HashMap::with_capacity(versions.len());
    if versions.len() <= FEW {
        for version in versions {
            found.insert(*version, of_version(tables, *version)?);
        }
        return Ok(found);
    }
    let last = versions.iter().copied().max().unwrap_or(0);
    each(tables, Table::Counters, |version: u32, values| {
        found.insert(version, total(values));
        version < last
    })?;
    Ok(found)
}

/// Whose samples are wanted: of trials that a rule sent to the version (`true`), of those that the weights drew (`false`), or of both.
pub type Whose = &'static [bool];

/// Both.
pub const EVERYBODY: Whose = &[false, true];

/// Samples of one histogram by octave.
#[derive(Clone, Debug, Default)]
pub struct Histogram(BTreeMap<u32, [u64; SUBBUCKETS as usize]>);

/// All histograms that have samples, by version and measure: of trials that the weights drew, and of those that a rule sent there, as `whose`
/// asks of a version.
pub fn histograms(tables: &impl Tables, whose: impl Fn(u32) -> Whose) -> Result<HashMap<(u32, u32), Histogram>, TableError> {
    let mut found: HashMap<(u32, u32), Histogram> = HashMap::new();
    each(tables, Table::Histograms, |key: HistogramKey, values| {
        if !whose(key.version).contains(&key.ruled()) {
            return true;
        }
        let octave = found.entry((key.version, key.measure())).or_default().0.entry(key.octave()).or_default();
        for value in split::<HistogramOctave>(values) {
            octave.iter_mut().zip(value.counts).for_each(|(total, count)| *total += u64::from(count));
        }
        true
    })?;
    Ok(found)
}

/// Histograms of some versions; of many, all that have samples.
pub fn histograms_of(tables: &impl Tables, versions: &[u32]) -> Result<HashMap<(u32, u32), Histogram>, TableError> {
    if versions.len() > FEW_HISTOGRAMS {
        return histograms(tables, |_| EVERYBODY);
    }
    let mut found = HashMap::new();
    for (version, measure) in versions.iter().flat_map(|version| Measure::ALL.map(|measure| (*version, measure))) {
        found.insert((version, measure as u32), histogram(tables, version, measure, EVERYBODY)?);
    }
    Ok(found)
}

/// One histogram, octave by octave: for a few versions cheaper than the whole table.
pub fn histogram(tables: &impl Tables, version: u32, measure: Measure, whose: Whose) -> Result<Histogram, TableError> {
    let mut found = Histogram::default();
    for octave in MIN_OCTAVE..=MAX_OCTAVE {
        let mut counts = [0; SUBBUCKETS as usize];
        for ruled in whose {
            let key = HistogramKey::new(version, measure, *ruled, octave);
            for value in per_cpu::<HistogramKey, HistogramOctave>(tables, Table::Histograms, key)? {
                counts.iter_mut().zip(value.counts).for_each(|(total, count)| *total += u64::from(count));
            }
        }
        if counts.iter().any(|count| *count > 0) {
            found.0.insert(octave, counts);
        }
    }
    Ok(found)
}

/// Count of one reason.
pub fn reason(tables: &impl Tables, reason: Reason) -> Result<u64, TableError> {
    Ok(per_cpu::<u32, u64>(tables, Table::Reasons, reason as u32)?.iter().sum())
}

/// Counts by reason.
pub fn reasons(tables: &impl Tables) -> Result<Vec<(Reason, u64)>, TableError> {
    let count = |which: &Reason| Ok((*which, reason(tables, *which)?));
    Reason::ALL.iter().map(count).collect()
}

fn split<V: splitter_datapath::Plain>(values: &[u8]) -> Vec<V> {
    values.chunks_exact(size_of::<V>().next_multiple_of(8)).map(read).collect()
}

/// Entries of a per-CPU table, until `visit` says that it has seen enough.
fn each<K: splitter_datapath::Plain>(
    tables: &impl Tables,
    table: Table,
    mut visit: impl FnMut(K, &[u8]) -> bool,
) -> Result<(), TableError> {
    let (mut cursor, mut keys, mut values, mut more) = (Cursor::default(), Vec::new(), Vec::new(), true);
    while more {
        more = tables.scan(table, &mut cursor, SCAN, &mut keys, &mut values)?;
        for (key, value) in keys.chunks_exact(table.key_size()).zip(values.chunks_exact(tables.value_size(table))) {
            more &= visit(read(key), value);
        }
    }
    Ok(())
}

const NANO: f64 = 1e-9;

impl Histogram {
    /// Octave, sub-bucket and count of every bucket that has samples, in rising order.
    pub fn samples(&self) -> impl Iterator<Item = (u32, u32, u64)> + '_ {
        let all = self.0.iter().flat_map(|(octave, counts)| counts.iter().enumerate().map(|(sub, count)| (*octave, sub as u32, *count)));
        all.filter(|(_, _, count)| *count > 0)
    }

    pub fn latency(&self) -> Latency {
        let buckets: Vec<(u32, u32, u64)> = self.samples().collect();
        let count = buckets.iter().map(|(_, _, count)| count).sum();
        Latency {
            count,
            p50: quantile(&buckets, count, 0.5),
            p90: quantile(&buckets, count, 0.9),
            p99: quantile(&buckets, count, 0.99),
            sum: buckets.iter().map(|(octave, sub, count)| midpoint(*octave, *sub) as f64 * *count as f64 * NANO).sum(),
            buckets: buckets.iter().map(|(octave, sub, count)| (upper(*octave, *sub) as f64 * NANO, *count)).collect(),
        }
    }
}

/// The value that a share `q` of the samples does not exceed: between the midpoints of the buckets around it, in seconds.
fn quantile(buckets: &[(u32, u32, u64)], count: u64, q: f64) -> Option<f64> {
    let rank = q * count.saturating_sub(1) as f64;
    let (mut before, mut last) = (0.0, None);
    for (octave, sub, samples) in buckets {
        let middle = midpoint(*octave, *sub) as f64 * NANO;
        // The samples of a bucket stand for its midpoint: ranks before ..= before + samples - 1.
        if rank <= before + (*samples - 1) as f64 {
            return Some(match last {
                Some((known, at)) if rank < before => known + (middle - known) * (rank - at) / (before - at),
                _ => middle,
            });
        }
        before += *samples as f64;
        last = Some((middle, before - 1.0));
    }
    last.map(|(value, _)| value)
}

/// Tick until which a backend gets no new flow while others can; `None` when it is not suspected.
pub fn suspect_until(tables: &impl Tables, backend: u32) -> Result<Option<u32>, TableError> {
    let mut value = [0u32];
    let found = tables.get(Table::Suspects, bytes_of(&[backend]), splitter_datapath::bytes_of_mut(&mut value))?;
    Ok(found.then_some(value[0]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_common::histogram::locate;
    use splitter_datapath::Memory;

    #[test]
    fn quantiles_are_within_three_percent() {
        let mut memory = Memory::new();
        let samples: Vec<u64> = (1..=10_000u64).map(|i| i * 1_000).collect();
        let mut octaves: BTreeMap<u32, [HistogramOctave; 2]> = BTreeMap::new();
        for (i, ns) in samples.iter().enumerate() {
            let (octave, sub) = locate(*ns);
            let entry = octaves.entry(octave).or_insert([HistogramOctave { counts: [0; 32] }; 2]);
            entry[i % 2].counts[sub as usize] += 1;
        }
        for (octave, values) in &octaves {
            let key = HistogramKey::new(5, Measure::Connect, *octave % 2 == 0, *octave);
            memory.put(Table::Histograms, bytes_of(&[key]), bytes_of(values)).unwrap();
        }
        let latency = histograms(&memory, |_| EVERYBODY).unwrap()[&(5, Measure::Connect as u32)].latency();
        assert_eq!(latency.count, 10_000);
        for (found, expected) in [(latency.p50, 0.005), (latency.p90, 0.009), (latency.p99, 0.0099), (Some(latency.sum), 50.005)] {
            let error = (found.unwrap() - expected).abs() / expected;
            assert!(error < 0.03, "{found:?} is not {expected}");
        }
        assert_eq!(latency.buckets.iter().map(|(_, count)| count).sum::<u64>(), 10_000);
        assert!(Histogram::default().latency().p50.is_none());
    }

    #[test]
    fn counters_are_summed_by_scan_and_by_key() {
        let mut memory = Memory::new();
        let one = VersionCounters { connections: 3, bytes_in: 5, requests: 7, status: [0, 1, 2, 3, 4, 5], ..VersionCounters::default() };
        for version in 1..=600u32 {
            memory.put(Table::Counters, bytes_of(&[version]), bytes_of(&[one, one])).unwrap();
        }
        let all: Vec<u32> = (1..=600).collect();
        for wanted in [&all[..], &all[..2]] {
            let found = of_versions(&memory, wanted).unwrap();
            assert!(wanted.iter().all(|version| found[version].connections == 6 && found[version].bytes_in == 10));
            assert!(wanted.iter().all(|version| found[version].requests == 14 && found[version].status == [0, 2, 4, 6, 8, 10]));
        }
    }
}
