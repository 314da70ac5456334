//! `cargo xtask proof`: the HTTP tests that count, with 100,000 requests each where a normal run sends a few thousand, and the root tests inside
//! older kernels; figures go to `bench/results/http-proof.json` and `kernels.json`. Takes about an hour; with names of tests only these run, in this
//! kernel, and the file keeps what it has of the others. A whole run begins with what compiles everything once more: the oldest compiler, the other
//! processor, random input.

use crate::{aarch64, artifact, fuzz, kernels, msrv, root, setup, step};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_lab::{lab::is_root, machine};
use std::{fs, process::Command};

/// Tests whose figures are kept.
const TESTS: [&str; 6] = [
    "clients::every_client",
    "tags::each_request",
    "network::one_percent",
    "explain::explain_agrees",
    "pooled::",
    "inflight::a_rolling_restart",
];
const FILE: &str = "http-proof.json";

pub fn run(chosen: &[&str]) -> Result<()> {
    ensure!(is_root(), "the proof makes network namespaces and loads kernel programs: run it as root");
    setup::run(setup::Purpose::Proof)?;
    // Of what is built now, whatever the tree holds in half an hour.
    let revision = revision()?;
    if !chosen.is_empty() {
        return requests(&revision, chosen);
    }
    println!("{}", msrv::run()?);
    aarch64::check()?;
    fuzz::short()?;
    let requests = requests(&revision, &TESTS);
    // The one must not hide what the other finds.
    let kernels = kernels::prove();
    requests.and(kernels)
}

/// Keeps a result.
pub fn write(name: &str, document: &Value) -> Result<()> {
    let path = root()?.join("bench/results").join(name);
    fs::write(&path, format!("{document:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    println!("written to {}", path.display());
    Ok(())
}

/// Of the tree as it is now.
pub fn revision() -> Result<String> {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).current_dir(root()?).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn requests(revision: &str, tests: &[&str]) -> Result<()> {
    let mut command = artifact::cargo()?;
    command.env("SPLITTER_TEST_LONG", "1").args(["test", "--release", "--locked", "-p", "splitter-agent", "--test", "http", "--"]);
    command.args(["--nocapture", "--test-threads", "1"]).args(tests);
    let (passed, output, log) = step::attempt("100,000 requests of every kind", &mut command)?;
    let mut rows = rows(&output)?;
    for row in &rows {
        println!(
            "{:>9} requests {:>3} wrong or failed  {} {}",
            row["requests"],
            row["wrong_or_failed"],
            text(&row["what"]),
            text(&row["family"])
        );
    }
    let (requests, wrong) = (sum(&rows, "requests"), sum(&rows, "wrong_or_failed"));
    ensure!(passed && !rows.is_empty(), "the tests failed after {requests} requests; the whole output is in {}", log.display());
    println!("{requests} requests, {wrong} wrong or failed");
    let mut document = machine::describe()?;
    for row in &mut rows {
        (row["date"], row["revision"], row["kernel"]) = (document["date"].clone(), revision.into(), document["kernel"].clone());
    }
    // A whole run stands for itself.
    let before = if tests == TESTS { Vec::new() } else { kept()? };
    let rows = merged(before, rows);
    document["revision"] = revision.into();
    document["requests"] = sum(&rows, "requests").into();
    document["wrong_or_failed"] = sum(&rows, "wrong_or_failed").into();
    document["rows"] = rows.into();
    write(FILE, &document)
}

fn sum(rows: &[Value], field: &str) -> u64 {
    rows.iter().filter_map(|row| row[field].as_u64()).sum()
}

/// Rows of earlier runs, each with when and of what it was.
fn kept() -> Result<Vec<Value>> {
    let path = root()?.join("bench/results").join(FILE);
    let Ok(text) = fs::read_to_string(&path) else { return Ok(Vec::new()) };
    let document: Value = serde_json::from_str(&text).with_context(|| format!("odd {}", path.display()))?;
    let mut rows = document["rows"].as_array().cloned().unwrap_or_default();
    rows.iter_mut().for_each(|row| dated(row, &document));
    Ok(rows)
}

/// A row without a date of its own is of its document's.
fn dated(row: &mut Value, document: &Value) {
    for field in ["date", "revision", "kernel"] {
        if row[field].is_null() {
            row[field] = document[field].clone();
        }
    }
}

/// The rows of a run in the places of those that they are newer than, and behind the others.
fn merged(mut rows: Vec<Value>, new: Vec<Value>) -> Vec<Value> {
    for row in new {
        match rows.iter_mut().find(|old| old["what"] == row["what"] && old["family"] == row["family"]) {
            Some(old) => *old = row,
            None => rows.push(row),
        }
    }
    rows
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Lines that the tests print for us; a test's name may stand before the first of them.
fn rows(output: &str) -> Result<Vec<Value>> {
    let lines = output.lines().filter_map(|line| line.split_once("PROOF ").map(|(_, json)| json));
    lines.map(|json| serde_json::from_str(json).with_context(|| format!("odd figure: {json}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_collected() {
        let output = "test a ... PROOF {\"what\":\"x\",\"requests\":5}\nnoise\nPROOF {\"what\":\"y\",\"requests\":7}\nok\n";
        let found = rows(output).unwrap();
        assert_eq!(found.iter().filter_map(|row| row["requests"].as_u64()).sum::<u64>(), 12);
        assert!(rows("PROOF {").is_err());
    }

    #[test]
    fn parts_say_when_they_were_run() {
        let document = json!({"date": "then", "revision": "a", "kernel": "6", "rows": []});
        let mut old = vec![json!({"what": "x", "family": "IPv4", "requests": 1}), json!({"what": "y", "family": "IPv4", "requests": 2})];
        old.iter_mut().for_each(|row| dated(row, &document));
        let new = |what: &str| json!({"what": what, "family": "IPv4", "requests": 9, "date": "now", "revision": "b", "kernel": "6"});
        let rows = merged(old, vec![new("y"), new("z")]);
        let dates: Vec<_> = rows.iter().map(|row| (text(&row["what"]), text(&row["date"]), text(&row["revision"]))).collect();
        assert_eq!(dates, [("x", "then", "a"), ("y", "now", "b"), ("z", "now", "b")]);
        assert_eq!(sum(&rows, "requests"), 19);
    }
}
