//! Whole rollouts in a small world: the promises of `step` under random traffic, words, crashes and lost writes.

use super::*;
use crate::{
    model::{ALL, Check, ErrorRate, External, Freeze, Gates, Latency, Measure, Pace, Ppm, Rollout},
    observed::{Answer, RolloutEvent},
};
use proptest::prelude::*;
use std::time::Duration;

fn policy() -> Rollout {
    let errors = ErrorRate { max: Some(50_000), max_increase: 250_000, margin: 20_000, ignore_below: 1_000, ..ErrorRate::default() };
    Rollout {
        canary: 1,
        baseline: 0,
        steps: vec![10_000, 100_000, 500_000, ALL],
        pace: Pace::Fixed,
        dwell: Duration::from_secs(10),
        watch: Duration::from_secs(20),
        min_samples: 50,
        warm_up: Duration::from_secs(2),
        false_alarm: 10_000,
        gates: Gates { error_rate: Some(errors), ..Gates::default() },
        retries: 0,
        cool_down: Duration::from_secs(30),
        freeze: Vec::new(),
        hooks: Vec::new(),
        judge: Default::default(),
    }
}

fn state(policy: Rollout) -> State {
    State::new("web", "v2", "v1", policy, &start_weights())
}

fn start_weights() -> Weights {
    Weights::from([("v1".into(), 70), ("v2".into(), 5), ("v3".into(), 30)])
}

fn word(kind: WordKind) -> Option<Word> {
    Some(Word { kind, by: "operator (uid 0)".into(), reason: String::new() })
}

/// A thousand requests a second; the canary fails `canary_rate` of its own, exactly.
fn traffic(share: Ppm, seconds: f64, canary_rate: f64) -> Traffic {
    let (canary, all) = (1_000.0 * seconds * f64::from(share) / f64::from(ALL), 1_000.0 * seconds);
    let side = |trials: f64, rate: f64| Side { trials, errors: (trials * rate).round() };
    Traffic { seconds, canary: side(canary, canary_rate), baseline: side((all - canary) * 0.7, 0.0), drawn: canary, all }
}

/// A node that runs what it is told.
struct World {
    state: State,
    weights: Weights,
    now: f64,
    events: Vec<RolloutEvent>,
}

impl World {
    fn new(policy: Rollout) -> Self {
        Self { state: state(policy), weights: start_weights(), now: 1e9, events: Vec::new() }
    }

    /// One look; a crash loses what was to be done after the state was kept.
    fn look(&mut self, mut observation: Observation, seconds: f64, crash: bool) {
        self.now += seconds;
        observation.weights = Some(self.weights.clone());
        let (next, actions) = step(self.state.clone(), &observation, self.now);
        let kept = serde_json::to_string(&next).unwrap();
        self.state = if crash { serde_json::from_str(&kept).unwrap() } else { next };
        for action in actions {
            match action {
                Action::SetWeights(_) if crash => {}
                Action::SetWeights(weights) => self.weights = weights,
                Action::Tell(event) => self.events.push(*event),
            }
        }
    }

    fn good(&mut self, seconds: f64) {
        let share = self.state.share;
        self.look(Observation { traffic: Some(traffic(share, seconds, 0.0)), ..Observation::default() }, seconds, false);
    }

    fn say(&mut self, kind: WordKind) {
        self.look(Observation { word: word(kind), ..Observation::default() }, 0.1, false);
    }

    fn names(&self) -> Vec<&str> {
        self.events.iter().map(|event| event.event.as_str()).collect()
    }
}

fn share_of_canary(weights: &Weights) -> f64 {
    f64::from(weights["v2"]) / weights.values().map(|weight| f64::from(*weight)).sum::<f64>()
}

