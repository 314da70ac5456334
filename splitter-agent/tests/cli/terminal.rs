//! `top` on a real terminal: it is given back as it was, whatever ends the program.

use crate::{
    agent::{Agent, SPLITTER, ok, rollout, splitter, status, text},
    pty::Pty,
};
use std::{path::Path, process::Command};

/// The alternate screen, entered and left.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

fn start(pty: &Pty, socket: &Path, words: &[&str]) -> std::process::Child {
    pty.spawn(Command::new(SPLITTER).env("SPLITTER_ADMIN", socket).args(words))
}

#[test]
fn keys_move_and_only_q_quits() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = Agent::start(&socket, |_| ok(status("checkout")));
    let mut pty = Pty::open(80, 24);
    let mut top = start(&pty, &socket, &["top", "--interval", "100ms"]);
    pty.expect(ENTER);
    pty.expect("checkout");
    assert!(!pty.is_cooked());
    // Arrows, page keys and a lone Escape.
    pty.write("\u{1b}[A\u{1b}[B\u{1b}[C");
    pty.expect("BACKENDS");
    pty.write("\u{1b}[5~\u{1b}[6~\u{1b}");
    // Only what differs is drawn: a word of the list's last line.
    pty.expect("reverse");
    pty.resize(120, 40);
    // A column that 80 columns have no room for: backends that are ready.
    pty.expect("1/1");
    assert!(top.try_wait().unwrap().is_none(), "it has ended: {}", pty.seen);
    pty.write("q");
    assert_eq!(pty.wait(&mut top), Some(0));
    assert!(pty.seen.contains(LEAVE) && pty.is_cooked(), "{:?}", pty.seen);
}

#[test]
fn signals_and_control_c_give_the_terminal_back() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = Agent::start(&socket, |_| ok(status("checkout")));
    for signal in [Some(libc::SIGTERM), Some(libc::SIGHUP), Some(libc::SIGINT), None] {
        let mut pty = Pty::open(80, 24);
        let mut top = start(&pty, &socket, &["top"]);
        pty.expect(ENTER);
        pty.expect("checkout");
        match signal {
            // SAFETY: the child was started here and is not waited for yet.
            Some(signal) => assert_eq!(unsafe { libc::kill(top.id() as i32, signal) }, 0),
            None => pty.write("\u{3}"),
        }
        assert_eq!(pty.wait(&mut top), Some(0), "{signal:?}");
        assert!(pty.seen.contains(LEAVE) && pty.seen.contains("\u{1b}[?25h") && pty.is_cooked(), "{signal:?}: {:?}", pty.seen);
    }
}

#[test]
fn an_agent_that_goes_away_and_comes_back_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let agent = Agent::start(&socket, |_| ok(status("checkout")));
    let mut pty = Pty::open(100, 24);
    let mut top = start(&pty, &socket, &["top", "--interval", "100ms"]);
    pty.expect("checkout");
    drop(agent);
    pty.expect("asking again");
    let _agent = Agent::start(&socket, |_| ok(status("another")));
    pty.expect("another");
    pty.write("q");
    assert_eq!(pty.wait(&mut top), Some(0));
}

#[test]
fn without_a_terminal_one_plain_snapshot_is_printed() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = Agent::start(&socket, |_| ok(status("checkout")));
    for (words, snapshots) in [(&["top", "--interval", "100ms"][..], 1), (&["top", "--interval", "100ms", "--iterations", "3"], 3)] {
        let output = splitter(&socket, words);
        let shown = text(&output.stdout);
        assert!(output.status.success() && !shown.contains('\u{1b}'), "{shown}");
        assert_eq!(shown.matches("SERVICE").count(), snapshots, "{shown}");
    }
}

#[test]
fn a_watched_rollout_is_redrawn_and_stays_when_it_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let mut looks = 0;
    let _agent = Agent::start(&socket, move |_| {
        looks += 1;
        ok(if looks < 3 { rollout("running", 1, 0.5, "") } else { rollout("promoted", 2, 1.0, "every gate passed") })
    });
    let mut pty = Pty::open(80, 24);
    let mut watch = start(&pty, &socket, &["rollout", "status", "web", "--watch"]);
    pty.expect(ENTER);
    pty.expect("running");
    pty.expect(LEAVE);
    pty.expect("every gate passed");
    assert_eq!(pty.wait(&mut watch), Some(0));
    assert!(pty.is_cooked());
}
