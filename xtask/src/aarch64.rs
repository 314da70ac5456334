//! The workspace and the kernel programs checked by the compiler for aarch64. The standard library is compiled from its source, which set-up
//! brings for the kernel programs anyway, so no target of a toolchain has to be installed. Nothing is linked or run.

use crate::{artifact, root, setup, step};
use anyhow::{Context, Result};
use std::{env, process::Command};

const TARGET: &str = "aarch64-unknown-linux-gnu";

/// `cargo xtask aarch64`.
pub fn run() -> Result<()> {
    setup::run(setup::Purpose::Build)?;
    check()
}

/// The same without set-up.
pub fn check() -> Result<()> {
    let rustc = setup::compiler().context("no compiler with the library source: set-up should have brought one")?;
    let beside = rustc.with_file_name("cargo");
    let mut command = Command::new(if beside.exists() { beside } else { "cargo".into() });
    // What `cargo run` set is of another compiler.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO") && name != "CARGO_HOME" || name.starts_with("RUST") && name != "RUSTUP_HOME" {
            command.env_remove(name);
        }
    }
    let root = root()?;
    command.current_dir(&root).env("PATH", artifact::path()).env("RUSTC", &rustc).env("RUSTC_BOOTSTRAP", "1");
    // But for fuzzing, which is C++ in part.
    command.args(["check", "--workspace", "--exclude", "splitter-fuzz", "--all-features"]);
    command.args(["--locked", "-Zbuild-std", "--target", TARGET, "--target-dir"]);
    // A folder of its own: another compiler would have everything in the usual one built again.
    step::run("check for aarch64", command.arg(root.join("target/aarch64")))?;
    Ok(())
}
