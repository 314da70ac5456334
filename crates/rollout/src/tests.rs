//! Whole rollouts in a small world: the promises of `step` under random traffic, words, crashes and lost writes.

use super::*;
use proptest::prelude::*;
use splitter_api::{Answer, RolloutEvent};
use splitter_policy::model::{ALL, Check, ErrorRate, External, Gates, Latency, Measure, Pace, Ppm, Rollout, ShareMismatch};
use std::time::Duration;

pub fn policy() -> Rollout {
    let errors = ErrorRate { max: Some(50_000), max_increase: 250_000, margin: 20_000, ignore_below: 1_000, ..ErrorRate::default() };
    Rollout {
        canary: 1,
        baseline: 0,
        steps: vec![10_000, 100_000, 500_000, ALL],
        pauses: Default::default(),
        pace: Pace::Fixed,
        dwell: Duration::from_secs(10),
        watch: Duration::from_secs(20),
        watch_after: Duration::from_secs(60),
        progress_deadline: None,
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

pub fn state(policy: Rollout) -> State {
    State::new("web", "v2", "v1", policy, &start_weights())
}

fn start_weights() -> Weights {
    Weights::from([("v1".into(), 70), ("v2".into(), 5), ("v3".into(), 30)])
}

fn word(kind: WordKind) -> Option<Word> {
    Some(Word::new(kind, "operator (uid 0)", ""))
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
    /// The world's own clock, which nobody sets, and how far the wall clock is from it.
    now: f64,
    wall: f64,
    frozen: bool,
    events: Vec<RolloutEvent>,
}

impl World {
    fn new(policy: Rollout) -> Self {
        Self { state: state(policy), weights: start_weights(), now: 1e9, wall: 0.0, frozen: false, events: Vec::new() }
    }

    /// One look; a crash loses what was to be done after the state was kept.
    fn look(&mut self, mut observation: Observation, seconds: f64, crash: bool) {
        self.now += seconds;
        observation.weights = Some(self.weights.clone());
        let moment = Moment { passed: seconds, ..self.moment() };
        let (next, actions) = step(self.state.clone(), &observation, moment);
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

    fn moment(&self) -> Moment {
        let unix = self.now + self.wall;
        Moment { unix, passed: 0.0, frozen: self.frozen.then_some(unix + 3_600.0) }
    }

    fn status(&self) -> splitter_api::RolloutStatus {
        full_status(&self.state, self.moment())
    }

    fn bad(&mut self, seconds: f64) {
        let traffic = traffic(self.state.share, seconds, 1.0);
        self.look(Observation { traffic: Some(traffic), ..Observation::default() }, seconds, false);
    }

    /// Good traffic until the phase is this one, for ten minutes at most.
    fn until(&mut self, phase: Phase) {
        let end = self.now + 600.0;
        while self.state.phase != phase {
            self.good(0.5);
            assert!(self.now < end, "never {phase:?}: {:?}", self.status());
        }
    }

    fn refused(&self, kind: WordKind) -> String {
        allowed(&self.state, &Word::new(kind, "x", ""), self.moment()).unwrap_err()
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
    assert_eq!(world.names(), ["started", "advanced", "advanced", "advanced", "promoted", "watched"]);
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
    world.state.failed = Some(world.state.clock);
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
    let status = world.status();
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
    assert!(world.refused(WordKind::Pause).contains("aborted: it has ended, v2 has 0%; `splitter rollout start web` begins anew with 1%"));
}

#[test]
fn a_freeze_holds_steps_and_never_a_rollback() {
    let mut world = World::new(policy());
    world.frozen = true;
    world.say(WordKind::Start);
    assert_eq!((world.state.phase, world.state.share), (Phase::Waiting, 0));
    assert!(world.status().missing[0].contains("1h of a freeze window"), "{:?}", world.status());
    world.frozen = false;
    world.good(0.1);
    assert_eq!(world.state.phase, Phase::Running);
    world.frozen = true;
    (0..100).for_each(|_| world.good(1.0));
    assert_eq!(world.state.step, 0);
    assert!(world.refused(WordKind::Promote).contains("`splitter rollout promote web --override-freeze`"));
    (0..5).for_each(|_| world.bad(1.0));
    assert_eq!((world.state.phase, world.state.share), (Phase::RolledBack, 0));
}

#[test]
fn a_freeze_is_overridden_by_name_and_told() {
    let overriding = |kind| Observation { word: Some(Word { override_freeze: true, ..word(kind).unwrap() }), ..Observation::default() };
    let mut world = World::new(policy());
    world.frozen = true;
    world.say(WordKind::Start);
    world.look(overriding(WordKind::Start), 0.1, false);
    assert_eq!((world.state.phase, world.state.share), (Phase::Running, 10_000));
    assert_eq!(world.names(), ["waiting", "freeze-overridden", "started"]);
    assert_eq!(world.events[1].by, "operator (uid 0)");
    // For the whole rollout, not only its begin.
    world.until(Phase::Promoted);
    // One that runs is freed by `resume`.
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    world.frozen = true;
    (0..60).for_each(|_| world.good(1.0));
    assert_eq!(world.state.step, 0);
    world.look(overriding(WordKind::Resume), 0.1, false);
    (0..20).for_each(|_| world.good(1.0));
    assert!(world.state.step > 0 && world.names().contains(&"freeze-overridden"));
}

/// Wall time is for people: set forward or back by hours, or by minutes at every look, a rollout ends as if nobody had touched it.
#[test]
fn a_wall_clock_that_is_set_changes_nothing() {
    let run = |jump: fn(usize) -> f64| {
        let mut world = World::new(Rollout { progress_deadline: Some(Duration::from_secs(120)), ..policy() });
        world.say(WordKind::Start);
        let mut times = Vec::new();
        for look in 0..1_000 {
            world.wall = jump(look);
            world.good(0.5);
            let before = times.len();
            times.extend(world.names()[1..].iter().skip(before).map(|name| (look, (*name).to_owned())));
        }
        times
    };
    let still = run(|_| 0.0);
    assert_eq!(
        still.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(),
        ["advanced", "advanced", "advanced", "promoted", "watched"]
    );
    for jump in [
        (|look| if look < 5 { 0.0 } else { 360.0 }) as fn(usize) -> f64,
        |look| if look < 5 { 0.0 } else { -86_400.0 },
        |look| [0.0, 3_600.0, -3_600.0][look % 3],
        |look| look as f64 * 1_000.0,
    ] {
        assert_eq!(run(jump), still);
    }
}

/// What has elapsed is kept; time in which no agent ran is not added.
#[test]
fn a_restart_goes_on_with_the_time_that_was_kept() {
    let mut world = World::new(Rollout { steps: vec![500_000, ALL], ..policy() });
    world.say(WordKind::Start);
    (0..8).for_each(|_| world.good(1.0));
    let kept = serde_json::to_string(&world.state).unwrap();
    world.state = serde_json::from_str(&kept).unwrap();
    // An hour later, by the wall: nothing was judged in it.
    world.wall = 3_600.0;
    world.good(0.0);
    assert_eq!(world.state.step, 0);
    (0..3).for_each(|_| world.good(1.0));
    assert_eq!(world.state.step, 1, "eight seconds before, three after: the dwell of ten is over");
}

/// A file of a version that did not know these fields is taken up; its clock begins at 0.
#[test]
fn a_state_of_an_earlier_version_is_read() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    (0..3).for_each(|_| world.good(1.0));
    let mut kept = serde_json::to_value(&world.state).unwrap();
    let fields = kept.as_object_mut().unwrap();
    for new in "clock entered warm failed retry tried pausing confirmed override_freeze watched_until record guard".split(' ') {
        assert!(fields.remove(new).is_some(), "{new}");
    }
    fields.insert("failed_at".into(), 1e9.into());
    fields.insert("warm_until".into(), 1e9.into());
    for new in ["pauses", "watch_after", "progress_deadline"] {
        assert!(fields["policy"].as_object_mut().unwrap().remove(new).is_some(), "{new}");
    }
    world.state = serde_json::from_value(kept).unwrap();
    assert_eq!((world.state.clock, world.state.phase), (0.0, Phase::Running));
    world.until(Phase::Promoted);
}

#[test]
fn undo_goes_back_to_the_weights_from_before() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    assert!(world.refused(WordKind::Undo).contains("`splitter rollout abort web`"));
    world.until(Phase::Promoted);
    // Also after a restart, and after the watch.
    world.state = serde_json::from_str(&serde_json::to_string(&world.state).unwrap()).unwrap();
    (0..100).for_each(|_| world.good(1.0));
    world.say(WordKind::Undo);
    assert_eq!(
        (world.state.phase, &world.weights),
        (Phase::Aborted, &Weights::from([("v1".into(), 70), ("v2".into(), 0), ("v3".into(), 30)]))
    );
    let event = world.events.last().unwrap();
    assert_eq!((event.event.as_str(), event.from, event.to), ("undone", 1.0, 0.0));
}

/// The limit, or without one what the baseline was like, still counts after the promotion; for the time that the policy says.
#[test]
fn a_promoted_canary_that_turns_bad_is_taken_back() {
    let without_max = ErrorRate { max: None, ..policy().gates.error_rate.unwrap() };
    for errors in [policy().gates.error_rate.unwrap(), without_max] {
        let gates = Gates { error_rate: Some(errors), ..Gates::default() };
        let mut world = World::new(Rollout { gates: gates.clone(), ..policy() });
        world.say(WordKind::Start);
        world.until(Phase::Promoted);
        assert!((50.0..=60.0).contains(&world.status().watched_for.unwrap()));
        let began = world.now;
        while world.state.share > 0 {
            world.bad(0.1);
            assert!(world.now - began < 1.0, "{:?}", world.status());
        }
        assert_eq!((world.state.phase, world.weights["v1"], world.weights["v2"]), (Phase::RolledBack, 70, 0));
        let event = world.events.last().unwrap();
        assert!(event.by.starts_with("gate errorRate") && event.reason.contains("fails"), "{event:?}");
        // When the watch is over nobody looks.
        let mut world = World::new(Rollout { gates: gates.clone(), ..policy() });
        world.say(WordKind::Start);
        world.until(Phase::Promoted);
        (0..62).for_each(|_| world.good(1.0));
        assert_eq!((world.names().last(), world.status().watched_for), (Some(&"watched"), None));
        (0..10).for_each(|_| world.bad(1.0));
        assert_eq!(world.state.phase, Phase::Promoted);
        // And with `watchAfter: 0s` there is none.
        let mut world = World::new(Rollout { gates, watch_after: Duration::ZERO, ..policy() });
        world.say(WordKind::Start);
        world.until(Phase::Promoted);
        assert!(!world.state.is_judged());
    }
}

#[test]
fn a_promoted_canary_that_gets_slow_is_taken_back() {
    let latency =
        splitter_policy::model::Latency { measure: Measure::FirstByte, quantile: 990_000, max: None, max_increase: Some(200_000) };
    let gates = Gates { latency: vec![latency], ..Gates::default() };
    let mut world = World::new(Rollout { gates, ..policy() });
    world.say(WordKind::Start);
    let samples = |share: Ppm, seconds: f64| {
        let counts = |count: f64, time: f64| stats::Counts::new(vec![(stats::bucket_above(time), count)]);
        let all = 1_000.0;
        let canary = all * f64::from(share) / f64::from(ALL);
        let sides = [counts(canary.max(0.001), seconds), counts((all - canary).max(0.001), 0.01)];
        LatencySamples { seconds: 1.0, by_measure: [(Measure::FirstByte, sides)].into() }
    };
    let look = |world: &mut World, seconds: f64| {
        let share = world.state.share;
        let latency = Some(samples(share, seconds));
        world.look(Observation { traffic: Some(traffic(share, 1.0, 0.0)), latency, ..Observation::default() }, 1.0, false);
    };
    (0..300).for_each(|_| {
        if world.state.phase == Phase::Running {
            look(&mut world, 0.01);
        }
    });
    assert_eq!(world.state.phase, Phase::Promoted, "{:?}", world.status());
    (0..5).for_each(|_| look(&mut world, 0.01));
    assert_eq!(world.state.phase, Phase::Promoted);
    (0..20).for_each(|_| look(&mut world, 0.05));
    assert_eq!(world.state.phase, Phase::RolledBack, "{:?}", world.status());
    assert!(world.events.last().unwrap().by.contains("latency p99 recorded"), "{:?}", world.events.last());
}

/// Weights that others set end the watch, but for those that say the same as the rollout.
#[test]
fn hand_set_weights_end_the_watch() {
    for (weights, watched) in [([("v1", 0), ("v2", 7), ("v3", 0)], true), ([("v1", 1), ("v2", 1), ("v3", 0)], false)] {
        let mut world = World::new(policy());
        world.say(WordKind::Start);
        world.until(Phase::Promoted);
        world.good(0.5);
        world.weights = weights.into_iter().map(|(name, weight)| (name.to_owned(), weight)).collect();
        world.say(WordKind::Overridden);
        assert_eq!((world.state.is_judged(), world.state.yielded), (watched, true));
        // There is still a way back.
        world.say(WordKind::Undo);
        assert_eq!(world.weights["v1"], 70);
    }
}

#[test]
fn a_second_edit_of_the_weights_is_shown_and_judged() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    for (v2, share) in [(50, 500_000), (20, 285_714)] {
        world.weights = Weights::from([("v1".into(), 50), ("v2".into(), v2), ("v3".into(), 0)]);
        world.say(WordKind::Overridden);
        assert_eq!((world.state.phase, world.state.share), (Phase::Paused, share));
    }
    assert_eq!(world.names(), ["started", "paused"]);
}

#[test]
fn steps_pause_for_somebody_or_for_a_time() {
    let pauses = [
        (0, splitter_policy::model::Pause { duration: None }),
        (1, splitter_policy::model::Pause { duration: Some(Duration::from_secs(100)) }),
    ];
    let mut world = World::new(Rollout { pauses: pauses.into(), ..policy() });
    world.say(WordKind::Start);
    (0..300).for_each(|_| world.good(1.0));
    assert_eq!((world.state.phase, world.state.share), (Phase::Paused, 10_000));
    assert!(world.state.reason.contains("`splitter rollout resume web` goes on"), "{}", world.state.reason);
    assert_eq!(world.status().missing, ["`splitter rollout resume web`"]);
    world.say(WordKind::Resume);
    world.good(1.0);
    assert_eq!((world.state.phase, world.state.step), (Phase::Running, 1));
    (0..60).for_each(|_| world.good(1.0));
    assert_eq!((world.state.phase, world.state.step), (Phase::Paused, 1));
    assert!(world.status().missing[0].contains("of a pause"), "{:?}", world.status().missing);
    // Goes on by itself; the third step has no pause.
    (0..120).for_each(|_| world.good(1.0));
    assert!(world.state.step >= 2, "{:?}", world.status());
    let resumed = world.events.iter().filter(|event| event.event == "resumed").map(|event| event.by.clone()).collect::<Vec<_>>();
    assert_eq!(resumed, ["operator (uid 0)", "steps"]);
    // A gate that fails takes it back while it waits.
    let mut world = World::new(Rollout { pauses: [(0, splitter_policy::model::Pause { duration: None })].into(), ..policy() });
    world.say(WordKind::Start);
    world.until(Phase::Paused);
    (0..20).for_each(|_| world.bad(1.0));
    assert_eq!(world.state.phase, Phase::RolledBack);
}

#[test]
fn a_step_that_does_not_end_is_taken_back_at_its_deadline() {
    let deadline = Some(Duration::from_secs(100));
    let mut world = World::new(Rollout { progress_deadline: deadline, retries: 3, ..policy() });
    world.say(WordKind::Start);
    // Pauses and freezes do not count.
    (0..50).for_each(|_| world.look(Observation::default(), 1.0, false));
    world.say(WordKind::Pause);
    (0..200).for_each(|_| world.look(Observation::default(), 1.0, false));
    world.say(WordKind::Resume);
    world.frozen = true;
    (0..200).for_each(|_| world.look(Observation::default(), 1.0, false));
    world.frozen = false;
    assert!((45.0..50.0).contains(&world.status().deadline.unwrap()), "{:?}", world.status().deadline);
    (0..51).for_each(|_| world.look(Observation::default(), 1.0, false));
    let event = world.events.last().unwrap();
    assert_eq!((world.state.phase, world.state.share, event.by.as_str()), (Phase::RolledBack, 0, "deadline"));
    assert!(event.reason.contains("1m 40s") && event.reason.contains("50 more requests"), "{}", event.reason);
    // Nothing has changed that would make another try better.
    (0..100).for_each(|_| world.good(1.0));
    assert_eq!(world.state.phase, Phase::RolledBack);
}

#[test]
fn what_is_missing_is_told_with_an_estimate() {
    let mut world = World::new(policy());
    world.say(WordKind::Start);
    world.look(Observation::default(), 1.0, false);
    let status = world.status();
    assert!(status.estimate.is_none() && status.missing.last().unwrap().contains("no requests reach the canary"), "{status:?}");
    // Ten requests a second to the canary: the gate asks for more than minSamples does.
    (0..40).for_each(|_| world.good(0.5));
    assert_eq!(world.state.step, 0);
    let estimate = world.status().estimate.unwrap();
    let began = world.now;
    while world.state.step == 0 {
        world.good(0.5);
        assert!(world.now - began < 300.0);
    }
    let took = world.now - began;
    assert!((took * 0.7..took * 1.5).contains(&estimate), "{estimate} estimated, {took} taken");
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
        1 => Just(Some(WordKind::Undo)),
    ];
    let rate = prop_oneof![8 => Just(0.0), 1 => Just(0.02), 1 => Just(0.5), 1 => Just(1.0)];
    let one = (0.1..8.0, rate, prop::bool::weighted(0.2), words, prop::bool::weighted(0.2));
    let one = one.prop_map(|(seconds, rate, silent, word, crash)| Look { seconds, rate, silent, word, crash });
    prop::collection::vec(one, 1..120)
}

/// Every 20th of the canary's 50 requests a second fails: the third failure is enough, also where the share is judged beside.
#[test]
fn judging_the_share_delays_nobody() {
    for share in [None, Some(ShareMismatch { tolerance: 200_000 })] {
        let errors = ErrorRate { max: Some(10_000), ..ErrorRate::default() };
        let gates = Gates { error_rate: Some(errors), share: share.clone(), ..Gates::default() };
        let mut world = World::new(Rollout { steps: vec![50_000, ALL], warm_up: Duration::ZERO, gates, ..policy() });
        world.say(WordKind::Start);
        let mut trials = 0;
        while world.state.phase == Phase::Running {
            trials += 5;
            let canary = Side { trials: 5.0, errors: if trials % 20 == 0 { 1.0 } else { 0.0 } };
            let baseline = Side { trials: 95.0, errors: 0.0 };
            let traffic = Traffic { seconds: 0.1, canary, baseline, drawn: 5.0, all: 100.0 };
            world.look(Observation { traffic: Some(traffic), ..Observation::default() }, 0.1, false);
        }
        assert_eq!((world.state.phase, trials), (Phase::RolledBack, 60), "{share:?}");
    }
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
