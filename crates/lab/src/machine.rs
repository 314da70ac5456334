//! Where and when figures were taken: machine, kernel, date.

use anyhow::Result;
use serde_json::{Value, json};
use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

/// An object with `date`, `machine` and `kernel`, which every kept result has.
pub fn describe() -> Result<Value> {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let mitigation = |name: &str| text(&format!("/sys/devices/system/cpu/vulnerabilities/{name}"));
    Ok(json!({
        "date": date(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()),
        "machine": {
            "cpu": cpu_model(&text("/proc/cpuinfo")),
            "cores": std::thread::available_parallelism()?.get(),
            "spec_rstack_overflow": mitigation("spec_rstack_overflow"),
            "retbleed": mitigation("retbleed"),
        },
        "kernel": text("/proc/sys/kernel/osrelease"),
    }))
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
}
