//! Rollouts of `mode: http`: the status codes that the kernel counts take a canary back.

use crate::support::{Bed, PORT, Split, eventually, no_failures, run_on, vip};
use serde_json::Value;
use splitter_lab::load::{ErrorKind, Plan, Reuse};
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// Half of 400 requests a second go to the canary.
const HALF: &str = "rollout: {canary: v2, steps: [50%, 100%], dwell: 10m, warmUp: 0s, coolDown: 0s, gates: {errorRate: {max: 1%}}}";
const RATE: f64 = 400.0;
/// From the first bad answer to the last request that the canary gets.
const BAR: Duration = Duration::from_millis(500);
/// The median of these counts, so that one pause of a busy machine does not.
const RUNS: usize = 3;

type Arrivals = Arc<Mutex<Vec<Instant>>>;

/// Answers 500 to every request and notes when each one came.
struct Failing {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    arrivals: Arrivals,
}

impl Failing {
    fn start(bed: &Bed, backend: usize) -> Failing {
        let bind = || TcpListener::bind(("0.0.0.0", PORT));
        let listener = bed.lab.backend(backend).run(bind).expect("a namespace").expect("a free port");
        listener.set_nonblocking(true).expect("a listener");
        let (stop, arrivals) = (Arc::new(AtomicBool::new(false)), Arrivals::default());
        let (ours, seen) = (stop.clone(), arrivals.clone());
        let accept = move || {
            while !ours.load(Ordering::Relaxed) {
                match listener.accept() {
                    // A connection's thread ends with the connection.
                    Ok((stream, _)) => drop(std::thread::spawn({
                        let seen = seen.clone();
                        move || fail(stream, &seen)
                    })),
                    Err(_) => std::thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        Failing { stop, thread: Some(std::thread::spawn(accept)), arrivals }
    }

    /// All requests so far, but for the first ones.
    fn arrivals(&self, skip: usize) -> Vec<Instant> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)[skip..].to_vec()
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn fail(mut stream: TcpStream, arrivals: &Arrivals) {
    let (mut text, mut piece) = (Vec::new(), [0; 4096]);
    let ready = stream.set_nonblocking(false).is_ok() && stream.set_read_timeout(Some(Duration::from_secs(60))).is_ok();
    if !ready {
        return;
    }
    loop {
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => text.extend_from_slice(&piece[..length]),
        }
        while let Some(end) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            text.drain(..end + 4);
            arrivals.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            if stream.write_all(b"HTTP/1.1 500 Internal Server Error\r\nx-version: b3\r\ncontent-length: 0\r\n\r\n").is_err() {
                return;
            }
        }
    }
}

/// Times in which the machine had no CPU for a thread that only wanted to wake up: they are nobody's reaction time.
struct Pauses {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    seen: Arc<Mutex<Vec<(Instant, Instant)>>>,
}

impl Pauses {
    fn watch() -> Pauses {
        const NAP: Duration = Duration::from_millis(5);
        const LATE: Duration = Duration::from_millis(2);
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (ours, noted): (_, Arc<Mutex<Vec<_>>>) = (stop.clone(), Arc::clone(&seen));
        let watch = move || {
            while !ours.load(Ordering::Relaxed) {
                let due = Instant::now() + NAP;
                std::thread::sleep(NAP);
                let now = Instant::now();
                if now - due > LATE {
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push((due, now));
                }
            }
        };
        Pauses { stop, thread: Some(std::thread::spawn(watch)), seen }
    }

