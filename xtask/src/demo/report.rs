//! What the demonstration is judged by, and its report as text and JSON. Pure: reads counts, talks to nobody.

use super::{VERSIONS, Weights, connections, traffic::View};
use serde_json::{Map, Value, json};
use splitter_bench::{load::Phase, stats::binomial_bound};
use std::{fmt::Write, time::Duration};

/// Fewer new connections than this prove nothing.
const ENOUGH: u64 = 300;
/// The kernel may count a connection again whose first packet was sent again.
const RESENT: f64 = 1.01;

#[derive(Default)]
pub struct Report {
    /// Why it failed; empty when it passed.
    pub problems: Vec<String>,
    phases: Vec<Value>,
    commands: Vec<Value>,
    totals: Value,
    counters: Vec<Value>,
    rollouts: Vec<Value>,
    /// What was removed.
    pub cleaned: Option<String>,
    /// How to play with the lab that goes on.
    pub kept: Option<String>,
    pub seconds: f64,
}

/// `part` of `whole`; 0 of nothing.
pub fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Connections to a version that the client saw answered, over several loads.
fn answered(loads: &[&Phase], version: &str) -> u64 {
    loads.iter().filter_map(|load| load.versions.get(version)).map(|counts| counts.connections).sum()
}

/// Whether the agent's status holds at least what the client saw, per service.
pub fn has_counted(status: &Value, seen: &[(&str, &[&Phase])]) -> bool {
    let counted = |service, version, loads| connections(status, service, version).is_some_and(|count| count >= answered(loads, version));
    seen.iter().all(|(service, loads)| VERSIONS.iter().all(|(version, _)| counted(service, version, loads)))
}

impl Report {
    pub fn command(&mut self, command: &str, took: Duration) {
        self.commands.push(json!({"command": command, "ms": rounded(took.as_secs_f64() * 1e3)}));
    }

    /// Shares within what chance allows, and not one failure.
    pub fn judge_phase(&mut self, name: &str, asked: Weights, elapsed: Duration, view: &View) {
        let fresh = view.fresh();
        let (all, sum) = (fresh.connections(), asked.iter().map(|weight| u64::from(*weight)).sum());
        for (family, phase) in ["IPv4", "IPv6"].iter().zip(&view.fresh) {
            if phase.connections() < ENOUGH {
                self.problems.push(format!("{name}: only {} new connections over {family}, too few to judge", phase.connections()));
            }
        }
        let mut versions = Map::new();
        for ((version, _), weight) in VERSIONS.iter().zip(asked) {
            let counts = fresh.versions.get(*version).cloned().unwrap_or_default();
            let (low, high) = binomial_bound(all, share(u64::from(weight), sum));
            if !(low..=high).contains(&counts.connections) {
                let what = format!("{} of {all} new connections went to {version}, chance allows {low} to {high}", counts.connections);
                self.problems.push(format!("{name}: {what}"));
            }
            let quantile = |q| counts.latency.quantile(q).map(|value| rounded(value.as_secs_f64() * 1e3));
            let row = json!({
                "asked": share(u64::from(weight), sum),
                "achieved": share(counts.connections, all),
                "connections": counts.connections,
                "bound": [low, high],
                "requests": counts.requests,
                "p50_ms": quantile(0.5),
                "p99_ms": quantile(0.99),
            });
            versions.insert((*version).into(), row);
        }
        for stranger in fresh.versions.keys().filter(|name| VERSIONS.iter().all(|(version, _)| version != name)) {
            self.problems.push(format!("{name}: answers came from {stranger:?}"));
        }
        self.judge_between(view);
        self.phases.push(json!({
            "name": name,
            "seconds": rounded(elapsed.as_secs_f64()),
            "versions": versions,
            "kept_requests": view.kept.requests(),
            "errors": view.failed(),
        }));
    }

    /// While weights change no share is asked, but nothing may fail either.
    pub fn judge_between(&mut self, view: &View) {
        if view.kept.requests() + view.fresh().requests() > 0 && view.failed() > 0 {
            self.note_failures(view.failed(), view.first_error());
        }
    }

