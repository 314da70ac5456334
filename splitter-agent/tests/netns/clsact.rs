//! Filters of clsact, as on kernels without TCX: forced here, where the kernel has both.

use crate::support::{
    Bed, Split, client_ip, eventually,
    kernel::{held, programs_alive},
    no_failures, run_on, share_of_v2,
    socket::{Conversation, conversations},
    tool, vip,
};
use splitter_lab::{load::Plan, pace::bulk};
use std::time::{Duration, Instant};

fn tc(bed: &Bed, words: &str) -> String {
    let mut tc = bed.lab.node.command("tc");
    tc.args(words.split(' '));
    tool(tc)
}

fn filters(bed: &Bed, device: &str) -> String {
    tc(bed, &format!("filter show dev {device} ingress")) + &tc(bed, &format!("filter show dev {device} egress"))
}

fn forced(name: &str) -> Bed {
    let mut bed = Bed::prepare(name, Default::default(), &[Split::tcp(50, 50), Split::tcp(50, 50).v6().named("web6")]);
    bed.site.wrapper = vec!["env".into(), "SPLITTER_CLSACT=1".into()];
    bed
}

fn all_serve(kept: &mut [Conversation]) {
    kept.iter_mut().for_each(|conversation| assert_eq!(conversation.ask().expect("an old connection"), conversation.backend));
}

#[test]
fn clsact_serves_survives_and_leaves_nothing() {
    let mut bed = forced("clsact");
    // Somebody else's, that lets everything pass, before and after ours.
    tc(&bed, "qdisc add dev c0 clsact");
    for priority in [9, 40_000] {
        let words = format!("filter add dev c0 ingress prio {priority} protocol all bpf bytecode");
        let mut tc = bed.lab.node.command("tc");
        // Returns 0: no match.
        tc.args(words.split(' ')).arg("1,6 0 0 0,");
        tool(tc);
    }
    let foreign = filters(&bed, "c0");
    bed.start();
    for interface in bed.status().interfaces {
        assert_eq!(interface.programs, ["clsact-ingress", "clsact-egress"], "{}", interface.name);
    }
    bed.clean(Plan::http(vip(true)), 200);
    share_of_v2("by clsact", &bed.clean(Plan::http(vip(false)), bulk(1_000)), 0.5);

    let client = client_ip(&bed, false);
    let mut kept = conversations(bed.lab.client(), client, vip(false), 20_000, 20);
    let load = bed.start_load(Plan { rate: Some(500.0), ..Plan::http(vip(false)) });
    let first = held(bed.agent.as_ref().unwrap().pid(), "prog_id");
    run_on(Duration::from_millis(500));
    for _ in 0..2 {
        bed.kill_agent();
        run_on(Duration::from_millis(500));
        bed.start();
    }
    run_on(Duration::from_millis(500));
    load.stop().unwrap().iter().for_each(|phase| no_failures("while agents came and went", phase));
    all_serve(&mut kept);
    assert!(bed.status().agent.adopted);
    assert!(!first.is_empty());
    eventually("the first agent's programs go", || programs_alive().is_disjoint(&first).then_some(()));
    let ours = filters(&bed, "b1").matches("direct-action").count();
    assert_eq!(ours, 2, "one filter in each direction: {}", filters(&bed, "b1"));

    bed.kill_agent();
    bed.site.detach().expect("detach works");
    assert_eq!(filters(&bed, "c0"), foreign, "filters of others are as they were");
    assert!(tc(&bed, "qdisc show dev c0").contains("clsact"));
    let left = tc(&bed, "qdisc show dev b1");
    assert!(!left.contains("clsact"), "{left}");
    assert!(!bed.site.pins.exists());
    let gone = bed.load(Plan { requests: Some(3), ..Plan::http(vip(false)) }).total();
    assert_eq!(gone.requests(), 0, "somebody still answers at the VIP");
}

#[test]
fn a_filter_that_somebody_removed_comes_back() {
    let mut bed = forced("clsback");
    bed.start();
    bed.clean(Plan::http(vip(false)), 100);
    let begin = Instant::now();
    tc(&bed, "qdisc del dev c0 clsact");
    eventually("the filters are back", || (filters(&bed, "c0").matches("direct-action").count() == 2).then_some(()));
    assert!(begin.elapsed() < Duration::from_millis(1_500), "the kernel tells at once, but they came after {:?}", begin.elapsed());
    let status = bed.wait("all is attached", |status| status.interfaces.iter().all(|interface| interface.missing.is_empty()));
    assert_eq!(status.attachments.lost, 2);
    bed.clean(Plan::http(vip(false)), 100);
}

#[test]
fn an_agent_that_needs_no_clsact_takes_its_place() {
    let mut bed = forced("clsswap");
    bed.start();
    let load = bed.start_load(Plan { rate: Some(500.0), ..Plan::http(vip(false)) });
    for tcx in [true, false] {
        bed.kill_agent();
        bed.site.wrapper = if tcx { Vec::new() } else { vec!["env".into(), "SPLITTER_CLSACT=1".into()] };
        bed.start();
        let expected = if tcx { ["tcx-ingress", "tcx-egress"] } else { ["clsact-ingress", "clsact-egress"] };
        assert!(bed.status().interfaces.iter().all(|interface| interface.programs == expected));
        assert_eq!(filters(&bed, "b1").matches("direct-action").count(), if tcx { 0 } else { 2 });
        assert_eq!(tc(&bed, "qdisc show dev b1").contains("clsact"), !tcx);
        run_on(Duration::from_millis(300));
    }
    load.stop().unwrap().iter().for_each(|phase| no_failures("while hooks changed", phase));
}
