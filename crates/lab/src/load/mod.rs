//! The load generator: HTTP/1.1 or UDP requests from one thread inside a namespace, counted by phase, version and error.
//!
//! A *phase* is a number that the caller raises ([`Load::next_phase`]) when the world changes: every request and connection counts in the phase
//! in which it began, so that what straddles a change is never blamed on either side.

mod engine;
mod slot;

use crate::{histogram::Histogram, lab::Namespace, pace};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http,
    /// A datagram and its answer: `NAME payload`.
    Udp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// One connection (or UDP socket) a slot for as long as it lives.
    KeepAlive,
    /// A new one for every request.
    New,
}

/// One kind of request, and who may answer it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// See [`crate::serve::PATHS`]: `/`, `/bytes/N`, `/chunked/N`, `/dribble/N`, `/echo`; bodies are checked byte by byte.
    pub path: String,
    /// Further lines of the head, each with its line end.
    pub headers: String,
    /// Makes it a POST.
    pub body: Option<Vec<u8>>,
    /// Names that `x-version` may carry; empty: any.
    pub expect: Vec<String>,
}

impl Kind {
    pub fn get(path: &str) -> Kind {
        Kind { path: path.into(), ..Kind::default() }
    }

    fn bytes(&self, plan: &Plan) -> Vec<u8> {
        let connection = if plan.reuse == Reuse::New { "close" } else { "keep-alive" };
        let method = if self.body.is_some() { "POST" } else { "GET" };
        let length = self.body.as_ref().map(|body| format!("content-length: {}\r\n", body.len())).unwrap_or_default();
        let Kind { path, headers, .. } = self;
        let head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}{length}connection: {connection}\r\n\r\n", plan.target);
        [head.as_bytes(), self.body.as_deref().unwrap_or_default()].concat()
    }
}

/// What to send. Begin with [`Plan::http`] or [`Plan::udp`].
#[derive(Clone, Debug)]
pub struct Plan {
    pub target: SocketAddr,
    pub protocol: Protocol,
    /// HTTP, when there are no `kinds`: `/` or `/bytes/N`, whose bodies are checked byte by byte.
    pub path: String,
    /// Kinds of requests, in an order that looks random and is the same in every run.
    pub kinds: Vec<Kind>,
    pub reuse: Reuse,
    /// Requests in flight at most.
    pub concurrency: usize,
    /// Requests a second, evenly spaced; latency then counts from when a request was due. `None`: as fast as answers come.
    pub rate: Option<f64>,
    /// Ends after this many requests.
    pub requests: Option<u64>,
    /// Ends after this long.
    pub duration: Option<Duration>,
    /// From begin to last byte.
    pub timeout: Duration,
    /// Source addresses in turn; empty leaves it to the kernel.
    pub sources: Vec<IpAddr>,
}

impl Plan {
    /// `GET /`, a new connection a request, 16 at a time, until stopped.
    pub fn http(target: SocketAddr) -> Plan {
        Plan {
            target,
            protocol: Protocol::Http,
            path: "/".into(),
            kinds: Vec::new(),
            reuse: Reuse::New,
            concurrency: 16,
            rate: None,
            requests: None,
            duration: None,
            timeout: Duration::from_secs(5),
            sources: Vec::new(),
        }
    }

    /// A datagram and its answer, a new socket a request.
    pub fn udp(target: SocketAddr) -> Plan {
        Plan { protocol: Protocol::Udp, timeout: Duration::from_secs(1), ..Plan::http(target) }
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// Connection refused, or port unreachable.
    Refused,
    Reset,
    Timeout,
    /// No route, or an ICMP error.
    Unreachable,
    /// The peer closed before the answer was whole.
    Truncated,
    /// The answer was not HTTP, or not the body it should be.
    WrongBody,
    /// A status other than 200.
    Status,
    /// A whole answer from a server that should not have got the request.
    WrongVersion,
    /// An idle kept connection was closed or reset.
    Lost,
    /// The client's own machine: no port, no descriptor.
    Local,
}

/// One version's part in a phase.
#[derive(Clone, Debug, Default)]
pub struct Version {
    /// Connections (UDP: sockets) whose first answer came from it.
    pub connections: u64,
    pub requests: u64,
    pub latency: Histogram,
}

/// Counts of one phase.
#[derive(Clone, Debug, Default)]
pub struct Phase {
    pub versions: BTreeMap<String, Version>,
    pub errors: BTreeMap<ErrorKind, u64>,
    /// The first error in words, for a person.
    pub first_error: Option<String>,
    /// Requests begun; those not yet answered are in neither versions nor errors.
    pub begun: u64,
    pub bytes: u64,
}

impl Phase {
    pub fn requests(&self) -> u64 {
        self.versions.values().map(|version| version.requests).sum()
    }

