//! What was seen of canary and baseline, and what it shows: counts, detectors for harm, bounds for promotion.
//!
//! Two kinds of decision, two kinds of test. *Taking back* rests on detectors (`stats::detector`), fed by every look since the rollout's begin:
//! at most `falseAlarm` of good canaries are taken back within a day. *Promoting* rests on confidence sequences over the counts of the present
//! step, its warm-up left out: a canary passes when its rate is *shown* to be low, not when nothing was noticed.

use super::{
    observation::{LatencySamples, Traffic},
    stats::{Contrast, Counts, Detector, Limit, bucket_above, cut_seconds},
};
use serde::{Deserialize, Serialize};
use splitter_api::RolloutPoint;
use splitter_policy::model::{ALL, Latency, Pace, Ppm, Rollout};
use std::collections::VecDeque;

/// Promotion asks for bounds that hold with this probability of being wrong. A bad canary has to slip through at every step.
pub const DOUBT: f64 = 0.01;
/// The most that one look may add, nats: two looks at least, so a burst within a tenth of a second takes nothing back.
const CAP: f64 = 5.0;
/// The same for latency, which is looked at about once a second: a pause of one process lasts that long.
const LATENCY_CAP: f64 = 3.0;
/// The baseline's quantile is that of about the last minute.
const MEMORY: f64 = 60.0;
/// Samples of the baseline beyond the quantile before it is used.
const BEYOND: f64 = 5.0;
/// Rates that are shown, and that must be above `ignoreBelow`, are of about the last ten seconds.
const RECENT: f64 = 10.0;
/// Weight of the asked share against the achieved one: as much as this many of the canary's connections.
const PRIOR: f64 = 200.0;
/// Points of the sparklines, and their distance in seconds.
const POINTS: usize = 60;
const POINT: f64 = 2.0;

/// Trials and events among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub trials: f64,
    pub events: f64,
}

impl Tally {
    pub fn add(&mut self, trials: f64, events: f64) {
        self.trials += trials;
        self.events += events;
    }

    /// `None` without trials.
    pub fn rate(&self) -> Option<f64> {
        (self.trials > 0.0).then(|| self.events / self.trials)
    }

    fn fade(&mut self, factor: f64) {
        self.trials *= factor;
        self.events *= factor;
    }
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Of this step after its warm-up, canary and baseline.
    pub step: [Tally; 2],
    /// Of about the last ten seconds.
    pub recent: [Tally; 2],
    /// Requests, or connections where none are read, that the weights drew in this step, warm-up included: the canary's and all.
    pub connections: [f64; 2],
    pub errors_limit: Detector,
    pub errors_increase: Detector,
    pub share_high: Detector,
    pub share_low: Detector,
    /// One for each latency gate of the policy.
    pub latency: Vec<LatencyEvidence>,
    #[serde(skip)]
    pub points: VecDeque<RolloutPoint>,
    #[serde(skip)]
    since_point: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyEvidence {
    pub limit: Detector,
    pub increase: Detector,
    /// Of the baseline, fading.
    reference: Counts,
    /// Of about the last ten seconds, for people: canary and baseline.
    pub recent: [Counts; 2],
    /// The canary's samples of this step after warm-up: above `max`, and above the baseline's quantile with its allowance.
    pub above_max: Tally,
    pub above_cut: Tally,
    #[serde(skip)]
    pub shown: [Option<f64>; 2],
    /// The cut now: the baseline's quantile and its allowance, seconds.
    pub cut: Option<f64>,
}

/// Part of a rollout's false alarms that each of the two tests of the share gets, where one of failures or latency gets 1: from a share that is not
/// as asked nobody suffers, and it shows in thousands of requests, of which a few more do not matter.
const SHARE_PART: f64 = 0.05;

/// Tests that share the false alarms of a rollout, as many as get a whole part.
fn tests(policy: &Rollout) -> f64 {
    let errors = policy.gates.error_rate.as_ref().map_or(0, |gate| 1 + u32::from(gate.max.is_some()));
    let latency: u32 = policy.gates.latency.iter().map(|gate| u32::from(gate.max.is_some()) + u32::from(gate.max_increase.is_some())).sum();
    let share = policy.gates.share.as_ref().map_or(0.0, |_| 2.0 * SHARE_PART);
    f64::from(errors + latency) + share
}

/// Evidence at which one test of failures or latency says *fail*.
pub fn threshold(policy: &Rollout) -> f64 {
    tests(policy).max(1.0) * f64::from(ALL) / f64::from(policy.false_alarm.max(1))
}

/// The same for a test of the share.
pub fn share_threshold(policy: &Rollout) -> f64 {
    threshold(policy) / SHARE_PART
}

pub fn ratio(ppm: Ppm) -> f64 {
    f64::from(ppm) / f64::from(ALL)
}

impl Evidence {
    /// A rollout begins: nothing is known.
    pub fn new(policy: &Rollout) -> Self {
        Self { latency: vec![LatencyEvidence::default(); policy.gates.latency.len()], ..Self::default() }
    }

    /// A step begins: its counts are new, what the detectors and the baseline's quantiles know stays.
    pub fn step_begins(&mut self) {
        self.step = Default::default();
        self.connections = Default::default();
        for detector in [&mut self.errors_limit, &mut self.errors_increase, &mut self.share_high, &mut self.share_low] {
            detector.step_begins();
        }
        for latency in &mut self.latency {
            latency.limit.step_begins();
            latency.increase.step_begins();
            (latency.above_max, latency.above_cut) = Default::default();
        }
    }