#[test]
fn a_good_canary_is_promoted_step_by_step() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    assert_eq!((world.state.share, share_of_canary(&world.weights)), (10_000, 0.01));
    // The others keep their proportions.
    assert_eq!(world.weights["v1"] * 3, world.weights["v3"] * 7);
    let mut shares = vec![world.state.share];
    for _ in 0..600 {
        world.good(0.5);
        if shares.last() != Some(&world.state.share) {
            shares.push(world.state.share);
        }
    }
    assert_eq!(shares, policy().steps);
    assert_eq!(world.names(), ["started", "advanced", "advanced", "advanced", "promoted"]);
    assert_eq!((world.state.phase, world.state.settled), (Phase::Promoted, true));
    assert_eq!(world.weights, Weights::from([("v1".into(), 0), ("v2".into(), 1), ("v3".into(), 0)]));
    assert!(world.events[1].evidence.iter().all(|finding| finding.answer == Answer::Pass && !finding.text.is_empty()));
    assert!(world.events[1].at - world.events[0].at >= 10.0, "the dwell is kept");
    // An ended rollout leaves weights alone.
    world.weights.insert("v1".into(), 7);
    world.good(1.0);
    assert_eq!(world.weights["v1"], 7);
}

#[test]
fn a_bad_canary_goes_to_zero_within_half_a_second_and_cools_down() {
    let mut world = World::new(Rollout { retries: 1, ..policy() });
    world.say(WordKind::Start);
    while world.state.step == 0 {
        world.good(0.5);
        assert!(world.now < 1e9 + 60.0);
    }
    let began = world.now;
    while world.state.share > 0 {
        let bad = Observation { traffic: Some(traffic(world.state.share, 0.1, 1.0)), ..Observation::default() };
        world.look(bad, 0.1, false);
        assert!(world.now - began < 0.5, "{:?}", world.state.evidence);
    }
    assert_eq!(world.weights, Weights::from([("v1".into(), 70), ("v2".into(), 0), ("v3".into(), 30)]), "as before, without the canary");
    let event = world.events.last().unwrap();
    assert_eq!((event.event.as_str(), event.by.as_str(), event.to), ("rolled-back", "gate errorRate", 0.0));
    assert!(event.evidence[0].p_value.unwrap() < 0.01 && event.reason.contains("above the limit of 5%"), "{event:?}");
    // One retry after the cool-down, not before.
    (0..28).for_each(|_| world.good(1.0));
    assert_eq!(world.state.phase, Phase::RolledBack);
    (0..5).for_each(|_| world.good(1.0));
    assert_eq!((world.state.phase, world.state.attempt), (Phase::Running, 1));
    let bad = || Observation { traffic: Some(traffic(10_000, 1.0, 1.0)), ..Observation::default() };
    (0..5).for_each(|_| world.look(bad(), 1.0, false));
    (0..100).for_each(|_| world.good(1.0));
    assert_eq!(world.state.phase, Phase::RolledBack, "the budget of retries is spent");
    // Within the cool-down a start waits.
    world.state.failed_at = Some(world.now);
    world.say(WordKind::Start);
    assert_eq!((world.state.phase, world.state.share), (Phase::Waiting, 0));
    (0..40).for_each(|_| world.good(1.0));
    assert_eq!(world.state.phase, Phase::Running);
}

#[test]
fn without_data_nothing_advances() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    (0..1_000).for_each(|_| {
        world.look(Observation { traffic: Some(Traffic { seconds: 10.0, ..Traffic::default() }), ..Observation::default() }, 10.0, false)
    });
    assert_eq!((world.state.step, world.state.phase), (0, Phase::Running));
    let status = status(&world.state, world.now);
    assert!(status.missing.iter().any(|line| line.contains("50 more requests")), "{:?}", status.missing);
}

/// However wide the margins are: nothing seen is nothing shown.
#[test]
fn gates_without_data_are_unknown() {
    let latency = |quantile| Latency { measure: Measure::FirstByte, quantile, max: None, max_increase: Some(0) };
    let errors = ErrorRate { max: None, max_increase: 0, margin: 999_999, ignore_below: 0, ..ErrorRate::default() };
    let gates = Gates { error_rate: Some(errors), latency: vec![latency(500_000), latency(100_000), latency(990_000)], ..Gates::default() };
    let mut world = World::new(Rollout { gates, min_samples: 0, warm_up: Duration::ZERO, ..policy() });
    world.say(WordKind::Start);
    world.state.evidence.step[1].add(1e6, 1e6);
    world.look(Observation::default(), 100.0, false);
    assert_eq!(world.state.step, 0);
    assert!(findings(&world.state).iter().all(|finding| finding.answer == Answer::Unknown), "{:?}", findings(&world.state));
}

