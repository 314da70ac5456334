//! `rollout status --watch` and `--wait`: lines at changes, and exit codes for CI.

use crate::agent::{Agent, Reply, ok, refused, rollout, splitter, text};
use std::{path::Path, time::Instant};

/// An agent that gives one reply after the other, the last one for ever.
fn told(socket: &Path, mut replies: Vec<Reply>) -> Agent {
    replies.reverse();
    Agent::start(socket, move |request| {
        assert_eq!(request, "GET /v1/rollouts/web");
        match if replies.len() > 1 { replies.pop() } else { None } {
            Some(reply) => reply,
            None => match replies.last() {
                Some(Reply::Json(status, body)) => Reply::Json(*status, body.clone()),
                _ => Reply::Close,
            },
        }
    })
}

#[test]
fn the_exit_code_tells_how_it_ended() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let running = || ok(rollout("running", 0, 0.1, ""));
    for (last, code, line) in [
        (ok(rollout("promoted", 2, 1.0, "every gate passed")), 0, "web: promoted, v2 at 100%, step 3 of 3: every gate passed"),
        (ok(rollout("rolled-back", 0, 0.0, "the canary fails")), 3, "web: rolled-back, v2 at 0%, step 1 of 3: the canary fails"),
        (ok(rollout("aborted", 0, 0.0, "wrong image")), 4, "web: aborted, v2 at 0%, step 1 of 3: wrong image"),
        (refused(404, "there is no service \"web\"; the policy has: none"), 6, "web: running, v2 at 10%, step 1 of 3"),
        (refused(400, "the policy of web has no `rollout`"), 6, "web: running, v2 at 10%, step 1 of 3"),
        (ok(rollout("idle", 0, 0.0, "")), 6, "web: idle"),
        (refused(500, "a table cannot be read"), 1, "web: running"),
    ] {
        let _agent = told(&socket, vec![running(), Reply::Close, last]);
        let output = splitter(&socket, &["rollout", "status", "web", "--wait=20s"]);
        let (shown, error) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{shown}{error}");
        assert!(shown.lines().next_back().unwrap_or_default().contains(line), "{shown}");
        assert!(shown.lines().next().unwrap_or_default().contains("web: running, v2 at 10%, step 1 of 3"), "{shown}");
        assert_eq!(error.lines().count(), usize::from(matches!(code, 1 | 6)), "{error}");
    }
}

#[test]
fn a_rollout_that_does_not_end_in_time_has_its_own_code() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = told(&socket, vec![ok(rollout("running", 0, 0.1, "")), ok(rollout("paused", 0, 0.1, "lunch"))]);
    let began = Instant::now();
    let output = splitter(&socket, &["rollout", "status", "web", "--wait=1500ms"]);
    assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
    assert!(began.elapsed().as_secs() < 10);
    let shown = text(&output.stdout);
    assert_eq!(shown.lines().count(), 2, "a line at each change, and no other: {shown}");
    assert!(text(&output.stderr).contains("has not ended in time; it goes on"));
}

#[test]
fn watching_needs_no_exit_code_and_json_is_a_line_each() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let replies =
        || vec![ok(rollout("running", 0, 0.1, "")), ok(rollout("running", 1, 0.5, "")), ok(rollout("rolled-back", 1, 0.0, "bad"))];
    {
        let _agent = told(&socket, replies());
        let output = splitter(&socket, &["rollout", "status", "web", "--watch"]);
        assert_eq!((output.status.code(), text(&output.stdout).lines().count()), (Some(0), 3));
    }
    let _agent = told(&socket, replies());
    let output = splitter(&socket, &["rollout", "status", "web", "--watch", "--wait", "-o", "json"]);
    assert_eq!(output.status.code(), Some(3));
    let phases: Vec<String> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["phase"].as_str().expect("a phase").to_owned())
        .collect();
    assert_eq!(phases, ["running", "running", "rolled-back"]);
}
