//! A rollout over `mode: https`: what clients suffer takes the canary back, and what they do not suffer lets it through.

use crate::{
    stage::{Stage, split, url},
    support::{PORT, eventually, run_on},
};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const GOOD: u32 = 0;
const FAILS: u32 = 1;
const CLOSES: u32 = 2;
const HANGS: u32 = 3;
const CUTS: u32 = 4;

/// Something in the background, until it is dropped.
struct Running {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(work: impl Fn() + Send + 'static) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        let repeat = move || {
            while !seen.load(Ordering::Relaxed) {
                work();
            }
        };
        Running { stop, thread: Some(std::thread::spawn(repeat)) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// The canary's server; its manner can change.
fn server(stage: &Stage, manner: Arc<AtomicU32>) -> Running {
    let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT));
    let listener = eventually("a free port", || stage.lab.backend(3).run(bind).expect("a namespace").ok());
    listener.set_nonblocking(true).expect("a listener");
    Running::start(move || match listener.accept() {
        Ok((stream, _)) => {
            let manner = manner.load(Ordering::Relaxed);
            // A connection's thread ends with the connection.
            drop(std::thread::spawn(move || answer(stream, manner)));
        }
        Err(_) => std::thread::sleep(Duration::from_millis(1)),
    })
}

fn answer(mut stream: TcpStream, manner: u32) {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    let ready = stream.set_nonblocking(false).is_ok() && stream.set_read_timeout(Some(Duration::from_secs(10))).is_ok();
    while ready && !text.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => text.extend_from_slice(&piece[..length]),
        }
    }
    let said: &[u8] = match manner {
        CLOSES => return,
        HANGS => {
            // Until the client gives up.
            let _ = stream.read(&mut piece);
            return;
        }
        CUTS => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf",
        FAILS => b"HTTP/1.1 500 X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        _ => b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
    };
    let _ = stream.write_all(said);
}

fn status(stage: &Stage, name: &str) -> Value {
    serde_json::from_str(&stage.cli(&["rollout", "status", name, "-o", "json"])).expect("JSON")
}

fn judged(name: &str, v6: bool) {
    let gates = "{errorRate: {max: 5%, margin: 5%, unanswered: 1s}}";
    let rollout = format!("rollout: {{canary: v2, steps: [20%, 50%, 100%], dwell: 2s, warmUp: 0s, coolDown: 0s, gates: {gates}}}");
    let mut stage = Stage::new(name, &[split(v6, 100, 0).with(&rollout)]);
    let service = if v6 { "web6" } else { "web" };
    stage.bed.stop_server(3);
    let manner = Arc::new(AtomicU32::new(FAILS));
    let server = server(&stage, manner.clone());
    let mut load = stage.curl(v6, &["-Z", "--parallel-max", "40", "-m", "3", "-o", "/dev/null", &url("/?[1-200]")]);
    load.stdout(Stdio::null()).stderr(Stdio::null());
    let load = std::sync::Mutex::new(load);
    let load = Running::start(move || drop(load.lock().expect("one user").status()));
    for (kind, what) in [(FAILS, "fails"), (CLOSES, "closes"), (CUTS, "cuts"), (HANGS, "hangs")] {
        manner.store(kind, Ordering::Relaxed);
        stage.cli(&["rollout", "start", service]);
        eventually(&format!("a canary that {what} is taken back"), || {
            let status = status(&stage, service);
            assert_ne!(status["phase"], "promoted", "{what}");
            (status["phase"] == "rolled-back").then_some(())
        });
        let history: Vec<Value> = serde_json::from_str(&stage.cli(&["rollout", "history", service, "-o", "json"])).expect("JSON");
        let last = history.last().expect("an event");
        assert_eq!(last["by"], "gate errorRate", "{what}: {last:#}");
        println!("{what}: {}", last["reason"]);
    }
    manner.store(GOOD, Ordering::Relaxed);
    // Who hangs still would be evidence against what begins now.
    let trials = eventually("all trials of the canary end", || {
        let of = stage.service(service).versions[1].trials.drawn.clone();
        let ended = of.answered + of.refused + of.unopened + of.abandoned + of.closed + of.unavailable + of.overdue;
        (ended == of.begun).then_some(of)
    });
    assert!(trials.closed > 0 && trials.cut > 0 && trials.overdue > 0, "{trials:?}");
    stage.cli(&["rollout", "start", service]);
    // Some seconds for each of three steps.
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end && status(&stage, service)["phase"] == "running" {
        run_on(Duration::from_millis(100));
    }
    assert_eq!(status(&stage, service)["phase"], "promoted", "{:#}", status(&stage, service));
    drop((load, server));
}

#[test]
fn what_clients_suffer_takes_a_canary_back_over_ipv4() {
    judged("hjudge4", false);
}

#[test]
fn what_clients_suffer_takes_a_canary_back_over_ipv6() {
    judged("hjudge6", true);
}
