//! A node that splits an http service, and what stands behind it. Owns the choice of what splits; tests say what they send and expect.

use crate::support::{Bed, PORT, Split, no_failures};
use aya::maps::{Array, Map, MapData};
use splitter_lab::{
    foreign::{self, Proxy, Server},
    lab::{Lab, Options, Process},
    load::{Kind, Load, Phase, Plan, Reuse},
    pace,
};
use std::{
    env,
    ops::{Deref, DerefMut},
    time::Duration,
};

/// A bed whose services are split by the agent, or by a proxy that does the same. Fields go in this order.
pub struct Stage {
    /// Held for their end.
    _programs: Vec<Process>,
    pub bed: Bed,
}

impl Deref for Stage {
    type Target = Bed;

    fn deref(&self) -> &Bed {
        &self.bed
    }
}

impl DerefMut for Stage {
    fn deref_mut(&mut self) -> &mut Bed {
        &mut self.bed
    }
}

/// An http service with [`foreign::Split::RULES`].
pub fn tagged(v1: u32, v2: u32) -> Split {
    Split::http(v1, v2).with(foreign::Split::RULES)
}

/// The same at both families.
pub fn both_families(split: &Split) -> [Split; 2] {
    [split.clone(), split.clone().v6().named("web6")]
}

/// A figure for whoever records them: `cargo xtask proof` collects these lines.
pub fn record(what: &str, target: std::net::SocketAddr, requests: u64, wrong: u64) {
    let family = if target.is_ipv4() { "IPv4" } else { "IPv6" };
    println!("PROOF {}", serde_json::json!({"what": what, "family": family, "requests": requests, "wrong_or_failed": wrong}));
}

/// Whether `SPLITTER_TEST_LONG` is set.
pub fn long() -> bool {
    env::var_os("SPLITTER_TEST_LONG").is_some()
}

/// `normal` (fewer on a slow machine), or `many` in a [`long`] run.
pub fn count(normal: u64, many: u64) -> u64 {
    if long() { many } else { pace::bulk(normal) }
}

/// What splits, when it is not the agent.
pub fn through() -> Option<Proxy> {
    match env::var("SPLITTER_TEST_THROUGH").ok()?.as_str() {
        "haproxy" => Some(Proxy::Haproxy),
        "nginx" => Some(Proxy::Nginx),
        other => panic!("SPLITTER_TEST_THROUGH={other}: it is haproxy or nginx"),
    }
}

impl Stage {
    /// One client, three backends with the lab's own server, named `b1`, `b2` (v1) and `b3` (v2).
    pub fn new(name: &str, splits: &[Split]) -> Stage {
        Stage::with(name, Options::default(), splits)
    }

    pub fn with(name: &str, options: Options, splits: &[Split]) -> Stage {
        Stage::begin(Bed::prepare(name, options, splits), splits, through())
    }

    /// With nobody else on the machine.
    pub fn alone(name: &str, splits: &[Split]) -> Stage {
        Stage::begin(Bed::alone(name, Options::default(), splits), splits, through())
    }

    /// Backend `i` runs `servers[i - 1]` under the name `bI`.
    pub fn foreign(name: &str, splits: &[Split], servers: &[Server], through: Option<Proxy>) -> Stage {
        let mut bed = Bed::prepare(name, Options { backends: servers.len(), ..Options::default() }, splits);
        bed.servers.iter_mut().for_each(|server| *server = None);
        let start = |(i, server): (usize, &Server)| server.start(bed.lab.backend(i), &format!("b{i}"), PORT, &bed.site.dir);
        let programs: Vec<Process> = (1..).zip(servers).map(start).collect::<Result<_, _>>().expect("a server");
        let mut stage = Stage::begin(bed, splits, through);
        stage._programs.extend(programs);
        stage
    }

    /// Starts what splits.
    pub fn begin(mut bed: Bed, splits: &[Split], through: Option<Proxy>) -> Stage {
        let Some(proxy) = through else {
            bed.start();
            return Stage { _programs: Vec::new(), bed };
        };
        let split = foreign_split(&bed.lab, splits);
        let process = proxy.start(&bed.lab.node, &split, &bed.site.dir).expect("a proxy");
        Stage { _programs: vec![process], bed }
    }

    /// `requests` of a mix, none of which may fail or go to the wrong server.
    pub fn mixed(&self, what: &str, plan: Plan, requests: u64) -> Phase {
        let target = plan.target;
        let total = self.load(Plan { requests: Some(requests), ..plan }).total();
        record(what, target, total.begun, total.begun - total.requests());
        no_failures(&format!("{what} to {target}"), &total);
        assert_eq!(total.requests(), requests, "{what} to {target}");
        total
    }

    /// Slots of `SPLICE_LOCKS` that are held; when nothing is on its way, none.
    pub fn locks_held(&self) -> usize {
        let map = MapData::from_pin(self.site.pins.join("SPLICE_LOCKS")).expect("the agent pins it");
        let locks = Array::<_, u64>::try_from(Map::from_map_data(map).expect("a kind that aya knows")).expect("an array of words");
        locks.iter().filter(|lock| *lock.as_ref().expect("a value") != 0).count()
    }

    pub fn load(&self, plan: Plan) -> splitter_lab::load::Outcome {
        Load::run(Some(self.lab.client()), plan).expect("a load")
    }
}

fn foreign_split(lab: &Lab, splits: &[Split]) -> foreign::Split {
    let first = &splits[0];
    let sum: u32 = first.versions.iter().map(|(weight, _)| weight).sum();
    let addresses = |backends: &[usize]| backends.iter().map(|i| lab.backend_addr(*i, first.v6, PORT)).collect();
    let version = |(i, (weight, backends)): (usize, &(u32, Vec<usize>))| (format!("v{i}"), weight * 100 / sum.max(1), addresses(backends));
    foreign::Split {
        frontends: splits.iter().flat_map(|split| split.frontends.clone()).collect(),
        versions: (1..).zip(&first.versions).map(version).collect(),
    }
}

/// A GET with lines of head, and who may answer it.
pub fn asks(path: &str, lines: &[&str], expect: &[&str]) -> Kind {
    let headers = lines.iter().map(|line| format!("{line}\r\n")).collect();
    Kind { path: path.into(), headers, body: None, expect: expect.iter().map(|name| (*name).into()).collect() }
}

pub const V1: &[&str] = &["b1", "b2"];
pub const V2: &[&str] = &["b3"];

/// Requests with and without the tags of [`tagged`], for a split that sends everybody without a tag to `untagged`.
pub fn kinds(path: &str, v1: &[&str], v2: &[&str], untagged: &[&str]) -> Vec<Kind> {
    let long = format!("Accept: {}", "q".repeat(900));
    vec![
        asks(path, &["x-canary: always"], v2),
        asks(path, &["X-Canary:never"], v1),
        asks(path, &["Cookie: a=b; canary=1; z=1"], v2),
        asks(path, &["cookie: canary=0"], v1),
        asks(path, &[], untagged),
        asks(path, &["Cookie: sid=5; uid=u17"], untagged),
        asks(path, &["X-Canaryy: always", "X-Other: x-canary: always", "Cookie: acanary=1; b=canary=1"], untagged),
        asks(path, &[&long, "X-CANARY:   always"], v2),
    ]
}

/// A mixed load over kept connections.
pub fn mix(target: std::net::SocketAddr, kinds: Vec<Kind>) -> Plan {
    Plan { kinds, reuse: Reuse::KeepAlive, concurrency: 16, timeout: Duration::from_secs(20), ..Plan::http(target) }
}
