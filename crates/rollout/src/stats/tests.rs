//! Validity by enumeration and by simulation, and how soon the tests see what they should.

use super::*;

/// SplitMix64 (Steele et al. 2014).
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn binomial(&mut self, n: u32, p: f64) -> f64 {
        (0..n).filter(|_| self.uniform() < p).count() as f64
    }
}

fn choose(n: u32, k: u32) -> f64 {
    (0..k).map(|i| f64::from(n - i) / f64::from(i + 1)).product()
}

/// The mean of every e-value under the worst case of its hypothesis is at most 1: exactly, over all outcomes.
#[test]
fn e_values_have_a_mean_of_at_most_one() {
    for (canary, baseline, events) in [(5, 95, 1), (5, 95, 3), (50, 50, 20), (1, 9, 9), (30, 70, 90)] {
        let all = canary + baseline;
        let mut means = [0.0; ALTERNATIVES];
        let mut mass = 0.0;
        for x in 0..=events.min(canary) {
            if events - x > baseline {
                continue;
            }
            let p = choose(canary, x) * choose(baseline, events - x) / choose(all, events);
            let logs = Contrast { tolerated: 1.0 }.look(f64::from(canary) / f64::from(all), f64::from(x), f64::from(events - x)).unwrap();
            means.iter_mut().zip(logs).for_each(|(mean, log)| *mean += p * log.exp());
            mass += p;
        }
        assert!((mass - 1.0).abs() < 1e-9);
        assert!(means.iter().all(|mean| *mean <= 1.0 + 1e-9), "{canary}/{all}, {events}: {means:?}");
    }
    for (limit, truth) in [(0.01, 0.01), (0.01, 0.001), (0.3, 0.3), (0.3, 0.29)] {
        let mut means = [0.0; ALTERNATIVES];
        for x in 0..=40 {
            let p = choose(40, x) * f64::powi(truth, x as i32) * f64::powi(1.0 - truth, 40 - x as i32);
            let logs = Limit::new(limit).look(f64::from(x), 40.0).unwrap();
            means.iter_mut().zip(logs).for_each(|(mean, log)| *mean += p * log.exp());
        }
        assert!(means.iter().all(|mean| *mean <= 1.0 + 1e-9), "{limit} {truth}: {means:?}");
    }
}

#[test]
fn the_weights_of_a_day_sum_to_one_at_most() {
    let mut detector = Detector::default();
    (0..1000).for_each(|_| detector.step_begins());
    (0..86_400).for_each(|_| detector.idle(1.0));
    assert!((0.99..1.0).contains(&detector.evidence()), "{}", detector.evidence());
    assert_eq!(Detector::default().p_value(), 1.0);
}

/// 2,000 looks of versions whose common error rate moves: at a level of 10%, at most a tenth of the runs of identical ones raise an alarm, and
/// nearly all of a canary that fails twice as often.
#[test]
fn identical_versions_raise_few_alarms_whatever_the_load_does() {
    const RUNS: u32 = 200;
    let mut random = Random(1);
    let mut alarms = |ratio: f64| {
        let run = |random: &mut Random| {
            let mut detector = Detector::default();
            detector.step_begins();
            (0..2_000).any(|look| {
                // A sick database every now and then: both versions fail at 20%.
                let rate = if look % 100 < 5 { 0.2 } else { 0.01 };
                let (canary, baseline) = (random.binomial(5, ratio * rate), random.binomial(45, rate));
                // One look stands for 10 s, so that a quarter of the day's weight is spent too.
                match (Contrast { tolerated: 1.0 }).look(0.1, canary, baseline) {
                    Some(logs) => detector.look(&logs, 10.0, f64::INFINITY),
                    None => detector.idle(10.0),
                }
                detector.evidence() >= 10.0
            })
        };
        (0..RUNS).filter(|_| run(&mut random)).count() as u32
    };
    let (same, double) = (alarms(1.0), alarms(2.0));
    assert!(same <= RUNS / 10, "{same} of {RUNS}");
    assert!(double > RUNS * 9 / 10, "{double} of {RUNS}");
}

#[test]
fn a_rate_at_its_limit_raises_few_alarms_and_above_it_one_soon() {
    let (mut random, mut alarms, mut looks) = (Random(2), 0, 0);
    let limit = Limit::new(0.05);
    for rate in [0.05, 0.15] {
        for _ in 0..200 {
            let mut detector = Detector::default();
            detector.step_begins();
            let found = (0..400).find(|_| {
                detector.look(&limit.look(random.binomial(10, rate), 10.0).unwrap(), 0.1, 5.0);
                detector.evidence() >= 20.0
            });
            match (rate < 0.1, found) {
                (true, found) => alarms += u32::from(found.is_some()),
                (false, found) => looks += found.expect("400 looks at three times the limit"),
            }
        }
    }
    assert!(alarms <= 10, "{alarms} of 200 at 5%");
    assert!(looks / 200 < 20, "{} looks of 10 requests to see 15% where 5% are allowed", looks / 200);
}

/// The bound holds at all of 1,000 looks together.
#[test]
fn confidence_sequences_cover() {
    const RUNS: u32 = 200;
    let (mut random, mut missed) = (Random(3), 0);
    for _ in 0..RUNS {
        let mut events = 0.0;
        let miss = (1..=1_000u32).any(|n| {
            events += f64::from(u32::from(random.uniform() < 0.1));
            n.is_multiple_of(5) && (upper(events, f64::from(n), 0.1) < 0.1 || lower(events, f64::from(n), 0.1) > 0.1)
        });
        missed += u32::from(miss);
    }
    assert!(missed <= RUNS / 10, "{missed} of {RUNS} at 10%");
}

/// Even a canary that was fine for an hour is taken back within a few looks, and never by a single one.
#[test]
fn the_past_does_not_excuse_and_a_single_burst_does_not_condemn() {
    for good in [0, 36_000] {
        let mut detector = Detector::default();
        detector.step_begins();
        let contrast = Contrast { tolerated: 1.25 };
        for look in 0..good {
            match look % 50 {
                0 => detector.look(&contrast.look(0.05, 0.0, 5.0).unwrap(), 0.1, 5.0),
                _ => detector.idle(0.1),
            }
        }
        let mut looks = 0;
        while detector.evidence() < 400.0 {
            detector.look(&contrast.look(0.05, 20.0, 0.0).unwrap(), 0.1, 5.0);
            looks += 1;
        }
        assert!((2..=5).contains(&looks), "{looks} looks after {good} good ones");
        assert!(detector.p_value() <= 1.0 / 400.0);
    }
}

#[test]
fn a_state_survives_its_file() {
    let mut detector = Detector::default();
    detector.step_begins();
    detector.look(&Limit::new(0.01).look(2.0, 9.0).unwrap(), 0.1, 5.0);
    let text = serde_json::to_string(&detector).unwrap();
    let again: Detector = serde_json::from_str(&text).unwrap();
    assert!((again.evidence() / detector.evidence() - 1.0).abs() < 1e-12 && (again.p_value() / detector.p_value() - 1.0).abs() < 1e-12);
}
