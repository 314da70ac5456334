//! The case `http-crowd`: many at once. How long a burst of new connections of one address takes, beside plain routing; and what an attacker who
//! holds half heads on one service costs the clients of another one, with an agent and without.

use super::{Place, Rows, Samples, rows::again, synthetic::BACK_PORT};
use anyhow::{Context, Result, ensure};
use splitter_lab::{
    admin::Admin,
    agent::{self, Site},
    cleanup::Guard,
    faults::{Faults, FaultyLink},
    foreign::Server,
    lab::{Lab, Namespace, Options, Process, VIP4},
    load::{Load, Phase, Plan, Reuse},
    poll::check,
    serve::raw_address,
};
use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const PLAIN: &str = "plain-routing";
const SPLITTER: &str = "splitter";
/// Frontends, and the backend of each.
const PORTS: [u16; 2] = [80, 81];
/// New connections of a burst.
const BURST: u64 = 1_000;
/// One way from a backend that is far away.
const FAR: Duration = Duration::from_millis(10);
/// Half heads that are held.
const HELD: usize = 10_000;
/// New connections a second of the service that nobody attacks.
const RATE: f64 = 500.0;
const PATIENCE: Duration = Duration::from_secs(20);

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: 16_384, rlim_max: 16_384 };
    // SAFETY: the structure lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) }).context("cannot raise the limit of open files")?;
    bursts(place, quick, rows)?;
    attack(place, quick, rows)
}

/// A network with two backends, each of a service of its own, whose node runs the agent where there is one. Fields go in this order.
struct Stand {
    agent: Option<(Process, Site)>,
    servers: Vec<Process>,
    lab: Lab,
    _removal: Guard,
}

impl Stand {
    fn start(place: &Place, name: &str, splits: bool) -> Result<Stand> {
        let lab = Lab::with(name, Options { backends: 2, clients: 2, ..Options::default() })?;
        let (folder, removal) = agent::folder(lab.name())?;
        let servers = (1..=2).map(|i| Server::Nginx.start(lab.backend(i), &format!("b{i}"), BACK_PORT, &folder)).collect::<Result<_>>()?;
        let agent = if splits {
            let mut site = Site::new(&place.splitter, &lab.node, &policy(&lab))?;
            site.interfaces = vec!["c*", "b*"];
            Some((site.start(2)?, site))
        } else {
            None
        };
        Ok(Stand { agent, servers, lab, _removal: removal })
    }

    /// Of service `i`, from 0; without an agent its backend.
    fn target(&self, i: usize) -> SocketAddr {
        if self.agent.is_some() { SocketAddr::new(VIP4.into(), PORTS[i]) } else { self.lab.backend_addr(i + 1, false, BACK_PORT) }
    }

    /// # Errors
    /// When one of the plan's requests fails.
    fn load(&self, plan: Plan) -> Result<(Phase, Duration)> {
        let outcome = Load::run(Some(self.lab.client()), plan)?;
        let total = outcome.total();
        ensure!(total.failed() == 0, "{:?} of {} requests failed: {:?}", total.errors, total.begun, total.first_error);
        Ok((total, outcome.elapsed))
    }

    fn end(mut self) -> Result<()> {
        if let Some((agent, site)) = self.agent.take() {
            agent.kill();
            site.detach()?;
            site.remove()?;
        }
        self.servers.drain(..).for_each(Process::kill);
        self.lab.remove()
    }
}

fn policy(lab: &Lab) -> String {
    let mut text = String::new();
    for (i, (name, port)) in (1..).zip([("held", PORTS[0]), ("other", PORTS[1])]) {
        // Writing to a string cannot fail.
        let _ = write!(
            text,
            "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {name}}}\nspec:\n  mode: http\n  frontends:\n    \
             - {{address: {VIP4}, port: {port}, protocol: TCP}}\n  versions:\n    - {{name: v1, weight: 1, backends: [\"{}\"]}}\n",
            lab.backend_addr(i, false, BACK_PORT)
        );
    }
    text
}

/// One address opens [`BURST`] connections at once and asks once on each.
fn bursts(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let object = fs::read(place.objects.join("faults")).context("the object of the faults")?;
    let stands = [
        (PLAIN.to_owned(), Stand::start(place, "crowdplain", false)?),
        (SPLITTER.to_owned(), Stand::start(place, "crowd", true)?),
        (again(PLAIN), Stand::start(place, "crowdagain", false)?),
    ];
    for (distance, delay) in [("near", Duration::ZERO), ("far", FAR)] {
        let faults = Faults { late: if delay.is_zero() { 0 } else { 1_000 }, delay, ..Faults::default() };
        let links = stands.iter().map(|(_, stand)| FaultyLink::leaving(stand.lab.backend(1), &object, faults));
        let _links: Vec<FaultyLink> = links.collect::<Result<_>>()?;
        let mut times: Vec<Samples> = vec![Samples::default(); stands.len()];
        for round in 0..=if quick { 2 } else { 10 } {
            for ((_, stand), times) in stands.iter().zip(&mut times) {
                let plan = Plan { requests: Some(BURST), concurrency: BURST as usize, timeout: PATIENCE, ..Plan::http(stand.target(0)) };
                let (_, took) = stand.load(plan)?;
                // The first one finds routes and neighbours.
                if round > 0 {
                    times.push(took.as_secs_f64() * 1e3);
                }
            }
        }
        for ((name, _), ours) in stands.iter().zip(&times) {
            let ratios = (name != PLAIN).then(|| (PLAIN, ours.ratios(&times[0])));
            rows.add_paired(name, &format!("burst_of_{BURST}_{distance}_ms"), ours, ratios);
        }
    }
    if let Some((_, site)) = &stands[1].1.agent {
        rows.add(SPLITTER, "burst_dropped_for_want_of_a_slot", lost(site, "held")?, None);
    }
    stands.into_iter().try_for_each(|(_, stand)| stand.end())
}

