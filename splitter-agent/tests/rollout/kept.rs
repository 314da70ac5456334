//! What outlives the agent, and what a disk that is full or gone does to it. And drills that are ended early.

use crate::{
    judged::{FAST, bed, events, history, load, phase, status, weights},
    support::{Bed, SPLITTER, Split, document, eventually, run_on},
};
use splitter_lab::lab::Options;
use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The text at a path of the metrics listener.
fn get(bed: &Bed, path: &str) -> String {
    let fetch = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(splitter_lab::agent::METRICS)?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    bed.lab.node.run(fetch).expect("a namespace").expect("an answer")
}

/// A small disk of its own for the agent's state; taken away when the test ends, however it does.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Disk {
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=512k", "splitter-test"]).arg(at).status().expect("mount");
        assert!(done.success(), "a tmpfs at {}", at.display());
        Disk(at.into())
    }

    /// Leaves not a byte.
    fn fill(&self) {
        let mut file = fs::File::create(self.0.join("ballast")).expect("a file");
        while file.write_all(&[0; 4096]).is_ok() {}
    }

    fn make_room(&self) {
        fs::remove_file(self.0.join("ballast")).expect("the ballast");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

const SLOW: &str = "rollout: {canary: v2, steps: [10%, 100%], dwell: 10m, warmUp: 0s, coolDown: 0s, gates: {errorRate: {max: 10%}}}";

#[test]
fn an_abort_with_a_full_disk_is_an_error_and_is_not_undone() {
    let mut bed = Bed::prepare("full", Options::default(), &[Split::tcp(100, 0).with(SLOW)]);
    let disk = Disk::mount(&bed.site.dir.join("state"));
    bed.start();
    bed.cli(&["rollout", "start", "web"]);
    assert_eq!(weights(&bed), [0.9, 0.1]);
    assert!(get(&bed, "/metrics").contains("\nsplitter_state_writable 1\n"));
    disk.fill();
    let refused = bed.site.cli(&["rollout", "abort", "web"]).expect_err("exit code 1").to_string();
    assert!(refused.contains("it is done (web is aborted, v2 at 0%), but not on disk"), "{refused}");
    assert!(refused.contains("No space left"), "{refused}");
    // The rollback itself did happen.
    assert_eq!((weights(&bed), status(&bed)["phase"].as_str()), (vec![1.0, 0.0], Some("aborted")));
    assert!(get(&bed, "/metrics").contains("\nsplitter_state_writable 0\n"));
    let ready = get(&bed, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("state cannot be written"), "{ready}");
    assert!(bed.cli(&["status"]).contains("cannot be written"));
    // So is a weight by hand.
    let refused = bed.site.cli(&["weight", "web", "v1=1", "v2=0"]).expect_err("exit code 1").to_string();
    assert!(refused.contains("are set, but not on disk"), "{refused}");
    // The file still says 10%: the next agent does not believe it.
    bed.kill_agent();
    bed.start();
    for _ in 0..20 {
        assert_eq!(weights(&bed), [1.0, 0.0]);
        run_on(Duration::from_millis(50));
    }
    let met = status(&bed);
    assert!(met["phase"] == "paused" && met["reason"].as_str().unwrap().contains("the lower one stands"), "{met:#}");
    // With room again everything is saved by itself, and words are followed.
    disk.make_room();
    eventually("the state is saved", || get(&bed, "/metrics").contains("\nsplitter_state_writable 1\n").then_some(()));
    bed.cli(&["rollout", "abort", "web"]);
    bed.kill_agent();
    bed.start();
    assert_eq!((weights(&bed), status(&bed)["phase"].as_str()), (vec![1.0, 0.0], Some("aborted")));
    drop(bed.agent.take());
    drop(disk);
}

/// An ended rollout that could not be saved is saved when there is room, with nobody saying anything.
#[test]
fn what_could_not_be_saved_is_tried_again() {
    let mut bed = Bed::prepare("again", Options::default(), &[Split::tcp(100, 0).with(SLOW)]);
    let disk = Disk::mount(&bed.site.dir.join("state"));
    bed.start();
    bed.cli(&["rollout", "start", "web"]);
    disk.fill();
    bed.site.cli(&["rollout", "abort", "web"]).expect_err("exit code 1");
    let file = disk.0.join("rollouts/web.json");
    assert!(fs::read_to_string(&file).unwrap().contains("\"running\""));
    disk.make_room();
    eventually("it is saved", || fs::read_to_string(&file).ok().filter(|text| text.contains("\"aborted\"")));
    drop(bed.agent.take());
    drop(disk);
}

#[test]
fn an_undo_works_after_a_restart() {
    let mut bed = bed("undo", FAST);
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "promoted");
    assert_eq!(weights(&bed), [0.0, 1.0]);
    bed.kill_agent();
    bed.start();
    assert!(status(&bed)["watched_for"].as_f64().unwrap() > 500.0, "still watched");
    // What a start would do is said before, and nothing is done.
    let said = bed.cli(&["rollout", "start", "web", "--dry-run"]);
    assert!(said.contains("would be running, v2 at 10%") && said.contains("v1 0% -> 90%, v2 100% -> 10%"), "{said}");
    let refused = bed.site.cli(&["rollout", "abort", "web"]).unwrap_err().to_string();
    assert!(refused.contains("`splitter rollout undo web` takes v2 back"), "{refused}");
    assert_eq!((weights(&bed), status(&bed)["phase"].as_str()), (vec![0.0, 1.0], Some("promoted")));
    let said = bed.cli(&["rollout", "undo", "web", "--reason", "slow at night"]);
    assert!(said.contains("v1 0% -> 100%, v2 100% -> 0%"), "{said}");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    assert_eq!(events(&bed).last().map(String::as_str), Some("undone"));
    drop(load);
}

