//! All counters at once, against what clients and servers saw.

use crate::{
    stage::{Asking, Farewell, Fate, Manner, Server, ask, at, bed},
    support::{Split, eventually, vip},
};
use splitter_api::{Outcomes, Version};
use std::time::Duration;

/// Three versions: one answers, one closes, one is not there.
#[test]
fn counters_are_what_clients_and_servers_saw() {
    for v6 in [false, true] {
        let split = if v6 { Split::tcp(1, 0).v6() } else { Split::tcp(1, 0) };
        let bed = bed(if v6 { "truth6" } else { "truth4" }, split.clone(), vec![1]);
        bed.apply(&[Split { versions: vec![(1, vec![1]), (1, vec![2]), (1, vec![3])], ..split }]);
        let answering = Server::start(bed.lab.backend(1), at(&bed, 1, v6), Manner::Answer);
        let closing = Server::start(bed.lab.backend(2), at(&bed, 2, v6), Manner::Close);
        let asking = Asking { to: vip(v6), count: 300, patience: Duration::from_secs(3), farewell: Farewell::Close };
        let seen = ask(&bed, asking, false);
        let [answered, ended, refused] = [Fate::Answered, Fate::Ended, Fate::Refused].map(|fate| seen.get(&fate).copied().unwrap_or(0));
        assert_eq!(answered + ended + refused, 300, "{seen:?}");
        assert_eq!((answering.accepted(), closing.accepted()), (answered, ended));
        let versions = eventually("all are over", || {
            let versions = bed.service("web").versions;
            versions.iter().all(|version| version.closed == version.opened).then_some(versions)
        });
        let expected = [
            (answered, answered, 0, Outcomes { begun: answered, answered, ..Outcomes::default() }),
            (ended, ended, 0, Outcomes { begun: ended, closed: ended, ..Outcomes::default() }),
            (refused, 0, refused, Outcomes { begun: refused, refused, ..Outcomes::default() }),
        ];
        for (version, (connections, opened, refused, drawn)) in versions.iter().zip(expected) {
            let Version { name, timeouts, trials, pending, .. } = version;
            assert_eq!(
                (version.connections, version.opened, version.refused, &trials.drawn),
                (connections, opened, refused, &drawn),
                "{name}"
            );
            assert_eq!((version.closed, *timeouts, *pending), (opened, 0, 0), "{name}");
            assert_eq!(version.connect.count, opened, "{name}: a sample for each handshake");
        }
        assert_eq!(versions[0].first_byte.count, answered);
        let text = splitter_agent::telemetry::render(bed.status()).expect("metrics");
        for (name, [connections, opened, failures, outcome]) in
            [("v1", [answered, answered, 0, 0]), ("v2", [ended, ended, 0, 0]), ("v3", [refused, 0, refused, refused])]
        {
            let of = format!("service=\"web\",version=\"{name}\"");
            for line in [
                format!("splitter_connections_total{{{of}}} {connections}"),
                format!("splitter_opened_total{{{of}}} {opened}"),
                format!("splitter_closed_total{{{of}}} {opened}"),
                format!("splitter_connect_failures_total{{{of},reason=\"refused\"}} {failures}"),
                format!("splitter_connect_failures_total{{{of},reason=\"timeout\"}} 0"),
                format!("splitter_trials_total{{{of},drawn=\"true\",outcome=\"refused\"}} {outcome}"),
                format!("splitter_trials_total{{{of},drawn=\"true\",outcome=\"answered\"}} {}", if name == "v1" { answered } else { 0 }),
                format!("splitter_trials_total{{{of},drawn=\"true\",outcome=\"closed\"}} {}", if name == "v2" { ended } else { 0 }),
                format!("splitter_trials_total{{{of},drawn=\"false\",outcome=\"answered\"}} 0"),
            ] {
                assert!(text.lines().any(|told| told == line), "{line}\n in\n{text}");
            }
        }
        let told = bed.site.cli(&["status", "-o", "json"]).expect("the status").0;
        assert!(told.contains("\"trials\"") && told.contains("\"unavailable\""), "{told}");
    }
}
