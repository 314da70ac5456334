//! `cargo xtask fuzz`: libFuzzer around the targets of `fuzz/`, built with coverage by the same compiler as everything else. Passes of LLVM and their
//! options are given to rustc as they are, so that no nightly is needed.
//!
//! What `cargo xtask proof` runs begins with the committed seeds and always the same numbers: the same tree gets the same verdict. `cargo xtask fuzz`
//! draws new ones and goes on with what it has found before, in `target/xtask/fuzz`.

use crate::{artifact, root, setup, step};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use splitter_lab::lab::Process;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Of each target in `cargo xtask proof`, seconds.
const SHORT: u64 = 12;
/// Of each target when nothing is said.
const LONG: u64 = 60;
/// Fewer runs than this say nothing.
const LEAST: u64 = 500;
/// What makes rustc count which branches are taken, and what is compared (LLVM's SanitizerCoverage).
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// `cargo xtask fuzz [TARGET]... [--seconds N]`.
pub fn run(arguments: &[&str]) -> Result<()> {
    let known = targets()?;
    let (mut chosen, mut seconds) = (Vec::new(), LONG);
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => {
                let number = words.next().and_then(|number| number.parse().ok()).filter(|number| *number > 0);
                seconds = number.context("--seconds wants a number from 1")?;
            }
            name if known.iter().any(|target| target == name) => chosen.push(name.to_owned()),
            other => bail!("no target {other}; there are {}", known.join(", ")),
        }
    }
    setup::run(setup::Purpose::Fuzz)?;
    let program = build()?;
    all(&program, if chosen.is_empty() { known } else { chosen }, seconds, true)
}

/// What `cargo xtask proof` does: every target for some seconds.
pub fn short() -> Result<()> {
    all(&build()?, targets()?, SHORT, false)
}

/// Each has a folder of seeds.
fn targets() -> Result<Vec<String>> {
    let folder = root()?.join("fuzz/seeds");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

fn build() -> Result<PathBuf> {
    let mut command = artifact::cargo()?;
    // Named, so that build scripts and macros, which are run by the compiler, are built without.
    let host = setup::host()?;
    command.args(["build", "-p", "splitter-fuzz", "--features", "engine", "--profile", "fuzz", "--locked", "--target", &host]);
    command.env_remove("RUSTFLAGS").env("CARGO_ENCODED_RUSTFLAGS", COVERAGE.join("\x1f"));
    let output = step::run("build the fuzz targets with coverage", command.arg("--message-format=json-render-diagnostics"))?;
    let messages = output.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "splitter-fuzz" && message["executable"].is_string());
    let program = programs.next_back().context("cargo did not say where it put splitter-fuzz")?;
    Ok(program["executable"].as_str().unwrap_or_default().into())
}

/// A target that is being fed.
struct Run {
    target: String,
    process: Process,
    log: PathBuf,
    began: Instant,
}

