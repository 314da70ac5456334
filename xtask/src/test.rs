//! `cargo xtask test`: what CI runs, in order from cheap to dear; stops at the first step that fails.

use crate::{
    artifact::{self, Programs},
    docs, kernels, layering, root,
    setup::{self, Purpose},
    step, supply, verifier,
};
use anyhow::{Context, Result, bail, ensure};
use splitter_lab::lab::is_root;
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
    /// Tests among the passed ones that failed beside the others and passed alone.
    again: Vec<String>,
}

/// So many failed tests are run again; where more fail, something is broken.
const AGAIN: usize = 3;

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
    for name in &totals.again {
        println!("failed beside the others, passed alone: {name}");
    }
    println!("{} passed, {} failed in {:.0} s", totals.passed, totals.failed, began.elapsed().as_secs_f64());
    result.map_err(|_| anyhow::anyhow!("`cargo xtask test` failed, see above"))
}

fn steps(totals: &mut Totals) -> Result<()> {
    ensure!(is_root(), "the tests make network namespaces and load kernel programs: run `cargo xtask test` as root");
    setup::run(Purpose::Test)?;
    totals.passed += 1;
    check(totals, "who imports whom", || layering::run(&root()?).map(|files| format!("{files} files")))?;
    check(totals, "module maps", docs::maps)?;
    check(totals, "what comes from others", supply::run)?;
    check(totals, "taken back", || Ok(supply::yanked()?.unwrap_or_else(|| "not checked: the registry cannot be reached".into())))?;
    cargo(totals, "formatting", &["fmt", "--all", "--check", "--", "--color=never"])?;
    cargo(totals, "clippy", &["clippy", "--workspace", "--all-targets", "--all-features", "--locked", "--", "-D", "warnings"])?;
    done(totals, docs::build)?;
    cargo_tests(totals)?;
    let programs = artifact::build_release()?;
    totals.passed += 1;
    check(totals, "kernel object and verifier budget", || verifier::run(&programs, false))?;
    check(totals, "kernel object on older kernels", kernels::check_loading)?;
    smoke(totals, &programs)
}

/// A step that says itself what it does.
fn done(totals: &mut Totals, work: impl FnOnce() -> Result<()>) -> Result<()> {
    work()?;
    totals.passed += 1;
    Ok(())
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
        let outcome = format!("{title}: {passed} passed, {failed} failed; the whole output is in {}", log.display());
        alone(totals, &output, failed).context(outcome)?;
    }
    ensure!(passed > 0, "{title}: none ran; the whole output is in {}", log.display());
    ensure!(ignored == 0, "{title}: {ignored} are ignored: a test runs or goes");
    step::say(format_args!("         {passed} tests passed"));
    Ok(())
}

/// Runs the failed tests once more, with nothing beside them, and counts those that pass now as passed: many tests wait for clocks, and two processors that
/// are short for a moment make one of a thousand late. Which ones is said at the end.
fn alone(totals: &mut Totals, output: &str, failed: u64) -> Result<()> {
    let (targets, names) = (failed_targets(output), failed_names(output));
    ensure!(failed as usize == names.len() && names.len() <= AGAIN, "not run again: {failed} failed, of {} names", names.len());
    for target in targets {
        let mut command = artifact::cargo()?;
        command
            .args(["test", "--all-features", "--locked"])
            .args(target.split(' '))
            .args(["--", "--exact", "--test-threads", "1"])
            .args(&names);
        let (_, output, log) = step::attempt(&format!("alone {target}"), &mut command)?;
        let (passed, failed, _) = counts(&output);
        totals.passed += passed;
        totals.failed -= passed.min(totals.failed);
        if failed > 0 {
            step::say(failures(&output));
            bail!("failed alone, too; the whole output is in {}", log.display());
        }
    }
    ensure!(totals.failed == 0, "{} failed tests were not found again", totals.failed);
    totals.again = names;
    Ok(())
}

/// What to give to `cargo test` for each target that failed, as cargo says at the end.
fn failed_targets(output: &str) -> Vec<String> {
    output.lines().filter_map(|line| line.trim().strip_prefix("`-p ")?.strip_suffix('`')).map(|rest| format!("-p {rest}")).collect()
}

/// The failed tests by name: a test binary lists them last, one to an indented line.
fn failed_names(output: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut listed = false;
    for line in output.lines() {
        match line.strip_prefix("    ") {
            Some(name) if listed && !name.is_empty() && !name.contains(char::is_whitespace) => names.push(name.to_owned()),
            _ if line == "failures:" => listed = true,
            _ if line.is_empty() => {}
            _ => listed = false,
        }
    }
    names
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
    fn what_failed_is_found_again() {
        let output = "\
failures:

---- a::b stdout ----

thread 'a::b' panicked at x.rs:1:1:
    indented

failures:
    a::b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.01s

error: test failed, to rerun pass `-p splitter-agent --test judge`
error: 1 target failed:
    `-p splitter-agent --test judge`
";
        assert_eq!(failed_names(output), ["a::b"]);
        assert_eq!(failed_targets(output), ["-p splitter-agent --test judge"]);
        assert!(failed_names("nothing").is_empty() && failed_targets("error: could not compile").is_empty());
    }

    #[test]
    fn only_failures_are_shown() {
        let shown = failures(OUTPUT);
        assert!(shown.starts_with("failures:\n    b\n") && !shown.contains("noise") && !shown.contains("test a"), "{shown}");
    }
}
