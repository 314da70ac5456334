//! The agent dies or is replaced: the kernel goes on, the next agent takes over what is there.

use crate::support::{
    Bed, Split, client_ip, connections, copy_program, document, eventually,
    kernel::{held, programs_alive},
    no_failures, run_on, share_of_v2,
    socket::{Conversation, conversations},
    vip,
};
use splitter_api::Version;
use splitter_lab::{load::Plan, pace::rate};
use std::{
    collections::BTreeSet,
    env, fs,
    time::{Duration, Instant},
};

/// How long nobody looks after the kernel.
pub(super) fn absence() -> Duration {
    Duration::from_secs(if env::var_os("SPLITTER_TEST_LONG").is_some() { 30 } else { 5 })
}

/// What must not change from one agent to the next: names and numbers of versions and backends.
fn identities(versions: &[Version]) -> Vec<(String, u32)> {
    let backends = versions.iter().flat_map(|version| &version.backends).map(|backend| (backend.address.clone(), backend.id));
    versions.iter().map(|version| (version.name.clone(), version.id)).chain(backends).collect()
}

/// SIGKILL under load, `away` without an agent, then `next` starts one.
pub(super) fn survives(bed: &mut Bed, away: Duration, next: impl FnOnce(&mut Bed)) {
    let client = client_ip(bed, false);
    let mut kept = conversations(bed.lab.client(), client, vip(false), 20_000, 50);
    let load = bed.start_load(Plan { rate: Some(500.0), ..Plan::http(vip(false)) });
    // A weight that only the command line knows survives too.
    bed.cli(&["weight", "web", "v1=70", "v2=30"]);
    run_on(Duration::from_secs(1));
    let before = bed.service("web");
    bed.kill_agent();
    run_on(away);
    all_serve(&mut kept);
    next(bed);
    bed.start();
    let after = bed.service("web");
    run_on(Duration::from_secs(1));
    let last = load.next_phase();
    run_on(Duration::from_secs(2));
    let phases = load.stop().unwrap();
    phases.iter().for_each(|phase| no_failures("while the agent was away", phase));
    share_of_v2("after the agent's return", &phases[last], 0.3);
    all_serve(&mut kept);

    assert!(bed.status().agent.adopted);
    assert_eq!(after.weights_from, "cli");
    assert_eq!(identities(&before.versions), identities(&after.versions));
    let before_all: u64 = before.versions.iter().map(|version| version.connections).sum();
    let after_all: u64 = after.versions.iter().map(|version| version.connections).sum();
    assert!(after_all >= before_all + (away.as_secs_f64() * rate(400.0)) as u64, "{before_all} connections before, {after_all} after");
    let total: u64 = phases.iter().map(|phase| connections(phase, &["b1", "b2", "b3"])).sum();
    let counted: u64 = bed.service("web").versions.iter().map(|version| version.connections).sum();
    assert_eq!(counted, total + kept.len() as u64, "connections lost or counted twice");
}

pub(super) fn all_serve(kept: &mut [Conversation]) {
    kept.iter_mut().for_each(|conversation| assert_eq!(conversation.ask().expect("an old connection"), conversation.backend));
}

fn programs(bed: &Bed) -> BTreeSet<u32> {
    held(bed.agent.as_ref().expect("a running agent").pid(), "prog_id")
}

#[test]
fn a_killed_agent_is_missed_by_nobody() {
    let mut bed = Bed::new("killed", &[Split::tcp(90, 10)]);
    let away = absence();
    survives(&mut bed, away, |_| {});
}

#[test]
fn an_upgrade_replaces_the_programs_in_place() {
    let mut bed = Bed::new("upgrade", &[Split::tcp(90, 10)]);
    let before = programs(&bed);
    survives(&mut bed, Duration::from_secs(1), |bed| {
        let copy = bed.site.dir.join("splitter-new");
        copy_program(&copy);
        bed.site.splitter = copy;
    });
    let after = programs(&bed);
    assert!(!after.is_empty() && after.is_disjoint(&before), "{before:?} {after:?}");
    eventually("the old programs go", || programs_alive().is_disjoint(&before).then_some(()));
    assert!(after.is_subset(&programs_alive()));
}

/// A policy that changed while nobody was there does with open connections what it says, whether or not the node's own notes are there: the
/// kernel knows the weights that it runs.
fn moved_meanwhile(name: &str, on_change: &str, forgetful: bool) -> (Bed, Vec<Conversation>, Instant) {
    let split = |v1, v2| Split::tcp(v1, v2).with(&format!("onWeightChange: {on_change}"));
    let mut bed = Bed::new(name, &[split(1, 0)]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 40);
    kept.iter_mut().for_each(|conversation| assert_ne!(conversation.ask().unwrap(), "b3"));
    bed.kill_agent();
    if forgetful {
        fs::remove_dir_all(bed.site.dir.join("state")).unwrap();
    }
    bed.write_policy(&document(&bed.lab, &[split(0, 1)]));
    all_serve(&mut kept);
    let back = Instant::now();
    bed.start();
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 200), &["b3"]), 200, "new connections follow the weights");
    (bed, kept, back)
}

fn all_end(kept: &mut [Conversation]) {
    eventually("every old connection ends", || kept.iter_mut().all(Conversation::ended).then_some(()));
}

#[test]
fn a_policy_that_changed_meanwhile_resets() {
    for (name, forgetful) in [("meanwhile", false), ("forgetful", true)] {
        let (bed, mut kept, _) = moved_meanwhile(name, "reset", forgetful);
        all_end(&mut kept);
        assert!(bed.reason("weight_change_reset") >= 40);
    }
}

#[test]
fn a_policy_that_changed_meanwhile_drains() {
    const TIME: Duration = Duration::from_secs(4);
    let (_bed, mut kept, back) = moved_meanwhile("drained", "{drain: 4s}", true);
    all_serve(&mut kept);
    all_end(&mut kept);
    assert!(back.elapsed() >= TIME, "drained after {:?}", back.elapsed());
}

#[test]
fn a_policy_that_did_not_change_meanwhile_resets_nothing() {
    let mut bed = Bed::new("unmoved", &[Split::tcp(50, 50).with("onWeightChange: reset")]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 40);
    bed.kill_agent();
    fs::remove_dir_all(bed.site.dir.join("state")).unwrap();
    bed.start();
    run_on(Duration::from_secs(2));
    all_serve(&mut kept);
}

/// SIGTERM is no different for the traffic.
#[test]
fn a_stopped_agent_leaves_the_kernel_running() {
    let mut bed = Bed::new("stopped", &[Split::tcp(50, 50)]);
    let status = bed.agent.take().unwrap().stop(Duration::from_secs(5)).expect("it ends");
    assert!(status.success(), "{status}");
    share_of_v2("without an agent", &bed.clean(Plan::http(vip(false)), 500), 0.5);
}
