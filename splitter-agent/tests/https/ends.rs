//! Backends that go, and an agent that goes.

use crate::{
    stage::{Stage, count, split, url},
    support::{Split, eventually, vip},
};
use splitter_lab::load::Plan;
use std::{
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

#[test]
fn a_backend_that_is_down_costs_no_request_and_a_version_that_is_down_is_told() {
    for v6 in [false, true] {
        let mut stage = Stage::new(if v6 { "hdown6" } else { "hdown4" }, &[split(v6, 100, 0)]);
        let name = if v6 { "web6" } else { "web" };
        // Every connection starts with another backend.
        stage.bed.stop_server(1);
        for _ in 0..12 {
            assert_eq!(count(&stage.asks(v6, &[&url("/?[1-5]")]), "b2"), 5);
        }
        stage.bed.stop_server(2);
        let status = |stage: &Stage| stage.asks(v6, &["-o", "/dev/null", "-w", "%{http_code}\n", &url("/?[1-10]")]);
        assert_eq!(count(&status(&stage), "503"), 10);
        let service = stage.service(name);
        assert_eq!(service.versions[0].trials.drawn.refused, 10, "{:?}", service.versions[0].trials);
        stage.bed.start_server(1);
        eventually("it serves again", || (count(&status(&stage), "200") == 10).then_some(()));
        stage.apply(&[split(v6, 100, 0).state(1, "down").state(2, "down")]);
        assert_eq!(count(&status(&stage), "503"), 10);
        assert_eq!(stage.service(name).versions[0].trials.drawn.unavailable, 10);
        stage.apply(&[split(v6, 100, 0).state(1, "down").state(2, "down").with("whenUnavailable: reset")]);
        let output = stage.curl(v6, &[&url("/")]).output().expect("curl runs");
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    }
}

#[test]
fn without_an_agent_the_service_refuses_at_once_and_others_go_on() {
    let plain = SocketAddr::new(vip(false).ip(), 81);
    let mut other = Split::http(50, 50).named("plain");
    other.frontends = vec![plain];
    let mut stage = Stage::new("hkill", &[split(false, 50, 50), split(true, 50, 50), other]);
    assert_eq!(stage.asks(false, &[&url("/?[1-10]")]).lines().count(), 10);
    stage.bed.kill_agent();
    for v6 in [false, true] {
        let begin = Instant::now();
        let refused = stage.lab.client().run(|| TcpStream::connect_timeout(&vip(v6), Duration::from_secs(5))).expect("a namespace");
        assert!(refused.is_err(), "nobody is there");
        assert!(begin.elapsed() < Duration::from_secs(3), "it took {:?}", begin.elapsed());
    }
    stage.clean(Plan::http(plain), 200);
    stage.bed.start();
    for v6 in [false, true] {
        assert_eq!(stage.asks(v6, &[&url("/?[1-10]")]).lines().count(), 10, "the next agent serves");
    }
}

#[test]
fn an_agent_that_ends_lets_requests_end() {
    let mut stage = Stage::new("hdrain", &[split(false, 50, 50)]);
    let mut slow = stage.curl(false, &[&url("/wait/1500")]);
    let slow = slow.stdout(std::process::Stdio::piped()).spawn().expect("curl runs");
    eventually("it is on its way", || {
        let versions = stage.service("web").versions;
        (versions.iter().map(|version| version.requests).sum::<u64>() == 1).then_some(())
    });
    let agent = stage.bed.agent.take().expect("an agent");
    agent.stop(Duration::from_secs(20)).expect("it ends");
    let answer = slow.wait_with_output().expect("curl ends");
    assert!(answer.status.success() && answer.stdout.starts_with(b"b"), "{answer:?}");
    stage.bed.start();
    let versions = stage.service("web").versions;
    assert_eq!(versions.iter().map(|version| version.trials.drawn.answered).sum::<u64>(), 1, "the answer was counted");
}

#[test]
fn whoever_was_not_sent_by_the_kernel_is_refused() {
    let stage = Stage::new("hself", &[split(false, 50, 50)]);
    let mut direct = stage.lab.node.command("curl");
    let direct = direct.args(["-skS", "--max-time", "10", "https://169.254.77.77:15443/"]).output().expect("curl runs");
    assert!(!direct.status.success() && direct.stdout.is_empty(), "{direct:?}");
}
