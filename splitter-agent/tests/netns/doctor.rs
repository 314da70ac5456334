//! What `splitter doctor` finds on a node, and that it disturbs nothing.

use crate::support::{Bed, SPLITTER, Split, eventually, run_on, vip};
use serde_json::Value;
use splitter_lab::load::Plan;
use std::{
    collections::BTreeSet,
    path::Path,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

/// `splitter doctor ...` on the node.
fn run(bed: &Bed, words: &[&str]) -> Output {
    let mut doctor = bed.lab.node.command(SPLITTER);
    doctor.env("SPLITTER_ADMIN", bed.site.socket()).arg("doctor").args(words).args(["-o", "json"]);
    doctor.output().expect("doctor runs")
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Everything below a folder.
fn names(folder: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeSet::new() };
    entries
        .flatten()
        .flat_map(|entry| {
            let path = entry.path();
            let mut below = if path.is_dir() { names(&path) } else { BTreeSet::new() };
            below.insert(path.display().to_string());
            below
        })
        .collect()
}

/// Maps that a trial has made, of whatever process: their size is that of no agent. Programs hold on to maps, so without these there are none either.
fn trial_maps() -> usize {
    let maps = aya::maps::loaded_maps().flatten();
    maps.filter(|map| map.name_as_str() == Some("TCP4") && map.max_entries() == 1_000).count()
}

#[test]
fn the_trial_disturbs_no_agent_and_leaves_nothing() {
    let bed = Bed::new("trial", &[Split::tcp(50, 50)]);
    let filters = || {
        let mut tc = bed.lab.node.command("tc");
        tc.args(["qdisc", "show"]);
        crate::support::tool(tc)
    };
    let (pins, qdiscs, links) = (names(&bed.site.pins), filters(), bed.status().interfaces.len());
    assert!(!pins.is_empty());
    let load = bed.start_load(Plan { rate: Some(200.0), ..Plan::http(vip(false)) });
    for clsact in ["", "1"] {
        let mut doctor = bed.lab.node.command(SPLITTER);
        doctor.env("SPLITTER_CLSACT", clsact).args(["doctor", "--load", "-o", "json"]);
        let mut child = doctor.stdout(Stdio::piped()).spawn().expect("doctor runs");
        eventually("the trial's maps are there", || (trial_maps() > 0 || child.try_wait().unwrap().is_some()).then_some(()));
        assert!(child.try_wait().unwrap().is_none(), "this test does not know the maps of a trial");
        let output = child.wait_with_output().expect("doctor runs");
        let report = json(&output);
        assert!(output.status.success(), "{report}");
        assert_eq!((&report["verdict"], &report["refused"]), (&Value::from("ok"), &Value::from(0)), "{report}");
        let programs = report["programs"].as_array().expect("a list");
        assert!(programs.len() > 30 && programs.iter().all(|program| program["accepted"] == true), "{report}");
        if clsact == "1" {
            assert_eq!(report["attach"], "clsact", "{report}");
        }
    }
    run_on(Duration::from_millis(200));
    load.stop().expect("a load").iter().for_each(|phase| crate::support::no_failures("beside trials", phase));
    // A namespace, and what is attached in it, goes some time after its last thread; another trial may be under way.
    let end = Instant::now() + Duration::from_secs(60);
    while trial_maps() > 0 {
        assert!(Instant::now() < end, "maps of a trial are left");
        run_on(Duration::from_millis(50));
    }
    assert_eq!((names(&bed.site.pins), filters(), bed.status().interfaces.len()), (pins, qdiscs, links));
}

/// The checks of one name that are not `ok`, with what was found.
fn complaints(report: &Value, name: &str) -> Vec<(String, String)> {
    let checks = report["checks"].as_array().expect("a list of checks").iter();
    let text = |check: &Value, field: &str| check[field].as_str().unwrap_or_default().to_owned();
    let bad = checks.filter(|check| check["name"] == name && check["verdict"] != "ok");
    bad.map(|check| (text(check, "verdict"), text(check, "found"))).collect()
}

#[track_caller]
fn finds(bed: &Bed, name: &str, verdict: &str, part: &str) {
    let output = run(bed, &[]);
    let report = json(&output);
    let found = complaints(&report, name);
    assert!(found.iter().any(|(how, what)| how == verdict && what.contains(part)), "{verdict} {name}: {part}\nnot in {report:#}");
    assert_eq!(output.status.code(), Some(i32::from(report["verdict"] == "fail")));
}

/// What `doctor` says about the network, beside memory and the like, which are the machine's.
const NETWORK: [&str; 10] =
    ["kernel", "programs", "IPv4 forwarding", "IPv6 forwarding", "rp_filter", "agent", "interfaces", "routes", "firewall", "VIPs"];

fn ip(bed: &Bed, lines: &str) {
    bed.lab.node.batch(lines).expect("ip works");
}

#[test]
fn doctor_finds_what_is_wrong_with_the_network() {
    let bed = Bed::new("doctor", &[Split::tcp(50, 50)]);
    let policy = bed.site.policy().display().to_string();
    for words in [&[][..], &["--policy", policy.as_str()]] {
        let report = json(&run(&bed, words));
        for name in NETWORK {
            assert_eq!(complaints(&report, name), [], "{words:?}: {report:#}");
        }
    }

    // The policy is of IPv4 alone.
    bed.lab.node.sysctls(&[("net/ipv6/conf/all/forwarding", "0")]).expect("a sysctl");
    assert_eq!(complaints(&json(&run(&bed, &[])), "IPv6 forwarding"), []);
    bed.lab.node.sysctls(&[("net/ipv4/ip_forward", "0")]).expect("a sysctl");
    finds(&bed, "IPv4 forwarding", "fail", "the policy needs it");
    bed.lab.node.sysctls(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")]).expect("a sysctl");

    ip(&bed, "route del 10.2.1.0/24 dev b1\n");
    finds(&bed, "routes", "fail", "none to 1 backend: 10.2.1.2 (web)");
    // Out of an interface that the agent does not serve.
    ip(&bed, "link add other0 type veth peer name other1\nlink set other0 up\nlink set other1 up\nroute add 10.2.1.0/24 dev other0\n");
    finds(&bed, "routes", "fail", "backends are behind other0, which the agent does not serve");
    ip(&bed, "link del other0\nroute add 10.2.1.0/24 dev b1\n");
    assert_eq!(complaints(&json(&run(&bed, &[])), "routes"), []);

    // By the client, who would be the gateway that sends everything for the VIP here.
    ip(&bed, "route add 10.9.9.0/24 via 10.1.0.2\n");
    assert_eq!(complaints(&json(&run(&bed, &[])), "VIPs"), [], "refused, whatever the route");
    bed.apply(&[Split::tcp(50, 50).with("vip: {unserved: pass}")]);
    finds(&bed, "VIPs", "warn", "10.9.9.9 (c0) routed to a gateway");
    ip(&bed, "route add unreachable 10.9.9.9\n");
    assert_eq!(complaints(&json(&run(&bed, &[])), "VIPs"), []);
    ip(&bed, "route del unreachable 10.9.9.9\nroute del 10.9.9.0/24 via 10.1.0.2\n");

    ip(&bed, "tuntap add tun7 mode tun\nlink set tun7 up\n");
    finds(&bed, "interfaces", "warn", "without Ethernet header, so never served: tun7 (tun)");
    ip(&bed, "link del tun7\nlink set b3 down\n");
    finds(&bed, "interfaces", "warn", "down, or without carrier: b3");
}

fn on_node(bed: &Bed, program: &str, words: &str) {
    let mut command = bed.lab.node.command(program);
    command.args(words.split(' '));
    crate::support::tool(command);
}

#[test]
fn doctor_finds_rules_that_see_half_of_the_flows() {
    let bed = Bed::new("firewall", &[Split::tcp(50, 50).with("path: redirect")]);
    on_node(&bed, "iptables-legacy", "-A FORWARD -m conntrack --ctstate INVALID -j DROP");
    finds(&bed, "firewall", "warn", "iptables-legacy filter FORWARD (1 rule, by connection state): packets of web and");
    on_node(&bed, "nft", "add table inet guard");
    on_node(&bed, "nft", "add chain inet guard forward { type filter hook forward priority 0 ; policy drop ; }");
    on_node(&bed, "nft", "add rule inet guard forward ct state established,related accept");
    finds(&bed, "firewall", "warn", "nft inet guard forward (1 rule, policy drop, by connection state)");
    // As it says: what is sent to the VIP is not held back.
    bed.clean(Plan::http(vip(false)), 50);
    // Nothing is to be done where flows go by the rules.
    on_node(&bed, "nft", "add rule inet guard forward tcp dport 8080 accept");
    bed.apply(&[Split::tcp(50, 50)]);
    bed.wait("flows go through the stack", |status| status.services[0].path == "stack");
    assert_eq!(complaints(&json(&run(&bed, &[])), "firewall"), []);
    bed.clean(Plan::http(vip(false)), 50);
}

#[test]
fn doctor_finds_an_agent_that_is_attached_to_nothing() {
    let mut bed = Bed::prepare("nothing", Default::default(), &[Split::tcp(50, 50)]);
    bed.site.interfaces = vec!["nosuch*"];
    bed.start();
    finds(&bed, "agent", "fail", "attached to no interface");
}
