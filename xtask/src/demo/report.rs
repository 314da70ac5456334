//! What the demonstration is judged by, and its report as text and JSON. Pure: reads counts, talks to nobody.

use super::{VERSIONS, Weights, counter, requests, traffic::View};
use serde_json::{Map, Value, json};
use splitter_lab::{
    load::{Phase, Version},
    stats::binomial_bound,
};
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
    tags: Vec<Value>,
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

/// What the client saw of a service, and by which name the agent counts the same.
pub struct Seen {
    service: &'static str,
    what: &'static str,
    /// By version.
    counts: [u64; 2],
}

impl Seen {
    fn new(service: &'static str, what: &'static str, count: impl Fn(&str) -> u64) -> Seen {
        Seen { service, what, counts: VERSIONS.map(|(version, _)| count(version)) }
    }
}

/// Connections of layer 4's services, requests of the http service.
pub fn seen(total: &View) -> [Seen; 3] {
    let sum = |loads: &[&Phase], version: &str, count: fn(&Version) -> u64| {
        loads.iter().filter_map(|load| load.versions.get(version)).map(count).sum::<u64>()
    };
    let tagged: Vec<&Phase> = total.tagged.iter().collect();
    let connections = |version: &Version| version.connections;
    [
        Seen::new("demo", "connections", |version| sum(&[&total.fresh[0], &total.kept], version, connections)),
        Seen::new("demo6", "connections", |version| sum(&[&total.fresh[1]], version, connections)),
        Seen::new(requests::SERVICE, "requests", |version| sum(&tagged, version, |version| version.requests)),
    ]
}

