//! The case `policy-scale`: a large policy from nothing to applied, a change of one line in it, a change of all of it and how long weight changes
//! wait meanwhile, and what agent and kernel hold for it.

use super::{Place, Rows, Samples, rows::again, synthetic};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::{
    admin::Admin,
    agent::Site,
    lab::{Lab, Options, Process},
};
use std::{
    fs,
    time::{Duration, Instant},
};

const MANY: u32 = 40_000;
const PATIENCE: Duration = Duration::from_secs(120);
/// A change of every service is read and applied within this time.
const WHOLE: Duration = Duration::from_secs(8);
/// Until a started agent counts as idle.
const REST: Duration = Duration::from_secs(2);

pub fn run(place: &Place, quick: bool, rows: &mut Rows) -> Result<()> {
    let (starts, changes) = if quick { (1, 3) } else { (2, 10) };
    let small = measure(place, 1, starts, changes)?;
    let (one, many) = ("1-service".to_owned(), format!("{MANY}-services"));
    small.report(&one, None, rows);
    let large = measure(place, MANY, starts, changes)?;
    large.report(&many, Some(&one), rows);
    measure(place, MANY, starts, changes)?.report(&again(&many), Some(&many), rows);
    let tables = large.tables.context("no status was read")?;
    for (metric, value, map) in [
        ("kernel_bytes_per_flow", tables.flow, "TCP4: memory / max_entries, two entries a flow"),
        (
            "kernel_bytes_per_spliced_flow",
            tables.spliced,
            "SPLICED4 and LEGS4: memory / max_entries, an entry of each; each idle leg is one more",
        ),
        ("kernel_bytes_per_leg", tables.leg, "LEGS4: memory / max_entries"),
        ("kernel_bytes_of_stashes", tables.stashes, "STASHES: a fixed number of slots for heads of requests"),
    ] {
        rows.add(&many, metric, value, None).more.insert("map", map.into());
    }
    Ok(())
}

#[derive(Default)]
struct Figures {
    /// From the agent's start until the policy runs in the kernel.
    load: Samples,
    /// The agent's own figure for the first apply.
    first_apply: Samples,
    /// From the rename of the changed file until the kernel runs it.
    reload: Samples,
    /// The agent's own figure for it.
    apply: Samples,
    /// The agent's own figure for a change of every service, and the longest that a weight change took meanwhile.
    whole: Samples,
    wait: Samples,
    /// Resident memory, KiB: at rest after the load, and after all changes.
    idle: Samples,
    after: Samples,
    tables: Option<Tables>,
}

/// Bytes of kernel memory.
#[derive(Debug, PartialEq)]
struct Tables {
    /// Of a TCP flow over IPv4, both directions.
    flow: f64,
    /// Of an http connection over IPv4 with one leg.
    spliced: f64,
    leg: f64,
    /// Of all stashes.
    stashes: f64,
}

impl Figures {
    fn report(&self, subject: &str, baseline: Option<&str>, rows: &mut Rows) {
        for (metric, samples) in [
            ("cold_load_ms", &self.load),
            ("cold_apply_ms", &self.first_apply),
            ("change_wall_ms", &self.reload),
            ("change_apply_ms", &self.apply),
            ("change_all_apply_ms", &self.whole),
            ("change_all_longest_weight_ms", &self.wait),
            ("agent_rss_idle_kib", &self.idle),
            ("agent_rss_after_changes_kib", &self.after),
        ] {
            rows.add_median(subject, metric, samples, baseline);
        }
    }
}

fn measure(place: &Place, services: u32, starts: u32, changes: u32) -> Result<Figures> {
    let mut figures = Figures::default();
    for _ in 0..starts {
        let lab = Lab::with("policy", Options { backends: 1, ..Options::default() })?;
        let texts: Vec<String> = (0..services).map(|i| synthetic::filler(i, 10)).collect();
        let site = Site::new(&place.splitter, &lab.node, &texts.concat())?;
        let admin = Admin::new(&site.socket());
        let began = Instant::now();
        let agent = site.spawn()?;
        agent_life(&site, &agent, &admin, began, texts, changes, &mut figures).with_context(|| site.log_tail())?;
        agent.stop(PATIENCE)?;
        site.detach()?;
        site.remove()?;
        lab.remove()?;
    }
    Ok(figures)
}