    /// Takes the counts of one look. `warm`: the warm-up is over.
    pub fn traffic(&mut self, policy: &Rollout, share: Ppm, traffic: &Traffic, warm: bool) {
        let Traffic { seconds, canary, baseline, drawn, all } = *traffic;
        let sides = [canary, baseline];
        for (side, (step, recent)) in sides.iter().zip(self.step.iter_mut().zip(&mut self.recent)) {
            let trials = side.trials.max(side.errors);
            recent.fade((-seconds / RECENT).exp());
            recent.add(trials, side.errors);
            if warm {
                step.add(trials, side.errors);
            }
        }
        self.connections[0] += drawn;
        self.connections[1] += all;
        if let Some(gate) = &policy.gates.error_rate {
            if let Some(max) = gate.max {
                let logs = Limit::new(ratio(max)).look(canary.errors, canary.trials.max(canary.errors));
                feed(&mut self.errors_limit, logs, seconds, CAP);
            }
            let contrast = Contrast { tolerated: 1.0 + ratio(gate.max_increase) };
            let part = self.part(share, &sides);
            feed(&mut self.errors_increase, contrast.look(part, canary.errors, baseline.errors), seconds, CAP);
        }
        if let Some(gate) = &policy.gates.share {
            let (asked, tolerance) = (ratio(share), ratio(gate.tolerance));
            let high = Limit::new((asked * (1.0 + tolerance)).min(1.0)).look(drawn, all);
            let low = Limit::new((1.0 - asked * (1.0 - tolerance)).min(1.0)).look((all - drawn).max(0.0), all);
            // At 100% nothing can be too high; a share of all that is missing shows in the other test.
            feed(&mut self.share_high, high.filter(|_| asked * (1.0 + tolerance) < 1.0), seconds, CAP);
            feed(&mut self.share_low, low, seconds, CAP);
        }
        self.point(seconds);
    }

    /// The canary's part of the requests of canary and baseline. The asked share is what chance gives every connection; a heavy user who sticks
    /// to a version moves the achieved one, which therefore counts the more the longer the step lasts.
    fn part(&self, share: Ppm, sides: &[super::observation::Side; 2]) -> f64 {
        let asked = ratio(share);
        if share >= ALL {
            return 1.0;
        }
        // Other versions than these two take no part.
        let (canary, baseline) = (self.step[0].trials + sides[0].trials, self.step[1].trials + sides[1].trials);
        let prior = PRIOR / asked;
        (canary + PRIOR) / (canary + baseline + prior)
    }

    /// Takes the histograms of one look.
    pub fn samples(&mut self, policy: &Rollout, samples: &LatencySamples, warm: bool) {
        for (gate, evidence) in policy.gates.latency.iter().zip(&mut self.latency) {
            let empty = Default::default();
            evidence.look(gate, samples.by_measure.get(&gate.measure).unwrap_or(&empty), samples.seconds, warm);
        }
    }

    /// Adds a point of the sparklines when its time has come.
    fn point(&mut self, seconds: f64) {
        self.since_point += seconds;
        if self.since_point < POINT {
            return;
        }
        self.since_point = 0.0;
        let known = |tally: &Tally| (tally.trials >= 0.5).then(|| tally.events / tally.trials);
        let latency = self.latency.first().map_or([None, None], |latency| latency.shown);
        self.points.push_back(RolloutPoint { errors: [known(&self.recent[0]), known(&self.recent[1])], latency });
        if self.points.len() > POINTS {
            self.points.pop_front();
        }
    }
}

fn feed(detector: &mut Detector, logs: Option<[f64; super::stats::ALTERNATIVES]>, seconds: f64, cap: f64) {
    match logs {
        Some(logs) => detector.look(&logs, seconds, cap),
        None => detector.idle(seconds),
    }
}

impl LatencyEvidence {
    fn look(&mut self, gate: &Latency, [canary, baseline]: &[Counts; 2], seconds: f64, warm: bool) {
        let q = ratio(gate.quantile);
        let n = canary.total();
        if let (Some(max), true) = (gate.max, warm) {
            let above = canary.from(bucket_above(max.as_secs_f64()));
            self.above_max.add(n, above);
            feed(&mut self.limit, Limit::new(1.0 - q).look(above, n), seconds, LATENCY_CAP);
        }
        // The cut comes from earlier looks only: it may be any number, as long as this look's samples had no part in it.
        if let (Some(increase), Some(cut)) =
            (gate.max_increase, self.reference.cut(q).filter(|_| self.reference.total() * (1.0 - q) >= BEYOND))
        {
            let allowed = bucket_above(cut_seconds(cut) * (1.0 + ratio(increase)));
            self.cut = Some(cut_seconds(allowed));
            if warm {
                let above = canary.from(allowed);
                self.above_cut.add(n, above);
                let m = baseline.total();
                let logs = Contrast { tolerated: 1.0 }.look(if n + m > 0.0 { n / (n + m) } else { 0.0 }, above, baseline.from(cut));
                feed(&mut self.increase, logs, seconds, LATENCY_CAP);
            }
        }
        self.reference.fade((-seconds / MEMORY).exp());
        self.reference.add(baseline);
        for (recent, new) in self.recent.iter_mut().zip([canary, baseline]) {
            recent.fade((-seconds / RECENT).exp());
            recent.add(new);
        }
        self.shown = [self.recent[0].quantile(q), self.recent[1].quantile(q)];
    }
}

/// What must be shown before the next step: the policy's margin, and with the adaptive pace a smaller one for a larger risk. The harm that a
/// step can do grows with the share, so the margin falls with its square root from 5% on: from 1% to 0.22% at 100%.
pub fn margin(policy: &Rollout, margin: Ppm, next: Ppm) -> f64 {
    const FROM: f64 = 0.05;
    match policy.pace {
        Pace::Fixed => ratio(margin),
        Pace::Adaptive => ratio(margin) * (FROM / ratio(next)).sqrt().min(1.0),
    }
}
