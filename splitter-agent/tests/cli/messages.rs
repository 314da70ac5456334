//! What is said when something is wrong: one line, each thing once, and what to do. And what must never reach a terminal.

use crate::agent::{Agent, Reply, SPLITTER, ok, refused, rollout, splitter, status, text};
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::{Command, Output},
};

/// Every command that asks the agent.
const COMMANDS: [&[&str]; 15] = [
    &["status"],
    &["status", "web"],
    &["weight", "web", "v1=1"],
    &["explain", "web"],
    &["flows"],
    &["top", "--iterations", "1"],
    &["rollout", "status"],
    &["rollout", "status", "web"],
    &["rollout", "status", "web", "--watch"],
    &["rollout", "start", "web"],
    &["rollout", "pause", "web"],
    &["rollout", "resume", "web"],
    &["rollout", "promote", "web"],
    &["rollout", "abort", "web"],
    &["rollout", "history", "web"],
];

/// One line, nothing in it twice, exit code 1, and the part that says what to do.
fn fails(output: &Output, what: &str, remedy: &str) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{what}: {error}");
    let line = error.strip_prefix("splitter: ").unwrap_or_else(|| panic!("{what}: {error:?}")).trim_end();
    assert!(!line.contains('\n'), "{what}: {error:?}");
    assert!(line.contains(remedy), "{what}: {line:?} does not say {remedy:?}");
    let parts: Vec<&str> = line.split([':', ';', ',']).map(str::trim).filter(|part| part.len() > 6).collect();
    for (at, part) in parts.iter().enumerate() {
        assert!(!parts[..at].iter().any(|earlier| earlier.contains(part) || part.contains(earlier)), "{what}: {part:?} twice in {line:?}");
    }
}

#[test]
fn a_missing_agent_and_a_wrong_socket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    for words in COMMANDS {
        for socket in [Path::new("/nonexistent/admin.sock"), &file, folder.path()] {
            fails(
                &splitter(socket, words),
                &format!("{words:?} {}", socket.display()),
                "--admin / SPLITTER_ADMIN must name another socket",
            );
        }
        let long = folder.path().join("x".repeat(200));
        fails(&splitter(&long, words), &format!("{words:?}"), "is that its admin socket?");
    }
}

#[test]
fn an_agent_that_ends_or_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    for (reply, remedy) in [
        (0, "closed the connection: it may be ending, look at its log and try again"),
        (1, "broke off in its answer: it may be ending"),
        (2, "does not speak HTTP"),
        (3, "the agent is of another version"),
        (4, "the agent is of another version"),
    ] {
        let _agent = Agent::start(&socket, move |_| match reply {
            0 => Reply::Close,
            1 => Reply::Half,
            2 => Reply::Noise,
            3 => ok("{\"unexpected\": 1}"),
            _ => Reply::Json(418, "short and stout".into()),
        });
        for words in COMMANDS {
            fails(&splitter(&socket, words), &format!("{words:?} {reply}"), remedy);
        }
    }
}

#[test]
fn refusals_are_told_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = Agent::start(&socket, |_| refused(404, "there is no service \"web\"; the node runs: checkout"));
    for words in COMMANDS {
        fails(&splitter(&socket, words), &format!("{words:?}"), "the node runs: checkout");
    }
}

#[test]
fn no_permission_names_who_may() {
    // SAFETY: no preconditions.
    assert_eq!(unsafe { libc::geteuid() }, 0, "this test needs root: it runs the command as somebody else");
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (socket, program) = (folder.path().join("admin.sock"), folder.path().join("splitter"));
    // By a process of its own: a test that forks while this one holds the copy open for writing would keep it from being run (ETXTBSY).
    assert!(Command::new("cp").arg(SPLITTER).arg(&program).status().unwrap().success());
    let _agent = Agent::start(&socket, |_| ok(status("web")));
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o660)).unwrap();
    for words in COMMANDS {
        let output = Command::new(&program).env("SPLITTER_ADMIN", &socket).args(words).uid(65_534).gid(65_534).output().unwrap();
        fails(&output, &format!("{words:?}"), "use root or a member of the socket's group");
    }
}

#[test]
fn wrong_arguments_are_usage_errors() {
    for (words, part) in [
        (&["stat"][..], "a similar subcommand exists: 'status'"),
        (&["status", "--sort", "size"], "[possible values: name, flows"),
        (&["flows", "--client", "web"], "write for example 10.1.7.0/24"),
        (&["flows", "--backend", "web"], "10.2.1.2:8080"),
        (&["flows", "--limit", "0"], "write a whole number from 1"),
        (&["flows", "--state", "open"], "half-open"),
        (&["weight", "web"], "<VERSION=WEIGHT>"),
        (&["weight", "web", "v1=5%"], "without %: write v1=5"),
        (&["weight", "web", "v1"], "write VERSION=WEIGHT"),
        (&["explain", "web", "--client", "me"], "write an address"),
        (&["top", "--interval", "1ms"], "the shortest interval is 100ms"),
        (&["rollout", "status", "--wait=5m"], "<SERVICE>"),
        (&["rollout", "status", "web", "--wait=soon"], "duration"),
        (&["completions", "tcsh"], "[possible values: bash"),
    ] {
        let output = splitter(Path::new("/nonexistent"), words);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {error}");
        assert!(error.contains(part) && error.matches("error:").count() == 1, "{words:?}: {error}");
        assert!(error.contains("For more information, try '--help'"), "{words:?}: {error}");
    }
}