/// As many at a time as there are cores. All are run, whatever one of them finds.
fn all(program: &Path, targets: Vec<String>, seconds: u64, goes_on: bool) -> Result<()> {
    let places = thread::available_parallelism().map_or(1, usize::from);
    let (mut waiting, mut running, mut faults) = (targets.into_iter(), Vec::<Run>::new(), Vec::new());
    loop {
        while running.len() < places
            && let Some(target) = waiting.next()
        {
            running.push(start(program, target, seconds, goes_on)?);
        }
        if running.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(50));
        let late = |run: &Run| run.began.elapsed() > Duration::from_secs(seconds * 2 + 60);
        let ended = |run: &mut Run| run.process.exited().map(|status| status.success()).or_else(|| late(run).then_some(false));
        while let Some((index, passed)) = running.iter_mut().enumerate().find_map(|(index, run)| Some((index, ended(run)?))) {
            let run = running.swap_remove(index);
            let told = verdict(&run, passed);
            run.process.kill();
            match told {
                Ok(text) => step::say(format_args!("[  ok  ] fuzz {} ({} s): {text}", run.target, run.began.elapsed().as_secs())),
                Err(error) => {
                    step::say(format_args!("[FAILED] fuzz {} ({} s)", run.target, run.began.elapsed().as_secs()));
                    faults.push(format!("{error:#}"));
                }
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n\n"));
    Ok(())
}

fn start(program: &Path, target: String, seconds: u64, goes_on: bool) -> Result<Run> {
    let (own, seeds) = (step::log_dir()?.join("fuzz"), root()?.join("fuzz"));
    let corpus = own.join(if goes_on { "corpus" } else { "short" }).join(&target);
    if !goes_on && corpus.exists() {
        fs::remove_dir_all(&corpus)?;
    }
    fs::create_dir_all(&corpus)?;
    fs::create_dir_all(own.join("found"))?;
    let log = own.join(format!("{target}.log"));
    let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(program);
    command.env("SPLITTER_FUZZ_TARGET", &target).env("RUST_BACKTRACE", "1");
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    command.args([format!("-max_total_time={seconds}"), format!("-seed={}", u32::from(!goes_on))]);
    command.args(["-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1", "-reload=0", "-verbosity=1"]);
    command.arg(format!("-artifact_prefix={}/{target}-", own.join("found").display()));
    let words = seeds.join("words").join(&target);
    if words.exists() {
        command.arg(format!("-dict={}", words.display()));
    }
    command.arg(corpus).arg(seeds.join("seeds").join(&target));
    let cases = seeds.join("cases").join(&target);
    if cases.exists() {
        command.arg(cases);
    }
    let title = format!("fuzz {target}");
    step::say(format_args!("[  ..  ] {title}: {seconds} s"));
    Ok(Run { process: Process::spawn_group(&title, &mut command)?, target, log, began: Instant::now() })
}

fn verdict(run: &Run, passed: bool) -> Result<String> {
    let log = String::from_utf8_lossy(&fs::read(&run.log)?).into_owned();
    if !passed {
        bail!("{}", fault(&run.target, &log, &run.log));
    }
    let runs = runs(&log).with_context(|| format!("libFuzzer told no count, see {}", run.log.display()))?;
    ensure!(runs >= LEAST, "{}: {runs} runs are too few to mean anything, see {}", run.target, run.log.display());
    Ok(format!("{runs} runs, {} edges", edges(&log).unwrap_or(0)))
}

/// Inputs that were fed.
fn runs(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

/// Edges that were taken, by the last line that tells.
fn edges(log: &str) -> Option<u64> {
    log.lines().rev().find_map(|line| line.split_once(" cov: ")?.1.split(' ').next()?.parse().ok())
}

/// What a person needs of the log: the message, the input, what to do with it.
fn fault(target: &str, log: &str, path: &Path) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let from = lines.iter().position(|line| line.contains("panicked at") || line.contains("ERROR: libFuzzer"));
    let message = from.map_or("it ended, or did not end in time", |from| lines[from]).to_owned();
    let more = from.and_then(|from| lines.get(from + 1)).map_or(String::new(), |line| format!("\n  {line}"));
    let input = lines.iter().rev().find_map(|line| line.split_once("Test unit written to ").map(|(_, input)| input));
    let next = input.map_or(String::new(), |input| {
        format!(
            "\n  input: {input}\n  next: put it to fuzz/cases/{target}/ under a name that says what it is; `cargo test -p splitter-fuzz` then fails until it is mended"
        )
    });
    format!("{target}: {message}{more}{next}\n  log: {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
INFO: seed corpus: files: 15
#16\tINITED cov: 365 ft: 900 corp: 15/3Kb exec/s: 0 rss: 40Mb
#4096\tpulse  cov: 401 ft: 1200 corp: 70/9Kb lim: 4096 exec/s: 2048 rss: 41Mb
";

    #[test]
    fn the_log_is_read() {
        let log = format!("{LOG}stat::number_of_executed_units: 123456\n");
        assert_eq!((runs(&log), edges(&log), runs(LOG)), (Some(123_456), Some(401), None));
        let log = format!(
            "{LOG}\nthread '<unnamed>' panicked at fuzz/src/chunks.rs:24:5:\nassertion failed\n==1== ERROR: libFuzzer: deadly signal\nartifact_prefix='/x/'; Test unit written to /x/chunks-crash-1\n"
        );
        let told = fault("chunks", &log, Path::new("/x/chunks.log"));
        for part in [
            "chunks: thread '<unnamed>' panicked at fuzz/src/chunks.rs:24:5:\n  assertion failed",
            "input: /x/chunks-crash-1",
            "fuzz/cases/chunks/",
        ] {
            assert!(told.contains(part), "{told}");
        }
        assert!(fault("chunks", LOG, Path::new("/x")).contains("did not end in time"));
    }

    #[test]
    fn every_target_is_found() {
        let names = targets().unwrap();
        assert!(names.contains(&"packets".to_owned()) && names.len() >= 7, "{names:?}");
    }
}
