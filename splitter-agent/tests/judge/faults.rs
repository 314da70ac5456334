//! A version that fails its clients, in every way that shows at the node: what they suffered is what is counted.

use crate::{
    stage::{Asking, Farewell, Fate, Manner, Server, ask, at, bed, ended, filter, version},
    support::{Split, vip},
};
use splitter_api::Outcomes;
use std::{collections::BTreeMap, time::Duration};

const COUNT: usize = 60;
const ALL: u64 = COUNT as u64;
/// Linux takes an ICMP error to heart only when `connect` has let go of the socket; here that is with the second SYN.
const PATIENCE: Duration = Duration::from_secs(4);

fn asking(v6: bool) -> Asking {
    Asking { to: vip(v6), count: COUNT, patience: Duration::from_millis(600), farewell: Farewell::Close }
}

fn split(v6: bool) -> Split {
    if v6 { Split::tcp(1, 0).v6() } else { Split::tcp(1, 0) }
}

fn same(what: &str, seen: &BTreeMap<Fate, u64>, fate: Fate) {
    assert_eq!(*seen, BTreeMap::from([(fate, ALL)]), "{what}");
}

/// All clients of a server of this manner have one fate, and the ledger says the same.
fn server(name: &str, manner: Manner, farewell: Farewell, fate: Fate, expected: Outcomes) {
    for v6 in [false, true] {
        let bed = bed(&format!("{name}{}", if v6 { 6 } else { 4 }), split(v6), vec![1]);
        let server = Server::start(bed.lab.backend(1), at(&bed, 1, v6), manner);
        let seen = ask(&bed, Asking { farewell, ..asking(v6) }, false);
        same(name, &seen, fate);
        let drawn = ended(&bed, ALL);
        assert_eq!(drawn, Outcomes { begun: ALL, ..expected }, "{name}");
        let version = version(&bed);
        assert_eq!((version.connections, version.opened, server.accepted()), (ALL, ALL, ALL), "{name}");
        assert_eq!(version.trials.ruled, Outcomes::default());
    }
}

#[test]
fn answers() {
    server("answers", Manner::Answer, Farewell::Close, Fate::Answered, Outcomes { answered: ALL, ..Outcomes::default() });
}

#[test]
fn hangs_until_the_client_closes() {
    server("hangclose", Manner::Hang, Farewell::Close, Fate::NoAnswer, Outcomes { abandoned: ALL, ..Outcomes::default() });
}

#[test]
fn hangs_until_the_client_resets() {
    server("hangreset", Manner::Hang, Farewell::Reset, Fate::NoAnswer, Outcomes { abandoned: ALL, ..Outcomes::default() });
}

#[test]
fn closes() {
    server("closes", Manner::Close, Farewell::Close, Fate::Ended, Outcomes { closed: ALL, ..Outcomes::default() });
}

#[test]
fn resets() {
    server("resets", Manner::Reset, Farewell::Close, Fate::Ended, Outcomes { closed: ALL, ..Outcomes::default() });
}

#[test]
fn cuts() {
    server("cuts", Manner::Cut, Farewell::Close, Fate::Cut, Outcomes { answered: ALL, cut: ALL, ..Outcomes::default() });
}

/// Nobody listens, or a firewall says so.
#[test]
fn refuses() {
    let verdicts = [
        None,
        Some("reject with tcp reset"),
        Some("reject with icmpx type port-unreachable"),
        Some("reject with icmpx type admin-prohibited"),
        Some("reject with icmpx type host-unreachable"),
        Some("reject with icmpx type no-route"),
    ];
    for v6 in [false, true] {
        let bed = bed(if v6 { "refuse6" } else { "refuse4" }, split(v6), vec![1]);
        for (i, verdict) in (1..).zip(verdicts) {
            if let Some(verdict) = verdict {
                let only_tcp = verdict.replace("reject", "meta l4proto tcp reject");
                filter(bed.lab.backend(1), &only_tcp);
            }
            let seen = ask(&bed, Asking { patience: PATIENCE, ..asking(v6) }, false);
            same(&format!("{verdict:?}"), &seen, Fate::Refused);
            let drawn = ended(&bed, i * ALL);
            assert_eq!(drawn, Outcomes { begun: i * ALL, refused: i * ALL, ..Outcomes::default() }, "{verdict:?}");
            assert_eq!(version(&bed).connections, i * ALL, "{verdict:?}");
            assert!(version(&bed).refused >= i * ALL, "{verdict:?}");
            if verdict.is_some() {
                crate::stage::unfilter(bed.lab.backend(1));
            }
        }
        assert!(!version(&bed).backends[0].suspect, "nobody could take its place");
    }
}

