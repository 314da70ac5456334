//! The load: wrk where it is installed, else the lab's own generator. One thread a backend in either; as fast as answers come.

use super::{
    super::wrk::{DONE, Outcome, Run},
    server,
    subject::Subject,
};
use anyhow::{Context, Result, ensure};
use splitter_lab::{
    histogram::Histogram,
    load::{Load, Plan, Reuse},
};
use std::{
    fmt::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
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
            Some(wrk) => run_wrk(wrk, subject, workload, seconds),
            None => run_own(subject, workload, seconds),
        }
    }
}

fn run_wrk(wrk: &Path, subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
    let run = Run {
        wrk,
        client: subject.lab.client(),
        folder: &subject.folder,
        script: lua(&subject.targets),
        threads: subject.targets.len(),
        connections: workload.connections,
        seconds,
        url: format!("http://{}{}", subject.targets[0], workload.path),
    };
    run.outcome(if workload.keep_alive { &[][..] } else { &["-H", "Connection: close"] })
}

/// Spreads the threads over the targets.
fn lua(targets: &[SocketAddr]) -> String {
    let mut text = String::from("local targets = {");
    // Writing to a string cannot fail.
    targets.iter().for_each(|target| {
        let _ = write!(text, "{{\"{}\", \"{}\"}}, ", target.ip(), target.port());
    });
    text + "}\nlocal turn = 0\n\
        function setup(thread)\n  local target = targets[turn % #targets + 1]\n  turn = turn + 1\n  \
        thread.addr = wrk.lookup(target[1], target[2])[1]\nend\n"
        + DONE
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
    fn threads_go_to_all_targets() {
        let text = lua(&["10.2.1.2:8080".parse().unwrap(), "10.2.2.2:8080".parse().unwrap()]);
        assert!(text.starts_with("local targets = {{\"10.2.1.2\", \"8080\"}, {\"10.2.2.2\", \"8080\"}, }\n"), "{text}");
    }
}
