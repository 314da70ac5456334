//! The live rows: a real agent, a canary with a fault, clients that see it; and what 1,000 rollouts cost.

use crate::cases::{Place, Rows, Samples, synthetic};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::{
    admin::Admin,
    agent::Site,
    lab::{Lab, Namespace, Options, VIP4},
    load::{Load, Plan},
};
use std::{
    collections::VecDeque,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);
const MANY: u32 = 1_000;

/// What is wrong with the canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Parts in a thousand of its connections, once it has read their request.
    Resets(u32),
    /// Every request.
    Hangs,
    Closes,
    /// Its node refuses by ICMP.
    Rejects,
    /// It has no backend that is ready: the node answers 503.
    Nobody,
}

/// Name, mode, first share of the canary, requests a second, fault.
const FAULTS: [(&str, &str, &str, f64, Fault); 6] = [
    ("all-fail-200rps", "tcp", "50%", 400.0, Fault::Resets(1_000)),
    ("5%-fail-50rps", "tcp", "5%", 1_000.0, Fault::Resets(50)),
    ("hangs-for-1s-200rps", "http", "50%", 400.0, Fault::Hangs),
    ("closes-200rps", "http", "50%", 400.0, Fault::Closes),
    ("refused-by-icmp-200rps", "http", "50%", 400.0, Fault::Rejects),
    ("503-of-the-node-200rps", "http", "50%", 400.0, Fault::Nobody),
];

pub fn detection(place: &Place, runs: u32, rows: &mut Rows) -> Result<()> {
    let lab = Lab::with("rollout", Options { backends: 2, ..Options::default() })?;
    let manner = Manner::default();
    let _servers = [Server::start(lab.backend(1), "v1", Manner::default())?, Server::start(lab.backend(2), "v2", manner.clone())?];
    // One client address stands for many here, and the kernel sends each but one error a second.
    inside(&lab, "sysctl -qw net.ipv4.icmp_ratelimit=0")?;
    for (name, mode, share, rate, fault) in FAULTS {
        let rollout = format!(
            "  rollout: {{canary: v2, steps: [{share}, 100%], dwell: 10m, warmUp: 0s, coolDown: 0s, gates: {{errorRate: {{max: 1%, \
             unanswered: 1s}}}}}}\n"
        );
        let mut policy = synthetic::real(100, 0).replace("mode: tcp", &format!("mode: {mode}"));
        if fault == Fault::Nobody {
            let backend = format!("\"10.2.2.2:{}\"", synthetic::BACK_PORT);
            policy = policy.replace(&backend, &format!("{{address: {backend}, state: down}}"));
        }
        let site = Site::new(&place.splitter, &lab.node, &(policy + &rollout))?;
        let agent = site.start(1)?;
        let mut seen = Seen::default();
        for _ in 0..runs {
            one(&lab, &site, rate, fault, &manner, &mut seen).with_context(|| site.log_tail())?;
        }
        rows.add_quantiles("live", &format!("{name}_start_to_rollback_seconds"), &seen.rollback, None);
        // With few failures the watchers, who see a part of the requests, may have met none.
        if !seen.span.is_empty() {
            rows.add_quantiles("live", &format!("{name}_first_to_last_failed_request_seconds"), &seen.span, None);
        }
        rows.add_median("live", &format!("{name}_failed_requests"), &seen.failed, None);
        agent.stop(PATIENCE)?;
        site.detach()?;
        site.remove()?;
    }
    lab.remove()
}

