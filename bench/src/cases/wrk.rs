//! wrk as a load: runs a script and reads its figures. What the script asks for is the cases' own.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::lab::{Namespace, Process};
use std::{
    ffi::OsStr,
    fs::{self, File},
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

/// The end of every script: prints the result as one line of JSON.
pub const DONE: &str = "function done(summary, latency)\n  local e = summary.errors\n  io.write(string.format(\n    \
    '\\n{\"requests\": %d, \"duration_us\": %d, \"p50_us\": %.1f, \"errors\": %d}\\n',\n    \
    summary.requests, summary.duration, latency:percentile(50), e.connect + e.read + e.write + e.status + e.timeout))\nend\n";

/// What a run did: seconds throughout.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    pub median: f64,
}

/// How a run goes.
pub struct Run<'a> {
    pub wrk: &'a Path,
    pub client: &'a Namespace,
    /// For the script and the output.
    pub folder: &'a Path,
    /// Ends with [`DONE`].
    pub script: String,
    pub threads: usize,
    pub connections: usize,
    pub seconds: u64,
    pub url: String,
}

impl Run<'_> {
    /// `options`: further ones of wrk.
    ///
    /// # Errors
    /// When a request fails.
    pub fn outcome<S: AsRef<OsStr>>(&self, options: &[S]) -> Result<Outcome> {
        let (script, output) = (self.folder.join("wrk.lua"), self.folder.join("wrk.out"));
        fs::write(&script, &self.script)?;
        let mut command = self.client.command(self.wrk);
        command.arg(format!("-t{}", self.threads)).arg(format!("-c{}", self.connections)).arg(format!("-d{}s", self.seconds));
        command.args(["--timeout", "5s", "-s"]).arg(&script).args(options).arg(&self.url);
        let file = File::create(&output)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let process = Process::spawn("wrk", &mut command)?;
        let end = Instant::now() + Duration::from_secs(self.seconds + 20);
        while process.exited().is_none() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let status = process.exited();
        process.kill();
        let text = fs::read_to_string(&output)?;
        ensure!(status.is_some_and(|status| status.success()), "wrk failed: {text}");
        outcome(&text)
    }
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
    fn the_result_of_wrk_is_read() {
        let text = "Running 1s test @ http://10.9.9.9:80/\n  100 requests in 1.00s\n\n{\"requests\": 100, \"duration_us\": 1004000, \"p50_us\": 250.5, \"errors\": 0}\n";
        assert_eq!(outcome(text).unwrap(), Outcome { requests: 100, seconds: 1.004, median: 250.5e-6 });
        let failed = text.replace("\"errors\": 0", "\"errors\": 3");
        assert!(outcome(&failed).unwrap_err().to_string().starts_with("3 of 100 requests failed"));
        assert!(outcome("unable to connect").is_err() && outcome(&text.replace("100,", "0,")).is_err());
    }
}
