//! The case `http`: requests split one by one in the kernel, beside plain routing and beside proxies that do the same split.
//!
//! Every subject has a network of its own with two nginx backends, all stand at the same time, and the client goes round them, so that what the
//! machine does meanwhile meets all alike. Plain routing stands twice: what the two differ by is the noise. Ratios are medians of the ratios of
//! each round. Plain routing goes to one backend; so does the split wherever a workload leaves it the choice, so that who wakes whom is alike.

mod client;
mod others;
mod subject;

use super::{
    Place, Rows, Samples,
    rows::{self, again},
    wrk::Outcome,
};
use anyhow::{Context, Result};
use client::{Tags, Workload};
use others::Others;
use splitter_lab::lab::machine_cpu;
use std::time::Instant;
use subject::{Kind, PORT_BY_CONNECTION, PORT_BY_REQUEST, Subject};

/// What ratios are of.
const PLAIN: &str = "plain-routing";
const SPLITTER: &str = "splitter";
/// Plain routing to two servers, as many as requests of changing versions meet: what it costs that two processes are woken in turn.
const SHARED: &str = "plain-two-servers";
const RIVALS: [&str; 2] = ["haproxy", "nginx"];

const SMALL: Workload =
    Workload { name: "keepalive_small", path: "/", keep_alive: true, connections: 32, tags: Tags::None, port: PORT_BY_CONNECTION };

/// An odd number: served in turn, each connection sees the tags alternate.
const ALTERNATING: Workload = Workload { name: "alternating_tags", tags: Tags::Alternating, connections: 33, ..SMALL };

const WORKLOADS: [Workload; 6] = [
    SMALL,
    Workload { name: "new_connection", keep_alive: false, ..SMALL },
    Workload { name: "keepalive_1mb", path: "/bytes/1000000", connections: 8, ..SMALL },
    ALTERNATING,
    Workload { name: "by_request_5_percent", port: PORT_BY_REQUEST, ..SMALL },
    Workload { name: "one_connection", connections: 1, ..SMALL },
];

/// Rounds of a workload, one value each.
#[derive(Clone, Debug, Default)]
struct Measured {
    requests_per_second: Samples,
    cpu: Samples,
    median: Samples,
    /// Requests of all rounds.
    requests: u64,
    /// Changes of the leg, as the agent counted them.
    switches: u64,
}

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let (rounds, seconds) = if quick { (2, 1) } else { (5, 2) };
    let again = again(PLAIN);
    let subjects = [
        Subject::start(place, PLAIN, Kind::Plain)?,
        Subject::start(place, SPLITTER, Kind::Splitter)?,
        Subject::start(place, RIVALS[0], Kind::Haproxy)?,
        Subject::start(place, RIVALS[1], Kind::Nginx)?,
        Subject::start(place, &again, Kind::Plain)?,
        Subject::start(place, SHARED, Kind::PlainShared)?,
    ];
    for subject in &subjects {
        subject.check().with_context(|| format!("{} does not split as asked", subject.name))?;
    }
    rows::say(format_args!("  servers: nginx, client: wrk, rivals: {}", subject::versions()));
    for workload in WORKLOADS {
        let mut measured = vec![Measured::default(); subjects.len()];
        let part: Vec<usize> = (0..subjects.len()).filter(|i| takes_part(&subjects[*i].name, workload)).collect();
        for round in 0..rounds {
            // Who goes first changes, so that nobody always follows the same one.
            for turn in 0..part.len() {
                let i = part[(turn + round) % part.len()];
                one(&subjects[i], workload, seconds, &mut measured[i])
                    .with_context(|| format!("{} of {}", workload.name, subjects[i].name))?;
            }
        }
        for (subject, ours) in part.iter().map(|i| (&subjects[*i], &measured[*i])) {
            let baseline = (subject.name != PLAIN).then_some((PLAIN, &measured[0]));
            report(rows, &subject.name, workload, ours, baseline);
        }
        for (name, ours) in [(PLAIN, &measured[0]), (SPLITTER, &measured[1])] {
            best_rival(rows, name, workload, ours, &measured[2..4]);
        }
        if workload.name == ALTERNATING.name {
            over_shared(rows, workload, &measured[1], &measured[5]);
        }
    }
    for subject in subjects {
        subject.end()?;
    }
    Ok(())
}

