//! Labs that were left running on purpose: one JSON file each, so that a later process can list and stop them.

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const DIR: &str = "/run/splitter-lab";

/// A kept lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// `spl-PID-NAME`.
    pub name: String,
    /// Commands that run when every process is dead and the namespaces still stand (`splitter detach`).
    stop: Vec<Vec<String>>,
    /// Directories and pins that go last.
    paths: Vec<PathBuf>,
}

impl Record {
    pub(super) fn write(name: &str, stop: Vec<Vec<String>>, paths: Vec<PathBuf>) -> Result<Record> {
        let record = Record { name: name.into(), stop, paths };
        fs::create_dir_all(DIR).with_context(|| format!("cannot make {DIR}"))?;
        fs::write(record.file(), serde_json::to_vec_pretty(&record)?)
            .with_context(|| format!("cannot write {}", record.file().display()))?;
        Ok(record)
    }

    fn file(&self) -> PathBuf {
        Path::new(DIR).join(format!("{}.json", self.name))
    }

    /// Stops every process in the lab's namespaces, runs the stop commands, removes namespaces and paths. Goes on after a failure and reports all.
    pub fn down(self) -> Result<()> {
        let mut errors = Vec::new();
        super::namespaces_of(&self.name).iter().for_each(|namespace| super::netns::kill_all(namespace));
        for command in &self.stop {
            let Some((program, arguments)) = command.split_first() else { continue };
            match Command::new(program).args(arguments).output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => errors.push(format!("{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
                Err(error) => errors.push(format!("{}: {error}", command.join(" "))),
            }
        }
        errors.extend(super::remove_lab(&self.name));
        for path in self.paths.iter().filter(|path| path.exists()) {
            if let Err(error) = fs::remove_dir_all(path) {
                errors.push(format!("{}: {error}", path.display()));
            }
        }
        fs::remove_file(self.file())?;
        if !errors.is_empty() {
            bail!("{}", errors.join("\n"));
        }
        Ok(())
    }
}

/// Every kept lab.
pub fn kept() -> Vec<Record> {
    let Ok(entries) = fs::read_dir(DIR) else { return Vec::new() };
    entries.filter_map(|entry| serde_json::from_slice(&fs::read(entry.ok()?.path()).ok()?).ok()).collect()
}