#[test]
fn external_gates_fail_in_a_row_and_hold_while_silent() {
    let gate = External {
        name: "order".into(),
        check: Check::Command { run: vec!["x".into()] },
        every: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        failures: 2,
    };
    let reading = |passed| vec![Reading { gate: "order".into(), passed, value: None, text: "t".into() }];
    let mut world = World::new(Rollout { gates: Gates { external: vec![gate], ..Gates::default() }, min_samples: 0, ..policy() });
    world.say(WordKind::Start);
    (0..50).for_each(|_| world.good(1.0));
    assert_eq!(world.state.step, 0, "the gate has not answered");
    let answers = |world: &mut World, passed| world.look(Observation { readings: reading(passed), ..Observation::default() }, 0.1, false);
    answers(&mut world, Some(true));
    assert_eq!(world.state.step, 1);
    answers(&mut world, Some(false));
    answers(&mut world, Some(true));
    answers(&mut world, Some(false));
    assert_eq!(world.state.phase, Phase::Running, "never two in a row");
    answers(&mut world, Some(false));
    assert_eq!((world.state.phase, share_of_canary(&world.weights)), (Phase::RolledBack, 0.0));
    assert!(world.events.last().unwrap().by.contains("order"));
}

#[test]
fn pause_promote_abort_and_hand_set_weights() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    world.say(WordKind::Pause);
    (0..100).for_each(|_| world.good(1.0));
    assert_eq!((world.state.step, world.state.phase), (0, Phase::Paused));
    world.say(WordKind::Resume);
    world.good(1.0);
    assert_eq!(world.state.step, 1);
    // An operator's weights stay until the rollout is resumed.
    world.weights = Weights::from([("v1".into(), 1), ("v2".into(), 1), ("v3".into(), 0)]);
    world.say(WordKind::Overridden);
    (0..20).for_each(|_| world.good(1.0));
    assert_eq!((world.weights["v2"], world.state.phase, world.state.share), (1, Phase::Paused, 500_000));
    world.say(WordKind::Resume);
    assert_eq!(share_of_canary(&world.weights), 0.1);
    world.say(WordKind::Promote);
    assert_eq!((share_of_canary(&world.weights), world.state.phase), (1.0, Phase::Running));
    world.say(WordKind::Abort);
    assert_eq!((share_of_canary(&world.weights), world.state.phase), (0.0, Phase::Aborted));
    assert!(allowed(&world.state, WordKind::Pause).unwrap_err().contains("aborted: start it first"));
    assert!(allowed(&world.state, WordKind::Start).is_ok());
}

#[test]
fn a_freeze_holds_steps_and_never_a_rollback() {
    let mut world = World::new(Rollout { freeze: vec![Freeze { days: Vec::new(), from: 0, to: 0 }], ..policy() });
    world.say(WordKind::Start);
    assert_eq!((world.state.phase, world.state.share), (Phase::Waiting, 0));
    world.state.policy.freeze.clear();
    world.good(0.1);
    assert_eq!(world.state.phase, Phase::Running);
    world.state.policy.freeze = vec![Freeze { days: Vec::new(), from: 0, to: 0 }];
    (0..100).for_each(|_| world.good(1.0));
    assert_eq!(world.state.step, 0);
    let bad = || Observation { traffic: Some(traffic(10_000, 1.0, 1.0)), ..Observation::default() };
    (0..5).for_each(|_| world.look(bad(), 1.0, false));
    assert_eq!((world.state.phase, world.state.share), (Phase::RolledBack, 0));
}

