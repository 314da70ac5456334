//! `splitter-bench`: the lab's programs and the benchmarks. Dispatch only.

use anyhow::{Result, bail};
use splitter_bench::cases::Usage;
use splitter_lab::{cleanup, lab, serve};
use std::process::ExitCode;

const USAGE: &str = "splitter-bench serve --listen ADDR:PORT --name NAME ...   an HTTP/1.1 (and UDP) server that names itself
splitter-bench lab up|list|down|sweep                      the network alone, and labs left running
splitter-bench bench --splitter PATH --objects DIR ...     the benchmarks, as `cargo xtask bench` runs them
splitter-bench verify OBJECT                               what this kernel's verifier says of each program, a line of JSON each";

fn main() -> ExitCode {
    let result = dispatch();
    cleanup::yield_to_signal();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<Usage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

fn dispatch() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    match arguments.next().as_deref() {
        Some("serve") => serve::run(&serve::Options::parse(arguments)?),
        Some("lab") => lab::command(&arguments.collect::<Vec<_>>()),
        Some("bench") => bench(arguments),
        Some("verify") => verify(arguments),
        Some("help" | "--help" | "-h") => {
            println!("{USAGE}\n\n{}\n{}\n\n{}", serve::USAGE, serve::PATHS, lab::USAGE);
            Ok(())
        }
        _ => bail!("usage:\n{USAGE}"),
    }
}

/// `verify OBJECT`.
#[cfg(feature = "kernel")]
fn verify(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    use std::io::Write;
    let (Some(object), None) = (arguments.next(), arguments.next()) else { bail!("verify takes one kernel object") };
    splitter_lab::kernel::verify(object.as_ref(), |verdict| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(verdict)?)?;
        Ok(out.flush()?)
    })
}

#[cfg(not(feature = "kernel"))]
fn verify(_: impl Iterator<Item = String>) -> Result<()> {
    bail!("this splitter-bench was built without the feature `kernel`; `cargo xtask kernels` builds it with")
}

/// `bench --splitter PATH --objects DIR [--results DIR] [--revision TEXT] [CASE] [--quick] [--json]`.
#[cfg(feature = "kernel")]
fn bench(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    use anyhow::Context;
    use splitter_bench::cases::{self, Choice, Place};
    let (mut place, mut rest) = (Place::default(), Vec::new());
    while let Some(word) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--splitter" => place.splitter = value()?.into(),
            "--objects" => place.objects = value()?.into(),
            "--results" => place.results = Some(value()?.into()),
            "--revision" => place.revision = value()?,
            _ => rest.push(word),
        }
    }
    let choice = Choice::parse(rest.iter().map(String::as_str))?;
    for (option, path) in [("--splitter", &place.splitter), ("--objects", &place.objects)] {
        anyhow::ensure!(path.exists(), "{option} must name what was built; `cargo xtask bench` does");
    }
    cases::run(&choice, &place)
}

#[cfg(not(feature = "kernel"))]
fn bench(_: impl Iterator<Item = String>) -> Result<()> {
    bail!("this splitter-bench was built without the feature `kernel`; `cargo xtask bench` builds it with")
}
