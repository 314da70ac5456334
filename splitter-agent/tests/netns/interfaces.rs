//! Interfaces that come and go.

use crate::support::{Bed, Split, connections, eventually, run_on, share_of_v2, vip};
use splitter_agent::observed::Interface;
use splitter_bench::load::Plan;
use std::time::{Duration, Instant};

fn interface(bed: &Bed, name: &str) -> Option<Interface> {
    bed.status().interfaces.into_iter().find(|interface| interface.name == name)
}

/// A veth pair and its addresses in the place of backend 3's deleted one.
fn plug_in_again(bed: &Bed) {
    let backend = bed.lab.backend(3);
    bed.lab.node.batch(&format!("link add b3 type veth peer name eth0 netns {}\nlink set b3 up\n", backend.name())).unwrap();
    bed.lab.node.batch("address add 10.2.3.1/24 dev b3\n").unwrap();
    backend.batch("link set eth0 up\naddress add 10.2.3.2/24 dev eth0\nroute add default via 10.2.3.1\n").unwrap();
}

#[test]
fn an_interface_made_anew_is_served_again() {
    let bed = Bed::new("hotplug", &[Split::tcp(50, 50)]);
    let before = interface(&bed, "b3").expect("b3 is served").ifindex;
    // Those that go to the missing backend wait: the others must not wait for them.
    let load = bed.start_load(Plan { rate: Some(500.0), concurrency: 2_000, timeout: Duration::from_secs(4), ..Plan::http(vip(false)) });
    run_on(Duration::from_millis(500));
    load.next_phase();
    bed.lab.node.batch("link del b3\n").unwrap();
    eventually("b3 is dropped", || interface(&bed, "b3").is_none().then_some(()));
    run_on(Duration::from_millis(300));
    plug_in_again(&bed);
    let after = eventually("b3 is served again", || interface(&bed, "b3"));
    assert_ne!(before, after.ifindex);
    assert!(after.programs.contains(&"tcx-ingress".to_owned()), "{after:?}");
    let phases = load.stop().unwrap();
    // Who was sent to v1 all the while noticed nothing.
    assert_eq!(phases[0].failed(), 0, "{:?}", phases[0]);
    assert!(connections(&phases[1], &["b1", "b2"]) > 50, "{:?}", phases[1].versions.keys());
    // Nobody is suspect for longer than some seconds.
    eventually("v2 answers again", || {
        let total = bed.load(Plan { requests: Some(50), ..Plan::http(vip(false)) }).total();
        (connections(&total, &["b3"]) > 10).then_some(())
    });
    share_of_v2("after", &bed.clean(Plan::http(vip(false)), 1_000), 0.5);
}

#[test]
fn an_interface_that_appears_later_is_served() {
    let mut bed = Bed::prepare("appears", Default::default(), &[Split::tcp(0, 1)]);
    bed.lab.node.batch("link del b3\n").unwrap();
    bed.start();
    assert!(interface(&bed, "b3").is_none());
    // At once, thrice: the kernel tells, nobody waits for the next of the agent's occasional looks.
    for round in 0..3 {
        if round > 0 {
            bed.lab.node.batch("link del b3\n").unwrap();
            eventually("b3 is dropped", || interface(&bed, "b3").is_none().then_some(()));
        }
        plug_in_again(&bed);
        let began = Instant::now();
        eventually("b3 is served", || interface(&bed, "b3"));
        assert!(began.elapsed() < Duration::from_millis(1_500), "served only after {:?}", began.elapsed());
    }
    assert_eq!(connections(&bed.clean(Plan::http(vip(false)), 200), &["b3"]), 200);
}
