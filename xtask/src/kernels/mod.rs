//! `cargo xtask kernels`: the programs on kernels that people have, booted under QEMU.
//!
//! | file | owns |
//! |---|---|
//! | `image` | the kernels: Debian's packages, unpacked and kept in the target folder |
//! | `root`, `cpio`, `init.sh` | the guest's files |
//! | `vm` | QEMU, and the rows that a guest writes |
//! | `load` | `--load-only`: every program before each verifier, and the budget |
//! | `full`, `items` | the full run: the root tests inside each guest, and which of them show what |

mod cpio;
mod full;
mod image;
mod items;
mod load;
mod root;
mod vm;

use crate::{artifact, proof, setup};
use anyhow::{Context, Result, bail, ensure};
use image::{Image, SERIES};
use splitter_lab::machine;
use std::{path::PathBuf, thread};

const USAGE: &str = "usage: cargo xtask kernels [--load-only [--update] [--object FILE]] [--kernel 6.1|6.12]...";

#[derive(Debug, Default, PartialEq, Eq)]
struct Choice {
    load_only: bool,
    update: bool,
    /// Another kernel object than the one that is built here.
    object: Option<PathBuf>,
    /// All of them when it is empty.
    kernels: Vec<&'static str>,
}

impl Choice {
    fn parse(words: &[&str]) -> Result<Choice> {
        let wrong = |text: String| anyhow::anyhow!("{text}\n{USAGE}");
        let mut choice = Choice::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| wrong(format!("{word} needs a value")));
            match *word {
                "--load-only" => choice.load_only = true,
                "--update" => choice.update = true,
                "--object" => choice.object = Some(value()?.into()),
                "--kernel" => {
                    let asked = value()?;
                    let known = SERIES.into_iter().find(|series| series == asked);
                    choice.kernels.push(known.ok_or_else(|| wrong(format!("no kernel {asked}; there are {}", SERIES.join(", "))))?);
                }
                _ => return Err(wrong(format!("unknown: {word}"))),
            }
        }
        if !choice.load_only && (choice.update || choice.object.is_some()) {
            return Err(wrong("--update and --object go with --load-only".into()));
        }
        Ok(choice)
    }

    fn series(&self) -> Vec<&'static str> {
        SERIES.into_iter().filter(|series| self.kernels.is_empty() || self.kernels.contains(series)).collect()
    }
}

pub fn run(words: &[&str]) -> Result<()> {
    let choice = Choice::parse(words)?;
    setup::run(setup::Purpose::Kernels)?;
    if choice.load_only {
        println!("{}", load_only(&choice)?);
        return Ok(());
    }
    full_run(&choice.series())
}

/// Every program of the object that is built here, before the verifier of each kernel.
pub fn check_loading() -> Result<String> {
    load_only(&Choice { load_only: true, ..Choice::default() })
}

fn load_only(choice: &Choice) -> Result<String> {
    let programs = artifact::build_with_kernel()?;
    let object = choice.object.as_ref().unwrap_or(&programs.object);
    let loaded = on_each(&choice.series(), |image| load::load(image, &programs.bench, object))?;
    load::judge(&loaded, choice.update)
}

/// The root tests on all kernels.
pub fn prove() -> Result<()> {
    full_run(&SERIES)
}

/// Runs the root tests; rows of all kernels together are kept in `bench/results/kernels.json`.
fn full_run(series: &[&'static str]) -> Result<()> {
    // Of what is built now, whatever the tree holds at the end.
    let revision = proof::revision()?;
    let programs = full::Programs::build()?;
    let reports = on_each(series, |image| full::run(image, &programs))?;
    reports.iter().for_each(|report| println!("{}", report.summary()));
    let failed: usize = reports.iter().map(full::Report::failed).sum();
    if series.len() == SERIES.len() {
        let mut document = machine::describe()?;
        document["revision"] = revision.into();
        document["failed"] = failed.into();
        document["kernels"] = reports.iter().map(full::Report::describe).collect();
        proof::write("kernels.json", &document)?;
    }
    ensure!(failed == 0, "{failed} tests failed, see above");
    Ok(())
}

/// The same on each kernel at the same time: they share the machine's processors.
fn on_each<T: Send>(series: &[&'static str], work: impl Fn(&Image) -> Result<T> + Sync) -> Result<Vec<T>> {
    let images = series.iter().map(|series| image::find(series, "amd64")).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let guests: Vec<_> = images.iter().map(|image| scope.spawn(|| work(image))).collect();
        let results: Vec<Result<T>> =
            guests.into_iter().map(|guest| guest.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect();
        let (good, bad): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        let problems: Vec<String> = bad.into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
        if !problems.is_empty() {
            bail!("{}", problems.join("\n"));
        }
        good.into_iter().collect::<Result<Vec<_>>>().context("all are good")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_read() {
        let choice = Choice::parse(&["--load-only", "--kernel", "6.12", "--update"]).unwrap();
        assert_eq!((choice.load_only, choice.update, choice.series()), (true, true, vec!["6.12"]));
        assert_eq!(Choice::parse(&[]).unwrap().series(), SERIES);
        for (words, complaint) in [
            (&["--kernel", "5.15"][..], "no kernel 5.15; there are 6.1, 6.12"),
            (&["--kernel"], "--kernel needs a value"),
            (&["--update"], "go with --load-only"),
            (&["--fast"], "unknown: --fast"),
        ] {
            let error = Choice::parse(words).unwrap_err();
            assert!(error.to_string().contains(complaint), "{error}");
        }
    }
}
