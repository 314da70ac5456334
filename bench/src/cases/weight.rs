//! The case `weight-latency`: how long a change of weights takes, as the operator sees it, as the kernel write takes, and as the first
//! connection shows it; with one service and with many.
//!
//! The client opens one connection after the other in a tight loop. The first one that a new weight decided is seen at the end of its
//! handshake, so that a figure contains up to one connection's time (`connection_us`).

use super::{
    Place, Rows, Samples,
    rows::again,
    synthetic::{self, BACK_PORT, FRONT_PORT, REAL},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::{
    admin::Admin,
    agent::Site,
    http::parse_response,
    lab::{Lab, Options, VIP4},
    serve,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const MANY: u32 = 40_000;
const PATIENCE: Duration = Duration::from_secs(60);
const ONE: &str = "1-service";

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let changes = if quick { 50 } else { 400 };
    for services in [1, MANY] {
        let lab = Lab::with("weight", Options { backends: 2, ..Options::default() })?;
        let _servers = servers(&lab)?;
        let mut policy = synthetic::real(100, 0);
        (1..services).for_each(|i| policy += &synthetic::filler(i, 10));
        let site = Site::new(&place.splitter, &lab.node, &policy)?;
        let agent = site.spawn()?;
        let admin = Admin::new(&site.socket());
        let ready = agent.wait_ready(PATIENCE, || admin.generation(REAL, "v1").is_some());
        ready.with_context(|| site.log_tail())?;
        let bench = Bench { site: &site, admin, lab: &lab, changes };
        let subject = if services == 1 { ONE.to_owned() } else { format!("{services}-services") };
        let baseline = (services != 1).then_some(ONE);
        bench.quiet(&subject, baseline, rows)?;
        if services == 1 {
            bench.quiet(&again(ONE), Some(ONE), rows)?;
        }
        bench.probed(&subject, baseline, rows)?;
        agent.stop(PATIENCE)?;
        site.detach()?;
        site.remove()?;
        lab.remove()?;
    }
    Ok(())
}

/// Two backends that answer with the name of their version.
fn servers(lab: &Lab) -> Result<Vec<serve::Background>> {
    (1..=2)
        .map(|i| {
            let words = ["--listen".into(), format!("[::]:{BACK_PORT}"), "--name".into(), format!("v{i}")];
            serve::Background::start(lab.backend(i), &serve::Options::parse(words)?)
        })
        .collect()
}

struct Bench<'a> {
    site: &'a Site,
    admin: Admin,
    lab: &'a Lab,
    changes: u32,
}

