//! The simulated rows: each a number of seeded runs over all CPUs.

use super::{
    rivals::{Fixed, Flagger, Kayenta, Points, Statistic, Whole, sides},
    stream::{Atoms, LOOK, Random, Version, look},
};
use crate::cases::{Rows, Samples};
use anyhow::{Context, Result, ensure};
use splitter_policy::model::{ALL, ErrorRate, Gates, Latency, Measure, Pace, Rollout};
use splitter_rollout::{Moment, Observation, Phase, State, Weights, Word, WordKind};
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

const HOUR: f64 = 3_600.0;
const DAY: f64 = 24.0 * HOUR;

/// The strictest policy that is not absurd: nothing is tolerated beyond the baseline, so that identical versions stand at the edge of the
/// hypothesis, where false alarms are most likely.
fn strict() -> Rollout {
    let errors = ErrorRate { max: Some(10_000), max_increase: 0, margin: 10_000, ignore_below: 0, ..ErrorRate::default() };
    let latency = Latency { measure: Measure::FirstByte, quantile: 990_000, max: None, max_increase: Some(0) };
    Rollout {
        canary: 1,
        baseline: 0,
        steps: vec![50_000, ALL],
        pauses: Default::default(),
        pace: Pace::Fixed,
        dwell: Duration::from_secs(1_000_000),
        watch: Duration::from_secs(300),
        watch_after: Duration::ZERO,
        progress_deadline: None,
        min_samples: 100,
        warm_up: Duration::ZERO,
        false_alarm: 10_000,
        gates: Gates { error_rate: Some(errors), latency: vec![latency], ..Gates::default() },
        retries: 0,
        cool_down: Duration::from_secs(300),
        freeze: Vec::new(),
        hooks: Vec::new(),
        judge: Default::default(),
    }
}

/// The defaults of a policy that says `errorRate: {max: 1%}` and `latency: {quantile: 0.99, maxIncrease: 20%}`.
fn usual() -> Rollout {
    let errors = ErrorRate { max: Some(10_000), max_increase: 250_000, margin: 10_000, ignore_below: 1_000, ..ErrorRate::default() };
    let latency = Latency { measure: Measure::FirstByte, quantile: 990_000, max: None, max_increase: Some(200_000) };
    Rollout { gates: Gates { error_rate: Some(errors), latency: vec![latency], ..Gates::default() }, ..strict() }
}

/// The judge with a clock.
struct Judge {
    state: State,
    now: f64,
    looks: u32,
}

impl Judge {
    fn start(policy: Rollout) -> Judge {
        let weights = Weights::from([("v1".into(), 1), ("v2".into(), 0)]);
        let mut judge = Judge { state: State::new("web", "v2", "v1", policy, &weights), now: 1e9, looks: 0 };
        let word = Word::new(WordKind::Start, "bench", "");
        splitter_rollout::step_in_place(
            &mut judge.state,
            &Observation { word: Some(word), ..Observation::default() },
            Moment::new(judge.now, 0.0),
        );
        judge
    }

    /// One look; histograms at every tenth.
    fn look(&mut self, random: &mut Random, atoms: &Atoms, canary: &Version, baseline: &Version) -> Observation {
        self.now += LOOK;
        self.looks += 1;
        let latency = self.looks.is_multiple_of(10).then(|| atoms.look(random, canary, baseline));
        let observation = Observation { traffic: Some(look(random, canary, baseline)), latency, ..Observation::default() };
        splitter_rollout::step_in_place(&mut self.state, &observation, Moment::new(self.now, LOOK));
        observation
    }

    fn failed(&self) -> bool {
        self.state.phase == Phase::RolledBack
    }
}

/// Runs 0..count on all CPUs; results in order of the run.
fn parallel<T: Send>(count: u64, run: impl Fn(u64) -> T + Sync) -> Result<Vec<T>> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism()?.get();
    let mut found = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count || splitter_lab::cleanup::stopping() {
                    return mine;
                }
                mine.push((i, run(i)));
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect::<Vec<_>>()
    });
    ensure!(found.len() as u64 == count, "interrupted");
    found.sort_by_key(|(i, _)| *i);
    Ok(found.into_iter().map(|(_, result)| result).collect())
}

pub fn run(quick: bool, rows: &mut Rows) -> Result<()> {
    false_rollbacks(if quick { 20 } else { 1_000 }, rows)?;
    detection(if quick { 50 } else { 500 }, rows)?;
    latency(if quick { 40 } else { 300 }, rows)?;
    promotion(if quick { 50 } else { 1_000 }, rows)?;
    power(if quick { 100 } else { 1_000 }, rows)?;
    cost(rows);
    Ok(())
}