/// Runs a command in the canary's namespace.
fn inside(lab: &Lab, words: &str) -> Result<()> {
    let namespace = format!("--net=/run/netns/{}", lab.backend(2).name());
    let output = std::process::Command::new("nsenter").arg(namespace).args(words.split(' ')).output()?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn reject(lab: &Lab, action: &str) -> Result<()> {
    inside(lab, &format!("iptables -{action} INPUT -p tcp --dport {} -j REJECT --reject-with icmp-port-unreachable", synthetic::BACK_PORT))
}

#[derive(Default)]
struct Seen {
    /// From the start of the rollout to the rollback, by the audit log.
    rollback: Samples,
    /// From the begin of the first request that failed to the begin of the last one.
    span: Samples,
    failed: Samples,
}

/// One rollout with a canary that is bad from the begin.
fn one(lab: &Lab, site: &Site, rate: f64, fault: Fault, manner: &Manner, seen: &mut Seen) -> Result<()> {
    const WATCHERS: usize = 2;
    manner.set(Some(fault));
    if fault == Fault::Rejects {
        reject(lab, "I")?;
    }
    // Most of the load comes from one client; the watchers see single failures. Together they are the rate.
    let watched = (rate / 4.0).min(100.0);
    let plan = Plan { rate: Some(rate - watched), concurrency: 1_000, ..Plan::http(SocketAddr::new(VIP4.into(), synthetic::FRONT_PORT)) };
    let load = Load::start(Some(lab.client()), plan)?;
    let watchers = Watchers::start(lab, WATCHERS, watched / WATCHERS as f64)?;
    std::thread::sleep(Duration::from_millis(500));
    site.cli(&["rollout", "start", synthetic::REAL])?;
    let end = Instant::now() + PATIENCE;
    loop {
        let status: Value = serde_json::from_str(&site.cli(&["rollout", "status", synthetic::REAL, "-o", "json"])?.0)?;
        if status["phase"] == "rolled-back" {
            break;
        }
        ensure!(Instant::now() < end, "the canary was not taken back: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(500));
    let failures = watchers.stop()?;
    let phases = load.stop()?;
    manner.set(None);
    if fault == Fault::Rejects {
        reject(lab, "D")?;
    }
    let history: Vec<Value> = serde_json::from_str(&site.cli(&["rollout", "history", synthetic::REAL, "-o", "json"])?.0)?;
    let at = |event: &str| history.iter().rev().find(|e| e["event"] == event).and_then(|e| e["at"].as_f64()).context("an event is missing");
    seen.rollback.push(at("rolled-back")? - at("started")?);
    seen.failed.push(phases.iter().map(|phase| phase.failed()).sum::<u64>() as f64 + failures.len() as f64);
    if let (Some(first), Some(last)) = (failures.iter().min(), failures.iter().max()) {
        seen.span.push((*last - *first).as_secs_f64());
    }
    Ok(())
}

/// Clients that open one connection after the other, evenly spaced, and note when those began that failed.
struct Watchers {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Vec<Instant>>>>,
}

impl Watchers {
    fn start(lab: &Lab, count: usize, rate: f64) -> Result<Watchers> {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |_| {
            let (namespace, ours) = (lab.client().clone(), stop.clone());
            let work = move || {
                namespace.enter()?;
                let (mut failed, began, mut count) = (Vec::new(), Instant::now(), 0u32);
                while !ours.load(Ordering::Relaxed) {
                    count += 1;
                    let due = began + Duration::from_secs_f64(f64::from(count) / rate);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let begun = Instant::now();
                    if request().is_err() {
                        failed.push(begun);
                    }
                }
                Ok(failed)
            };
            Ok(std::thread::Builder::new().name("watcher".into()).spawn(work)?)
        };
        let threads = (0..count).map(watch).collect::<Result<Vec<_>>>()?;
        Ok(Watchers { stop, threads })
    }

    fn stop(self) -> Result<Vec<Instant>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for thread in self.threads {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(all)
    }
}

fn request() -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(VIP4.into(), synthetic::FRONT_PORT), Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") { Ok(()) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) }
}

/// How a server treats requests; the same for all who hold it.
#[derive(Clone, Default)]
struct Manner {
    /// Parts in a thousand that have a fault, and whether that is a hang, an end, or a reset.
    part: Arc<AtomicU32>,
    kind: Arc<AtomicU32>,
}

const RESETS: u32 = 0;
const HANGS: u32 = 1;
const CLOSES: u32 = 2;

impl Manner {
    fn set(&self, fault: Option<Fault>) {
        let (part, kind) = match fault {
            Some(Fault::Resets(part)) => (part, RESETS),
            Some(Fault::Hangs) => (1_000, HANGS),
            Some(Fault::Closes) => (1_000, CLOSES),
            Some(Fault::Rejects | Fault::Nobody) | None => (0, RESETS),
        };
        self.kind.store(kind, Ordering::Relaxed);
        self.part.store(part, Ordering::Relaxed);
    }
}

/// A server of which every nth connection meets a fault.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &Namespace, name: &'static str, manner: Manner) -> Result<Server> {
        let listener = namespace.run(|| TcpListener::bind(("0.0.0.0", synthetic::BACK_PORT)))??;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ours = stop.clone();
        let work = move || {
            let (mut due, mut held) = (0, VecDeque::new());
            while !ours.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                };
                due += manner.part.load(Ordering::Relaxed);
                let fault = due >= 1_000;
                due -= if fault { 1_000 } else { 0 };
                let kind = manner.kind.load(Ordering::Relaxed);
                if fault && kind == HANGS {
                    held.push_back(stream);
                    // Their clients have given up long ago.
                    if held.len() > 4_000 {
                        held.pop_front();
                    }
                    continue;
                }
                // A client that went away is its own affair.
                let _ = serve(stream, name, fault, kind);
            }
        };
        Ok(Server { stop, thread: Some(std::thread::Builder::new().name(name.into()).spawn(work)?) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn serve(mut stream: TcpStream, name: &str, fault: bool, kind: u32) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut request = [0; 1024];
    // The whole request comes in one segment; one that ends early is answered all the same.
    let _ = stream.read(&mut request)?;
    if fault && kind == CLOSES {
        return Ok(());
    }
    if fault {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        // SAFETY: the option lives through the call.
        unsafe {
            let option = (&raw const linger).cast();
            libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, option, size_of::<libc::linger>() as u32);
        }
        return Ok(());
    }
    let length = name.len() + 1;
    stream.write_all(
        format!("HTTP/1.1 200 OK\r\nx-version: {name}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{name}\n").as_bytes(),
    )
}

