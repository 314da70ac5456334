//! Requests in flight while backends leave, drain, restart and fall silent, and while the node itself is taken out of the path.

use crate::{
    stage::{Stage, both_families, record, through},
    support::{Bed, SPLITTER, Split, connections, eventually, no_failures, run_on, tool, vip},
    wire::{End, Wire, get},
};
use splitter_lab::{
    http::body_byte,
    lab::Namespace,
    load::{Kind, Plan, Reuse},
    pace,
};
use std::{
    process::Command,
    time::{Duration, Instant},
};

fn nft(namespace: &Namespace, words: &str) -> Command {
    let mut command = namespace.command("nft");
    command.args(words.split_whitespace());
    command
}

/// New connections to a backend meet this verdict until [`let_in`]; those that are open go on.
fn keep_out(namespace: &Namespace, verdict: &str) {
    tool(nft(namespace, "add table inet shut"));
    tool(nft(namespace, "add chain inet shut input { type filter hook input priority 0 ; }"));
    tool(nft(namespace, &format!("add rule inet shut input tcp dport 8080 tcp flags & (syn|ack) == syn {verdict}")));
}

fn let_in(namespace: &Namespace) {
    tool(nft(namespace, "delete table inet shut"));
}

/// Both families, all weight on `b1` and `b2`.
fn pair() -> [Split; 2] {
    both_families(&Split { versions: vec![(1, vec![1, 2])], ..Split::http(1, 0) })
}

/// Wires with an answer under way, and the names of their servers: of both, of each some.
fn waiting(stage: &Stage, v6: bool, path: &str) -> Vec<(String, Wire)> {
    let wires: Vec<_> = (0..16)
        .map(|_| {
            let mut wire = Wire::open(stage.lab.client(), vip(v6));
            let name = wire.get("/", &[]);
            wire.send(get(path, &[]));
            (name, wire)
        })
        .collect();
    assert!(["b1", "b2"].iter().all(|name| wires.iter().any(|(served, _)| served == name)), "16 connections, one server");
    wires
}

/// A backend that is taken out of the policy finishes its answers, and its connections go on elsewhere.
#[test]
fn who_leaves_the_policy_finishes_its_answers() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("leaves", &pair());
    let mut wires: Vec<(String, Wire)> = [false, true].into_iter().flat_map(|v6| waiting(&stage, v6, "/dribble/100000")).collect();
    stage.apply(&both_families(&Split { versions: vec![(1, vec![2])], ..Split::http(1, 0) }));
    for (name, wire) in &mut wires {
        let answer = wire.answer().expect("the answer is finished");
        assert_eq!((&answer.version, answer.body.len()), (&*name, 100_000));
        assert!((0..).zip(&answer.body).all(|(i, byte)| *byte == body_byte(i)));
    }
    for (name, wire) in &mut wires {
        assert_eq!(wire.get("/", &[]), "b2", "the next request of a connection that {name} had");
    }
    // And it may come back.
    stage.apply(&pair());
    eventually("the returned backend gets connections", || {
        (Wire::open(stage.lab.client(), vip(false)).get("/", &[]) == "b1").then_some(())
    });
    assert_eq!(stage.reason("backend_down"), 0);
}

/// A backend that is down finishes nothing: who waits for it hears of it.
#[test]
fn who_waits_for_a_backend_that_goes_down_is_reset() {
    if through().is_some() {
        return;
    }
    for path in ["/dribble/100000", "/wait/5000"] {
        let stage = Stage::new("down", &pair());
        let mut wires: Vec<(String, Wire)> = [false, true].into_iter().flat_map(|v6| waiting(&stage, v6, path)).collect();
        stage.apply(&pair().map(|split| split.state(1, "down")));
        for (name, wire) in wires.iter_mut().filter(|(name, _)| name == "b1") {
            assert_eq!(wire.end(pace::patience(Duration::from_secs(8))), End::Reset, "{path}: {name} is down");
        }
        for (name, wire) in wires.iter_mut().filter(|(name, _)| name == "b2") {
            assert_eq!(wire.answer().expect("an answer").version, *name, "{path}");
        }
    }
}

/// At the end of a request a backend that drains counts as not there.
#[test]
fn a_draining_backend_drains() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("drains", &pair());
    // Answers that take their time need several connections, which both backends have some of.
    let kinds = vec![Kind::get("/wait/50")];
    let plan = |v6| Plan { kinds: kinds.clone(), reuse: Reuse::KeepAlive, rate: Some(200.0), concurrency: 20, ..Plan::http(vip(v6)) };
    let loads = [false, true].map(|v6| stage.start_load(plan(v6)));
    let served = |phase: usize, name: &str| {
        loads.iter().map(|load| load.snapshot(phase).versions.get(name).map_or(0, |it| it.requests)).sum::<u64>()
    };
    eventually("both serve", || (served(0, "b1") > 50 && served(0, "b2") > 50).then_some(()));
    stage.apply(&pair().map(|split| split.state(1, "draining")));
    // What is on its way is answered by the one that had it.
    run_on(Duration::from_millis(300));
    let phase = loads.iter().map(splitter_lab::load::Load::next_phase).max().unwrap_or(0);
    eventually("b2 serves all", || (served(phase, "b2") > 200).then_some(()));
    assert_eq!(served(phase, "b1"), 0);
    for load in loads {
        let phases = load.stop().unwrap();
        phases.iter().for_each(|phase| no_failures("while a backend drains", phase));
    }
}