    fn note_failures(&mut self, failed: u64, first: Option<String>) {
        let problem = format!("{failed} requests failed, the first: {}", first.unwrap_or_default());
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// After all traffic ended: every request was answered.
    pub fn judge_totals(&mut self, loads: &[&Phase]) {
        let mut all = Phase::default();
        loads.iter().for_each(|load| all.merge(load));
        if all.failed() > 0 {
            let text = format!(
                "{} of {} requests failed: {:?}, the first: {}",
                all.failed(),
                all.begun,
                all.errors,
                all.first_error.clone().unwrap_or_default()
            );
            self.problems.push(text);
        }
        let unanswered = all.begun.saturating_sub(all.requests() + all.failed());
        if unanswered > 0 {
            self.problems.push(format!("{unanswered} requests were never answered"));
        }
        self.totals = json!({"requests": all.requests(), "connections": all.connections(), "failed": all.failed()});
    }

    /// The agent's counters go on over the restart, and agree with what the client saw (per service: its loads).
    pub fn judge_counters(&mut self, before: &Value, after: &Value, seen: &[(&str, &[&Phase])]) {
        if after["agent"]["adopted"] != true {
            self.problems.push("the second agent did not adopt the maps of the first".into());
        }
        for (service, loads) in seen {
            for (version, _) in VERSIONS {
                let client = answered(loads, version);
                let (Some(early), Some(late)) = (connections(before, service, version), connections(after, service, version)) else {
                    self.problems.push(format!("`splitter status` has no connections of {service} {version}"));
                    continue;
                };
                if late < early {
                    self.problems.push(format!("{service} {version}: the counter fell from {early} to {late} over the restart"));
                }
                if late < client || late as f64 > client as f64 * RESENT + 10.0 {
                    self.problems.push(format!("{service} {version}: the agent counted {late} connections, the client {client}"));
                }
                self.counters.push(json!({"service": service, "version": version, "before_kill": early, "end": late, "client": client}));
            }
        }
    }

    /// A rollout must end as it should, at 100% or at 0. `history`: its events, the first at `began`.
    pub fn judge_rollout(&mut self, canary: &str, wanted: &str, status: &Value, history: &[&Value], began: f64) {
        let share = if wanted == "promoted" { 1.0 } else { 0.0 };
        if status["phase"] != wanted || status["share"] != share {
            let why = status["missing"].to_string();
            self.problems
                .push(format!("the rollout of {canary} is {} at {} instead of {wanted}; missing: {why}", status["phase"], status["share"]));
        }
        let end = history.last().and_then(|event| event["at"].as_f64()).unwrap_or(began);
        let timeline: Vec<Value> =
            history.iter().map(|event| json!([event["at"].as_f64().map(|at| rounded(at - began)), event["event"], event["to"]])).collect();
        self.rollouts.push(json!({"canary": canary, "ended": status["phase"], "seconds": rounded(end - began), "timeline": timeline}));
    }

    pub fn json(&self) -> Value {
        json!({
            "ok": self.problems.is_empty(),
            "problems": self.problems,
            "seconds": rounded(self.seconds),
            "phases": self.phases,
            "commands": self.commands,
            "totals": self.totals,
            "counters": self.counters,
            "rollouts": self.rollouts,
            "cleaned": self.cleaned,
            "kept": self.kept,
        })
    }

    /// For a person.
    pub fn verdict(&self) -> String {
        let mut text = String::from("\n");
        // Writing to a string cannot fail.
        for phase in &self.phases {
            let shares: Vec<String> = VERSIONS.iter().map(|(name, _)| shares(name, &phase["versions"][name])).collect();
            let _ =
                writeln!(text, "  {:<15}{}   errors {}", phase["name"].as_str().unwrap_or_default(), shares.join("   "), phase["errors"]);
        }
        if let Some(requests) = self.totals["requests"].as_u64() {
            let _ =
                writeln!(text, "  {requests} requests over {} connections, {} failed", self.totals["connections"], self.totals["failed"]);
        }
        for rollout in &self.rollouts {
            let _ = writeln!(
                text,
                "  rollout of {}: {} after {:.1} s",
                text_of(rollout, "canary"),
                text_of(rollout, "ended"),
                rollout["seconds"].as_f64().unwrap_or_default()
            );
        }
        if let Some(cleaned) = &self.cleaned {
            let _ = writeln!(text, "  removed: {cleaned}");
        }
        if let Some(kept) = &self.kept {
            let _ = writeln!(text, "\n{kept}");
        }
        for problem in &self.problems {
            let _ = writeln!(text, "  problem: {problem}");
        }
        let _ = write!(text, "\n{} in {:.0} s", if self.problems.is_empty() { "PASSED" } else { "FAILED" }, self.seconds);
        text
    }
}

fn text_of<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn shares(name: &str, row: &Value) -> String {
    let percent = |field: &str| row[field].as_f64().unwrap_or_default() * 100.0;
    format!(
        "{name} {:.2}% of {:.0}% (bound {} to {}: {})",
        percent("achieved"),
        percent("asked"),
        row["bound"][0],
        row["bound"][1],
        row["connections"]
    )
}

/// Three decimals.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use splitter_bench::load::{ErrorKind, Version};

