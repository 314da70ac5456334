//! `splitter doctor`: is this host fit for the agent, and what to do if not.
//!
//! Owns the list of checks. Each one judges text that `host` read; only `host` and the trial of `load` touch the machine.

mod checks;
mod firewall;
mod host;
mod load;
mod network;

use super::{
    in_format,
    out::{self, Output, Style},
    show,
};
use anyhow::{Context, Result};
use serde::Serialize;
use splitter_api::{Status, client::Client};
use splitter_policy::source;
use std::{collections::BTreeSet, path::Path, process::ExitCode};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One line of the report.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty when nothing.
    pub remedy: String,
}

impl Check {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), remedy: String::new() }
    }
    pub fn warn(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), remedy: remedy.into() }
    }
    pub fn fail(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), remedy: remedy.into() }
    }
}

#[derive(Serialize)]
struct Report {
    verdict: Verdict,
    checks: Vec<Check>,
}

pub use load::print as load;

pub async fn run(client: &Client, policy: Option<&Path>, output: Output) -> Result<ExitCode> {
    // It may take seconds, in which the rest is read.
    let trial = std::thread::spawn(load::run);
    let host = host::Host::read();
    let outcome = policy.map(|path| (path, source::load(path)));
    let status = in_format(client, output).status().await;
    let needs = match (&outcome, &status) {
        (Some((_, source::Outcome { result: Ok(policy), .. })), _) => network::Needs::of(policy),
        (None, Ok(status)) => network::Needs::of_status(status),
        _ => network::Needs::default(),
    };
    // An agent that is attached to nothing says so itself; what it would serve by default counts then.
    let served = status.as_ref().ok().map(|status| status.interfaces.iter().map(|interface| interface.name.clone()).collect());
    let served = served.as_ref().filter(|names: &&BTreeSet<String>| !names.is_empty());
    let (ways, families) = (host.ways(&needs), checks::Families::of(&needs));
    let trial = trial.join().ok().context("the trial of the programs ended by itself")?;
    let mut list = load::checks(&trial);
    list.extend([checks::bpffs(&host.mounts), checks::capabilities(&host.status), checks::jit(host.jit.as_deref())]);
    list.extend(checks::forwarding(host.forward4.as_deref(), host.forward6.as_deref(), families));
    list.push(checks::reverse_path(&host.reverse_path, families));
    list.push(checks::agent(&status));
    list.extend(checks::tables(&status));
    list.extend(network::interfaces(&host.interfaces, served, &ways));
    list.extend(network::backends(&needs, &ways, served));
    list.extend(network::loops(&needs, &ways));
    list.push(firewall::check(&host.firewall, &firewall::Past::of(&status)));
    list.push(checks::kube_proxy(&host.rules));
    list.push(checks::other_programs(host.links.as_deref(), host.qdiscs.as_deref(), &on_clsact(&status)));
    list.push(checks::open_files(&host.limits));
    list.push(checks::memory(&host.memory));
    if let Some((path, outcome)) = &outcome {
        list.extend(checks::policy(path, outcome, &host.local));
    }
    let verdict = list.iter().map(|c| c.verdict).max().unwrap_or(Verdict::Ok);
    show(output, &Report { verdict, checks: list }, |report| text(report, out::colour()))?;
    Ok(if verdict == Verdict::Fail { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Interfaces whose clsact the agent uses.
fn on_clsact(status: &Result<Status>) -> Vec<&str> {
    let interfaces = status.as_ref().map_or(&[][..], |status| &status.interfaces);
    let used = interfaces.iter().filter(|interface| interface.programs.iter().any(|program| program.starts_with("clsact")));
    used.map(|interface| interface.name.as_str()).collect()
}

fn text(report: &Report, colour: bool) -> String {
    let mut text = String::new();
    for check in &report.checks {
        let (word, style) = match check.verdict {
            Verdict::Ok => ("ok  ", Style::Green),
            Verdict::Warn => ("warn", Style::Yellow),
            Verdict::Fail => ("fail", Style::Red),
        };
        text += &format!("{}  {:<16}{}\n", style.paint(word, colour), check.name, out::printable(&check.found));
        if !check.remedy.is_empty() {
            text += &format!("{:22}-> {}\n", "", out::printable(&check.remedy));
        }
    }
    let count = |verdict| report.checks.iter().filter(|c| c.verdict == verdict).count();
    text + &format!("{} ok, {} warn, {} fail\n", count(Verdict::Ok), count(Verdict::Warn), count(Verdict::Fail))
}