/// Backends restart one after the other. Each refuses for a while, and is suspect for longer: then the next one refuses.
#[test]
fn a_rolling_restart_fails_no_request() {
    if through().is_some() {
        return;
    }
    let two = Split { versions: vec![(1, vec![1, 2])], ..Split::http(1, 0) };
    let three = Split { versions: vec![(1, vec![1, 2, 3])], ..two.clone().v6().named("web6") };
    let stage = Stage::new("rolling", &[two, three]);
    let kinds = vec![Kind::get("/"), Kind { body: Some(vec![b'x'; 700]), ..Kind::get("/echo") }];
    const REQUESTS: u64 = 3_500;
    let plan = |v6| Plan { kinds: kinds.clone(), rate: Some(200.0), concurrency: 200, requests: Some(REQUESTS), ..Plan::http(vip(v6)) };
    let loads = [false, true].map(|v6| stage.start_load(plan(v6)));
    let began = Instant::now();
    for (turn, i) in (0..).zip([1, 2, 3, 1, 2, 3]) {
        std::thread::sleep((Duration::from_millis(2_800) * turn).saturating_sub(began.elapsed()));
        keep_out(stage.lab.backend(i), "reject with tcp reset");
        run_on(Duration::from_millis(2_300));
        let_in(stage.lab.backend(i));
    }
    eventually("all requests are answered", || (loads.iter().all(|load| load.snapshot(0).begun >= REQUESTS)).then_some(()));
    for (load, v6) in loads.into_iter().zip([false, true]) {
        let total = load.stop().unwrap().remove(0);
        record("GET and POST over rolling restarts 2.8 s apart", vip(v6), total.begun, total.begun - total.requests());
        no_failures("over a rolling restart", &total);
        assert!(connections(&total, &["b1"]) > 300 && connections(&total, &["b2"]) > 300, "{:?}", total.versions.keys());
    }
    assert!(stage.reason("leg_refused") > 100, "{:?}", stage.status().reasons);
    assert_eq!(stage.reason("unavailable"), 0);
}

/// A refusal by ICMP moves a request on as one by RST does, without waiting for a timer.
#[test]
fn a_backend_that_refuses_by_icmp_is_replaced_at_once() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("icmp", &pair());
    let backend = stage.lab.backend(1);
    let unlimited = [
        ("net/ipv4/icmp_ratelimit", "0"),
        ("net/ipv4/icmp_ratemask", "0"),
        ("net/ipv6/icmp/ratelimit", "0"),
        ("net/ipv6/icmp/ratemask", "127"),
    ];
    backend.sysctls(&unlimited).expect("limits of ICMP errors");
    keep_out(backend, "reject with icmpx type admin-prohibited");
    for v6 in [false, true] {
        let before = stage.reason("leg_refused");
        eventually("a request meets the backend that refuses", || {
            for _ in 0..16 {
                assert_eq!(Wire::open(stage.lab.client(), vip(v6)).get("/", &[]), "b2");
            }
            (stage.reason("leg_refused") > before).then_some(())
        });
    }
}

/// Nobody of a version answers, and the node knows: clients are told, instead of waiting for as long as it takes to find out.
#[test]
fn a_version_that_is_known_to_be_silent_fails_fast() {
    if through().is_some() {
        return;
    }
    let stage = Stage::new("silence", &pair());
    for v6 in [false, true] {
        let gone = || Wire::open(stage.lab.client(), vip(v6));
        let mut before = gone();
        before.get("/", &[]);
        [1, 2].iter().for_each(|i| keep_out(stage.lab.backend(*i), "drop"));
        let mut first = gone();
        first.send(get("/", &[]));
        eventually("a version that answers nobody is known", || {
            let began = Instant::now();
            let mut wire = gone();
            wire.send(get("/", &[]));
            let answer = wire.answer().ok()?;
            (answer.status == 503 && began.elapsed() < Duration::from_secs(1)).then_some(())
        });
        let mut times: Vec<Duration> = (0..8)
            .map(|_| {
                let began = Instant::now();
                let mut wire = gone();
                wire.send(get("/", &[]));
                assert_eq!(wire.answer().expect("an answer").status, 503);
                began.elapsed()
            })
            .collect();
        times.sort_unstable();
        assert!(times[5] < Duration::from_secs(1), "told after {times:?}");
        // What is open goes on, and whoever asks after the return is served.
        before.get("/", &[]);
        [1, 2].iter().for_each(|i| let_in(stage.lab.backend(*i)));
        eventually("it answers again", || gone().try_ask(get("/", &[])).ok().filter(|answer| answer.status == 200));
    }
}

/// Whoever has a connection through the node hears that it is gone: idle or waiting, client or backend.
#[test]
fn detach_resets_connections_of_http() {
    if through().is_some() {
        return;
    }
    let mut stage = Stage::begin(Bed::prepare("farewell", Default::default(), &pair()), &[], None);
    let mut wires = Vec::new();
    for v6 in [false, true] {
        wires.extend(waiting(&stage, v6, "/dribble/100000"));
        wires.extend(waiting(&stage, v6, "/wait/20000"));
        let mut idle = Wire::open(stage.lab.client(), vip(v6));
        let name = idle.get("/", &[]);
        wires.push((name, idle));
    }
    let mut command = stage.lab.node.command(SPLITTER);
    command.arg("detach").arg("--pins").arg(&stage.site.pins).arg("--force");
    let text = tool(command);
    assert!(text.contains(&format!("{} http connections: both ends are reset", wires.len())), "{text}");
    drop(stage.agent.take());
    for (name, wire) in &mut wires {
        assert_eq!(wire.end(pace::patience(Duration::from_secs(2))), End::Reset, "a connection to {name}");
    }
    for i in 1..=2 {
        let open = || {
            let mut command = stage.lab.backend(i).command("ss");
            command.args(["-Htn", "state", "established", "sport", "=", ":8080"]);
            tool(command).lines().count()
        };
        eventually("every connection of the backends ends", || (open() == 0).then_some(()));
    }
}