/// Whether the agent's status holds at least what the client saw.
pub fn has_counted(status: &Value, seen: &[Seen]) -> bool {
    let counted =
        |seen: &Seen, version, count: u64| counter(status, seen.service, version, seen.what).is_some_and(|counted| counted >= count);
    seen.iter().all(|seen| VERSIONS.iter().zip(seen.counts).all(|((version, _), count)| counted(seen, version, count)))
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
        self.judge_tags(name, asked, &view.tagged);
        self.judge_between(view);
        self.phases.push(json!({
            "name": name,
            "seconds": rounded(elapsed.as_secs_f64()),
            "versions": versions,
            "kept_requests": view.kept.requests(),
            "errors": view.failed(),
        }));
    }

    /// Of requests that meet a rule all go to its version, of the others what the weights ask.
    fn judge_tags(&mut self, name: &str, weights: Weights, view: &[Phase]) {
        for (tag, phase) in requests::TAGS.iter().zip(view) {
            let ((v2, all), wrong, asked) = (requests::counts(phase), requests::wrong(phase), tag.asked(weights));
            let (low, high) = binomial_bound(all, asked);
            let what = format!("{name}: requests with {:?}", tag.name);
            if all < ENOUGH {
                self.problems.push(format!("{what}: only {all}, too few to judge"));
            }
            if !(low..=high).contains(&v2) {
                self.problems.push(format!("{what}: {v2} of {all} went to v2, chance allows {low} to {high}"));
            }
            if wrong > 0 {
                let why = phase.first_error.clone().unwrap_or_default();
                self.problems.push(format!("{what}: {wrong} went to the wrong version, the first: {why}"));
            }
            self.tags.push(json!({
                "phase": name,
                "request": tag.name,
                "asked_v2": rounded(asked),
                "achieved_v2": rounded(share(v2, all)),
                "requests": all,
                "wrong": wrong,
            }));
        }
    }

    /// While weights change no share is asked, but nothing may fail either.
    pub fn judge_between(&mut self, view: &View) {
        if view.requests() > 0 && view.failed() > 0 {
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
    pub fn judge_totals(&mut self, total: &View) {
        let mut all = total.fresh();
        [&total.kept].into_iter().chain(&total.tagged).for_each(|load| all.merge(load));
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

    /// The agent's counters go on over the restart, and agree with what the client saw.
    pub fn judge_counters(&mut self, before: &Value, after: &Value, seen: &[Seen]) {
        if after["agent"]["adopted"] != true {
            self.problems.push("the second agent did not adopt the maps of the first".into());
        }
        for Seen { service, what, counts } in seen {
            for ((version, _), client) in VERSIONS.iter().zip(*counts) {
                let (Some(early), Some(late)) = (counter(before, service, version, what), counter(after, service, version, what)) else {
                    self.problems.push(format!("`splitter status` has no {what} of {service} {version}"));
                    continue;
                };
                if late < early {
                    self.problems.push(format!("{service} {version}: the counter fell from {early} to {late} over the restart"));
                }
                if late < client || late as f64 > client as f64 * RESENT + 10.0 {
                    self.problems.push(format!("{service} {version}: the agent counted {late} {what}, the client {client}"));
                }
                self.counters.push(
                    json!({"service": service, "version": version, "what": what, "before_kill": early, "end": late, "client": client}),
                );
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
            "tags": self.tags,
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
        self.tags_in_words(&mut text);
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

impl Report {
    /// A line a tag: its phases in their order.
    fn tags_in_words(&self, text: &mut String) {
        for tag in requests::TAGS {
            let own: Vec<&Value> = self.tags.iter().filter(|row| row["request"] == tag.name).collect();
            if own.is_empty() {
                continue;
            }
            let percent = |row: &Value, field: &str| row[field].as_f64().unwrap_or_default() * 100.0;
            let shares: Vec<String> =
                own.iter().map(|row| format!("{:.2}% of {:.0}%", percent(row, "achieved_v2"), percent(row, "asked_v2"))).collect();
            let sum = |field: &str| own.iter().filter_map(|row| row[field].as_u64()).sum::<u64>();
            let whither = match tag.version {
                Some(version) => format!("to {version}, whatever the weights"),
                None => format!("to v2 {}", shares.join(", ")),
            };
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {:<21}{} requests, {} wrong; {whither}", tag.name, sum("requests"), sum("wrong"));
        }
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
    use splitter_lab::load::ErrorKind;

    fn phase(v1: u64, v2: u64) -> Phase {
        let version = |connections| Version { connections, requests: connections, ..Version::default() };
        let versions = [("v1".to_owned(), version(v1)), ("v2".to_owned(), version(v2))];
        Phase { versions: versions.into(), begun: v1 + v2, ..Phase::default() }
    }

    /// Of both families, and of requests with the header, the cookie, neither.
    fn view(fresh: Phase, tagged: [Phase; 3]) -> View {
        View { fresh: [fresh.clone(), fresh], kept: Phase::default(), tagged: tagged.into() }
    }

    fn judged(v1: u64, v2: u64, asked: Weights) -> Vec<String> {
        let mut report = Report::default();
        let untagged = phase(10 * u64::from(asked[0]), 10 * u64::from(asked[1]));
        let view = view(phase(v1, v2), [phase(0, 500), phase(500, 0), untagged]);
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
        for (fresh, header) in [(failed.clone(), phase(0, 0)), (phase(0, 0), failed)] {
            let mut report = Report::default();
            let view = View { fresh: [fresh, phase(0, 0)], ..view(phase(0, 0), [header, phase(0, 0), phase(0, 0)]) };
            report.judge_totals(&view);
            assert_eq!(report.problems.len(), 2, "one failed, one unanswered: {:?}", report.problems);
            assert_eq!(report.json()["ok"], false);
        }
    }

    #[test]
    fn tags_are_judged_by_their_rule_and_the_rest_by_weight() {
        let problems = |header: Phase, untagged: Phase| {
            let mut report = Report::default();
            report.judge_tags("x", [95, 5], &[header, phase(500, 0), untagged]);
            report.problems.len()
        };
        assert_eq!(problems(phase(0, 500), phase(475, 25)), 0);
        assert_eq!(problems(phase(1, 500), phase(475, 25)), 1, "a rule has no exceptions");
        assert_eq!(problems(phase(0, 500), phase(0, 500)), 1);
        assert_eq!(problems(phase(0, 50), phase(475, 25)), 1, "too few");
        let mut strayed = phase(0, 500);
        strayed.errors.insert(ErrorKind::WrongVersion, 1);
        assert_eq!(problems(strayed, phase(475, 25)), 1, "one answer of the wrong server");
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
            let seen = Seen { service: "demo", what: "connections", counts: [100, 10] };
            report.judge_counters(&status(before, adopted), &status(after, adopted), &[seen]);
            report.problems.len()
        };
        assert_eq!(judge(50, 100, true), 0);
        assert_eq!(judge(50, 100, false), 1, "not adopted");
        assert_eq!(judge(120, 105, true), 1, "fell");
        assert_eq!(judge(50, 60, true), 1, "lost");
    }
}
