//! A node with a real agent, real servers and clients: what the root tests stand on. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod capture;
pub mod flood;
pub mod kernel;
pub mod loss;
mod policy;
pub mod rules;
pub mod socket;

pub use policy::{Split, document};

use splitter_api::client::Client;
use splitter_api::{ExplainRequest, Explanation, FlowQuery, FlowRow, Service, Status, WeightChange, WeightRequest};
use splitter_lab::{
    agent::Site,
    lab::{Lab, Options, Process, VIP4, VIP6},
    load::{Load, Outcome, Phase, Plan},
    pace,
    serve::{self, Background},
    stats,
};
use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::Command,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The agent under test.
pub const SPLITTER: &str = env!("CARGO_BIN_EXE_splitter");
/// Where every server of the lab listens.
pub const PORT: u16 = 8080;
/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Places for tests side by side: a machine of many cores has no patience for sixty labs either.
const PLACES: usize = 4;
static FREE: Mutex<usize> = Mutex::new(PLACES);
static FREED: Condvar = Condvar::new();

/// The right to run; one place, or all of them for a test that needs the machine for itself.
struct Turn(usize);

impl Turn {
    fn take(places: usize) -> Turn {
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        *FREED.wait_while(free, |free| *free < places).unwrap_or_else(PoisonError::into_inner) -= places;
        Turn(places)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += self.0;
        FREED.notify_all();
    }
}

/// A frontend at port 80 of the VIP.
pub fn vip(v6: bool) -> SocketAddr {
    SocketAddr::new(if v6 { VIP6.into() } else { VIP4.into() }, 80)
}

/// A lab whose backends serve HTTP and UDP under the names `b1`, `b2`, ... and whose node runs the agent. Fields go in this order.
pub struct Bed {
    pub agent: Option<Process>,
    pub servers: Vec<Option<Background>>,
    pub site: Site,
    pub lab: Lab,
    /// `None`: stands on another bed's.
    turn: Option<Turn>,
}

impl Bed {
    /// One client, three backends, default offloads.
    pub fn new(name: &str, splits: &[Split]) -> Bed {
        Bed::with(name, Options::default(), splits)
    }

    pub fn with(name: &str, options: Options, splits: &[Split]) -> Bed {
        Bed::prepare(name, options, splits).started()
    }

    /// A second node, on the turn of the first: waiting for a turn of its own could last for ever.
    pub fn beside(_first: &Bed, name: &str, splits: &[Split]) -> Bed {
        Bed::on_turn(None, name, Options::default(), splits).started()
    }

    /// Nobody else runs beside it; the agent is not started yet.
    pub fn alone(name: &str, options: Options, splits: &[Split]) -> Bed {
        Bed::on_turn(Some(Turn::take(PLACES)), name, options, splits)
    }

    /// Everything but the agent, which [`Bed::started`] starts: for tests that change its [`Site`] before.
    pub fn prepare(name: &str, options: Options, splits: &[Split]) -> Bed {
        Bed::on_turn(Some(Turn::take(1)), name, options, splits)
    }

    fn on_turn(turn: Option<Turn>, name: &str, options: Options, splits: &[Split]) -> Bed {
        assert!(splitter_lab::lab::is_root(), "this test needs root: it makes network namespaces and loads kernel programs");
        let lab = Lab::with(name, options).expect("a lab");
        let site = Site::new(Path::new(SPLITTER), &lab.node, &document(&lab, splits)).expect("folders for the agent");
        let servers = (1..=lab.backends().len()).map(|i| Some(server(&lab, i))).collect();
        Bed { agent: None, servers, site, lab, turn }
    }

    /// Starts the agent and waits until it has applied the policy.
    pub fn started(mut self) -> Bed {
        self.start();
        self
    }

    pub fn start(&mut self) {
        let policy = fs::read_to_string(self.site.policy()).unwrap_or_default();
        let services = policy.matches("kind: TrafficSplit").count() as u64;
        self.agent = Some(self.site.start(services).expect("the agent starts"));
    }

    /// SIGKILL; the kernel is left alone.
    pub fn kill_agent(&mut self) {
        self.agent.take().expect("a running agent").kill();
    }

    /// Replaces the policy as an editor does, and waits until the agent runs it.
    pub fn apply(&self, splits: &[Split]) {
        let before = self.status().applied.generation;
        self.write_policy(&document(&self.lab, splits));
        self.wait("the new policy is applied", |status| status.applied.generation > before && status.desired.state == "ok");
    }

    /// By rename, whole.
    pub fn write_policy(&self, text: &str) {
        let new = self.site.dir.join("policy.new");
        fs::write(&new, text).expect("a policy file");
        fs::rename(&new, self.site.policy()).expect("a policy file");
    }

    /// Kills or starts the server of backend `i`, from 1.
    pub fn stop_server(&mut self, i: usize) {
        self.servers[i - 1] = None;
    }