    fn phase(v1: u64, v2: u64) -> Phase {
        let version = |connections| Version { connections, requests: connections, ..Version::default() };
        let versions = [("v1".to_owned(), version(v1)), ("v2".to_owned(), version(v2))];
        Phase { versions: versions.into(), begun: v1 + v2, ..Phase::default() }
    }

    fn judged(v1: u64, v2: u64, asked: Weights) -> Vec<String> {
        let mut report = Report::default();
        let view = View { fresh: [phase(v1, v2), phase(v1, v2)], kept: Phase::default() };
        report.judge_phase("x", asked, Duration::from_secs(1), &view);
        report.problems
    }

    #[test]
    fn shares_are_judged() {
        assert_eq!(judged(950, 50, [95, 5]), Vec::<String>::new());
        assert_eq!(judged(0, 1000, [0, 100]), Vec::<String>::new());
        assert_eq!(judged(800, 200, [95, 5]).len(), 2);
        assert_eq!(judged(1, 999, [0, 100]).len(), 2);
        assert_eq!(judged(50, 50, [50, 50]).len(), 2, "too few to judge, in both families");
    }

    #[test]
    fn one_failure_is_a_problem() {
        let mut failed = phase(10, 10);
        failed.errors.insert(ErrorKind::Reset, 1);
        failed.begun += 2;
        let mut report = Report::default();
        report.judge_totals(&[&failed]);
        assert_eq!(report.problems.len(), 2, "one failed, one unanswered: {:?}", report.problems);
        assert_eq!(report.json()["ok"], false);
    }

    #[test]
    fn rollouts_must_end_as_they_should() {
        let event = json!({"at": 5.0, "event": "started", "to": 0.1});
        for (phase, share, wanted, problems) in [
            ("promoted", 1.0, "promoted", 0),
            ("running", 0.5, "promoted", 1),
            ("rolled-back", 0.0, "rolled-back", 0),
            ("promoted", 1.0, "rolled-back", 1),
        ] {
            let mut report = Report::default();
            report.judge_rollout("v2", wanted, &json!({"phase": phase, "share": share}), &[&event], 5.0);
            assert_eq!(report.problems.len(), problems, "{phase} {wanted}: {:?}", report.problems);
        }
    }

    #[test]
    fn counters_must_go_on_and_agree() {
        let status = |v1: u64, adopted: bool| {
            let versions = json!([{"name": "v1", "connections": v1}, {"name": "v2", "connections": 10}]);
            json!({"agent": {"adopted": adopted}, "services": [{"name": "demo", "versions": versions}]})
        };
        let judge = |before: u64, after: u64, adopted| {
            let mut report = Report::default();
            report.judge_counters(&status(before, adopted), &status(after, adopted), &[("demo", &[&phase(100, 10)])]);
            report.problems.len()
        };
        assert_eq!(judge(50, 100, true), 0);
        assert_eq!(judge(50, 100, false), 1, "not adopted");
        assert_eq!(judge(120, 105, true), 1, "fell");
        assert_eq!(judge(50, 60, true), 1, "lost");
    }
}
