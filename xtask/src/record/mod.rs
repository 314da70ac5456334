//! `cargo xtask record`: the demonstration in a terminal of its own, as a picture that moves; and `cargo xtask plot`: the README's bars.

mod film;
mod plot;

pub use plot::run as plot;

use crate::{artifact, root, setup, step};
use anyhow::{Context, Result, ensure};
use std::{env, fs, process::Command};

/// Rows and columns of the terminal: the demonstration's widest line, and its verdict with a table above it.
const SIZE: (u16, u16) = (36, 118);

/// Runs the demonstration under script(1) and writes `docs/demo.svg`.
pub fn run() -> Result<()> {
    // Before the film begins.
    setup::run(setup::Purpose::Build)?;
    artifact::build_release()?;
    let folder = step::log_dir()?;
    let (out, timing) = (folder.join("record.out"), folder.join("record.timing"));
    let xtask = env::current_exe().context("who are we?")?;
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--flush", "--logging-format", "classic", "--log-out"]).arg(&out).arg("--log-timing").arg(&timing);
    command.arg("--command").arg(format!("'{}' demo", xtask.display())).env("TERM", "xterm-256color");
    let status = command.status().context("cannot run script(1), of util-linux (Debian: bsdutils)")?;
    ensure!(status.success(), "the demonstration failed: nothing was recorded");
    let output = fs::read(&out).with_context(|| format!("cannot read {}", out.display()))?;
    let times = fs::read_to_string(&timing).with_context(|| format!("cannot read {}", timing.display()))?;
    let svg = film::Film::of(&output, &times, SIZE)?.svg("$ cargo xtask demo");
    let target = root()?.join("docs/demo.svg");
    fs::write(&target, &svg).with_context(|| format!("cannot write {}", target.display()))?;
    step::say(format_args!("{}: {} KB", target.display(), svg.len() / 1000));
    Ok(())
}