/// Identical versions for a day at 1,000 requests a second, 5% of them to the canary.
fn false_rollbacks(runs: u64, rows: &mut Rows) -> Result<()> {
    let (canary, baseline) = (Version::new(50.0, 0.001), Version::new(950.0, 0.001));
    let day = |policy: fn() -> Rollout, seed: u64| {
        let (mut random, atoms, mut judge) = (Random::new(seed), Atoms::new(), Judge::start(policy()));
        let (mut flagger, mut kayenta) = (Flagger::default(), Kayenta::default());
        let mut alarms = [false; 3];
        while judge.now - 1e9 < DAY {
            let traffic = if judge.failed() {
                look(&mut random, &canary, &baseline)
            } else {
                judge.look(&mut random, &atoms, &canary, &baseline).traffic.unwrap_or_default()
            };
            judge.now += if judge.failed() { LOOK } else { 0.0 };
            alarms[0] |= judge.failed();
            alarms[1] |= flagger.look(&traffic);
            alarms[2] |= !alarms[2] && kayenta.look(&traffic);
        }
        alarms
    };
    for (name, policy) in [("strict", strict as fn() -> Rollout), ("usual", usual)] {
        let runs = if name == "strict" { runs } else { runs.div_ceil(5) };
        let alarms = parallel(runs, |seed| day(policy, seed))?;
        let part = |i: usize| alarms.iter().filter(|alarms| alarms[i]).count() as f64 / runs as f64;
        rows.add(&format!("splitter-{name}"), "false_rollbacks_per_day", part(0), None).samples = Some(runs as usize);
        if name == "strict" {
            rows.add("flagger", "false_rollbacks_per_day", part(1), None).samples = Some(runs as usize);
            rows.add("kayenta", "false_rollbacks_per_day", part(2), None).samples = Some(runs as usize);
        }
    }
    Ok(())
}

/// Seconds from the fault to the rollback, with the fault there from the begin and after an hour without one.
fn detection(runs: u64, rows: &mut Rows) -> Result<()> {
    for (name, bad, baseline) in [
        ("all-fail-200rps", Version::new(200.0, 1.0), Version::new(3_800.0, 0.001)),
        ("5%-fail-50rps", Version::new(50.0, 0.05), Version::new(950.0, 0.001)),
        ("1%-fail-50rps", Version::new(50.0, 0.01), Version::new(950.0, 0.001)),
    ] {
        for (when, onset) in [("at-start", 0.0), ("after-1h", HOUR)] {
            let run = |seed: u64| detect(seed, &Version { errors: baseline.errors, ..bad }, &bad, &baseline, onset);
            let found = parallel(runs, run)?;
            for (i, subject) in ["splitter", "flagger", "kayenta"].into_iter().enumerate() {
                let times: Vec<f64> = found.iter().map(|times| times[i]).collect();
                let subject = format!("{subject}-{when}");
                let baseline = (i > 0).then(|| format!("splitter-{when}"));
                add_times(rows, &subject, &format!("{name}_seconds"), times, baseline.as_deref());
            }
        }
    }
    Ok(())
}

/// Longest wait of a simulated detection, seconds.
const PATIENCE: f64 = 900.0;

fn detect(seed: u64, good: &Version, bad: &Version, baseline: &Version, onset: f64) -> [f64; 3] {
    let (mut random, atoms, mut judge) = (Random::new(seed), Atoms::new(), Judge::start(usual()));
    let (mut flagger, mut kayenta) = (Flagger::default(), Kayenta::default());
    let mut found = [f64::INFINITY; 3];
    let mut time = 0.0;
    while time < onset + PATIENCE && found.iter().any(|found| found.is_infinite()) {
        time += LOOK;
        let canary = if time <= onset { good } else { bad };
        let traffic = if found[0].is_finite() {
            look(&mut random, canary, baseline)
        } else {
            judge.look(&mut random, &atoms, canary, baseline).traffic.unwrap_or_default()
        };
        let alarms = [judge.failed(), found[1].is_infinite() && flagger.look(&traffic), found[2].is_infinite() && kayenta.look(&traffic)];
        for (found, alarm) in found.iter_mut().zip(alarms) {
            if alarm && found.is_infinite() {
                // An alarm before the fault is a false one; it shows as a negative time.
                *found = time - onset;
            }
        }
    }
    found
}

/// Median and 99th percentile; what was never found counts as infinite, and JSON knows no infinity.
fn add_times(rows: &mut Rows, subject: &str, metric: &str, times: Vec<f64>, baseline: Option<&str>) {
    let never = times.iter().filter(|time| time.is_infinite()).count();
    let count = times.len();
    let samples = Samples::from(times.into_iter().map(|time| time.min(PATIENCE)).collect::<Vec<f64>>());
    rows.add(subject, &format!("{metric}_p50"), samples.median(), baseline).samples = Some(count);
    let row = rows.add(subject, &format!("{metric}_p99"), samples.quantile(0.99), baseline);
    row.samples = Some(count);
    row.more.insert("not_found_in_900s", never.into());
}

