//! The last act: two rollouts by the judge in the node. A good v2 gets everything; a v3 whose server refuses every connection is taken back.

use super::{PATIENCE, SERVICES, Show, policy, requests, vip};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use splitter_lab::load::{Load, Plan};
use std::{
    fs,
    time::{Duration, Instant},
};

/// Steps of a second, for an audience. A release would take the defaults, which wait for minutes.
const ROLLOUT: &str = "steps: [10%, 50%, 100%], pace: adaptive, dwell: 1s, watch: 1s, warmUp: 0s, minSamples: 100, coolDown: 0s, \
                       gates: {errorRate: {max: 5%, margin: 5%}}";
const SERVICE: &str = SERVICES[0];
/// A rollout of three steps takes seconds; a busy machine takes longer.
const LONGEST: Duration = Duration::from_secs(40);

impl Show<'_> {
    /// Both rollouts, with a load of their own: the second one is meant to fail requests.
    pub(super) fn rollouts(&mut self) -> Result<()> {
        let load = Load::start(Some(self.lab.client()), Plan { rate: Some(500.0), ..Plan::http(vip(false)) })?;
        self.screen.note("v2 is rolled out: the node judges it, 10%, 50%, 100%");
        self.publish(&[("v1", 100, &[1, 2]), ("v2", 0, &[3])], "v2")?;
        self.roll("v2", "promoted")?;
        // Nobody serves on backend 2 any more: the v3 that moves in there is broken.
        self.servers.remove(1).kill();
        self.screen.note("v3 is rolled out: its server refuses every connection");
        self.publish(&[("v2", 100, &[3]), ("v3", 0, &[2])], "v3")?;
        self.roll("v3", "rolled-back")?;
        load.stop()?;
        Ok(())
    }

    /// A new policy with a rollout for each service, and waits until it is applied.
    fn publish(&mut self, versions: &[(&str, u32, &[usize])], canary: &str) -> Result<()> {
        let rollout = format!("  rollout: {{canary: {canary}, {ROLLOUT}}}\n");
        // The documents follow each other: the rollout ends each of them.
        let text = policy(&self.lab, versions).replacen("---\n", "", 1).replace("---\n", &format!("{rollout}---\n")) + &rollout;
        // The http service has no part in it, and gives up backend 2.
        let text = text + &requests::policy(&self.lab, &[("v1", 95, &[1]), ("v2", 5, &[3])]);
        let before = self.site.status()?["applied"]["generation"].as_u64().unwrap_or(0);
        let new = self.site.dir.join("policy.new");
        fs::write(&new, text)?;
        fs::rename(&new, self.site.policy())?;
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.site.status()?;
            if status["desired"]["state"] == "rejected" {
                bail!("the policy of the rollout is rejected: {}", status["desired"]["errors"]);
            }
            if status["applied"]["generation"].as_u64() > Some(before) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the policy of the rollout is not applied");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the rollout, waits for its end, and shows and keeps its timeline.
    fn roll(&mut self, canary: &str, wanted: &str) -> Result<()> {
        let arguments = ["rollout", "start", SERVICE];
        let (_, took) = self.site.cli(&arguments)?;
        self.screen.note(&format!("$ splitter {}   ({:.1} ms)", arguments.join(" "), took.as_secs_f64() * 1e3));
        let end = Instant::now() + LONGEST;
        let last = loop {
            let status: Value = serde_json::from_str(&self.site.cli(&["rollout", "status", SERVICE, "-o", "json"])?.0)?;
            if status["phase"] != "running" || Instant::now() > end {
                break status;
            }
            std::thread::sleep(Duration::from_millis(50));
        };
        let history: Vec<Value> = serde_json::from_str(&self.site.cli(&["rollout", "history", SERVICE, "-o", "json"])?.0)?;
        let own: Vec<&Value> = history.iter().filter(|event| event["canary"] == canary).collect();
        let began = own.first().and_then(|event| event["at"].as_f64()).context("the rollout left no history")?;
        for event in &own {
            let share = |field: &str| event[field].as_f64().unwrap_or_default() * 100.0;
            let at = event["at"].as_f64().unwrap_or_default() - began;
            let what = event["event"].as_str().unwrap_or_default();
            let why = event["reason"].as_str().unwrap_or_default();
            self.screen.note(&format!("  {at:5.1} s  {what:<11}  {:3.0}% -> {:3.0}%  {why}", share("from"), share("to")));
        }
        self.report.judge_rollout(canary, wanted, &last, &own, began);
        Ok(())
    }
}
