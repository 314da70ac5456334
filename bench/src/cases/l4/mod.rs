//! The case `l4`: real requests through a node that routes plainly, splits, or translates by the rules that kube-proxy writes.
//!
//! Every subject has a network of its own, all stand at the same time, and the client goes round them, so that what the machine does meanwhile
//! meets all alike. The plain one stands twice: what the two differ by is the noise. Ratios are medians of the ratios of each round. Two subjects have a
//! firewall that follows connections: one routes plainly, the other one splits by `path: stack`; they are compared with each other.

mod client;
mod server;
mod subject;

use super::{
    Place, Rows, Samples, record,
    rows::{self, again},
    wrk::Outcome,
};
use anyhow::{Context, Result};
use client::{Client, Workload};
use splitter_lab::lab::machine_cpu;
use std::time::{Duration, Instant};
use subject::{Kind, Subject};

/// What ratios are of.
const PLAIN: &str = "plain-routing";

/// What ratios of the stack's path are of.
const FILTERED: &str = "plain-routing-filtered";
const STACK: &str = "splitter-stack";

const WORKLOADS: [Workload; 4] = [
    Workload { name: "keepalive_small", path: "/", keep_alive: true, connections: 32 },
    Workload { name: "new_connection_small", path: "/", keep_alive: false, connections: 32 },
    Workload { name: "keepalive_1mb", path: server::LARGE, keep_alive: true, connections: 8 },
    Workload { name: "new_connection_1mb", path: server::LARGE, keep_alive: false, connections: 8 },
];

/// Rounds of a workload, one value each.
#[derive(Clone, Debug, Default)]
struct Measured {
    requests_per_second: Samples,
    cpu: Samples,
    median: Samples,
}

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let (rounds, seconds) = if quick { (2, 1) } else { (5, 2) };
    let again = again(PLAIN);
    let subjects = [
        Subject::start(place, PLAIN, Kind::Plain)?,
        Subject::start(place, "splitter", Kind::Splitter)?,
        Subject::start(place, FILTERED, Kind::Filtered)?,
        Subject::start(place, STACK, Kind::Stack)?,
        Subject::start(place, "nft-dnat", Kind::Nft)?,
        Subject::start(place, "iptables-dnat", Kind::Iptables)?,
        Subject::start(place, &again, Kind::Plain)?,
    ];
    for subject in &subjects {
        subject.check().with_context(|| format!("{} does not carry traffic", subject.name))?;
    }
    let client = Client::new();
    rows::say(format_args!("  servers: {}, client: {}, {}", server::name(), client.name(), subject::versions()));
    for workload in WORKLOADS {
        // What foreign work takes is no constant: with it, nothing can be subtracted.
        let idle = Some(record::busy(Duration::from_secs(1))?).filter(|busy| *busy <= record::QUIET).unwrap_or(0.0);
        let mut measured = vec![Measured::default(); subjects.len()];
        for _ in 0..rounds {
            for (subject, measured) in subjects.iter().zip(&mut measured) {
                one(&client, subject, workload, seconds, idle, measured)
                    .with_context(|| format!("{} of {}", workload.name, subject.name))?;
            }
        }
        for (subject, ours) in subjects.iter().zip(&measured) {
            let baseline = if subject.name == STACK { FILTERED } else { PLAIN };
            let theirs = subjects.iter().position(|other| other.name == baseline).filter(|_| subject.name != baseline);
            report(rows, &subject.name, workload, ours, theirs.map(|index| (baseline, &measured[index])), client.name());
        }
    }
    for subject in subjects {
        subject.end(rows)?;
    }
    Ok(())
}

fn one(client: &Client, subject: &Subject, workload: Workload, seconds: u64, idle: f64, measured: &mut Measured) -> Result<()> {
    subject.wake();
    let (began, before) = (Instant::now(), machine_cpu()?);
    let Outcome { requests, seconds, median } = client.run(subject, workload, seconds)?;
    let cpu = machine_cpu()? - before - idle * began.elapsed().as_secs_f64();
    subject.rest();
    measured.requests_per_second.push(requests as f64 / seconds);
    measured.cpu.push(cpu * 1e6 / requests as f64);
    measured.median.push(median * 1e6);
    Ok(())
}

fn report(rows: &mut Rows, subject: &str, workload: Workload, ours: &Measured, baseline: Option<(&str, &Measured)>, client: &str) {
    let metric = |name: &str, samples: &Samples, theirs: Option<&Samples>, rows: &mut Rows| {
        let ratios = baseline.zip(theirs).map(|((name, _), theirs)| (name, samples.ratios(theirs)));
        let row = rows.add_paired(subject, &format!("{}_{name}", workload.name), samples, ratios);
        row.more.insert("client", client.into());
        row.more.insert("server", server::name().into());
        row.more.insert("connections", workload.connections.into());
    };
    let theirs = baseline.map(|(_, theirs)| theirs);
    metric("requests_per_second", &ours.requests_per_second, theirs.map(|theirs| &theirs.requests_per_second), rows);
    metric("cpu_us_per_request", &ours.cpu, theirs.map(|theirs| &theirs.cpu), rows);
    metric("latency_us_p50", &ours.median, theirs.map(|theirs| &theirs.median), rows);
}
