//! The load: wrk with one thread, whose requests carry the tags of a workload.

use super::subject::Subject;
use crate::{foreign::require, lab::Process};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::{
    fs::{self, File},
    process::Stdio,
    time::{Duration, Instant},
};

/// What requests say of the version that they want.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    None,
    /// v1 and v2 in turn.
    Alternating,
}

/// What is asked, where, and over how many connections.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub name: &'static str,
    pub path: &'static str,
    /// A new connection for every request otherwise.
    pub keep_alive: bool,
    pub connections: usize,
    pub tags: Tags,
    /// Of the frontend, where there is one.
    pub port: u16,
}

/// What a run did: seconds throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    pub median: f64,
}

/// # Errors
/// When a request fails.
pub fn run(subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
    let (script, output) = (subject.folder.join("wrk.lua"), subject.folder.join("wrk.out"));
    fs::write(&script, lua(workload))?;
    let mut command = subject.lab.client().command(require("wrk")?);
    command.arg("-t1").arg(format!("-c{}", workload.connections)).arg(format!("-d{seconds}s"));
    command.args(["--timeout", "5s", "-s"]).arg(&script);
    command.arg(format!("http://{}{}", subject.target(workload.port), workload.path));
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

/// Requests made once, not one by one; the result as one line of JSON.
fn lua(workload: Workload) -> String {
    let Workload { path, keep_alive, tags, .. } = workload;
    let connection = if keep_alive { "" } else { ", [\"Connection\"] = \"close\"" };
    let request = |tag: &str| format!("wrk.format(\"GET\", \"{path}\", {{ {tag}{connection} }})");
    let agent = "[\"User-Agent\"] = \"wrk/4\"";
    let requests = match tags {
        Tags::None => vec![request(agent)],
        Tags::Alternating => ["always", "never"].map(|tag| request(&format!("{agent}, [\"X-Canary\"] = \"{tag}\""))).to_vec(),
    };
    let list = requests.join(", ");
    format!(
        "local requests, turn = {{}}, 0\nfunction init()\n  requests = {{ {list} }}\nend\n\
         function request()\n  turn = turn % {} + 1\n  return requests[turn]\nend\n\
         function done(summary, latency)\n  local e = summary.errors\n  io.write(string.format(\n    \
         '\\n{{\"requests\": %d, \"duration_us\": %d, \"p50_us\": %.1f, \"errors\": %d}}\\n',\n    \
         summary.requests, summary.duration, latency:percentile(50), e.connect + e.read + e.write + e.status + e.timeout))\nend\n",
        requests.len()
    )
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_take_turns() {
        let workload = Workload { tags: Tags::Alternating, ..super::super::SMALL };
        let text = lua(workload);
        assert!(
            text.contains("[\"X-Canary\"] = \"always\"") && text.contains("[\"X-Canary\"] = \"never\"") && text.contains("turn % 2 + 1")
        );
        assert!(!lua(super::super::SMALL).contains("X-Canary"));
        assert!(lua(Workload { keep_alive: false, ..super::super::SMALL }).contains("[\"Connection\"] = \"close\""));
    }

    #[test]
    fn a_failed_request_fails_the_run() {
        let text = "x\n{\"requests\": 100, \"duration_us\": 1004000, \"p50_us\": 250.5, \"errors\": 0}\n";
        assert_eq!(outcome(text).unwrap(), Outcome { requests: 100, seconds: 1.004, median: 250.5e-6 });
        assert!(outcome(&text.replace("\"errors\": 0", "\"errors\": 3")).unwrap_err().to_string().starts_with("3 of 100"));
        assert!(outcome("unable to connect").is_err());
    }
}