/// The canary's p99 doubled, all else equal, 200 requests a second to it. Statistics of others are calibrated to raise a false alarm in one of
/// a hundred hours; ours keeps its own level, which is stricter: one in a hundred days.
fn latency(runs: u64, rows: &mut Rows) -> Result<()> {
    let (good, baseline) = (Version::new(200.0, 0.0), Version::new(3_800.0, 0.0));
    let bad = Version { slow_tail: true, ..good };
    for (when, onset) in [("at-start", 0.0), ("after-10min", 600.0)] {
        let run = |seed: u64| {
            let (mut random, atoms, mut judge) = (Random::new(seed), Atoms::new(), Judge::start(usual()));
            while judge.now - 1e9 < onset + PATIENCE && !judge.failed() {
                let canary = if judge.now - 1e9 < onset { &good } else { &bad };
                judge.look(&mut random, &atoms, canary, &baseline);
            }
            if judge.failed() { judge.now - 1e9 - onset } else { f64::INFINITY }
        };
        add_times(rows, &format!("splitter-{when}"), "p99-doubled-200rps_seconds", parallel(runs, run)?, None);
    }
    type Make = fn() -> Box<dyn Statistic>;
    let rivals: [(&str, Make); 3] = [
        ("fixed-threshold", || Box::<Fixed>::default()),
        ("mann-whitney-points", || Box::<Points>::default()),
        ("mann-whitney-samples", || Box::<Whole>::default()),
    ];
    for (name, make) in rivals {
        let highest = parallel(runs, |seed| {
            let (mut random, atoms, mut statistic) = (Random::new(seed + 1_000_000), Atoms::new(), make());
            let mut highest = f64::NEG_INFINITY;
            for _ in 0..HOUR as u32 {
                let samples = atoms.look(&mut random, &good, &baseline);
                let Some([canary, baseline]) = sides(&samples) else { continue };
                highest = statistic.look(canary, baseline).unwrap_or(highest).max(highest);
            }
            highest
        })?;
        let threshold = Samples::from(highest).quantile(0.99);
        let times = parallel(runs, |seed| {
            let (mut random, atoms, mut statistic) = (Random::new(seed), Atoms::new(), make());
            let found = (1..=PATIENCE as u32).find(|_| {
                let samples = atoms.look(&mut random, &bad, &baseline);
                let value = sides(&samples).and_then(|[canary, baseline]| statistic.look(canary, baseline));
                value.is_some_and(|value| value > threshold)
            });
            found.map_or(f64::INFINITY, f64::from)
        })?;
        add_times(rows, name, "p99-doubled-200rps_seconds", times, Some("splitter-at-start"));
    }
    Ok(())
}

/// Whole rollouts of 1,000 requests a second over the default steps.
fn promotion(runs: u64, rows: &mut Rows) -> Result<()> {
    let steps = vec![10_000, 50_000, 100_000, 500_000, ALL];
    let (warm_up, dwell) = (Duration::from_secs(10), Duration::from_secs(300));
    let fixed = Rollout { steps, warm_up, dwell, ..usual() };
    let dwell = Duration::from_secs(10);
    let adaptive = Rollout { pace: Pace::Adaptive, dwell, watch: dwell, ..fixed.clone() };
    let whole = |policy: &Rollout, errors: f64, seed: u64| {
        let (mut random, atoms, mut judge) = (Random::new(seed), Atoms::new(), Judge::start(policy.clone()));
        while judge.state.phase == Phase::Running && judge.now - 1e9 < 2.0 * HOUR {
            let share = f64::from(judge.state.share) / f64::from(ALL);
            let (canary, baseline) = (Version::new(1_000.0 * share, errors), Version::new(1_000.0 * (1.0 - share), 0.001));
            judge.look(&mut random, &atoms, &canary, &baseline);
        }
        (judge.state.phase, judge.now - 1e9)
    };
    let few = runs.div_ceil(10);
    for (name, policy) in [("fixed", &fixed), ("adaptive", &adaptive)] {
        let found = parallel(few, |seed| whole(policy, 0.001, seed))?;
        let times: Vec<f64> = found.iter().filter(|(phase, _)| *phase == Phase::Promoted).map(|(_, time)| *time).collect();
        let promoted = times.len();
        let row = rows.add(name, "good_canary_to_100%_seconds_p50", Samples::from(times).median(), (name != "fixed").then_some("fixed"));
        row.samples = Some(few as usize);
        row.more.insert("promoted", promoted.into());
    }
    let found = parallel(runs, |seed| whole(&adaptive, 0.02, seed))?;
    let promoted = found.iter().filter(|(phase, _)| *phase == Phase::Promoted).count() as f64 / runs as f64;
    rows.add("adaptive", "false_promotions_of_2%_errors", promoted, None).samples = Some(runs as usize);
    let taken: Vec<f64> = found.iter().filter(|(phase, _)| *phase == Phase::RolledBack).map(|(_, time)| *time).collect();
    rows.add("adaptive", "2%_errors_to_rollback_seconds_p50", Samples::from(taken).median(), None);
    Ok(())
}