/// Two servers explain one workload.
fn takes_part(subject: &str, workload: Workload) -> bool {
    subject != SHARED || workload.name == ALTERNATING.name
}

fn one(subject: &Subject, workload: Workload, seconds: u64, measured: &mut Measured) -> Result<()> {
    subject.wake();
    let switches = subject.switches()?;
    let others = Others::now(&subject.own())?;
    let (began, before) = (Instant::now(), machine_cpu()?);
    let Outcome { requests, seconds, median } = client::run(subject, workload, seconds)?;
    let cpu = machine_cpu()? - before - others.since()?;
    rows::say(format_args!("    {} {}: {requests} requests in {:.1} s", workload.name, subject.name, began.elapsed().as_secs_f64()));
    measured.switches += subject.switches()? - switches;
    subject.rest();
    measured.requests += requests;
    measured.requests_per_second.push(requests as f64 / seconds);
    measured.cpu.push(cpu.max(0.0) * 1e6 / requests as f64);
    measured.median.push(median * 1e6);
    Ok(())
}

fn report(rows: &mut Rows, subject: &str, workload: Workload, ours: &Measured, baseline: Option<(&str, &Measured)>) {
    let mut metric = |name: &str, samples: &Samples, theirs: Option<&Samples>| {
        let ratios = baseline.zip(theirs).map(|((name, _), theirs)| (name, samples.ratios(theirs)));
        let row = rows.add_paired(subject, &format!("{}_{name}", workload.name), samples, ratios);
        row.more.insert("connections", workload.connections.into());
        if ours.switches > 0 {
            row.more.insert("switches_per_request", rows::rounded(ours.switches as f64 / ours.requests as f64).into());
        }
    };
    let theirs = baseline.map(|(_, theirs)| theirs);
    metric("requests_per_second", &ours.requests_per_second, theirs.map(|theirs| &theirs.requests_per_second));
    metric("cpu_us_per_request", &ours.cpu, theirs.map(|theirs| &theirs.cpu));
    metric("latency_us_p50", &ours.median, theirs.map(|theirs| &theirs.median));
}

/// The split over plain routing to two servers.
fn over_shared(rows: &mut Rows, workload: Workload, ours: &Measured, shared: &Measured) {
    let mut metric = |name: &str, of: fn(&Measured) -> &Samples| {
        rows.add(SPLITTER, &format!("{}_{name}_over_two_servers", workload.name), of(ours).ratios(of(shared)).median(), None);
    };
    metric("requests_per_second", |measured| &measured.requests_per_second);
    metric("cpu_us_per_request", |measured| &measured.cpu);
}

/// A subject over whichever rival is best in a figure. Plain routing's is what a split could reach that costs nothing: client and servers, which
/// are the same for all, have their share in it.
fn best_rival(rows: &mut Rows, subject: &str, workload: Workload, ours: &Measured, rivals: &[Measured]) {
    let mut metric = |name: &str, of: fn(&Measured) -> &Samples, best: fn(f64, f64) -> bool| {
        let ranked = RIVALS.iter().zip(rivals).reduce(|a, b| if best(of(b.1).median(), of(a.1).median()) { b } else { a });
        if let Some((rival, theirs)) = ranked {
            let ratio = of(ours).ratios(of(theirs)).median();
            rows.add(subject, &format!("{}_{name}_over_best_rival", workload.name), ratio, None).more.insert("rival", (*rival).into());
        }
    };
    metric("requests_per_second", |measured| &measured.requests_per_second, |a, b| a > b);
    metric("cpu_us_per_request", |measured| &measured.cpu, |a, b| a < b);
}
