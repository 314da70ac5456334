//! Heads in any number of segments, split anywhere, short and long.

use crate::{
    stage::{Stage, V1, V2, both_families, tagged, through},
    support::vip,
    wire::{End, TO_V1, TO_V2, Wire, get},
};
use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

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
fn heads_up_to_16_kb_are_read_whole() {
    let stage = Stage::new("long", &[tagged(100, 0)]);
    let mut kept = Wire::open(stage.lab.client(), vip(false));
    let mut turn = 0;
    let sizes =
        [600usize, 1_300, 1_448, 1_460, 1_500, 2_000, 2_920, 4_000, 6_000, 8_000, 8_190, 8_192, 8_193, 12_000, 15_000, 16_383, 16_384];
    // A proxy takes 8 KB.
    for size in sizes.into_iter().filter(|size| *size <= 8_192 || through().is_none()) {
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

/// What exceeds the limit goes where the policy says, new connections and kept ones, and is counted.
#[test]
fn longer_heads_go_where_the_policy_says() {
    if through().is_some() {
        return;
    }
    let split = |how: &str| both_families(&tagged(1, 1).with(how));
    let stage = Stage::new("toolong", &split("whenTooLong: baseline"));
    let filler = format!("a: {}", "x".repeat(17_000));
    let mut counted = 0;
    for how in ["whenTooLong: baseline", "whenTooLong: weight", "whenTooLong: 431"] {
        if !how.ends_with("baseline") {
            stage.apply(&split(how));
        }
        let mut versions = Vec::new();
        for v6 in [false, true] {
            for (turn, lines) in [[filler.as_str(), TO_V2], [TO_V2, filler.as_str()]].iter().cycle().take(12).enumerate() {
                let mut wire = Wire::open(stage.lab.client(), vip(v6));
                let kept = turn % 3 == 0;
                if kept {
                    assert!(V2.contains(&wire.get("/", &[TO_V2]).as_str()));
                }
                let answer = wire.ask(get("/", lines));
                if how.ends_with("431") {
                    assert_eq!((answer.status, wire.end(Duration::from_secs(5))), (431, End::Closed), "{answer:?}");
                    continue;
                }
                assert_eq!(answer.status, 200, "{answer:?}");
                if how.ends_with("weight") && kept {
                    assert!(V2.contains(&answer.version.as_str()), "{answer:?}");
                } else {
                    versions.push(V2.contains(&answer.version.as_str()));
                }
                // The connection goes on, where it is.
                assert_eq!(wire.get("/", &[if V2.contains(&answer.version.as_str()) { TO_V1 } else { TO_V2 }]), answer.version);
            }
            counted += if how.ends_with("weight") { 8 } else { 12 };
        }
        match how {
            "whenTooLong: baseline" => assert_eq!(versions, [false; 24]),
            // Sixteen of them: all alike once in 32,768 runs.
            "whenTooLong: weight" => assert!(versions.contains(&true) && versions.contains(&false), "{versions:?}"),
            _ => {}
        }
        assert_eq!(stage.reason("head_too_long"), counted, "{how}");
    }
    assert_eq!(stage.reason("pinned_head"), 8);
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

/// A client whose stack asks every second whether the other end is alive, and which pauses within its second head for longer than that stack waits.
#[test]
fn a_pause_within_a_head_is_no_death() {
    let stage = Stage::new("pause", &both_families(&tagged(100, 0)));
    let mut wires = [false, true].map(|v6| {
        let mut wire = Wire::open(stage.lab.client(), vip(v6));
        for (level, option, value) in [
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 1),
            (libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 2),
        ] {
            let value: libc::c_int = value;
            let size = size_of_val(&value) as libc::socklen_t;
            // SAFETY: the option is as long as said.
            let done = unsafe { libc::setsockopt(wire.stream.as_raw_fd(), level, option, (&raw const value).cast(), size) };
            assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
        }
        assert_eq!(wire.get("/", &[TO_V2]), "b3");
        wire
    });
    let request = get("/", &[TO_V1]);
    wires.iter_mut().for_each(|wire| wire.send(&request[..20]));
    std::thread::sleep(Duration::from_secs(5));
    for mut wire in wires {
        wire.send(&request[20..]);
        assert!(V1.contains(&wire.answer().expect("an answer").version.as_str()));
    }
}
