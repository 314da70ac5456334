//! More than there is room for, and more often than anybody would.

use crate::support::{Bed, Split, client_ip, connections, no_failures, run_on, share_of_v2, socket::conversations, vip};
use splitter_agent::observed::Status;
use splitter_bench::{load::Plan, stats};
use std::time::Duration;

/// Connections take two descriptors each, and both ends are in this process.
fn raise_descriptor_limit(to: u64) {
    let limit = libc::rlimit { rlim_cur: to, rlim_max: to };
    // SAFETY: the structure lives through the call.
    let raised = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    assert_eq!(raised, 0, "cannot raise the limit of open files to {to}: {}", std::io::Error::last_os_error());
}

#[test]
fn flows_beyond_the_limit_still_work_and_are_counted() {
    const LIMIT: u64 = 1_024;
    const CONNECTIONS: u16 = 3_000;
    raise_descriptor_limit(16_384);
    let mut bed = Bed::prepare("full", Default::default(), &[Split::tcp(60, 40)]);
    bed.site.options = vec!["--max-flows".into(), LIMIT.to_string()];
    let bed = bed.started();
    // Every one is asked when it is new, and kept open: the old ones are forgotten for it.
    let mut kept = conversations(bed.lab.client(), client_ip(&bed, false), vip(false), 20_000, CONNECTIONS);
    let of_v2 = kept.iter().filter(|conversation| conversation.backend == "b3").count() as u64;
    assert!(stats::plausible(of_v2, u64::from(CONNECTIONS), 0.4), "v2 got {of_v2} of {CONNECTIONS}");
    let table = |status: &Status| status.tables.iter().find(|table| table.name == "tcp4").expect("a table of TCP flows").clone();
    let full = table(&bed.wait("a full table", |status| table(status).entries > LIMIT));
    assert!(full.max_entries == 2 * LIMIT && full.entries <= full.max_entries, "{full:?}");
    let alive = kept.iter_mut().rev().take(200).filter_map(|conversation| conversation.ask().ok()).count();
    assert!(alive >= 150, "{alive} of the last 200 connections are remembered");
    kept.iter_mut().take(200).for_each(|conversation| drop(conversation.ask()));
    assert!(bed.reason("recovered_flow") > 0, "forgotten flows are not counted: {:?}", bed.status().reasons);
    bed.clean(Plan::http(vip(false)), 1_000);
}

#[test]
fn ten_thousand_weight_changes_fail_no_request() {
    const CHANGES: u32 = 10_000;
    let bed = Bed::new("tenk", &[Split::tcp(50, 50)]);
    let load = bed.start_load(Plan { rate: Some(500.0), ..Plan::http(vip(false)) });
    let before = bed.status().applied.generation;
    let rows = (0..CHANGES).map(|i| if i == CHANGES - 1 { [70, 30] } else { [i % 101, 100 - i % 101] });
    let changes = bed.set_weights("web", rows);
    let last = load.next_phase();
    assert_eq!(changes.len(), CHANGES as usize);
    assert!(changes.iter().all(|change| change.applied));
    run_on(Duration::from_secs(2));
    let phases = load.stop().unwrap();
    phases.iter().for_each(|phase| no_failures("during 10,000 weight changes", phase));
    assert!(connections(&phases[0], &["b1", "b2"]) > 100 && connections(&phases[0], &["b3"]) > 100);
    share_of_v2("right after", &phases[last], 0.3);
    share_of_v2("at rest", &bed.clean(Plan::http(vip(false)), 2_000), 0.3);
    assert_eq!(bed.status().applied.generation, before + u64::from(CHANGES));
}
