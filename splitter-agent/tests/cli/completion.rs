//! Completion as bash does it, Tab pressed.

use crate::{
    agent::{Agent, Reply, SPLITTER, ok, splitter, text},
    pty::Pty,
};
use std::{
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Instant,
};

const NAMES: &str =
    r#"[{"name":"checkout","versions":["stable","v2"]},{"name":"cart","versions":["v1"]},{"name":"shop/web","versions":["v1"]}]"#;

#[test]
fn bash_completes_services_and_versions_of_the_running_agent() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let _agent = Agent::start(&socket, move |request| {
        seen.lock().unwrap().push(request.to_owned());
        ok(NAMES)
    });
    let mut pty = Pty::open(200, 50);
    let path = format!("{}:{}", Path::new(SPLITTER).parent().unwrap().display(), std::env::var("PATH").unwrap_or_default());
    let mut bash = Command::new("bash");
    bash.args(["--norc", "--noprofile", "-i"]).env("PATH", path).env("PS1", "ready> ").env("SPLITTER_ADMIN", &socket);
    let mut bash = pty.spawn(bash.env("INPUTRC", "/dev/null"));
    pty.expect("ready> ");
    pty.write("bind 'set enable-bracketed-paste off'; source <(splitter completions bash); echo so\"urced\"\n");
    pty.expect("sourced");
    pty.expect("ready> ");
    // Each line is completed, shown by echo, and left.
    for (typed, completed) in [
        ("splitter weight che\t", "splitter weight checkout"),
        ("splitter weight checkout st\t", "splitter weight checkout stable="),
        ("splitter weight checkout v2=5 sta\t", "splitter weight checkout v2=5 stable="),
        ("splitter explain shop\t", "splitter explain shop/web"),
        ("splitter flows car\t", "splitter flows cart"),
        ("splitter status cart checko\t", "splitter status cart checkout"),
        ("splitter flows checkout --version stab\t", "splitter flows checkout --version stable"),
        ("splitter rollout status checko\t", "splitter rollout status checkout"),
        ("splitter rollout ab\t", "splitter rollout abort"),
        ("splitter rollout status --wat\t", "splitter rollout status --watch"),
    ] {
        pty.write(typed);
        pty.expect(completed);
        // Ctrl-A, a comment sign, Enter: nothing is run.
        pty.write("\u{1}#\n");
        pty.expect("ready> ");
    }
    pty.write("exit\n");
    pty.wait(&mut bash);
    assert!(asked.lock().unwrap().iter().any(|request| request == "GET /v1/services?prefix=che"), "{:?}", asked.lock().unwrap());
}

/// What the script would run for a line.
fn complete(socket: &Path, words: &[&str]) -> String {
    let mut command = Command::new(SPLITTER);
    command.env("SPLITTER_ADMIN", socket).env("SPLITTER_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    command.env("_CLAP_IFS", "\n").arg("--").args(words);
    let output = command.output().expect("splitter runs");
    assert!(output.stderr.is_empty(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn without_an_agent_completion_is_silent_and_quick() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    assert_eq!(complete(&socket, &["splitter", "weight", "c"]), "");
    for reply in [|| Reply::Noise, || Reply::Close, || Reply::Half, || Reply::Hang, || ok("[1]")] {
        let _agent = Agent::start(&socket, move |_| reply());
        let began = Instant::now();
        assert_eq!(complete(&socket, &["splitter", "weight", "c"]), "");
        // 300 ms, and what a loaded machine needs to start a program.
        assert!(began.elapsed().as_millis() < 2_500, "{:?}", began.elapsed());
    }
    assert!(complete(&socket, &["splitter", "rol"]).contains("rollout"), "words of the grammar need no agent");
}

#[test]
fn names_cannot_command_the_terminal_that_completes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("admin.sock");
    let _agent = Agent::start(&socket, |_| ok(r#"[{"name":"c\u001b[2J","versions":[]}]"#));
    let shown = complete(&socket, &["splitter", "weight", "c"]);
    assert!(!shown.contains('\u{1b}') && shown.contains("c\\x1b[2J"), "{shown:?}");
}

#[test]
fn every_shell_has_a_script() {
    for shell in ["bash", "zsh", "fish"] {
        let output = splitter(Path::new("/nonexistent"), &["completions", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success() && script.contains("SPLITTER_COMPLETE") && script.contains("splitter"), "{shell}: {script}");
    }
}