    pub fn start_server(&mut self, i: usize) {
        self.servers[i - 1] = Some(server(&self.lab, i));
    }

    /// A request to the admin API.
    fn ask<T>(&self, request: impl AsyncFnOnce(Client) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(request(Client::new(&self.site.socket())))
    }

    pub fn status(&self) -> Status {
        self.ask(async |client| client.status().await).expect("the agent tells its status")
    }

    pub fn service(&self, name: &str) -> Service {
        let found = self.status().services.into_iter().find(|service| service.name == name);
        found.unwrap_or_else(|| panic!("the status has no service {name}"))
    }

    /// How often a reason was counted.
    pub fn reason(&self, reason: &str) -> u64 {
        self.status().reasons.iter().filter(|count| count.reason == reason).map(|count| count.count).sum()
    }

    pub fn flows(&self) -> Vec<FlowRow> {
        self.ask(async |client| client.flows(&FlowQuery::default()).await).expect("the agent lists flows")
    }

    pub fn explain(&self, service: &str, client: &str) -> Explanation {
        let request = ExplainRequest { service: service.into(), client: Some(client.into()), ..ExplainRequest::default() };
        self.ask(async |client| client.explain(&request).await).expect("the agent explains")
    }

    /// Sets weights through the admin API, one request after the other.
    pub fn set_weights(&self, service: &str, rows: impl Iterator<Item = [u32; 2]>) -> Vec<WeightChange> {
        let request = |[v1, v2]: [u32; 2]| WeightRequest { weights: [("v1".into(), v1), ("v2".into(), v2)].into(), dry_run: false };
        self.ask(async |client| {
            let mut changes = Vec::new();
            for row in rows {
                changes.push(client.set_weights(service, &request(row)).await?);
            }
            Ok(changes)
        })
        .expect("the agent sets weights")
    }

    /// Runs the command line; panics when it fails.
    pub fn cli(&self, words: &[&str]) -> String {
        self.site.cli(words).expect("the command works").0
    }

    /// Waits until the status is as wanted.
    pub fn wait(&self, what: &str, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        eventually(what, || Some(self.status()).filter(|status| wanted(status)))
    }

    /// A bounded load from the first client.
    pub fn load(&self, plan: Plan) -> Outcome {
        Load::run(Some(self.lab.client()), plan).expect("a load")
    }

    /// A load that goes on until it is stopped.
    pub fn start_load(&self, plan: Plan) -> Load {
        Load::start(Some(self.lab.client()), plan).expect("a load")
    }

    /// `requests` of a plan, none of which may fail.
    pub fn clean(&self, plan: Plan, requests: u64) -> Phase {
        let what = format!("{:?} to {}", plan.protocol, plan.target);
        let total = self.load(Plan { requests: Some(requests), ..plan }).total();
        no_failures(&what, &total);
        assert_eq!(total.requests(), requests, "{what}");
        total
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.site.log_tail());
        }
        drop(self.agent.take());
        self.servers.clear();
    }
}

/// Backend `i` of a lab, from 1, in a thread of this process.
fn server(lab: &Lab, i: usize) -> Background {
    let words = ["--listen", &format!("[::]:{PORT}"), "--name", &format!("b{i}"), "--udp"].map(String::from);
    Background::start(lab.backend(i), &serve::Options::parse(words).expect("server options")).expect("a server")
}

pub fn no_failures(what: &str, phase: &Phase) {
    assert_eq!(phase.failed(), 0, "{what}: {:?}, first: {:?}", phase.errors, phase.first_error);
}

/// Connections (UDP: sockets) that a backend answered.
pub fn connections(phase: &Phase, backends: &[&str]) -> u64 {
    backends.iter().filter_map(|name| phase.versions.get(*name)).map(|version| version.connections).sum()
}

/// Asserts that `b3`, the backend of v2, has its share of the connections.
pub fn share_of_v2(what: &str, phase: &Phase, share: f64) {
    let (hits, all) = (connections(phase, &["b3"]), phase.connections());
    assert!(
        stats::plausible(hits, all, share),
        "{what}: v2 got {hits} of {all} connections, {:?} are plausible",
        stats::binomial_bound(all, share)
    );
}

/// Polls every 10 ms for at most [`PATIENCE`], on a slow machine as much longer as it is slow.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = pace::patience(PATIENCE);
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets a load run on.
pub fn run_on(time: Duration) {
    std::thread::sleep(time);
}

/// Copies the program, to be run. By a process of its own: a test that forks while this one holds the copy open for writing would keep it from being run
/// (ETXTBSY).
pub fn copy_program(to: &std::path::Path) {
    let mut command = Command::new("cp");
    command.arg(SPLITTER).arg(to);
    tool(command);
}

/// Runs a tool in a namespace of the lab; its output. Panics when it fails.
pub fn tool(mut command: Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The client's own address on the lab's first segment.
pub fn client_ip(bed: &Bed, v6: bool) -> IpAddr {
    bed.lab.client_ip(0, v6)
}
