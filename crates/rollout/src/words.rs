//! Which word a rollout can follow now; for those that it cannot, which one helps instead. Pure text and state.

use super::{
    evidence::ratio,
    observation::{Moment, Weights, Word, WordKind},
    state::{Phase, State},
    text::percent,
    waiting::span,
};
use splitter_policy::model::ALL;

/// Whether a word can be followed now. The text is for the operator.
///
/// # Errors
/// What is the matter, and the command that helps in this state.
pub fn allowed(state: &State, word: &Word, moment: Moment) -> Result<(), String> {
    let (phase, service) = (state.phase, &state.service);
    let frozen = moment.frozen.filter(|_| !state.override_freeze && !word.override_freeze);
    let fine = match word.kind {
        WordKind::Start => !phase.is_live() && (phase != Phase::Waiting || word.override_freeze),
        WordKind::Pause => phase == Phase::Running,
        WordKind::Resume => phase == Phase::Paused || phase == Phase::Running && word.override_freeze,
        WordKind::Promote => phase.is_live() && frozen.is_none(),
        WordKind::Abort => phase.is_live() || phase == Phase::Waiting || state.retries(),
        WordKind::Undo => phase == Phase::Promoted,
        WordKind::Overridden => true,
    };
    if fine {
        return Ok(());
    }
    if let (Some(until), WordKind::Promote, true) = (frozen, word.kind, phase.is_live()) {
        return Err(format!(
            "the rollout of {service} is {} and a freeze window holds for another {}: `splitter rollout promote {service} --override-freeze` \
             promotes all the same",
            phase.name(),
            span(until - moment.unix)
        ));
    }
    Err(format!("the rollout of {service} is {}: {}", phase.name(), instead(state, word.kind)))
}

/// What helps in the place of a word that cannot be followed.
fn instead(state: &State, word: WordKind) -> String {
    let (service, canary, share) = (&state.service, &state.canary, percent(ratio(state.share)));
    let say = |words: &str| format!("`splitter rollout {words} {service}`");
    let first = percent(ratio(state.policy.steps.first().copied().unwrap_or(ALL)));
    match (state.phase, word) {
        (Phase::Idle, WordKind::Undo | WordKind::Abort) => "nothing was started yet, so there is nothing to take back".into(),
        (Phase::Idle, _) => format!("{} begins it, with {first} for {canary}", say("start")),
        (Phase::Waiting, WordKind::Start) => {
            format!(
                "it begins by itself when its cool-down or freeze window is over; in a freeze window {} begins at once, {} gives up",
                say_with(service, "start", "--override-freeze"),
                say("abort")
            )
        }
        (Phase::Waiting, WordKind::Undo) => format!("{} keeps it from beginning", say("abort")),
        (Phase::Waiting, _) => format!(
            "it has not begun yet; {} begins at once in a freeze window, {} keeps it from beginning",
            say_with(service, "start", "--override-freeze"),
            say("abort")
        ),
        (Phase::Running, WordKind::Resume) => format!("it goes on already; {} gives {canary} everything now", say("promote")),
        (Phase::Paused, WordKind::Start | WordKind::Pause) => {
            format!("{} goes on from {share}, {} takes {canary} back", say("resume"), say("abort"))
        }
        (Phase::Running, WordKind::Start) => format!("{canary} has {share}; {} takes it back, then start anew", say("abort")),
        (Phase::Running | Phase::Paused, _) => format!("{} takes {canary} back", say("abort")),
        (Phase::Promoted, WordKind::Abort) => format!("{} takes {canary} back, to the weights from before", say("undo")),
        (Phase::Promoted, _) => {
            format!("it has ended, {canary} has {share}; {} takes it back, to the weights from before", say("undo"))
        }
        (Phase::RolledBack | Phase::Aborted, WordKind::Undo | WordKind::Abort) => {
            format!("{canary} has 0% and the others their weights from before: there is nothing to take back")
        }
        (Phase::RolledBack, _) if state.retries() => {
            format!(
                "{canary} has 0% and is tried again by itself; {} ends that, {} begins at once with {first}",
                say("abort"),
                say("start")
            )
        }
        (Phase::RolledBack | Phase::Aborted, _) => format!("it has ended, {canary} has 0%; {} begins anew with {first}", say("start")),
    }
}

fn say_with(service: &str, word: &str, flag: &str) -> String {
    format!("`splitter rollout {word} {service} {flag}`")
}

