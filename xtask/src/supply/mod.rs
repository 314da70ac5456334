//! What comes from others: licences, sources, versions twice, the compiler that is asked for, versions that were taken back. The rules stand in
//! `deny.toml`, in cargo-deny's words; what is checked here needs no program but cargo.
//!
//! | module | what it does |
//! |---|---|
//! | `rules` | `deny.toml` read |
//! | `licence` | whether an SPDX expression allows what the rules allow |
//!
//! Not checked here: security advisories. Their database is no part of the registry; `cargo deny check advisories` asks it.

mod licence;
mod rules;

use crate::{artifact, root, step};
use anyhow::{Context, Result, bail, ensure};
use rules::Rules;
use serde_json::Value;
use std::collections::BTreeMap;

/// Checks everything that `cargo metadata` tells; says how much that was.
pub fn run() -> Result<String> {
    let rules = Rules::parse(&std::fs::read_to_string(root()?.join("deny.toml")).context("no deny.toml")?)?;
    let metadata = artifact::metadata(&rules.targets)?;
    let packages = metadata["packages"].as_array().context("cargo metadata names no packages")?;
    let complaints = complaints(packages, &rules);
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    let foreign = packages.iter().filter(|package| !package["source"].is_null()).count();
    Ok(format!(
        "{foreign} packages of others: licences, sources, no version twice, none asks for a newer compiler than {}",
        declared(packages)?
    ))
}

/// Asks the registry, by the client that does so in earnest, whether a version in `Cargo.lock` was taken back. `Ok(None)`: it cannot be asked now.
pub fn yanked() -> Result<Option<String>> {
    let mut command = artifact::cargo()?;
    // The only command that looks at the whole lock file and warns; `--dry-run` is of unstable cargo until it is stable.
    command.env("RUSTC_BOOTSTRAP", "1").args([
        "install",
        "--path",
        "splitter-agent",
        "--locked",
        "--dry-run",
        "-Zunstable-options",
        "--root",
    ]);
    let (succeeded, output, log) = step::attempt("versions that were taken back", command.arg(step::log_dir()?.join("nowhere")))?;
    judge_yanked(succeeded, &output).with_context(|| format!("the whole output is in {}", log.display()))
}

fn judge_yanked(succeeded: bool, output: &str) -> Result<Option<String>> {
    let found: Vec<&str> = output.lines().filter(|line| line.contains("is yanked in registry")).collect();
    ensure!(found.is_empty(), "{}; `cargo update -p NAME` takes another version", found.join("\n"));
    if succeeded && output.contains("aborting install due to dry run") {
        return Ok(Some("none in Cargo.lock".into()));
    }
    let offline = ["failed to download", "failed to get", "Could not resolve", "offline", "network"];
    ensure!(!succeeded && offline.iter().any(|words| output.contains(words)), "cargo did not do as expected");
    Ok(None)
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

fn complaints(packages: &[Value], rules: &Rules) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let declared = declared(packages).unwrap_or_default();
    for package in packages {
        let (name, version, source) = (text(package, "name"), text(package, "version"), text(package, "source"));
        versions.entry(name).or_default().push(version);
        if !source.is_empty() && !source.starts_with("registry+") {
            complaints.push(format!("{name} {version}: comes from {source}, not from the registry"));
        }
        if let Err(error) = licence::allows(text(package, "license"), |licence| rules.allows(name, licence)) {
            complaints.push(format!("{name} {version}: {error:#}; see [licenses] in deny.toml"));
        }
        let asked = text(package, "rust_version");
        if numbers(asked) > numbers(&declared) {
            complaints.push(format!("{name} {version} asks for Rust {asked}; `rust-version` in Cargo.toml is {declared}"));
        }
    }
    for (name, mut found) in versions {
        found.retain(|version| !rules.skips(name, version));
        if found.len() > 1 {
            complaints.push(format!("{name} is there {} times: {}; see [bans] in deny.toml", found.len(), found.join(", ")));
        }
    }
    complaints
}

/// `rust-version` of the workspace: every one of our packages declares the same.
pub fn declared(packages: &[Value]) -> Result<String> {
    let own = packages.iter().filter(|package| package["source"].is_null());
    let mut declared: Vec<&str> = own.map(|package| text(package, "rust_version")).collect();
    declared.dedup();
    match declared[..] {
        [version] if !version.is_empty() => Ok(version.to_owned()),
        _ => bail!("the workspace's packages declare several compilers, or none: {declared:?}"),
    }
}

/// A version as numbers to compare; what is not said is 0.
pub fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const RULES: &str = "[licenses]\nallow = [\"MIT\"]\n[bans]\nmultiple-versions = \"deny\"\n[[bans.skip]]\ncrate = \"syn@2\"\n";

    fn package(name: &str, version: &str) -> Value {
        json!({"name": name, "version": version, "source": "registry+x", "license": "MIT", "rust_version": "1.60"})
    }

    fn found(packages: &[Value]) -> Vec<String> {
        let own = json!({"name": "own", "version": "0.1.0", "source": null, "license": "MIT", "rust_version": "1.88"});
        complaints(&[&[own], packages].concat(), &Rules::parse(RULES).unwrap())
    }

    #[test]
    fn the_repository_keeps_its_rules() {
        run().unwrap();
    }

    #[test]
    fn each_rule_finds_what_breaks_it() {
        assert_eq!(found(&[package("a", "1.0.0"), package("syn", "2.0.1"), package("syn", "3.0.0")]), Vec::<String>::new());
        let mut foreign = package("a", "1.0.0");
        foreign["source"] = "git+https://example".into();
        assert!(found(&[foreign])[0].contains("a 1.0.0: comes from git+https://example"));
        let mut copyleft = package("a", "1.0.0");
        copyleft["license"] = "GPL-3.0".into();
        assert!(found(&[copyleft.clone()])[0].contains("a 1.0.0: GPL-3.0 is not allowed"));
        copyleft["license"] = Value::Null;
        assert!(found(&[copyleft])[0].contains("a 1.0.0: no licence"));
        let mut young = package("a", "1.0.0");
        young["rust_version"] = "1.88.1".into();
        assert!(found(&[young])[0].contains("a 1.0.0 asks for Rust 1.88.1; `rust-version` in Cargo.toml is 1.88"));
        assert!(found(&[package("a", "1.0.0"), package("a", "2.0.0")])[0].contains("a is there 2 times: 1.0.0, 2.0.0"));
        assert!(found(&[package("syn", "3.0.0"), package("syn", "4.0.0")])[0].contains("syn is there 2 times"));
    }

    #[test]
    fn versions_that_were_taken_back_are_found() {
        let good = "    Updating the index\n  Installing /x\nwarning: aborting install due to dry run\n";
        assert!(judge_yanked(true, good).unwrap().is_some());
        let bad = format!("warning: package `futures-util v0.3.30` in Cargo.lock is yanked in registry `crates-io`, consider\n{good}");
        assert!(judge_yanked(true, &bad).unwrap_err().to_string().contains("futures-util v0.3.30"));
        assert!(judge_yanked(false, "error: failed to download from the index").unwrap().is_none());
        assert!(judge_yanked(false, "error: what is this?").is_err() && judge_yanked(true, "").is_err());
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(numbers("1.100") > numbers("1.88.0") && numbers("1.88") == numbers("1.88.0") && numbers("") < numbers("1"));
    }
}
