//! Programs that nobody here wrote: web servers as backends, proxies as rivals that do the same split. Each runs in the foreground from a
//! configuration of its own, in a namespace, without its distribution's service. [`crate::lab::Process`] ends them.

mod proxy;
mod server;

pub use proxy::{Proxy, Split};
pub use server::{SIZES, Server, page};

use crate::{agent::quiet_log, lab::Process};
use anyhow::{Context, Result};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A program on PATH or in the system folders that users' PATH lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// # Errors
/// When it is not installed; says how.
pub fn require(program: &str) -> Result<PathBuf> {
    find(program).with_context(|| format!("{program} is not installed: `cargo xtask setup` does"))
}

/// Starts a command whose output goes to `FOLDER/NAME.log`, which an error quotes.
fn start(name: &str, command: &mut Command, folder: &Path, ready: impl FnOnce(&Process) -> Result<()>) -> Result<Process> {
    let log = quiet_log(folder, name)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let process = Process::spawn(name, command)?;
    ready(&process).with_context(|| {
        let log = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
        format!("{name} says: {}", log.trim())
    })?;
    Ok(process)
}
