//! Interfaces that come and go.

use crate::support::{Bed, Split, connections, document, eventually, run_on, share_of_v2, socket::echo, vip};
use splitter_api::Interface;
use splitter_lab::load::Plan;
use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

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

/// Client and backend 1 on ports of one bridge of the node: the default serves the bridge, and a backend's answer must not pass the node by.
#[test]
fn a_bridge_is_served_and_not_its_ports() {
    let other = vec![SocketAddr::new(vip(false).ip(), 81)];
    let splits = [Split::tcp(1, 0), Split { frontends: other, ..Split::http(1, 0).named("other") }];
    let splits = splits.map(|split| Split { versions: vec![(1, vec![1])], ..split });
    let mut bed = Bed::prepare("bridge", Default::default(), &splits);
    let node = &bed.lab.node;
    node.batch("link add br0 type bridge stp_state 0 forward_delay 0\nlink set br0 up\nlink set c0 master br0\nlink set b1 master br0\n")
        .unwrap();
    node.batch("address flush dev c0\naddress flush dev b1\naddress add 10.1.0.1/24 dev br0\n").unwrap();
    bed.lab.backend(1).batch("address flush dev eth0\naddress add 10.1.0.11/24 dev eth0\nroute add default via 10.1.0.1\n").unwrap();
    let policy = document(&bed.lab, &splits).replace("10.2.1.2:", "10.1.0.11:");
    bed.write_policy(&policy);
    bed.site.interfaces = vec![];
    bed.start();
    let served: Vec<_> = bed.status().interfaces.into_iter().map(|interface| interface.name).collect();
    assert!(served.contains(&"br0".into()) && served.contains(&"b2".into()), "{served:?}");
    assert!(!served.iter().any(|name| name == "c0" || name == "b1"), "{served:?}");
    for port in [80, 81] {
        let to = SocketAddr::new(vip(false).ip(), port);
        let total = bed.clean(Plan::http(to), 200);
        assert_eq!(connections(&total, &["b1"]), total.connections());
    }
    assert!(bed.flows().iter().all(|flow| flow.snat.as_deref().is_some_and(|snat| snat.starts_with("10.1.0.1:"))));
}

/// A hub sends a frame to all: it is served by the host that has its address, and by no other.
#[test]
fn frames_for_another_host_are_left_alone() {
    for xdp in ["off", "generic"] {
        let mut bed = Bed::prepare(
            if xdp == "off" { "hub" } else { "hubxdp" },
            Default::default(),
            &[Split::tcp(1, 0).udp().named("dns"), Split::tcp(1, 0)],
        );
        bed.site.xdp = xdp;
        bed.site.interfaces = vec!["c0:uplink", "b*"];
        bed.start();
        let client = bed.lab.client();
        let socket = client.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
        socket.connect(vip(false)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        echo(&socket).expect("served");
        // The same flow, and a new connection, to the address that another node has.
        client.batch("neigh replace 10.1.0.1 lladdr 02:00:00:00:00:77 dev eth0 nud permanent\n").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(echo(&socket).is_err(), "{xdp}: served");
        let connect = || TcpStream::connect_timeout(&vip(false), Duration::from_millis(300)).map_err(|error| error.kind());
        assert_eq!(client.run(connect).unwrap().err(), Some(ErrorKind::TimedOut), "{xdp}");
        assert!(bed.reason("other_host") >= 2);
        client.batch("neigh del 10.1.0.1 dev eth0\n").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        echo(&socket).expect("served again");
    }
}

/// Whatever has no Ethernet header is left alone, and told.
#[test]
fn devices_without_ethernet_are_not_served() {
    let mut bed = Bed::prepare("bare", Default::default(), &[Split::tcp(1, 0)]);
    let kinds = [
        ("link add bare0 type ipip local 10.1.0.1 remote 10.1.0.2", "bare0"),
        ("link add bare1 type gre local 10.1.0.1 remote 10.1.0.2", "bare1"),
        ("link add bare2 type sit local 10.1.0.1 remote 10.1.0.2", "bare2"),
        ("link add bare3 type ip6tnl local fd01::1 remote fd01::2", "bare3"),
        ("link add bare4 type ip6gre local fd01::1 remote fd01::2", "bare4"),
        ("link add bare5 type wireguard", "bare5"),
        ("link add bare6 type vti local 10.1.0.1 remote 10.1.0.2 key 7", "bare6"),
        ("link add bare7 type xfrm dev c0 if_id 7", "bare7"),
        ("tuntap add bare8 mode tun", "bare8"),
    ];
    // A kernel need not have them all.
    let made: Vec<_> = kinds
        .iter()
        .filter(|(line, name)| bed.lab.node.batch(&format!("{line}\nlink set {name} up\n")).is_ok())
        .map(|(_, name)| *name)
        .collect();
    assert!(made.contains(&"bare8"), "{made:?}");
    bed.lab.node.batch("link add ether0 type veth peer name ether1\nlink set ether0 up\nlink set ether1 up\n").unwrap();
    bed.site.interfaces = vec![];
    bed.start();
    let served: Vec<_> = bed.status().interfaces.into_iter().map(|interface| interface.name).collect();
    assert!(served.contains(&"ether0".into()) && !served.iter().any(|name| name.starts_with("bare")), "{served:?}");
    bed.kill_agent();
    bed.site.interfaces = made.iter().copied().chain(["c0", "b*"]).collect();
    bed.start();
    let status = bed.wait("the warnings", |status| status.attachments.warnings.len() >= made.len());
    for name in made {
        let told = |warning: &String| warning.contains(&format!("--interface {name}: {name}")) && warning.contains("no Ethernet header");
        assert!(status.attachments.warnings.iter().any(told), "{name}: {:?}", status.attachments.warnings);
    }
    assert!(!status.interfaces.iter().any(|interface| interface.name.starts_with("bare")));
}