#[test]
fn help_is_told_for_every_command() {
    for words in [&["help", "weight"][..], &["help", "rollout", "status"], &["weight", "--help"]] {
        let output = splitter(Path::new("/nonexistent"), words);
        let help = text(&output.stdout);
        assert!(output.status.success() && help.contains("Usage: splitter ") && help.contains("Examples:"), "{words:?}: {help}");
    }
    assert!(text(&splitter(Path::new("/nonexistent"), &["help"]).stdout).contains("Run a node:"));
}

/// Nothing that a terminal obeys, and what was there is shown.
fn is_harmless(what: &str, shown: &str) {
    assert!(!shown.chars().any(|c| c.is_control() && c != '\n'), "{what}: {shown:?}");
    assert!(shown.contains("\\x1b[2J"), "{what}: {shown:?}");
}

const ESCAPE: &str = "e\u{1b}[2J\u{9b}31m\u{7}\r\nforged";

#[test]
fn what_the_agent_says_cannot_command_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    // The output of a gate's command is part of a finding's text and of the reason.
    let finding = serde_json::json!([{"gate": ESCAPE, "answer": "fail", "canary": 1.0, "baseline": null, "counts": null, "bound": null,
        "limit": null, "p_value": null, "text": format!("`smoke` says {ESCAPE}")}]);
    let mut judged: serde_json::Value = serde_json::from_str(&rollout("rolled-back", 0, 0.0, ESCAPE)).unwrap();
    judged["findings"] = finding;
    let flow = serde_json::json!([{"service": ESCAPE, "version": "v1", "protocol": "tcp", "client": "10.1.0.2:1", "frontend": "10.9.9.9:80",
        "backend": "10.2.1.2:80", "state": "established", "idle": 1.0, "snat": null}]);
    let explanation = serde_json::json!({"service": "web", "version": ESCAPE, "backend": null, "decided_by": "rule", "reason": ESCAPE,
        "rule": format!("0: header X = {ESCAPE}"), "bucket": null, "shares": {ESCAPE: 1.0}});
    let change = serde_json::json!({"service": ESCAPE, "before": {ESCAPE: 1}, "after": {ESCAPE: 2}, "applied": true, "generation": 1,
        "write_us": 1.0, "flows_to_end": 0});
    let _agent = Agent::start(&socket, move |request| match request.split(' ').nth(1).unwrap_or_default() {
        "/v1/rollouts/bad" => refused(404, ESCAPE),
        "/v1/rollouts" => ok(serde_json::json!([judged])),
        "/v1/flows" => ok(&flow),
        "/v1/explain" => ok(&explanation),
        "/v1/services/web/weights" => ok(&change),
        target if target.starts_with("/v1/rollouts/") => ok(&judged),
        _ => ok(status(ESCAPE)),
    });
    let commands: [&[&str]; 9] = [
        &["status"],
        &["flows"],
        &["explain", "web"],
        &["weight", "web", "v1=2"],
        &["rollout", "status"],
        &["rollout", "status", "web"],
        &["rollout", "status", "web", "--watch"],
        &["rollout", "abort", "web"],
        &["top", "--interval", "100ms"],
    ];
    for words in commands {
        let output = splitter(&socket, words);
        is_harmless(&format!("{words:?}"), &(text(&output.stdout) + &text(&output.stderr)));
        if words[0] == "top" || words.contains(&"--watch") {
            continue;
        }
        let json = text(&splitter(&socket, &[words, &["-o", "json"]].concat()).stdout);
        assert!(!json.chars().any(|c| c.is_control() && c != '\n'), "{words:?}: {json:?}");
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert!(holds(&value, ESCAPE), "{words:?}: the value is not what the agent says: {json}");
    }
    is_harmless("a refusal", &text(&splitter(&socket, &["rollout", "status", "bad"]).stderr));
}

/// Whether a text is somewhere in a value.
fn holds(value: &serde_json::Value, text: &str) -> bool {
    match value {
        serde_json::Value::String(string) => string.contains(text),
        serde_json::Value::Array(values) => values.iter().any(|value| holds(value, text)),
        serde_json::Value::Object(fields) => fields.iter().any(|(key, value)| key.contains(text) || holds(value, text)),
        _ => false,
    }
}

#[test]
fn a_policy_cannot_command_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.yaml");
    // Names and texts of every kind that a finding repeats.
    for line in ["metadata: {name: \"a\\e[2Jb\"}", "metadata: {name: a}\n\"x\\e[2J\": 1", "metadata: {name: a}\nspec: {mode: \"\\e[2J\"}"] {
        fs::write(&policy, format!("apiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\n{line}\n")).unwrap();
        let output = splitter(Path::new("/nonexistent"), &["check", policy.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        is_harmless(line, &text(&output.stdout));
    }
    let named = folder.path().join("e\u{1b}[2J.yaml");
    fs::write(&named, "kind: x\n").unwrap();
    is_harmless("a file's name", &text(&splitter(Path::new("/nonexistent"), &["check", named.to_str().unwrap()]).stdout));
    is_harmless("doctor", &text(&splitter(Path::new("/nonexistent"), &["doctor", "--policy", named.to_str().unwrap()]).stdout));
}