/// Segments of a service that found no slot, so far.
fn lost(site: &Site, service: &str) -> Result<f64> {
    let status = Admin::new(&site.socket()).status()?;
    let services = status["services"].as_array().cloned().unwrap_or_default();
    let found = services.iter().find(|found| found["name"] == service).with_context(|| format!("the status has no service {service}"))?;
    let lost: u64 = found["heads_lost"].as_object().map_or(0, |lost| lost.values().filter_map(serde_json::Value::as_u64).sum());
    Ok(lost as f64)
}

/// Clients of one service while another one is attacked.
fn attack(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let stand = Stand::start(place, "attack", true)?;
    let (rounds, seconds) = if quick { (1, 2) } else { (5, 6) };
    for suffix in ["", "-no-agent"] {
        if let (Some((agent, _)), false) = (&stand.agent, suffix.is_empty()) {
            agent.signal(libc::SIGKILL);
            while agent.exited().is_none() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let (mut quiet, mut held) = (Latency::default(), Latency::default());
        for _ in 0..rounds {
            quiet.measure(&stand, seconds)?;
            let holders = Holders::start(stand.lab.clients()[1].clone(), stand.target(0), &stand.lab)?;
            if let (Some((_, site)), true) = (&stand.agent, suffix.is_empty()) {
                ensure!(lost(site, "held")? > 0.0, "the attackers hold so little that nobody is refused");
            }
            held.measure(&stand, seconds)?;
            holders.end()?;
        }
        let (name, under) = (format!("quiet{suffix}"), format!("{HELD}-half-heads{suffix}"));
        quiet.report(rows, &name, None);
        held.report(rows, &under, Some((&name, &quiet)));
    }
    stand.end()
}

/// Of new connections with a request each, us; a value a round.
#[derive(Default)]
struct Latency {
    median: Samples,
    p99: Samples,
    requests: u64,
}

impl Latency {
    fn measure(&mut self, stand: &Stand, seconds: u64) -> Result<()> {
        let plan = Plan {
            reuse: Reuse::New,
            rate: Some(RATE),
            concurrency: 2_000,
            duration: Some(Duration::from_secs(seconds)),
            timeout: PATIENCE,
            ..Plan::http(stand.target(1))
        };
        let (total, _) = stand.load(plan)?;
        let quantile = |q| total.latency().quantile(q).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6);
        self.median.push(quantile(0.5));
        self.p99.push(quantile(0.99));
        self.requests += total.requests();
        Ok(())
    }

    fn report(&self, rows: &mut Rows, subject: &str, baseline: Option<(&str, &Latency)>) {
        let mut metric = |name: &str, of: fn(&Latency) -> &Samples| {
            let ratios = baseline.map(|(name, theirs)| (name, of(self).ratios(of(theirs))));
            rows.add_paired(subject, name, of(self), ratios).more.insert("answered", self.requests.into());
        };
        metric("new_connection_us_p50", |latency| &latency.median);
        metric("new_connection_us_p99", |latency| &latency.p99);
    }
}

/// Connections from many networks that have begun a head. Each sends a byte more every few seconds, and begins anew when it is reset.
struct Holders {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Holders {
    /// Networks that they come from, behind an uplink.
    const NETWORKS: usize = 250;
    /// Bytes a second of all.
    const BYTES: f64 = 2_000.0;

    fn start(from: Namespace, to: SocketAddr, lab: &Lab) -> Result<Holders> {
        lab.node.batch(&format!("route replace 10.3.0.0/16 via {} dev c1\n", lab.client_ip(1, false)))?;
        from.batch(&(0..Self::NETWORKS).map(|i| format!("addr replace 10.3.{i}.77/32 dev lo\n")).collect::<String>())?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ours, (told, begun)) = (stop.clone(), mpsc::channel());
        let thread = std::thread::Builder::new().name("holders".into()).spawn(move || {
            from.enter()?;
            let mut held = (0..HELD).map(|i| half_head(i, to)).collect::<Result<Vec<_>>>()?;
            told.send(())?;
            dribble(&mut held, to, &ours)
        })?;
        // An error of the thread is told by its end.
        let _ = begun.recv();
        Ok(Holders { stop, thread })
    }

    fn end(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn dribble(held: &mut [TcpStream], to: SocketAddr, stop: &AtomicBool) -> Result<()> {
    let (began, mut sent) = (Instant::now(), 0usize);
    while !stop.load(Ordering::Relaxed) {
        while (sent as f64) < began.elapsed().as_secs_f64() * Holders::BYTES {
            let i = sent % held.len();
            if held[i].write_all(b"a").is_err() {
                held[i] = half_head(i, to)?;
            }
            sent += 1;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// A connection of holder `i` that resets when it is dropped.
fn half_head(i: usize, to: SocketAddr) -> Result<TcpStream> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let reset = libc::linger { l_onoff: 1, l_linger: 0 };
    let from = SocketAddr::new(Ipv4Addr::new(10, 3, (i % Holders::NETWORKS) as u8, 77).into(), 0);
    let ((from, size), (to, _)) = (raw_address(from), raw_address(to));
    // SAFETY: the option and both addresses are as long as said, and live through the calls.
    let connected = unsafe {
        let option = (&raw const reset).cast();
        check(libc::setsockopt(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, option, size_of_val(&reset) as u32))?;
        check(libc::bind(stream.as_raw_fd(), (&raw const from).cast(), size))?;
        check(libc::connect(stream.as_raw_fd(), (&raw const to).cast(), size))
    };
    connected.with_context(|| format!("half head {i}"))?;
    (&stream).write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-long: ")?;
    Ok(stream)
}
