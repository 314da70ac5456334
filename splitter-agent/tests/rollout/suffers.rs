//! What clients suffer counts: a real rollout for each fault, with real servers, over IPv4 and IPv6, with `mode: http` and `tcp`.

use crate::support::{Bed, PORT, Split, eventually, run_on, vip};
use serde_json::Value;
use splitter_lab::load::{Kind, Plan};
use std::{
    io::{Read, Write},
    net::{Ipv6Addr, Shutdown, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

const GATES: &str = "{errorRate: {max: 5%, margin: 5%, unanswered: 1s, codes: [5xx, 404]}}";

fn rollout(more: &str) -> String {
    format!("rollout: {{canary: v2, steps: [20%, 50%, 100%], dwell: 10m, warmUp: 0s, coolDown: 0s, gates: {GATES}{more}}}")
}

/// How the canary's server treats requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Good,
    /// Accepts, reads, never answers.
    Hangs,
    /// The same for three of ten.
    SometimesHangs,
    Closes,
    CutsLength,
    CutsChunks,
    NotFound,
    /// 500 to requests with the tag, 200 to others; and the reverse.
    FailsTagged,
    FailsOthers,
}

/// A server whose manner can change.
struct Server {
    stop: Arc<AtomicBool>,
    manner: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

const MANNERS: [Manner; 9] = [
    Manner::Good,
    Manner::Hangs,
    Manner::SometimesHangs,
    Manner::Closes,
    Manner::CutsLength,
    Manner::CutsChunks,
    Manner::NotFound,
    Manner::FailsTagged,
    Manner::FailsOthers,
];

impl Server {
    fn start(bed: &Bed, backend: usize) -> Server {
        let bind = || TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT));
        // The one that was here before may not have let go yet.
        let listener = eventually("a free port", || bed.lab.backend(backend).run(bind).expect("a namespace").ok());
        listener.set_nonblocking(true).expect("a listener");
        let (stop, manner) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (ours, now) = (stop.clone(), manner.clone());
        let accept = move || {
            let mut count = 0;
            while !ours.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        count += 1;
                        let manner = MANNERS[now.load(Ordering::Relaxed) as usize];
                        // A connection's thread ends with the connection.
                        drop(std::thread::spawn(move || serve(stream, manner, count)));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        Server { stop, manner, thread: Some(std::thread::spawn(accept)) }
    }

    fn set(&self, manner: Manner) {
        let index = MANNERS.iter().position(|known| *known == manner).expect("it is in the list");
        self.manner.store(index as u32, Ordering::Relaxed);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: TcpStream, manner: Manner, count: u32) {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    let ready = stream.set_nonblocking(false).is_ok() && stream.set_read_timeout(Some(Duration::from_secs(30))).is_ok();
    while ready && !text.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => text.extend_from_slice(&piece[..length]),
        }
    }
    let tagged = text.windows(9).any(|name| name.eq_ignore_ascii_case(b"x-canary:"));
    let status = match manner {
        Manner::Hangs => 0,
        Manner::SometimesHangs if count % 10 < 3 => 0,
        Manner::Closes => return,
        Manner::CutsLength => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-version: b3\r\ncontent-length: 100\r\n\r\nhalf");
            return;
        }
        Manner::CutsChunks => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx-version: b3\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n");
            return;
        }
        Manner::NotFound => 404,
        Manner::FailsTagged if tagged => 500,
        Manner::FailsOthers if !tagged => 500,
        _ => 200,
    };
    if status == 0 {
        // Until the client gives up.
        let _ = stream.read(&mut piece);
        return;
    }
    let _ = stream.write_all(format!("HTTP/1.1 {status} X\r\nx-version: b3\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes());
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.read(&mut piece);
}

fn status(bed: &Bed) -> Value {
    serde_json::from_str(&bed.cli(&["rollout", "status", "web", "-o", "json"])).expect("JSON")
}

fn split(v6: bool, http: bool, more: &str) -> Split {
    let split = Split { http, ..Split::tcp(100, 0) }.with(&rollout(more));
    if v6 { split.v6() } else { split }
}

/// Requests of which many may hang: 200 a second.
fn plan(v6: bool, timeout: Duration) -> Plan {
    Plan { rate: Some(200.0), concurrency: 400, timeout, ..Plan::http(vip(v6)) }
}

/// In a backend's own namespace.
fn inside(bed: &Bed, backend: usize, words: &str) {
    let name = bed.lab.backend(backend).name();
    let output = Command::new("nsenter").arg(format!("--net=/run/netns/{name}")).args(words.split(' ')).output().expect("nsenter runs");
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn taken_back(bed: &Bed, what: &str) {
    bed.cli(&["rollout", "start", "web"]);
    eventually(&format!("a canary that {what} is taken back"), || {
        let status = status(bed);
        assert_ne!(status["phase"], "promoted", "{what}");
        (status["phase"] == "rolled-back").then_some(())
    });
    let history: Vec<Value> = serde_json::from_str(&bed.cli(&["rollout", "history", "web", "-o", "json"])).expect("JSON");
    let last = history.last().expect("an event");
    assert_eq!(last["by"], "gate errorRate", "{what}: {last:#}");
    println!("{what}: {}", last["reason"]);
}

fn every_fault(name: &str, v6: bool, http: bool) {
    let split = || split(v6, http, "");
    let mut bed = Bed::new(name, &[split()]);
    bed.stop_server(3);
    let server = Server::start(&bed, 3);
    // Clients wait longer than `unanswered`.
    let load = bed.start_load(plan(v6, Duration::from_secs(3)));
    let read = [Manner::CutsLength, Manner::CutsChunks, Manner::NotFound];
    let all = [Manner::Hangs, Manner::SometimesHangs, Manner::Closes];
    // Without HTTP nobody reads what is in an answer.
    for manner in all.into_iter().chain(read.into_iter().filter(|_| http)) {
        server.set(manner);
        taken_back(&bed, &format!("{manner:?}"));
    }
    server.set(Manner::Good);
    // The node itself: no backend is ready.
    bed.apply(&[split().state(3, "down")]);
    taken_back(&bed, "has no backend");
    bed.apply(&[split()]);
    drop(load);
    // Clients give up before `unanswered`: the server does not answer, or does not even hear them.
    let load = bed.start_load(plan(v6, Duration::from_millis(500)));
    server.set(Manner::Hangs);
    taken_back(&bed, "hangs while clients are impatient");
    server.set(Manner::Good);
    let (tables, icmp) = if v6 { ("ip6tables", "icmp6-port-unreachable") } else { ("iptables", "icmp-port-unreachable") };
    for (target, what) in [("DROP".to_owned(), "drops SYNs"), (format!("REJECT --reject-with {icmp}"), "refuses by ICMP")] {
        inside(&bed, 3, "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0");
        inside(&bed, 3, &format!("{tables} -I INPUT -p tcp --dport {PORT} -j {target}"));
        taken_back(&bed, what);
        inside(&bed, 3, &format!("{tables} -D INPUT -p tcp --dport {PORT} -j {target}"));
    }
    drop(load);
}

#[test]
fn whatever_clients_suffer_takes_a_canary_back_over_ipv4() {
    every_fault("suffer4", false, true);
}

#[test]
fn whatever_clients_suffer_takes_a_canary_back_over_ipv6() {
    every_fault("suffer6", true, true);
}

#[test]
fn whatever_clients_suffer_takes_a_canary_of_tcp_back_over_ipv4() {
    every_fault("suftcp4", false, false);
}

#[test]
fn whatever_clients_suffer_takes_a_canary_of_tcp_back_over_ipv6() {
    every_fault("suftcp6", true, false);
}

/// What a rule sends to the canary is no evidence, neither for nor against it.
#[test]
fn tagged_requests_are_no_evidence() {
    const RULE: &str = "rules: [{match: {header: {name: X-Canary, value: always}}, version: v2}]";
    let mut bed = Bed::new("tagged", &[split(false, true, "").with(RULE)]);
    bed.stop_server(3);
    let server = Server::start(&bed, 3);
    let tagged = Kind { headers: "X-Canary: always\r\n".into(), ..Kind::get("/") };
    let flood = bed.start_load(Plan { rate: Some(300.0), kinds: vec![tagged], ..Plan::http(vip(false)) });
    let load = bed.start_load(plan(false, Duration::from_secs(3)));
    server.set(Manner::FailsTagged);
    bed.cli(&["rollout", "start", "web"]);
    run_on(Duration::from_secs(3));
    let good = status(&bed);
    assert_eq!(good["phase"], "running", "{good:#}");
    bed.cli(&["rollout", "abort", "web"]);
    server.set(Manner::FailsOthers);
    taken_back(&bed, "fails what the weights draw");
    // A rollout that steers by rule says so.
    bed.apply(&[split(false, true, ", judge: ruled").with(RULE)]);
    bed.cli(&["rollout", "start", "web"]);
    run_on(Duration::from_secs(2));
    assert_eq!(status(&bed)["phase"], "running");
    bed.cli(&["rollout", "abort", "web"]);
    server.set(Manner::FailsTagged);
    taken_back(&bed, "fails what a rule sends");
    drop((flood, load));
}