#[test]
fn new_backends_warm_up_again() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    (0..9).for_each(|_| world.good(1.0));
    let share = world.state.share;
    for scaled in 1..=90 {
        let observation = Observation { traffic: Some(traffic(share, 1.0, 0.0)), backends: scaled, ..Observation::default() };
        world.look(observation, 1.0, false);
    }
    assert_eq!(world.state.step, 0, "backends come and go");
    let still = || Observation { traffic: Some(traffic(share, 1.0, 0.0)), backends: 90, ..Observation::default() };
    (0..45).for_each(|_| world.look(still(), 1.0, false));
    assert_eq!(world.state.step, 1);
}

#[test]
fn weights_of_any_base_sum_exactly() {
    for base in [vec![0, 0], vec![1, 1], vec![7, 0], vec![333_333, 1], vec![u32::MAX, 3]] {
        for share in [0, 1, 9_999, 333_333, 999_999, ALL] {
            let mut state = state(policy());
            state.base = Weights::from([("v1".into(), base[0]), ("v3".into(), base[1])]);
            state.share = share;
            let weights = state.weights();
            let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
            assert!(total > 0, "somebody serves");
            assert_eq!(u64::from(weights["v2"]) * u64::from(ALL), u64::from(share) * total, "{base:?} {share} {weights:?}");
        }
    }
}

#[derive(Clone, Debug)]
struct Look {
    seconds: f64,
    rate: f64,
    silent: bool,
    word: Option<WordKind>,
    crash: bool,
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let words = prop_oneof![
        30 => Just(None),
        1 => Just(Some(WordKind::Start)),
        1 => Just(Some(WordKind::Pause)),
        1 => Just(Some(WordKind::Resume)),
        1 => Just(Some(WordKind::Promote)),
        1 => Just(Some(WordKind::Abort)),
    ];
    let rate = prop_oneof![8 => Just(0.0), 1 => Just(0.02), 1 => Just(0.5), 1 => Just(1.0)];
    let one = (0.1..8.0, rate, prop::bool::weighted(0.2), words, prop::bool::weighted(0.2));
    let one = one.prop_map(|(seconds, rate, silent, word, crash)| Look { seconds, rate, silent, word, crash });
    prop::collection::vec(one, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn promises_hold_whatever_happens(looks in looks(), retries in 0u32..2) {
        let mut world = World::new(Rollout { retries, ..policy() });
        world.say(WordKind::Start);
        for look in looks {
            let (share, events) = (world.state.share, world.events.len());
            let seen = (!look.silent).then(|| traffic(share, look.seconds, look.rate));
            world.look(Observation { traffic: seen, word: look.word.and_then(word), ..Observation::default() }, look.seconds, look.crash);
            let state = &world.state;
            // Weights are exact.
            let weights = state.weights();
            let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
            prop_assert_eq!(u64::from(weights["v2"]) * u64::from(ALL), u64::from(state.share) * total);
            let told = &world.events[events..];
            if state.share > share {
                let event = told.last().expect("a change is told");
                let spoken = event.by.starts_with("operator");
                let begins = event.event == "started" && state.share == state.policy.steps[0];
                let next = state.policy.steps.iter().copied().find(|step| *step > share);
                let passed = event.evidence.iter().all(|finding| finding.answer == Answer::Pass);
                prop_assert!(spoken || begins || Some(state.share) == next && passed, "{:?}", event);
            }
            // A gate that fails ends at zero: no live state is left with one.
            let failing = findings(state).iter().any(|finding| finding.answer == Answer::Fail);
            prop_assert!(!failing || look.word.is_some(), "{:?}", findings(state));
            prop_assert!(!matches!(state.phase, Phase::RolledBack | Phase::Aborted) || state.share == 0);
        }
        // Whatever was lost on the way: the next quiet look brings the node to what the state asks.
        world.look(Observation::default(), 0.1, false);
        world.look(Observation::default(), 0.1, false);
        prop_assert_eq!(&world.weights, &if world.state.phase == Phase::Idle { start_weights() } else { world.state.weights() });
    }
}