/// CPU time of an agent with 1,000 rollouts beside the same agent before they began, without traffic: what reading the kernel and looking
/// costs. What a step with traffic costs is a simulated row.
pub fn cost(place: &Place, seconds: u64, rows: &mut Rows) -> Result<()> {
    let lab = Lab::with("rollouts", Options { backends: 2, ..Options::default() })?;
    let gates = "gates: {errorRate: {max: 1%}, latency: {quantile: 0.99, maxIncrease: 20%}}";
    let rollout = format!("  rollout: {{canary: v2, dwell: 10h, {gates}}}\n");
    let policy: String = (1..=MANY).map(|i| synthetic::filler(i, 0) + &rollout).collect();
    let site = Site::new(&place.splitter, &lab.node, &policy)?;
    let agent = site.start(u64::from(MANY))?;
    let admin = Admin::new(&site.socket());
    let percent = || -> Result<f64> {
        let (began, before) = (Instant::now(), cpu_seconds(agent.pid())?);
        std::thread::sleep(Duration::from_secs(seconds));
        Ok((cpu_seconds(agent.pid())? - before) / began.elapsed().as_secs_f64() * 100.0)
    };
    let idle = percent()?;
    for i in 1..=MANY {
        admin.rollout(&synthetic::name(i), "start")?;
    }
    let judging = percent()?;
    let looks = site.status()?["rollout_looks"].clone();
    rows.add("agent-idle", "cpu_percent", idle, None);
    rows.add("1000-rollouts", "cpu_percent", judging, None);
    rows.add("1000-rollouts", "judge_cpu_percent", judging - idle, None);
    rows.add("1000-rollouts", "look_ms", looks[0].as_f64().context("no cost of looks")? * 1e3, None);
    rows.add("1000-rollouts", "looks_per_second", 1.0 / looks[1].as_f64().context("no pace of looks")?, None);
    agent.stop(PATIENCE)?;
    site.detach()?;
    site.remove()?;
    lab.remove()
}

/// CPU time of a process, user and system, all threads (proc(5), fields 14 and 15 of stat).
fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("odd /proc/PID/stat");
    // SAFETY: no pointers.
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Ok((ticks(11)? + ticks(12)?) as f64 / hz)
}
