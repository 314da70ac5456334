//! Weight changes: by the command line under load, and what becomes of connections that are open.

use crate::support::{
    Bed, Split, client_ip, connections, no_failures, share_of_v2,
    socket::{Conversation, conversations},
    vip,
};
use splitter_lab::{load::Plan, pace::bulk};
use std::time::{Duration, Instant};

#[test]
fn weights_change_under_load_without_a_failed_request() {
    let bed = Bed::new("weights", &[Split::tcp(95, 5)]);
    let load = bed.start_load(Plan { rate: Some(2_000.0), ..Plan::http(vip(false)) });
    let mut phases = vec![(0, 0.05)];
    for (v1, v2) in [(50, 50), (0, 100), (99, 1), (100, 0)] {
        let judged = phases.last().unwrap().0;
        crate::support::eventually("enough connections", || (load.snapshot(judged).connections() >= bulk(2_000)).then_some(()));
        // What straddles the change is judged by nobody.
        load.next_phase();
        bed.cli(&["weight", "web", &format!("v1={v1}"), &format!("v2={v2}")]);
        phases.push((load.next_phase(), f64::from(v2) / 100.0));
    }
    crate::support::run_on(Duration::from_millis(1_200));
    let counts = load.stop().unwrap();
    counts.iter().for_each(|phase| no_failures("during weight changes", phase));
    for (phase, share) in phases {
        share_of_v2(&format!("phase {phase}"), &counts[phase], share);
    }
    let service = bed.service("web");
    assert_eq!(service.weights_from, "cli");
    assert_eq!(service.versions.iter().map(|version| version.weight).collect::<Vec<_>>(), [100, 0]);
}

#[test]
fn a_dry_run_changes_nothing() {
    let bed = Bed::new("dryrun", &[Split::tcp(1, 0)]);
    bed.cli(&["weight", "web", "v1=0", "v2=1", "--dry-run"]);
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 200), &["b1", "b2"]), 200);
}

/// What is in force goes to the file: nothing changes but whose word the weights are.
#[test]
fn the_policy_in_force_can_be_written_back() {
    let mut second = Split::http(1, 0).named("shop").with("canary: v2");
    second.frontends = vec![(vip(false).ip(), 8081).into()];
    let bed = Bed::new("written", &[Split::tcp(95, 5).with("onWeightChange: {drain: 90s}"), second]);
    bed.cli(&["weight", "web", "v1=60", "v2=40"]);
    let text = bed.cli(&["policy"]);
    let (shop, web) = text.split_once("---\n").expect("two documents, by name");
    assert!(shop.contains("name: shop") && shop.contains("canary: v2"), "{text}");
    for part in ["name: web", "weight: 60", "weight: 40", "onWeightChange: {drain: 90s}"] {
        assert!(web.contains(part), "{part}: {text}");
    }
    assert_eq!((bed.cli(&["policy", "web"]), bed.cli(&["policy", "s*"])), (web.into(), shop.into()));
    let refused = bed.site.cli(&["policy", "nobody"]).unwrap_err().to_string();
    assert!(refused.contains("there is no service \"nobody\""), "{refused}");
    bed.write_policy(&text);
    bed.wait("the file is read", |status| status.services.iter().all(|service| service.weights_from == "policy"));
    let weights: Vec<_> = bed.service("web").versions.iter().map(|version| version.weight).collect();
    assert_eq!((weights, bed.cli(&["policy"])), (vec![60, 40], text));
}

/// A bed with open connections to v1, after all weight went to v2, and when that was.
fn moved(name: &str, on_change: &str) -> (Bed, Vec<Conversation>, Instant) {
    let bed = Bed::new(name, &[Split::tcp(1, 0).with(&format!("onWeightChange: {on_change}"))]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 40);
    kept.iter_mut().for_each(|conversation| assert_ne!(conversation.ask().unwrap(), "b3"));
    let changed = Instant::now();
    bed.cli(&["weight", "web", "v1=0", "v2=1"]);
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 200), &["b3"]), 200, "new connections follow the weights");
    (bed, kept, changed)
}

fn all_serve(kept: &mut [Conversation]) {
    kept.iter_mut().for_each(|conversation| assert_eq!(conversation.ask().unwrap(), conversation.backend));
}

#[test]
fn keep_leaves_connections_alone() {
    let (_bed, mut kept, _) = moved("keep", "keep");
    crate::support::run_on(Duration::from_secs(2));
    all_serve(&mut kept);
}

#[test]
fn reset_ends_connections_of_the_old_version() {
    let (bed, mut kept, _) = moved("reset", "reset");
    crate::support::eventually("every old connection ends", || kept.iter_mut().all(Conversation::ended).then_some(()));
    assert!(bed.reason("weight_change_reset") >= 40);
}

#[test]
fn reset_spares_connections_that_keep_their_version() {
    let bed = Bed::new("spare", &[Split::tcp(50, 50).with("onWeightChange: reset")]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 60);
    bed.cli(&["weight", "web", "v1=25", "v2=75"]);
    crate::support::run_on(Duration::from_secs(1));
    let ended = |of_v2: bool, kept: &mut [Conversation]| -> Vec<bool> {
        kept.iter_mut().filter(|conversation| (conversation.backend == "b3") == of_v2).map(Conversation::ended).collect()
    };
    // Monotone: nobody leaves a version that grows; of the other, half of the keys go.
    assert!(!ended(true, &mut kept).contains(&true), "connections of the growing version were reset");
    let of_v1 = ended(false, &mut kept);
    assert!(of_v1.contains(&true) && of_v1.contains(&false), "{of_v1:?}");
}

#[test]
fn drain_ends_connections_after_its_time() {
    const TIME: Duration = Duration::from_secs(3);
    let (_bed, mut kept, changed) = moved("drain", "{drain: 3s}");
    all_serve(&mut kept);
    crate::support::eventually("every old connection ends", || kept.iter_mut().all(Conversation::ended).then_some(()));
    assert!(changed.elapsed() >= TIME, "drained after {:?}", changed.elapsed());
    assert!(changed.elapsed() < TIME * 3, "drained only after {:?}", changed.elapsed());
}
