//! Heads that never end, and backends that never answer: what they hold is not their neighbours'.

use crate::{
    stage::{Stage, asks},
    support::{Bed, Split, client_ip, eventually, no_failures, run_on, vip},
};
use splitter_lab::load::{Plan, Reuse};
use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

/// Networks that the holders come from, and connections of each: 10,000 in all.
const NETWORKS: u8 = 250;
const EACH: usize = 40;

/// Where the other service listens.
fn neighbour() -> SocketAddr {
    SocketAddr::new(vip(false).ip(), 81)
}

/// Two services with backends of their own: `b1`, which tests take away, and `b2`.
fn two(name: &str) -> Stage {
    let web = Split { versions: vec![(1, vec![1])], ..Split::http(1, 0) };
    let other = Split { frontends: vec![neighbour()], versions: vec![(1, vec![2])], ..Split::http(1, 0).named("other") };
    Stage::begin(Bed::prepare(name, Default::default(), &[web, other]), &[], None)
}

/// Connections from many networks that begin a head and say no more.
fn half_heads(stage: &Stage) -> Vec<TcpStream> {
    let limit = libc::rlimit { rlim_cur: 16_384, rlim_max: 16_384 };
    // SAFETY: the structure lives through the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }, 0, "cannot raise the limit of open files");
    // As behind an uplink.
    stage.lab.node.batch(&format!("route add 10.1.0.0/16 via {} dev c0\n", client_ip(stage, false))).expect("a route");
    let lines: String = (1..=NETWORKS).map(|i| format!("addr add 10.1.{i}.77/32 dev lo\n")).collect();
    stage.lab.client().batch(&lines).expect("addresses");
    let open = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let one = async |from: IpAddr| {
            let socket = tokio::net::TcpSocket::new_v4()?;
            socket.bind(SocketAddr::new(from, 0))?;
            let stream = tokio::time::timeout(Duration::from_secs(10), socket.connect(vip(false))).await??.into_std()?;
            (&stream).write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-long: ")?;
            Ok::<_, std::io::Error>(stream)
        };
        let networks = (1..=NETWORKS).flat_map(|i| std::iter::repeat_n(i, EACH));
        networks.map(|i| runtime.block_on(one(Ipv4Addr::new(10, 1, i, 77).into())).expect("a connection")).collect()
    };
    stage.lab.client().run(open).expect("the client's namespace")
}

/// Newcomers of the other service are all served, and none of them waited for a slot.
fn neighbours_are_served(stage: &Stage, when: &str) {
    let plan = Plan { requests: Some(400), concurrency: 8, timeout: Duration::from_secs(10), ..Plan::http(neighbour()) };
    let total = stage.load(plan).total();
    no_failures(when, &total);
    assert_eq!(total.requests(), 400, "{when}");
}

fn nobody_waited(stage: &Stage) {
    let other = stage.service("other");
    assert!(other.heads_lost.is_empty(), "{:?}", other.heads_lost);
}

#[test]
fn half_heads_of_one_service_leave_the_others_alone() {
    let mut stage = two("slots");
    let held = half_heads(&stage);
    let web = eventually("slots are held", || Some(stage.service("web")).filter(|web| web.heads >= 700));
    assert!(web.heads <= 1_024 && web.heads_lost["head_share"] > 0, "{} slots held of 2,048, lost {:?}", web.heads, web.heads_lost);
    neighbours_are_served(&stage, "beside half heads");
    nobody_waited(&stage);
    stage.kill_agent();
    neighbours_are_served(&stage, "beside half heads, without an agent");
    // Longer than a slot is kept: nobody frees any, and those who wait take over what is late.
    run_on(Duration::from_secs(12));
    neighbours_are_served(&stage, "beside half heads, without an agent for long");
    let mut more = half_heads_again(&stage);
    neighbours_are_served(&stage, "beside new half heads, without an agent");
    stage.start();
    nobody_waited(&stage);
    let status = stage.status();
    assert!(status.reasons.iter().any(|reason| reason.reason == "head_share"), "{:?}", status.reasons);
    more.extend(held);
}

/// More from the same networks.
fn half_heads_again(stage: &Stage) -> Vec<TcpStream> {
    let open = || {
        let one = |_| {
            let mut stream = TcpStream::connect_timeout(&vip(false), Duration::from_secs(10)).expect("a connection");
            stream.write_all(b"GET / HTTP/1.1\r\n").expect("it takes it");
            stream
        };
        (0..500).map(one).collect()
    };
    stage.lab.client().run(open).expect("the client's namespace")
}

/// Sixty new requests a second to a backend that says nothing.
#[test]
fn a_silent_backend_takes_no_slots_from_others() {
    let stage = two("slotsilent");
    neighbours_are_served(&stage, "before");
    stage.lab.backend(1).batch("route replace blackhole 10.1.0.0/16\n").expect("a route");
    let plan = Plan {
        kinds: vec![asks("/", &[], &[])],
        reuse: Reuse::New,
        rate: Some(60.0),
        concurrency: 4_000,
        timeout: Duration::from_secs(60),
        ..Plan::http(vip(false))
    };
    let load = stage.start_load(plan);
    for _ in 0..8 {
        run_on(Duration::from_secs(2));
        neighbours_are_served(&stage, "beside a silent backend");
    }
    nobody_waited(&stage);
    let begun = load.snapshot(0).begun;
    assert!(begun > 600, "{begun} requests are no load");
    stage.lab.backend(1).batch("route del blackhole 10.1.0.0/16\n").expect("a route");
    drop(load);
}