/// Weights of v1 and v2 of change `i`, and who gets everything.
fn weights(i: u32) -> ([(&'static str, u32); 2], &'static str) {
    if i.is_multiple_of(2) { ([("v1", 0), ("v2", 100)], "v2") } else { ([("v1", 100), ("v2", 0)], "v1") }
}

impl Bench<'_> {
    /// Without other traffic: the CLI from start to end, and the kernel write that the agent reports.
    fn quiet(&self, subject: &str, baseline: Option<&str>, rows: &mut Rows) -> Result<()> {
        let (mut trips, mut writes) = (Samples::default(), Samples::default());
        for i in 0..self.changes {
            let (took, write) = self.cli(i)?;
            trips.push(took.as_secs_f64() * 1e3);
            writes.push(write);
        }
        rows.add_quantiles(subject, "cli_round_trip_ms", &trips, baseline);
        rows.add_quantiles(subject, "kernel_write_us", &writes, baseline);
        Ok(())
    }

    /// `splitter weight`: how long it ran, and what it says of the write.
    fn cli(&self, i: u32) -> Result<(Duration, f64)> {
        let words = weights(i).0.map(|(version, weight)| format!("{version}={weight}"));
        let (output, took) = self.site.cli(&["weight", REAL, &words[0], &words[1], "-o", "json"])?;
        let change: Value = serde_json::from_str(&output).context("odd answer of `splitter weight -o json`")?;
        ensure!(change["applied"] == true, "`splitter weight` applied nothing: {change}");
        Ok((took, change["write_us"].as_f64().context("write_us is missing")?))
    }

    /// With a client that watches: from the command's start, and from the request to the admin API, to the first new connection.
    fn probed(&self, subject: &str, baseline: Option<&str>, rows: &mut Rows) -> Result<()> {
        let probe = Probe::start(self.lab)?;
        let (mut by_cli, mut by_api, mut late, mut connection) = (Samples::default(), Samples::default(), 0, Samples::default());
        for i in 0..2 * self.changes {
            // The loop has seen the weight before.
            let settled = weights(i + 1).1;
            probe.until(|seen| seen.version == settled)?;
            let began = Instant::now();
            if i < self.changes {
                self.cli(i)?;
            } else {
                self.admin.weights(REAL, &weights(i).0, false)?;
            }
            let acknowledged = Instant::now();
            let wanted = weights(i).1;
            let (first, wrong) = probe.first(wanted, acknowledged)?;
            late += wrong;
            connection.push((first.connected - first.begun).as_secs_f64() * 1e6);
            let latency = (first.connected - began).as_secs_f64() * 1e3;
            if i < self.changes { by_cli.push(latency) } else { by_api.push(latency) }
        }
        rows.add_quantiles(subject, "cli_to_first_decision_ms", &by_cli, baseline);
        rows.add_quantiles(subject, "request_to_first_decision_ms", &by_api, baseline);
        rows.add_median(subject, "connection_us", &connection, baseline);
        // Connections begun after the acknowledgement that still got the old version.
        rows.add(subject, "late_decisions", f64::from(late), None);
        Ok(())
    }
}

/// One connection of the watching client.
#[derive(Clone, Debug)]
struct Seen {
    /// Before the SYN.
    begun: Instant,
    /// The handshake is done.
    connected: Instant,
    version: String,
}

/// A client in a tight loop.
struct Probe {
    seen: Receiver<Result<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Probe {
    fn start(lab: &Lab) -> Result<Probe> {
        let (sender, seen) = mpsc::channel();
        let (stop, namespace) = (Arc::new(AtomicBool::new(false)), lab.client().clone());
        let ours = stop.clone();
        let work = move || {
            if let Err(error) = namespace.enter() {
                let _ = sender.send(Err(error.into()));
                return;
            }
            watch(&sender, &ours);
        };
        Ok(Probe { seen, stop, thread: Some(std::thread::Builder::new().name("probe".into()).spawn(work)?) })
    }

    fn next(&self) -> Result<Seen> {
        self.seen.recv_timeout(Duration::from_secs(5)).context("the watching client sees nothing")?
    }

    fn until(&self, mut wanted: impl FnMut(&Seen) -> bool) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while !wanted(&self.next()?) {
            ensure!(Instant::now() < end, "the watching client does not see the weight that was set");
        }
        Ok(())
    }

    /// The first connection of `version`, and how many begun after `acknowledged` were of another.
    fn first(&self, version: &str, acknowledged: Instant) -> Result<(Seen, u32)> {
        let (mut first, mut wrong) = (None, 0);
        let end = Instant::now() + PATIENCE;
        loop {
            let seen = self.next()?;
            let after = seen.begun > acknowledged;
            if seen.version == version {
                let first = first.get_or_insert(seen).clone();
                if after {
                    return Ok((first, wrong));
                }
            } else {
                wrong += u32::from(after);
            }
            ensure!(Instant::now() < end, "no connection goes to {version} after its weight was set");
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A panic was printed already.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn watch(sender: &Sender<Result<Seen>>, stop: &AtomicBool) {
    let target = SocketAddr::new(VIP4.into(), FRONT_PORT);
    while !stop.load(Ordering::Relaxed) {
        let seen = look(target);
        let failed = seen.is_err();
        if sender.send(seen).is_err() || failed {
            return;
        }
    }
}

/// One connection and one request; ended by a reset, so that no port stays taken.
fn look(target: SocketAddr) -> Result<Seen> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(2)).context("a connection to the service failed")?;
    let connected = Instant::now();
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option lives through the call.
    unsafe {
        let option = (&raw const linger).cast();
        libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, option, size_of::<libc::linger>() as u32);
    }
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")?;
    let (mut bytes, mut length) = ([0u8; 1024], 0);
    loop {
        let got = stream.read(&mut bytes[length..]).context("a request to the service got no answer")?;
        ensure!(got > 0, "a request to the service got no answer");
        length += got;
        if let Ok(Some(response)) = parse_response(&bytes[..length]) {
            return Ok(Seen { begun, connected, version: response.version });
        }
    }
}
