//! `cargo xtask demo`: a canary release on this machine, with real servers, the real agent and real traffic, and a verdict.
//!
//! Owns the story; [`rollouts`] its last act, [`traffic`] what is sent, [`requests`] what of it has rules, [`screen`] what is shown, [`report`]
//! what is judged.

mod report;
mod requests;
mod rollouts;
mod screen;
mod traffic;

use crate::{
    artifact::{self, Programs},
    setup::{self, Purpose},
    step, verifier,
};
use anyhow::{Context, Result, bail, ensure};
use report::Report;
use screen::Screen;
use serde_json::Value;
use splitter_lab::{
    agent::{METRICS, Site, quiet_log},
    lab::{self, Lab, Process, VIP4, VIP6, namespaces_of},
    load::{Load, Plan},
    serve,
};
use std::{
    fmt::Write,
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};
use traffic::Traffic;

/// Version names, and the backends (from 1) of each.
const VERSIONS: [(&str, &[usize]); 2] = [("v1", &[1, 2]), ("v2", &[3])];
/// A service a family: the frontends of one service and its backends are of one family.
const SERVICES: [&str; 2] = ["demo", "demo6"];
/// With the http service.
const ALL_SERVICES: u64 = SERVICES.len() as u64 + 1;
const SERVER_PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(10);

/// Asked weights of v1 and v2.
type Weights = [u32; 2];

struct Flags {
    keep: bool,
    json: bool,
}

pub fn run(flags: &[&str]) -> Result<()> {
    let mut chosen = Flags { keep: false, json: false };
    for flag in flags {
        match *flag {
            "--keep" => chosen.keep = true,
            "--json" => chosen.json = true,
            _ => bail!("unknown option {flag} of demo; it takes --keep and --json"),
        }
    }
    setup::run(Purpose::Build)?;
    let programs = artifact::build_release()?;
    ensure!(lab::is_root(), "the demonstration makes network namespaces and loads kernel programs: run it as root");
    let began = Instant::now();
    let mut report = Report::default();
    let played = play(&programs, &chosen, &mut report);
    if let Err(error) = &played {
        report.problems.push(format!("{error:#}"));
    }
    report.seconds = began.elapsed().as_secs_f64();
    if chosen.json {
        println!("{:#}", report.json());
    }
    step::say(report.verdict());
    ensure!(report.problems.is_empty(), "the demonstration failed");
    Ok(())
}

/// The policy of the demonstration: both families, versions as given (name, weight, backends).
pub fn policy(lab: &Lab, versions: &[(&str, u32, &[usize])]) -> String {
    let mut text = String::new();
    for (service, v6) in SERVICES.into_iter().zip([false, true]) {
        let vip = vip(v6).ip();
        let head = format!(
            "---\napiVersion: splitter.dev/v1alpha1\nkind: TrafficSplit\nmetadata: {{name: {service}}}\nspec:\n  frontends:\n    \
             - {{address: \"{vip}\", port: 80, protocol: TCP}}\n  mode: tcp\n  versions:\n"
        );
        text += &head;
        for (name, weight, backends) in versions {
            let addresses: Vec<String> = backends.iter().map(|i| format!("\"{}\"", lab.backend_addr(*i, v6, SERVER_PORT))).collect();
            // Writing to a string cannot fail.
            let _ = writeln!(text, "    - {{name: {name}, weight: {weight}, backends: [{}]}}", addresses.join(", "));
        }
    }
    text
}

fn vip(v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { VIP6.into() } else { VIP4.into() }, 80)
}

/// Everything that runs. Fields are dropped in this order: traffic first, the network last.
struct Show<'a> {
    traffic: Traffic,
    agent: Process,
    servers: Vec<Process>,
    site: Site,
    lab: Lab,
    screen: Screen,
    report: &'a mut Report,
}

fn play(programs: &Programs, flags: &Flags, report: &mut Report) -> Result<()> {
    let lab = Lab::new("demo")?;
    let weighted: Vec<_> = VERSIONS.into_iter().zip([95, 5]).map(|((name, backends), weight)| (name, weight, backends)).collect();
    let text = policy(&lab, &weighted) + &requests::policy(&lab, &weighted);
    let site = Site::new(&programs.splitter, &lab.node, &text)?;
    let servers = start_servers(programs, &lab, &site.dir)?;
    let agent = site.start(ALL_SERVICES)?;
    step::say(format_args!(
        "  client {} -> {} and {} (mode: tcp), {VIP4}:{} (mode: http) -> node (agent pid {}) -> 3 servers",
        lab.client_ip(0, false),
        vip(false),
        vip(true),
        requests::PORT,
        agent.pid()
    ));
    warm_up(&lab)?;
    let traffic = Traffic::start(lab.client(), vip(false), vip(true))?;
    let mut show = Show { traffic, agent, servers, site, lab, screen: Screen::new(!flags.json), report };
    show.story()?;
    if flags.keep && show.report.problems.is_empty() {
        return show.keep();
    }
    show.clean_up()
}

