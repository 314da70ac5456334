//! `cargo xtask test`: what CI runs, in order from cheap to dear; stops at the first step that fails.

use crate::{
    artifact::{self, Programs},
    kernels, layering, root,
    setup::{self, Purpose},
    step, verifier,
};
use anyhow::{Context, Result, bail, ensure};
use splitter_bench::lab::is_root;
use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

/// Steps and tests that passed and failed.
#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
}

pub fn run() -> Result<()> {
    let began = Instant::now();
    let mut totals = Totals::default();
    let result = steps(&mut totals);
    if result.is_err() && totals.failed == 0 {
        totals.failed = 1;
    }
    if let Err(error) = &result {
        step::say(format_args!("{error:#}"));
    }
    println!("{} passed, {} failed in {:.0} s", totals.passed, totals.failed, began.elapsed().as_secs_f64());
    result.map_err(|_| anyhow::anyhow!("`cargo xtask test` failed, see above"))
}

fn steps(totals: &mut Totals) -> Result<()> {
    ensure!(is_root(), "the tests make network namespaces and load kernel programs: run `cargo xtask test` as root");
    setup::run(Purpose::Test)?;
    totals.passed += 1;
    check(totals, "who imports whom", || layering::run(&root()?).map(|files| format!("{files} files")))?;
    cargo(totals, "formatting", &["fmt", "--all", "--check", "--", "--color=never"])?;
    cargo(totals, "clippy", &["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"])?;
    cargo_tests(totals)?;
    let programs = artifact::build_release()?;
    totals.passed += 1;
    check(totals, "kernel object and verifier budget", || verifier::run(&programs, false))?;
    check(totals, "kernel object on older kernels", kernels::check_loading)?;
    smoke(totals, &programs)
}

fn cargo(totals: &mut Totals, title: &str, arguments: &[&str]) -> Result<()> {
    step::run(title, artifact::cargo()?.args(arguments))?;
    totals.passed += 1;
    Ok(())
}

fn check(totals: &mut Totals, title: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let began = Instant::now();
    let result = work();
    let (mark, text) = match &result {
        Ok(text) => ("  ok  ", text.replace('\n', "; ")),
        Err(error) => ("FAILED", format!("{error:#}")),
    };
    step::say(format_args!("[{mark}] {title} ({:.1} s): {text}", began.elapsed().as_secs_f64()));
    result.with_context(|| format!("{title} failed"))?;
    totals.passed += 1;
    Ok(())
}

/// Unit tests and the root tests beside them: all of the workspace, every one even after a failure.
fn cargo_tests(totals: &mut Totals) -> Result<()> {
    let title = "tests of the workspace";
    let mut command = artifact::cargo()?;
    command.args(["test", "--workspace", "--all-features", "--locked", "--no-fail-fast"]);
    let (succeeded, output, log) = step::attempt(title, &mut command)?;
    let (passed, failed, ignored) = counts(&output);
    totals.passed += passed;
    totals.failed += failed;
    if !succeeded || failed > 0 {
        step::say(failures(&output));
        bail!("{title}: {passed} passed, {failed} failed; the whole output is in {}", log.display());
    }
    ensure!(passed > 0, "{title}: none ran; the whole output is in {}", log.display());
    ensure!(ignored == 0, "{title}: {ignored} are ignored: a test runs or goes");
    step::say(format_args!("         {passed} tests passed"));
    Ok(())
}

/// Passed, failed and ignored of all `test result:` lines.
fn counts(output: &str) -> (u64, u64, u64) {
    let (mut passed, mut failed, mut ignored) = (0, 0, 0);
    for line in output.lines().filter_map(|line| line.trim().strip_prefix("test result:")) {
        let number = |name: &str| {
            let part = line.split([';', '.']).find_map(|part| part.trim().strip_suffix(name));
            part.and_then(|part| part.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        passed += number("passed");
        failed += number("failed");
        ignored += number("ignored");
    }
    (passed, failed, ignored)
}

/// The parts of the output that a person needs: compiler errors, and what failed tests printed.
fn failures(output: &str) -> String {
    let mut kept = Vec::new();
    let mut inside = false;
    for line in output.lines() {
        if line == "failures:" || line.starts_with("error") {
            inside = true;
        } else if line.starts_with("     Running ") || line.starts_with("running ") {
            inside = false;
        }
        if inside {
            kept.push(line);
        }
    }
    kept.truncate(400);
    kept.join("\n")
}

/// The demonstration, as a user runs it.
fn smoke(totals: &mut Totals, programs: &Programs) -> Result<()> {
    ensure!(Path::new(&programs.splitter).exists(), "{} is not there", programs.splitter.display());
    let own = std::env::current_exe().context("where am I?")?;
    let began = Instant::now();
    step::run("demonstration", Command::new(own).args(["demo", "--json"]))?;
    ensure!(began.elapsed() < Duration::from_secs(90), "the demonstration took longer than 90 s");
    totals.passed += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
running 2 tests
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
     Running tests/x.rs
running 12 tests
failures:
    b
test result: FAILED. 10 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.01s
     Running tests/y.rs
noise
";

    #[test]
    fn results_are_summed() {
        assert_eq!(counts(OUTPUT), (12, 1, 1));
        assert_eq!(counts("nothing"), (0, 0, 0));
    }

    #[test]
    fn only_failures_are_shown() {
        let shown = failures(OUTPUT);
        assert!(shown.starts_with("failures:\n    b\n") && !shown.contains("noise") && !shown.contains("test a"), "{shown}");
    }
}
