//! `cargo xtask proof`: the HTTP tests that count, with 100,000 requests each where a normal run sends a few thousand, and the root tests inside
//! older kernels; figures go to `bench/results/http-proof.json` and `kernels.json`. Takes about half an hour.

use crate::{aarch64, artifact, kernels, root, setup, step};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use splitter_bench::{lab::is_root, machine};
use std::{fs, process::Command};

/// Tests whose figures are kept.
const TESTS: [&str; 4] = ["clients::every_client", "tags::each_request", "network::one_percent", "explain::explain_agrees"];

pub fn run() -> Result<()> {
    ensure!(is_root(), "the proof makes network namespaces and loads kernel programs: run it as root");
    setup::run(setup::Purpose::Test)?;
    // Of what is built now, whatever the tree holds in half an hour.
    let revision = revision()?;
    let requests = requests(&revision);
    // The one must not hide what the other finds.
    let kernels = kernels::prove();
    requests.and(kernels).and(aarch64::run())
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

fn requests(revision: &str) -> Result<()> {
    let mut command = artifact::cargo()?;
    command.env("SPLITTER_TEST_LONG", "1").args(["test", "--release", "--locked", "-p", "splitter-agent", "--test", "http", "--"]);
    command.args(["--nocapture", "--test-threads", "1"]).args(TESTS);
    let (passed, output, log) = step::attempt("100,000 requests of every kind", &mut command)?;
    let rows = rows(&output)?;
    let wrong: u64 = rows.iter().filter_map(|row| row["wrong_or_failed"].as_u64()).sum();
    let requests: u64 = rows.iter().filter_map(|row| row["requests"].as_u64()).sum();
    for row in &rows {
        println!(
            "{:>9} requests {:>3} wrong or failed  {} {}",
            row["requests"],
            row["wrong_or_failed"],
            text(&row["what"]),
            text(&row["family"])
        );
    }
    ensure!(passed && !rows.is_empty(), "the tests failed after {requests} requests; the whole output is in {}", log.display());
    let mut document = machine::describe()?;
    document["revision"] = revision.into();
    document["requests"] = requests.into();
    document["wrong_or_failed"] = wrong.into();
    document["rows"] = rows.into();
    println!("{requests} requests, {wrong} wrong or failed");
    write("http-proof.json", &document)
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

    #[test]
    fn figures_are_collected() {
        let output = "test a ... PROOF {\"what\":\"x\",\"requests\":5}\nnoise\nPROOF {\"what\":\"y\",\"requests\":7}\nok\n";
        let found = rows(output).unwrap();
        assert_eq!(found.iter().filter_map(|row| row["requests"].as_u64()).sum::<u64>(), 12);
        assert!(rows("PROOF {").is_err());
    }
}