#[test]
fn a_promoted_canary_that_dies_is_taken_back() {
    let mut bed = bed("after", FAST);
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "promoted");
    bed.stop_server(3);
    phase(&bed, "rolled-back");
    assert_eq!(weights(&bed), [1.0, 0.0]);
    let last = history(&bed).pop().unwrap();
    assert!(last["by"].as_str().unwrap().starts_with("gate errorRate"), "{last:#}");
    drop(load);
}

#[test]
fn lost_state_undoes_no_promotion() {
    let mut bed = bed("lost", FAST);
    let load = load(&bed);
    bed.cli(&["rollout", "start", "web"]);
    phase(&bed, "promoted");
    let state = bed.site.dir.join("state");
    bed.kill_agent();
    fs::remove_dir_all(&state).unwrap();
    bed.start();
    run_on(Duration::from_millis(300));
    let service = bed.service("web");
    assert_eq!((weights(&bed), service.weights_from.as_str()), (vec![0.0, 1.0], "kernel"));
    let shown = bed.cli(&["status"]);
    assert!(shown.contains("web: the kernel ran v1=0 v2=1 when this agent came and still does; the policy says v1=100 v2=0"), "{shown}");
    // By hand it is somebody's word again.
    bed.cli(&["weight", "web", "v1=1", "v2=3"]);
    assert_eq!(bed.service("web").weights_from, "cli");
    assert!(bed.cli(&["status", "web"]).contains("weights from `splitter weight`"));
    // Files are private, and a directory that goes away under the agent is made anew with all that is known.
    bed.cli(&["rollout", "start", "web"]);
    fs::remove_dir_all(&state).unwrap();
    for name in ["rollouts/web.json", "runtime.json", "policy.json"] {
        let path = state.join(name);
        let mode = eventually("the state is written anew", || Some(fs::metadata(&path).ok()?.permissions().mode() & 0o777));
        assert_eq!(mode, 0o600, "{name}");
    }
    bed.cli(&["rollout", "pause", "web"]);
    assert!(fs::read_to_string(bed.site.dir.join("agent.log")).unwrap().contains("the state directory was gone"));
    drop(load);
}

#[test]
fn a_second_edit_of_the_policy_is_the_share_that_is_judged() {
    let bed = bed("edits", SLOW);
    bed.cli(&["rollout", "start", "web"]);
    for (v1, v2, share) in [(50, 50, 0.5), (80, 20, 0.2)] {
        bed.apply(&[Split::tcp(v1, v2).with(SLOW)]);
        eventually("the new share is shown", || (status(&bed)["share"].as_f64() == Some(share)).then_some(()));
        assert_eq!((weights(&bed)[1], status(&bed)["phase"].as_str()), (share, Some("paused")));
    }
    assert_eq!(events(&bed), ["started", "weights", "paused", "weights"]);
}

/// What somebody wrote into the policy while no agent ran counts, also where a rollout has ended with other weights.
#[test]
fn a_policy_that_was_changed_meanwhile_counts() {
    let mut bed = bed("meanwhile", SLOW);
    bed.cli(&["rollout", "start", "web"]);
    bed.cli(&["rollout", "abort", "web"]);
    assert_eq!(weights(&bed), [1.0, 0.0]);
    bed.kill_agent();
    bed.write_policy(&document(&bed.lab, &[Split::tcp(60, 40).with(SLOW)]));
    bed.start();
    assert_eq!((weights(&bed), bed.service("web").weights_from.as_str()), (vec![0.6, 0.4], "policy"));
}

/// `splitter rollout drill` beside the test; its error text when it ended.
fn drill(bed: &Bed, folder: &Path) -> Child {
    let touch = |name: &str| format!("touch {}", folder.join(name).display());
    let words = ["rollout", "drill", "web", "--inject", &touch("injected"), "--restore", &touch("restored"), "--patience", "50s"];
    let child =
        Command::new(SPLITTER).env("SPLITTER_ADMIN", bed.site.socket()).args(words).stderr(Stdio::piped()).spawn().expect("a drill");
    eventually("the fault is there", || folder.join("injected").exists().then_some(()));
    child
}

fn end(mut child: Child) -> (Option<i32>, String) {
    let began = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if began.elapsed() > Duration::from_secs(10) {
            let _ = child.kill();
            panic!("the drill goes on");
        }
        run_on(Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("a child");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_drill_that_is_ended_early_takes_the_fault_away() {
    let mut bed = bed("early", SLOW);
    bed.cli(&["rollout", "start", "web"]);
    for (signal, name) in [(libc::SIGINT, "SIGINT"), (libc::SIGTERM, "SIGTERM"), (libc::SIGHUP, "SIGHUP")] {
        let folder = tempfile::tempdir().unwrap();
        let child = drill(&bed, folder.path());
        // SAFETY: no pointers; the child is ours and was not waited for yet.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        let (code, text) = end(child);
        assert!(code == Some(1) && text.contains(&format!("the drill was ended by {name}")), "{code:?} {text}");
        assert!(folder.path().join("restored").exists(), "{name}");
    }
    // The agent dies.
    let folder = tempfile::tempdir().unwrap();
    let child = drill(&bed, folder.path());
    bed.kill_agent();
    let (code, text) = end(child);
    let named = text.contains("no agent answers") || text.contains("closed the connection");
    assert!(code == Some(1) && named, "{code:?} {text}");
    assert!(folder.path().join("restored").exists());
}
