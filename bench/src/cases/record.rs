//! What a figure means only together with: the machine, the kernel, what else ran, the noise. And that nobody else measures meanwhile.

use super::rows::{Row, noise};
use crate::{lab::machine_cpu, poll::check};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
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
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mitigation = |name: &str| text(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"));
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let document = json!({
        "case": case,
        "date": date(seconds),
        "revision": revision,
        "machine": {
            "cpu": cpu_model(&text("/proc/cpuinfo")),
            "cores": std::thread::available_parallelism()?.get(),
            "spec_rstack_overflow": mitigation("spec_rstack_overflow"),
            "retbleed": mitigation("retbleed"),
        },
        "kernel": text("/proc/sys/kernel/osrelease"),
        "load_average": conditions.load,
        "busy_cpus_before": super::rows::rounded(conditions.busy),
        "quiet": conditions.warning().is_none(),
        // By metric: how far a subject was from itself.
        "noise": noise(rows),
        "rows": rows.iter().map(serde_json::to_value).collect::<Result<Vec<Value>, _>>()?,
    });
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(format!("{case}.json"));
    fs::write(&path, format!("{document:#}\n")).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn cpu_model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, model)| model.trim())
}

/// `YYYY-MM-DDTHH:MM:SSZ` of Unix seconds (Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn date(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00Z");
        assert_eq!(date(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(date(1_798_761_599), "2026-12-31T23:59:59Z");
    }

    #[test]
    fn the_cpu_is_named() {
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: AMD EPYC\nstepping: 1\n"), "AMD EPYC");
        assert_eq!(cpu_model(""), "unknown");
    }

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