#[test]
fn refuses_datagrams() {
    let verdicts = [None, Some("reject with icmpx type admin-prohibited"), Some("reject with icmpx type host-unreachable")];
    for v6 in [false, true] {
        let bed = bed(if v6 { "refuseu6" } else { "refuseu4" }, split(v6).udp(), vec![1]);
        for (i, verdict) in (1..).zip(verdicts) {
            if let Some(verdict) = verdict {
                filter(bed.lab.backend(1), verdict);
            }
            let seen = ask(&bed, asking(v6), true);
            // What is no hard error to a socket is not told to it.
            let deaf = verdict.is_some_and(|verdict| verdict.contains("host") || v6 && verdict.contains("admin"));
            assert!(deaf || seen == BTreeMap::from([(Fate::Refused, ALL)]), "{verdict:?}: {seen:?}");
            let drawn = ended(&bed, i * ALL);
            assert_eq!(drawn, Outcomes { begun: i * ALL, refused: i * ALL, ..Outcomes::default() }, "{verdict:?}");
            if verdict.is_some() {
                crate::stage::unfilter(bed.lab.backend(1));
            }
        }
    }
}

/// One of two is dead: its clients go to the other one, and nobody hears of it.
#[test]
fn a_dead_backend_is_left_whatever_it_says() {
    for v6 in [false, true] {
        for (verdict, name) in [("reject with tcp reset", "rst"), ("reject with icmpx type admin-prohibited", "adm"), ("drop", "drop")] {
            let bed = bed(&format!("left{name}{}", u8::from(v6)), split(v6), vec![1, 2]);
            let _server = Server::start(bed.lab.backend(2), at(&bed, 2, v6), Manner::Answer);
            filter(bed.lab.backend(1), &format!("meta l4proto tcp {verdict}"));
            let patient = Asking { patience: Duration::from_secs(6), ..asking(v6) };
            same(verdict, &ask(&bed, patient, false), Fate::Answered);
            let drawn = ended(&bed, ALL);
            assert_eq!(drawn, Outcomes { begun: ALL, answered: ALL, ..Outcomes::default() }, "{verdict}");
            let version = version(&bed);
            assert_eq!(version.connections, ALL);
            if verdict == "drop" {
                assert!(version.timeouts > 0);
            } else {
                assert!(version.refused > 0);
                assert_eq!(bed.reason("refused_held_back"), version.refused);
            }
        }
    }
}

#[test]
fn datagrams_leave_a_dead_backend() {
    for v6 in [false, true] {
        let mut bed = bed(if v6 { "leave6" } else { "leave4" }, split(v6).udp(), vec![1, 2]);
        bed.start_server(2);
        let seen = ask(&bed, Asking { count: 200, patience: Duration::from_millis(300), ..asking(v6) }, true);
        let (answered, lost) = (seen.get(&Fate::Answered).copied().unwrap_or(0), seen.get(&Fate::NoAnswer).copied().unwrap_or(0));
        // Those that were on their way at once, and one in five seconds.
        assert!(answered >= 160 && answered + lost == 200, "{seen:?}");
        let drawn = ended(&bed, 200);
        assert_eq!(drawn, Outcomes { begun: 200, answered, refused: lost, ..Outcomes::default() });
        assert!(version(&bed).backends.iter().any(|backend| backend.suspect));
    }
}

/// The node itself refuses: nobody is there, or there is no way.
#[test]
fn nobody_serves() {
    for (v6, udp) in [(false, false), (true, false), (false, true), (true, true)] {
        let split = if udp { split(v6).udp() } else { split(v6) };
        let bed = bed(&format!("nobody{}{}", u8::from(v6), u8::from(udp)), split.state(1, "down"), vec![1]);
        let seen = ask(&bed, asking(v6), udp);
        // By a reset, or for datagrams by an ICMP error.
        same("all down", &seen, Fate::Refused);
        assert_eq!(ended(&bed, ALL), Outcomes { begun: ALL, unavailable: ALL, ..Outcomes::default() });
        assert_eq!(version(&bed).connections, ALL);
    }
}

#[test]
fn nobody_is_reachable() {
    for v6 in [false, true] {
        let bed = bed(if v6 { "noway6" } else { "noway4" }, split(v6), vec![1]);
        crate::stage::unlimited(&bed.lab.node);
        bed.lab.node.batch(&format!("route add unreachable {}\n", bed.lab.backend_ip(1, v6))).unwrap();
        same("no route", &ask(&bed, Asking { patience: PATIENCE, ..asking(v6) }, false), Fate::Refused);
        assert_eq!(ended(&bed, ALL), Outcomes { begun: ALL, unavailable: ALL, ..Outcomes::default() });
    }
}
