//! The load: wrk with one thread, whose requests carry the tags of a workload.

use super::{
    super::wrk::{DONE, Outcome, Run},
    subject::Subject,
};
use anyhow::Result;
use splitter_lab::foreign::require;

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

/// # Errors
/// When a request fails.
pub fn run(subject: &Subject, workload: Workload, seconds: u64) -> Result<Outcome> {
    let run = Run {
        wrk: &require("wrk")?,
        client: subject.lab.client(),
        folder: &subject.folder,
        script: lua(workload),
        threads: 1,
        connections: workload.connections,
        seconds,
        url: format!("http://{}{}", subject.target(workload.port), workload.path),
    };
    run.outcome::<&str>(&[])
}

/// Requests made once, not one by one.
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
         function request()\n  turn = turn % {} + 1\n  return requests[turn]\nend\n{DONE}",
        requests.len()
    )
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
}
