//! What a figure means only together with: the machine, the kernel, what else ran, the noise. And that nobody else measures meanwhile.

use super::rows::{Row, noise};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use splitter_lab::{lab::machine_cpu, machine, poll::check};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const LOCK: &str = "/run/lock/splitter-bench.lock";

/// Holds the machine for one benchmark until dropped.
pub fn alone() -> Result<File> {
    let file = File::create(LOCK).with_context(|| format!("cannot make {LOCK}"))?;
    // SAFETY: an open descriptor.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => bail!("another benchmark runs on this machine: wait for its end"),
        Err(error) => Err(error).context(LOCK),
    }
}

/// What else the machine does as a case begins.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Of the last minute, as /proc/loadavg has it.
    load: f64,
    /// CPUs that are busy right now.
    busy: f64,
}

/// Busy CPUs above which figures are doubtful.
pub const QUIET: f64 = 0.1;

impl Conditions {
    /// Looks for half a second.
    pub fn read() -> Result<Conditions> {
        let load = fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().and_then(|load| load.parse().ok()).context("odd /proc/loadavg")?;
        Ok(Conditions { load, busy: busy(Duration::from_millis(500))? })
    }

    /// In words, when other work runs.
    pub fn warning(&self) -> Option<String> {
        let Conditions { load, busy } = self;
        (*busy > QUIET).then(|| format!("other work runs ({busy:.2} CPUs busy, load average {load:.2}): these figures are doubtful"))
    }
}

/// CPUs that are busy on average over a span.
pub fn busy(span: Duration) -> Result<f64> {
    let (began, before) = (Instant::now(), machine_cpu()?);
    std::thread::sleep(span);
    Ok((machine_cpu()? - before) / began.elapsed().as_secs_f64())
}

/// Writes `FOLDER/CASE.json`.
pub fn write(folder: &Path, case: &str, revision: &str, conditions: &Conditions, rows: &[Row]) -> Result<PathBuf> {
    let mut document = machine::describe()?;
    document["case"] = case.into();
    document["revision"] = revision.into();
    document["load_average"] = conditions.load.into();
    document["busy_cpus_before"] = super::rows::rounded(conditions.busy).into();
    document["quiet"] = conditions.warning().is_none().into();
    // By metric: how far a subject was from itself.
    document["noise"] = serde_json::to_value(noise(rows))?;
    document["rows"] = rows.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?.into();
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{case}.json"));
    fs::write(&path, format!("{document:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_work_is_told() {
        assert_eq!(Conditions { load: 3.0, busy: 0.02 }.warning(), None);
        assert!(Conditions { load: 0.0, busy: 0.9 }.warning().is_some_and(|text| text.contains("0.90 CPUs")));
    }

    #[test]
    fn a_result_file_holds_rows_and_machine() {
        let folder = std::env::temp_dir().join(format!("splitter-results-{}", std::process::id()));
        let mut rows = super::super::Rows::new("l4");
        rows.add("plain", "rps", 100.0, None);
        rows.add("plain-again", "rps", 98.0, Some("plain"));
        let path = write(&folder, "l4", "abc", &Conditions { load: 0.5, busy: 0.0 }, rows.rows()).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((&json["rows"][1]["ratio"], &json["noise"]["rps"], &json["quiet"]), (&json!(0.98), &json!(0.02), &json!(true)));
        assert!(json["machine"]["cpu"].is_string() && json["machine"]["cores"].as_u64() > Some(0) && json["revision"] == "abc");
    }
}