    pub fn connections(&self) -> u64 {
        self.versions.values().map(|version| version.connections).sum()
    }

    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Latency over all versions.
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::default();
        self.versions.values().for_each(|version| all.merge(&version.latency));
        all
    }

    pub fn merge(&mut self, other: &Phase) {
        for (name, theirs) in &other.versions {
            let mine = self.versions.entry(name.clone()).or_default();
            mine.connections += theirs.connections;
            mine.requests += theirs.requests;
            mine.latency.merge(&theirs.latency);
        }
        for (kind, count) in &other.errors {
            *self.errors.entry(*kind).or_default() += count;
        }
        self.first_error = self.first_error.take().or_else(|| other.first_error.clone());
        self.begun += other.begun;
        self.bytes += other.bytes;
    }
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    phase: AtomicUsize,
    phases: Mutex<Vec<Phase>>,
}

impl Shared {
    fn phases(&self) -> MutexGuard<'_, Vec<Phase>> {
        self.phases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running load; stops when dropped.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a load did.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub phases: Vec<Phase>,
    pub elapsed: Duration,
}

impl Outcome {
    pub fn total(&self) -> Phase {
        let mut total = Phase::default();
        self.phases.iter().for_each(|phase| total.merge(phase));
        total
    }
}

impl Load {
    /// Starts in a thread of the given namespace, or of the caller's.
    pub fn start(namespace: Option<&Namespace>, plan: Plan) -> Result<Load> {
        ensure!(plan.concurrency > 0 && plan.rate.is_none_or(|rate| rate > 0.0), "a load needs concurrency and a rate above zero");
        // A slow machine is asked less, and waited for longer.
        let plan = Plan { rate: plan.rate.map(pace::rate), timeout: pace::patience(plan.timeout), ..plan };
        let shared = Arc::new(Shared::default());
        shared.phases().push(Phase::default());
        let (ours, namespace) = (shared.clone(), namespace.cloned());
        let work = move || {
            if let Some(namespace) = namespace {
                namespace.enter()?;
            }
            engine::Engine::new(plan, ours)?.run()
        };
        let thread = std::thread::Builder::new().name("load".into()).spawn(work)?;
        Ok(Load { shared, thread: Some(thread) })
    }

    /// Runs a bounded plan to its end.
    pub fn run(namespace: Option<&Namespace>, plan: Plan) -> Result<Outcome> {
        ensure!(plan.requests.is_some() || plan.duration.is_some(), "this load would never end");
        let began = Instant::now();
        let mut load = Load::start(namespace, plan)?;
        load.join()?;
        Ok(Outcome { phases: load.shared.phases().clone(), elapsed: began.elapsed() })
    }

    /// Whether it still runs; a bounded plan ends by itself.
    pub fn running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// What begins from now on counts in a new phase; returns its number.
    pub fn next_phase(&self) -> usize {
        let mut phases = self.shared.phases();
        phases.push(Phase::default());
        self.shared.phase.store(phases.len() - 1, Ordering::SeqCst);
        phases.len() - 1
    }

    /// A copy of a phase's counts now.
    pub fn snapshot(&self, phase: usize) -> Phase {
        self.shared.phases().get(phase).cloned().unwrap_or_default()
    }

    /// Begins no more requests, waits for those in flight (at most the plan's timeout).
    pub fn stop(mut self) -> Result<Vec<Phase>> {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.join()?;
        Ok(self.shared.phases().clone())
    }

    fn join(&mut self) -> Result<()> {
        match self.thread.take() {
            Some(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            None => Ok(()),
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        // An error has nobody left to read it.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
