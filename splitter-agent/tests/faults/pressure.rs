//! More than there is room for, and more often than anybody would.

use crate::support::{
    Bed, PORT, Split, client_ip, connections, no_failures, run_on, share_of_v2,
    socket::{conversations, unfragmented},
    vip,
};
use splitter_api::Status;
use splitter_lab::{load::Plan, stats};
use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

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

/// A flow whose backend never speaks keeps both its entries in a table that is too small for all: the direction that speaks looks after the other once a
/// refresh period, and that counts as its use.
#[test]
fn the_silent_direction_of_a_flow_is_not_forgotten() {
    const LIMIT: u64 = 1_024;
    const STEP: Duration = Duration::from_millis(20);
    /// New flows in each step, and steps: three times as many entries as there is room for, in five seconds.
    const FLOWS: usize = 6;
    const STEPS: usize = 256;
    let oneway = Split { versions: vec![(1, vec![3])], frontends: vec![SocketAddr::new(vip(false).ip(), 514)], ..Split::tcp(0, 1) };
    let mut bed = Bed::prepare("oneway", Default::default(), &[Split::tcp(1, 0).udp(), oneway.udp().named("log")]);
    bed.site.options = vec!["--max-flows".into(), LIMIT.to_string()];
    bed.stop_server(3);
    let bed = bed.started();
    let backend = bed.lab.backend(3).run(|| UdpSocket::bind(("0.0.0.0", PORT))).unwrap().unwrap();
    let client = unfragmented(bed.lab.client(), SocketAddr::new(vip(false).ip(), 514));
    for _ in 0..STEPS {
        client.send(b"line").unwrap();
        let crowd = || (0..FLOWS).try_for_each(|_| UdpSocket::bind("0.0.0.0:0")?.send_to(b"hello", vip(false)).map(drop));
        bed.lab.client().run(crowd).unwrap().unwrap();
        run_on(STEP);
    }
    let status = bed.wait("a full table", |status| status.tables.iter().any(|table| table.name == "udp4" && table.entries > LIMIT / 2));
    let begun: u64 = status.services.iter().flat_map(|service| &service.versions).map(|version| version.connections).sum();
    assert!(begun > LIMIT, "{begun} flows are no crowd");
    let mut buffer = [0; 16];
    let (_, seen) = backend.recv_from(&mut buffer).unwrap();
    backend.send_to(b"at last", seen).unwrap();
    let length = client.recv(&mut buffer).expect("an answer by way of the VIP");
    assert_eq!((&buffer[..length], bed.reason("flow_evicted")), (&b"at last"[..], 0));
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