    /// What is left of a time without them.
    fn without(&self, from: Instant, to: Instant) -> Duration {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let paused: Duration = seen.iter().map(|(begin, end)| (*end).min(to).saturating_duration_since((*begin).max(from))).sum();
        (to - from).saturating_sub(paused)
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// One rollout: how long the canary got requests, and how many.
fn taken_back(bed: &Bed, canary: &Failing, pauses: &Pauses) -> (Duration, usize) {
    let before = canary.arrivals(0).len();
    bed.cli(&["rollout", "start", "web"]);
    let status = || serde_json::from_str::<Value>(&bed.cli(&["rollout", "status", "web", "-o", "json"])).expect("JSON");
    eventually("the canary is taken back", || (status()["phase"] == "rolled-back").then_some(()));
    // Long enough for any request that still comes.
    run_on(Duration::from_secs(1));
    let arrivals = canary.arrivals(before);
    let (first, last) = (arrivals.first().expect("requests at the canary"), arrivals.last().expect("the same"));
    let weights: Vec<f64> = bed.service("web").versions.iter().map(|version| version.weight_ratio).collect();
    assert_eq!(weights, [1.0, 0.0]);
    (pauses.without(*first, *last), arrivals.len())
}

fn a_canary_of_500s(name: &str, reuse: Reuse) {
    let mut bed = Bed::new(name, &[Split::http(100, 0).with(HALF)]);
    bed.stop_server(3);
    let canary = Failing::start(&bed, 3);
    let load = bed.start_load(Plan { rate: Some(RATE), reuse, ..Plan::http(vip(false)) });
    run_on(Duration::from_millis(500));
    let pauses = Pauses::watch();
    let mut runs: Vec<(Duration, usize)> = (0..RUNS).map(|_| taken_back(&bed, &canary, &pauses)).collect();
    let phase = load.stop().unwrap().remove(0);
    // Those too that came late, between two rollouts.
    let bad = canary.arrivals(0).len() as u64;
    // The canary's answers come through as they are, and nothing else fails.
    assert_eq!(phase.errors, [(ErrorKind::Status, bad)].into(), "{:?}", phase.first_error);
    let history: Vec<Value> = serde_json::from_str(&bed.cli(&["rollout", "history", "web", "-o", "json"])).expect("JSON");
    assert_eq!(history.last().unwrap()["by"], "gate errorRate", "{history:#?}");
    println!("{reuse:?}: from the first bad answer to the last request at the canary, and requests: {runs:?}");
    runs.sort_unstable();
    assert!(runs[RUNS / 2].0 < BAR, "{runs:?}");
}

#[test]
fn a_canary_that_answers_500_is_taken_back() {
    a_canary_of_500s("bad500", Reuse::New);
}

/// Kept connections leave the canary too: their next requests go elsewhere.
#[test]
fn a_canary_that_answers_500_on_kept_connections_is_taken_back() {
    a_canary_of_500s("kept500", Reuse::KeepAlive);
}

/// A few kept connections have a leg to each version all the time: what is compared with the asked share is requests, not those.
#[test]
fn the_share_of_kept_connections_is_that_of_their_requests() {
    const STEPS: &str = "rollout: {canary: v2, steps: [10%, 50%, 100%], pace: adaptive, dwell: 1s, watch: 1s, warmUp: 0s, minSamples: 50, coolDown: 0s, \
                         gates: {errorRate: {max: 10%, margin: 10%}, share: {tolerance: 30%}}}";
    let bed = Bed::new("share", &[Split::http(100, 0).with(STEPS)]);
    let load = bed.start_load(Plan { rate: Some(RATE), reuse: Reuse::KeepAlive, ..Plan::http(vip(false)) });
    bed.cli(&["rollout", "start", "web"]);
    let end = Instant::now() + Duration::from_secs(60);
    let phase = loop {
        let status: Value = serde_json::from_str(&bed.cli(&["rollout", "status", "web", "-o", "json"])).expect("JSON");
        if ["promoted", "rolled-back"].iter().any(|last| status["phase"] == *last) || Instant::now() > end {
            break status;
        }
        run_on(Duration::from_millis(50));
    };
    assert_eq!(phase["phase"], "promoted", "{phase:#}");
    load.stop().unwrap().iter().for_each(|phase| no_failures("during the rollout", phase));
}
