//! The oldest compiler that Cargo.toml declares (`rust-version`): the whole workspace checked by it, where rustup can bring it.

use crate::{artifact, step, supply};
use anyhow::{Context, Result};
use std::process::Command;

/// Says what was checked.
pub fn run() -> Result<String> {
    let metadata = artifact::metadata(&[])?;
    let declared = supply::declared(metadata["packages"].as_array().context("cargo metadata names no packages")?)?;
    let Some(toolchain) = toolchain(&declared)? else {
        return Ok(format!("not built by {declared}: rustup is not here, or cannot bring it; what dependencies ask for was looked at"));
    };
    let mut command = Command::new("rustup");
    // What cargo has set for us is of another compiler.
    command.env_remove("CARGO").env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env("PATH", artifact::path());
    command.current_dir(crate::root()?).args([
        "run",
        &toolchain,
        "cargo",
        "check",
        "--workspace",
        "--all-targets",
        "--all-features",
        "--locked",
    ]);
    step::run(&format!("check by Rust {toolchain}"), &mut command)?;
    Ok(format!("the workspace with its tests compiles with {toolchain}"))
}

/// The declared compiler as rustup names it, brought when it is missing; `None` where there is no way.
fn toolchain(declared: &str) -> Result<Option<String>> {
    let [major, minor, patch] = supply::numbers(declared);
    let name = format!("{major}.{minor}.{patch}");
    let Ok(there) = Command::new("rustup").args(["run", &name, "rustc", "--version"]).output() else { return Ok(None) };
    if there.status.success() {
        return Ok(Some(name));
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", &name, "--profile", "minimal", "--no-self-update"]);
    let (installed, _, log) = step::attempt(&format!("bring Rust {name} by rustup"), &mut install)?;
    if !installed {
        step::say(format_args!("going on without it (see {})", log.display()));
    }
    Ok(installed.then_some(name))
}