fn start_servers(programs: &Programs, lab: &Lab, dir: &Path) -> Result<Vec<Process>> {
    let start = |name: &str, i: usize| -> Result<Process> {
        let [listen, listen_http] = [SERVER_PORT, requests::SERVER_PORT].map(|port| format!("[::]:{port}"));
        let options = serve::Options::parse(["--listen", &listen, "--listen", &listen_http, "--name", name].map(String::from))?;
        let log = quiet_log(dir, &format!("server-{i}"))?;
        let mut command = lab.backend(i).command(&programs.bench);
        command.arg("serve").args(options.arguments()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let server = Process::spawn(&format!("server {i}"), &mut command)?;
        let local = SocketAddr::new([127, 0, 0, 1].into(), SERVER_PORT);
        lab.backend(i).run(|| server.wait_listening(local, PATIENCE))??;
        Ok(server)
    };
    VERSIONS.into_iter().flat_map(|(name, backends)| backends.iter().map(move |i| (name, *i))).map(|(name, i)| start(name, i)).collect()
}

/// One request to each backend, past the VIP: neighbours are known before the measurement, and the network is known to work.
fn warm_up(lab: &Lab) -> Result<()> {
    for i in 1..=lab.backends().len() {
        for v6 in [false, true] {
            let plan = Plan { requests: Some(1), ..Plan::http(lab.backend_addr(i, v6, SERVER_PORT)) };
            let total = Load::run(Some(lab.client()), plan)?.total();
            let why = total.first_error.clone().unwrap_or_default();
            ensure!(total.requests() == 1, "plain routing to backend {i} does not work: {why}");
        }
    }
    Ok(())
}

impl Show<'_> {
    fn story(&mut self) -> Result<()> {
        self.watch("95/5", [95, 5], 6.0)?;
        self.change([50, 50])?;
        self.watch("50/50", [50, 50], 5.0)?;
        self.change([0, 100])?;
        self.watch("0/100", [0, 100], 5.0)?;
        self.change([50, 50])?;
        self.watch("back to 50/50", [50, 50], 2.0)?;

        let before = self.site.status()?;
        self.agent.signal(libc::SIGKILL);
        self.screen.note("kill -9 of the agent: the kernel goes on alone");
        self.traffic.next_phase();
        self.watch("agent killed", [50, 50], 2.0)?;
        self.traffic.next_phase();
        let began = Instant::now();
        self.agent = self.site.start(ALL_SERVICES).context("the agent does not come back after SIGKILL")?;
        self.report.command("splitter agent (again)", began.elapsed());
        self.screen.note(&format!("agent started again (pid {}): it adopts what the kernel holds", self.agent.pid()));
        self.watch("agent back", [50, 50], 4.0)?;

        let total = self.traffic.stop()?;
        let seen = report::seen(&total);
        let mut after = self.site.status()?;
        // The agent may read its counters now and then only.
        for _ in 0..20 {
            if report::has_counted(&after, &seen) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            after = self.site.status()?;
        }
        self.report.judge_counters(&before, &after, &seen);
        self.report.judge_totals(&total);
        self.rollouts()?;
        self.screen.close();
        Ok(())
    }

    /// Shows the current phase for a while, then judges it.
    fn watch(&mut self, name: &str, asked: Weights, seconds: f64) -> Result<()> {
        let began = Instant::now();
        while began.elapsed().as_secs_f64() < seconds {
            std::thread::sleep(Duration::from_millis(100));
            ensure!(self.traffic.running(), "the load generator stopped");
            if name != "agent killed"
                && let Some(status) = self.agent.exited()
            {
                bail!("the agent ended with {status}: {}", self.site.log_tail());
            }
            self.screen.draw(name, asked, &self.traffic.view());
        }
        self.screen.settle();
        let view = self.traffic.view();
        self.report.judge_phase(name, asked, began.elapsed(), &view);
        Ok(())
    }

    /// Sets the weights of all services by the CLI; what begins meanwhile counts in a phase of its own, which no share is asked of.
    fn change(&mut self, weights: Weights) -> Result<()> {
        self.traffic.next_phase();
        // A connection that was labelled just before goes out before the write.
        std::thread::sleep(Duration::from_millis(20));
        for service in SERVICES.into_iter().chain([requests::SERVICE]) {
            let words: Vec<String> = VERSIONS.iter().zip(weights).map(|((name, _), weight)| format!("{name}={weight}")).collect();
            let arguments: Vec<&str> = ["weight", service].into_iter().chain(words.iter().map(String::as_str)).collect();
            let (_, took) = self.site.cli(&arguments)?;
            let command = format!("splitter {}", arguments.join(" "));
            self.screen.note(&format!("$ {command}   ({:.1} ms)", took.as_secs_f64() * 1e3));
            self.report.command(&command, took);
        }
        self.report.judge_between(&self.traffic.view());
        self.traffic.next_phase();
        Ok(())
    }

    /// Ends everything in order and checks that nothing is left.
    fn clean_up(self) -> Result<()> {
        let Show { traffic, agent, servers, site, lab, report, .. } = self;
        drop(traffic);
        let programs = verifier::programs_of(&site.pins)?;
        let (agent_pid, name) = (agent.pid(), lab.name().to_owned());
        agent.stop(PATIENCE).context("the agent does not end on SIGTERM")?;
        site.detach()?;
        let gone = |id: u32| verifier::program(id).is_ok_and(|program| program.is_none());
        let left = || programs.iter().filter(|program| !gone(program.id)).map(|program| program.name.clone()).collect::<Vec<_>>();
        // The kernel frees programs a moment after their last reference.
        for _ in 0..100 {
            if left().is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        ensure!(left().is_empty(), "programs are still in the kernel after detach: {}", left().join(", "));
        let namespaces = namespaces_of(&name).len();
        let pids: Vec<u32> = servers.iter().map(Process::pid).chain([agent_pid]).collect();
        servers.into_iter().for_each(Process::kill);
        site.remove()?;
        lab.remove()?;
        let alive: Vec<u32> = pids.iter().copied().filter(|pid| Path::new("/proc").join(pid.to_string()).exists()).collect();
        ensure!(alive.is_empty(), "processes are left: {alive:?}");
        let left = namespaces_of(&name);
        ensure!(left.is_empty(), "namespaces are left: {left:?}");
        let (programs, pids) = (programs.len(), pids.len());
        report.cleaned =
            Some(format!("{programs} kernel programs, all pins, {pids} processes, {namespaces} namespaces, the temporary folder"));
        Ok(())
    }

    /// Leaves everything but the traffic running.
    fn keep(self) -> Result<()> {
        let Show { traffic, agent, servers, site, lab, report, .. } = self;
        drop(traffic);
        let client = lab.client().path().display().to_string();
        let node = lab.node.path().display().to_string();
        let (splitter, socket, dir) =
            (site.splitter.display().to_string(), site.socket().display().to_string(), site.dir.display().to_string());
        let record = lab.keep(vec![site.detach_words()], vec![site.pins.clone(), site.dir.clone()])?;
        site.leave();
        agent.leave();
        servers.into_iter().for_each(|server| {
            server.leave();
        });
        report.kept = Some(format!(
            "the lab {} goes on. Try:\n  export SPLITTER_ADMIN={socket}\n  {splitter} status\n  {splitter} weight {service} v1=50 v2=50\n  \
             {splitter} explain demo --client 10.1.0.2\n  {splitter} flows demo\n  nsenter --net={client} curl -s http://{VIP4}/\n  \
             nsenter --net={client} curl -s -g 'http://[{VIP6}]/'\n  nsenter --net={client} curl -s -H 'X-Canary: always' http://{VIP4}:{port}/\n  \
             {splitter} explain {service} -H 'X-Canary: always'\n  nsenter --net={node} curl -s http://{METRICS}/metrics\n  \
             the policy is {dir}/policy.yaml, the agent's log {dir}/agent.log\nand to end it: cargo xtask lab down",
            record.name,
            port = requests::PORT,
            service = requests::SERVICE
        ));
        Ok(())
    }
}

/// A counter of the agent's status, by service and version.
fn counter(status: &Value, service: &str, version: &str, name: &str) -> Option<u64> {
    let services = status["services"].as_array()?;
    let versions = services.iter().find(|candidate| candidate["name"] == service)?["versions"].as_array()?;
    versions.iter().find(|candidate| candidate["name"] == version)?[name].as_u64()
}
