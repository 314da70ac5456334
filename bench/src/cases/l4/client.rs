//! The load: wrk where it is installed, else the lab's own generator. One thread a backend in either; as fast as answers come.

use super::{server, subject::Subject};
use crate::{
    histogram::Histogram,
    lab::Process,
    load::{Load, Plan, Reuse},
};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fmt::Write,
    fs::{self, File},
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

/// What is asked, and over how many connections in all.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub path: &'static str,
    /// A new connection for every request otherwise.
    pub keep_alive: bool,
    pub connections: usize,
}

/// What a run did: seconds throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    pub median: f64,
}

/// Makes load.
pub struct Client {
    wrk: Option<PathBuf>,
}

impl Client {
    pub fn new() -> Client {
        Client { wrk: server::find("wrk") }
    }

    pub fn name(&self) -> &'static str {
        if self.wrk.is_some() { "wrk" } else { "splitter-bench load" }
    }

    /// # Errors
    /// When a request fails.
    pub fn run(&self, subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
        match &self.wrk {
            Some(wrk) => run_wrk(wrk.clone(), subject, workload, seconds),
            None => run_own(subject, workload, seconds),
        }
    }
}

fn run_wrk(wrk: PathBuf, subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
    let (script, output) = (subject.folder.join("wrk.lua"), subject.folder.join("wrk.out"));
    fs::write(&script, lua(&subject.targets))?;
    let mut command = subject.lab.client().command(wrk);
    command.arg(format!("-t{}", subject.targets.len())).arg(format!("-c{}", workload.connections)).arg(format!("-d{seconds}s"));
    command.arg("--timeout").arg("5s").arg("-s").arg(&script);
    if !workload.keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(format!("http://{}{}", subject.targets[0], workload.path));
    let file = File::create(&output)?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let process = Process::spawn("wrk", &mut command)?;
    let end = Instant::now() + Duration::from_secs(seconds + 20);
    while process.exited().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = process.exited();
    process.kill();
    let text = fs::read_to_string(&output)?;
    ensure!(status.is_some_and(|status| status.success()), "wrk failed: {text}");
    outcome(&text)
}

/// Spreads the threads over the targets, and prints the result as one line of JSON.
fn lua(targets: &[SocketAddr]) -> String {
    let mut text = String::from("local targets = {");
    // Writing to a string cannot fail.
    targets.iter().for_each(|target| {
        let _ = write!(text, "{{\"{}\", \"{}\"}}, ", target.ip(), target.port());
    });
    text + "}\nlocal turn = 0\n\
        function setup(thread)\n  local target = targets[turn % #targets + 1]\n  turn = turn + 1\n  \
        thread.addr = wrk.lookup(target[1], target[2])[1]\nend\n\
        function done(summary, latency)\n  local e = summary.errors\n  io.write(string.format(\n    \
        '\\n{\"requests\": %d, \"duration_us\": %d, \"p50_us\": %.1f, \"errors\": %d}\\n',\n    \
        summary.requests, summary.duration, latency:percentile(50), e.connect + e.read + e.write + e.status + e.timeout))\nend\n"
}

fn outcome(text: &str) -> Result<Outcome> {
    let line = text.lines().rfind(|line| line.starts_with('{')).with_context(|| format!("wrk gave no result: {text}"))?;
    let json: Value = serde_json::from_str(line).context("odd result of wrk")?;
    let number = |name: &str| json[name].as_f64().with_context(|| format!("wrk gave no {name}"));
    let (requests, errors) = (number("requests")?, number("errors")?);
    ensure!(errors == 0.0, "{errors} of {requests} requests failed: {text}");
    ensure!(requests > 0.0, "not one request was answered: {text}");
    Ok(Outcome { requests: requests as u64, seconds: number("duration_us")? / 1e6, median: number("p50_us")? / 1e6 })
}

fn run_own(subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
    let began = Instant::now();
    let plan = |target: &SocketAddr| Plan {
        path: workload.path.into(),
        reuse: if workload.keep_alive { Reuse::KeepAlive } else { Reuse::New },
        concurrency: workload.connections / subject.targets.len(),
        ..Plan::http(*target)
    };
    let start = |target| Load::start(Some(subject.lab.client()), plan(target));
    let loads = subject.targets.iter().map(start).collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(seconds).saturating_sub(began.elapsed()));
    let (mut requests, mut latency) = (0, Histogram::default());
    for phase in loads.into_iter().map(Load::stop).collect::<Result<Vec<_>>>()?.iter().flatten() {
        ensure!(phase.failed() == 0, "{} requests failed: {:?}", phase.failed(), phase.first_error);
        requests += phase.requests();
        latency.merge(&phase.latency());
    }
    let median = latency.quantile(0.5).context("not one request was answered")?;
    Ok(Outcome { requests, seconds: began.elapsed().as_secs_f64(), median: median.as_secs_f64() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_of_wrk_is_read() {
        let text = "Running 1s test @ http://10.9.9.9:80/\n  100 requests in 1.00s\n\n{\"requests\": 100, \"duration_us\": 1004000, \"p50_us\": 250.5, \"errors\": 0}\n";
        assert_eq!(outcome(text).unwrap(), Outcome { requests: 100, seconds: 1.004, median: 250.5e-6 });
        let failed = text.replace("\"errors\": 0", "\"errors\": 3");
        assert!(outcome(&failed).unwrap_err().to_string().starts_with("3 of 100 requests failed"));
        assert!(outcome("unable to connect").is_err() && outcome(&text.replace("100,", "0,")).is_err());
    }

    #[test]
    fn threads_go_to_all_targets() {
        let text = lua(&["10.2.1.2:8080".parse().unwrap(), "10.2.2.2:8080".parse().unwrap()]);
        assert!(text.starts_with("local targets = {{\"10.2.1.2\", \"8080\"}, {\"10.2.2.2\", \"8080\"}, }\n"), "{text}");
    }
}