/// `v1 0% -> 95%, v2 100% -> 5%`; empty when no share changes.
pub fn difference(before: &Weights, after: &Weights) -> String {
    let share = |weights: &Weights, name: &str| {
        let total: u64 = weights.values().map(|weight| u64::from(*weight)).sum();
        let own = f64::from(weights.get(name).copied().unwrap_or(0));
        percent(if total == 0 { 0.0 } else { own / total as f64 })
    };
    let changed = after.keys().map(|name| (name, share(before, name), share(after, name))).filter(|(_, before, after)| before != after);
    changed.map(|(name, before, after)| format!("{name} {before} -> {after}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{policy, state};

    const PHASES: [Phase; 7] =
        [Phase::Idle, Phase::Waiting, Phase::Running, Phase::Paused, Phase::Promoted, Phase::RolledBack, Phase::Aborted];
    const WORDS: [(WordKind, &str); 6] = [
        (WordKind::Start, "start"),
        (WordKind::Pause, "pause"),
        (WordKind::Resume, "resume"),
        (WordKind::Promote, "promote"),
        (WordKind::Abort, "abort"),
        (WordKind::Undo, "undo"),
    ];

    /// Every phase and word: allowed, or the commands that the message names. Each of those can be followed in that very phase, and none of
    /// them gives a promoted canary's traffic away by surprise.
    #[test]
    fn every_refusal_names_a_command_that_helps_now() {
        // Rows: phases; columns: start, pause, resume, promote, abort, undo. `+`: allowed; else the words that are named.
        let table: [[&[&str]; 6]; 7] = [
            [&["+"], &["start"], &["start"], &["start"], &[], &[]],
            [&["start", "abort"], &["start", "abort"], &["start", "abort"], &["start", "abort"], &["+"], &["abort"]],
            [&["abort"], &["+"], &["promote"], &["+"], &["+"], &["abort"]],
            [&["resume", "abort"], &["resume", "abort"], &["+"], &["+"], &["+"], &["abort"]],
            [&["+"], &["undo"], &["undo"], &["undo"], &["undo"], &["+"]],
            [&["+"], &["start"], &["start"], &["start"], &[], &[]],
            [&["+"], &["start"], &["start"], &["start"], &[], &[]],
        ];
        let moment = Moment::new(1e9, 0.0);
        for (phase, row) in PHASES.into_iter().zip(table) {
            let mut state = state(policy());
            (state.phase, state.share) = (phase, if phase == Phase::Promoted { ALL } else { 50_000 });
            for ((kind, name), expected) in WORDS.into_iter().zip(row) {
                let what = format!("{name} while {}", phase.name());
                let result = allowed(&state, &Word::new(kind, "x", ""), moment);
                if expected == ["+"] {
                    assert_eq!(result, Ok(()), "{what}");
                    continue;
                }
                let text = result.expect_err(&what);
                assert!(text.starts_with(&format!("the rollout of web is {}: ", phase.name())), "{what}: {text}");
                let named: Vec<&str> =
                    WORDS.iter().map(|(_, name)| *name).filter(|name| text.contains(&format!("rollout {name} web"))).collect();
                let mut wanted = expected.to_vec();
                wanted.sort_by_key(|name| WORDS.iter().position(|(_, word)| word == name));
                assert_eq!(named, wanted, "{what}: {text}");
                for (kind, name) in WORDS.iter().filter(|(_, name)| named.contains(name)) {
                    let flag = text.contains(&format!("rollout {name} web --override-freeze"));
                    let word = Word { override_freeze: flag, ..Word::new(*kind, "x", "") };
                    assert_eq!(allowed(&state, &word, moment), Ok(()), "{what}: {name} is proposed and refused");
                    assert!(phase != Phase::Promoted || *name != "start", "{what}: {text}");
                }
            }
        }
    }

    #[test]
    fn a_canary_that_will_be_tried_again_can_be_given_up() {
        let mut state = state(splitter_policy::model::Rollout { retries: 1, ..policy() });
        (state.phase, state.retry) = (Phase::RolledBack, true);
        let moment = Moment::default();
        assert_eq!(allowed(&state, &Word::new(WordKind::Abort, "x", ""), moment), Ok(()));
        let text = allowed(&state, &Word::new(WordKind::Pause, "x", ""), moment).unwrap_err();
        assert!(text.contains("`splitter rollout abort web` ends that"), "{text}");
    }

    #[test]
    fn shares_that_change_are_named() {
        let weights = |v1, v2| Weights::from([("v1".into(), v1), ("v2".into(), v2)]);
        assert_eq!(difference(&weights(0, 1), &weights(19, 1)), "v1 0% -> 95%, v2 100% -> 5%");
        assert_eq!(difference(&weights(1, 1), &weights(7, 7)), "");
    }
}
