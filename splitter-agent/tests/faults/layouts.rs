//! An upgrade to a program that reads some maps otherwise. The test gives the pins of these maps the names that other layouts have: what the next agent finds is
//! then none of its own, and all that it must not read.

use super::agent::{absence, all_serve, survives};
use crate::support::{
    Bed, Split, client_ip, eventually,
    kernel::{maps_alive, relabel},
    no_failures, run_on,
    socket::conversations,
    vip,
};
use aya::maps::MapInfo;
use splitter_lab::load::Plan;
use std::{
    fs,
    time::{Duration, Instant},
};

/// Maps that the agent fills.
const FILLED: [&str; 11] =
    ["CONFIG", "FILTER", "FRONTENDS", "SERVICES", "MAGLEV", "RULES", "HTTP_RULES", "BACKENDS", "IFACES", "VIPS", "OWNED"];

/// Names of the pins, but those of programs' tables, of which an interface that is late keeps some.
fn pins(bed: &Bed) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(&bed.site.pins).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.retain(|name| !name.contains("_CALLS"));
    names.sort();
    names
}

fn id(bed: &Bed, map: &str) -> u32 {
    MapInfo::from_pin(bed.site.pins.join(map)).expect("a pinned map").id()
}

fn log(bed: &Bed) -> String {
    fs::read_to_string(bed.site.dir.join("agent.log")).unwrap_or_default()
}

/// Starts an agent that is to end by itself; what it says.
fn refused(bed: &Bed) -> String {
    let before = log(bed).len();
    let agent = bed.site.spawn().unwrap();
    let begin = Instant::now();
    // It verifies its programs first, which takes a while where much else runs.
    while agent.exited().is_none_or(|status| status.success()) {
        assert!(begin.elapsed() < Duration::from_secs(90), "the agent does not end: {}", log(bed));
        run_on(Duration::from_millis(50));
    }
    log(bed)[before..].to_owned()
}

/// An upgrade under load, of these maps.
fn upgraded(name: &str, split: Split, maps: &[&str]) {
    let mut bed = Bed::new(name, &[split]);
    let names = pins(&bed);
    let (old, filled) = (id(&bed, maps[0]), FILLED.map(|map| id(&bed, map)));
    let flows = id(&bed, "TCP4");
    survives(&mut bed, Duration::from_secs(1), |bed| relabel(&bed.site.pins, maps));
    assert_eq!(pins(&bed), names, "each map has its name, and nothing else is left");
    assert_eq!(id(&bed, "TCP4"), flows);
    assert!(FILLED.iter().zip(filled).all(|(map, old)| id(&bed, map) != old), "one that stays would name entries that are not there");
    eventually("what nobody uses goes", || (!maps_alive().contains(&old)).then_some(()));
    let told = log(&bed);
    assert!(maps.iter().all(|map| told.contains(map)), "{told}");
}

#[test]
fn the_policys_maps_are_made_anew_and_nobody_is_cut() {
    upgraded("refilled", Split::tcp(90, 10), &FILLED);
}

/// Its fellows name its entries.
#[test]
fn one_map_of_the_policy_takes_its_fellows_along() {
    upgraded("fellows", Split::tcp(90, 10), &["MAGLEV"]);
}

#[test]
fn counts_begin_anew_and_nobody_is_cut() {
    let mut bed = Bed::new("recounted", &[Split::tcp(90, 10)]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 50);
    bed.clean(Plan::http(vip(false)), 300);
    let load = bed.start_load(Plan { rate: Some(300.0), ..Plan::http(vip(false)) });
    let count = |bed: &Bed| bed.service("web").versions.iter().map(|version| version.connections).sum::<u64>();
    let before = count(&bed);
    let services = id(&bed, "SERVICES");
    bed.kill_agent();
    relabel(&bed.site.pins, &["COUNTERS", "HISTOGRAMS"]);
    bed.start();
    let after = count(&bed);
    run_on(Duration::from_millis(500));
    load.stop().unwrap().iter().for_each(|phase| no_failures("while counts began anew", phase));
    all_serve(&mut kept);
    assert!(before >= 350 && after < before && count(&bed) > after, "{before} connections, then {after}");
    assert_eq!(id(&bed, "SERVICES"), services, "these are as they were");
}