/// The price of looking all the time: seconds of traffic that a test needs to see twice the error rate (2% against 1%, 50 of 1,000 requests a
/// second) in 80 of 100 runs at the same level. The other test looks once, at a time that was fixed before.
fn power(runs: u64, rows: &mut Rows) -> Result<()> {
    let (canary, baseline) = (Version::new(50.0, 0.02), Version::new(950.0, 0.01));
    // Errors only, no limit: one test at 1%.
    let errors = ErrorRate { max: None, max_increase: 0, margin: 10_000, ignore_below: 0, ..ErrorRate::default() };
    let policy = Rollout { gates: Gates { error_rate: Some(errors), ..Gates::default() }, ..strict() };
    let times = parallel(runs, |seed| {
        let (mut random, atoms, mut judge) = (Random::new(seed), Atoms::new(), Judge::start(policy.clone()));
        while judge.now - 1e9 < HOUR && !judge.failed() {
            judge.look(&mut random, &atoms, &canary, &baseline);
        }
        judge.now - 1e9
    })?;
    let times = Samples::from(times);
    // The canary's errors given all of them are binomial with 1/20 under the hypothesis and 2/21 under the alternative.
    let fixed = (1..HOUR as u32).find(|seconds| {
        let events = (f64::from(*seconds) * (50.0 * 0.02 + 950.0 * 0.01)).round() as u32;
        let critical = (0..=events).find(|x| tail(events, 0.05, *x) <= 0.01).unwrap_or(events);
        let both = 50.0 * 0.02 / (50.0 * 0.02 + 950.0 * 0.01);
        tail(events, both, critical) >= 0.8
    });
    let fixed = f64::from(fixed.context("an hour is not enough for the test of fixed length")?);
    rows.add("fixed-horizon", "doubled-errors_80%_power_seconds", fixed, None);
    rows.add("splitter", "doubled-errors_80%_power_seconds", times.quantile(0.8), Some("fixed-horizon")).samples = Some(runs as usize);
    rows.add("splitter", "doubled-errors_median_seconds", times.median(), None).samples = Some(runs as usize);
    Ok(())
}

/// P(X >= x) of a binomial law, by recurrence in logarithms.
fn tail(n: u32, p: f64, x: u32) -> f64 {
    let mut log = f64::from(n) * (1.0 - p).ln();
    let mut sum = 0.0;
    for k in 0..=n {
        if k >= x {
            sum += log.exp();
        }
        log += (f64::from(n - k) / f64::from(k + 1) * p / (1.0 - p)).ln();
    }
    sum
}

/// Nanoseconds of one step with traffic, histograms at every tenth: what the judge computes beyond reading the kernel.
fn cost(rows: &mut Rows) {
    let (canary, baseline) = (Version::new(50.0, 0.001), Version::new(950.0, 0.001));
    let (mut random, atoms, mut judge) = (Random::new(1), Atoms::new(), Judge::start(usual()));
    let looks: Vec<Observation> = (0..10_000).map(|_| judge.look(&mut random, &atoms, &canary, &baseline)).collect();
    let began = Instant::now();
    for observation in &looks {
        judge.now += LOOK;
        splitter_rollout::step_in_place(&mut judge.state, observation, Moment::new(judge.now, LOOK));
    }
    let ns = began.elapsed().as_secs_f64() * 1e9 / looks.len() as f64;
    rows.add("judge", "step_ns", ns, None);
    rows.add("judge", "steps_of_1000_services_cpu_percent", ns * 1e-9 * 10.0 * 1_000.0 * 100.0, None);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tails_of_a_known_law() {
        assert!((tail(10, 0.5, 5) - 0.623_046_875).abs() < 1e-9);
        assert!((tail(3, 0.2, 0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_run_is_the_same_every_time() {
        let bad = Version::new(50.0, 0.05);
        let times = || parallel(3, |seed| detect(seed, &Version::new(50.0, 0.001), &bad, &Version::new(950.0, 0.001), 5.0)[0]).unwrap();
        assert_eq!(times(), times());
        assert!(times().iter().all(|time| (0.0..20.0).contains(time)), "{:?}", times());
    }
}
