//! The lab itself, with real servers: needs root and iproute2, and fails without them.

use splitter_lab::{
    lab::{Lab, Namespace, Options, Process, namespaces_of},
    load::{ErrorKind, Load, Plan, Reuse},
    serve,
};
use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn server(namespace: &Namespace, name: &str, listen: &str) -> Process {
    let words = ["--listen", listen, "--name", name, "--udp"].map(String::from);
    let options = serve::Options::parse(words).unwrap();
    let mut command = namespace.command(env!("CARGO_BIN_EXE_splitter-bench"));
    let process = Process::spawn(name, command.arg("serve").args(options.arguments())).unwrap();
    let port: SocketAddr = listen.parse().unwrap();
    let local = SocketAddr::new([127, 0, 0, 1].into(), port.port());
    namespace.run(|| process.wait_listening(local, PATIENCE)).unwrap().unwrap();
    process
}

fn bounded(plan: Plan, requests: u64) -> Plan {
    Plan { requests: Some(requests), ..plan }
}

fn answers(lab: &Lab, plan: Plan, requests: u64, from: &str) {
    let what = format!("{:?} {:?} to {}", plan.protocol, plan.reuse, plan.target);
    let total = Load::run(Some(lab.client()), bounded(plan, requests)).unwrap().total();
    assert_eq!(total.failed(), 0, "{what}: {:?} {:?}", total.errors, total.first_error);
    assert_eq!(total.versions.keys().collect::<Vec<_>>(), [from], "{what}");
    assert_eq!(total.requests(), requests, "{what}");
}

#[test]
fn requests_are_routed_through_the_node_and_nothing_is_left() {
    let lab = Lab::with("route", Options { backends: 2, ..Options::default() }).unwrap();
    let name = lab.name().to_owned();
    assert_eq!(namespaces_of(&name).len(), 4);
    let servers = [server(lab.backend(1), "v1", "[::]:8080"), server(lab.backend(2), "v2", "[::]:8080")];
    for v6 in [false, true] {
        for (i, version) in [(1, "v1"), (2, "v2")] {
            let target = lab.backend_addr(i, v6, 8080);
            answers(&lab, Plan::http(target), 200, version);
            answers(&lab, Plan { reuse: Reuse::KeepAlive, ..Plan::http(target) }, 200, version);
            answers(&lab, Plan { path: "/bytes/1000000".into(), ..Plan::http(target) }, 20, version);
            answers(&lab, Plan::udp(target), 200, version);
        }
    }
    let forwarded = lab.node.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let forwarded: u64 = forwarded.lines().nth(1).and_then(|line| line.split(' ').nth(6)).unwrap().parse().unwrap();
    assert!(forwarded > 1000, "the node forwarded only {forwarded} packets");
    let pids: Vec<u32> = servers.iter().map(Process::pid).collect();
    lab.remove().unwrap();
    assert_eq!(namespaces_of(&name), Vec::<String>::new());
    drop(servers);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "server {pid} lives on");
    }
}

#[test]
fn variants_carry_traffic() {
    let variants = [
        ("many", Options { backends: 1, clients: 3, ..Options::default() }),
        ("shared", Options { backends: 1, shared_segment: true, clients: 2, ..Options::default() }),
        ("plain", Options { backends: 1, offloads: false, client_mtu: 9000, backend_mtu: 1400, ..Options::default() }),
    ];
    for (name, options) in variants {
        let clients = options.clients;
        let lab = Lab::with(name, options).unwrap();
        let options = serve::Options::parse(["--listen", "[::]:80", "--name", "v1"].map(String::from)).unwrap();
        let server = serve::Background::start(lab.backend(1), &options).unwrap();
        for v6 in [false, true] {
            for k in 0..clients {
                let plan = Plan { path: "/bytes/100000".into(), requests: Some(20), ..Plan::http(lab.backend_addr(1, v6, 80)) };
                let plan = Plan { sources: vec![lab.client_ip(k, v6)], ..plan };
                let total = Load::run(Some(&lab.clients()[k]), plan).unwrap().total();
                assert_eq!((total.requests(), total.failed()), (20, 0), "{name} v6 {v6} client {k}: {:?}", total.first_error);
            }
        }
        drop(server);
        let total = Load::run(Some(lab.client()), bounded(Plan::http(lab.backend_addr(1, false, 80)), 1)).unwrap().total();
        assert!(total.errors.contains_key(&ErrorKind::Refused), "{name}: {total:?}");
        lab.remove().unwrap();
    }
}

#[test]
fn phases_rates_and_errors_are_told_apart() {
    let lab = Lab::with("phase", Options { backends: 1, ..Options::default() }).unwrap();
    let target = lab.backend_addr(1, false, 8080);
    let server = server(lab.backend(1), "v1", "[::]:8080");
    let load = Load::start(Some(lab.client()), Plan { rate: Some(500.0), ..Plan::http(target) }).unwrap();
    let began = Instant::now();
    std::thread::sleep(Duration::from_millis(600));
    let elapsed = began.elapsed().as_secs_f64();
    let second = load.next_phase();
    // What is in flight gets its answer.
    std::thread::sleep(Duration::from_millis(200));
    server.kill();
    std::thread::sleep(Duration::from_millis(300));
    assert!(load.running());
    let phases = load.stop().unwrap();
    let (expected, begun) = (500.0 * elapsed, phases[0].begun as f64);
    assert!((expected * 0.5..expected * 1.1).contains(&begun), "500 a second for {elapsed} s began {begun}");
    assert_eq!(phases[0].failed(), 0, "{:?}", phases[0]);
    assert!(phases[second].failed() >= 20, "{:?}", phases[second].errors);
    assert!(phases[second].errors.contains_key(&ErrorKind::Refused), "{:?}", phases[second].errors);
    lab.remove().unwrap();
}

/// `splitter-bench lab up`, once its network stands; with the common name of its namespaces.
fn held_lab() -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_splitter-bench"));
    let mut child = command.args(["lab", "up"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("ready")), "the lab did not come up");
    let name = format!("spl-{}-hold", child.id());
    assert_eq!(namespaces_of(&name).len(), 5);
    (child, name)
}

#[test]
fn signals_and_the_next_start_leave_nothing() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let (mut child, name) = held_lab();
        // SAFETY: plain system call; the child is not reaped yet.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal));
        assert_eq!(namespaces_of(&name), Vec::<String>::new());
    }
    let (mut child, name) = held_lab();
    let namespace = Namespace::open(&namespaces_of(&name)[0]).unwrap();
    let guest = Process::spawn("sleep", namespace.command("sleep").arg("600")).unwrap();
    drop(namespace);
    child.kill().unwrap();
    child.wait().unwrap();
    splitter_lab::lab::sweep().unwrap();
    assert_eq!(namespaces_of(&name), Vec::<String>::new());
    assert!(guest.exited().is_some(), "a process in a swept namespace lives on");
}