/// Nothing is touched: the programs go on, and the agent that made the maps comes back to them.
#[test]
fn maps_of_connections_are_refused_with_both_layouts() {
    let mut bed = Bed::new("foreign", &[Split::tcp(90, 10)]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 50);
    let load = bed.start_load(Plan { rate: Some(300.0), ..Plan::http(vip(false)) });
    bed.kill_agent();
    relabel(&bed.site.pins, &["TCP4", "SPLICED6", "SERVICES"]);
    let names = pins(&bed);
    let told = refused(&bed);
    for part in [
        "TCP4 (layout 9, this program has 1)",
        "SPLICED6 (layout 9, this program has 1)",
        "traffic goes on as before",
        "`splitter detach`",
        "live flows are cut",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("SERVICES"), "{told}");
    assert_eq!(pins(&bed), names);
    all_serve(&mut kept);
    for map in ["TCP4", "SPLICED6", "SERVICES"] {
        fs::rename(bed.site.pins.join(format!("{map}-9")), bed.site.pins.join(map)).unwrap();
    }
    bed.start();
    assert!(bed.status().agent.adopted);
    all_serve(&mut kept);
    load.stop().unwrap().iter().for_each(|phase| no_failures("while an agent was refused", phase));
}

/// Empty maps must not get programs: who has no policy ends, and what runs stays.
#[test]
fn nothing_is_made_anew_without_a_policy_to_fill_it() {
    let mut bed = Bed::new("unfilled", &[Split::tcp(90, 10)]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 50);
    let load = bed.start_load(Plan { rate: Some(300.0), ..Plan::http(vip(false)) });
    bed.kill_agent();
    relabel(&bed.site.pins, &["SERVICES"]);
    let (names, policy) = (pins(&bed), fs::read_to_string(bed.site.policy()).unwrap());
    fs::remove_dir_all(bed.site.dir.join("state")).unwrap();
    fs::write(bed.site.policy(), "kind: [").unwrap();
    let told = refused(&bed);
    assert!(told.contains("no policy could be applied to them") && told.contains("traffic goes on as before"), "{told}");
    assert_eq!(pins(&bed), names);
    all_serve(&mut kept);
    fs::write(bed.site.policy(), policy).unwrap();
    bed.start();
    run_on(Duration::from_millis(300));
    all_serve(&mut kept);
    load.stop().unwrap().iter().for_each(|phase| no_failures("while no policy was there", phase));
}

/// Killed at any moment of taking over, again and again; then one that may finish.
#[test]
fn an_upgrade_that_is_killed_half_way_cuts_nobody() {
    let mut bed = Bed::new("halfway", &[Split::tcp(90, 10)]);
    let names = pins(&bed);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 50);
    let load = bed.start_load(Plan { rate: Some(300.0), ..Plan::http(vip(false)) });
    bed.kill_agent();
    for round in 0..8 {
        // Whatever the last one came to, the next finds another layout.
        if bed.site.pins.join("BACKENDS").exists() {
            relabel(&bed.site.pins, &["BACKENDS"]);
        }
        let agent = bed.site.spawn().unwrap();
        run_on(absence() / 40 * (round + 1));
        agent.kill();
        all_serve(&mut kept);
    }
    // What an end between two of the names leaves.
    if bed.site.pins.join("MAGLEV").exists() {
        fs::rename(bed.site.pins.join("MAGLEV"), bed.site.pins.join("MAGLEV-next")).unwrap();
    }
    bed.start();
    run_on(Duration::from_millis(300));
    all_serve(&mut kept);
    assert_eq!(pins(&bed), names);
    load.stop().unwrap().iter().for_each(|phase| no_failures("while agents were killed", phase));
}