fn agent_life(
    site: &Site,
    agent: &Process,
    admin: &Admin,
    began: Instant,
    mut texts: Vec<String>,
    changes: u32,
    figures: &mut Figures,
) -> Result<()> {
    let last = synthetic::name(texts.len() as u32 - 1);
    let mut generation = None;
    agent.wait_ready(PATIENCE, || {
        generation = admin.generation(&last, "v1");
        generation.is_some()
    })?;
    figures.load.push(began.elapsed().as_secs_f64() * 1e3);
    std::thread::sleep(REST);
    // Before the status is asked for, which takes memory of its own.
    figures.idle.push(resident(agent.pid())?);
    let status = admin.status()?;
    ensure!(
        status["applied"]["services"] == texts.len(),
        "the agent applied {} of {} services",
        status["applied"]["services"],
        texts.len()
    );
    figures.first_apply.push(apply_ms(&status)?);
    figures.tables = Some(tables(&status)?);
    for i in 0..changes {
        let middle = texts.len() / 2;
        texts[middle] = synthetic::filler(middle as u32, 11 + i);
        // As editors and configuration tools do it: aside, then renamed.
        let aside = site.dir.join("policy.new");
        fs::write(&aside, texts.concat())?;
        let began = Instant::now();
        fs::rename(&aside, site.policy())?;
        let before = generation;
        agent.wait_ready(PATIENCE, || {
            generation = admin.generation(&last, "v1");
            generation > before
        })?;
        figures.reload.push(began.elapsed().as_secs_f64() * 1e3);
        let status = admin.status()?;
        ensure!(weight(&status, &synthetic::name(middle as u32)) == Some(11 + u64::from(i)), "the change is not applied");
        figures.apply.push(apply_ms(&status)?);
    }
    std::thread::sleep(REST);
    figures.after.push(resident(agent.pid())?);
    change_all(site, admin, texts.len() as u32, figures)
}

/// Gives every service another weight, and one of them others all the time.
fn change_all(site: &Site, admin: &Admin, services: u32, figures: &mut Figures) -> Result<()> {
    const WEIGHT: u32 = 77;
    let texts: Vec<String> = (0..services).map(|i| synthetic::filler(i, WEIGHT)).collect();
    let aside = site.dir.join("policy.new");
    fs::write(&aside, texts.concat())?;
    let (began, mut longest, first) = (Instant::now(), Duration::ZERO, synthetic::name(0));
    fs::rename(&aside, site.policy())?;
    for weight in (1..=50).cycle() {
        let asked = Instant::now();
        admin.weights(&first, &[("v1", weight)], false)?;
        longest = longest.max(asked.elapsed());
        if began.elapsed() > WHOLE {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let status = admin.status()?;
    let last = synthetic::name(services - 1);
    ensure!(weight(&status, &last) == Some(u64::from(WEIGHT)), "the change is not applied after {WHOLE:?}");
    figures.whole.push(apply_ms(&status)?);
    figures.wait.push(longest.as_secs_f64() * 1e3);
    Ok(())
}

fn apply_ms(status: &Value) -> Result<f64> {
    status["applied"]["apply_ms"].as_f64().context("the status has no applied.apply_ms")
}

/// Weight of `v2` of a service.
fn weight(status: &Value, service: &str) -> Option<u64> {
    let service = status["services"].as_array()?.iter().find(|candidate| candidate["name"] == service)?;
    service["versions"].as_array()?.iter().find(|version| version["name"] == "v2")?["weight"].as_u64()
}

fn tables(status: &Value) -> Result<Tables> {
    let leg = entry(status, "legs4")?.0;
    let (stash, slots) = entry(status, "stashes")?;
    Ok(Tables { flow: entry(status, "tcp4")?.0 * 2.0, spliced: entry(status, "spliced4")?.0 + leg, leg, stashes: stash * slots })
}

/// Bytes of kernel memory that an entry of a table takes, and how many entries it can have.
fn entry(status: &Value, name: &str) -> Result<(f64, f64)> {
    let tables = status["tables"].as_array().context("the status has no tables")?;
    let table = tables.iter().find(|table| table["name"] == name).with_context(|| format!("the status has no table {name}"))?;
    let number = |field: &str| table[field].as_u64().filter(|number| *number > 0).with_context(|| format!("table {name} has no {field}"));
    let entries = number("max_entries")? as f64;
    Ok((number("memory")? as f64 / entries, entries))
}

/// Resident memory of a process, KiB.
fn resident(pid: u32) -> Result<f64> {
    resident_in(&fs::read_to_string(format!("/proc/{pid}/status"))?)
}

fn resident_in(status: &str) -> Result<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    line.trim().strip_suffix(" kB").and_then(|number| number.trim().parse().ok()).context("odd VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_status_is_read() {
        let version = |name: &str, weight: u32| json!({"name": name, "weight": weight});
        let status = json!({
            "applied": {"apply_ms": 1.5},
            "services": [{"name": "a", "versions": [version("v1", 90), version("v2", 12)]}],
            "tables": [
                {"name": "legs4", "memory": 200_000, "max_entries": 2_000},
                {"name": "spliced4", "memory": 120_000, "max_entries": 1_000},
                {"name": "stashes", "memory": 5_000, "max_entries": 10},
                {"name": "tcp4", "memory": 96_000, "max_entries": 1_000},
            ],
        });
        assert_eq!((apply_ms(&status).unwrap(), weight(&status, "a"), weight(&status, "b")), (1.5, Some(12), None));
        assert_eq!(tables(&status).unwrap(), Tables { flow: 192.0, spliced: 220.0, leg: 100.0, stashes: 5_000.0 });
        assert!(entry(&json!({"tables": [{"name": "tcp4", "memory": 0, "max_entries": 5}]}), "tcp4").is_err());
    }

    #[test]
    fn resident_memory_is_read() {
        assert_eq!(resident_in("Name:\tsplitter\nVmHWM:\t  99999 kB\nVmRSS:\t   12340 kB\n").unwrap(), 12_340.0);
        assert!(resident_in("Name:\tkthread\n").is_err());
    }
}
