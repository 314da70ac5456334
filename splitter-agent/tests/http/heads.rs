//! Heads in any number of segments, split anywhere, short and long.

use crate::{
    stage::{Stage, V1, V2, tagged},
    support::vip,
    wire::{TO_V1, TO_V2, Wire, get},
};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_micros(500);

/// The tag, and whether a server is of its version.
fn alternate(turn: usize) -> (&'static str, &'static [&'static str]) {
    if turn.is_multiple_of(2) { (TO_V2, V2) } else { (TO_V1, V1) }
}

#[test]
fn a_head_may_be_cut_at_every_byte() {
    let stage = Stage::new("cuts", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let whole = get("/", &["Cookie: a=1; canary=9; b=2", TO_V2]).len();
    for cut in 1..whole {
        for (what, fresh) in [("a new", true), ("a kept", false)] {
            let (tag, expected) = alternate(cut + usize::from(fresh));
            let bytes = get("/", &["Cookie: a=1; canary=9; b=2", tag]);
            let mut own = fresh.then(|| Wire::open(stage.lab.client(), vip(false)));
            let wire = own.as_mut().unwrap_or(&mut kept);
            wire.send_cut(&bytes, &[cut.min(bytes.len() - 1)], PAUSE);
            let answer = wire.answer().unwrap_or_else(|error| panic!("cut at {cut} on {what} connection: {error}"));
            assert!(expected.contains(&answer.version.as_str()), "cut at {cut} on {what} connection: {} for {tag}", answer.version);
        }
    }
}

#[test]
fn a_head_may_come_in_many_segments() {
    let stage = Stage::new("many", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    for (turn, step) in [1, 2, 3, 5, 8, 13, 21, 34].into_iter().enumerate() {
        for (what, fresh) in [("a new", true), ("a kept", false)] {
            let (tag, expected) = alternate(turn + usize::from(fresh));
            let bytes = get("/", &["Accept: */*", tag]);
            let cuts: Vec<usize> = (step..bytes.len()).step_by(step).collect();
            let mut own = fresh.then(|| Wire::open(stage.lab.client(), vip(false)));
            let wire = own.as_mut().unwrap_or(&mut kept);
            wire.send_cut(&bytes, &cuts, PAUSE);
            let answer = wire.answer().unwrap_or_else(|error| panic!("{step} bytes a segment on {what} connection: {error}"));
            assert!(expected.contains(&answer.version.as_str()), "{step} bytes a segment on {what} connection: {}", answer.version);
        }
    }
}

/// Nagle's algorithm holds the second write back until the first is acknowledged (RFC 1122, 4.2.3.4), which nobody does for half a head:
/// the retransmission brings it.
#[test]
fn a_client_without_nodelay_is_answered() {
    let stage = Stage::new("nagle", &[tagged(100, 0)]);
    for turn in 0..6 {
        let (tag, expected) = alternate(turn);
        let mut wire = Wire::open(stage.lab.client(), vip(false));
        wire.stream.set_nodelay(false).unwrap();
        let bytes = get("/", &[tag]);
        let began = Instant::now();
        wire.send_cut(&bytes, &[10, 30], PAUSE);
        let answer = wire.answer().expect("an answer");
        assert!(expected.contains(&answer.version.as_str()), "{tag}: {}", answer.version);
        assert!(began.elapsed() < Duration::from_secs(2), "answered after {:?}", began.elapsed());
    }
}

/// The tag first, in the middle and last; on new and on kept connections; in one write and in two.
#[test]
fn heads_up_to_8_kb_are_read_whole() {
    let stage = Stage::new("long", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let mut turn = 0;
    for size in [600usize, 1_300, 1_448, 1_460, 1_500, 2_000, 2_920, 4_000, 6_000, 8_000, 8_190, 8_192] {
        for place in 0..3 {
            for fresh in [true, false] {
                turn += 1;
                let (tag, expected) = alternate(turn);
                let empty = get("/", &[tag, "a: ", "b: "]).len();
                let (front, back) = match place {
                    0 => (0, size - empty),
                    1 => ((size - empty) / 2, size - empty - (size - empty) / 2),
                    _ => (size - empty, 0),
                };
                let (front, back) = (format!("a: {}", "x".repeat(front)), format!("b: {}", "y".repeat(back)));
                let bytes = get("/", &[&front, tag, &back]);
                assert_eq!(bytes.len(), size);
                let mut own = fresh.then(|| Wire::open(stage.lab.client(), vip(false)));
                let wire = own.as_mut().unwrap_or(&mut kept);
                let cuts = [size * 2 / 3];
                wire.send_cut(&bytes, if turn % 3 == 0 { &cuts } else { &[] }, PAUSE);
                let what = format!("{size} bytes, place {place}, {}", if fresh { "new" } else { "kept" });
                let answer = wire.answer().unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(answer.status == 200 && expected.contains(&answer.version.as_str()), "{what}: {tag}, but {answer:?}");
            }
        }
    }
}

/// What exceeds the limit is served all the same, by weight, and counted.
#[test]
fn longer_heads_are_answered_by_weight() {
    let stage = Stage::new("toolong", &[tagged(100, 0)]);
    let filler = format!("a: {}", "x".repeat(9_000));
    for lines in [[filler.as_str(), TO_V2], [TO_V2, filler.as_str()]] {
        for _ in 0..10 {
            let mut wire = Wire::open(stage.lab.client(), vip(false));
            let answer = wire.ask(get("/", &lines));
            assert_eq!(answer.status, 200, "{answer:?}");
            // The connection goes on, wherever it is.
            assert_eq!(wire.ask(get("/", &[])).status, 200);
        }
    }
    if crate::stage::through().is_none() {
        let counted: Vec<_> = stage.status().reasons.into_iter().filter(|count| count.reason.contains("head")).collect();
        assert!(counted.iter().map(|count| count.count).sum::<u64>() >= 20, "long heads are not counted: {counted:?}");
    }
}

#[test]
fn cookies_are_found_wherever_they_stand() {
    let stage = Stage::new("cookies", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let long: String = (0..150).map(|i| format!("k{i}=v{i}{}; ", "z".repeat(i % 17))).collect();
    let cases: Vec<(Vec<String>, &[&str])> = vec![
        (vec!["Cookie: canary=1".into()], V2),
        (vec!["Cookie:canary=1".into()], V2),
        (vec!["COOKIE: canary=1".into()], V2),
        (vec![format!("Cookie: {long}canary=1")], V2),
        (vec![format!("Cookie: canary=1; {long}x=1")], V2),
        (vec![format!("Cookie: {long}canary=0")], V1),
        (vec![format!("Cookie: {long}canary=11")], V1),
        (vec![format!("Cookie: {long}xcanary=1; canaryx=1")], V1),
        // Two lines, as HTTP/2 gateways send them (RFC 9113, 8.2.3).
        (vec!["Cookie: a=1".into(), "Cookie: canary=1".into()], V2),
        // A header wins over a cookie: its rule comes first.
        (vec!["Cookie: canary=1".into(), TO_V1.into()], V1),
        (vec!["X-Cookie: canary=1".into()], V1),
    ];
    for (lines, expected) in cases {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        for fresh in [true, false] {
            let mut own = fresh.then(|| Wire::open(stage.lab.client(), vip(false)));
            let version = own.as_mut().unwrap_or(&mut kept).get("/", &lines);
            assert!(expected.contains(&version.as_str()), "{lines:?}: {version}");
        }
    }
}
