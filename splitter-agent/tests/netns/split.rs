//! Who gets which version: weights, rules, client addresses, backend states.

use crate::support::{
    Bed, Split, client_ip, connections, no_failures, share_of_v2,
    socket::{conversations, echo, unfragmented},
    vip,
};
use splitter_lab::{
    lab::{Lab, Options, VIP4},
    load::{Load, Plan},
    pace::bulk,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

#[test]
fn connections_are_split_by_weight() {
    let split = || Split::tcp(90, 10);
    let services = [split(), split().v6().named("web6"), split().udp().named("dns"), split().udp().v6().named("dns6")];
    let bed = Bed::new("split", &services);
    let enough = bulk(2_500);
    for v6 in [false, true] {
        for plan in [Plan::http(vip(v6)), Plan::udp(vip(v6))] {
            let what = format!("{:?} over IPv{}", plan.protocol, if v6 { 6 } else { 4 });
            // A client takes answers from the VIP alone: its sockets are connected to it.
            let total = bed.clean(plan, enough);
            share_of_v2(&what, &total, 0.1);
            for backend in ["b1", "b2"] {
                let hits = connections(&total, &[backend]);
                assert!(hits > enough / 4, "{what}: {backend} got {hits} of {enough}");
            }
        }
    }
    assert!(bed.flows().iter().all(|flow| flow.snat.is_none()), "translated without need: {:?}", bed.flows());
}

#[test]
fn a_service_has_several_frontends() {
    let frontends = ["10.9.9.9:80", "10.9.9.9:8081", "10.9.9.10:443"].map(|text| text.parse().unwrap());
    let mut web = Split::tcp(1, 1);
    web.frontends = frontends.to_vec();
    let mut other = Split::tcp(0, 1).named("other");
    other.frontends = vec!["10.9.9.9:81".parse().unwrap()];
    let bed = Bed::new("fronts", &[web, other.clone()]);
    for frontend in frontends {
        share_of_v2(&frontend.to_string(), &bed.clean(Plan::http(frontend), 500), 0.5);
    }
    assert_eq!(connections(&bed.clean(Plan::http(other.frontends[0]), 100), &["b3"]), 100);
    let nobody = bed.load(Plan { requests: Some(5), ..Plan::http(SocketAddr::new(VIP4.into(), 82)) }).total();
    assert_eq!((nobody.failed(), nobody.requests()), (5, 0), "a port of no frontend is served");
}

#[test]
fn source_networks_choose_the_version() {
    let rules = "rules: [{match: {sourceCidr: 10.1.0.0/16}, version: v1}, {match: {sourceCidr: 10.1.1.0/24}, version: v2}]";
    let options = Options { clients: 2, ..Options::default() };
    let mut bed = Bed::prepare("rules", options, &[Split::tcp(50, 50).with(rules)]);
    bed.site.interfaces = vec!["c*", "b*"];
    let bed = bed.started();
    for (client, version) in bed.lab.clients().iter().zip([["b1", "b2"].as_slice(), &["b3"]]) {
        let total = Load::run(Some(client), Plan { requests: Some(300), ..Plan::http(vip(false)) }).unwrap().total();
        no_failures("a rule", &total);
        assert_eq!(connections(&total, version), 300, "{version:?} of {:?}", total.versions.keys());
    }
}

/// Gives the client further addresses, `10.1.0.FIRST` and on.
fn add_addresses(lab: &Lab, first: u8, count: u8) -> Vec<IpAddr> {
    let addresses: Vec<IpAddr> = (first..first + count).map(|host| [10, 1, 0, host].into()).collect();
    let lines: Vec<String> = addresses.iter().map(|address| format!("address add {address}/24 dev eth0\n")).collect();
    lab.client().batch(&lines.concat()).unwrap();
    addresses
}

#[test]
fn a_client_address_keeps_its_version() {
    let bed = Bed::new("sticky", &[Split::tcp(50, 50).with("splitBy: client-ip")]);
    let mut versions = BTreeSet::new();
    for address in add_addresses(&bed.lab, 10, 40) {
        let explained = bed.explain("web", &address.to_string()).version.expect("an address decides");
        let total = bed.clean(Plan { sources: vec![address], ..Plan::http(vip(false)) }, 25);
        let own: &[&str] = if explained == "v2" { &["b3"] } else { &["b1", "b2"] };
        assert_eq!(connections(&total, own), 25, "{address} belongs to {explained}, but {:?} answered", total.versions.keys());
        versions.insert(explained);
    }
    assert_eq!(versions.len(), 2, "40 addresses and one version");
}

#[test]
fn draining_keeps_its_flows_and_down_gives_them_up() {
    let split = || Split::tcp(1, 0);
    let bed = Bed::new("states", &[split()]);
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, 40);
    let on_b1 = kept.iter().filter(|conversation| conversation.backend == "b1").count();
    assert!((5..=35).contains(&on_b1), "{on_b1} of 40 connections on b1");

    bed.apply(&[split().state(1, "draining")]);
    for conversation in &mut kept {
        assert_eq!(conversation.ask().unwrap(), conversation.backend, "draining moved a connection");
    }
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 300), &["b2"]), 300, "a draining backend got new connections");

    bed.apply(&[split().state(1, "down")]);
    for conversation in &mut kept {
        assert_eq!(conversation.ended(), conversation.backend == "b1", "a connection to {}", conversation.backend);
    }
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 300), &["b2"]), 300, "a backend that is down got connections");

    bed.apply(&[split()]);
    let hits = connections(&bed.clean(Plan::http(vip(false)), 300), &["b1"]);
    assert!(hits > 75, "b1 is ready again and got {hits} of 300 connections");
}

/// A socket that goes on talking is not left to a backend that is gone.
#[test]
fn udp_flows_leave_with_their_backend() {
    let split = |backends: Vec<usize>| Split { versions: vec![(1, backends)], ..Split::tcp(1, 0).udp() };
    let bed = Bed::new("udpgone", &[split(vec![1, 2])]);
    let sockets: Vec<_> = (0..20).map(|_| unfragmented(bed.lab.client(), vip(false))).collect();
    let answers = || -> Vec<String> { sockets.iter().map(|socket| echo(socket).expect("an answer")).collect() };
    let before = answers();
    assert_eq!(before, answers(), "a flow changed its backend by itself");
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 2);
    bed.apply(&[split(vec![2])]);
    assert_eq!(answers(), vec!["b2"; 20]);
}

#[test]
fn two_nodes_answer_alike() {
    let split = [Split::tcp(60, 40)];
    let one = Bed::new("alike1", &split);
    let two = Bed::beside(&one, "alike2", &split);
    let answers = |bed: &Bed| -> Vec<String> {
        let kept = conversations(bed.lab.client(), client_ip(bed, false), vip(false), 20_000, 300);
        kept.into_iter().map(|conversation| conversation.backend).collect()
    };
    let first = answers(&one);
    assert_eq!(first, answers(&two));
    assert!(["b1", "b2", "b3"].iter().all(|backend| first.iter().any(|name| name == backend)));
}
